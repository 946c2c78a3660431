"""The hierarchical network beside the flat one on long documents whose class depends on their order.

    python benchmarks/hierarchical.py --data FOLDER [--seeds 3] [--max-time 300] [--page attention.html]

FOLDER holds debian_descriptions.jsonl.gz: descriptions of software packages, one JSON object a line with
`package` and `description`. A document is six descriptions one after the other. Two of them are of libraries
for different programming languages, four of anything else, and the class is the language of the one that
comes first. A bag of words sees both languages and not their order: it can do little better than one half.
No description is in both the training and the test documents.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import re
import time
from pathlib import Path

import numpy as np

import ostinato as ot
from ostinato.insight.attention_view import attention_html, read_documents

LANGUAGES = {
    "python": r"python3?-",
    "perl": r"lib.*-perl$",
    "haskell": r"libghc-",
    "golang": r"golang-",
    "node": r"node-",
    "ruby": r"ruby-",
    "r": r"r-(cran|bioc|other)-",
    "java": r"lib.*-java$",
}
OF_ANY = re.compile("|".join([*LANGUAGES.values(), r"rust|lib.*-ocaml|php-|elpa-|cl-"]))
PASSAGES, WORDS = 6, 45
Documents = tuple[list[str], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-time", type=float, default=300.0)
    parser.add_argument("--models", default="hierarchical,flat")
    parser.add_argument("--page", type=Path, help="write the attention on three test documents there")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {given.max_time:.0f} s at most a run")
    for name in given.models.split(","):
        scores = []
        for seed in range(given.seeds):
            train, test = assemble(read_descriptions(given.data), given.documents, seed)
            classifier, score = measure(name, train, test, seed, given.max_time)
            scores.append(score)
            if name == "hierarchical" and seed == 0 and given.page:
                read = read_documents(classifier, test[0][:3], test[1][:3])
                given.page.write_text(attention_html(read, "Which language comes first?"), encoding="utf-8")
        values = [score["model"] for score in scores]
        print(
            f"{name:13} accuracy {np.mean(values):.1f} % ({min(values):.1f} … {max(values):.1f}); "
            + ", ".join(
                f"{key} {np.mean([s[key] for s in scores]):.1f} %" for key in scores[0] if key != "model"
            )
        )


def read_descriptions(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Descriptions by language, and those of anything else; of several alike only the first."""
    path = next(p for p in folder.rglob("debian_descriptions.jsonl.gz"))
    by_language: dict[str, list[str]] = {name: [] for name in LANGUAGES}
    others: list[str] = []
    seen: set[str] = set()
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            row = json.loads(line)
            text = " ".join(row["description"].split()[:WORDS])
            if text[:60] in seen or len(text) < 80:
                continue
            seen.add(text[:60])
            language = next((n for n, p in LANGUAGES.items() if re.match(p, row["package"])), None)
            if language is not None:
                by_language[language].append(row["description"])
            elif not OF_ANY.match(row["package"]):
                others.append(row["description"])
    return by_language, others


def assemble(pools: tuple[dict[str, list[str]], list[str]], n: int, seed: int) -> tuple[Documents, Documents]:
    """n documents to learn from and n / 4 to test on, from descriptions that are apart."""
    rng = random.Random(seed)
    by_language, others = pools
    halves: list[tuple[dict[str, list[str]], list[str]]] = [({}, []), ({}, [])]
    for name, texts in by_language.items():
        shuffled = rng.sample(texts, len(texts))
        cut = len(texts) * 4 // 5
        halves[0][0][name], halves[1][0][name] = shuffled[:cut], shuffled[cut:]
    shuffled = rng.sample(others, len(others))
    halves[0][1].extend(shuffled[: len(others) * 4 // 5])
    halves[1][1].extend(shuffled[len(others) * 4 // 5 :])
    return documents(halves[0], n, rng), documents(halves[1], n // 4, rng)


def documents(pools: tuple[dict[str, list[str]], list[str]], n: int, rng: random.Random) -> Documents:
    """Documents and their classes."""
    by_language, others = pools
    texts, classes = [], []
    for _ in range(n):
        first, second = rng.sample(sorted(by_language), 2)
        passages = rng.sample(others, PASSAGES)
        places = sorted(rng.sample(range(PASSAGES), 2))
        passages[places[0]] = rng.choice(by_language[first])
        passages[places[1]] = rng.choice(by_language[second])
        texts.append("\n\n".join(_begin(passage) for passage in passages))
        classes.append(first)
    return texts, classes


def measure(name: str, train: Documents, test: Documents, seed: int, max_time_s: float) -> tuple:
    """A classifier with the defaults of the command, and its accuracy in percent beside the baselines'."""
    started_s = time.monotonic()
    classifier = ot.Classifier(
        hierarchy=name == "hierarchical", seed=seed, max_time_s=max_time_s, progress="quiet"
    )
    classifier.fit(*train, test=test)
    scores = classifier.metrics_
    accuracy = {"model": 100 * next(iter(scores["model"].values()))["accuracy"]}
    accuracy |= {key: 100 * value["accuracy"] for key, value in scores["baselines"].items()}
    words = np.mean([len(text.split()) for text in train[0]])
    print(
        f"  {name} seed {seed}: {accuracy['model']:.1f} %, {len(train[0])} documents of {words:.0f} words, "
        f"{classifier.history_.epochs} passes, {time.monotonic() - started_s:.0f} s",
        flush=True,
    )
    return classifier, accuracy


def _begin(text: str) -> str:
    """Whole sentences from the start, up to about WORDS words."""
    kept: list[str] = []
    for line in text.split("\n"):
        kept.append(line)
        if len(" ".join(kept).split()) >= WORDS:
            break
    return "\n".join(kept)


if __name__ == "__main__":
    main()
