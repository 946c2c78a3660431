"""Arrays to a fixed number of statistics: what a linear model reads of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.ngrams import NgramRows

PARTS = 8


class SummaryFeatures:
    """Arrays to their means, spreads, extremes, ends and mean changes, column by column, standardised."""

    def __init__(self) -> None:
        self.name = "summary_logistic_regression"

    def fit(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Statistics, and what standardises them."""
        raw = self._raw(inputs)
        self.mean, spread = raw.mean(axis=0), raw.std(axis=0)
        self.spread = np.where(spread > 1e-12 * (1.0 + np.abs(self.mean)), spread, 1.0)
        return self.transform(inputs)

    def transform(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """(N, 8·D)."""
        return (self._raw(inputs) - self.mean) / self.spread

    def _raw(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        rows = []
        for one in inputs:
            x = np.asarray(one, np.float64)
            if not len(x):
                rows.append(np.zeros(PARTS * x.shape[1]))
                continue
            changes = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
            length = np.full(x.shape[1], float(len(x)))
            parts = [x.mean(0), x.std(0), x.min(0), x.max(0), x[0], x[-1], changes, length]
            rows.append(np.concatenate(parts))
        return np.stack(rows)

    def rows(self, inputs: Sequence[NDArray[Any]]) -> NgramRows:
        """The same as rows of a sparse matrix that has no gaps, for `WideLinear`."""
        matrix = self.transform(inputs).astype(np.float32)
        N, F = matrix.shape
        return NgramRows(np.arange(N + 1) * F, np.tile(np.arange(F), N), matrix.reshape(-1))

    def to_json(self) -> dict[str, Any]:
        """Means and spreads."""
        return {"mean": self.mean.tolist(), "spread": self.spread.tolist()}

    def take_json(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `to_json`."""
        self.mean, self.spread = np.asarray(stored["mean"]), np.asarray(stored["spread"])
