"""How fast language models are: training beside the same network in plain PyTorch, and generating text.

    python benchmarks/language_speed.py [--cases gru,lstm,words] [--rounds 20] [--threads 1] [--json FILE]

Cases: characters (V = 66, 32 streams of 128 units) with a GRU or an LSTM of 512 units; and words of the size
of the Penn Treebank (V = 10,000): 32 streams of 70 units, an LSTM of 2 × 512 with tied vectors of 256; and
20 streams of 35 units, 2 × 200 with vectors of 200, the small network of arXiv:1409.2329. The
peer has the same parts, sizes and weights, written as everybody writes them: `nn.Embedding`, `nn.LSTM` or
`nn.GRU`, `nn.Linear`, `F.cross_entropy`. Both give the same losses first, over three chunks with the state
carried. Then both take the same steps on the same chunks in turns: forward, backward, clipping, fused AdamW.
What share of a step the output layer takes is measured by itself: the softmax, its loss and their gradients.

Generation is that of `LanguageModel.generate` with a 256-unit LSTM over characters: reading the prompt,
drawing, and text. With one thread, times are processor seconds, which a busy machine disturbs less than wall
time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.data.corpus_units import CorpusUnits
from ostinato.models.language import LanguageNetwork
from ostinato.tasks.language import LanguageModel
from ostinato.training.memory import keep_freed_memory
from ostinato.types import Batch

GOAL_GENERATION_S = 0.2


@dataclass(frozen=True)
class Case:
    """Sizes of a network and of its chunks, and the ratio aimed at."""

    cell: str
    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int
    tied: bool
    streams: int
    chunk: int
    goal: float


CASES = {
    "gru": Case("gru", 66, 64, 512, 1, False, 32, 128, 1.7),
    "lstm": Case("lstm", 66, 64, 512, 1, False, 32, 128, 1.0),
    "words": Case("lstm", 10_000, 256, 512, 2, True, 32, 70, 1.3),
    "small": Case("lstm", 10_000, 200, 200, 2, True, 20, 35, 1.3),
}


class Peer(nn.Module):
    """The same network in plain PyTorch, with the weights of ours."""

    def __init__(self, ours: LanguageNetwork, case: Case):
        super().__init__()
        V, E, H = case.vocabulary_size, case.embedding_size, case.hidden_size
        self.embedding = nn.Embedding(V, E)
        kind = nn.LSTM if case.cell == "lstm" else nn.GRU
        self.layers = kind(E, H, case.num_layers, batch_first=True)
        self.projection = nn.Linear(H, E, bias=False) if ours.projection is not None else None
        self.output = nn.Linear(E if case.tied else H, V)
        if case.tied:
            self.output.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight.copy_(ours.embedding.weights[0])
            self.output.weight.copy_(ours.output_weight)
            self.output.bias.copy_(ours.softmax.biases[0])
            if self.projection is not None and ours.projection is not None:
                self.projection.weight.copy_(ours.projection.weight)
            for number, layer in enumerate(ours.layers):
                for name, value in layer.named_parameters():
                    getattr(self.layers, name.replace("_l0", f"_l{number}")).copy_(value)

    def loss(self, batch: Batch, state: Any = None) -> tuple[Tensor, Any]:
        """Summed nats, and the state."""
        h, state = self.layers(self.embedding(batch["x"]), state)
        if self.projection is not None:
            h = self.projection(h)
        logits = self.output(h)
        return F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction="sum"), state


def chunks(case: Case, n: int) -> list[Batch]:
    """Random units, frequencies as Zipf's law has them."""
    rng = np.random.default_rng(0)
    share = 1 / (np.arange(case.vocabulary_size) + 2.7)
    drawn = rng.choice(case.vocabulary_size, (n, case.streams, case.chunk + 1), p=share / share.sum())
    return [
        Batch(x=torch.from_numpy(ids[:, :-1].copy()), y=torch.from_numpy(ids[:, 1:].copy())) for ids in drawn
    ]


def ours_loss(network: LanguageNetwork) -> Callable[[Batch, Any], tuple[Tensor, Any]]:
    def loss(batch: Batch, state: Any) -> tuple[Tensor, Any]:
        output = network.loss(batch, state)
        return output.total, output.state

    return loss


def detached(state: Any) -> Any:
    """The state without its graph, in either form."""
    if isinstance(state, tuple):
        return tuple(leaf.detach() for leaf in state)
    return state.detach()


def check_equality(ours: LanguageNetwork, peer: Peer, made: list[Batch]) -> float:
    """The largest relative difference of the losses over three chunks."""
    worst, mine, other = 0.0, None, None
    with torch.no_grad():
        for batch in made[:3]:
            total, mine = ours_loss(ours)(batch, mine)
            expected, other = peer.loss(batch, other)
            worst = max(worst, abs(float(total - expected)) / float(expected))
    assert worst < 1e-5, f"the losses of the two networks differ by {worst:.1e} of their value"
    return worst


def stepper(model: nn.Module, loss: Callable[[Batch, Any], tuple[Tensor, Any]]) -> Callable[[Batch], None]:
    """One training step: forward, backward, clip, update; the state is carried on."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    carried: list[Any] = [None]

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        total, state = loss(batch, carried[0])
        (total / batch["y"].numel()).backward()
        carried[0] = detached(state)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def training(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Units per second of each side, step by step in turns."""
    torch.manual_seed(0)
    ours = LanguageNetwork(
        case.vocabulary_size, case.embedding_size, case.hidden_size, case.num_layers, case.cell,
        tied=case.tied,
    )  # fmt: skip
    peer, made = Peer(ours, case), chunks(case, given.rounds + 2)
    worst = check_equality(ours, peer, made)
    sides = {"ostinato": stepper(ours, ours_loss(ours)), "torch": stepper(peer, peer.loss)}
    clock = time.process_time if given.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number, batch in enumerate(made):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            started_s = clock()
            sides[name](batch)
            if number > 1:
                times[name].append(clock() - started_s)
    ratio = statistics.median(b / a for a, b in zip(times["ostinato"], times["torch"], strict=True))
    spent = {name: statistics.median(s) for name, s in times.items()}
    heads = output_layer(case, ours, peer, made[:5], clock)
    n = case.streams * case.chunk
    return {
        "loss_gap": worst, "ratio": ratio, "goal": case.goal,
        "units_per_s": {name: n / s for name, s in spent.items()},
        "output_share": {name: heads[name] / spent[name] for name in spent},
        "output_ratio": heads["torch"] / heads["ostinato"],
    }  # fmt: skip


def output_layer(
    case: Case, ours: LanguageNetwork, peer: Peer, made: list[Batch], clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of the softmax, its loss and their gradients, for h of a chunk."""
    width = case.embedding_size if case.tied else case.hidden_size
    spent: dict[str, list[float]] = {"ostinato": [], "torch": []}
    for batch in made:
        targets = batch["y"].flatten()
        h = torch.randn(len(targets), width, requires_grad=True)

        def mine(h: Tensor = h, targets: Tensor = targets) -> Tensor:
            return ours.softmax.loss(h, targets, ours._tables)

        def theirs(h: Tensor = h, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(peer.output(h), targets, reduction="sum")

        for name, loss in (("ostinato", mine), ("torch", theirs)):
            started_s = clock()
            loss().backward()
            spent[name].append(clock() - started_s)
            h.grad = None
    return {name: statistics.median(s[1:]) for name, s in spent.items()}


def generation(rounds: int) -> dict[str, float]:
    """Median processor seconds of 1,000 characters."""
    text = "the quick brown fox jumps over the lazy dog; THE DOG SLEEPS.\n" * 3
    model = LanguageModel(progress="quiet")
    model.units_ = CorpusUnits.fit([text + "".join(map(chr, range(32, 97)))], "char")
    model.network_ = LanguageNetwork(len(model.units_), 48, 256, 1, tied=False).eval()
    ways: dict[str, dict[str, Any]] = {
        "sampled": {}, "temperature 0.8, top-k 20": {"temperature": 0.8, "top_k": 20},
        "top-p 0.9": {"top_p": 0.9}, "most probable": {"temperature": 0.0},
    }  # fmt: skip
    found = {}
    for name, options in ways.items():
        spent = []
        for seed in range(rounds + 1):
            started_s = time.process_time()
            model.generate("the dog ", length=1000, seed=seed, **options)
            spent.append(time.process_time() - started_s)
        found[name] = statistics.median(spent[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # As the training loop does; it helps both sides.
    keep_freed_memory()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    result: dict[str, Any] = {"generation_s": generation(5), "training": {}}
    print(f"1,000 characters, one thread (goal {GOAL_GENERATION_S} s):")
    for name, spent_s in result["generation_s"].items():
        print(f"  {name:28} {spent_s:.3f} s", flush=True)
    torch.set_num_threads(given.threads)
    print(f"training, {given.threads} thread(s), median of {given.rounds} steps in turns:")
    for name in given.cases.split(","):
        found = result["training"][name] = training(CASES[name], given)
        rates = ", ".join(f"{side} {rate:,.0f}" for side, rate in found["units_per_s"].items())
        shares = ", ".join(f"{side} {share:.0%}" for side, share in found["output_share"].items())
        print(
            f"  {name:6} x {found['ratio']:.2f} (goal {found['goal']}); units/s: {rates}\n"
            f"         losses within {found['loss_gap']:.0e}; output layer: {shares} of a step, "
            f"x {found['output_ratio']:.2f}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
