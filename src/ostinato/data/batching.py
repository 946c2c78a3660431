"""From rows to batches, with a position that can be stored and shares for several processes.

All sources here and in `streams.py` follow the joint Source → loop of DESIGN.md: `iter` yields the rest of
the present epoch, `state_dict` is the position after the last batch that was yielded, `set_share` takes one
process's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ostinato.errors import InputError, SizeError
from ostinato.types import Batch


class RowSampler:
    """Row numbers batch by batch: a permutation of all rows per epoch, drawn from (seed, epoch).

    With `lengths`, rows of similar length share a batch: the permutation is cut into buckets of
    `bucket_batches` batches, each bucket is sorted by length, and the batches are shuffled again. Padding
    then costs little, and every row still comes once per epoch.

    Args:
        rows: N.
        batch_size: rows of the *global* batch; the last batch of an epoch may be smaller.
        shuffle: False keeps the order of the rows.
        seed: with the epoch's number it decides the permutation.
        lengths: (N,) length of each row, to bucket by.
        bucket_batches: batches in one bucket.

    Cost: one permutation, 8·N bytes.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        lengths: Any = None,
        bucket_batches: int = 50,
    ):
        require_positive("RowSampler", rows=rows, batch_size=batch_size, bucket_batches=bucket_batches)
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        if self.lengths is not None and self.lengths.shape != (rows,):
            raise SizeError(f"RowSampler: lengths has shape {self.lengths.shape}, expected ({rows},)")
        self.bucket_batches = bucket_batches
        self.epoch = self.batch = 0
        self._share = (0, 1)

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        order, batches = self._permutation(self.epoch)
        rank, world_size = self._share
        while self.batch < len(self):
            first = int(batches[self.batch]) * self.batch_size
            self.batch += 1
            yield order[first : first + self.batch_size][rank::world_size]
        self.epoch, self.batch = self.epoch + 1, 0

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order of an epoch, and the order of the batches cut from it."""
        order, batches = np.arange(self.rows), np.arange(len(self))
        generator = np.random.default_rng([self.seed, epoch])
        if self.shuffle:
            generator.shuffle(order)
        if self.lengths is not None:
            width = self.bucket_batches * self.batch_size
            for first in range(0, self.rows, width):
                bucket = order[first : first + width]
                order[first : first + width] = bucket[np.argsort(self.lengths[bucket], kind="stable")]
            if self.shuffle:
                generator.shuffle(batches)
        return order, batches

    def set_share(self, rank: int, world_size: int) -> None:
        """Yield every `world_size`-th row of each batch, from `rank` on; a share may be empty."""
        self._share = (rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches were yielded."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])


class RowSource:
    """Batches of rows: what a `RowSampler` chooses, `fetch` turns into a `Batch`.

    Args:
        sampler: which rows, in which order.
        fetch: rows (n,) int64, never empty, to a batch of n rows; it should depend on the rows alone, so that
        a
            resumed run sees the same batches.
    """

    def __init__(self, sampler: RowSampler, fetch: Callable[[np.ndarray], Batch]):
        self.sampler, self.fetch = sampler, fetch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.sampler:
            yield self.fetch(rows) if len(rows) else Batch()

    def set_share(self, rank: int, world_size: int) -> None:
        """Take one process's rows; its batch is empty where it has none."""
        self.sampler.set_share(rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's position."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        self.sampler.load_state_dict(state)


def array_source(
    arrays: Mapping[str, Any], batch_size: int, *, shuffle: bool = True, seed: int = 0, bucket: bool = True
) -> RowSource:
    """Batches from arrays (N, …) and lists of N ragged arrays (T_i, …), which are padded.

    Ragged names must agree in length row by row; the batch then has `lengths` (B,). Memory-mapped arrays are
    read row by row.

    Args:
        arrays: name → array, or list of arrays.
        bucket: put ragged rows of similar length into the same batch.

    Raises:
        SizeError: different numbers of rows, or ragged names that disagree in length.
    """
    ragged = {name: value for name, value in arrays.items() if isinstance(value, (list, tuple))}
    ragged = {name: [np.asarray(row) for row in rows] for name, rows in ragged.items()}
    plain = {name: value for name, value in arrays.items() if name not in ragged}
    counts = {name: len(value) for name, value in arrays.items()}
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        raise SizeError(f"array_source: all arrays need the same number of rows ≥ 1, got {counts}")
    rows = next(iter(counts.values()))
    lengths = None
    for name, sequences in ragged.items():
        own = np.array([len(sequence) for sequence in sequences])
        if lengths is not None and (own != lengths).any():
            row = int((own != lengths).argmax())
            raise SizeError(
                f"array_source: row {row} of {name!r} has length {own[row]}, that of {next(iter(ragged))!r} "
                f"{lengths[row]}; ragged arrays must agree in length"
            )
        lengths = own

    def fetch(chosen: np.ndarray) -> Batch:
        batch = Batch((name, tensor(value[chosen])) for name, value in plain.items())
        for name, sequences in ragged.items():
            batch[name] = padded([sequences[row] for row in chosen])
        if lengths is not None:
            batch["lengths"] = torch.from_numpy(lengths[chosen])
        return batch

    sampler = RowSampler(rows, batch_size, shuffle=shuffle, seed=seed, lengths=lengths if bucket else None)
    return RowSource(sampler, fetch)


def padded(sequences: Sequence[Any]) -> torch.Tensor:
    """Ragged (T_i, …) as one (B, max T_i, …), zeros after the end.

    Raises:
        SizeError: the sequences differ in their other axes.
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) != 1:
        raise SizeError(f"padded: sequences differ beyond the first axis: {sorted(map(str, shapes))}")
    T = max(len(array) for array in arrays)
    result = np.zeros((len(arrays), T, *shapes.pop()), np.result_type(*arrays))
    for row, array in enumerate(arrays):
        result[row, : len(array)] = array
    return torch.from_numpy(result)


def tensor(array: Any) -> torch.Tensor:
    """An array as a tensor that owns its memory."""
    return array.clone() if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))


def require_positive(owner: str, **sizes: int) -> None:
    """Raise InputError unless each of `sizes` is 1 or more."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{owner}: {name} must be at least 1, got {size}")
