"""How well language models do with the defaults of the command: Penn Treebank words, tiny Shakespeare.

    python benchmarks/language.py --data FOLDER [--sets shakespeare,ptb20,ptb90] [--seeds 1] [--scale 1.0]

FOLDER holds ptb.train.txt, ptb.valid.txt, ptb.test.txt and tinyshakespeare.txt, also packed as .xz, by
themselves or in a folder lm; the environment variable OSTINATO_DATA names it by default. Shakespeare is cut
into 90 % for training, 5 % for validation and the last 5 % as the test part.

Perplexity is counted as papers do: over every word of the test part and one end for each of its lines
(82,430 units), nothing of them left out. Nats are per character, line feeds counted. The n-grams beside are
Kneser-Ney's.

The time limits are for two cores. `--scale 2` doubles them, for one; where the machine is busy neither is
fair, and the processor seconds that were really spent are printed beside.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import ostinato as ot


@dataclass(frozen=True)
class Set:
    """A text, its time limit in minutes, and the goal for one of its scores."""

    files: tuple[str, ...]
    minutes: float
    metric: str
    goal: float
    published: str


PTB = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
SETS = {
    "shakespeare": Set(
        ("tinyshakespeare.txt",), 15, "nats", 1.50, "minGRU 1.548, Transformer 1.547 (arXiv:2410.01201)"
    ),
    "ptb20": Set(PTB, 20, "perplexity", 120.0, "RNN 114.5, GRU 92.5, LSTM 78.9 (arXiv:1803.01271)"),
    "ptb90": Set(PTB, 90, "perplexity", 95.0, "AWD-LSTM 57.3 after 750 passes (arXiv:1708.02182)"),
}


def text_of(data: Path, name: str) -> str:
    """A file's text, packed or not."""
    for folder in (data, data / "lm"):
        if (folder / name).exists():
            return (folder / name).read_text(encoding="utf-8")
        if (folder / f"{name}.xz").exists():
            return lzma.open(folder / f"{name}.xz", "rt", encoding="utf-8").read()
    raise SystemExit(f"{data}: there is neither {name} nor {name}.xz, nor in its folder lm")


def parts_of(data: Path, chosen: Set, folder: Path) -> list[Path]:
    """Training, validation and test part as files in `folder`."""
    texts = [text_of(data, name) for name in chosen.files]
    if len(texts) == 1:
        n = len(texts[0])
        cuts = [0, int(0.9 * n), int(0.95 * n), n]
        texts = [texts[0][a:b] for a, b in pairwise(cuts)]
    made = [folder / f"{name}.txt" for name in ("train", "valid", "test")]
    for path, text in zip(made, texts, strict=True):
        path.write_text(text, encoding="utf-8", newline="")
    return made


def measure(chosen: Set, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train once with the defaults and score the test part."""
    with tempfile.TemporaryDirectory() as folder:
        train, valid, test = parts_of(given.data, chosen, Path(folder))
        wall_s, cpu_s = time.monotonic(), time.process_time()
        model = ot.LanguageModel(
            max_time_s=60 * chosen.minutes * given.scale, seed=seed, progress=given.progress
        )
        model.fit(train, valid=valid, test=test)
        scores = model.metrics_
    return {
        "model": scores["model"],
        "baselines": scores["baselines"],
        "validation": scores["validation"]["model"],
        "settings": repr(model.settings_),
        "passes": model.history_.epochs,
        "steps": model.history_.steps,
        "wall_s": time.monotonic() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTINATO_DATA"))
    parser.add_argument("--sets", default="shakespeare,ptb20")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--progress", default="quiet")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None:
        parser.error("--data FOLDER, or OSTINATO_DATA, names the folder of the texts")
    given.data = Path(given.data)
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    results: dict[str, list[dict[str, Any]]] = {}
    for name in given.sets.split(","):
        chosen = SETS[name]
        for seed in range(given.seeds):
            run = measure(chosen, seed, given)
            results.setdefault(name, []).append(run)
            scores = {**run["model"], **run["baselines"]}
            told = ", ".join(f"{who} {row[chosen.metric]:.3f}" for who, row in scores.items())
            print(
                f"{name} seed {seed}: {chosen.metric} {told} (goal {chosen.goal}; published: "
                f"{chosen.published}); {run['passes']} passes, {run['wall_s']:.0f} s of "
                f"{60 * chosen.minutes * given.scale:.0f}, {run['cpu_s']:.0f} processor seconds\n"
                f"  {run['settings']}",
                flush=True,
            )
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
