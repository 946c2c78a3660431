"""How long a forecaster's run takes, beside an earlier checkout: time by part, and the scores it is worth.

    python benchmarks/forecast_speed.py --before CHECKOUT [--sets seattle-weather,co2] [--steps 150]
        [--threads 1,2] [--rounds 3] [--seeds 1] [--etth1 ETTh1.csv.xz] [--json FILE]

CHECKOUT is a folder that holds `src/ostinato`, of any commit that has `Forecaster`; both sides run under
this interpreter. Every run is a process of its own, which does what `ostinato train forecast` does: import,
prepare, train a fixed number of steps, score. The sides take turns; times are the shortest of the rounds in
seconds, `cpu s` is the processor time of all threads, which a busy machine disturbs less. A ratio is before
over after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HORIZONS = {"airpassengers": 12, "seattle-weather": 14, "co2": 12, "etth1": 24}
ETTH1_ROWS = 14_400
TIMES = {
    "whole": "whole process",
    "fit": "fit",
    "train": "training alone",
    "baselines": "baselines",
    "cpu": "cpu s",
}


def _table(name: str, etth1: Path | None) -> tuple[Any, dict[str, Any]]:
    """The data of a set, and its columns."""
    if name != "etth1":
        from ostinato.data.bundled import load_bundled

        return load_bundled(name), {}
    import csv
    import io
    import lzma

    assert etth1 is not None
    raw = etth1.read_bytes()
    text = (lzma.decompress(raw) if etth1.suffix == ".xz" else raw).decode()
    rows = list(csv.DictReader(io.StringIO(text)))[:ETTH1_ROWS]
    columns = {"date": [row["date"] for row in rows], "OT": [float(row["OT"]) for row in rows]}
    return columns, {"target": "OT", "time": "date"}


def _run_one(arguments: argparse.Namespace) -> None:
    """One fit in this process; prints its figures as JSON."""
    source = arguments.run
    # An editable install finds the package before any path does.
    sys.meta_path = [
        finder
        for finder in sys.meta_path
        if not any(w in type(finder).__name__ for w in ("ditable", "ScikitBuild"))
    ]
    sys.path.insert(0, source)
    began_s = time.perf_counter()
    import torch

    torch.set_num_threads(int(arguments.threads))
    import ostinato as ot
    from ostinato.tasks.forecast import estimator, fitting

    if not Path(ot.__file__).is_relative_to(Path(source).resolve()):
        raise SystemExit(f"ostinato was imported from {ot.__file__}, expected it below {source}")
    spent = {"train": 0.0, "score_baselines": 0.0}
    for module, name in ((fitting, "train"), (estimator, "score_baselines")):
        setattr(module, name, _timed(getattr(module, name), spent, name))
    data, columns = _table(arguments.sets, arguments.etth1)
    horizon = HORIZONS[arguments.sets]
    forecaster = ot.Forecaster(
        horizon,
        steps=arguments.steps,
        test=4 * horizon,
        seed=arguments.seeds,
        max_time_s=None,
        progress="quiet",
    )
    fit_began_s = time.perf_counter()
    forecaster.fit(data, **columns)
    ended_s = time.perf_counter()
    scores = next(iter(forecaster.metrics_["model"].values()))
    figures = {
        "whole": ended_s - began_s,
        "fit": ended_s - fit_began_s,
        "train": spent["train"],
        "step_ms": 1e3 * spent["train"] / forecaster.history_.steps,
        "baselines": spent["score_baselines"],
        "cpu": time.process_time(),
        "mase": scores["mase"],
        "coverage80": scores["coverage80"],
        "ets": forecaster.metrics_["baselines"].get("ets", {}).get("mase", float("nan")),
    }
    print(json.dumps(figures))


def _timed(function: Any, spent: dict[str, float], name: str) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began_s = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began_s

    return timed


def _measure(
    arguments: argparse.Namespace, source: Path, name: str, threads: int, seed: int
) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--run",
        str(source),
        "--sets",
        name,
        "--steps",
        str(arguments.steps),
    ]
    command += ["--threads", str(threads), "--seeds", str(seed)]
    command += ["--etth1", str(arguments.etth1)] if arguments.etth1 else []
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=source, check=False)
    if done.returncode:
        raise SystemExit(f"{source}, {name}: the run failed\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _compare(arguments: argparse.Namespace, name: str, threads: int) -> dict[str, Any]:
    sources = {
        "before": (arguments.before / "src").resolve(),
        "after": Path(__file__).resolve().parents[1] / "src",
    }
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sources}
    for number in range(max(arguments.rounds, arguments.seeds)):
        for side in sources if number % 2 == 0 else reversed(sources):
            runs[side].append(_measure(arguments, sources[side], name, threads, number % arguments.seeds))
    best = {side: {key: min(r[key] for r in of) for key in (*TIMES, "step_ms")} for side, of in runs.items()}
    scores = {
        side: {
            key: statistics.fmean(r[key] for r in of[: arguments.seeds])
            for key in ("mase", "coverage80", "ets")
        }
        for side, of in runs.items()
    }
    ratios = {key: best["before"][key] / best["after"][key] for key in (*TIMES, "step_ms")}
    return {"set": name, "threads": threads, "best": best, "scores": scores, "ratios": ratios, "runs": runs}


def _show(result: dict[str, Any]) -> None:
    print(f"\n{result['set']}, threads {result['threads']}")
    print(f"{'':16}{'before':>10}{'after':>10}{'ratio':>8}")
    best = result["best"]
    for key, title in (*TIMES.items(), ("step_ms", "ms per step")):
        before, after = best["before"][key], best["after"][key]
        print(f"{title:16}{before:10.2f}{after:10.2f}{result['ratios'][key]:8.2f}")
    for key, title in (("mase", "MASE"), ("coverage80", "coverage 80 %"), ("ets", "MASE of ets")):
        print(
            f"{title:16}{result['scores']['before'][key]:10.4f}{result['scores']['after'][key]:10.4f}",
            flush=True,
        )


def main() -> None:
    """Both sides in turn, or with `--run` one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=Path, help="checkout to compare with")
    parser.add_argument("--sets", default="airpassengers,seattle-weather,co2")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1, help="scores are means over seeds 0 ... SEEDS - 1")
    parser.add_argument("--etth1", type=Path, help="adds the set etth1, from this file")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.etth1 = arguments.etth1 and arguments.etth1.resolve()
    if arguments.run:
        _run_one(arguments)
        return
    if arguments.before is None or not (arguments.before / "src" / "ostinato").is_dir():
        parser.error("--before: expected a checkout, a folder that holds src/ostinato")
    names = arguments.sets.split(",") + (["etth1"] if arguments.etth1 else [])
    unknown = [name for name in names if name not in HORIZONS]
    if unknown:
        parser.error(f"unknown sets {', '.join(unknown)}; known: {', '.join(HORIZONS)}")
    results = []
    for name in names:
        for threads in map(int, arguments.threads.split(",")):
            results.append(_compare(arguments, name, threads))
            _show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
