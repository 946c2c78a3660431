"""What every kind of input has in common: a preparation fitted to the training part, and labelled batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ostinato.data.examples import Examples
from ostinato.tasks.labels.splitting import Encoded, Rows
from ostinato.tasks.transfer import Moved
from ostinato.types import Batch


class Inputs(Protocol):
    """One kind of input of a classifier: its numbers, its network, its sizes.

    `folds` says whether each member of an ensemble may be trained without other examples; `linear_over` what
    the linear model beside the network reads, where there is one. What `encode` gives then has rows `linear`
    with `batch(rows)`, and `penalties` to try on them. `optimizer` holds fields of `TrainingSettings`, with
    `learning_rate_factors` by the names of one member's parameters. `head` is the name of the layer of the
    network that says the classes. Where a run begins with another, `old` is the preparation of that one.
    """

    folds: ClassVar[bool]
    linear_over: ClassVar[str]
    optimizer: ClassVar[Mapping[str, Any]]
    head: ClassVar[str]

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """By name, values of parameters that suit the data."""
        ...

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """From what is learned from; `names` are the classes."""
        ...

    def moved(self, old: Self) -> dict[str, Moved]:
        """Which rows of the network's tables are which of one over `old`, which this one was fitted from."""
        ...

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Inputs as numbers; lazily where they are large."""
        ...

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """An untrained network: `forward(batch) -> logits (B, K)`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`: it gives the same numbers."""
        ...


@runtime_checkable
class WithTensors(Protocol):
    """Inputs that hold arrays, which are stored beside their plain values."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name."""
        ...

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Inputs that `from_json` gave, with what `tensors` gave, among others."""
        ...


def tensors_of(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The arrays of any inputs, by name."""
    return inputs.tensors() if isinstance(inputs, WithTensors) else {}


def complete(inputs: Inputs, tensors: Mapping[str, torch.Tensor]) -> Inputs:
    """What `from_json` gave, with what `tensors_of` gave."""
    whole: Inputs = inputs.with_tensors(tensors) if isinstance(inputs, WithTensors) else inputs
    return whole


@dataclass(frozen=True)
class Labelled:
    """Encoded inputs with the numbers of their classes.

    Attributes:
        inputs: N of them.
        codes: (N,) class numbers, -1 for a class that training did not have; or None.
        folds: (N,) which member does not learn from an example; None where all do the same.
    """

    inputs: Encoded
    codes: NDArray[np.int64] | None = None
    folds: Rows | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,)."""
        return np.asarray(self.inputs.lengths)

    @property
    def notes(self) -> Sequence[str]:
        """What was peculiar about the inputs."""
        return getattr(self.inputs, "notes", ())

    def batch(self, rows: Any) -> Batch:
        """What the network learns from: the inputs, and `y` (B,) and `fold` (B,) where they are known."""
        batch = self.inputs.batch(rows)
        if self.codes is not None:
            batch["y"] = torch.from_numpy(self.codes[rows])
        if self.folds is not None:
            batch["fold"] = torch.from_numpy(self.folds[rows])
        return batch

    def whole_batch(self, rows: Any) -> Batch:
        """What network and linear model are judged by: the inputs of both."""
        batch = self.inputs.batch(rows)
        linear = getattr(self.inputs, "linear", None)
        if linear is not None:
            batch.update(linear.batch(rows))
        return batch


def how_many(cost: float, max_time_s: float | None, *, speed_hz: float, usual_s: float) -> float:
    """How often a pass of `cost` steps may be made, by a rough guess at a small machine's speed.

    Args:
        cost: time steps of one pass over the data by one network.
        max_time_s: of the whole command.
        speed_hz: steps a second, forward and backward.
        usual_s: seconds that a training may take where no time was given.
    """
    seconds = usual_s if max_time_s is None else min(0.6 * max_time_s, 4 * usual_s)
    return seconds * speed_hz / max(cost, 1.0)
