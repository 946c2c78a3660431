"""Texts as a language model reads them: its units for the network, n-grams for a linear model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ostinato.data.corpus_units import END
from ostinato.data.examples import Examples
from ostinato.data.ngrams import NgramFeatures
from ostinato.errors import InputError
from ostinato.models.pretrained_classifier import PretrainedClassifier
from ostinato.models.wide import WideAndDeep
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.linear_rows import encode_ngrams, fit_ngrams
from ostinato.tasks.labels.texts import (
    MOST_CHARACTERS,
    RARE_TEXTS,
    USUAL_S,
    EncodedTexts,
    shortened,
    text_batch_size,
)
from ostinato.tasks.transfer import LanguageSource, Moved
from ostinato.types import Batch

SPEED_HZ = 6_000.0
_OF_THE_RUN = ("cell", "hidden_size", "num_layers", "unit", "vectors")


@dataclass(frozen=True)
class PretrainedInputs:
    """Texts to the units of a language model and to weighted n-grams.

    Attributes:
        source: the language model that `init` names.
        ngrams: of the linear model.
        thaw_steps: optimizer steps after which the next layer learns too.
    """

    folds: ClassVar[bool] = True
    linear_over: ClassVar[str] = "n-grams"
    # What was learned from much text changes less than what begins at nothing (discriminative rates).
    optimizer: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adamw",
        "learning_rate_factors": {"network.language.embedding": 0.1, "network.language.layers": 0.3},
    }
    head: ClassVar[str] = "head.4"

    source: LanguageSource
    ngrams: NgramFeatures
    thaw_steps: int = 0

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """Parameters by the amount of data and of time; sizes are those of the run.

        Raises:
            InputError: a parameter that the run has decided.
        """
        source = LanguageSource.read(settings.init) if old is None else old.source
        for name in _OF_THE_RUN:
            if old is None and getattr(settings, name) is not None:
                raise InputError(
                    f"{name}={getattr(settings, name)!r}: the language model of init decides it; leave it out"
                )
        N = len(data)
        epochs = int(np.clip(round(14 * (5000 / max(N, 1)) ** 0.5), 5, 40))
        step = max(1, N // 200)
        looked = [len(source.units.encode(shortened(data.inputs[i]))) for i in range(0, N, step)]
        units = float(np.mean(looked)) * N
        passes = how_many(units * epochs, settings.max_time_s, speed_hz=SPEED_HZ, usual_s=USUAL_S)
        return {
            "cell": source.sizes["cell"],
            "hidden_size": source.sizes["hidden_size"],
            "num_layers": source.sizes["num_layers"],
            "unit": source.units.unit,
            "dropout": 0.4,
            "epochs": epochs,
            "batch_size": text_batch_size(N, units / (5 if source.units.unit == "char" else 1)),
            "learning_rate": 3e-3,
            "weight_decay": 1e-2,
            "members": int(np.clip(passes, 1, 3)),
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """Read the run, count the n-grams of the training part."""
        source = LanguageSource.read(settings.init) if old is None else old.source
        few = len(learned) < RARE_TEXTS
        ngrams = fit_ngrams(learned.inputs, len(names), min_documents=1 if few else 2)
        steps = math.ceil(len(learned) / settings.batch_size)
        # All parts have joined in after a third of the training.
        parts = source.sizes["num_layers"] + 1
        return cls(source, ngrams, max(1, steps * settings.epochs // (3 * parts)))

    def encode(self, inputs: Sequence[str]) -> EncodedTexts:
        """Ready for batches."""
        units, long = EncodedUnits.of(map(shortened, inputs), self.source), 0
        long = sum(len(text) > MOST_CHARACTERS for text in inputs)
        notes = []
        if long:
            notes.append(
                f"{long} texts of more than {MOST_CHARACTERS} characters: the network read the first and the "
                "last half of so many"
            )
        if units.unknown:
            notes.append(
                f"{units.unknown} of {len(units.ids)} units of the texts are unknown to the language model "
                f"({units.unknown / max(len(units.ids), 1):.1%})"
            )
        return EncodedTexts(units, encode_ngrams(self.ngrams, inputs), notes)

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """The language model's layers with new dense layers, and a linear model over n-grams beside them."""
        half = settings.dropout / 2
        language = self.source.build(
            dropout_in=half, dropout_between=half, weight_drop=half, dropout_out=0.0, word_dropout=half / 4
        )
        network = PretrainedClassifier(
            language, output_size, dropout=settings.dropout, thaw_steps=self.thaw_steps
        )
        return WideAndDeep(network, max(len(self.ngrams), 1), output_size)

    def moved(self, old: Self) -> dict[str, Moved]:
        """Nothing: the units are those of the language model."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"language": self.source.to_json(), "ngrams": self.ngrams.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(LanguageSource.from_json(stored["language"]), NgramFeatures.from_json(stored["ngrams"]))


@dataclass(frozen=True)
class EncodedUnits:
    """N texts as ids, one after the other.

    Attributes:
        ids: of all.
        bounds: (N + 1,) where each begins.
        unknown: how many ids are the unknown unit.
    """

    ids: NDArray[Any]
    bounds: NDArray[np.int64]
    unknown: int

    @classmethod
    def of(cls, texts: Iterable[str], source: LanguageSource) -> EncodedUnits:
        """Each text as a line: after the end of another one, and with its own end."""
        units, pieces = source.units, []
        start = np.array([units.start], units.dtype)
        unknown = 0
        for text in texts:
            ids = units.encode(text.strip().replace("\r\n", END))
            unknown += int((ids == 0).sum())
            pieces.append(np.concatenate([start, ids, start]) if len(ids) else ids)
        bounds = np.cumsum([0, *map(len, pieces)])
        return cls(np.concatenate(pieces) if pieces else start[:0], bounds, unknown)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) units."""
        return np.diff(self.bounds)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """`units` (B, T) and `lengths` (B,)."""
        lengths = self.lengths[rows]
        ids = np.zeros((len(rows), int(lengths.max(initial=1))), np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[place]] = self.ids[self.bounds[row] : self.bounds[row + 1]]
        return Batch(units=torch.from_numpy(ids), lengths=torch.from_numpy(lengths))
