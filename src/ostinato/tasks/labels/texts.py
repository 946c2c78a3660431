"""Texts as a classifier reads them: words and their spelling for the network, n-grams for a linear model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ostinato.data.examples import Examples
from ostinato.data.ngrams import NgramFeatures
from ostinato.data.token_encoding import TokenPreparation
from ostinato.data.word_vectors import WordVectors
from ostinato.models.text_classifier import TextClassifier
from ostinato.models.wide import PENALTIES, WideAndDeep
from ostinato.tasks.labels.beginning import extended, token_rows
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.linear_rows import encode_ngrams, fit_ngrams
from ostinato.tasks.transfer import Moved
from ostinato.types import Batch

# Of a longer text the network reads the first and the last half of so many characters.
MOST_CHARACTERS = 8000
TOKEN_CHARACTERS = 5.0  # of a word and the blank after it, roughly
SPEED_HZ = 15_000.0
USUAL_S = 130.0
RARE_TEXTS = 200  # in fewer texts than this, an n-gram of a single text may say something


@dataclass(frozen=True)
class TextInputs:
    """Texts to tokens and to weighted n-grams.

    Attributes:
        tokens: of the network.
        ngrams: of the linear model beside it.
    """

    folds: ClassVar[bool] = True
    linear_over: ClassVar[str] = "n-grams"
    optimizer: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw"}
    head: ClassVar[str] = "head"

    _network: ClassVar[Callable[..., nn.Module]] = TextClassifier

    tokens: TokenPreparation
    ngrams: NgramFeatures

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """Parameters by the amount of data and, where it is limited, of time."""
        N = len(data)
        epochs = int(np.clip(round(12 * (5000 / max(N, 1)) ** 0.5), 3, 30))
        tokens = total_characters(data.inputs) / (1.0 if settings.unit == "char" else TOKEN_CHARACTERS)
        passes = how_many(tokens * epochs, settings.max_time_s, speed_hz=SPEED_HZ, usual_s=USUAL_S)
        return {
            "cell": "lstm",
            "hidden_size": 128,
            "num_layers": 1,
            "dropout": 0.4,
            "epochs": epochs,
            "batch_size": text_batch_size(N, tokens),
            "learning_rate": 2e-3,
            "weight_decay": 1e-2,
            "members": int(np.clip(passes, 1, 3)),
            "unit": "word",
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """Count the words and n-grams of the training part.

        Raises:
            InputError: no text has a word; DataError: a file of word vectors that cannot be used.
        """
        tokens = fit_tokens(
            map(shortened, learned.inputs), learned, settings, None if old is None else old.tokens
        )
        few = len(learned) < RARE_TEXTS
        return cls(tokens, fit_ngrams(learned.inputs, len(names), min_documents=1 if few else 2))

    def encode(self, inputs: Sequence[str]) -> EncodedTexts:
        """Ready for batches."""
        long = 0

        def cut() -> Iterator[str]:
            nonlocal long
            for text in inputs:
                long += len(text) > MOST_CHARACTERS
                yield shortened(text)

        tokens, notes = self.tokens.encode(cut()), []
        if long:
            notes = [
                f"{long} texts of more than {MOST_CHARACTERS} characters: the network read the first and the "
                "last half of so many (for long documents pass hierarchy=True)"
            ]
        return EncodedTexts(tokens, encode_ngrams(self.ngrams, inputs), notes)

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """The network over the tokens, with a linear model over n-grams beside it."""
        network: Any = type(self)._network(
            self.tokens.sizes,
            output_size,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            dropout=settings.dropout,
        )
        prepare_tokens(network.tokens, self.tokens)
        return WideAndDeep(network, max(len(self.ngrams), 1), output_size)

    def moved(self, old: Self) -> dict[str, Moved]:
        """Tables of the tokens."""
        return token_rows(self.tokens, old.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"tokens": self.tokens.to_json(), "ngrams": self.ngrams.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(TokenPreparation.from_json(stored["tokens"]), NgramFeatures.from_json(stored["ngrams"]))


@dataclass(frozen=True)
class EncodedTexts:
    """N inputs that a network reads as tokens and a linear model as n-grams.

    Attributes:
        tokens: `EncodedTokens`, or `EncodedDocuments`.
        linear: as many rows for the linear model: `NgramRows`, or others with `batch(rows)`.
        notes: what was peculiar about the inputs.
    """

    tokens: Any
    linear: Any
    notes: list[str] = field(default_factory=list)
    penalties: ClassVar[tuple[float, ...]] = PENALTIES

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens."""
        return np.asarray(self.tokens.lengths)

    def batch(self, rows: Any) -> Batch:
        """The fields of the tokens."""
        batch: Batch = self.tokens.batch(np.asarray(rows, np.int64))
        return batch


def fit_tokens(
    items: Iterable[Any],
    learned: Examples,
    settings: Any,
    old: TokenPreparation | None = None,
    **options: Any,
) -> TokenPreparation:
    """The preparation of tokens that the parameters `unit` and `vectors` of a classifier ask for, or an
    extension of `old`."""
    minimum_count = 1 if len(learned) < RARE_TEXTS else 2
    if old is not None:
        return extended(old, items, minimum_count=minimum_count)
    return TokenPreparation.fit(
        list(items) if settings.unit == "bpe" else items,
        unit=settings.unit,
        minimum_count=minimum_count,
        vectors=None if settings.vectors is None else WordVectors(settings.vectors),
        **options,
    )


def prepare_tokens(encoder: Any, tokens: Any) -> None:
    """Tell a new `TokenEncoder` what it takes from the preparation: counts of words, given vectors."""
    encoder.set_word_counts(tokens.word_counts)
    if tokens.vectors is not None:
        encoder.set_vectors(tokens.vectors)


def shortened(text: str) -> str:
    """The first and the last half of `MOST_CHARACTERS` of a longer text."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} {text[-half:]}"


def total_characters(texts: Sequence[str]) -> float:
    """How many characters texts have, as far as a network reads them; judged by 1,000 where they are many."""
    step = max(1, len(texts) // 1000)
    looked = [min(len(texts[i]), MOST_CHARACTERS) for i in range(0, len(texts), step)]
    return float(np.mean(looked)) * len(texts)


def text_batch_size(N: int, tokens: float) -> int:
    """Fewer texts in a batch where they are few or long."""
    by_number = 2 ** round(np.log2(max(N, 1) / 100))
    by_length = 2 ** round(np.log2(6400 / max(tokens / max(N, 1), 1)))
    return int(np.clip(min(by_number, by_length), 8, 32))
