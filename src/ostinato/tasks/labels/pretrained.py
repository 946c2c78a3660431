"""Texts as a language model reads them, beside words and n-grams: its units for the network, and what it
makes of whole texts without learning for a linear model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ostinato.data.corpus_units import END
from ostinato.data.encoded_tokens import EncodedTokens
from ostinato.data.examples import Examples
from ostinato.data.ngrams import NgramFeatures
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError
from ostinato.models.pretrained_classifier import PretrainedClassifier
from ostinato.models.text_classifier import TextClassifier
from ostinato.models.wide import WideAndDeep
from ostinato.tasks.labels.beginning import token_rows
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.linear_rows import encode_ngrams, fit_ngrams
from ostinato.tasks.labels.probes import ProbedRows, Probes
from ostinato.tasks.labels.texts import (
    MOST_CHARACTERS,
    RARE_TEXTS,
    USUAL_S,
    EncodedTexts,
    fit_tokens,
    prepare_tokens,
    shortened,
    text_batch_size,
)
from ostinato.tasks.transfer import LanguageSource, Moved
from ostinato.types import Batch

SPEED_HZ = 5_000.0
OWN_SIZE = 128
"""H of the network over words, as where no language model is there."""
_OF_THE_RUN = ("cell", "hidden_size", "num_layers", "unit", "vectors")


@dataclass(frozen=True)
class PretrainedInputs:
    """Texts to the units of a language model, to tokens, to weighted n-grams, and to columns that the
    language model makes of them.

    Attributes:
        source: the language model that `init` names.
        tokens: of the network beside it.
        ngrams, probes: of the linear model; the probes are missing where weights are yet to be read.
        thaw_steps: optimizer steps after which the next layer learns too.
    """

    folds: ClassVar[bool] = True
    linear_over: ClassVar[str] = "n-grams and the language model's outputs"
    # What was learned from much text changes less than the last layer (discriminative rates), and the network
    # begins as a linear model that is solved for, which may be the best there is.
    optimizer: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adamw",
        "validate_first": True,
        "learning_rate_factors": {"network.language.layers": 0.05, "network.head": 0.1},
    }
    head: ClassVar[str] = "head"

    source: LanguageSource
    tokens: TokenPreparation
    ngrams: NgramFeatures
    probes: Probes | None = None
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
        epochs = int(np.clip(round(12 * (5000 / max(N, 1)) ** 0.5), 3, 30))
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
            "learning_rate": 2e-3,
            "weight_decay": 1e-2,
            "members": int(np.clip(passes, 1, 3)),
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """Read the run, count the n-grams of the training part, and measure the probes on it."""
        source = LanguageSource.read(settings.init) if old is None else old.source
        words = replace(settings, unit="word")
        read = map(shortened, learned.inputs)
        tokens = fit_tokens(read, learned, words, None if old is None else old.tokens)
        few = len(learned) < RARE_TEXTS
        ngrams = fit_ngrams(learned.inputs, len(names), min_documents=1 if few else 2)
        probes = Probes.fit(source, EncodedUnits.of(map(shortened, learned.inputs), source))
        steps = math.ceil(len(learned) / settings.batch_size)
        # All layers have joined in after a third of the training.
        thaw_steps = max(1, steps * settings.epochs // (3 * source.sizes["num_layers"]))
        return cls(source, tokens, ngrams, probes, thaw_steps)

    def encode(self, inputs: Sequence[str]) -> EncodedTexts:
        """Ready for batches."""
        units = EncodedUnits.of(map(shortened, inputs), self.source)
        tokens = self.tokens.encode(map(shortened, inputs))
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
        linear = ProbedRows(self._probed, units, encode_ngrams(self.ngrams, inputs))
        return EncodedTexts(EncodedBoth(tokens, units), linear, notes)

    @property
    def _probed(self) -> Probes:
        assert self.probes is not None, "with_tensors was not called"
        return self.probes

    def build(self, output_size: int, settings: Any) -> nn.Module:
        """The language model's layers and a network over words, with the linear model beside them."""
        half = settings.dropout / 2
        language = self.source.build(
            dropout_in=half, dropout_between=half, weight_drop=half, dropout_out=0.0, word_dropout=half / 4
        )
        sizes = self.tokens.sizes
        own: Any = TextClassifier(sizes, output_size, hidden_size=OWN_SIZE, dropout=settings.dropout)
        prepare_tokens(own.tokens, self.tokens)
        own.head = nn.Identity()
        network = PretrainedClassifier(
            language, output_size, own, own.pool.output_size, dropout=half, thaw_steps=self.thaw_steps
        )
        probes = self._probed
        network.set_scaling(torch.from_numpy(probes.mean), torch.from_numpy(probes.scale))
        return WideAndDeep(network, max(len(self.ngrams), 1), output_size, len(probes))

    def moved(self, old: Self) -> dict[str, Moved]:
        """Tables of the tokens; the units are those of the language model."""
        return token_rows(self.tokens, old.tokens, "own.tokens")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "language": self.source.to_json(),
            "tokens": self.tokens.to_json(),
            "ngrams": self.ngrams.to_json(),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            LanguageSource.from_json(stored["language"]),
            TokenPreparation.from_json(stored["tokens"]),
            NgramFeatures.from_json(stored["ngrams"]),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of the probes, by name."""
        return self._probed.tensors()

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Whole again after `from_json`, with what `tensors` gave."""
        probes = Probes.of(self.source, tensors)
        return replace(self, source=probes.source, probes=probes)


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
        """`units` (B, T) and `unit_lengths` (B,)."""
        lengths = self.lengths[rows]
        ids = np.zeros((len(rows), int(lengths.max(initial=1))), np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[place]] = self.ids[self.bounds[row] : self.bounds[row + 1]]
        return Batch(units=torch.from_numpy(ids), unit_lengths=torch.from_numpy(lengths))


@dataclass(frozen=True)
class EncodedBoth:
    """N texts as tokens and as units of a language model."""

    tokens: EncodedTokens
    units: EncodedUnits

    def __len__(self) -> int:
        return len(self.units)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) units."""
        return self.units.lengths

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The fields of both."""
        return Batch({**self.tokens.batch(rows), **self.units.batch(rows)})
