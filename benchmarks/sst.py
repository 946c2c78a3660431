"""Sentiment of sentences in five classes: a tree LSTM beside sequential LSTMs, without pretrained vectors.

    python benchmarks/sst.py --data FOLDER [--models tree,lstm,bilstm] [--seeds 3] [--max-time 1800]

FOLDER (by default the environment variable OSTINATO_DATA) holds train.txt, dev.txt and test.txt of the
Stanford Sentiment Treebank as bracketed trees, packed or not, directly or under text/sst. Tai et al. 2015
(arXiv:1503.00075) report 43.9 % (sd 0.6) at the root for their constituency tree LSTM with word vectors that
start at random. As there, all models learn from every labelled phrase: the tree LSTM from all nodes of the
training trees, the sequential ones from each different phrase as a sequence of its own. The weights with the
best accuracy on the roots of dev are kept, and judged once on test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ostinato as ot
from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.brackets import read_trees
from ostinato.data.examples import Tree
from ostinato.data.forests import TreePreparation
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.models.text_classifier import TextClassifier
from ostinato.models.tree_classifier import TreeClassifier

CLASSES = ("0", "1", "2", "3", "4")
PARTS = ("train", "dev", "test")
WORDS = {"characters": False, "shapes": False}
TREE: dict[str, Any] = {"hidden_size": 150, "dropout_in": 0.5, "dropout_out": 0.5}
TREE_WORDS: dict[str, Any] = {"word_size": 300, "word_dropout": 0.0}
SEQUENCE: dict[str, Any] = {"hidden_size": 150, "pooling": "last", "dropout": 0.5}
SEQUENCE_WORDS: dict[str, Any] = {"word_size": 150, "word_dropout": 0.0, "dropout": 0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "tree": {
        "epochs": 6,
        "optimizer": "adagrad",
        "learning_rate": 0.05,
        "learning_rate_factors": {"tokens": 2.0},
        "weight_decay": 1e-4,
    },
    "lstm": {"epochs": 6, "optimizer": "adamw", "learning_rate": 0.002},
    "bilstm": {"epochs": 6, "optimizer": "adamw", "learning_rate": 0.002},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTINATO_DATA"))
    parser.add_argument("--models", default="tree,lstm,bilstm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-time", type=float, default=1800.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None:
        parser.error("say where the treebank is: --data FOLDER, or OSTINATO_DATA")
    if given.threads:
        torch.set_num_threads(given.threads)
    trees = {part: read_part(given.data, part) for part in PARTS}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
          f"{', '.join(f'{len(trees[part])} {part}' for part in PARTS)}")  # fmt: skip
    share = np.mean([tree.labels[-1] == most_common(trees["train"]) for tree in trees["test"]])
    print(f"always the most frequent class of train: test {100 * share:.2f} %")
    results: dict[str, list[dict[str, float]]] = {}
    for model in given.models.split(","):
        results[model] = []
        for seed in range(given.seeds):
            results[model].append(measure(model, trees, seed, given.max_time))
            report(f"{model} seed {seed}", results[model][-1:])
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))
        report(f"{model} mean", results[model])


def read_part(folder: Path, part: str) -> list[Tree]:
    """The trees of one file."""
    places = [folder, folder / "sst", folder / "text" / "sst"]
    found = [p for place in places for end in ("", ".xz") if (p := place / f"{part}.txt{end}").exists()]
    if not found:
        raise SystemExit(f"no {part}.txt or {part}.txt.xz in {', '.join(map(str, places))}")
    return list(read_trees(found[0], LabelledSpec()).inputs)


def most_common(trees: list[Tree]) -> str:
    labels = [str(tree.labels[-1]) for tree in trees]
    return max(set(labels), key=labels.count)


def measure(name: str, trees: dict[str, list[Tree]], seed: int, max_time_s: float) -> dict[str, float]:
    """Train once; accuracies in percent."""
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    torch.manual_seed(seed)
    make = tree_run if name == "tree" else sequence_run
    model, source, accuracy = make(name, trees, seed)
    history = ot.train(
        model,
        source,
        ot.TrainingSettings(
            schedule="cosine",
            averaging="ema",
            monitor="root",
            mode="max",
            seed=seed,
            max_time_s=max_time_s,
            **SETTINGS[name],
        ),
        validate=lambda _: accuracy("dev"),
        progress="quiet",
    )
    scores = {
        f"{part}_{kind}": 100 * value for part in ("dev", "test") for kind, value in accuracy(part).items()
    }
    times = {"wall_s": time.monotonic() - started_s, "cpu_s": time.process_time() - started_cpu_s}
    return {**scores, **times, "epochs": history.epochs, "best_step": history.best_step or 0}


def report(what: str, runs: list[dict[str, float]]) -> None:
    """One line: mean and deviation of the accuracy at the root, and the times."""
    parts = []
    for key in ("dev_root", "test_root"):
        values = np.array([run[key] for run in runs])
        spread = f" (sd {values.std(ddof=1):.2f})" if len(values) > 1 else ""
        parts.append(f"{key.replace('_', ' ')} {values.mean():.2f} %{spread}")
    nodes = [run["test_nodes"] for run in runs if "test_nodes" in run]
    if nodes:
        parts.append(f"test all nodes {np.mean(nodes):.2f} %")
    times = [f"{np.mean([run[key] for run in runs]):.0f} s {key[:-2]}" for key in ("wall_s", "cpu_s")]
    print(f"{what:14s} {', '.join(parts)}, {', '.join(times)}", flush=True)


Run = tuple[torch.nn.Module, RowSource, Callable[[str], dict[str, float]]]


def tree_run(_: str, trees: dict[str, list[Tree]], seed: int) -> Run:
    """The tree LSTM, on whole trees."""
    preparation = TreePreparation.fit(trees["train"], CLASSES, **WORDS)
    encoded = {part: preparation.encode(trees[part]) for part in PARTS}
    model = TreeClassifier(preparation.sizes, len(CLASSES), tokens=TREE_WORDS, **TREE)

    @torch.no_grad()
    def accuracy(part: str) -> dict[str, float]:
        right, is_root = [], []
        model.eval()
        for first in range(0, len(encoded[part]), 100):
            batch = encoded[part].batch(range(first, min(first + 100, len(encoded[part]))))
            right.append(model.node_logits(batch).argmax(1) == batch["node_y"])
            is_root.append(batch["parents"] < 0)
        correct, roots = torch.cat(right), torch.cat(is_root)
        return {"root": float(correct[roots].double().mean()), "nodes": float(correct.double().mean())}

    sampler = RowSampler(len(encoded["train"]), 25, seed=seed)
    return model, RowSource(sampler, encoded["train"].batch), accuracy


def sequence_run(name: str, trees: dict[str, list[Tree]], seed: int) -> Run:
    """An LSTM over the words of each different phrase of the training trees."""
    preparation = TreePreparation.fit(trees["train"], CLASSES, **WORDS).tokens
    examples = {
        "train": list(dict.fromkeys(phrase for tree in trees["train"] for phrase in phrases(tree))),
        **{part: [(tree.tokens, str(tree.labels[-1])) for tree in trees[part]] for part in PARTS[1:]},
    }
    encoded = {part: preparation.encode([words for words, _ in examples[part]]) for part in PARTS}
    y = {part: torch.tensor([CLASSES.index(label) for _, label in examples[part]]) for part in PARTS}
    model = TextClassifier(
        preparation.sizes, len(CLASSES), bidirectional=name == "bilstm", tokens=SEQUENCE_WORDS, **SEQUENCE
    )

    def fetch(part: str, rows: np.ndarray) -> ot.Batch:
        batch = encoded[part].batch(rows)
        batch["y"] = y[part][torch.from_numpy(rows)]
        return batch

    @torch.no_grad()
    def accuracy(part: str) -> dict[str, float]:
        model.eval()
        order = np.argsort(encoded[part].lengths, kind="stable")
        batches = [fetch(part, order[first : first + 100]) for first in range(0, len(order), 100)]
        right = torch.cat([model(batch).argmax(1) == batch["y"] for batch in batches])
        return {"root": float(right.double().mean())}

    sampler = RowSampler(len(examples["train"]), 64, seed=seed, lengths=encoded["train"].lengths)
    return model, RowSource(sampler, lambda rows: fetch("train", rows)), accuracy


def phrases(tree: Tree) -> list[tuple[tuple[str, ...], str]]:
    """The words and the label of every node."""
    spans: list[tuple[int, int]] = []
    n_words = 0
    for below in tree.children:
        spans.append((spans[below[0]][0], spans[below[-1]][1]) if below else (n_words, n_words + 1))
        n_words += not below
    return [
        (tree.tokens[first:last], label)
        for (first, last), label in zip(spans, tree.labels, strict=True)
        if label in CLASSES
    ]


if __name__ == "__main__":
    main()
