"""Texts as rows for a linear model: all at once where memory allows, else whenever they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ostinato.data.ngrams import NgramFeatures, NgramRows
from ostinato.types import Batch

# Each takes some 25 bytes as n-grams.
KEPT_CHARACTERS = 12_000_000.0
# Solving for weights takes some 80 bytes for each of them.
MOST_WEIGHTS = 4_000_000


class LazyNgrams:
    """N-grams of texts that are too many to keep them.

    Attributes:
        most_rows: of how many texts a linear model can learn at once.
    """

    def __init__(self, features: NgramFeatures, texts: Sequence[str], most_rows: int):
        self._features, self._texts, self.most_rows = features, texts, most_rows

    def __len__(self) -> int:
        return len(self._texts)

    def batch(self, rows: Any) -> Batch:
        """As `NgramRows.batch`."""
        chosen = np.asarray(rows, np.int64)
        found = self._features.encode(self._texts[int(row)] for row in chosen)
        return found.batch(np.arange(len(chosen)))


def fit_ngrams(texts: Sequence[str], n_classes: int, **options: Any) -> NgramFeatures:
    """`NgramFeatures.fit` on as many texts, evenly spread, as memory allows; fewer n-grams where there
    are many classes."""
    step = max(1, round(characters(texts) / KEPT_CHARACTERS))
    looked = (texts[i] for i in range(0, len(texts), step)) if step > 1 else texts
    most = int(np.clip(MOST_WEIGHTS // n_classes, 1 << 12, 1 << 18))
    return NgramFeatures.fit(looked, max_features=most, **options)


def encode_ngrams(features: NgramFeatures, texts: Sequence[str]) -> NgramRows | LazyNgrams:
    """Rows of all texts."""
    share = KEPT_CHARACTERS / max(characters(texts), 1.0)
    return features.encode(texts) if share >= 1 else LazyNgrams(features, texts, int(share * len(texts)))


def characters(texts: Sequence[str]) -> float:
    """How many characters texts have; judged by 1,000 of them where they are many."""
    step = max(1, len(texts) // 1000)
    looked = [len(texts[i]) for i in range(0, len(texts), step)]
    return float(np.mean(looked)) * len(texts) if looked else 0.0
