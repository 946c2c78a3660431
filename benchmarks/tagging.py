"""Tagging with the defaults of the command: parts of speech, chunks, intents with slots; several seeds.

    python benchmarks/tagging.py --data FOLDER --set ewt|conll2000|snips [--seeds 3] [--json FILE]

FOLDER (by default that of the variable OSTINATO_DATA) holds the sets, in itself or in `tagging/`:

- ewt: en_ewt-ud-{train,dev,test}.conllu[.xz] of UD English EWT; universal parts of speech, accuracy.
- conll2000: conll2000.zip with conll2000/train.txt and test.txt; chunks, span F1. A part of the training data
  is held out for validation.
- snips: snips/{train,valid,test} with seq.in, seq.out, label; intents (accuracy) and slots (span F1) jointly.

Each seed trains once; scores are of the test part, spans as seqeval (conlleval) counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ostinato as ot


@dataclass(frozen=True)
class Set:
    """One data set: its parts, and the scores that it should reach, by name."""

    train: str
    valid: str | None
    test: str
    aims: dict[str, float]
    limit_s: float


SETS = {
    "ewt": Set(
        "en_ewt-ud-train.conllu", "en_ewt-ud-dev.conllu", "en_ewt-ud-test.conllu", {"accuracy": 0.94}, 600
    ),
    "conll2000": Set(
        "conll2000.zip/conll2000/train.txt",
        None,
        "conll2000.zip/conll2000/test.txt",
        {"span_f1": 0.935},
        900,
    ),
    "snips": Set("snips/train", "snips/valid", "snips/test", {"label_accuracy": 0.97, "span_f1": 0.92}, 600),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTINATO_DATA"))
    parser.add_argument("--set", choices=SETS, default="ewt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder of the sets: --data FOLDER, or the variable OSTINATO_DATA")
    print(f"{given.set} on {platform.processor() or platform.machine()}", flush=True)
    runs = []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        runs.append(measure(SETS[given.set], find(Path(given.data)), seed))
        report(SETS[given.set], runs)
        if given.json:
            given.json.write_text(json.dumps(runs, indent=1))


def find(data: Path) -> Path:
    """The folder of the sets."""
    return data / "tagging" if (data / "tagging").is_dir() else data


def measure(chosen: Set, folder: Path, seed: int) -> dict[str, Any]:
    """Train once and score the test part, then tag single sentences."""
    train, valid, test = (
        None if part is None else path_of(folder, part) for part in (chosen.train, chosen.valid, chosen.test)
    )
    started_s, cpu_s = time.monotonic(), time.process_time()
    tagger = ot.Tagger(seed=seed, progress="quiet").fit(train, valid=valid, test=test)
    scores = tagger.metrics_
    return {
        "model": next(iter(scores["model"].values())),
        "baselines": scores["baselines"],
        "validation": next(iter(scores["validation"]["model"].values())),
        "wall_s": time.monotonic() - started_s,
        "cpu_s": time.process_time() - cpu_s,
        "stopped": tagger.history_.stopped,
        "steps": tagger.history_.steps,
        "sentence_ms": sentence_ms(tagger),
    }


def path_of(folder: Path, part: str) -> Path:
    """A part of a set, which may be compressed."""
    path = folder / part
    return path if path.exists() or ".zip" in part else folder / f"{part}.xz"


def sentence_ms(tagger: ot.Tagger) -> float:
    """The median time for a sentence of 20 words, on one thread; columns have their most frequent value."""
    import torch

    from ostinato.data.examples import Sentence

    text = "this is a sentence of twenty words that one would like to have tagged at once , and well ."
    words = text.split(" ")
    columns = {name: [tagger.preparation_.columns[name].entry(2)] * 20 for name in tagger.columns_}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spent = []
    for _ in range(50):
        started_s = time.perf_counter()
        tagger.predict([Sentence(words, columns)])
        spent.append(time.perf_counter() - started_s)
    torch.set_num_threads(threads)
    return 1000 * float(np.median(spent))


def report(chosen: Set, runs: list[dict[str, Any]]) -> None:
    """The mean over the seeds so far, beside the aims and the baselines."""
    parts = [f"{len(runs)} seeds"]
    for name, value in runs[-1]["model"].items():
        values = [100 * run["model"][name] for run in runs]
        aim = f" (aim {100 * chosen.aims[name]:.1f})" if name in chosen.aims else ""
        if aim or value is not None:
            parts.append(f"{name} {np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]{aim}")
    for name, row in runs[-1]["baselines"].items():
        parts.append(f"{name}: " + " ".join(f"{key} {100 * value:.2f}" for key, value in row.items()))
    wall_s = [run["wall_s"] for run in runs]
    parts.append(
        f"{np.mean(wall_s):.0f} s of {chosen.limit_s:.0f}, {np.mean([r['cpu_s'] for r in runs]):.0f} s of CPU"
    )
    parts.append(
        f"{runs[-1]['sentence_ms']:.1f} ms for 20 words; {runs[-1]['stopped']}, {runs[-1]['steps']} steps"
    )
    print("\n  ".join(parts), flush=True)


if __name__ == "__main__":
    main()
