"""What a language model gives a classifier: TREC questions by the number of labels, with it and without.

    python benchmarks/transfer.py --data FOLDER [--wordnet FOLDER] [--labels 100,500,all] [--seeds 5]
        [--lm-time 1500] [--run RUN]

FOLDER (by default the environment variable OSTINATO_DATA) holds the sets by their usual names, packed or
not: TREC.train.all, TREC.test.all, and the English text that the language model reads before. That is the
sentences of the Stanford Sentiment Treebank (train.txt, in brackets), train.en of Multi30k,
en_ewt-ud-train.conllu, the training questions without their labels, and if asked for the glosses of WordNet
(its files data.noun, data.verb, data.adj and data.adv, as in Debian's package wordnet-base). No text of a
test part is among them. The model is learned once, in `--lm-time` seconds, or taken from `--run`, where it
is kept.

Then `Classifier` learns from 100, 500 and all labelled questions, from scratch and with `init`, with
its defaults; each seed draws other questions. The accuracy on the 500 test questions is printed with its
standard error over the seeds, and that of their difference.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ostinato as ot
from ostinato.data.files import open_binary


def text_of(data: Path, name: str, encoding: str = "utf-8") -> str:
    """A file's text, packed or not, wherever it lies below `data`."""
    for end in ("", ".xz", ".gz"):
        for path in sorted(data.rglob(name + end)):
            with open_binary(path) as raw:
                return raw.read().decode(encoding)
    raise SystemExit(f"{data}: no {name} (or .xz, .gz) is there")


def questions(data: Path, part: str) -> tuple[list[str], list[str]]:
    """Texts and their coarse classes."""
    rows = [line.split(" ", 1) for line in text_of(data, f"TREC.{part}.all", "latin-1").splitlines() if line]
    return [text for _, text in rows], [label.split(":")[0] for label, _ in rows]


def glosses(folder: Path) -> list[str]:
    """WordNet's words and what they mean, a line for each sense."""
    lines = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("latin-1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            sense, gloss = line.split(" | ", 1)
            fields = sense.split()
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            plain = (re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words)
            lines.append(f"{', '.join(plain)}: {gloss}")
    return lines


def reading(data: Path, wordnet: Path | None) -> str:
    """What the language model reads, a sentence a line."""
    lines = questions(data, "train")[0]
    trees = text_of(data, "train.txt").splitlines()
    lines += [" ".join(re.findall(r"\(\d ([^()]+)\)", tree)) for tree in trees]
    lines += text_of(data, "train.en").splitlines()
    marked = text_of(data, "en_ewt-ud-train.conllu").splitlines()
    lines += [line[9:] for line in marked if line.startswith("# text = ")]
    lines += [] if wordnet is None else glosses(wordnet)
    np.random.default_rng(0).shuffle(lines)
    return "\n".join(line.strip() for line in lines) + "\n"


def language_run(given: argparse.Namespace, folder: Path) -> Path:
    """The language model's run: the one that is given, or a new one."""
    run: Path = given.run or folder / "language"
    if (run / "manifest.json").exists():
        return run
    started_s = time.monotonic()
    model = ot.LanguageModel(
        unit="word", splitting="words", vocabulary_size=20_000, embedding_size=192, hidden_size=256,
        num_layers=1, epochs=4, max_time_s=given.lm_time, documents="line", held_out=0.01,
        progress=given.progress,
    )  # fmt: skip
    model.fit(io.StringIO(reading(given.data, given.wordnet)), out=run)
    own, others = model.metrics_["model"]["lstm"], model.metrics_["baselines"]
    print(
        f"language model: perplexity {own['perplexity']:.1f}, n-grams "
        f"{others['kneser_ney_5']['perplexity']:.1f}; {time.monotonic() - started_s:.0f} s",
        flush=True,
    )
    return run


def accuracies(given: argparse.Namespace, run: Path, labels: int | None) -> dict[str, list[float]]:
    """By way, the accuracy of every seed."""
    texts, classes = questions(given.data, "train")
    test = questions(given.data, "test")
    found: dict[str, list[float]] = {"scratch": [], "pretrained": []}
    for seed in range(given.seeds):
        rows = np.random.default_rng([seed, 11]).permutation(len(texts))[:labels]
        for way, init in (("scratch", None), ("pretrained", str(run))):
            model = ot.Classifier(init=init, seed=seed, max_time_s=given.max_time, progress="quiet")
            model.fit([texts[i] for i in rows], [classes[i] for i in rows])
            found[way].append(model.score(*test))
            print(f"  {labels or 'all'} labels, seed {seed}, {way}: {found[way][-1]:.4f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("OSTINATO_DATA"))
    parser.add_argument("--labels", default="100,500,all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--wordnet", type=Path, help="folder with WordNet's data.noun and others")
    parser.add_argument("--lm-time", type=float, default=1500.0, help="seconds for the language model")
    parser.add_argument("--max-time", type=float, help="of one fit of a classifier, in seconds")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--progress", default="quiet")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data is None:
        parser.error("say where the sets are: --data FOLDER, or OSTINATO_DATA")
    given.data = Path(given.data)
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = language_run(given, Path(folder))
        for name in given.labels.split(","):
            found = results[name] = accuracies(given, run, None if name == "all" else int(name))
            rows = {way: np.array(values) for way, values in found.items()}
            rows["difference"] = rows["pretrained"] - rows["scratch"]
            told = ", ".join(
                f"{way} {100 * row.mean():.2f} ± {100 * row.std(ddof=1) / len(row) ** 0.5:.2f} %"
                if len(row) > 1
                else f"{way} {100 * row.mean():.2f} %"
                for way, row in rows.items()
            )
            print(f"{name} labels: {told}", flush=True)
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
