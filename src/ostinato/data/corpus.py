"""Files of running text as one array of ids: whole documents, read in pieces, mapped from disk when large."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.corpus_units import END, CorpusUnits
from ostinato.data.large import LazyScratch
from ostinato.data.lines import Span, TextFile
from ostinato.errors import DataError, InputError

BLOCK_BYTES = 1 << 20
LARGE_BYTES = 1 << 26
"""A larger file stays on disk while it is read."""
BUDGET_BYTES = 1 << 28
"""Ids that need more memory go to a file in a temporary folder, which is mapped."""
DOCUMENTS = ("file", "line")
_LONGEST_NAME = 4096  # characters of a path


@dataclass(frozen=True)
class TextPart:
    """A stretch of one text: bytes `first` to `last` (exclusive) of UTF-8, on line `line` (from 1) on."""

    name: str
    data: bytes | mmap.mmap
    first: int
    last: int
    line: int = 1
    file: TextFile | None = None

    def blocks(self) -> Iterator[str]:
        """The text in pieces of whole lines of about a megabyte; `\\r\\n` becomes `\\n`.

        Raises:
            DataError: bytes that are not UTF-8, or a null character, with its line.
        """
        at, line = self.first, self.line
        while at < self.last:
            end = self.data.find(b"\n", min(at + BLOCK_BYTES, self.last), self.last) + 1 or self.last
            raw = self.data[at:end]
            if b"\0" in raw:
                place = line + raw[: raw.index(b"\0")].count(b"\n")
                raise DataError(
                    "a null character, which no text has; is this a binary file, or text in UTF-16 "
                    "(then pass --encoding utf-16)?",
                    path=self.name,
                    line=place,
                )
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                if self.file is None:
                    raise
                text = self.file.text(Span(at, end, line))
            yield text.replace("\r\n", END) if "\r" in text else text
            at, line = end, line + raw.count(b"\n")

    def cut(self, at: int) -> tuple[TextPart, TextPart]:
        """Two parts, cut at the first beginning of a line from byte `at` on, or of a word or character where
        that is too far."""
        near = min(self.last, at + max((self.last - self.first) // 20, 1))
        place = self.data.find(b"\n", at, near) + 1 or self.data.find(b" ", at, near) + 1 or at
        while place < self.last and self.data[place] & 0xC0 == 0x80:
            place += 1
        line = self.line + self.data[self.first : place].count(b"\n")
        return (
            TextPart(self.name, self.data, self.first, place, self.line, self.file),
            TextPart(self.name, self.data, place, self.last, line, self.file),
        )

    def __len__(self) -> int:
        """Bytes."""
        return self.last - self.first


def open_texts(data: Any, *, encoding: str | None = None, name: str = "data") -> list[TextPart]:
    """The documents of a file, of several, or of open text files such as `io.StringIO`.

    Args:
        data: a path, an open text file, or a list of them; `.gz`, `.xz`, `.bz2` and `.zip` are unpacked.
        encoding: of the files; UTF-8 by default.
        name: the argument, for messages.

    Raises:
        DataError: a file that is missing, damaged, empty, or not text in the encoding.
        InputError: something that is neither a path nor a file.
    """
    given = [data] if isinstance(data, (str, os.PathLike)) or hasattr(data, "read") else data
    if not isinstance(given, Sequence) or not given:
        raise InputError(f"{name}: expected a file or a list of files, found {type(data).__name__}")
    return [_open_text(one, encoding, f"{name}[{number}]") for number, one in enumerate(given)]


def _open_text(one: Any, encoding: str | None, name: str) -> TextPart:
    if isinstance(one, str) and (END in one or len(one) > _LONGEST_NAME):
        raise InputError(
            f"{name}: expected the path of a file, found a text of {len(one):,} characters; wrap a text in "
            "memory as io.StringIO(text)"
        )
    if isinstance(one, (str, os.PathLike)):
        file = TextFile(Path(one), encoding=encoding, large_bytes=LARGE_BYTES)
        part = TextPart(str(one), file.data, file.first, len(file.data), file=file)
    elif hasattr(one, "read"):
        text = one.read()
        if not isinstance(text, str):
            raise InputError(f"{name}: expected a file opened as text, found one opened as bytes")
        raw = text.encode("utf-8", "replace")
        part = TextPart(getattr(one, "name", None) or name, raw, 0, len(raw))
    else:
        raise InputError(
            f"{name}: expected a path or an open text file, found {type(one).__name__}; wrap a text in "
            "memory as io.StringIO(text)"
        )
    if not len(part):
        raise DataError("the file is empty; a language model needs text", path=part.name)
    return part


def hold_out(parts: Sequence[TextPart], share: float) -> tuple[list[TextPart], list[TextPart]]:
    """All but the last `share` of the bytes, and that last part; cut at a line's beginning where one is near.

    Raises:
        DataError: too little text for two parts.
    """
    learned, held = [], []
    left = int((1 - share) * sum(map(len, parts)))
    for part in parts:
        if left >= len(part):
            learned.append(part)
        elif left <= 0:
            held.append(part)
        else:
            first, second = part.cut(part.first + left)
            learned += [first] if len(first) else []
            held += [second] if len(second) else []
        left -= len(part)
    if not learned or not held:
        raise DataError(
            f"the text is too short to hold out {share:.0%} of it; give more text, or a file to validate on",
            path=parts[0].name,
        )
    return learned, held


@dataclass(frozen=True)
class Corpus:
    """Text as ids.

    Attributes:
        ids: (N,) of all documents, one after the other; a memory map where they are many.
        starts: (D,) where each document begins.
        start: the id before the first unit of a document.
        characters: of the text, line feeds included.
        unknown: how many of the ids are the unknown unit.
        source: for messages.
        blank_lines: left out, where each line is a document.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    start: int
    characters: int
    unknown: int
    source: str
    blank_lines: int = 0

    def __len__(self) -> int:
        """N."""
        return len(self.ids)


def fingerprint(parts: Sequence[TextPart]) -> dict[str, Any]:
    """How many texts there are, and a digest of their bytes and of where each ends.

    Cost: about 1 ns for each byte.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        for at in range(part.first, part.last, BLOCK_BYTES):
            digest.update(part.data[at : min(at + BLOCK_BYTES, part.last)])
    return {"examples": len(parts), "digest": digest.hexdigest()}


def read_blocks(parts: Iterable[TextPart]) -> Iterator[str]:
    """The text of all parts in pieces of whole lines."""
    return chain.from_iterable(part.blocks() for part in parts)


def encode_corpus(
    parts: Sequence[TextPart],
    units: CorpusUnits,
    *,
    documents: str = "file",
    folder: Path | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Corpus:
    """Read texts into ids, in one pass at constant memory.

    Every line has its end among the ids: of words also the last one, if no line feed ends it.

    Args:
        parts: the texts.
        units: of the training text.
        documents: `file`: each text is a document; `line`: each line that is not blank.
        folder: where a temporary folder for large arrays may be made; None: the system's.
        budget_bytes: beyond it the ids go there.

    Raises:
        InputError: an unknown kind of document.
        DataError: no unit at all, or bytes that are no text.
    """
    if documents not in DOCUMENTS:
        raise InputError(f"documents: {documents!r} is unknown; known: {', '.join(DOCUMENTS)}")
    store = _IdStore(units.dtype, folder, budget_bytes)
    starts: list[int] = []
    characters = unknown = blank = 0
    for part in parts:
        if documents == "file":
            starts.append(store.size)
        piece = ""
        for text in part.blocks():
            pieces = [text]
            if documents == "line":
                lines = _lines(text)
                pieces = [line for line in lines if line.strip()]
                blank += len(lines) - len(pieces)
            for piece in pieces:
                ids = units.encode(piece)
                if documents == "line":
                    starts.append(store.size)
                store.append(ids)
                characters += len(piece)
                unknown += int((ids == 0).sum())
        if units.unit == "word" and piece and not piece.endswith(END):
            store.append(np.array([units.start], units.dtype))
            characters += 1
    source = ", ".join(part.name for part in parts[:3]) + (", …" if len(parts) > 3 else "")
    if not store.size:
        raise DataError("expected text, found blanks only", path=source)
    # A text of blanks alone gives a document without a unit.
    kept = np.unique(np.array(starts, np.int64))
    begins = kept[kept < store.size]
    return Corpus(store.finish(), begins, units.start, characters, unknown, source, blank)


def _lines(text: str) -> list[str]:
    """With their ends; only a line feed ends one."""
    *whole, last = text.split(END)
    return [line + END for line in whole] + ([last] if last else [])


class _IdStore:
    """Ids as they come: in memory within a budget, else in a file."""

    def __init__(self, dtype: type[np.generic], folder: Path | None, budget_bytes: int):
        self._dtype, self._budget_bytes = np.dtype(dtype), budget_bytes
        self._chunks: list[NDArray[Any]] = []
        self._held = self.size = 0
        self._scratch = LazyScratch(folder)
        self._path: Path | None = None

    def append(self, ids: NDArray[Any]) -> None:
        self._chunks.append(ids)
        self._held += ids.nbytes
        self.size += len(ids)
        if self._held > self._budget_bytes:
            self._path = self._path or self._scratch.get().file()
            self._flush(self._path)

    def _flush(self, path: Path) -> None:
        with path.open("ab") as stream:
            for chunk in self._chunks:
                chunk.tofile(stream)
        self._chunks, self._held = [], 0

    def finish(self) -> NDArray[Any]:
        if self._path is None:
            return np.concatenate(self._chunks) if self._chunks else np.empty(0, self._dtype)
        self._flush(self._path)
        mapped = _Mapped(self._path, self._dtype, "r", shape=(self.size,))
        mapped.scratch = self._scratch
        return mapped


class _Mapped(np.memmap):
    """A map that keeps the temporary folder of its file."""

    scratch: LazyScratch | None = None
