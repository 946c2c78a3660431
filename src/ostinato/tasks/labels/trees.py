"""Parse trees as a classifier reads them: a Tree-LSTM that learns from the labels of all nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import nn

from ostinato.data.examples import Examples
from ostinato.data.forests import EncodedForests, TreePreparation
from ostinato.models.tree_classifier import TreeClassifier
from ostinato.tasks.labels.beginning import token_rows
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.texts import fit_tokens, prepare_tokens
from ostinato.tasks.transfer import Moved

SPEED_HZ = 11_000.0
USUAL_S = 600.0


@dataclass(frozen=True)
class TreeInputs:
    """Trees to the tokens of their leaves and the shape above them."""

    # The loss is that of all nodes, so that examples cannot be left out one by one.
    folds: ClassVar[bool] = False
    linear_over: ClassVar[str] = ""
    # Most words are seldom seen, and AdaGrad gives each its own rate: 46 % against Adam's 43 on the treebank.
    optimizer: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adagrad", "learning_rate_factors": {"tokens": 2.0},
    }  # fmt: skip
    head: ClassVar[str] = "head"

    trees: TreePreparation

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """Parameters by the amount of data and, where it is limited, of time."""
        N = len(data)
        epochs = int(np.clip(round(6 * (8000 / max(N, 1)) ** 0.5), 4, 40))
        step = max(1, N // 1000)
        nodes = float(np.mean([len(data.inputs[i]) for i in range(0, N, step)])) * N
        passes = how_many(nodes * epochs, settings.max_time_s, speed_hz=SPEED_HZ, usual_s=USUAL_S)
        return {
            "cell": "nary",
            "hidden_size": 150,
            "num_layers": 1,
            "dropout": 0.5,
            "epochs": epochs,
            "batch_size": 25,
            "learning_rate": 0.05,
            "weight_decay": 1e-4,
            "members": int(np.clip(passes, 1, 3)),
            "unit": "word",
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """Count the words of the training part."""
        tokens = fit_tokens(
            learned.inputs,
            learned,
            settings,
            None if old is None else old.trees.tokens,
            characters=False,
            shapes=False,
        )
        return cls(TreePreparation(tokens, names, 2 if settings.cell == "nary" else None))

    def encode(self, inputs: Sequence[Any]) -> EncodedForests:
        """Ready for batches."""
        return self.trees.encode(inputs)

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """A `TreeClassifier`."""
        network = TreeClassifier(
            self.trees.sizes,
            output_size,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            dropout_in=settings.dropout,
            dropout_out=settings.dropout,
            tokens={"word_size": 2 * settings.hidden_size, "word_dropout": 0.0},
        )
        prepare_tokens(network.tokens, self.trees.tokens)
        return network

    def moved(self, old: Self) -> dict[str, Moved]:
        """Tables of the leaves."""
        return token_rows(self.trees.tokens, old.trees.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.trees.to_json()

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(TreePreparation.from_json(stored))
