"""What a language model that has stopped learning says about texts, as columns of a linear model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.data.ngrams import NgramRows
from ostinato.models.language import LanguageNetwork
from ostinato.models.pretrained_classifier import text_features
from ostinato.tasks.labels.ensemble import chunks
from ostinato.tasks.labels.linear_rows import LazyNgrams
from ostinato.tasks.transfer import LanguageSource
from ostinato.types import Batch

Floats = NDArray[np.float32]

LENGTH = 2.0
"""Of a row, about: each kind of n-grams has 1. Measured on TREC questions, where 1 and 4 are little worse."""
FLOOR = 0.3
"""Of the root mean square of all outputs: columns that spread less are not made as wide as the others. What
dropout does to the outputs would be a multiple of what they say, and fine-tuning would diverge."""
LOOKED_AT = 2000  # texts from which the columns' means and spreads are taken
KEPT_BYTES = 256 << 20
_WEIGHTS, _MEAN, _SCALE = "language/", "probes/mean", "probes/scale"


@dataclass(frozen=True)
class Probes:
    """Columns of texts: `text_features` of a language model as its run has it, those that vary of one spread.

    Attributes:
        source: the language model, with its weights.
        mean, scale: (F,) of the columns.
    """

    source: LanguageSource
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, source: LanguageSource, units: Any) -> Self:
        """Means and spreads from `EncodedUnits`, of some 2,000 texts where there are more."""
        bare = cls(source, np.zeros(1, np.float32), np.ones(1, np.float32))
        found = bare.rows(units, np.arange(0, len(units), max(1, len(units) // LOOKED_AT)))
        spread, least = found.std(axis=0), FLOOR * np.sqrt(np.mean(found**2))
        # A column that never changes says nothing.
        wide = np.maximum(spread, max(least, 1e-6))
        scale = np.where(spread > 1e-6, LENGTH / np.sqrt(found.shape[1]) / wide, 0.0)
        return cls(source, found.mean(axis=0), scale.astype(np.float32))

    def __len__(self) -> int:
        """F."""
        return len(self.mean)

    @cached_property
    def network(self) -> LanguageNetwork:
        """The language model, in evaluation mode."""
        return self.source.build().eval()

    def rows(self, units: Any, chosen: NDArray[np.int64]) -> Floats:
        """(n, F) of some of the texts in `units`.

        Cost: the language model runs over each once.
        """
        lengths = units.lengths
        found: Floats | None = None
        places = np.argsort(lengths[chosen], kind="stable")
        for at in chunks(places, lengths[chosen]):
            batch = units.batch(chosen[at])
            with torch.no_grad():
                said = text_features(self.network, batch["units"], batch["unit_lengths"]).numpy()
            if found is None:
                found = np.empty((len(chosen), said.shape[1]), np.float32)
            found[at] = (said - self.mean) * self.scale
        return np.zeros((0, len(self)), np.float32) if found is None else found

    def tensors(self) -> dict[str, Tensor]:
        """Weights and scaling, by name."""
        own = {_MEAN: torch.from_numpy(self.mean), _SCALE: torch.from_numpy(self.scale)}
        return own | {f"{_WEIGHTS}{name}": value for name, value in self.source.tensors.items()}

    @classmethod
    def of(cls, source: LanguageSource, tensors: Mapping[str, Tensor]) -> Self:
        """From what `tensors` gave, and a source without weights."""
        weights = {
            name.removeprefix(_WEIGHTS): value for name, value in tensors.items() if name.startswith(_WEIGHTS)
        }
        whole = LanguageSource(source.units, source.sizes, weights)
        return cls(whole, tensors[_MEAN].numpy(), tensors[_SCALE].numpy())


class ProbedRows:
    """N texts as rows of n-grams and dense columns; of very many the columns are made when they are needed.

    Attributes:
        most_rows: of how many texts a linear model can learn at once.
    """

    def __init__(self, probes: Probes, units: Any, ngrams: NgramRows | LazyNgrams):
        self._probes, self._units, self._ngrams = probes, units, ngrams
        share = KEPT_BYTES / max(4 * len(probes) * len(units), 1)
        self._kept = probes.rows(units, np.arange(len(units))) if share >= 1 else None
        self.most_rows = min(int(min(share, 1) * len(units)), getattr(ngrams, "most_rows", len(units)))

    def __len__(self) -> int:
        return len(self._units)

    def batch(self, rows: Any) -> Batch:
        """As `NgramRows.batch`, and `dense` (B, F)."""
        chosen = np.asarray(rows, np.int64)
        batch = self._ngrams.batch(chosen)
        dense = self._probes.rows(self._units, chosen) if self._kept is None else self._kept[chosen]
        batch["dense"] = torch.from_numpy(dense)
        return batch
