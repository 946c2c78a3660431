"""Forecast accuracy with the defaults of the command: real series, several seeds, beside baselines and peers.

    python benchmarks/forecast_accuracy.py --data FOLDER [--sets air,co2] [--seeds 3] [--max-time 240]

FOLDER holds the series by their usual names (ETTh1.csv or ETTh1.csv.xz, taylor.csv, AirPassengers.csv,
vega-seattle-weather.csv, vega-co2-concentration.csv). Every window of a test part is forecast from all that
precedes it, once trained. The peers' figures were measured elsewhere on the same windows: 70 s of training on
one thread, NeuralForecast 3.3, Darts 0.48, GluonTS 0.17.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import ostinato as ot


@dataclass(frozen=True)
class Set:
    """One data set: its file, columns, horizon, points held out, and the best peer's MASE where measured."""

    file: str
    columns: dict[str, str]
    horizon: int
    test: int
    rows: int | None = None
    best_peer: float | None = None
    extra: dict[str, int] = field(default_factory=dict)


SETS = {
    # Twelve months to learn from, four to choose by, four to be judged on.
    "etth1": Set("ETTh1.csv", {"time": "date", "target": "OT"}, 24, 2880, 14_400, best_peer=0.513),
    "taylor7": Set(
        "taylor.csv",
        {"target": "Y", "frequency": "30min", "start": "2000-06-05"},
        48,
        336,
        best_peer=0.396,
    ),
    "air": Set("AirPassengers.csv", {"time": "Month", "target": "#Passengers"}, 12, 12, best_peer=0.378),
    "seattle": Set("vega-seattle-weather.csv", {"time": "date", "target": "temp_max"}, 14, 146),
    "co2": Set("vega-co2-concentration.csv", {"time": "Date", "target": "CO2"}, 12, 74),
    "sunspots": Set("monthly-sunspots.csv", {"time": "Month", "target": "Sunspots"}, 12, 282),
    "melbourne": Set(
        "temps.csv",
        {"time": "Date", "target": "Daily minimum temperatures", "time_format": "%m/%d/%Y"},
        14,
        365,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="etth1,taylor7,air,seattle,co2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-time", type=float, default=240.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {}
    print(f"{platform.processor() or platform.machine()}, {given.max_time:.0f} s at most a run")
    for name in given.sets.split(","):
        results[name] = [measure(name, seed, given) for seed in range(given.seeds)]
        report(name, results[name])
        if given.json:
            given.json.write_text(json.dumps(results, indent=1))


def measure(name: str, seed: int, given: argparse.Namespace) -> dict[str, object]:
    """Train once and score every window of the test part."""
    chosen = SETS[name]
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        forecaster = ot.Forecaster(
            chosen.horizon, test=chosen.test, seed=seed, max_time_s=given.max_time, progress="quiet"
        )
        forecaster.fit(_file(given.data, chosen, Path(folder)), **chosen.columns)
    scores = forecaster.metrics_
    return {
        "model": next(iter(scores["model"].values())),
        "baselines": scores["baselines"],
        "wall_s": time.monotonic() - started_s,
        "steps": forecaster.history_.steps,
        "stopped": forecaster.history_.stopped,
    }


def _file(data: Path, chosen: Set, folder: Path) -> Path:
    """The set's file, cut to its first rows where the protocol says so."""
    path = next(p for p in (data / chosen.file, data / f"{chosen.file}.xz") if p.exists())
    if chosen.rows is None:
        return path
    import lzma

    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as lines:
        kept = [line for line, _ in zip(lines, range(chosen.rows + 1), strict=False)]
    cut = folder / chosen.file
    cut.write_text("".join(kept))
    return cut


def report(name: str, runs: list[dict[str, object]]) -> None:
    """One line: mean and range over seeds, coverage, the best baseline, the best peer."""
    mase = np.array([run["model"]["mase"] for run in runs])  # type: ignore[index]
    coverage = np.array([run["model"]["coverage80"] for run in runs])  # type: ignore[index]
    baselines = {key: value["mase"] for key, value in runs[0]["baselines"].items()}  # type: ignore[attr-defined]
    best = min(baselines, key=baselines.get)  # type: ignore[arg-type]
    peer = SETS[name].best_peer
    print(
        f"{name:10s} MASE {mase.mean():.4f} ({mase.min():.4f}-{mase.max():.4f})  "
        f"80 % intervals cover {coverage.mean():.3f} ({coverage.min():.2f}-{coverage.max():.2f})  "
        f"best baseline {best} {baselines[best]:.4f} (ratio {mase.mean() / baselines[best]:.3f})  "
        f"best peer {peer if peer is not None else '-'}  "
        f"{np.mean([run['wall_s'] for run in runs]):.0f} s",  # type: ignore[arg-type]
        flush=True,
    )


if __name__ == "__main__":
    main()
