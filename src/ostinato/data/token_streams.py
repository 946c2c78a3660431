"""Contiguous streams of the units of a corpus: what language models learn from and are scored on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.batching import require_positive
from ostinato.errors import SizeError
from ostinato.types import Batch

Ids = NDArray[Any]


class TokenStreams:
    """Chunks of B streams that together are one pass over a corpus, for truncated BPTT with a carried state.

    The documents, one after the other, form a ring; each epoch begins at another place of it, drawn from
    (seed, epoch), cuts the ring into B streams of equal length, and yields the next `steps` units of all of
    them at a time. Where a document begins there is a reset, and the unit before its first is `start`.
    The fewer than B units that the equal parts leave over are others at each epoch.

    Batches: `x` and `y` (B, T) ids, of a unit and of the one after it; `row` (B,) numbers of the streams; and
    `resets` (B, T) where a document begins in the chunk.

    Args:
        ids: (N,) of all documents; a memory map is read chunk by chunk.
        starts: (D,) where each document begins, increasing, the first at 0.
        start: the id that stands before the first unit of a document.
        streams: B.
        steps: k1.
        seed: of where epochs begin.

    Raises:
        SizeError: fewer units than streams.
    """

    def __init__(
        self, ids: Ids, starts: NDArray[np.int64], start: int, *, streams: int, steps: int, seed: int = 0
    ):
        require_positive("TokenStreams", streams=streams, steps=steps)
        if len(ids) < streams:
            raise SizeError(
                f"TokenStreams: {len(ids)} units cannot fill {streams} streams; ask for fewer streams"
            )
        self.ids, self.starts, self.start = ids, np.asarray(starts, np.int64), start
        self.streams, self.steps, self.seed = streams, steps, seed
        self.length = len(ids) // streams
        self.epoch = self.chunk = 0
        self._share = (0, 1)

    def __len__(self) -> int:
        return math.ceil(self.length / self.steps)

    def __iter__(self) -> Iterator[Batch]:
        N = len(self.ids)
        offset = int(np.random.default_rng([self.seed, self.epoch]).integers(N))
        rank, world_size = self._share
        rows = np.arange(rank, self.streams, world_size)
        while self.chunk < len(self):
            first = self.chunk * self.steps
            width = min(self.steps, self.length - first)
            self.chunk += 1
            if not len(rows):
                yield Batch()
                continue
            at = (offset + first + rows[:, None] * self.length + np.arange(width)) % N
            batch = units_at(self.ids, self.starts, self.start, at)
            batch["row"] = torch.from_numpy(rows.copy())
            yield batch
        self.epoch, self.chunk = self.epoch + 1, 0

    def set_share(self, rank: int, world_size: int) -> None:
        """Take every `world_size`-th stream, from `rank` on."""
        self._share = (rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its chunks were yielded."""
        return {"epoch": self.epoch, "chunk": self.chunk}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        self.epoch, self.chunk = int(state["epoch"]), int(state["chunk"])


def units_at(ids: Ids, starts: NDArray[np.int64], start: int, at: NDArray[np.int64]) -> Batch:
    """`x`, `y` and, where a document begins, `resets` for places `at` (B, T) of a corpus."""
    begins = at == 0
    if len(starts) > 1:
        following = np.minimum(np.searchsorted(starts, at), len(starts) - 1)
        begins = starts[following] == at
    x = ids[at - 1].astype(np.int64)
    batch = Batch(x=torch.from_numpy(x), y=torch.from_numpy(ids[at].astype(np.int64)))
    if begins.any():
        x[begins] = start
        batch["resets"] = torch.from_numpy(begins)
    return batch


class ScoringStreams:
    """Every unit of a corpus once, in S streams that each read `warm_up` units before their part.

    The state is carried through each stream; with one stream this is the corpus from its first to its last
    unit. `counted` (B, T) is True at the units that count, and
    `at` (B, T) their places.

    Args:
        ids, starts, start: as for `TokenStreams`.
        streams: S; fewer where the parts would be shorter than the warm-up.
        steps: units of a chunk.
        warm_up: units that are read but not counted, so that a stream in the middle of a text knows what the
            text is about.
    """

    def __init__(
        self,
        ids: Ids,
        starts: NDArray[np.int64],
        start: int,
        *,
        streams: int,
        steps: int = 256,
        warm_up: int = 256,
    ):
        self.ids, self.starts, self.start, self.steps = ids, np.asarray(starts, np.int64), start, steps
        self.streams = max(1, min(streams, len(ids) // max(warm_up, 1)))
        self.warm_up = warm_up if self.streams > 1 else 0

    def __iter__(self) -> Iterator[Batch]:
        N, S = len(self.ids), self.streams
        bounds = np.arange(S + 1) * N // S
        total = int(np.diff(bounds).max()) + self.warm_up
        for first in range(0, total, self.steps):
            at = bounds[:-1, None] - self.warm_up + np.arange(first, min(first + self.steps, total))
            counts = (at >= bounds[:-1, None]) & (at < bounds[1:, None])
            # The first stream's warm-up lies before the corpus: its state is reset at 0.
            batch = units_at(self.ids, self.starts, self.start, at.clip(0, N - 1))
            batch["counted"], batch["at"] = torch.from_numpy(counts), torch.from_numpy(at)
            yield batch
