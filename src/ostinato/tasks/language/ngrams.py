"""Baselines of language models: counts of units, and interpolated Kneser–Ney over the last few units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ostinato.data.corpus import Corpus
from ostinato.tasks.kneser_ney import MOST_UNITS, Floats, Integers, KneserNey

WORD_ORDER, CHARACTER_ORDER = 5, 6
LEAST_UNITS, UNITS_PER_S = 100_000, 400_000
_PIECE = 1 << 20


@dataclass(frozen=True)
class Baselines:
    """What a language model is compared with.

    Attributes:
        unigram: (V,) log-probabilities of units alone, each count increased by one.
        ngrams: over the last few units.
        name: of the n-grams in `metrics_`.
    """

    unigram: Floats
    ngrams: KneserNey
    name: str

    @classmethod
    def fit(
        cls, corpus: Corpus, counts: Integers, *, is_character: bool, left_s: float | None = None
    ) -> Baselines:
        """Both, from the training text and its counts (V,); in about a tenth of the time that is left."""
        order = CHARACTER_ORDER if is_character else WORD_ORDER
        most = MOST_UNITS
        if left_s is not None:
            most = max(LEAST_UNITS, min(most, int(0.1 * left_s * UNITS_PER_S)))
        ngrams = KneserNey.fit(corpus, len(counts), order, most_units=most)
        return cls.of(counts, ngrams, f"kneser_ney_{ngrams.order}")

    @classmethod
    def of(cls, counts: Integers, ngrams: KneserNey, name: str) -> Baselines:
        """From counts (V,) of the training text, and n-grams that were fitted before."""
        return cls(np.log((counts + 1.0) / (counts + 1.0).sum()), ngrams, name)

    def unigram_nats(self, corpus: Corpus) -> float:
        """Σ -log P(unit) over a text, by the counts of units alone."""
        total = 0.0
        for first in range(0, len(corpus), _PIECE):
            total -= float(self.unigram[np.asarray(corpus.ids[first : first + _PIECE])].sum())
        return total
