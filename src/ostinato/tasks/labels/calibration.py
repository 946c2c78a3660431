"""Probabilities that mean what they say: one temperature, fitted to examples that were not learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

BINS = 15
# Few examples say little, and a part without a mistake would ask for temperature 0.
PRIOR_SPREAD = 0.5


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling (arXiv:1706.04599): p becomes p^(1/T), brought to sum 1.

    Attributes:
        temperature: T; above 1 where the network was too sure.
        error_before, error_after: expected calibration error on the examples that T was fitted to.
        examples: how many these were.
    """

    temperature: float = 1.0
    error_before: float = float("nan")
    error_after: float = float("nan")
    examples: int = 0

    @classmethod
    def fit(cls, probabilities: NDArray[Any], y: NDArray[np.int64]) -> Self:
        """The temperature that makes the log loss of n examples least.

        A normal prior on log T, of mean 0 and standard deviation 0.5, keeps it near 1 where n is small.

        Args:
            probabilities: (n, K).
            y: (n,) the right classes.
        """
        if not len(y):
            return cls()
        log_p = _log(probabilities)

        def cost(log_t: float) -> float:
            scaled = log_p / np.exp(log_t)
            scaled = scaled - _log_sum(scaled)[:, None]
            return float(-scaled[np.arange(len(y)), y].sum() + 0.5 * (log_t / PRIOR_SPREAD) ** 2)

        log_t = _least(cost, np.log(0.1), np.log(10.0))
        after = cls(float(np.exp(log_t)))
        return cls(
            after.temperature,
            calibration_error(probabilities, y),
            calibration_error(after.apply(probabilities), y),
            len(y),
        )

    def apply(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """(n, K) to (n, K)."""
        scaled = _log(probabilities) / self.temperature
        result: NDArray[np.float64] = np.exp(scaled - _log_sum(scaled)[:, None])
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {k: float("nan") if v is None else v for k, v in stored.items()}
        return cls(**values)


def calibration_error(probabilities: NDArray[Any], y: NDArray[np.int64], bins: int = BINS) -> float:
    """Expected calibration error: how far the probability of the most probable class is from how often it is
    right, in bins of equal width, weighted by their examples (arXiv:1706.04599, equation 3). NaN for none."""
    if not len(y):
        return float("nan")
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == y
    places = np.minimum((sure * bins).astype(np.int64), bins - 1)
    n = np.bincount(places, minlength=bins)
    gaps = np.bincount(places, right.astype(np.float64), bins) - np.bincount(places, sure, bins)
    return float(np.abs(gaps).sum() / n.sum())


def _log(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    return logs


def _log_sum(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = scaled.max(axis=1)
    result: NDArray[np.float64] = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
    return result


def _least(cost: Any, low: float, high: float) -> float:
    """Golden section: the cost is convex in 1/T, so it has one valley in log T."""
    ratio = (5**0.5 - 1) / 2
    a, b = low, high
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    at_c, at_d = cost(c), cost(d)
    while b - a > 1e-4:
        if at_c < at_d:
            b, d, at_d = d, c, at_c
            c = b - ratio * (b - a)
            at_c = cost(c)
        else:
            a, c, at_c = c, d, at_d
            d = a + ratio * (b - a)
            at_d = cost(d)
    return (a + b) / 2


def fit_named(shares: NDArray[Any], actual: Iterable[str], names: Sequence[str]) -> Calibration:
    """Of probabilities (n, K), by those of n answers that are among the K names."""
    number = {name: i for i, name in enumerate(names)}
    y = np.array([number.get(one, -1) for one in actual])
    return Calibration.fit(shares[y >= 0], y[y >= 0])
