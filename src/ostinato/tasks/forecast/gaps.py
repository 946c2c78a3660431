"""Windows with holes: what an imputing network sees of a table, in training and in use alike.

A row is one target of one series. `window_batch` computes everything that the network sees from the values
that are visible; training hides some values first, and nothing hidden can reach an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.interpolation import (
    REACH,
    Floats,
    Indices,
    Mask,
    interpolate,
    neighbours,
    seasonal_neighbours,
)
from ostinato.data.table import SeriesTable
from ostinato.tasks.forecast.rows import Columns
from ostinato.types import Batch

# Classes of steps by the distance to the nearest visible one, where both sides are visible and where one is.
_EDGES = np.array([2, 3, 5, 9, 17, 33, 65, 129])
SIDES = len(_EDGES) + 1
CLASSES = 2 * SIDES
_CLIP = 5.0


@dataclass(frozen=True)
class Scaling:
    """What training decides about values: transformation, seasons, and the size of an error of each class.

    Attributes:
        transform: `none` or `log`.
        floor: smallest value that the logarithm is taken of; smaller ones count as this.
        seasons: in steps.
        factors: (CLASSES,) expected error of the simple estimates, in units of a row.
    """

    transform: str
    floor: float
    seasons: tuple[int, ...]
    factors: Floats = field(default_factory=lambda: np.ones(CLASSES))

    @property
    def anchors(self) -> int:
        """A: linear, the mean of what is visible, and three for each season."""
        return 2 + 3 * len(self.seasons)

    def forward(self, values: Floats) -> Floats:
        """Original unit to the network's."""
        return np.log(np.maximum(values, self.floor)) if self.transform == "log" else values

    def inverse(self, values: Floats) -> Floats:
        """The network's unit to the original."""
        # exp(700) is the edge of float64; a quantile beyond it says "unbounded", not NaN.
        return np.exp(np.minimum(values, 700.0)) if self.transform == "log" else values

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "transform": self.transform,
            "floor": self.floor,
            "seasons": list(self.seasons),
            "factors": self.factors.tolist(),
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> Scaling:
        """The inverse of `to_json`."""
        factors = np.asarray(stored["factors"], dtype=np.float64)
        return Scaling(stored["transform"], float(stored["floor"]), tuple(stored["seasons"]), factors)


@dataclass
class GapRows:
    """The rows of a table in the network's unit, each with its own centre and scales.

    Attributes:
        table, columns, scaling: where they come from.
        members: (series, target) of each row.
        values: transformed values of each row, NaN where missing.
        centre, spread: (R,) mean and standard deviation of what is known of a row.
        unit: (R,) mean error of a value that is interpolated between its direct neighbours.
        moments: centres and spreads (2, C) of the targets of each series.
    """

    table: SeriesTable
    columns: Columns
    scaling: Scaling
    members: list[tuple[int, int]]
    values: list[Floats]
    centre: Floats
    spread: Floats
    unit: Floats
    moments: list[Floats]

    @staticmethod
    def of(table: SeriesTable, columns: Columns, scaling: Scaling) -> GapRows:
        """All rows of `table`. O(points)."""
        members = [(i, c) for i in range(len(table.series)) for c in range(len(table.targets))]
        values = [scaling.forward(table.series[i].values[:, c]) for i, c in members]
        scales = np.array([_scales(row) for row in values])
        C = len(table.targets)
        moments = [scales[r : r + C, :2].T for r in range(0, len(scales), C)]
        centre, spread, unit = scales.T
        return GapRows(table, columns, scaling, members, values, centre, spread, unit, moments)

    def with_scaling(self, scaling: Scaling) -> GapRows:
        """The same rows under other factors."""
        return replace(self, scaling=scaling)

    @property
    def lengths(self) -> Indices:
        """(R,) steps of each row."""
        return np.array([len(row) for row in self.values], dtype=np.int64)


def _scales(row: Floats) -> tuple[float, float, float]:
    known = row[~np.isnan(row)]
    centre, spread = float(known.mean()), float(known.std())
    least = 1e-6 * abs(centre) + 1e-9
    between = np.abs(row[1:-1] - (row[:-2] + row[2:]) / 2)
    between = between[~np.isnan(between)]
    unit = float(between.mean()) if len(between) >= 3 else spread
    return centre, max(spread, least), max(unit, 1e-4 * spread, least)


@dataclass
class Places:
    """B windows, and what may be seen in each. Steps count from the first of the row.

    Attributes:
        rows, starts: (B,) which row, and the window's first step; it may lie before the row.
        begin, end: (B,) the extent of the series as the window pretends it: outside there is nothing.
        known_from, known_until: (B,) outside, calendar and known columns are seen, but nothing observed.
        hidden: (B, W) values that are there and may not be seen.
        alone: (B,) whether what is hidden of a target is hidden of the other targets too.
    """

    rows: Indices
    starts: Indices
    begin: Indices
    end: Indices
    known_from: Indices
    known_until: Indices
    hidden: Mask
    alone: Mask

    @staticmethod
    def whole(rows: Indices, starts: Indices, width: int, lengths: Indices) -> Places:
        """Windows in which nothing is hidden."""
        # Each of its own memory: callers change some of them in place.
        begin, known_from = (np.zeros(len(rows), dtype=np.int64) for _ in range(2))
        end, known_until = lengths[rows], lengths[rows]
        hidden = np.zeros((len(rows), width), dtype=np.bool_)
        alone = np.zeros(len(rows), dtype=np.bool_)
        return Places(rows, starts, begin, end, known_from, known_until, hidden, alone)

    def select(self, chosen: Any) -> Places:
        """Some of the windows."""
        return Places(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @staticmethod
    def concatenate(parts: Sequence[Places]) -> Places:
        """All windows of several; of one width."""
        return Places(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in Places.__dataclass_fields__)
        )


@dataclass
class Windows:
    """What `window_batch` returns: tensors for the network, and what turns its answer into values."""

    batch: Batch
    base: Floats
    unit: Floats
    row_unit: Floats
    truth: Floats
    anchors: Floats
    classes: Indices
    mask: Mask


def margin_of(seasons: Sequence[int], width: int) -> int:
    """How far beyond a window the simple estimates look."""
    return max(REACH * max(seasons, default=1), width)


def window_batch(
    rows: GapRows, places: Places, margin: int, allowed: Sequence[Mask] | None = None
) -> Windows:
    """Everything about B windows. `allowed` are the steps of each row that may be targets; None: all.

    Cost: about 100 vector operations a season over (B, W + 2·margin), bounded however long the rows are.
    """
    scaling = rows.scaling
    B, W = places.hidden.shape
    steps = places.starts[:, None] + np.arange(-margin, W + margin)
    values = np.full(steps.shape, np.nan)
    for b, r in enumerate(places.rows):
        _copy(rows.values[r], values[b], int(steps[b, 0]))
    visible = ~np.isnan(values)
    visible &= (steps >= places.known_from[:, None]) & (steps < places.known_until[:, None])
    visible[:, margin : margin + W] &= ~places.hidden
    values_seen = np.where(visible, values, 0.0)
    centre = rows.centre[places.rows]
    linear = interpolate(values_seen, visible, centre)
    counts = visible.sum(axis=1)
    mean = np.where(counts > 0, values_seen.sum(axis=1) / np.maximum(counts, 1), centre)
    inner = slice(margin, margin + W)
    estimates = [linear[:, inner], np.broadcast_to(mean[:, None], (B, W))]
    for season in scaling.seasons:
        estimates += seasonal_neighbours(values_seen, visible, season, linear, inner, min(margin, W))
    anchors = np.stack(estimates, axis=-1)
    left, right, classes = _distances(visible, inner)
    steps, truth, seen = steps[:, inner], values[:, inner], visible[:, inner]
    base = anchors[..., 0]
    row_unit = rows.unit[places.rows]
    unit = row_unit[:, None] * scaling.factors[classes]
    relative = (anchors - base[..., None]) / unit[..., None]
    inside = (steps >= places.begin[:, None]) & (steps < places.end[:, None])
    mask = inside & ~seen & ~np.isnan(truth)
    if allowed is not None:
        for b, r in enumerate(places.rows):
            line = np.zeros(W, dtype=np.bool_)
            _copy(allowed[r], line, int(places.starts[b]))
            mask[b] &= line
    columns = [
        seen[..., None],
        _soft((base - centre[:, None]) / rows.spread[places.rows][:, None])[..., None],
        _soft(np.diff(base, axis=1, prepend=base[:, :1]) / row_unit[:, None])[..., None],
        _soft(relative[..., 1:]),
        *(part[..., None] for part in (_far(left), _far(right), left < 0, right < 0)),
        _covariates(rows, places, steps, seen),
    ]
    batch = _tensors(
        x=np.concatenate([np.nan_to_num(column) for column in columns], axis=-1),
        anchors=relative,
        prior=classes,
        inside=inside,
        y=np.where(mask, (truth - base) / unit, 0.0),
        mask=mask,
        weight=np.clip(scaling.factors / scaling.factors.mean(), 0.2, 5.0)[classes],
    )
    return Windows(batch, base, unit, row_unit, truth, anchors, classes, mask)


def _distances(visible: Mask, inner: slice) -> tuple[Floats, Floats, Indices]:
    """Distances to the visible neighbours on the left and right, -1 where there is none, and the classes."""
    T = visible.shape[1]
    left, right = neighbours(visible)
    steps = np.arange(T)
    to_left = np.where(left >= 0, steps - left, -1)[:, inner]
    to_right = np.where(right < T, right - steps, -1)[:, inner]
    both = (to_left >= 0) & (to_right >= 0)
    nearest = np.where(both, np.minimum(to_left, to_right), np.maximum(to_left, to_right))
    # Where nothing at all is visible it is as far away as can be.
    nearest = np.where(nearest < 0, T, nearest)
    classes = np.searchsorted(_EDGES, nearest, side="right") + np.where(both, 0, SIDES)
    return to_left.astype(np.float64), to_right.astype(np.float64), classes.astype(np.int64)


def _covariates(rows: GapRows, places: Places, steps: Indices, seen: Mask) -> Floats:
    """Calendar, known, static and observed columns, and the other targets: (B, W, …)."""
    table, columns = rows.table, rows.columns
    B, W = steps.shape
    C, n_observed = len(table.targets), len(table.observed)
    ahead = np.empty((B, W, columns.ahead_size))
    others = np.zeros((B, W, 2 * C if C > 1 else 0))
    observed = np.zeros((B, W, n_observed + (n_observed > 0)))
    can_know = (steps >= places.known_from[:, None]) & (steps < places.known_until[:, None])
    can_know_others = can_know & ~(places.alone[:, None] & places.hidden)
    for b, r in enumerate(places.rows):
        i, c = rows.members[r]
        series, start = table.series[i], int(steps[b, 0])
        known = np.full((W, len(table.known)), np.nan)
        _copy(series.known, known, start)
        calendar = table.frequency.calendar(series.start, W, offset=start)
        ahead[b] = columns.compose(calendar, known, series.static, c)
        if n_observed:
            part = np.full((W, n_observed), np.nan)
            _copy(series.observed, part, start)
            part[~can_know[b]] = np.nan
            observed[b, :, :n_observed] = columns.scale_observed(part)
            observed[b, :, n_observed] = ~np.isnan(part).all(axis=1)
        if C > 1:
            first = r - c
            part = np.full((W, C), np.nan)
            for other in range(C):
                if other != c:
                    _copy(rows.values[first + other], part[:, other], start)
            part[~can_know_others[b]] = np.nan
            others[b, :, C:] = ~np.isnan(part)
            centre, spread = rows.moments[i]
            others[b, :, :C] = np.nan_to_num(_soft((part - centre) / spread))
    return np.concatenate([ahead, observed, others], axis=-1)


def _copy(source: NDArray, target: NDArray, start: int) -> None:
    """target[j] = source[start + j] where that exists."""
    first, last = max(start, 0), min(start + len(target), len(source))
    if first < last:
        target[first - start : last - start] = source[first:last]


def _soft(values: Floats) -> Floats:
    return _CLIP * np.tanh(values / _CLIP)


def _far(distance: Floats) -> Floats:
    return np.log1p(np.maximum(distance, 0.0)) / 5


def _tensors(**arrays: NDArray) -> Batch:
    def tensor(array: NDArray) -> torch.Tensor:
        kind = array.dtype if array.dtype in (np.bool_, np.int64) else np.float32
        return torch.from_numpy(np.array(array, dtype=kind, order="C"))

    return Batch({name: tensor(array) for name, array in arrays.items()})
