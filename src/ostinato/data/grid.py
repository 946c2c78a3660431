"""Parsed rows to series on a regular grid: one pass to measure, one to scatter, in memory or on disk."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ostinato.data.columns import ColumnSource
from ostinato.data.covariates import CovariateEncoding
from ostinato.data.frequency import Frequency
from ostinato.data.large import LazyScratch, RowStore, full, release
from ostinato.data.steps import StepStatistics
from ostinato.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NEVER = np.iinfo(np.int64).min
_SPARSEST_FOUND = 0.1  # a frequency that would leave more than 9 of 10 rows missing was not found but guessed
_SPARSEST_GIVEN = 0.001


@dataclass
class Widths:
    """How many targets, known, observed and static columns a row has, in this order."""

    target: int
    known: int
    observed: int
    static: int

    def split(self, body: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """The four parts of rows (n, total)."""
        ends = np.cumsum([self.target, self.known, self.observed]).tolist()
        target, known, observed, static = np.split(body, ends, axis=1)
        return target, known, observed, static


@dataclass
class Measured:
    """What the first pass learns of each series: times in seconds, `NEVER` where there is none."""

    first: Ints
    last_target: Ints
    last_known: Ints
    low: Floats
    high: Floats
    n_rows: int = 0
    steps: StepStatistics = field(default_factory=StepStatistics)


@dataclass
class Gridded:
    """All series laid end to end; in `known` the future rows of a series follow its past ones."""

    codes: Ints
    first: Ints
    lengths: Ints
    futures: Ints
    values: Floats
    known: Floats
    observed: Floats
    static: Floats
    n_filled: int
    n_trailing: int
    n_late: int


def measure(store: RowStore, n_series: int, widths: Widths, *, with_steps: bool) -> Measured:
    """First pass over the rows."""
    found = Measured(
        np.full(n_series, np.iinfo(np.int64).max),
        np.full(n_series, NEVER),
        np.full(n_series, NEVER),
        np.full((n_series, widths.target), np.nan),
        np.full((n_series, widths.target), np.nan),
    )
    for head, body in store.chunks():
        times, codes = head[:, 0], head[:, 1]
        target, known, _, _ = widths.split(body)
        np.minimum.at(found.first, codes, times)
        has_target = ~np.isnan(target).all(axis=1)
        np.maximum.at(found.last_target, codes[has_target], times[has_target])
        note_known(found, times, codes, known)
        np.fmin.at(found.low, codes, target)
        np.fmax.at(found.high, codes, target)
        if with_steps:
            found.steps.update(codes, times)
        found.n_rows += len(times)
    return found


def note_known(found: Measured, times: Ints, codes: Ints, known: Floats) -> None:
    """Remember the last row of each series that has a known value."""
    if known.shape[1]:
        has_known = ~np.isnan(known).all(axis=1)
        np.maximum.at(found.last_known, codes[has_known], times[has_known])


def _is_finer(one: Frequency, other: Frequency) -> bool:
    start = np.datetime64("2024-01-01", "s")
    found, on_grid = one.locate(start, other.times(start, 2))
    return bool(on_grid.all() and found[1] > 1)


def choose_frequency(
    found: Measured, source: ColumnSource, given: Frequency | None, *, counts_steps: bool, is_trained: bool
) -> tuple[Frequency, str]:
    """The grid of the table, and a sentence that says how it was found. Raises DataError where there is none.

    `given` is what the user says or, where `is_trained`, what the model was trained on: then most rows must
    have that step.
    """
    steps = found.steps
    own, count = steps.most_common() if steps.n_steps else (None, 0)
    if own is not None and counts_steps:
        own = Frequency.of("step", own.step)
    if given is not None:
        is_other = own is not None and (own.unit, own.step) != (given.unit, given.step)
        is_other = is_other and 2 * count > steps.n_steps
        if not is_trained and own is not None and is_other and _is_finer(given, own):
            raise source.error(
                f"the frequency is given as {given}, and the most common step of this table is {own.name}: "
                f"most times of that grid have no row; give --freq {own.name}, or leave it out"
            )
        if is_trained and own is not None and is_other:
            raise source.error(
                f"the model was trained on the frequency {given}, and the most common step of this table is "
                f"{own.name}; aggregate the rows, or train on tables of this frequency"
            )
        if given.unit == "month" and not given.at_end and steps.month_ends():
            given = Frequency.of("month", given.step, at_end=True).with_season(given.season)
        return given, f"frequency {given}, as given"
    if own is None:
        raise source.error(
            "no series has two different times, so the frequency is unknown; give more rows, or --freq"
        )
    return own, f"frequency {own}, found from the times: {count:,} of {steps.n_steps:,} steps"


def check_phases(found: Measured, source: ColumnSource, frequency: Frequency, names: list[str]) -> None:
    """Refuse series whose grids are shifted against each other."""
    kept = np.flatnonzero(found.last_target != NEVER)
    times = found.first[kept].astype("datetime64[s]")
    phase = frequency.phase(times)
    if (phase != phase[0]).any():
        other = int((phase != phase[0]).argmax())
        first, second = frequency.format(times[[0, other]])
        raise source.error(
            f"series {names[kept[0]]!r} starts at {first} and series {names[kept[other]]!r} at {second}: no "
            f"grid of {frequency} holds both; shift one of them, or give a finer --freq"
        )


class Scatter:
    """The second pass: every row to its place.

    Args:
        found: the first pass.
        frequency: the grid.
        widths: of the body.
        names: of the series.
        encoding: turns the covariates' cells into columns.
        is_inferred: whether the frequency was found from the data.
        scratch: the folder that the arrays are mapped from; None keeps them in memory.
    """

    def __init__(
        self,
        found: Measured,
        frequency: Frequency,
        widths: Widths,
        names: list[str],
        encoding: CovariateEncoding,
        is_inferred: bool,
        scratch: LazyScratch | None,
    ):
        self.found, self.frequency, self.widths, self.names = found, frequency, widths, names
        self.encoding, self.is_inferred = encoding, is_inferred
        self.kept = found.last_target != NEVER
        self.start = np.where(self.kept, found.first, 0).astype("datetime64[s]")
        self.lengths = self._rows_until(found.last_target)
        extents = self.lengths
        if widths.known:
            extents = np.maximum(extents, self._rows_until(found.last_known))
        self.extents = extents
        self.value_base = np.cumsum(self.lengths) - self.lengths
        self.known_base = np.cumsum(self.extents) - self.extents
        self.scratch = scratch
        self.n_trailing = self.n_late = self.n_filled = 0

    def _rows_until(self, last: Ints) -> Ints:
        counts = self.kept & (last != NEVER)
        reached = np.where(counts, last.astype("datetime64[s]"), self.start)
        steps, _ = self.frequency.locate(self.start, reached)
        return np.where(counts, np.maximum(steps + 1, 0), 0)

    def check_density(self, source: ColumnSource) -> None:
        """Refuse a grid that would be nearly empty: irregular times, or a frequency that is far too fine."""
        n_grid, n_rows = float(self.extents.astype(np.float64).sum()), self.found.n_rows
        limit = _SPARSEST_FOUND if self.is_inferred else _SPARSEST_GIVEN
        if n_grid > 1000 and n_rows < limit * n_grid:
            raise source.error(
                f"{n_rows:,} rows would be spread over {n_grid:,.0f} times of the grid {self.frequency}: the "
                "times are too irregular; give --freq with a coarser step and aggregate the rows to it first"
            )

    def allocate(self) -> None:
        """Make the arrays, all missing."""
        folder = None if self.scratch is None else self.scratch.get()
        n_values, n_known, widths = int(self.lengths.sum()), int(self.extents.sum()), self.widths
        self.values = full((n_values, widths.target), np.nan, np.float64, folder)
        self.known = full((n_known, len(self.encoding.names("known"))), np.nan, np.float64, folder)
        self.observed = full((n_values, len(self.encoding.names("observed"))), np.nan, np.float64, folder)
        self.lines = full((n_known, 1), 0, np.int64, folder)
        self.static = np.full((len(self.kept), widths.static), np.nan)
        self.static_lines = np.zeros((len(self.kept), widths.static), np.int64)

    def scatter(self, store: RowStore, source: ColumnSource, static_names: list[str]) -> None:
        """Place the rows of the history. Raises DataError for times off the grid and for duplicates."""
        for head, body in store.chunks():
            head, body = self._of_kept(head, body)  # noqa: PLW2901 - the rest is not used
            times, codes, lines = head[:, 0], head[:, 1], head[:, 2]
            target, known, observed, static = self.widths.split(body)
            place, on_grid = self.frequency.locate(self.start[codes], times.astype("datetime64[s]"))
            if not on_grid.all():
                raise self._off_grid(source, head[int((~on_grid).argmax())])
            self._place_static(source, codes, lines, static, static_names)
            inside = place < self.extents[codes]
            self.n_trailing += int((~inside).sum())
            codes, place, lines = codes[inside], place[inside], lines[inside]
            slots = self.known_base[codes] + place
            self._refuse_duplicates(source, slots, codes, lines, times[inside])
            self.lines[slots, 0] = lines
            self.known[slots] = self.encoding.expand("known", known[inside])
            past = place < self.lengths[codes]
            self.n_filled += int(past.sum())
            slots = self.value_base[codes[past]] + place[past]
            self.values[slots] = target[inside][past]
            self.observed[slots] = self.encoding.expand("observed", observed[inside][past])
            self._release()

    def scatter_future(self, store: RowStore, source: ColumnSource, *, counts_positions: bool) -> None:
        """Place rows of known values after the last target of their series; earlier ones are only counted."""
        seen = full((len(self.known), 1), 0, np.int64, None if self.scratch is None else self.scratch.get())
        for head, body in store.chunks():
            n_rows = len(head)
            head, body = self._of_kept(head, body)  # noqa: PLW2901 - the rest is counted as late
            times, codes, lines = head[:, 0], head[:, 1], head[:, 2]
            known = self.encoding.expand("known", self.widths.split(body)[1])
            if counts_positions:
                place = times + self.lengths[codes]
            else:
                place, on_grid = self.frequency.locate(self.start[codes], times.astype("datetime64[s]"))
                if not on_grid.all():
                    raise self._off_grid(source, head[int((~on_grid).argmax())])
            late = (place >= self.lengths[codes]) & (place < self.extents[codes])
            self.n_late += n_rows - int(late.sum())
            slots = self.known_base[codes[late]] + place[late]
            kept_lines, self.lines = self.lines, seen
            self._refuse_duplicates(source, slots, codes[late], lines[late], times[late])
            seen[slots, 0] = lines[late]
            self.lines = kept_lines
            given = known[late]
            self.known[slots] = np.where(np.isnan(given), self.known[slots], given)
            self._release()

    def _of_kept(self, head: Ints, body: Floats) -> tuple[Ints, Floats]:
        kept = self.kept[head[:, 1]]
        return (head, body) if kept.all() else (head[kept], body[kept])

    def _place_static(
        self, source: ColumnSource, codes: Ints, lines: Ints, static: Floats, names: list[str]
    ) -> None:
        for column, name in enumerate(names):
            given = ~np.isnan(static[:, column])
            where, cells, at = codes[given], static[given, column], lines[given]
            known = self.static[:, column]
            fresh = np.isnan(known[where])
            first = np.unique(where[fresh], return_index=True)[1]
            known[where[fresh][first]] = cells[fresh][first]
            self.static_lines[where[fresh][first], column] = at[fresh][first]
            wrong = known[where] != cells
            if wrong.any():
                row = int(wrong.argmax())
                raise source.error(
                    f"a static value changes within series {self.names[int(where[row])]!r} (it differs from "
                    f"{source.unit} {int(self.static_lines[where[row], column])}); make it constant, "
                    "or use it as observed or known",
                    line=int(at[row]),
                    column=name,
                )

    def _refuse_duplicates(
        self, source: ColumnSource, slots: Ints, codes: Ints, lines: Ints, times: Ints
    ) -> None:
        earlier = np.asarray(self.lines[slots, 0])
        order = np.argsort(slots, kind="stable")
        again = np.flatnonzero(slots[order][1:] == slots[order][:-1])
        if not earlier.any() and not len(again):
            return
        pairs = [(int(earlier[row]), row) for row in np.flatnonzero(earlier)[:1]]
        pairs += [(int(lines[order[i]]), int(order[i + 1])) for i in again[:1]]
        before, row = min(pairs, key=lambda pair: pair[1])
        time = self.frequency.format(times[[row]].astype("datetime64[s]"))[0]
        series = "" if len(self.names) == 1 else f" of series {self.names[int(codes[row])]!r}"
        clocks = (
            " (if these are local times of an autumn night, write them in UTC)"
            if _could_be_clocks(self)
            else ""
        )
        raise source.error(
            f"the time {time}{series} is there twice, first in {source.unit} {before}{clocks}; keep one of "
            "the rows, or name the column that tells series apart with --series",
            line=int(lines[row]),
        )

    def _off_grid(self, source: ColumnSource, head: Ints) -> DataError:
        time = np.datetime64(int(head[0]), "s")
        shown = str(int(head[0])) if self.frequency.unit == "step" else str(time).replace("T", " ")
        divisor = self.found.steps.common_divisor().name
        if self.is_inferred:
            cure = f"the most common step is {self.frequency.name}, but only {divisor} would hold every row; "
            cure += "correct the times, aggregate the rows to a regular grid, or give --freq"
        else:
            cure = f"the coarsest grid that holds every row is {divisor}; use it, or aggregate the rows"
        return source.error(
            f"the time {shown} is not on the grid {self.frequency}: {cure}", line=int(head[2])
        )

    def _release(self) -> None:
        if self.scratch is not None:
            for array in (self.values, self.known, self.observed, self.lines):
                release(array)

    def result(self) -> Gridded:
        """The arrays of the series that have a target."""
        codes = np.flatnonzero(self.kept)
        return Gridded(
            codes,
            self.found.first[codes],
            self.lengths[codes],
            (self.extents - self.lengths)[codes],
            self.values,
            self.known,
            self.observed,
            self.encoding.expand("static", self.static[codes]),
            self.n_filled,
            self.n_trailing,
            self.n_late,
        )


def _could_be_clocks(scatter: Scatter) -> bool:
    return scatter.frequency.unit == "s" and scatter.frequency.step <= 3600
