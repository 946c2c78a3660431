"""Filling gaps without a network: between the neighbours, and along the season from both sides.

All functions take rows of values with a mask of what is visible, so that the same code fills real gaps,
gaps that are made for training, and the time before a series starts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

REACH = 3
"""How many seasons to either side are looked at."""


def neighbours(visible: Mask) -> tuple[Indices, Indices]:
    """The nearest visible step at or before, and at or after each step of (rows, T): -1 and T where none."""
    T = visible.shape[1]
    steps = np.arange(T)
    left = np.maximum.accumulate(np.where(visible, steps, -1), axis=1)
    right = np.minimum.accumulate(np.where(visible, steps, T)[:, ::-1], axis=1)[:, ::-1]
    return left, right


def interpolate(values: Floats, visible: Mask, empty: Floats) -> Floats:
    """Linear between the visible neighbours, constant beyond the first and the last one: (rows, T).

    Args:
        values: (rows, T); invisible ones are not read.
        visible: (rows, T).
        empty: (rows,) what a row without anything visible is filled with.
    """
    T = values.shape[1]
    left, right = neighbours(visible)
    has_left, has_right = left >= 0, right < T
    rows = np.arange(len(values))[:, None]
    before = values[rows, np.where(has_left, left, np.minimum(right, T - 1))]
    after = values[rows, np.where(has_right, right, np.maximum(left, 0))]
    span = np.where(has_left & has_right, right - left, 0)
    share = np.where(span > 0, (np.arange(T) - left) / np.maximum(span, 1), 0.0)
    # In this form neighbours that are equal give exactly their value.
    filled = before + share * (after - before)
    return np.where(has_left | has_right, filled, empty[:, None])


def seasonal_neighbours(
    values: Floats, visible: Mask, season: int, linear: Floats, inner: slice, pad: int
) -> tuple[Floats, Floats, Floats]:
    """Three estimates of every step from the same phase of up to `REACH` seasons before and after it.

    The first is the mean of those values, the nearer ones weighing more, each moved by the mean change of all
    visible values from one season to the next (the seasonal naive forecast with drift). The second moves the
    shape of each of those seasons to where the series is: z(t + k·m) plus the difference z - z(· + k·m),
    interpolated between the visible steps around t. It therefore follows level and trend, and meets the ends
    of a gap.
    The third takes the mean of that difference over about a season around each end instead, which noise at
    the ends moves less. A step without any of those is estimated from the nearest seasons further away that
    show its phase; where there is none, all are `linear`.

    Args:
        values, visible: (rows, T); invisible values must be finite and are not used.
        season: m in steps.
        linear: (rows, T) from `interpolate`.
        inner: the steps that are wanted.
        pad: how far beyond them differences are looked for.

    Returns:
        three arrays (rows, inner).

    Cost: about 250 vector operations over (rows, inner + 2·pad).
    """
    rows, T = values.shape
    first, last = max(inner.start - pad, 0), min(inner.stop + pad, T)
    shape = (rows, last - first)
    own, own_seen = values[:, first:last], visible[:, first:last]
    drifting, weight, shaped, shifted, shaped_weight = (np.zeros(shape) for _ in range(5))
    core = slice(inner.start - first, inner.stop - first)
    nothing = np.full(rows, np.nan)
    pairs = visible[:, :-season] & visible[:, season:]
    changes = np.where(pairs, values[:, season:] - values[:, :-season], 0.0).sum(axis=1)
    drift = (changes / np.maximum(pairs.sum(axis=1), 1))[:, None]
    for reach in range(1, T // season + 1):
        wanted = True if reach <= REACH else weight == 0
        if reach > REACH and weight[:, core].all():
            break
        for k in (-reach, reach):
            there, seen = (
                _later(values, first + k * season, shape),
                _later(visible, first + k * season, shape),
            )
            if not seen.any():
                continue
            w = (seen & wanted) / reach
            drifting += w * (there - k * drift)
            weight += w
            both = own_seen & seen
            offset = interpolate(own - there, both, nothing)
            is_offset = ~np.isnan(offset)
            w *= is_offset
            shaped += w * (there + np.where(is_offset, offset, 0.0))
            level = interpolate(_local_mean(own - there, both, season // 2), both, nothing)
            shifted += w * (there + np.where(is_offset, level, 0.0))
            shaped_weight += w
    drifting = np.where(weight > 0, drifting / np.maximum(weight, 1e-9), linear[:, first:last])
    shaped = np.where(shaped_weight > 0, shaped / np.maximum(shaped_weight, 1e-9), drifting)
    shifted = np.where(shaped_weight > 0, shifted / np.maximum(shaped_weight, 1e-9), drifting)
    return drifting[:, core], shaped[:, core], shifted[:, core]


def _local_mean(values: Floats, visible: Mask, half: int) -> Floats:
    """Mean of the visible values from `half` steps before to `half` after each step; 0 where none is."""
    T = values.shape[1]
    first, last = np.maximum(np.arange(T) - half, 0), np.minimum(np.arange(T) + half + 1, T)
    sums, counts = (
        np.concatenate([np.zeros((len(values), 1)), np.cumsum(part, axis=1)], axis=1)
        for part in (np.where(visible, values, 0.0), visible)
    )
    return (sums[:, last] - sums[:, first]) / np.maximum(counts[:, last] - counts[:, first], 1)


def _later(array: NDArray, start: int, shape: tuple[int, int]) -> NDArray:
    """The steps from `start` on, zero (False) where there are none: an array of `shape`."""
    moved = np.zeros(shape, dtype=array.dtype)
    begin, end = max(start, 0), min(start + shape[1], array.shape[1])
    if begin < end:
        moved[:, begin - start : end - start] = array[:, begin:end]
    return moved


def gap_lengths(missing: Mask) -> tuple[int, list[int], int]:
    """Of one row (T,): steps missing at the start, lengths of the gaps between values, steps at the end."""
    observed = np.flatnonzero(~missing)
    if not len(observed):
        return len(missing), [], 0
    between = np.diff(observed) - 1
    return int(observed[0]), between[between > 0].tolist(), int(len(missing) - 1 - observed[-1])
