"""From the values of series to the inputs of a forecasting network, as a recurrence.

Every number that the network sees at time t is computed by `Preparation.advance` from the values up to t,
one step at a time, for all rows at once. Training, back-tests, streaming and sampled paths call the same
function, so they cannot disagree, and nothing looks ahead. A row is one target of one series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.memory import History, PreparedState
from ostinato.data.smoothing import (
    Floats,
    SmoothingParameters,
    SmoothingState,
    advance,
    forecast,
    horizon_weights,
)
from ostinato.data.smoothing_search import CELLS_IN_ALL, fit_smoothing
from ostinato.errors import InputError

Indices = NDArray[np.int64]

_CLIP = 5.0
_TRANSFORMS = ("none", "log")


@dataclass
class Preparation:
    """What the training data decide about the inputs: transformation, seasons, smoothing gains.

    Attributes:
        transform: `none`, or `log` where relative errors are the steady ones.
        floor: smallest value that the logarithm is taken of; smaller ones count as this.
        seasons: season lengths in steps, the main one first; may be empty.
        row_ids: the rows of training; other rows use the typical gains.
        smoothing: gains of each row.
        unit: (rows,) mean one-step error of each row in training; the unit of the loss.
        smallest_scale: what running scales do not fall below, a thousandth of the smallest mean step between
            neighbours of any row that moves at all, so that a quiet start is not a unit of almost nothing.
    """

    transform: str
    floor: float
    seasons: tuple[int, ...]
    row_ids: list[str]
    smoothing: SmoothingParameters
    unit: Floats
    smallest_scale: float = 1e-9

    # ------------------------------------------------------------------------------------- fitting

    @staticmethod
    def fit(
        values: Sequence[Floats],
        row_ids: Sequence[str],
        seasons: tuple[int, ...],
        horizon: int,
        *,
        transform: str = "auto",
        seed: int = 0,
        cells: int = CELLS_IN_ALL,
    ) -> Preparation:
        """Choose the transformation and each row's smoothing gains from the training part.

        Args:
            values: of each row (T_i,), original unit, NaN where missing, at least one known; may be mapped
                from files, a part is read at a time.
            row_ids: names of the rows.
            seasons: candidates, main one first; those that no row shows twice are dropped.
            horizon: H.
            transform: `auto`, `none` or `log`; `auto` takes the logarithm of positive data where that
                lowers the smoothing error by 2 % or more.
            seed: of the gains' search.
            cells: the most values that the search may touch, for each transformation.

        Raises:
            InputError: an unknown transform, or `log` of values that are not positive.
        """
        if transform not in ("auto", *_TRANSFORMS):
            raise InputError(f"transform is {transform!r}; expected one of: auto, {', '.join(_TRANSFORMS)}")
        smallest = min(float(np.nanmin(row)) for row in values)
        if transform == "log" and smallest <= 0:
            raise InputError(
                f"transform='log' needs positive targets, found {smallest:g}; use transform='none'"
            )
        longest = max(len(row) for row in values)
        seasons = tuple(m for m in seasons if m > 1 and 2 * m <= longest)
        fits = {}
        if transform in ("auto", "none"):
            fits["none"] = fit_smoothing(values, seasons, horizon, seed=seed, cells=cells)
        if transform == "log" or (transform == "auto" and smallest > 0):
            fits["log"] = fit_smoothing(
                values, seasons, horizon, forward=np.log, inverse=_exp, seed=seed, cells=cells
            )
        chosen = next(iter(fits))
        if len(fits) == 2:
            gain = fits["log"][1] / np.maximum(fits["none"][1], 1e-300)
            chosen = "log" if np.nanmedian(gain) < 0.98 else "none"
        preparation = Preparation(
            chosen,
            smallest / 2 if chosen == "log" else 0.0,
            seasons,
            list(row_ids),
            fits[chosen][0],
            np.ones(len(values)),
        )
        preparation.smallest_scale = preparation._smallest_scale(values)
        preparation.unit = preparation._units(values)
        return preparation

    def for_rows(self, values: Sequence[Floats], row_ids: Sequence[str], *, transform: str) -> Preparation:
        """The same seasons, and the typical gains for rows that are not its own: for rows that are too short
        to find theirs. Units are those of `values`.

        Args:
            values, row_ids: as for `fit`.
            transform: none or log.
        """
        smallest = min(float(np.nanmin(row)) for row in values)
        gains, units = self.parameters(row_ids), np.ones(len(values))
        floor = smallest / 2 if transform == "log" else 0.0
        made = Preparation(transform, floor, self.seasons, list(row_ids), gains, units)
        made.smallest_scale = made._smallest_scale(values)
        made.unit = made._units(values)
        return made

    def _smallest_scale(self, values: Sequence[Floats]) -> float:
        smallest = np.inf
        for row in values:
            known = self.forward(row[~np.isnan(row)])
            mean = float(np.abs(np.diff(known)).mean()) if len(known) > 1 else 0.0
            smallest = min(smallest, mean) if mean > 0 else smallest
        return 1e-3 * smallest if np.isfinite(smallest) else 1e-9

    def _units(self, values: Sequence[Floats]) -> Floats:
        units = np.empty(len(values))
        parameters = self.parameters(self.row_ids)
        size = max(1, 2_000_000 // max(len(row) for row in values))
        for i in range(0, len(values), size):
            part = values[i : i + size]
            n = np.array([len(row) for row in part])[:, None]
            t = np.arange(n.max())
            padded = np.full((len(part), len(t)), np.nan)
            padded[t < n] = np.concatenate(part)
            scale = self.run(padded, parameters.select(np.arange(i, i + len(part)))).scale
            inside = (t >= np.minimum(n // 3, n - 1)) & (t < n)
            units[i : i + size] = np.where(inside, scale, 0).sum(axis=1) / inside.sum(axis=1)
        return np.maximum(units, self.smallest_scale)

    # ------------------------------------------------------------------------------------ transform

    def forward(self, values: Floats) -> Floats:
        """Original unit to the network's."""
        return np.log(np.maximum(values, self.floor)) if self.transform == "log" else values

    def inverse(self, values: Floats) -> Floats:
        """The network's unit to the original; exact, except below `floor`."""
        return _exp(values) if self.transform == "log" else values

    # ------------------------------------------------------------------------------------ recurrence

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns that `advance` returns."""
        seasonal = tuple(f"change_over_{m}" for m in self.seasons)
        return (
            "change",
            "surprise",
            "above_level",
            "trend",
            *seasonal,
            "above_mean",
            "calmness",
            "age",
            "missing",
        )

    @property
    def anchor_names(self) -> tuple[str, ...]:
        """Names of the simple forecasts that the network mixes and corrects."""
        return ("last", *(f"season_{m}" for m in self.seasons), "smoothing")

    def parameters(self, row_ids: Sequence[str]) -> SmoothingParameters:
        """Gains of the named rows; the typical ones for rows that were not in training."""
        known = {name: i for i, name in enumerate(self.row_ids)}
        typical = self.smoothing.typical()
        index = np.array([known.get(name, len(known)) for name in row_ids], dtype=np.intp)
        both = SmoothingParameters(
            *(
                np.concatenate([getattr(self.smoothing, f.name), getattr(typical, f.name)])
                for f in fields(typical)
            )
        )
        return both.select(index)

    def units(self, row_ids: Sequence[str]) -> Floats:
        """The loss unit of the named rows; the median for rows that were not in training."""
        known = dict(zip(self.row_ids, self.unit, strict=True))
        typical = float(np.median(self.unit))
        return np.array([known.get(name, typical) for name in row_ids])

    def start(self, rows: int) -> PreparedState:
        """The state of rows of which nothing was seen."""
        return PreparedState(
            smoothing=SmoothingState.start(rows, self.seasons),
            last=np.zeros(rows),
            mean=np.zeros(rows),
            spread=np.zeros(rows),
            recent=np.zeros((rows, max(self.seasons, default=1))),
            floor=np.full(rows, self.smallest_scale),
        )

    def advance(
        self, state: PreparedState, parameters: SmoothingParameters, values: Floats
    ) -> tuple[Floats, list[Floats]]:
        """Feed one transformed value a row (NaN where missing) into `state`, in place.

        Returns:
            features (rows, F) in units of the running scale, softly clipped at ±5; the new seasonal terms.
        """
        smoothing = state.smoothing
        clock = smoothing.clock
        rows = np.arange(len(values))
        missing = np.isnan(values)
        fresh = smoothing.observed == 0
        step = advance(smoothing, parameters, self.seasons, values)
        seen = np.maximum(smoothing.observed, 1.0)
        filled = step.filled
        previous = np.where(fresh, filled, state.last)
        offset = np.where(missing, 0.0, filled - state.mean)
        state.mean = state.mean + offset / seen
        state.spread = state.spread + np.where(missing, 0.0, offset * (filled - state.mean))
        state.last = filled
        scale = state.scale
        changes = []
        longest = state.recent.shape[1]
        for m in self.seasons:
            before = state.recent[rows, (clock - m) % longest]
            changes.append(np.where(clock >= m, filled - before, 0.0))
        state.recent[rows, clock % longest] = filled
        deviation = state.positive(np.sqrt(state.spread / seen))
        relative = [
            filled - previous,
            step.error,
            filled - smoothing.level,
            smoothing.trend,
            *changes,
        ]
        columns = [
            *(column / scale for column in relative),
            (filled - state.mean) / deviation,
            np.log(deviation / scale),
            np.log1p(smoothing.observed) / 5.0,
            missing.astype(np.float64),
        ]
        features = _CLIP * np.tanh(np.stack(columns, axis=1) / _CLIP)
        # Before a row's first value there is nothing to describe.
        features[smoothing.observed == 0, :-1] = 0.0
        return features, step.seasonal

    def run(
        self, values: Floats, parameters: SmoothingParameters, state: PreparedState | None = None
    ) -> History:
        """Advance over whole rows of original values (rows, T); `state` continues an earlier stretch.

        Cost: about 90 vector operations over rows a time step; (F + 6) values kept a row and step.
        """
        transformed = self.forward(values)
        R, T = values.shape
        state = self.start(R) if state is None else state
        filled, scale, level, trend, residual = (np.empty((T, R)) for _ in range(5))
        seasonal = [np.empty((T, R)) for _ in self.seasons]
        features = np.empty((R, T, len(self.feature_names)), dtype=np.float32)
        for t in range(T):
            features[:, t], terms = self.advance(state, parameters, transformed[:, t])
            smoothing = state.smoothing
            filled[t], scale[t] = state.last, state.scale
            level[t], trend[t], residual[t] = smoothing.level, smoothing.trend, smoothing.residual
            for kept, term in zip(seasonal, terms, strict=True):
                kept[t] = term
        return History(
            filled.T, scale.T, level.T, trend.T, residual.T, [kept.T for kept in seasonal], features, state
        )

    # --------------------------------------------------------------------------------------- anchors

    def anchors(self, state: PreparedState, parameters: SmoothingParameters, horizon: int) -> Floats:
        """The simple forecasts from `state`, transformed unit: (rows, horizon, anchors)."""
        R = len(state.last)
        clock = state.smoothing.clock[:, None]
        k = np.arange(1, horizon + 1)
        columns = [np.broadcast_to(state.last[:, None], (R, horizon))]
        longest = state.recent.shape[1]
        for m in self.seasons:
            at = clock - 1 + k - m * -(-k // m)
            before = np.take_along_axis(state.recent, at % longest, axis=1)
            columns.append(np.where(at >= 0, before, state.last[:, None]))
        columns.append(forecast(state.smoothing, parameters, horizon))
        return np.stack(columns, axis=-1)

    def anchors_at(
        self, history: History, parameters: SmoothingParameters, rows: Indices, at: Indices, horizon: int
    ) -> Floats:
        """The same from a history; origin i is row `rows[i]` known up to step `at[i]`: (n, H, A)."""
        k = np.arange(1, horizon + 1)
        last = history.filled[rows, at][:, None]
        columns = [np.broadcast_to(last, (len(rows), horizon))]
        damping, fading = horizon_weights(parameters, horizon)
        smooth = (
            history.level[rows, at][:, None]
            + damping[rows] * history.trend[rows, at][:, None]
            + fading[rows] * history.residual[rows, at][:, None]
        )
        for m, terms in zip(self.seasons, history.seasonal, strict=True):
            back = at[:, None] + k - m * -(-k // m)
            inside = np.maximum(back, 0)
            columns.append(np.where(back >= 0, history.filled[rows[:, None], inside], last))
            smooth = smooth + np.where(back >= 0, terms[rows[:, None], inside], 0.0)
        columns.append(smooth)
        return np.stack(columns, axis=-1)

    # --------------------------------------------------------------------------------------- storage

    def to_json(self) -> dict[str, Any]:
        """Plain values, exact to the bit."""
        gains = {f.name: getattr(self.smoothing, f.name).tolist() for f in fields(self.smoothing)}
        return {
            "transform": self.transform,
            "floor": self.floor,
            "seasons": list(self.seasons),
            "row_ids": self.row_ids,
            "smoothing": gains,
            "unit": self.unit.tolist(),
            "smallest_scale": self.smallest_scale,
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> Preparation:
        """The inverse of `to_json`."""
        rows = len(stored["row_ids"])
        gains = {name: np.asarray(values, dtype=np.float64) for name, values in stored["smoothing"].items()}
        gains["gamma"] = gains["gamma"].reshape(rows, len(stored["seasons"]))
        return Preparation(
            stored["transform"],
            float(stored["floor"]),
            tuple(stored["seasons"]),
            list(stored["row_ids"]),
            SmoothingParameters(**gains),
            np.asarray(stored["unit"], dtype=np.float64),
            float(stored["smallest_scale"]),
        )


def _exp(values: Floats) -> Floats:
    """A forecast beyond every number is as wrong as one of e^700."""
    return np.exp(np.minimum(values, 700.0))
