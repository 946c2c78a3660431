"""Classes of texts, signals and DNA with the defaults of the command: several seeds, beside baselines.

    python benchmarks/classification.py --data FOLDER --set trec|sms|splice|japanese|basic|utkinect|all
        [--seeds 3] [--max-time SECONDS] [--json FILE]

FOLDER (by default the environment variable OSTINATO_DATA) holds the sets by their usual names, packed or not,
directly or in folders: TREC.train.all and TREC.test.all, sms.tsv, splice.csv, JapaneseVowels and BasicMotions
(_TRAIN.ts, _TEST.ts), utkinect.npz. Test parts are the sets' own; SMS spam is split 80/20 at random for each
seed, the splice junctions are judged in 10 stratified folds that each seed draws anew, and of the skeletons
those of people with odd numbers are learned from, those of the others judged. Times are those of `fit`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ostinato as ot
from ostinato.data.examples import Examples
from ostinato.data.labelled import read_labelled

SETS = ("trec", "sms", "splice", "japanese", "basic", "utkinect")
# The least accuracy aimed at, in percent.
GOALS = {"trec": 90.0, "sms": 98.3, "splice": 95.0, "japanese": 97.0, "basic": 97.0, "utkinect": 85.0}
FOLDS = 10
Parts = tuple[Examples, Examples]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTINATO_DATA"))
    parser.add_argument("--set", default="all", choices=(*SETS, "all"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--max-time", type=float, help="of one fit, in seconds; for splice of all folds")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None:
        parser.error("say where the sets are: --data FOLDER, or OSTINATO_DATA")
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    results: dict[str, list[dict[str, Any]]] = {}
    for name in SETS if given.set == "all" else (given.set,):
        results[name] = []
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            results[name].append(measure(name, Path(given.data), seed, given.max_time))
            report(f"{name}, seed {seed}", results[name][-1:])
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))
        report(f"{name}, mean, goal {GOALS[name]} %", results[name])


def measure(name: str, data: Path, seed: int, max_time_s: float | None) -> dict[str, Any]:
    """Train once (for splice ten times) and judge the test part; figures are shares of the test examples."""
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    folds = list(parts(name, data, seed))
    scores: list[dict[str, Any]] = []
    for train, test in folds:
        limit_s = None if max_time_s is None else max_time_s / len(folds)
        classifier = ot.Classifier(seed=seed, max_time_s=limit_s, progress="quiet").fit(train, test=test)
        scores.append(classifier.metrics_)
    settings = classifier.settings_
    return {
        "model": averaged([next(iter(one["model"].values())) for one in scores]),
        "baselines": {
            baseline: averaged([one["baselines"][baseline] for one in scores])
            for baseline in scores[0]["baselines"]
        },
        "wall_s": time.monotonic() - started_s,
        "cpu_s": time.process_time() - started_cpu_s,
        "members": settings.members,
        "epochs": settings.epochs,
    }


def averaged(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def parts(name: str, data: Path, seed: int) -> Iterator[Parts]:
    """Training and test parts."""
    if name == "trec":
        yield tuple(read_labelled(find(data, f"TREC.{p}.all"), format="trec") for p in ("train", "test"))  # type: ignore[misc]
    elif name in ("japanese", "basic"):
        stem = {"japanese": "JapaneseVowels", "basic": "BasicMotions"}[name]
        yield tuple(read_labelled(find(data, f"{stem}_{p}.ts")) for p in ("TRAIN", "TEST"))  # type: ignore[misc]
    elif name == "utkinect":
        path = find(data, "utkinect.npz")
        clips = read_labelled(path, sequence="x", length="length", label="action")
        with np.load(path) as arrays:
            is_odd = arrays["subject"] % 2 == 1
        yield clips.select(np.flatnonzero(is_odd)), clips.select(np.flatnonzero(~is_odd))
    elif name == "sms":
        texts = read_labelled(find(data, "sms.tsv"), format="csv", header=False, label=0, text=1)
        order = np.random.default_rng(seed).permutation(len(texts))
        cut = round(0.8 * len(texts))
        yield texts.select(np.sort(order[:cut])), texts.select(np.sort(order[cut:]))
    else:
        from sklearn.model_selection import StratifiedKFold

        rows = read_labelled(find(data, "splice.csv"), letters="sequence", label="label")
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        for train, test in folds.split(np.zeros(len(rows)), list(rows.labels or ())):
            yield rows.select(train), rows.select(test)


def find(data: Path, name: str) -> Path:
    """The file of that name, perhaps packed, at any depth."""
    found = sorted(path for end in ("", ".xz", ".gz") for path in data.rglob(name + end))
    if not found:
        raise SystemExit(f"{data}: no {name} (or .xz, .gz) is there")
    return found[0]


def report(what: str, runs: list[dict[str, Any]]) -> None:
    """Means over runs: the network, the baselines, seconds."""
    model = [100 * run["model"]["accuracy"] for run in runs]
    spread = f" ± {np.std(model):.2f}" if len(runs) > 1 else ""
    baselines = ", ".join(
        f"{name} {100 * np.mean([run['baselines'][name]['accuracy'] for run in runs]):.2f}"
        for name in runs[0]["baselines"]
    )
    f1, error, wall_s, cpu_s = (
        np.mean([run["model"]["macro_f1"] for run in runs]),
        np.mean([run["model"]["calibration_error"] for run in runs]),
        np.mean([run["wall_s"] for run in runs]),
        np.mean([run["cpu_s"] for run in runs]),
    )
    print(
        f"{what}: accuracy {np.mean(model):.2f}{spread} %, macro F1 {f1:.4f}, calibration error {error:.3f}; "
        f"baselines {baselines}; {wall_s:.0f} s ({cpu_s:.0f} s of CPU), {runs[0]['members']} networks, "
        f"{runs[0]['epochs']} epochs",
        flush=True,
    )


if __name__ == "__main__":
    main()
