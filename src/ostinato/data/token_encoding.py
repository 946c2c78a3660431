"""`TokenPreparation`: from sentences to numbers, fitted on the training part and the same in prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ostinato.data.byte_pairs import BytePairs
from ostinato.data.encoded_tokens import EncodedTokens
from ostinato.data.examples import Sentence, Tree
from ostinato.data.ragged import DEFAULT_BUDGET_BYTES, RaggedRows
from ostinato.data.tokens import affixes, normalised, shape, split_words
from ostinato.data.vocabulary import UNKNOWN, Vocabulary
from ostinato.data.word_vectors import WordVectors
from ostinato.errors import InputError, RunFolderError

FORMAT = 1
UNITS = ("word", "char", "bpe")
MAX_CHARACTERS = 32
"""Of a longer word the first and the last half of this many characters are seen."""
PREFIXES, SUFFIXES = (2, 3), (1, 2, 3)
Item: TypeAlias = str | Sentence | Tree | Sequence[str]
"""A text, which is split into units; or tokens as they are."""


class TokenPreparation:
    """How texts or sentences become numbers: units, vocabularies, spellings, shapes, further columns.

    Made by `fit` or `from_json`. A word's id ignores case and digits (`tokens.normalised`); its characters
    and its shape are those of the spelling in the text.

    Attributes:
        unit: what a text is split into: `word`, `char` (code points) or `bpe`.
        words: the vocabulary of normalised words, or of the units.
        characters: that of the characters of words; None where words are not spelled.
        shapes: those of beginnings, ends and shapes of words; empty where they are not looked at.
        columns: by name, those of further columns.
        vector_words: words that training did not have but the given vectors do; their ids follow those of
            `words`.
        vectors: (V + extra, width) float32 right after `fit` with word vectors; None after `from_json`: the
            network stores them.
    """

    def __init__(
        self,
        words: Vocabulary,
        *,
        unit: str = "word",
        lowercase: bool = True,
        characters: Vocabulary | None = None,
        shapes: Sequence[Vocabulary] = (),
        columns: Mapping[str, Vocabulary] | None = None,
        byte_pairs: BytePairs | None = None,
        vector_words: Sequence[str] = (),
        vector_size: int = 0,
    ):
        self.words, self.unit, self.lowercase = words, unit, lowercase
        self.characters, self.shapes, self.columns = characters, tuple(shapes), dict(columns or {})
        self.byte_pairs = byte_pairs
        self.vector_words, self.vector_size = tuple(vector_words), vector_size
        self.vectors: NDArray[np.float32] | None = None
        self._vector_ids = {word: number for number, word in enumerate(self.vector_words, len(words))}

    @classmethod
    def fit(
        cls,
        items: Iterable[Item],
        *,
        unit: str = "word",
        lowercase: bool = True,
        columns: Sequence[str] = (),
        characters: bool = True,
        shapes: bool = True,
        minimum_count: int = 1,
        maximum_size: int | None = None,
        vectors: WordVectors | None = None,
    ) -> TokenPreparation:
        """Count the training part.

        Args:
            items: texts (str), which are split into units, or tokens (`Sentence`, `Tree`, lists of words).
                One pass, two with `bpe`.
            unit: `word`, `char` or `bpe` for texts; tokens are words.
            lowercase: words that differ in case alone share an id. With `char` and `bpe` case is always kept.
            columns: names of further columns of the sentences that the network shall see.
            characters: whether words are also spelled.
            shapes: whether beginnings, ends and shapes of words are looked at.
            minimum_count: rarer words are unknown.
            maximum_size: the most words, 100,000 by default, or byte pairs, 8,000 by default.
            vectors: word vectors, which are read now.

        Raises:
            InputError: an unknown unit, tokens with another unit than `word`, no token at all, a column that
                a sentence lacks.
            MissingExtraError: `bpe` without the library `tokenizers`.
            DataError: the file of the vectors is wrong; names the line.

        Cost: memory for each *different* word, whatever the length of the corpus; about 1 µs a token.
        """
        if unit not in UNITS:
            raise InputError(f"TokenPreparation: unit={unit!r} is unknown; known: {', '.join(UNITS)}")
        byte_pairs = None
        if unit == "bpe":
            if iter(items) is items:
                raise InputError(
                    "TokenPreparation: byte pairs need two passes; give a sequence, not an iterator"
                )
            byte_pairs = BytePairs.train(
                (_text(item, unit) for item in items), 8000 if maximum_size is None else maximum_size
            )
        split = _splitter(unit, byte_pairs)
        counts: Counter[str] = Counter()
        values: dict[str, Counter[str]] = {name: Counter() for name in columns}
        for item in items:
            counts.update(_tokens(item, unit, split))
            for name, counter in values.items():
                counter.update(_column(item, name))
        if not counts:
            raise InputError("TokenPreparation: the training part has no token at all; give texts with words")
        is_word = unit == "word"
        words = Counter[str]()
        for token, count in counts.items():
            words[normalised(token, lowercase=lowercase) if is_word else token] += count
        preparation = cls(
            Vocabulary.fit(
                words,
                minimum_count=minimum_count,
                maximum_size=100_000 if maximum_size is None else maximum_size,
            ),
            unit=unit,
            lowercase=lowercase,
            characters=_count_characters(counts) if is_word and characters else None,
            shapes=_count_shapes(counts) if is_word and shapes else (),
            columns={name: Vocabulary.fit(counter) for name, counter in values.items()},
            byte_pairs=byte_pairs,
        )
        return preparation if vectors is None else preparation._with_vectors(vectors)

    def _with_vectors(self, vectors: WordVectors) -> TokenPreparation:
        matrix, extra = vectors.read(self.words, self._normalise)
        made = TokenPreparation(
            self.words,
            unit=self.unit,
            lowercase=self.lowercase,
            characters=self.characters,
            shapes=self.shapes,
            columns=self.columns,
            byte_pairs=self.byte_pairs,
            vector_words=extra,
            vector_size=matrix.shape[1],
        )
        made.vectors = matrix
        return made

    @property
    def sizes(self) -> dict[str, Any]:
        """What `TokenEncoder` is built from, plain numbers: `words` V; `vectors` [rows, width] or [0, 0];
        `characters`, 0 where there are none; `shapes` and `columns`, one number for each vocabulary."""
        rows = len(self.words) + len(self.vector_words) if self.vector_size else 0
        return {
            "words": len(self.words),
            "vectors": [rows, self.vector_size],
            "characters": len(self.characters) if self.characters else 0,
            "shapes": [len(vocabulary) for vocabulary in self.shapes],
            "columns": [len(vocabulary) for vocabulary in self.columns.values()],
        }

    @property
    def word_counts(self) -> NDArray[np.int64]:
        """(V,): how often training had each word: what `TokenEncoder` drops words by."""
        return self.words.counts

    def split(self, item: Item) -> Sequence[str]:
        """The units of a text, or the tokens as they are."""
        return _tokens(item, self.unit, _splitter(self.unit, self.byte_pairs))

    def encode(self, items: Iterable[Item], *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> EncodedTokens:
        """Numbers of texts or sentences, in one pass.

        Args:
            items: of the kind that `fit` had.
            budget_bytes: what the numbers of the tokens may take in memory, 4 bytes a token and column;
                beyond it they lie in a temporary file.

        Raises:
            InputError: a column that a sentence lacks.

        Cost: a look-up for each token, and about 8 µs for each word that differs from all before it.
        """
        split = _splitter(self.unit, self.byte_pairs)
        rows, kinds = RaggedRows(budget_bytes), _Kinds()
        columns = {name: RaggedRows(budget_bytes) for name in self.columns}
        for item in items:
            rows.append([kinds[token] for token in _tokens(item, self.unit, split)])
            for name, column in columns.items():
                column.append(self.columns[name].ids(_column(item, name)))
        return EncodedTokens(rows, list(columns.values()), *self._features(kinds))

    def _features(
        self, kinds: _Kinds
    ) -> tuple[NDArray[np.int64], RaggedRows | None, NDArray[np.int64] | None]:
        """Word ids, characters and shapes of each different spelling; the first is that of the padding."""
        words = np.zeros(len(kinds) + 1, np.int64)
        words[1:] = [self._word_id(token) for token in kinds]
        spellings = shapes = None
        if self.characters is not None:
            spellings = RaggedRows()
            spellings.append(())
            for token in kinds:
                spellings.append(self.characters.ids(_shortened(token)))
        if self.shapes:
            shapes = np.zeros((len(kinds) + 1, len(self.shapes)), np.int64)
            for number, token in enumerate(kinds, 1):
                named = _shape_features(token)
                shapes[number] = [v.id(feature) for v, feature in zip(self.shapes, named, strict=True)]
        return words, spellings, shapes

    def _normalise(self, token: str) -> str:
        return normalised(token, lowercase=self.lowercase) if self.unit == "word" else token

    def _word_id(self, token: str) -> int:
        word = self._normalise(token)
        number = self.words.id(word)
        return self._vector_ids.get(word, UNKNOWN) if number == UNKNOWN else number

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        return {
            "format": FORMAT,
            "unit": self.unit,
            "lowercase": self.lowercase,
            "words": self.words.to_json(),
            "characters": self.characters.to_json() if self.characters else None,
            "shapes": [vocabulary.to_json() for vocabulary in self.shapes],
            "columns": {name: vocabulary.to_json() for name, vocabulary in self.columns.items()},
            "byte_pairs": self.byte_pairs.to_json() if self.byte_pairs else None,
            "vector_words": list(self.vector_words),
            "vector_size": self.vector_size,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TokenPreparation:
        """The preparation that `to_json` wrote: it gives the same numbers.

        Raises:
            RunFolderError: values that are damaged or of a newer version.
            MissingExtraError: byte pairs without the library `tokenizers`.
        """
        if not isinstance(stored, Mapping) or not isinstance(stored.get("format"), int):
            raise RunFolderError("a stored preparation of tokens has no format; restore the run folder")
        if stored["format"] > FORMAT:
            raise RunFolderError(
                f"the preparation of tokens has format {stored['format']}, newer than {FORMAT}, the newest "
                "known here; upgrade"
            )
        try:
            characters, byte_pairs = stored["characters"], stored["byte_pairs"]
            return cls(
                Vocabulary.from_json(stored["words"]),
                unit=str(stored["unit"]),
                lowercase=bool(stored["lowercase"]),
                characters=None if characters is None else Vocabulary.from_json(characters),
                shapes=[Vocabulary.from_json(one) for one in stored["shapes"]],
                columns={name: Vocabulary.from_json(one) for name, one in stored["columns"].items()},
                byte_pairs=None if byte_pairs is None else BytePairs.from_json(byte_pairs),
                vector_words=stored["vector_words"],
                vector_size=int(stored["vector_size"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise RunFolderError(
                f"a stored preparation of tokens is damaged: {error!r}; restore the run folder"
            ) from error


class _Kinds(dict[str, int]):
    """Numbers the different tokens, from 1 on, as they are asked for."""

    def __missing__(self, token: str) -> int:
        number = self[token] = len(self) + 1
        return number


def _splitter(unit: str, byte_pairs: BytePairs | None) -> Callable[[str], list[str]]:
    if unit == "bpe" and byte_pairs is not None:
        return byte_pairs.split
    return list if unit == "char" else split_words


def _text(item: Item, unit: str) -> str:
    if not isinstance(item, str):
        raise InputError(
            f"TokenPreparation: unit={unit!r} splits texts, found tokens ({type(item).__name__}); tokens are "
            "words: leave unit at 'word', or give the texts"
        )
    return item


def _tokens(item: Item, unit: str, split: Callable[[str], list[str]]) -> Sequence[str]:
    if isinstance(item, str):
        return split(item)
    if unit != "word":
        _text(item, unit)
    return item.tokens if isinstance(item, Sentence | Tree) else item


def _column(item: Item, name: str) -> Sequence[str]:
    known: Mapping[str, Sequence[str]] = item.columns if isinstance(item, Sentence) else {}
    if name not in known:
        found = ", ".join(map(repr, known)) or "none"
        raise InputError(
            f"TokenPreparation: a sentence has no column {name!r}; its columns: {found}; give the columns "
            "that were learned from (Sentence(tokens, columns)), or learn without them (features='none')"
        )
    return known[name]


def _shortened(token: str) -> str:
    half = MAX_CHARACTERS // 2
    return token if len(token) <= MAX_CHARACTERS else token[:half] + token[-half:]


def _shape_features(token: str) -> list[str]:
    return [*affixes(normalised(token), PREFIXES, SUFFIXES), shape(token)]


def _count_characters(tokens: Iterable[str]) -> Vocabulary:
    """Characters of at least two different words; rarer ones train what stands for the unknown."""
    counts: Counter[str] = Counter()
    for token in tokens:
        counts.update(set(_shortened(token)))
    return Vocabulary.fit(counts, minimum_count=2)


def _count_shapes(tokens: Iterable[str]) -> list[Vocabulary]:
    """Beginnings, ends and shapes of at least two different words."""
    counts: list[Counter[str]] = [Counter() for _ in range(len(PREFIXES) + len(SUFFIXES) + 1)]
    for token in tokens:
        for counter, feature in zip(counts, _shape_features(token), strict=True):
            counter[feature] += 1
    return [Vocabulary.fit(counter, minimum_count=2) for counter in counts]
