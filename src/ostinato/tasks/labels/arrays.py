"""Arrays and signals as a classifier reads them: each step with its neighbours, its deviation, its change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ostinato.data.batching import padded
from ostinato.data.examples import Examples
from ostinato.data.scaling import Scaling
from ostinato.errors import DataError, InputError, SizeError
from ostinato.models.array_classifier import ArrayClassifier
from ostinato.models.wide import WideAndDeep
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.summaries import PARTS, SummaryFeatures
from ostinato.tasks.transfer import Moved
from ostinato.types import Batch

# Steps that a recurrent network reads well and quickly; longer sequences are read several steps at once.
LONGEST = 384
WIDEST = 512
WIDEST_SUMMARIES = 512
SCALING_BYTES = 512 << 20
CACHED_BYTES = 256 << 20
SPEED_HZ = 60_000.0
USUAL_S = 240.0


@dataclass(frozen=True)
class ArrayInputs:
    """Arrays (T, D) to what the network reads.

    A step becomes its values, their deviation from the sequence's own mean, and their change since the step
    before, each scaled to mean 0 and variance 1 over the training part. The values tell levels apart, the
    deviations shapes wherever they lie, the changes movements. Where sequences are long, `stride` steps are
    read side by side as one; the last of them is filled up with its last step.

    Attributes:
        width: D.
        stride: steps read at once.
        scaling: of the 3·D numbers of a step.
        summaries: what the linear model beside the network reads; None where D is large.
    """

    folds: ClassVar[bool] = True
    linear_over: ClassVar[str] = "summary statistics"
    optimizer: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw"}
    head: ClassVar[str] = "head"

    width: int
    stride: int
    scaling: Scaling
    summaries: SummaryFeatures | None

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """Parameters by the amount of data and, where it is limited, of time."""
        lengths = np.array([len(one) for one in data.inputs])
        stride = _stride(lengths, np.shape(data.inputs[0])[-1]) if old is None else old.stride
        steps = float((lengths / stride).sum())
        N = len(data)
        batch_size = int(np.clip(2 ** round(np.log2(max(N, 1) / 8)), 8, 64))
        epochs = int(np.clip(60 * 2000 / max(N, 1), 15, 60))
        passes = how_many(steps * epochs, settings.max_time_s, speed_hz=SPEED_HZ, usual_s=USUAL_S)
        return {
            "cell": "gru",
            "hidden_size": 64,
            "num_layers": 1,
            "dropout": 0.2,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": 3e-3,
            "weight_decay": 1e-2,
            "members": int(np.clip(passes, 1, 5)),
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """From the training part.

        Raises:
            SizeError: arrays of different widths; InputError: arrays of another width than those of `old`.
            DataError: values that are not finite, or too large to have a variance.
        """
        width = np.shape(learned.inputs[0])[-1]
        if old is not None and width != old.width:
            raise InputError(
                f"init: the run reads arrays of {old.width} columns, found {width} in {learned.source}; give "
                "the same columns in the same order, or train without that run"
            )
        lengths = np.empty(len(learned), np.int64)
        for i, one in enumerate(learned.inputs):
            _check(one, width, learned.places[i], learned.source)
            lengths[i] = len(one)
        if not lengths.any():
            raise SizeError(f"{learned.source}: every sequence is empty; at least one needs a step")
        # Float64, because small differences between large numbers matter; of a large set some sequences.
        size_bytes = 24.0 * width * float(lengths.sum())
        real = np.flatnonzero(lengths)
        looked = real[:: max(1, round(size_bytes / SCALING_BYTES))]
        flat = np.concatenate([_views(learned.inputs[int(i)]) for i in looked])
        summaries = SummaryFeatures() if width <= WIDEST_SUMMARIES else None
        if summaries is not None:
            summaries.fit(learned.inputs)
        if old is not None:
            return cls(width, old.stride, old.scaling, summaries)
        return cls(width, _stride(lengths, width), Scaling.fit(flat), summaries)

    def encode(self, inputs: Sequence[Any]) -> EncodedArrays:
        """Ready for batches.

        Raises:
            SizeError: another width than that of the training part.
            DataError: a value that is not finite.
        """
        for i, one in enumerate(inputs):
            _check(one, self.width, i + 1, "the data")
        return EncodedArrays(self, inputs)

    def row(self, one: NDArray[Any]) -> NDArray[np.float32]:
        """One array (T, D) as the network reads it: (ceil(T / stride), 3·D·stride)."""
        x = self.scaling.forward(_views(one)).astype(np.float32)
        if self.stride == 1 or not len(x):
            return x if len(x) else np.zeros((0, x.shape[1] * self.stride), np.float32)
        missing = -len(x) % self.stride
        x = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
        return x.reshape(-1, self.stride * x.shape[1])

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """An `ArrayClassifier`, with a linear model over summary statistics beside it."""
        network = ArrayClassifier(
            3 * self.width * self.stride,
            output_size,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            dropout=settings.dropout,
        )
        if self.summaries is None:
            return network
        return WideAndDeep(network, PARTS * self.width, output_size)

    def moved(self, old: Self) -> dict[str, Moved]:
        """Nothing: the columns are the same."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "width": self.width,
            "stride": self.stride,
            "scaling": self.scaling.to_json(),
            "summaries": None if self.summaries is None else self.summaries.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        summaries = None if stored["summaries"] is None else SummaryFeatures()
        if summaries is not None:
            summaries.take_json(stored["summaries"])
        scaling = Scaling.from_json(stored["scaling"])
        return cls(int(stored["width"]), int(stored["stride"]), scaling, summaries)


class EncodedArrays:
    """Arrays as batches; those of a small set are prepared once, of a large one whenever they are needed."""

    # Summaries are dense and often as many as the examples.
    penalties: ClassVar[tuple[float, ...]] = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)

    def __init__(self, prepared: ArrayInputs, inputs: Sequence[Any]):
        self._prepared, self._inputs = prepared, inputs
        sizes = np.array([len(one) for one in inputs], np.int64)
        self.lengths = -(-sizes // prepared.stride)
        size_bytes = int(sizes.sum()) * prepared.width * 12
        self.linear = None if prepared.summaries is None else prepared.summaries.rows(inputs)
        self._rows = [prepared.row(one) for one in inputs] if size_bytes <= CACHED_BYTES else None

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Any) -> Batch:
        """`x` (B, T, D), and `lengths` (B,) where they differ."""
        chosen = np.asarray(rows, np.int64)
        if self._rows is not None:
            x = padded([self._rows[i] for i in chosen])
        else:
            x = padded([self._prepared.row(self._inputs[i]) for i in chosen])
        lengths = self.lengths[chosen]
        if x.shape[1] == 0:
            x = x.new_zeros(len(chosen), 1, x.shape[2])
        batch = Batch(x=x)
        if (lengths < x.shape[1]).any():
            batch["lengths"] = torch.from_numpy(lengths)
        return batch


def _stride(lengths: NDArray[np.int64], width: int) -> int:
    typical = float(np.quantile(lengths, 0.9)) if len(lengths) else 1.0
    return int(max(1, min(np.ceil(typical / LONGEST), max(1, WIDEST // (3 * width)))))


def _views(one: Any) -> NDArray[np.float64]:
    values = np.asarray(one, np.float64)
    if not len(values):
        return np.zeros((0, 3 * values.shape[1]))
    return np.concatenate(
        [values, values - values.mean(axis=0), np.diff(values, axis=0, prepend=values[:1])], axis=1
    )


def _check(one: Any, width: int, place: int, source: str) -> None:
    shape = np.shape(one)
    if len(shape) != 2 or shape[1] != width:
        raise SizeError(
            f"{source}, {place}: an array of shape {shape}, expected (T, {width}) as in the training data; "
            "every step of every sequence needs the same number of values"
        )
    if not np.isfinite(one).all():
        step, column = map(int, np.argwhere(~np.isfinite(one))[0])
        raise DataError(
            f"{source}, {place}: the value at step {step}, column {column} is not finite; replace it, or "
            "leave the example out"
        )
