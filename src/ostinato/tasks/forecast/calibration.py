"""Intervals that hold what they say: quantiles widened or narrowed by what held-out windows show.

Split conformal adjustment of quantiles (conformalised quantile regression, arXiv:1905.03222), in its scaled
form: the distance of a quantile from the median is multiplied by the factor that would have covered the
held-out values. Then the mean widths are made to grow with the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ostinato.data.smoothing import Floats

# A horizon's own held-out windows weigh as much as those of all horizons together at this number.
_OWN = 50.0
# And all of them as much as the network's own word at this number.
_ALL = 10.0


@dataclass(frozen=True)
class Calibration:
    """Factors (H, P) on the distances from the median, for the P pairs of levels from the outside in."""

    factors: Floats

    @staticmethod
    def none(horizon: int, levels: int) -> Calibration:
        """Leaves quantiles as they are."""
        return Calibration(np.ones((horizon, levels // 2)))

    @staticmethod
    def fit(quantiles: Floats, y: Floats, mask: np.ndarray, levels: Floats, witnesses: float) -> Calibration:
        """Choose the factors from held-out windows.

        Args:
            quantiles: (n, H, Q).
            y: (n, H) what came.
            mask: (n, H) True where y is known.
            levels: (Q,) symmetric about 0.5.
            witnesses: how many independent windows there are; few of them must be widened for luck: the level
                c is raised to c·(n + 1)/n, at most half way to 1 (the finite-sample term of split conformal
                prediction, with windows instead of points because errors within a window go together).
        """
        _, H, Q = quantiles.shape
        middle = Q // 2
        median = quantiles[..., middle]
        factors = np.ones((H, middle))
        for p in range(middle):
            below = _at_least_a_tenth(median - quantiles[..., p])
            above = _at_least_a_tenth(quantiles[..., Q - 1 - p] - median)
            score = np.where(y < median, (median - y) / below, (y - median) / above)
            level = float(levels[Q - 1 - p] - levels[p])
            level = min(level * (witnesses + 1.0) / witnesses, (1.0 + level) / 2.0)
            everything = _quantile(score[mask], level)
            n = int(mask.sum())
            pooled = (n * everything + _ALL) / (n + _ALL)
            for h in range(H):
                own = score[:, h][mask[:, h]]
                factors[h, p] = (
                    (len(own) * _quantile(own, level) + _OWN * pooled) / (len(own) + _OWN)
                    if len(own)
                    else pooled
                )
        factors = np.clip(factors, 0.2, 20.0)
        outer = min(1, middle - 1)
        width = (quantiles[..., Q - 1 - outer] - quantiles[..., outer]).mean(axis=0) * factors[:, outer]
        # Sampled counts may leave a step without any width, which no factor can widen.
        rising = np.divide(_rising(width), width, out=np.ones(H), where=width > 1e-9 * width.max())
        return Calibration(factors * np.clip(rising, 0.2, 5.0)[:, None])

    def apply(self, quantiles: Floats) -> Floats:
        """Adjusted quantiles (…, H, Q); they cannot cross."""
        middle = quantiles.shape[-1] // 2
        median = quantiles[..., middle : middle + 1]
        both = np.concatenate([self.factors, np.ones((len(self.factors), 1)), self.factors[:, ::-1]], axis=1)
        moved = median + (quantiles - median) * both
        moved[..., middle:] = np.maximum.accumulate(moved[..., middle:], axis=-1)
        moved[..., : middle + 1] = np.minimum.accumulate(moved[..., middle::-1], axis=-1)[..., ::-1]
        return moved

    def spread(self, paths: Floats) -> Floats:
        """Sampled paths (n, S, H) moved away from their median by the factor of the 80 % interval."""
        median = np.median(paths, axis=1, keepdims=True)
        return median + (paths - median) * self.factors[:, min(1, self.factors.shape[1] - 1)]

    def to_json(self) -> list[list[float]]:
        """Plain values."""
        return self.factors.tolist()

    @staticmethod
    def from_json(stored: Any) -> Calibration:
        """The inverse of `to_json`."""
        return Calibration(np.asarray(stored, dtype=np.float64))


def _at_least_a_tenth(gaps: Floats) -> Floats:
    """Gaps (n, H), none below a tenth of its step's mean: a window without width must not widen others."""
    return np.maximum(gaps, np.maximum(0.1 * gaps.mean(axis=0), 1e-9))


def _quantile(scores: Floats, level: float) -> float:
    """The finite-sample conformal quantile: rank ceil((n + 1)·level) of n, at most the largest."""
    if not len(scores):
        return 1.0
    rank = min(int(np.ceil((len(scores) + 1) * level)), len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def _rising(values: Floats) -> Floats:
    """The nearest sequence that never falls, in least squares (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count),
                blocks[-1][1] + count,
            ]
    return np.concatenate([np.full(int(count), mean) for mean, count in blocks])
