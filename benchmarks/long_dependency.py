"""How far back a network remembers: "they wanted more for … themselves", "he wanted more for … himself".

    python benchmarks/long_dependency.py [--cells rnn,gru,lstm] [--seeds 3] [--steps 1000] [--page docs]

Language models read made-up sentences whose subject decides about one word at the end, with a filler between
them that grows: phrases, and clauses with a subject of their own, which is not the one that counts. They are
trained on fillers of up to 40 words, and tested on fillers of up to 100 whose pairs of adjective and noun no
training sentence has. Two things are measured: how often the right one of four reflexive pronouns gets the
highest probability at each distance, and how large the gradient of its loss is at words so far back. Needs no
data; matplotlib for the picture, which `--page FOLDER` asks for.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ostinato.models.encoder import build_encoder
from ostinato.models.language import LanguageNetwork
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch

SUBJECTS = {"they": "themselves", "he": "himself", "she": "herself", "we": "ourselves"}
ADJECTIVES = [
    "old",
    "young",
    "quiet",
    "restless",
    "tall",
    "weary",
    "clever",
    "gentle",
    "northern",
    "distant",
    "golden",
    "bitter",
]
NOUNS = [
    "sailor",
    "farmers",
    "harbour",
    "winters",
    "village",
    "teachers",
    "garden",
    "rivers",
    "kitchen",
    "soldiers",
    "letter",
    "songs",
]
PREPOSITIONS = ["in", "after", "beyond", "without", "near", "under"]
ADVERBS = ["always", "slowly", "together", "indeed", "perhaps", "again", "still"]
VERBS = ["slept", "waited", "sang", "laughed", "worked", "travelled"]
WORDS = [
    *SUBJECTS, *SUBJECTS.values(), *ADJECTIVES, *NOUNS, *PREPOSITIONS, *ADVERBS, *VERBS,
    "wanted", "more", "for", "the", "while", ",", ".",
]  # fmt: skip
ID = {word: number for number, word in enumerate(WORDS)}
REFLEXIVES = torch.tensor([ID[word] for word in SUBJECTS.values()])
LONGEST_TRAINED = 40
# Words from the subject to the reflexive, less the filler: wanted, more, for, and one to get there.
OVERHEAD = 4
FILLERS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100)
BATCH = 64
# A plain RNN wants smaller steps than gated cells.
RATES = {"rnn": 3e-3, "gru": 1e-2, "lstm": 1e-2}
EVERY_STEPS = 100
COLOURS = {"rnn": "#E69F00", "gru": "#009E73", "lstm": "#0072B2", "lstm-chrono": "#CC79A7"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cells",
        default="rnn,gru,lstm,lstm-chrono",
        help="-chrono: gates begin so open that they remember 40 words",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--page", type=Path, help="write long-dependencies.svg there")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, one thread; {len(WORDS)} words")
    report: dict[str, Any] = {}
    for cell in given.cells.split(","):
        runs = []
        for seed in range(given.seeds):
            runs.append(measure(cell, given.hidden, given.steps, seed))
            shown = " ".join(f"{100 * share:.0f}" for share in runs[-1]["accuracy"])
            print(f"{cell} seed {seed}: {shown} %, over training {runs[-1]['curve']}", flush=True)
        report[cell] = {key: [run[key] for run in runs] for key in runs[0]}
        shares = mean(report[cell]["accuracy"])
        print(f"{cell:5} {sum(report[cell]['time_s']) / len(runs):.0f} s a run; right at a distance of")
        print(
            "      "
            + "  ".join(f"{n + OVERHEAD}: {100 * a:.0f} %" for n, a in zip(FILLERS, shares, strict=True))
        )
        for when in ("untrained", "trained"):
            norms = mean(report[cell][when])
            shown = "  ".join(
                f"{d}: {norms[d - 1] / norms[0]:.1e}" for d in (2, 10, 20, 40, 60) if d <= len(norms)
            )
            print(f"      gradient over that of the last word, {when}: {shown}")
        if given.json:
            given.json.write_text(json.dumps(report), encoding="utf-8")
    if given.page:
        draw(report, given.page / "long-dependencies.svg")


def mean(values: list[list[float]]) -> list[float]:
    return torch.tensor(values).mean(0).tolist()


def filler(n: int, rng: random.Random, *, is_test: bool) -> list[str]:
    """n words."""
    words: list[str] = []
    while len(words) < n:
        left = n - len(words)
        kind = rng.choice([size for size in (1, 3, 4, 5) if size <= left])
        if kind == 1:
            words.append(rng.choice(ADVERBS))
        elif kind == 5:
            words += [",", "while", rng.choice(list(SUBJECTS)), rng.choice(VERBS), ","]
        else:
            words += [rng.choice(PREPOSITIONS), *(["the"] if kind == 4 else []), *pair(rng, is_test=is_test)]
    return words


def pair(rng: random.Random, *, is_test: bool) -> tuple[str, str]:
    """An adjective and a noun; those that tests ask for are in no training sentence."""
    while True:
        a, b = rng.randrange(len(ADJECTIVES)), rng.randrange(len(NOUNS))
        if ((a + b) % 4 == 0) == is_test:
            return ADJECTIVES[a], NOUNS[b]


def sentences(n_filler: int, n: int, rng: random.Random, *, is_test: bool) -> Tensor:
    """Ids (n, T): `. they wanted more for … themselves .`"""
    rows = []
    for _ in range(n):
        subject, reflexive = rng.choice(list(SUBJECTS.items()))
        words = [
            ".",
            subject,
            "wanted",
            "more",
            "for",
            *filler(n_filler, rng, is_test=is_test),
            reflexive,
            ".",
        ]
        rows.append([ID[word] for word in words])
    return torch.tensor(rows)


class Endless:
    """Batches drawn anew each time, of sentences of all lengths, the short ones more often, as in life."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            fillers = [int((LONGEST_TRAINED + 1) * self.rng.random() ** 3) for _ in range(BATCH)]
            rows = [sentences(n, 1, self.rng, is_test=False)[0] for n in fillers]
            ids = pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) - 1 for row in rows])
            mask = torch.arange(ids.shape[1] - 1) < lengths.unsqueeze(1)
            yield Batch(x=ids[:, :-1], y=ids[:, 1:], mask=mask)


def measure(variant: str, hidden: int, steps: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    cell, _, initialisation = variant.partition("-")
    network = LanguageNetwork(len(WORDS), 32, hidden, cell=cell, tied=False)
    # Words apart from the first step on; the default, for large vocabularies, is a tenth of that.
    torch.nn.init.normal_(network.embedding.weights[0])
    if initialisation:
        network.layers[0] = build_encoder(cell, 32, hidden, init={"chrono": LONGEST_TRAINED + OVERHEAD})
    untrained = gradients(network, seed)
    curve: list[float] = []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        curve.append(accuracies(network, seed, (LONGEST_TRAINED,), 200)[0])
        return {"loss": 1 - curve[-1]}

    began = time.process_time()
    settings = TrainingSettings(
        steps=steps, learning_rate=RATES[cell], schedule="cosine", clip_norm=1.0, seed=seed,
        validate_every_epochs=None, validate_every_steps=EVERY_STEPS, restore_best=False,
    )  # fmt: skip
    train(network, Endless(seed), settings, validate=validate, progress="quiet")
    took = time.process_time() - began
    return {
        "accuracy": accuracies(network, seed, FILLERS, 500),
        "curve": curve,
        "untrained": untrained,
        "trained": gradients(network, seed),
        "time_s": took,
    }


@torch.no_grad()
def accuracies(network: LanguageNetwork, seed: int, fillers: Sequence[int], rows: int) -> list[float]:
    """The share of test sentences whose reflexive is the most probable of the four, by filler."""
    rng = random.Random(1000 + seed)
    shares = []
    for n in fillers:
        ids = sentences(n, rows, rng, is_test=True)
        _, state = network.encode(ids[:, :-3])
        logits, _ = network.step(ids[:, -3], state)
        said = REFLEXIVES[logits[:, REFLEXIVES].argmax(1)]
        shares.append((said == ids[:, -2]).float().mean().item())
    return shares


def gradients(network: LanguageNetwork, seed: int) -> list[float]:
    """The norm of the gradient of the reflexive's loss at the word d words before it, d = 1, 2, …"""
    ids = sentences(60, 100, random.Random(2000 + seed), is_test=True)
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        given[0].retain_grad()
        seen.append(given[0])

    hook = network.layers[0].register_forward_pre_hook(keep)
    h, _ = network.encode(ids[:, :-2])
    hook.remove()
    network.nats(h[:, -1], ids[:, -2]).backward()
    network.zero_grad()
    assert seen[0].grad is not None
    return seen[0].grad.norm(dim=2).mean(0).flip(0).tolist()


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.5), layout="constrained")
    far, learning, gradient = figure.subplots(1, 3)
    distances = [n + OVERHEAD for n in FILLERS]
    for variant, found in report.items():
        colour, name = COLOURS.get(variant), variant.upper().replace("-CHRONO", ", chrono")
        for runs, ax, x in (
            (found["accuracy"], far, distances),
            (found["curve"], learning, [EVERY_STEPS * (i + 1) / 100 for i in range(len(found["curve"][0]))]),
        ):
            for run in runs:
                ax.plot(x, [100 * share for share in run], color=colour, lw=0.8, alpha=0.45)
            ax.plot(x, [100 * share for share in mean(runs)], "o-", ms=3, color=colour, label=name)
        for when, style in (("trained", "-"), ("untrained", ":")):
            norms = torch.tensor(mean(found[when]))
            gradient.semilogy(range(1, len(norms) + 1), norms / norms[0], style, color=colour)
    longest = LONGEST_TRAINED + OVERHEAD
    far.axvspan(longest, max(distances), color="#8c959f", alpha=0.12, lw=0)
    far.text(longest + 2, 4, "longer than any\ntraining sentence", color="#57606a", fontsize=8)
    far.set(xlabel="words from subject to reflexive", ylabel="right reflexive, %", ylim=(0, 104))
    learning.set(xlabel="hundred steps of training", ylabel=f"right at {longest} words, %", ylim=(0, 104))
    gradient.set(xlabel="words back from the reflexive", ylabel="gradient, over that of the last word")
    gradient.plot([], [], "-", color="#57606a", label="trained")
    gradient.plot([], [], ":", color="#57606a", label="untrained")
    gradient.set_ylim(1e-9, 10)
    for ax in (far, learning):
        ax.axhline(25, color="#8c959f", lw=0.8, ls="--")
    learning.legend(frameon=False, fontsize=8)
    gradient.legend(frameon=False, fontsize=8)
    for ax in (far, learning, gradient):
        ax.spines[["top", "right"]].set_visible(False)
    # Letters as letters: a tenth of the size, and the same file every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "long-dependencies"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
