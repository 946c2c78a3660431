"""Columns of numbers to the unit of a network, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import DataError


@dataclass(frozen=True)
class Scaling:
    """Columns to mean 0 and variance 1, in float64: z = (v - mean) / scale, v = mean + scale·z.

    A constant column is shifted only.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, flat: NDArray[Any]) -> Self:
        """From the rows (n, C) that count."""
        values = flat.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = values.mean(axis=0), values.std(axis=0)
        is_constant = values.max(axis=0) == values.min(axis=0)
        if not np.isfinite(scale[~is_constant]).all():
            raise DataError(
                f"values up to {np.abs(values).max():g} are too large to have a variance; divide them first"
            )
        return cls(np.where(is_constant, values[0], mean), np.where(is_constant, 1.0, scale))

    @classmethod
    def none(cls, columns: int) -> Self:
        """The scaling that changes nothing."""
        return cls(np.zeros(columns), np.ones(columns))

    def forward(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """(…, C) to the network's unit."""
        scaled: NDArray[np.float64] = (values - self.mean) / self.scale
        return scaled

    def inverse(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """(…, C) back to the unit of the data."""
        restored: NDArray[np.float64] = self.mean + self.scale * values.astype(np.float64)
        return restored

    def to_json(self) -> dict[str, list[float]]:
        """Plain values, exact to the bit."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Sequence[float]]) -> Self:
        """The inverse of `to_json`."""
        return cls(np.asarray(stored["mean"], np.float64), np.asarray(stored["scale"], np.float64))
