"""Documents: texts split into sentences, and series of series; batches of flat sentences with counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.encoded_tokens import EncodedTokens
from ostinato.data.token_encoding import TokenPreparation
from ostinato.data.tokens import split_sentences
from ostinato.errors import InputError, SizeError
from ostinato.types import Batch

Document: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]]
"""A text, which is split; or its sentences, each as text or as words."""
SPLITTERS = ("sentences", "lines", "none")
MAX_WORDS = 60
MAX_SENTENCES = 200

# Before a line that begins with a bullet or a number.
_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*•·+]|\d{1,3}[.)])[^\S\n])")


def sentences_of(document: Document, *, splitter: str = "sentences") -> list[Any]:
    """The sentences of a document, as text or as words; empty ones are left out.

    Args:
        document: a text, or its sentences.
        splitter: how a text is split: `sentences` (as `ostinato.data.tokens.split_sentences`, and before each
            line that begins with a bullet or a number), `lines` (each line is a sentence) or `none` (one
            sentence).

    Raises:
        InputError: an unknown splitter, or a document that is neither text nor a list.
    """
    if splitter not in SPLITTERS:
        raise InputError(f"documents: splitter={splitter!r} is unknown; known: {', '.join(SPLITTERS)}")
    if isinstance(document, str):
        if splitter == "sentences":
            return [sentence for item in _ITEM.split(document) for sentence in split_sentences(item)]
        parts = document.split("\n") if splitter == "lines" else [document]
        return [part for part in parts if part.strip()]
    if not isinstance(document, Sequence):
        raise InputError(
            f"a document is {type(document).__name__}; expected a text, a list of sentences (texts), or a "
            "list of lists of words"
        )
    return [s for s in document if (s.strip() if isinstance(s, str) else len(s))]


@dataclass(frozen=True)
class DocumentLimits:
    """How documents are cut to what a network can hold.

    Attributes:
        splitter: as for `sentences_of`.
        max_words: a longer sentence goes on as the next one; nothing is lost.
        max_sentences: of a longer document the first and the last half of so many are kept.
    """

    splitter: str = "sentences"
    max_words: int = MAX_WORDS
    max_sentences: int = MAX_SENTENCES

    def __post_init__(self) -> None:
        sentences_of("", splitter=self.splitter)
        for name in ("max_words", "max_sentences"):
            if getattr(self, name) < 1:
                raise InputError(f"documents: {name}={getattr(self, name)}, expected at least 1")

    def words_of(self, preparation: TokenPreparation, document: Document) -> tuple[list[Sequence[str]], int]:
        """The document's sentences as words, and how many sentences were left out."""
        cut: list[Sequence[str]] = []
        for sentence in sentences_of(document, splitter=self.splitter):
            words = preparation.split(sentence)
            cut += [words[i : i + self.max_words] for i in range(0, len(words), self.max_words)]
        surplus = len(cut) - self.max_sentences
        if surplus > 0:
            first = (self.max_sentences + 1) // 2
            cut = cut[:first] + cut[first + surplus :]
        return cut, max(surplus, 0)


class EncodedDocuments:
    """N documents as numbers: all their sentences one after the other, and how many each document has.

    Args:
        sentences: of all documents.
        counts: (N,) sentences of each; they add up to `len(sentences)`.
        shortened: how many documents lost sentences to `max_sentences`.
    """

    def __init__(self, sentences: EncodedTokens, counts: NDArray[np.int64], shortened: int = 0):
        self.sentences, self.counts, self.shortened = sentences, counts, shortened
        self.starts = np.append(0, counts.cumsum())

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): words of each document, 0 for an empty one."""
        before = np.append(0, self.sentences.lengths.cumsum())
        lengths: NDArray[np.int64] = np.diff(before[self.starts])
        return lengths

    def batch(self, rows: Any) -> Batch:
        """Chosen documents: `EncodedTokens.batch` of their S sentences, and `sentence_counts` (B,)."""
        chosen = np.asarray(rows, np.int64).reshape(-1)
        batch = self.sentences.batch(_flat_rows(self.starts, chosen))
        batch["sentence_counts"] = torch.from_numpy(self.counts[chosen])
        return batch


def encode_documents(
    preparation: TokenPreparation, documents: Iterable[Document], limits: DocumentLimits | None = None
) -> EncodedDocuments:
    """Documents as numbers, in one pass.

    Args:
        preparation: fitted to documents or to sentences: the words are the same.
        limits: how documents are split and cut.

    Raises:
        InputError: a document that is neither text nor a list.
    """
    limits = DocumentLimits() if limits is None else limits
    counts: list[int] = []
    shortened = 0

    def sentences() -> Iterator[Sequence[str]]:
        nonlocal shortened
        for document in documents:
            cut, lost = limits.words_of(preparation, document)
            shortened += lost > 0
            counts.append(len(cut))
            yield from cut

    encoded = preparation.encode(sentences())
    return EncodedDocuments(encoded, np.array(counts, np.int64), shortened)


class NestedSeries:
    """N outer sequences of inner sequences of vectors, as batches of flat inner sequences.

    Args:
        rows: for each of N a sequence of arrays (T_ij, D), all of one width; a one-dimensional array is
            T_ij numbers (D = 1). An outer sequence, and an inner one, may be empty.

    Raises:
        SizeError: widths that differ; names the row.
        InputError: no array at all, or a value that is not finite.

    Cost: one copy in float32.
    """

    def __init__(self, rows: Sequence[Sequence[Any]]):
        self.counts = np.array([len(row) for row in rows], np.int64)
        self.starts = np.append(0, self.counts.cumsum())
        inner = [
            _checked(array, f"row {i}, inner sequence {j}")
            for i, row in enumerate(rows)
            for j, array in enumerate(row)
        ]
        if not inner:
            raise InputError("nested series: there is no inner sequence; expected at least one array (T, D)")
        self.input_size = inner[0].shape[1]
        for array, row in zip(inner, np.repeat(np.arange(len(rows)), self.counts), strict=True):
            if array.shape[1] != self.input_size:
                raise SizeError(
                    f"nested series: row {row} has vectors of width {array.shape[1]}, the first row of "
                    f"{self.input_size}; all must agree"
                )
        self._inner_lengths = np.array([len(array) for array in inner], np.int64)
        self._inner = inner

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): steps of all inner sequences of each."""
        lengths: NDArray[np.int64] = np.diff(np.append(0, self._inner_lengths.cumsum())[self.starts])
        return lengths

    def batch(self, rows: Any) -> Batch:
        """Chosen rows: `x` (S, T, D) of their inner sequences, `lengths` (S,), `sentence_counts` (B,)."""
        chosen = np.asarray(rows, np.int64).reshape(-1)
        flat = _flat_rows(self.starts, chosen)
        lengths = self._inner_lengths[flat]
        x = np.zeros((len(flat), max(int(lengths.max(initial=0)), 1), self.input_size), np.float32)
        for place, row in zip(x, flat, strict=True):
            place[: len(self._inner[row])] = self._inner[row]
        return Batch(
            x=torch.from_numpy(x),
            lengths=torch.from_numpy(lengths),
            sentence_counts=torch.from_numpy(self.counts[chosen]),
        )


def _flat_rows(starts: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all sentences of chosen documents, one document after the other."""
    counts = starts[chosen + 1] - starts[chosen]
    ends = counts.cumsum()
    rows: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
        starts[chosen] - (ends - counts), counts
    )
    return rows


def _checked(array: Any, where: str) -> NDArray[np.float32]:
    values = np.asarray(array, np.float32)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise SizeError(f"nested series: {where} has shape {values.shape}, expected (T, D) or (T,)")
    if not np.isfinite(values).all():
        raise InputError(f"nested series: {where} has a value that is not finite; replace it first")
    return values
