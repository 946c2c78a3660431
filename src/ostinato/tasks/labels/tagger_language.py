"""Tokens as a language model reads them, beside what a tagger knows of them by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.encoded_tokens import EncodedTokens
from ostinato.data.examples import Sentence
from ostinato.data.ragged import RaggedRows
from ostinato.data.token_encoding import TokenPreparation
from ostinato.data.word_vectors import WordVectors
from ostinato.models.language import LanguageNetwork
from ostinato.tasks.labels.beginning import extended, token_rows
from ostinato.tasks.transfer import LanguageSource, Moved
from ostinato.types import Batch

DROPOUT = 0.2
RATES = {"language": 0.2}
"""What was learned from much text changes less than what begins at nothing."""


@dataclass(frozen=True)
class LanguageTokens:
    """A `TokenPreparation`, and the units of a language model, as one preparation of tokens.

    Attributes:
        tokens: of the tagger.
        source: the language model that `init` names.
    """

    tokens: TokenPreparation
    source: LanguageSource

    @property
    def sizes(self) -> dict[str, Any]:
        """Of the tagger's own tokens."""
        return dict(self.tokens.sizes)

    @property
    def columns(self) -> Any:
        """Further columns and what they held."""
        return self.tokens.columns

    @property
    def word_counts(self) -> Any:
        """Of the tagger's own words."""
        return self.tokens.word_counts

    @property
    def vectors(self) -> Any:
        """Of words, where a file of them was given."""
        return self.tokens.vectors

    def network(self) -> LanguageNetwork:
        """The language model's layers, with their weights where these are known."""
        return self.source.build(dropout_in=DROPOUT, dropout_between=DROPOUT, weight_drop=DROPOUT)

    def encode(self, sentences: Iterable[Sentence]) -> EncodedWithUnits:
        """Both, in one pass over the sentences."""
        units, ends = RaggedRows(), RaggedRows()

        def watched() -> Iterator[Sentence]:
            for one in sentences:
                row, last = self._units(one)
                units.append(row)
                ends.append(last)
                yield one

        return EncodedWithUnits(self.tokens.encode(watched()), units, ends)

    def _units(self, sentence: Sentence) -> tuple[list[int], list[int]]:
        """A sentence as a line of text, and where in it each token ends."""
        units = self.source.units
        row, ends = [units.start], []
        for token in sentence.tokens:
            # Of characters a blank follows, as in text; words and byte pairs have theirs in them.
            row.extend(units.encode(token).astype(np.int64).tolist())
            ends.append(len(row) - 1)
            if units.unit == "char":
                row.extend(units.encode(" ").astype(np.int64).tolist())
        return row, ends

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.tokens.to_json(), "language": self.source.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        own = {name: value for name, value in stored.items() if name != "language"}
        return cls(TokenPreparation.from_json(own), LanguageSource.from_json(stored["language"]))


@dataclass(frozen=True)
class EncodedWithUnits:
    """N sentences as tokens, and as units of a language model.

    Attributes:
        tokens: as a tagger takes them.
        units: N rows of ids; ends: for each token the place of its last unit.
    """

    tokens: EncodedTokens
    units: RaggedRows
    ends: RaggedRows

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens."""
        return self.tokens.lengths

    def batch(self, rows: Any) -> Batch:
        """That of the tokens, with `units` (B, U), `unit_lengths` (B,) and `unit_ends` (B, T)."""
        chosen = np.asarray(rows, np.int64).reshape(-1)
        batch = self.tokens.batch(chosen)
        offsets = self.units.offsets
        batch["units"] = torch.from_numpy(self.units.padded(chosen, least=1))
        batch["unit_lengths"] = torch.from_numpy(offsets[chosen + 1] - offsets[chosen])
        batch["unit_ends"] = torch.from_numpy(self.ends.padded(chosen, least=1))
        return batch


def fit_preparation(
    sentences: Sequence[Sentence],
    columns: Sequence[str],
    vectors: str | Path | None,
    init: str | Path | None,
    old: TokenPreparation | LanguageTokens | None = None,
) -> TokenPreparation | LanguageTokens:
    """The preparation of a tagger's tokens.

    Args:
        sentences: of the training part.
        columns: further ones to learn from.
        vectors: a file of word vectors.
        init: the run of a language model to read them by too.
        old: of the tagger in `init` instead: what it reads, and further words and values of columns.
    """
    if isinstance(old, LanguageTokens):
        return replace(old, tokens=extended(old.tokens, sentences))
    if old is not None:
        return extended(old, sentences)
    given = None if vectors is None else WordVectors(vectors)
    tokens = TokenPreparation.fit(sentences, columns=columns, vectors=given)
    return tokens if init is None else LanguageTokens(tokens, LanguageSource.read(init))


def moved_tokens(
    new: TokenPreparation | LanguageTokens, old: TokenPreparation | LanguageTokens
) -> dict[str, Moved]:
    """Where the rows of a tagger's tables of tokens come from; `new` was fitted from `old`."""
    return token_rows(_own_tokens(new), _own_tokens(old))


def _own_tokens(preparation: TokenPreparation | LanguageTokens) -> TokenPreparation:
    return preparation.tokens if isinstance(preparation, LanguageTokens) else preparation


def language_network(preparation: TokenPreparation | LanguageTokens) -> LanguageNetwork | None:
    """The language model's layers, where there is one."""
    return preparation.network() if isinstance(preparation, LanguageTokens) else None


def token_preparation(stored: Mapping[str, Any]) -> TokenPreparation | LanguageTokens:
    """The preparation that a run stored, with a language model or without."""
    return LanguageTokens.from_json(stored) if "language" in stored else TokenPreparation.from_json(stored)
