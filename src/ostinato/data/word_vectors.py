"""`WordVectors`: word vectors in the usual text format, read for the words that are needed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ostinato.data.vocabulary import Vocabulary
from ostinato.errors import DataError

DEFAULT_EXTRA = 50_000


class WordVectors:
    """A file of word vectors: on each line a word and its numbers, parted by blanks; UTF-8, also as `.gz`.

    A first line of two whole numbers (words, width), as word2vec and fastText write it, is taken as a header.
    Words may have blanks in them, as some of the files of GloVe do: the last `width` fields are the numbers.

    Args:
        path: the file.
        extra: how many words that training did not have are kept for prediction: the first of the file, which
            by custom are the most frequent. Each takes 4 bytes a number in the run folder.
    """

    def __init__(self, path: str | Path, *, extra: int = DEFAULT_EXTRA):
        self.path, self.extra = Path(path), extra

    def read(
        self, vocabulary: Vocabulary, normalise: Callable[[str], str]
    ) -> tuple[NDArray[np.float32], list[str]]:
        """The vectors of a vocabulary, and of `extra` words beyond it.

        An entry takes the vector of its own spelling, else the first whose normalised word it is. Where
        training
        and file agree on no word, the file is of another language or of another preparation: an error.

        Returns:
            (V + extra, width) float32, in the order of the ids, zeros where the file lacks a word; and the
            extra words, normalised.

        Raises:
            DataError: the file cannot be read or is wrong; names the line.

        Cost: one pass over the file, memory for the rows that are kept.
        """
        found: dict[int, NDArray[np.float32]] = {}
        exact: set[int] = set()
        extra: dict[str, NDArray[np.float32]] = {}
        for line, word, numbers in self._rows():
            key = word if word in vocabulary else normalise(word)
            if key in vocabulary:
                number = vocabulary.id(key)
                if number not in found or (key == word and number not in exact):
                    found[number] = self._vector(numbers, line)
                    exact |= {number} if key == word else set()
            elif len(extra) < self.extra and key not in extra:
                extra[key] = self._vector(numbers, line)
        if not found:
            raise DataError(
                f"none of its words is among the {len(vocabulary.entries)} of the training part; expected "
                "vectors of the same language and writing",
                path=self.path,
            )
        width = len(next(iter(found.values())))
        matrix = np.zeros((len(vocabulary) + len(extra), width), np.float32)
        for number, row in found.items():
            matrix[number] = row
        if extra:
            matrix[len(vocabulary) :] = list(extra.values())
        return matrix, list(extra)

    def _rows(self) -> Iterator[tuple[int, str, list[bytes]]]:
        """Line numbers, words and the fields of their numbers; the header and empty lines left out."""
        width = 0
        for line, raw in self._lines():
            fields = raw.split()
            if line == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                width = int(fields[1])
                continue
            if not fields:
                continue
            width = width or len(fields) - 1
            # The word may be a blank of its own kind, or have blanks in it; the numbers never do.
            word = raw.rstrip().rsplit(None, width)[0] if len(fields) > width + 1 else fields[0]
            if (
                width < 1
                or len(fields) < width + 1
                or (len(fields) > width + 1 and _is_fraction(fields[-width - 1]))
            ):
                raise DataError(
                    f"expected a word and {max(width, 1)} numbers, found {len(fields)} fields; a line is cut "
                    "short or has numbers too many, or the file is none of word vectors",
                    path=self.path,
                    line=line,
                )
            yield line, self._decoded(word, line), fields[len(fields) - width :]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        opened = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opened(self.path, "rb") as stream:
                yield from enumerate(stream, 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be read: {error}", path=self.path) from error

    def _decoded(self, word: bytes, line: int) -> str:
        try:
            return word.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"expected UTF-8, found byte 0x{word[error.start]:02x}; convert the file, or take the text "
                "format rather than the binary one",
                path=self.path,
                line=line,
            ) from error

    def _vector(self, numbers: list[bytes], line: int) -> NDArray[np.float32]:
        try:
            vector = np.array([float(number) for number in numbers], np.float32)
        except ValueError as error:
            raise DataError(
                f"expected numbers after the word, found {error}", path=self.path, line=line
            ) from error
        if not np.isfinite(vector).all():
            raise DataError("expected finite numbers, found NaN or infinity", path=self.path, line=line)
        return vector


def _is_fraction(field: bytes) -> bool:
    """Whether a field in the place of a word's last part can only be one number too many."""
    try:
        return b"." in field and bool(np.isfinite(float(field)))
    except ValueError:
        return False
