"""Translation, pronunciation and summaries with the defaults of the command: several seeds, beside baselines.

    python benchmarks/translation.py --data FOLDER --set multi30k|cmudict|debian|all
        [--seeds 1] [--first-seed 0] [--max-time SECONDS] [--only plain|without] [--json FILE]

FOLDER (by default the environment variable OSTINATO_DATA) holds the sets by their usual names, packed or not,
directly or in folders: train, val and test_2016_flickr with the endings .de and .en; cmudict.dict;
debian_descriptions.jsonl. Multi30k is German to English with its own parts. Of CMUdict a tenth of the words,
with all their pronunciations and with stress, is drawn anew for each seed and judged; comments are left out.
Of the Debian packages 2,000 are, by their names: English descriptions to synopses. Multi30k is also learned
without attention, the descriptions without copying (`--only` chooses one).
`--max-time` is of one fit; without it what the goals allow. Times are those of `fit`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ostinato as ot
from ostinato.data.files import open_binary
from ostinato.data.pair_files import Pairs
from ostinato.data.pairs import read_pairs

Parts = dict[str, Any]
_VARIANT = re.compile(r"\(\d+\)$")
_TEST_PACKAGES = 2000


@dataclass(frozen=True)
class Set:
    """One set: how it is read, what learns it and what it is compared with, and what it is to reach.

    Attributes:
        parts: of (folder, seed): `data`, `test`, perhaps `valid`.
        estimator: class of ours.
        metric: what the goal is about; with `goal` None above all that is beside it.
        is_error: the less the better.
        without: parameters of the second network, that lacks something.
        minutes: of training.
    """

    parts: Callable[[Path, int], Parts]
    estimator: str
    metric: str
    goal: float | None
    minutes: float
    is_error: bool = False
    without: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTINATO_DATA"))
    parser.add_argument("--set", default="all", choices=(*SETS, "all"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--max-time", type=float, help="of one fit, in seconds")
    parser.add_argument("--only", choices=("plain", "without"))
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
            results[name].append(measure(SETS[name], Path(given.data), seed, given.max_time, given.only))
            report(f"{name}, seed {seed}", SETS[name], results[name][-1:])
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))
        if given.seeds > 1:
            report(f"{name}, mean of {given.seeds} seeds", SETS[name], results[name])


def measure(
    one: Set, data: Path, seed: int, max_time_s: float | None, only: str | None
) -> dict[str, dict[str, Any]]:
    """Scores of the network, of the one that lacks something, and of the baselines, by name."""
    parts = one.parts(data, seed)
    limit_s = 60 * one.minutes if max_time_s is None else max_time_s
    rows: dict[str, dict[str, Any]] = {}
    variants = {"network": {}, **({_named(one.without): one.without} if one.without else {})}
    for number, (name, parameters) in enumerate(variants.items()):
        if only is not None and (only == "plain") != (number == 0):
            continue
        started_s, started_cpu_s = time.monotonic(), time.process_time()
        estimator = getattr(ot, one.estimator)(
            seed=seed, max_time_s=limit_s, progress="lines", **parameters
        ).fit(**parts)
        (scores,) = estimator.metrics_["model"].values()
        rows[name] = {
            **scores,
            "wall_s": time.monotonic() - started_s,
            "cpu_s": time.process_time() - started_cpu_s,
            "steps": estimator.history_.steps,
            "settings": repr(estimator.settings_),
        }
        rows |= estimator.metrics_["baselines"]
        for note in estimator.notes_:
            print(f"  {name}: {note}", flush=True)
    return rows


def _named(parameters: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def multi30k(data: Path, seed: int) -> Parts:
    """German to English, the set's own parts."""
    return {
        part: tuple(find(data, f"{name}.{language}") for language in ("de", "en"))
        for part, name in (("data", "train"), ("valid", "val"), ("test", "test_2016_flickr"))
    }


def cmudict(data: Path, seed: int) -> Parts:
    """Spelling to phonemes; a tenth of the words, by their spelling, is for the test."""
    words, sounds = [], []
    with open_binary(find(data, "cmudict.dict")) as stream:
        for line in stream.read().decode("utf-8").split("\n"):
            word, _, phonemes = line.partition(" #")[0].strip().partition(" ")
            if phonemes:
                words.append(_VARIANT.sub("", word))
                sounds.append(phonemes)
    chosen = drawn(words, 0.1, seed)
    return divided(Pairs(words, sounds, origin="cmudict"), [word in chosen for word in words])


def debian(data: Path, seed: int) -> Parts:
    """English descriptions to synopses; packages, by their name, are for the test."""
    path = find(data, "debian_descriptions.jsonl")
    pairs = read_pairs(path, source="description", target="synopsis")
    names = read_pairs(path, source="package", target="synopsis").sources
    chosen = drawn(names, _TEST_PACKAGES / len(set(names)), seed)
    return divided(pairs, [name in chosen for name in names])


def drawn(names: Any, share: float, seed: int) -> set[str]:
    """So many of the different names, at random."""
    different = sorted(set(names))
    order = np.random.default_rng(seed).permutation(len(different))
    return {different[i] for i in order[: round(share * len(different))].tolist()}


def divided(pairs: Pairs, is_test: list[bool]) -> Parts:
    """Pairs to learn from and pairs to judge."""
    return {
        "data": pairs.select(np.flatnonzero(~np.array(is_test))),
        "test": pairs.select(np.flatnonzero(is_test)),
    }


def find(data: Path, name: str) -> Path:
    """The file of that name, perhaps packed, at any depth."""
    found = sorted(path for end in ("", ".xz", ".gz") for path in data.rglob(name + end))
    if not found:
        raise SystemExit(f"{data}: no {name} (or .xz, .gz) is there")
    return found[0]


SETS = {
    "multi30k": Set(multi30k, "Translator", "bleu", 33.0, 45, without={"attention": "none"}),
    "cmudict": Set(cmudict, "Translator", "token_error_rate", 0.07, 30, is_error=True),
    "debian": Set(debian, "Summarizer", "rouge_l", None, 45, without={"copying": False}),
}


def report(what: str, one: Set, runs: list[dict[str, dict[str, Any]]]) -> None:
    """A line for each network and baseline, and the goal beside what was reached."""
    print(what)
    means: dict[str, float] = {}
    for name in runs[0]:
        scores = {
            key: [run[name][key] for run in runs] for key, v in runs[0][name].items() if key != "settings"
        }
        means[name] = float(np.mean(scores[one.metric]))
        texts = [f"{key} {np.mean(v):.4g}" for key, v in scores.items()]
        print(f"  {name}: {', '.join(texts)}", flush=True)
    if "network" not in means:
        return
    others = {name: value for name, value in means.items() if name != "network"}
    best = min(others, key=others.__getitem__) if one.is_error else max(others, key=others.__getitem__)
    goal = others[best] if one.goal is None else one.goal
    reached = means["network"] <= goal if one.is_error else means["network"] > goal
    wanted = f"{'at most' if one.is_error else 'above'} {goal:.4g}" + (
        f" ({best})" if one.goal is None else ""
    )
    print(
        f"  goal: {one.metric} {wanted}; is {means['network']:.4g}: {'reached' if reached else 'missed'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
