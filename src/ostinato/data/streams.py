"""Consecutive chunks of parallel streams, from arrays or generators: truncated BPTT with a carried state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ostinato.data.batching import require_positive
from ostinato.errors import SizeError
from ostinato.types import Batch

Arrays = Mapping[str, Any]


class ArrayStreams:
    """Consecutive chunks of B parallel streams, for truncated BPTT with `carry_state`.

    The documents, one after the other, are one long stretch of time; it is cut into B equal parts, the
    streams, and each batch holds the next `steps` of all of them. `resets` (B, steps) is True at the first
    step of each document and of each stream. Streams end within one step of each other: the last batch is
    shorter and has a `mask` where some have ended.

    Args:
        documents: one mapping name → array (T, …), or a list of them; memory maps are read chunk by chunk.
        streams: B.
        steps: k1, time steps per batch.
        shuffle: permute the documents at each epoch, drawn from (seed, epoch).

    Raises:
        SizeError: names or lengths that differ within a document, or fewer time steps than streams.
    """

    def __init__(
        self,
        documents: Arrays | Sequence[Arrays],
        streams: int,
        steps: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ):
        require_positive("ArrayStreams", streams=streams, steps=steps)
        self.documents = [documents] if isinstance(documents, Mapping) else list(documents)
        self.streams, self.steps, self.shuffle, self.seed = streams, steps, shuffle, seed
        lengths = [_document_length(document, number) for number, document in enumerate(self.documents)]
        self._lengths = np.array(lengths, np.int64)
        self.total = int(self._lengths.sum())
        if self.total < streams:
            raise SizeError(
                f"ArrayStreams: {self.total} time steps cannot fill {streams} streams; ask for fewer streams"
            )
        self.epoch = self.chunk = 0
        self._share = (0, 1)

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.total / self.streams) / self.steps)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self.documents))
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        # ends[i] is where the i-th document of this epoch ends; bounds[b] where stream b begins.
        ends = np.cumsum(self._lengths[order])
        bounds = np.arange(self.streams + 1) * self.total // self.streams
        while self.chunk < len(self):
            first = self.chunk * self.steps
            self.chunk += 1
            yield self._batch(order, ends, bounds, first)
        self.epoch, self.chunk = self.epoch + 1, 0

    def _batch(self, order: np.ndarray, ends: np.ndarray, bounds: np.ndarray, first: int) -> Batch:
        width = min(self.steps, int(np.diff(bounds).max()) - first)
        rank, world_size = self._share
        pieces = []
        for stream in range(rank, self.streams, world_size):
            begin = int(bounds[stream]) + first
            end = min(begin + width, int(bounds[stream + 1]))
            pieces.append(list(self._read(order, ends, begin, max(begin, end))))
            if first == 0:
                pieces[-1][0] = (pieces[-1][0][0], True)
        return _chunk(pieces, width, self.documents[0])

    def _read(
        self, order: np.ndarray, ends: np.ndarray, begin: int, end: int
    ) -> Iterator[tuple[Arrays, bool]]:
        """Steps `begin` to `end` of the epoch as parts of documents, each with whether it starts one."""
        place = int(np.searchsorted(ends, begin, side="right"))
        while begin < end:
            document = self.documents[order[place]]
            start = int(ends[place] - self._lengths[order[place]])
            upto = min(end, int(ends[place]))
            if upto > begin:
                part = {name: array[begin - start : upto - start] for name, array in document.items()}
                yield part, begin == start
            begin, place = upto, place + 1

    def set_share(self, rank: int, world_size: int) -> None:
        """Take every `world_size`-th stream, from `rank` on."""
        self._share = (rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its chunks were yielded."""
        return {"epoch": self.epoch, "chunk": self.chunk}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        self.epoch, self.chunk = int(state["epoch"]), int(state["chunk"])


@runtime_checkable
class _Positioned(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class GeneratorStreams:
    """Chunks of B streams that are generated as they are needed, endless or not, at constant memory.

    Args:
        make: stream number → an iterable of documents, each a mapping name → array (T, …). Called once per
        epoch
            and stream. It must yield the same again when asked again. On resuming, documents that were used
            are drawn and thrown away; an iterator with `state_dict` and `load_state_dict` is told its
            position instead.
        streams: B.
        steps: k1, time steps per batch.
        continues: the documents of a stream are pieces of one, so that only the first step of all has a
        reset.

    Memory: one document per stream and one chunk. An epoch ends when all streams have; until then those that
    ended are masked.
    """

    def __init__(
        self, make: Callable[[int], Iterable[Arrays]], streams: int, steps: int, *, continues: bool = False
    ):
        require_positive("GeneratorStreams", streams=streams, steps=steps)
        self.make, self.streams, self.steps, self.continues = make, streams, steps, continues
        self._share = (0, 1)
        self._readers: dict[int, _StreamReader] = {}
        self._stored: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Batch]:
        rank, world_size = self._share
        if not self._readers:
            self._readers = {
                stream: _StreamReader(self.make(stream), self.continues, self._stored.get(str(stream)))
                for stream in range(rank, self.streams, world_size)
            }
            self._stored = {}
        while True:
            pieces = [reader.read(self.steps) for reader in self._readers.values()]
            width = max((sum(_length(part) for part, _ in own) for own in pieces), default=0)
            if not width:
                break
            example = next(part for own in pieces for part, _ in own)
            yield _chunk(pieces, width, example)
        self._readers = {}

    def set_share(self, rank: int, world_size: int) -> None:
        """Generate every `world_size`-th stream, from `rank` on."""
        self._share = (rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """For each stream: how many documents were begun, and how far the last one was used."""
        return {str(stream): reader.state_dict() for stream, reader in self._readers.items()} or self._stored

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there, at the next `iter`."""
        self._readers, self._stored = {}, dict(state)


class _StreamReader:
    """One generated stream and its place in it."""

    def __init__(self, documents: Iterable[Arrays], continues: bool, stored: dict[str, Any] | None):
        self._iterator, self._continues = iter(documents), continues
        self._document: Arrays = {}
        self._left, self._offset, self._begun = 0, 0, 0
        self._before: dict[str, Any] | None = None
        if stored is None or not stored["begun"]:
            return
        if isinstance(self._iterator, _Positioned):
            self._iterator.load_state_dict(stored["before"])
        else:
            next(islice(self._iterator, stored["begun"] - 1, stored["begun"] - 1), None)
        self._begun = stored["begun"] - 1
        if self._next_document():
            self._offset = stored["offset"]
            self._left -= self._offset

    def read(self, steps: int) -> list[tuple[Arrays, bool]]:
        """The next `steps` time steps (fewer at the end) as parts, each with whether it starts a document."""
        parts: list[tuple[Arrays, bool]] = []
        while steps:
            if not self._left:
                if not self._next_document():
                    break
                continue
            taken = min(steps, self._left)
            first = self._offset
            part = {name: array[first : first + taken] for name, array in self._document.items()}
            parts.append((part, first == 0 and (self._begun == 1 or not self._continues)))
            self._offset, self._left, steps = first + taken, self._left - taken, steps - taken
        return parts

    def _next_document(self) -> bool:
        if isinstance(self._iterator, _Positioned):
            self._before = self._iterator.state_dict()
        document = next(self._iterator, None)
        if document is None:
            return False
        self._document, self._offset = document, 0
        self._left = _document_length(document, self._begun)
        self._begun += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun, "offset": self._offset, "before": self._before}


def _chunk(pieces: list[list[tuple[Arrays, bool]]], width: int, example: Arrays) -> Batch:
    """One (B, width, …) batch from the parts of each stream, with resets, and a mask where one is short."""
    B = len(pieces)
    if not B:
        return Batch()
    columns = {
        name: np.zeros((B, width, *np.shape(array)[1:]), np.asarray(array[:0]).dtype)
        for name, array in example.items()
    }
    resets, mask = np.zeros((B, width), bool), np.zeros((B, width), bool)
    for row, parts in enumerate(pieces):
        place = 0
        for part, starts in parts:
            length = _length(part)
            for name, column in columns.items():
                column[row, place : place + length] = part[name]
            if length:
                resets[row, place] = starts
            mask[row, place : place + length] = True
            place += length
    batch = Batch((name, torch.from_numpy(column)) for name, column in columns.items())
    batch["resets"] = torch.from_numpy(resets)
    if not mask.all():
        batch["mask"] = torch.from_numpy(mask)
    return batch


def _length(document: Arrays) -> int:
    return len(next(iter(document.values())))


def _document_length(document: Arrays, number: int) -> int:
    lengths = {name: len(array) for name, array in document.items()}
    if len(set(lengths.values())) != 1:
        raise SizeError(f"document {number}: all its arrays need the same length, got {lengths or 'none'}")
    return next(iter(lengths.values()))
