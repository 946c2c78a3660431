"""Rows on their way from a file to their series: in memory within a budget, else in a temporary folder."""

from __future__ import annotations

import mmap
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

DEFAULT_BUDGET_BYTES = 1 << 30
CHUNK_ROWS = 1 << 15


class Scratch:
    """A temporary folder that lives as long as the tables whose arrays are mapped from it.

    Args:
        inside: the folder to make it in; None: the system's for temporary files.
    """

    def __init__(self, inside: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ostinato-", dir=inside))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._n_files = 0

    def file(self) -> Path:
        """The path of a new file in the folder."""
        self._n_files += 1
        return self.folder / f"{self._n_files}.bin"

    def close(self) -> None:
        """Remove the folder now."""
        self._remove()


class RowStore:
    """Parsed rows in file order: head (time, series number, line: int64) and body (`width` float64 cells).

    Args:
        width: cells in a body.
        budget_bytes: beyond it the rows go to files in `scratch`; memory then stays constant.
        scratch: gives the folder when it is first needed.
    """

    def __init__(self, width: int, budget_bytes: int, scratch: LazyScratch):
        self.width, self.budget_bytes, self.n_rows = width, budget_bytes, 0
        self._scratch = scratch
        self._chunks: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._n_bytes = 0
        self._files: tuple[Path, Path] | None = None
        self.remaps: dict[int, NDArray[np.float64]] = {}  # columns whose codes are looked up on the way out

    @property
    def is_spilled(self) -> bool:
        """Whether the rows are on disk."""
        return self._files is not None

    def append(self, head: NDArray[np.int64], body: NDArray[np.float64]) -> None:
        """Add rows: head (n, 3), body (n, width)."""
        self.n_rows += len(head)
        self._n_bytes += head.nbytes + body.nbytes
        self._chunks.append((np.ascontiguousarray(head), np.ascontiguousarray(body)))
        if self._n_bytes > self.budget_bytes and self._files is None:
            self._files = self._scratch.get().file(), self._scratch.get().file()
        if self._files is not None:
            for path, place in zip(self._files, (0, 1), strict=True):
                with path.open("ab") as stream:
                    for chunk in self._chunks:
                        chunk[place].tofile(stream)
            self._chunks = []

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """The rows in the order they came."""
        for head, body in self._stored():
            if not self.remaps:
                yield head, body
                continue
            mapped = body.copy()
            for column, table in self.remaps.items():
                given = ~np.isnan(body[:, column])
                mapped[given, column] = table[body[given, column].astype(np.int64)]
            yield head, mapped

    def _stored(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        if self._files is None:
            yield from self._chunks
            return
        with self._files[0].open("rb") as heads, self._files[1].open("rb") as bodies:
            while True:
                head = np.fromfile(heads, np.int64, 3 * CHUNK_ROWS).reshape(-1, 3)
                body = np.fromfile(bodies, np.float64, self.width * len(head)).reshape(len(head), self.width)
                if not len(head):
                    return
                yield head, body

    def drop(self) -> None:
        """Free the memory or the disk that the rows take."""
        self._chunks = []
        for path in self._files or ():
            path.unlink(missing_ok=True)
        self._files = None


class LazyScratch:
    """Makes the temporary folder on first use, inside `inside` where that is given."""

    def __init__(self, inside: Path | None = None) -> None:
        self.made: Scratch | None = None
        self._inside = inside

    def get(self) -> Scratch:
        """The folder."""
        if self.made is None:
            self.made = Scratch(self._inside)
        return self.made


def full(shape: tuple[int, ...], value: float, dtype: DTypeLike, scratch: Scratch | None) -> NDArray[Any]:
    """An array filled with `value`; mapped from a file of `scratch` where one is given."""
    if scratch is None or 0 in shape:
        return np.full(shape, value, dtype)
    array = np.memmap(scratch.file(), dtype, "w+", shape=shape)
    step = max(1, (1 << 22) // max(1, array[:1].nbytes))
    for first in range(0, len(array), step):
        array[first : first + step] = value
        release(array)
    return array


def release(array: NDArray[Any]) -> None:
    """Write a mapped array's pages back and drop them from this process; nothing for an ordinary array."""
    mapping = getattr(array, "_mmap", None)
    if isinstance(mapping, mmap.mmap):
        mapping.flush()
        if hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
