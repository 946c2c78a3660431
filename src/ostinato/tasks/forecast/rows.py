"""From a table of series to prepared rows: what the networks read, in training and prediction alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.frequency import Frequency
from ostinato.data.memory import History
from ostinato.data.preparation import Indices, Preparation
from ostinato.data.smoothing import Floats, SmoothingParameters
from ostinato.data.table import Series, SeriesTable

Single = NDArray[np.float32]

GROUP_CELLS = 40_000_000
"""Values of prepared rows that are held at once: about 160 MB."""

# Seconds of one calendar cycle, and how often training must have seen it before the network may use it.
_CYCLES = {
    "minute_of_hour": (3_600, 3),
    "hour_of_day": (86_400, 3),
    "day_of_week": (7 * 86_400, 3),
    "day_of_month": (30.4 * 86_400, 8),
    "month_of_year": (365.25 * 86_400, 2),
    "day_of_year": (365.25 * 86_400, 2),
}


def row_id(series: str, target: str) -> str:
    """The name of a row: one target of one series."""
    return f"{series}\n{target}"


@dataclass(frozen=True)
class Columns:
    """Which columns the network sees besides the recurrent features, and how they are scaled.

    Attributes:
        targets: names of the C targets; with several, a row carries a one-hot of its own.
        calendar: indices of the calendar features in use: those whose cycle training shows often enough.
        known, observed, static: means and standard deviations (2, columns) of the training part.
    """

    targets: tuple[str, ...]
    calendar: tuple[int, ...]
    known: Floats
    observed: Floats
    static: Floats

    @staticmethod
    def fit(table: SeriesTable, lengths: Sequence[int]) -> Columns:
        """Decide from the first `lengths[i]` steps of every series."""
        longest = max(zip(lengths, table.series, strict=True), key=lambda pair: pair[0])
        span = table.frequency.times(longest[1].start, 2, offset=int(longest[0]) - 1)[0] - longest[1].start
        seconds = float(span.astype(np.int64))
        calendar = tuple(
            i
            for i, name in enumerate(table.frequency.calendar_names)
            for period, times in [_CYCLES[name.rsplit("_", 1)[0]]]
            if seconds >= times * period
        )
        parts = list(zip(lengths, table.series, strict=True))
        return Columns(
            table.targets,
            calendar,
            _moments([s.known[:n] for n, s in parts], len(table.known)),
            _moments([s.observed[:n] for n, s in parts], len(table.observed)),
            _moments([s.static[None] for _, s in parts], len(table.static)),
        )

    def like(self, had: Columns) -> Columns:
        """What a network that has learned from columns `had` sees of the table that these were fitted to.

        The calendar is the network's, however short the table is. Known and observed columns are scaled by
        the table itself; static ones as the network knows them, because few series say little about how
        series differ.
        """
        return replace(self, calendar=had.calendar, static=had.static)

    @property
    def ahead_size(self) -> int:
        """P, columns known in advance."""
        one_hot = len(self.targets) if len(self.targets) > 1 else 0
        return len(self.calendar) + self.known.shape[1] + self.static.shape[1] + one_hot

    def ahead(self, frequency: Frequency, series: Series, target: int, steps: int) -> Single:
        """What is known in advance at the first `steps` steps of a row: (steps, P); 0 where missing."""
        known = np.full((steps, self.known.shape[1]), np.nan)
        n = min(steps, len(series.known))
        known[:n] = series.known[:n]
        return self.compose(frequency.calendar(series.start, steps), known, series.static, target)

    def compose(self, calendar: Single, known: Floats, static: Floats, target: int) -> Single:
        """Columns known in advance from calendar features (n, all), known (n, K) and static (S,): (n, P)."""
        n = len(calendar)
        parts: list[NDArray[Any]] = [
            calendar[:, list(self.calendar)],
            _standard(known, self.known),
            np.broadcast_to(_standard(static[None], self.static), (n, self.static.shape[1])),
        ]
        if len(self.targets) > 1:
            parts.append(np.broadcast_to(np.eye(len(self.targets))[target], (n, len(self.targets))))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def observed_values(self, series: Series, steps: int) -> Single:
        """Observed columns at the first `steps` steps: (steps, O); 0 where missing."""
        observed = np.full((steps, self.observed.shape[1]), np.nan)
        n = min(steps, len(series.observed))
        observed[:n] = series.observed[:n]
        return self.scale_observed(observed)

    def scale_observed(self, observed: Floats) -> Single:
        """Observed values (n, O) as the network sees them; 0 where missing."""
        return _standard(observed, self.observed).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        arrays = {name: getattr(self, name).tolist() for name in ("known", "observed", "static")}
        return {"targets": list(self.targets), "calendar": list(self.calendar), **arrays}

    @staticmethod
    def from_json(stored: dict[str, Any]) -> Columns:
        """The inverse of `to_json`."""
        arrays = [
            np.asarray(stored[name], dtype=np.float64).reshape(2, -1)
            for name in ("known", "observed", "static")
        ]
        return Columns(tuple(stored["targets"]), tuple(stored["calendar"]), *arrays)


@dataclass
class PreparedRows:
    """Rows of a table, prepared over their whole length. Shorter rows are padded at the end.

    Attributes:
        ids: names of the rows.
        series, target: which series of the table and which target each row is: (R,).
        lengths: (R,) real steps.
        values: (R, T) original values, NaN where missing and in the padding.
        seen: (R, T) how many values are known up to and with each step.
        parameters: smoothing gains of the rows.
        units: (R,) of the loss; for a row that was not in training the median of all.
        history: the preparation at every step.
        x: (R, T, D) inputs of the encoder.
        ahead: (R, T + H, P) what is known in advance.
    """

    ids: list[str]
    series: Indices
    target: Indices
    lengths: Indices
    values: Floats
    seen: NDArray[np.int32]
    parameters: SmoothingParameters
    units: Floats
    history: History
    x: Single
    ahead: Single

    def relative(
        self, preparation: Preparation, rows: Indices, at: Indices, horizon: int
    ) -> tuple[Single, Single]:
        """`future` (n, H, P) and relative `anchors` (n, H, A) at origins whose last known step is `at`."""
        last, scale = self.history.filled[rows, at], self.history.scale[rows, at]
        anchors = preparation.anchors_at(self.history, self.parameters, rows, at, horizon)
        anchors = (anchors - last[:, None, None]) / scale[:, None, None]
        future = self.ahead[rows[:, None], at[:, None] + np.arange(1, horizon + 1)]
        return future, anchors.astype(np.float32)

    def targets(
        self, preparation: Preparation, rows: Indices, at: Indices, horizon: int, limits: Indices
    ) -> tuple[Single, NDArray[np.bool_]]:
        """Relative `y` (n, H) and which count: real, before step `limits` (n,), after a first value."""
        steps = at[:, None] + np.arange(1, horizon + 1)
        inside = steps < limits[:, None]
        values = self.values[rows[:, None], np.minimum(steps, self.values.shape[1] - 1)]
        mask = inside & ~np.isnan(values) & (self.seen[rows, at] > 0)[:, None]
        last, scale = self.history.filled[rows, at][:, None], self.history.scale[rows, at][:, None]
        y = (preparation.forward(np.where(mask, values, 1.0)) - last) / scale
        return np.where(mask, y, 0.0).astype(np.float32), mask


def prepare_rows(
    table: SeriesTable,
    members: Sequence[tuple[int, int]],
    columns: Columns,
    preparation: Preparation,
    horizon: int,
) -> PreparedRows:
    """Prepare rows `members` = (series, target) of `table`. O(rows × T) time and memory."""
    chosen = [table.series[i] for i, _ in members]
    lengths = np.array([s.length for s in chosen], dtype=np.int64)
    T = int(lengths.max())
    values = np.full((len(members), T), np.nan)
    ahead = np.zeros((len(members), T + horizon, columns.ahead_size), dtype=np.float32)
    observed = np.zeros((len(members), T, columns.observed.shape[1]), dtype=np.float32)
    for r, ((_, target), series) in enumerate(zip(members, chosen, strict=True)):
        values[r, : series.length] = series.values[:, target]
        ahead[r] = columns.ahead(table.frequency, series, target, T + horizon)
        observed[r] = columns.observed_values(series, T)
    ids = [row_id(s.id, table.targets[target]) for (_, target), s in zip(members, chosen, strict=True)]
    parameters = preparation.parameters(ids)
    history = preparation.run(values, parameters)
    x = encoder_inputs(history.features, ahead[:, 1 : T + 1], observed)
    index = np.array(members, dtype=np.int64)
    seen = np.cumsum(~np.isnan(values), axis=1, dtype=np.int32)
    return PreparedRows(
        ids=ids,
        series=index[:, 0],
        target=index[:, 1],
        lengths=lengths,
        values=values,
        seen=seen,
        parameters=parameters,
        units=preparation.units(ids),
        history=history,
        x=x,
        ahead=ahead,
    )


def row_groups(
    table: SeriesTable, preparation: Preparation, columns: Columns
) -> Iterator[list[tuple[int, int]]]:
    """All rows (series, target) that have a value, in groups whose prepared arrays fit in memory."""
    rows = [
        (i, c)
        for i, series in enumerate(table.series)
        for c in range(len(table.targets))
        if not np.isnan(series.values[:, c]).all()
    ]
    width = len(preparation.feature_names) + 2 * columns.ahead_size + 8
    size = max(1, GROUP_CELLS // (max(s.length for s in table.series) * width))
    for i in range(0, len(rows), size):
        yield rows[i : i + size]


def encoder_inputs(features: NDArray[Any], ahead_of_next: Single, observed: Single) -> Single:
    """One step's input: its features, what is known of the next step, what was observed at this one."""
    return np.concatenate([features.astype(np.float32), ahead_of_next, observed], axis=-1)


def _moments(parts: list[NDArray[np.float64]], columns: int) -> Floats:
    """Mean and standard deviation of each column over all parts: (2, columns).

    Parts are joined by their means and squared deviations (Chan, Golub & LeVeque 1983), which loses no
    digits to a large offset.
    """
    count, mean, square = (np.zeros(columns) for _ in range(3))
    for part in parts:
        n = (~np.isnan(part)).sum(axis=0)
        own = np.nansum(part, axis=0) / np.maximum(n, 1)
        both = np.maximum(count + n, 1)
        step = np.where(n > 0, own - mean, 0.0)
        square += np.nansum((part - own) ** 2, axis=0) + step**2 * count * n / both
        mean += step * n / both
        count += n
    deviation = np.sqrt(square / np.maximum(count, 1))
    return np.stack([mean, np.where(deviation > 1e-9 * np.abs(mean), deviation, 1.0)])


def _standard(values: NDArray[np.float64], moments: Floats) -> Floats:
    scaled = (values - moments[0]) / moments[1]
    return np.where(np.isnan(scaled), 0.0, scaled)
