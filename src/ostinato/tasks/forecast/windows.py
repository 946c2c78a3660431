"""Windows over prepared rows: the batches of training, drawn at random and reproducible from their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ostinato.data.preparation import Indices, Preparation
from ostinato.tasks.forecast.drawn import DrawnSource
from ostinato.tasks.forecast.rows import PreparedRows
from ostinato.types import Batch

Shard = Callable[[], PreparedRows]


@dataclass(frozen=True)
class WindowShape:
    """What one batch is.

    Attributes:
        rows: B windows.
        context: T steps of each.
        origins: O steps of a window from which is forecast.
        horizon: H; 1 for the autoregressive network, which is trained at every step.
        autoregressive: whether batches are for `AutoregressiveForecaster`.
    """

    rows: int
    context: int
    origins: int
    horizon: int
    autoregressive: bool


class WindowSource(DrawnSource):
    """Batches of random windows from the training part of prepared rows.

    Args:
        shards: functions that prepare groups of rows; one group is in memory, an epoch visits all.
        limits: for each shard, (rows,) how many steps of each row are training.
        preparation: of the rows.
        shape: of a batch.
        seed: of the draw.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        limits: Sequence[Indices],
        preparation: Preparation,
        shape: WindowShape,
        *,
        seed: int,
    ):
        super().__init__(seed)
        self.shards, self.limits, self.preparation, self.shape = shards, limits, preparation, shape
        self._loaded: tuple[int, PreparedRows] | None = None
        # An epoch draws about as many steps as there are, and never so few that it is not worth a validation.
        per_shard = [int(limit.sum()) // (shape.rows * shape.context) for limit in limits]
        self.batches = [max(n, 20 if len(shards) == 1 else 5) for n in per_shard]

    def __len__(self) -> int:
        return sum(self.batches)

    def _batch(self, number: int) -> Batch:
        # Shards are visited in a random order, each for as many batches as it holds steps for.
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.shards))
        ends = np.cumsum([self.batches[i] for i in order])
        return self._draw(int(order[np.searchsorted(ends, number, side="right")]), number)

    def shard(self, number: int) -> PreparedRows:
        """The prepared rows of one shard; the last one asked for stays in memory."""
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None
            self._loaded = (number, self.shards[number]())
        return self._loaded[1]

    def _draw(self, number: int, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        prepared, limits, shape = self.shard(number), self.limits[number], self.shape
        # A longer row is drawn more often, but not in proportion: short rows must be learned too.
        weight = np.sqrt(limits.astype(np.float64))
        rows = rng.choice(len(limits), size=shape.rows, p=weight / weight.sum())
        context = min(shape.context, int(limits.max()))
        starts = (rng.random(shape.rows) * np.maximum(limits[rows] - context, 0) + 0.5).astype(np.int64)
        starts = np.minimum(starts, np.maximum(limits[rows] - 2, 0))
        used = np.minimum(context, limits[rows] - starts)
        # The first quarter of a window only warms the state up, unless the row begins there.
        first = np.where(starts > 0, np.minimum(context // 4, used - 1), 0)
        offsets = first[:, None] + rng.random((shape.rows, shape.origins)) * (used - 1 - first)[:, None]
        return window_batch(
            prepared,
            self.preparation,
            shape,
            rows[self.share],
            starts[self.share],
            offsets.astype(np.int64)[self.share],
            limits[rows[self.share]],
        )


def window_batch(
    prepared: PreparedRows,
    preparation: Preparation,
    shape: WindowShape,
    rows: Indices,
    starts: Indices,
    offsets: Indices,
    limits: Indices,
) -> Batch:
    """Windows (B,) from `starts` on; direct networks forecast after steps `offsets` (B, O) of them."""
    T = prepared.values.shape[1]
    context = min(shape.context, T)
    steps = starts[:, None] + np.arange(context)
    steps = np.minimum(steps, T - 1)
    x = prepared.x[rows[:, None], steps]
    if shape.autoregressive:
        at = steps.reshape(-1)
        flat = np.repeat(rows, context)
        _, anchors = prepared.relative(preparation, flat, at, 1)
        y, mask = prepared.targets(preparation, flat, at, 1, np.repeat(limits, context))
        history = prepared.history
        # The very first values of a row have no scale yet.
        mask &= (prepared.seen[flat, at] >= 3)[:, None]
        return _tensors(
            x=x,
            anchors=anchors.reshape(len(rows), context, -1),
            y=y.reshape(len(rows), context),
            mask=mask.reshape(len(rows), context),
            last=history.filled[rows[:, None], steps],
            scale=history.scale[rows[:, None], steps],
        )
    at = (starts[:, None] + offsets).reshape(-1)
    flat = np.repeat(rows, offsets.shape[1])
    future, anchors = prepared.relative(preparation, flat, at, shape.horizon)
    y, mask = prepared.targets(preparation, flat, at, shape.horizon, np.repeat(limits, offsets.shape[1]))
    weight = np.clip(prepared.history.scale[flat, at] / prepared.units[flat], 0.0, 10.0)
    shaped = (*offsets.shape, shape.horizon)
    return _tensors(
        x=x,
        origins=offsets,
        future=future.reshape(*shaped, -1),
        anchors=anchors.reshape(*shaped, -1),
        y=y.reshape(shaped),
        mask=mask.reshape(shaped),
        weight=np.broadcast_to(weight.reshape(*offsets.shape, 1), shaped),
    )


def _tensors(**arrays: np.ndarray) -> Batch:
    def tensor(array: np.ndarray) -> torch.Tensor:
        kind = array.dtype if array.dtype in (np.bool_, np.int64) else np.float32
        return torch.from_numpy(np.array(array, dtype=kind, order="C"))

    return Batch({name: tensor(array) for name, array in arrays.items()})
