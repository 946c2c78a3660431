"""What a language model chooses by itself: its size and its regularisers, from text, units and time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ostinato.data.token_streams import TokenStreams
from ostinato.models.language import LanguageNetwork
from ostinato.tasks.transfer import SIZES, new_network
from ostinato.training.randomness import kept_randomness

FEW_UNITS = 1000
"""Up to so many units a softmax costs little, and its weights are not tied to the embeddings."""
ADAPTIVE_FROM = 40_000
"""From so many units on the softmax is adaptive: in clusters, the rarer ones with narrower vectors."""
UNITS_PER_WEIGHT = 0.2
"""A network has at most five weights for each unit of the training text."""
STEP_FACTOR = 1.1
"""What the optimizer and the loop add to the forward and backward passes."""


@dataclass(frozen=True)
class Size:
    """Widths of the embeddings and of the state, and layers."""

    embedding_size: int
    hidden_size: int
    num_layers: int

    def weights(self, V: int, *, tied: bool, gates: int) -> int:
        """Weights that a unit of text is multiplied with in the layers and the softmax."""
        H = self.hidden_size
        layers = gates * H * (self.embedding_size + H) + (self.num_layers - 1) * gates * H * 2 * H
        E = self.embedding_size
        if not tied:
            return layers + V * H
        return layers + V * E + (H * E if H != E else 0)


# From the smallest to the largest; the last one that the text and the time allow is taken.
OF_CHARACTERS = (Size(32, 128, 1), Size(48, 256, 1), Size(64, 512, 1), Size(64, 512, 2), Size(128, 1024, 2))
OF_WORDS = (Size(64, 128, 1), Size(128, 256, 1), Size(256, 256, 2), Size(256, 512, 2), Size(400, 1024, 2))
_GATES = {"rnn": 1, "gru": 3, "mingru": 2, "minlstm": 3, "rglru": 2}


def gates_of(cell: Any) -> int:
    """Matrices of a cell that have its width, about."""
    return _GATES.get(cell, 4) if isinstance(cell, str) else 4


def wanted_passes(units: int, V: int) -> float:
    """Passes that a network should at least have time for over a text of so many units.

    8 over a million characters and 6 over a million words, and with the inverse of the square root of more
    or less; between 1 and 40.
    """
    million = 8.0 if V <= FEW_UNITS else 6.0
    return min(40.0, max(1.0, million * math.sqrt(1e6 / units)))


def choose_size(
    settings: Any, units: int, V: int, unit_s: float | None, budget_s: float | None
) -> dict[str, Any]:
    """The sizes that were not given.

    Args:
        settings: the parameters; those that are None are chosen.
        units: of the training text.
        V: different ones.
        unit_s: seconds for a weight and a unit of text in training, as `seconds_per_weight` finds it.
        budget_s: for training; None: no limit.
    """
    tied = V > FEW_UNITS if settings.tied is None else settings.tied
    gates = gates_of(settings.cell)
    ladder = OF_WORDS if V > FEW_UNITS else OF_CHARACTERS
    best = ladder[0]
    for size in ladder[1:]:
        weights = size.weights(V, tied=tied, gates=gates)
        own = size.weights(0, tied=tied, gates=gates)
        if own * UNITS_PER_WEIGHT > units:
            break
        if budget_s is not None and unit_s is not None:
            passes = budget_s / (unit_s * weights * units)
            if passes < wanted_passes(units, V):
                break
        best = size
    return {
        "tied": tied,
        "adaptive": V >= ADAPTIVE_FROM,
        "hidden_size": best.hidden_size,
        "embedding_size": best.embedding_size,
        "num_layers": best.num_layers,
    }


def choose_regularisers(weights: int, units: int, passes: float, *, few_units: bool) -> dict[str, float]:
    """How strongly to regularise: the more, the oftener a network of so many weights sees each unit."""
    # About 0 where every unit of a large text is seen once, 1 where a few are seen very often.
    strength = min(1.0, math.sqrt(weights * passes / units) / (6 if few_units else 10))
    if few_units:
        return {
            "dropout": round(0.5 * strength, 2), "dropout_in": round(0.1 * strength, 2),
            "dropout_between": round(0.3 * strength, 2), "word_dropout": 0.0,
            "weight_drop": round(0.4 * strength, 2),
        }  # fmt: skip
    return {
        "dropout": round(0.5 * strength, 2), "dropout_in": round(0.4 * strength, 2),
        "dropout_between": round(0.3 * strength, 2), "word_dropout": round(0.1 * strength, 2),
        "weight_drop": round(0.5 * strength, 2),
    }  # fmt: skip


def build(settings: Any, V: int) -> LanguageNetwork:
    """The untrained network of settings with every choice made."""
    return new_network(
        {name: getattr(settings, name) for name in SIZES}, V, word_dropout=settings.word_dropout,
        dropout_in=settings.dropout_in, dropout_between=settings.dropout_between,
        dropout_out=settings.dropout, weight_drop=settings.weight_drop, activation=settings.activation,
        slowness=settings.slowness,
    )  # fmt: skip


def seconds_per_unit(network: nn.Module, streams: TokenStreams, device: torch.device) -> float:
    """Seconds of training for a unit of text, by trying a few steps; nothing of them is kept."""
    network.to(device).train()
    spent: list[tuple[float, int]] = []
    state = None
    with kept_randomness(torch.device("cpu")):
        for batch in streams:
            started_s = time.monotonic()
            output = network.loss(batch.to(device), state)  # type: ignore[operator]
            output.total.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent.append((time.monotonic() - started_s, batch["y"].numel()))
            state = output.state.detach()
            if len(spent) == 4 or sum(s for s, _ in spent) > 5.0:
                break
    for parameter in network.parameters():
        parameter.grad = None
    streams.load_state_dict({"epoch": 0, "chunk": 0})
    # The first one also warms up.
    counted = spent[1:] or spent
    return STEP_FACTOR * min(s / n for s, n in counted)
