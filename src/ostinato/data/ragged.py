"""`RaggedRows`: rows of whole numbers of unequal length, one after another; on disk where they are many."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ostinato.data.large import Scratch

DEFAULT_BUDGET_BYTES = 1 << 28
_CHUNK = 1 << 20


class RaggedRows:
    """Rows of int32 in one flat array, with the offset at which each begins.

    Rows are appended; the first question ends the appending. Beyond `budget_bytes` the flat array lies in a
    temporary file that is mapped into memory, and disappears with this object.

    Args:
        budget_bytes: what the rows may take in memory; the offsets, 8 bytes a row, come on top.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BUDGET_BYTES):
        self._budget_bytes = budget_bytes
        self._pending, self._ends = array("i"), array("q", [0])
        self._chunks: list[NDArray[np.int32]] = []
        self._scratch: Scratch | None = None
        self._flat: NDArray[np.int32] | None = None
        self._offsets: NDArray[np.int64] | None = None

    def append(self, row: Sequence[int]) -> None:
        """Add a row of numbers below 2^31."""
        self._pending.extend(row)
        self._ends.append(self._ends[-1] + len(row))
        if len(self._pending) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._chunks.append(np.frombuffer(self._pending, np.int32))
        self._pending = array("i")
        if self._scratch is None:
            if self._ends[-1] * 4 <= self._budget_bytes:
                return
            self._scratch = Scratch()
            self._path = self._scratch.file()
        with self._path.open("ab") as stream:
            for chunk in self._chunks:
                chunk.tofile(stream)
        self._chunks = []

    def _finish(self) -> None:
        if len(self._pending):
            self._flush()
        self._offsets = np.array(self._ends, np.int64)
        if self._scratch is not None:
            self._flat = np.memmap(self._path, np.int32, "r")
        else:
            self._flat = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int32)
        self._chunks = []

    @property
    def flat(self) -> NDArray[np.int32]:
        """(n,): all rows."""
        if self._flat is None:
            self._finish()
        assert self._flat is not None
        return self._flat

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(N + 1,): row i is `flat[offsets[i] : offsets[i + 1]]`."""
        if self._offsets is None:
            self._finish()
        assert self._offsets is not None
        return self._offsets

    @property
    def is_on_disk(self) -> bool:
        """Whether the rows outgrew their budget."""
        return self._scratch is not None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def row(self, index: int) -> NDArray[np.int32]:
        """One row."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def padded(self, rows: NDArray[np.intp], *, least: int = 0, fill: int = 0) -> NDArray[np.int64]:
        """(len(rows), longest) int64: chosen rows, `fill` after the end of each.

        Args:
            rows: indices of rows.
            least: the smallest width of the result.
            fill: what stands in the padding.
        """
        flat, offsets = self.flat, self.offsets
        starts = offsets[rows]
        lengths = offsets[rows + 1] - starts
        width = max(least, int(lengths.max(initial=0)))
        steps = np.arange(width)
        is_real = steps < lengths[:, None]
        result = np.full((len(rows), width), fill, np.int64)
        result[is_real] = flat[(starts[:, None] + steps)[is_real]]
        return result
