"""Rows of letters, such as DNA, as a classifier reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ostinato.data.examples import Examples
from ostinato.data.ngrams import NgramFeatures
from ostinato.errors import DataError
from ostinato.models.letter_classifier import LetterClassifier
from ostinato.models.wide import WideAndDeep
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.linear_rows import encode_ngrams, fit_ngrams
from ostinato.tasks.labels.scores import NAMED
from ostinato.tasks.labels.texts import RARE_TEXTS, EncodedTexts
from ostinato.tasks.transfer import MEAN, Moved, places
from ostinato.types import Batch

MOST_PLACES = 1024
# Steps that a recurrent network reads well and quickly, and letters that may become one of them.
LONGEST, MOST_AT_ONCE = 512, 16
KEPT_LETTERS = 1 << 26
SPEED_HZ = 60_000.0
USUAL_S = 240.0


@dataclass(frozen=True)
class LetterInputs:
    """Rows of letters to their numbers in an alphabet. Upper and lower case are one letter.

    Attributes:
        alphabet: letters that the training part has, in order; any other is the unknown one.
        places: the length that all rows of the training part have, up to 1,024; else 0.
        stride: letters that are read at once, several where rows are long.
        ngrams: of the linear model: letters in a row, each with its place where there are places.
    """

    folds: ClassVar[bool] = True
    linear_over: ClassVar[str] = "runs of letters"
    optimizer: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw"}
    head: ClassVar[str] = "body.head"

    alphabet: str
    places: int
    stride: int
    ngrams: NgramFeatures

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """Parameters by the amount of data and, where it is limited, of time."""
        N = len(data)
        lengths = np.array([len(one) for one in data.inputs])
        steps = float((lengths / (_stride(lengths) if old is None else old.stride)).sum())
        epochs = int(np.clip(12 * 3000 / max(N, 1), 8, 40))
        passes = how_many(steps * epochs, settings.max_time_s, speed_hz=SPEED_HZ, usual_s=USUAL_S)
        return {
            "cell": "gru",
            "hidden_size": 64,
            "num_layers": 1,
            "dropout": 0.3,
            "epochs": epochs,
            "batch_size": int(np.clip(2 ** round(np.log2(max(N, 1) / 40)), 8, 64)),
            "learning_rate": 3e-3,
            "weight_decay": 1e-2,
            "members": int(np.clip(passes, 1, 3)),
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """Count the letters of the training part.

        Raises:
            DataError: there is none.
        """
        counts: Counter[str] = Counter()
        lengths = []
        for one in learned.inputs:
            counts.update(one.upper())
            lengths.append(len(one))
        if not counts:
            raise DataError("the training part has no letter at all", path=learned.source or None)
        places = lengths[0] if len(set(lengths)) == 1 and lengths[0] <= MOST_PLACES else 0
        ngrams = fit_ngrams(
            learned.inputs,
            len(names),
            word=None,
            char=None if places else (1, 6),
            place=(1, 4) if places else None,
            min_documents=1 if len(learned) < RARE_TEXTS else 3,
        )
        if old is not None:
            return cls("".join(sorted({*counts, *old.alphabet})), old.places, old.stride, ngrams)
        return cls("".join(sorted(counts)), places, _stride(np.array(lengths)), ngrams)

    def encode(self, inputs: Sequence[str]) -> EncodedTexts:
        """Ready for batches."""
        unknown: Counter[str] = Counter()
        for one in inputs:
            for letter in set(one.upper()).difference(self.alphabet):
                unknown[letter] += one.upper().count(letter)
        notes = []
        if unknown:
            named = ", ".join(f"{letter!r} ({n})" for letter, n in unknown.most_common(NAMED))
            notes = [
                f"{sum(unknown.values())} letters are none that the training part had: {named}"
                + (f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else "")
            ]
        return EncodedTexts(EncodedLetters(self.alphabet, inputs), encode_ngrams(self.ngrams, inputs), notes)

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """A `LetterClassifier`, with a linear model over n-grams beside it."""
        network = LetterClassifier(
            len(self.alphabet),
            output_size,
            places=self.places,
            stride=self.stride,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            dropout=settings.dropout,
        )
        return WideAndDeep(network, max(len(self.ngrams), 1), output_size)

    def moved(self, old: Self) -> dict[str, Moved]:
        """The letters' vectors; a new one begins as the mean of all, which the unknown letter is."""
        return {"embedding": Moved(places(self.alphabet, old.alphabet, MEAN))}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "alphabet": self.alphabet,
            "places": self.places,
            "stride": self.stride,
            "ngrams": self.ngrams.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        ngrams = NgramFeatures.from_json(stored["ngrams"])
        return cls(str(stored["alphabet"]), int(stored["places"]), int(stored["stride"]), ngrams)


class EncodedLetters:
    """Rows of letters as batches; of a small set their numbers are kept, of a large one made when needed."""

    def __init__(self, alphabet: str, inputs: Sequence[str]):
        self._codes = _code_points(alphabet)
        self._inputs = inputs
        self.lengths = np.array([len(one.upper()) for one in inputs], np.int64)
        kept = self.lengths.sum() <= KEPT_LETTERS
        self._rows = [self._numbers(one) for one in inputs] if kept else None

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Any) -> Batch:
        """`letters` (B, T), and `lengths` (B,) where they differ."""
        chosen = np.asarray(rows, np.int64)
        lengths = self.lengths[chosen]
        T = max(int(lengths.max()), 1)
        letters = np.zeros((len(chosen), T), np.int64)
        for i, row in enumerate(chosen.tolist()):
            letters[i, : lengths[i]] = (
                self._numbers(self._inputs[row]) if self._rows is None else self._rows[row]
            )
        batch = Batch(letters=torch.from_numpy(letters))
        if (lengths < T).any():
            batch["lengths"] = torch.from_numpy(lengths)
        return batch

    def _numbers(self, one: str) -> NDArray[np.int32]:
        """Places in the alphabet, its size for a letter that is not in it."""
        V = len(self._codes)
        codes = _code_points(one.upper())
        places = np.minimum(np.searchsorted(self._codes, codes), V - 1)
        return np.where(self._codes[places] == codes, places, V).astype(np.int32)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)


def _stride(lengths: NDArray[np.int64]) -> int:
    typical = float(np.quantile(lengths, 0.9)) if len(lengths) else 1.0
    return int(np.clip(np.ceil(typical / LONGEST), 1, MOST_AT_ONCE))
