"""Texts as weighted sets of word and character n-grams (tf-idf): what a linear model reads beside a network.

N-grams are told apart by 46 bits of a hash of their characters; a table keeps those that were seen in the
texts of `fit`, so that a model has one weight for each of them and none for what it never saw. Everything
runs over arrays of characters: no n-gram ever becomes a Python string.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.errors import InputError
from ostinato.types import Batch

# Characters that are looked at together, some 150 bytes each, and texts.
_CHUNK, _CHUNK_TEXTS = 1 << 18, 1 << 16
_BITS, _KIND, _DOCUMENT = np.uint64(16), np.uint64(3), np.uint64(0xFFFF)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_START, _END = np.uint64(0x51ED270B76D9A3E5), np.uint64(0x2545F4914F6CDD1D)
KINDS = ("word", "char", "place")
_LONGEST = 64


@dataclass(frozen=True)
class NgramRows:
    """N texts as rows of a sparse matrix.

    Attributes:
        starts: (N + 1,) where each row begins in the other two.
        ids: (n,) columns, 0 … V-1, int32 or int64.
        weights: (n,) float32; the squares of a row's weights sum to 1 for each kind that it has.
    """

    starts: NDArray[np.int64]
    ids: NDArray[np.signedinteger[Any]]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, rows: NDArray[np.intp]) -> Batch:
        """Some rows, one after the other: `ngrams` (n,), `ngram_weights` (n,) and `ngram_counts` (B,)."""
        first, counts = self.starts[rows], np.diff(self.starts)[rows]
        begins = np.cumsum(counts) - counts
        places = np.arange(int(counts.sum())) + np.repeat(first - begins, counts)
        return Batch(
            ngrams=torch.from_numpy(self.ids[places]),
            ngram_weights=torch.from_numpy(self.weights[places]),
            ngram_counts=torch.from_numpy(counts),
        )


@dataclass(frozen=True)
class NgramFeatures:
    """Which n-grams have a column, and how their counts become weights.

    A weight is (1 + log count)·idf, idf = 1 + log((1 + N) / (1 + texts that have it)), and each kind's
    weights are brought to Euclidean length 1 (Salton and Buckley 1988; the constants are scikit-learn's).

    Attributes:
        word: shortest and longest word n-gram, or None. Words are runs of letters and digits, or any other
            single character but blanks; the start and the end of the text count as words in n-grams of two
            and more.
        char: the same for characters, within words and their two neighbouring characters, blanks included.
        place: the same for characters together with the place where they stand, for sequences of a fixed
            length such as windows of DNA.
        is_lowercased: whether case is ignored.
        documents: N.
        hashes: (V,) uint64, rising: 46 bits of the hash, 2 of the kind.
        frequencies: (V,) in how many of the N texts.
    """

    word: tuple[int, int] | None
    char: tuple[int, int] | None
    place: tuple[int, int] | None
    is_lowercased: bool
    documents: int
    hashes: NDArray[np.uint64]
    frequencies: NDArray[np.int64]

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        word: tuple[int, int] | None = (1, 3),
        char: tuple[int, int] | None = (1, 5),
        place: tuple[int, int] | None = None,
        is_lowercased: bool = True,
        min_documents: int = 2,
        max_features: int = 1 << 18,
    ) -> Self:
        """See which n-grams texts have.

        Args:
            texts: read once, a quarter of a million characters at a time.
            word, char, place, is_lowercased: as the attributes.
            min_documents: an n-gram needs a column only if as many texts have it.
            max_features: V at most; the most frequent ones stay.

        Raises:
            InputError: no kind, a range that is none, or no text.

        Cost: about 0.5 µs a character with the defaults; memory for some 8·max_features different n-grams,
        the rarest being forgotten beyond that.
        """
        for kind, span in zip(KINDS, (word, char, place), strict=True):
            _check_span(kind, span)
        if word is None and char is None and place is None:
            raise InputError(f"NgramFeatures: nothing to count; pass a range for one of: {', '.join(KINDS)}")
        empty = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        seen = cls(word, char, place, is_lowercased, 0, *empty)
        tables, waiting, documents = [empty], 0, 0
        for chunk in _chunks(texts):
            ngrams, _ = _counted(seen._keys(chunk))
            tables.append(_tallied(ngrams >> _BITS, np.ones(len(ngrams), np.int64)))
            documents += len(chunk)
            waiting += len(tables[-1][0])
            # Merged when the new ones are as many as the old, which costs a few passes in all.
            if waiting > len(tables[0][0]):
                tables, waiting = [_merged(tables, 4 * max_features)], 0
        if documents == 0:
            raise InputError("NgramFeatures.fit: there is no text; expected at least one")
        hashes, frequencies = _merged(tables, 4 * max_features)
        enough = frequencies >= min(min_documents, documents)
        hashes, frequencies = _most_frequent(hashes[enough], frequencies[enough], max_features)
        return cls(word, char, place, is_lowercased, documents, hashes, frequencies)

    def __len__(self) -> int:
        """V."""
        return len(self.hashes)

    def encode(self, texts: Iterable[str]) -> NgramRows:
        """Texts as rows; a text without any known n-gram is an empty row.

        Cost: as `fit`; 8 bytes for each different n-gram of each text.
        """
        counts, ids, weights = [np.zeros(1, np.int64)], [], []
        for chunk in _chunks(texts):
            count, columns, values = self._encode(chunk)
            counts.append(count)
            ids.append(columns)
            weights.append(values)
        starts = np.concatenate(counts).cumsum()
        if not ids:
            return NgramRows(starts, np.zeros(0, np.int32), np.zeros(0, np.float32))
        return NgramRows(starts, np.concatenate(ids), np.concatenate(weights))

    def _encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], ...]:
        keys, counts = _counted(self._keys(texts))
        ngrams = keys >> _BITS
        # Looked up once for each different one, in rising order.
        heads = np.flatnonzero(_changes(ngrams))
        places = np.searchsorted(self.hashes, ngrams[heads])
        columns = np.repeat(places, np.diff(np.append(heads, len(ngrams))))
        known = columns < len(self)
        known[known] = self.hashes[columns[known]] == ngrams[known]
        columns, kinds = columns[known], (ngrams[known] & _KIND).astype(np.int64)
        documents = (keys[known] & _DOCUMENT).astype(np.uint16)
        idf = 1 + np.log((1 + self.documents) / (1 + self.frequencies[columns]))
        values = (1 + np.log(counts[known])) * idf
        blocks = documents.astype(np.int64) * len(KINDS) + kinds
        squares = np.bincount(blocks, values**2, len(texts) * len(KINDS))
        values /= np.sqrt(squares)[blocks]
        order = np.argsort(documents, kind="stable")
        per_text = np.bincount(documents, minlength=len(texts))
        return per_text, columns[order].astype(np.int32), values[order].astype(np.float32)

    def _keys(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """Every occurrence of every n-gram: 46 bits of its hash, 2 of its kind, 16 of the text's number."""
        found = [np.zeros(0, np.uint64)]
        text = _Characters.of(texts, self.is_lowercased)
        spans = (self.word, self.char, self.place)
        ngrams = (_word_ngrams, _char_ngrams, _placed_ngrams)
        for kind, (span, of_kind) in enumerate(zip(spans, ngrams, strict=True)):
            for n, hashes, documents in of_kind(text, *span) if span is not None else ():
                salt = _mixed(np.array([kind * _LONGEST + n], np.uint64))
                keys = _mixed(hashes ^ salt) & ~(_KIND << _BITS | _DOCUMENT)
                found.append(keys | np.uint64(kind) << _BITS | documents.astype(np.uint64))
        return np.concatenate(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the table as base64 of little-endian integers, of 8 bytes (hashes) and of 4."""
        return {
            "word": self.word and list(self.word),
            "char": self.char and list(self.char),
            "place": self.place and list(self.place),
            "is_lowercased": self.is_lowercased,
            "documents": self.documents,
            "hashes": _to_base64(self.hashes.astype("<u8")),
            "frequencies": _to_base64(np.minimum(self.frequencies, 2**32 - 1).astype("<u4")),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        spans = {kind: stored[kind] and (int(stored[kind][0]), int(stored[kind][1])) for kind in KINDS}
        return cls(
            **spans,
            is_lowercased=bool(stored["is_lowercased"]),
            documents=int(stored["documents"]),
            hashes=np.frombuffer(base64.b64decode(stored["hashes"]), "<u8").astype(np.uint64),
            frequencies=np.frombuffer(base64.b64decode(stored["frequencies"]), "<u4").astype(np.int64),
        )


@dataclass(frozen=True)
class _Characters:
    """Texts one after the other, each with a blank at both ends and no two blanks together.

    Attributes:
        codes: (n,) code points.
        hashes: (n,) uint64, of each character.
        documents: (n,) the text of each character.
    """

    codes: NDArray[np.uint32]
    hashes: NDArray[np.uint64]
    documents: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], is_lowercased: bool) -> _Characters:
        plain = [f" {' '.join((text.lower() if is_lowercased else text).split())} " for text in texts]
        codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)
        documents = np.repeat(np.arange(len(plain)), [len(text) for text in plain])
        return cls(codes, _mixed(codes.astype(np.uint64)), documents)

    @property
    def is_blank(self) -> NDArray[np.bool_]:
        """(n,)."""
        return self.codes == 0x20

    def is_word(self) -> NDArray[np.bool_]:
        """Which characters are letters, digits or underscores."""
        different, inverse = np.unique(self.codes, return_inverse=True)
        flags = np.array([chr(code).isalnum() or code == 0x5F for code in different.tolist()], np.bool_)
        return flags[inverse]


Found = Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]


def _word_ngrams(text: _Characters, shortest: int, longest: int) -> Found:
    """Of words, with the start and the end of the text as words in those of two and more."""
    is_word, inside = text.is_word(), ~text.is_blank
    begins = inside & ~(is_word & np.append(False, is_word[:-1]))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return
    token = begins.cumsum()[inside] - 1
    place = np.flatnonzero(inside) - starts[token]
    powers = np.cumprod(np.full(int(place.max()) + 1, _FACTOR))
    firsts = np.flatnonzero(begins[inside])
    words = _mixed(np.add.reduceat(text.hashes[inside] * powers[place], firsts))
    documents = text.documents[starts]
    if shortest == 1:
        yield 1, words, documents
    if longest == 1:
        return
    different = np.unique(documents)
    ends = np.full(len(different), _START), np.full(len(different), _END)
    owners = np.concatenate([different, documents, different])
    order = np.argsort(owners, kind="stable")
    words, owners = np.concatenate([ends[0], words, ends[1]])[order], owners[order]
    for n, hashes, first in _runs(words, owners, max(shortest, 2), longest):
        yield n, hashes, owners[first]


def _char_ngrams(text: _Characters, shortest: int, longest: int) -> Found:
    """Of characters, reaching no farther than from the blank before a word to the one after it."""
    blank = text.is_blank
    before = np.append(0, blank.cumsum())
    for n, hashes, first in _runs(text.hashes, text.documents, shortest, longest):
        blanks_inside = before[first + n - 1] - before[first + 1] if n > 1 else blank[first]
        kept = (blanks_inside == 0) & ~((n == 2) & blank[first] & blank[first + n - 1])
        yield n, hashes[kept], text.documents[first[kept]]


def _placed_ngrams(text: _Characters, shortest: int, longest: int) -> Found:
    """Of characters but blanks, each with its place in the text."""
    inside = ~text.is_blank
    codes, documents = text.hashes[inside], text.documents[inside]
    is_first = np.append(True, documents[1:] != documents[:-1])[: len(documents)]
    place = np.arange(len(documents)) - np.flatnonzero(is_first)[is_first.cumsum() - 1]
    for n, hashes, first in _runs(codes, documents, shortest, longest):
        yield n, hashes ^ _mixed(place[first].astype(np.uint64)), documents[first]


def _runs(
    units: NDArray[np.uint64], documents: NDArray[np.int64], shortest: int, longest: int
) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]:
    """Hashes of all runs of n units within one text, and where each run begins."""
    rolling = units
    for n in range(1, longest + 1):
        last = len(units) - n + 1
        if last <= 0:
            return
        if n > 1:
            rolling = rolling[:last] * _FACTOR + units[n - 1 :]
        if n >= shortest:
            first = np.flatnonzero(documents[:last] == documents[n - 1 :])
            yield n, rolling[first], first


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words with good avalanche: the finaliser of SplitMix64 (Steele et al. 2014)."""
    words = words + _FACTOR
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed


def _counted(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The different keys, rising, and how often each occurs; `keys` is sorted in place."""
    keys.sort()
    heads = np.flatnonzero(_changes(keys))
    return keys[heads], np.diff(np.append(heads, len(keys)))


def _changes(rising: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Where a value differs from the one before it."""
    changes = np.ones(len(rising), np.bool_)
    changes[1:] = rising[1:] != rising[:-1]
    return changes


Table = tuple[NDArray[np.uint64], NDArray[np.int64]]


def _tallied(rising: NDArray[np.uint64], counts: NDArray[np.int64]) -> Table:
    """The different hashes and the sum of the counts of each."""
    if not len(rising):
        return rising, counts
    heads = np.flatnonzero(_changes(rising))
    return rising[heads], np.add.reduceat(counts, heads)


def _merged(tables: Sequence[Table], most: int) -> Table:
    """One table of all, of the most frequent ones only where these are too many."""
    hashes = np.concatenate([table[0] for table in tables])
    order = np.argsort(hashes, kind="stable")
    counts = np.concatenate([table[1] for table in tables])
    return _most_frequent(*_tallied(hashes[order], counts[order]), most)


def _most_frequent(hashes: NDArray[np.uint64], frequencies: NDArray[np.int64], most: int) -> Table:
    """At most so many, still in the order of their hashes, which also decides between equals."""
    if len(hashes) <= most:
        return hashes, frequencies
    kept = np.sort(np.argsort(-frequencies, kind="stable")[:most])
    return hashes[kept], frequencies[kept]


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text) + 2
        if size >= _CHUNK or len(chunk) == _CHUNK_TEXTS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _check_span(kind: str, span: Any) -> None:
    if span is None:
        return
    is_pair = isinstance(span, tuple | list) and len(span) == 2
    if not (is_pair and all(isinstance(n, int) for n in span) and 1 <= span[0] <= span[1] < _LONGEST):
        raise InputError(
            f"NgramFeatures: {kind}={span!r}, expected (shortest, longest) with 1 ≤ shortest ≤ longest < "
            f"{_LONGEST}, or None"
        )


def _to_base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
