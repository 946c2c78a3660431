"""One table on its way in: columns to roles, rows, grid, and the notes about what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ostinato.data.cells import is_number
from ostinato.data.columns import ColumnSource, resolve
from ostinato.data.covariates import ROLES, ColumnEncoding, CovariateEncoding
from ostinato.data.frequency import Frequency
from ostinato.data.grid import (
    NEVER,
    Gridded,
    Measured,
    Scatter,
    Widths,
    check_phases,
    choose_frequency,
    measure,
    note_known,
)
from ostinato.data.large import LazyScratch, RowStore
from ostinato.data.rows import Layout, RowReader
from ostinato.data.table import Note, Series, SeriesSpec, SeriesTable, TableSchema
from ostinato.data.times import TimeParser, is_time
from ostinato.errors import DataError


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, quoted."""
    return ", ".join(map(repr, names[:most])) + (", …" if len(names) > most else "")


class Reading:
    """One table on its way in: layout, rows, grid, notes."""

    def __init__(
        self,
        spec: SeriesSpec,
        schema: TableSchema | None,
        sources: list[ColumnSource],
        name: str,
        budget_bytes: int,
    ):
        self.spec, self.schema, self.sources, self.name = spec, schema, sources, name
        self.budget_bytes, self.scratch = budget_bytes, LazyScratch()
        self.layouts = [self._layout(source, is_future=i > 0) for i, source in enumerate(sources)]
        self.names = {
            role: tuple(sources[0].names[i] for i in getattr(self.layouts[0], role))
            for role in ("target", *ROLES)
        }
        self.reader = RowReader(spec.decimal, spec.time_format, schema.encoding if schema else None)
        self.notes: list[Note] = []

    def table(self) -> SeriesTable:
        """Read everything."""
        layout = self.layouts[0]
        self.widths = Widths(len(layout.target), len(layout.known), len(layout.observed), len(layout.static))
        stores = self.reader.read(list(zip(self.sources, self.layouts, strict=True)), self._store)
        store, source = stores[0], self.sources[0]
        if store.n_rows < 2:
            found = (
                "only a header"
                if store.n_rows == 0 and self.spec.header and not source.is_frame
                else f"{store.n_rows} row"
                if store.n_rows
                else "none"
            )
            raise source.error(f"expected at least two rows, found {found}")
        encoding = self._encoding(stores)
        names = list(self.reader.series)
        by_position = layout.time is None or self.spec.start is not None
        measured = measure(store, len(names), self.widths, with_steps=layout.time is not None)
        self._check_targets(measured)
        grid, frequency = self._grid(measured, by_position)
        if len(stores) > 1:
            self._measure_future(stores[1], measured, layout.time is None)
        check_phases(measured, source, grid, names)
        is_inferred = self.spec.frequency is None and self.schema is None
        large = self.scratch if any(one.is_spilled for one in stores) else None
        scatter = Scatter(measured, grid, self.widths, names, encoding, is_inferred, large)
        scatter.check_density(source)
        scatter.allocate()
        scatter.scatter(store, source, list(self.names["static"]))
        if len(stores) > 1:
            scatter.scatter_future(stores[1], self.sources[1], counts_positions=layout.time is None)
        for one in stores:
            one.drop()
        gridded = scatter.result()
        self._add_notes(measured, gridded, names)
        first = gridded.first.astype("datetime64[s]")
        if by_position:
            first = frequency.shift(self._start(), gridded.first)
        return SeriesTable(
            series=_cut(gridded, first, names),
            frequency=frequency,
            targets=self.names["target"],
            known=encoding.names("known"),
            observed=encoding.names("observed"),
            static=encoding.names("static"),
            notes=self.notes,
            encoding=encoding,
            spec=self.spec,
            source=self.name,
            scratch=self.scratch.made,
        )

    def _store(self) -> RowStore:
        width = self.widths.target + self.widths.known + self.widths.observed + self.widths.static
        return RowStore(width, self.budget_bytes, self.scratch)

    def _layout(self, source: ColumnSource, *, is_future: bool) -> Layout:
        spec = self.spec

        def columns(role: str) -> tuple[int | None, ...]:
            if is_future and role != "known":
                return (None,) * len(spec.columns(role))
            return tuple(resolve(source, column, f"--{role}") for column in spec.columns(role))

        layout = Layout(
            time=None if spec.time is None else resolve(source, spec.time, "--time"),
            series=None if spec.series is None else resolve(source, spec.series, "--series"),
            target=columns("target"),
            known=columns("known"),
            observed=columns("observed"),
            static=columns("static"),
        )
        if is_future:
            return layout
        self._refuse_data_as_header(source, layout)
        roles: dict[int, str] = {}
        for role in ("time", "series", "target", *ROLES):
            found = getattr(layout, role)
            for index in found if isinstance(found, tuple) else [] if found is None else [found]:
                if index in roles:
                    raise source.error(
                        f"the column {source.names[index]!r} is used as --{roles[index]} and as --{role}; "
                        "give it one role"
                    )
                roles[index] = role
        return layout

    def _refuse_data_as_header(self, source: ColumnSource, layout: Layout) -> None:
        """A column given by number, under a name that is a value: the first row would be lost unseen."""
        spec = self.spec
        given = [*([] if spec.time is None else [spec.time]), *spec.columns("target")]
        if not spec.header or source.is_frame or all(column in source.names for column in given):
            return
        times = [] if layout.time is None else [source.names[layout.time]]
        targets = [source.names[index] for index in layout.target if index is not None]
        if all(map(is_time, times)) and all(map(is_number, targets)):
            raise source.error(
                f"the first line holds values ({', '.join([*times, *targets])}) where names are expected; "
                "give --no-header",
                line=1,
            )

    def _encoding(self, stores: list[RowStore]) -> CovariateEncoding:
        if self.schema is not None:
            for (role, number), found in self.reader.categories.items():
                if found.n_unknown:
                    text = f"column {self.names[role][number]!r}: {found.n_unknown:,} cells have a category "
                    text += "that the training data lacks"
                    self.notes.append(Note("unknown category", text, found.n_unknown))
            return self.schema.encoding
        roles: dict[str, tuple[ColumnEncoding, ...]] = {}
        column = self.widths.target
        for role in ROLES:
            encodings = []
            for number, name in enumerate(self.names[role]):
                categories = self.reader.categories.get((role, number))
                if categories is None:
                    encodings.append(ColumnEncoding(name, "number"))
                else:
                    encodings.append(categories.encoding(self.sources[0]))
                    for store in stores:
                        store.remaps[column] = categories.remap(encodings[-1])
                column += 1
            roles[role] = tuple(encodings)
        return CovariateEncoding(**roles)

    def _check_targets(self, found: Measured) -> None:
        for i, name in enumerate(self.names["target"]):
            if np.isnan(found.low[:, i]).all():
                raise self.sources[0].error(
                    "every value of this target is missing; name another column with --target, or fill it in",
                    column=name,
                )

    def _start(self) -> np.datetime64:
        start = str(self.spec.start)
        parser = TimeParser()
        seconds = parser.parse([start], lambda message, _: DataError(f"--start: {message}"))
        parser.finish()
        return np.datetime64(int(seconds[0]), "s")

    def _grid(self, found: Measured, by_position: bool) -> tuple[Frequency, Frequency]:
        """The grid of the stored times, and the table's frequency; they differ where rows are counted."""
        given = self.schema.frequency if self.schema else self.spec.grid
        counts_steps = self.reader.times[0].is_step if self.reader.times else False
        if by_position:
            assert given is not None
            if self.layouts[0].time is not None and not counts_steps:
                raise self.sources[0].error(
                    "--start is for tables without times or with counted steps; this one has times: leave it "
                    "out"
                )
            text = f"frequency {given}, as given, from {self.spec.start}"
            self.notes.append(Note("frequency", text, found.n_rows))
            return Frequency.of("step", 1), given
        if given is not None and counts_steps != (given.unit == "step"):
            what = "counted steps" if counts_steps else "times"
            raise self.sources[0].error(
                f"the column holds {what}, which do not fit the frequency {given}; for counted steps give "
                "also --start, the time of step 0"
            )
        frequency, text = choose_frequency(
            found, self.sources[0], given, counts_steps=counts_steps, is_trained=self.schema is not None
        )
        self.notes.append(Note("frequency", text, found.n_rows))
        return frequency, frequency

    def _measure_future(self, store: RowStore, found: Measured, by_position: bool) -> None:
        for head, body in store.chunks():
            times, codes = head[:, 0], head[:, 1]
            known = self.widths.split(body)[1]
            if by_position:
                times = np.where(
                    found.last_target[codes] == NEVER, NEVER, found.last_target[codes] + 1 + times
                )
            note_known(found, times, codes, known)

    def _add_notes(self, found: Measured, gridded: Gridded, names: list[str]) -> None:
        def note(kind: str, count: int, text: str) -> None:
            if count:
                self.notes.append(Note(kind, text, count))

        n_grid = int(gridded.lengths.sum())
        gaps = n_grid - gridded.n_filled
        note(
            "unordered",
            found.steps.n_unordered,
            f"{found.steps.n_unordered:,} rows were out of order: sorted",
        )
        note("missing rows", gaps, f"{gaps:,} of {n_grid:,} times have no row: missing values")
        n_missing = (
            sum(int(np.isnan(gridded.values[i : i + (1 << 18)]).sum()) for i in range(0, n_grid, 1 << 18))
            - gaps * self.widths.target
        )
        note("missing targets", n_missing, f"{n_missing:,} target values are missing")
        kept = gridded.codes
        constant = kept[(found.low[kept] == found.high[kept]).any(axis=1)]
        text = f"{len(constant)} series with a constant target: {shown([names[i] for i in constant])}"
        note("constant", len(constant), text if len(names) > 1 else "a target is constant")
        empty = len(names) - len(kept)
        note("no target", empty, f"{empty} series without any target left out")
        n = gridded.n_trailing
        note("trailing", n, f"{n:,} rows after the last target carry no known values: left out")
        n = gridded.n_late
        note(
            "future", n, f"{n:,} rows of the future file are not after the last target of a series: left out"
        )
        if self.reader.found_decimal_comma:
            note("decimal comma", 1, "numbers are written with a decimal comma")
        for source, parser in zip(self.sources, self.reader.times, strict=True):
            if parser.is_aware or source.has_zone:
                note("time zone", 1, "times have a time zone: converted to UTC")
            if parser.is_order_needed:
                order = "day/month/year" if parser.day_first else "month/day/year"
                note("date order", 1, f"dates are read as {order}: some of them allow nothing else")


def _cut(gridded: Gridded, first: np.ndarray[Any, Any], names: list[str]) -> list[Series]:
    """The arrays laid end to end, as views, one set for each series."""
    ends = np.cumsum(gridded.lengths)
    known_ends = np.cumsum(gridded.lengths + gridded.futures)
    found = []
    for i, code in enumerate(gridded.codes.tolist()):
        length, future = int(gridded.lengths[i]), int(gridded.futures[i])
        rows, known_rows = (
            slice(ends[i] - length, ends[i]),
            slice(known_ends[i] - length - future, known_ends[i]),
        )
        found.append(
            Series(
                id=names[code],
                start=first[i],
                values=gridded.values[rows],
                known=gridded.known[known_rows],
                observed=gridded.observed[rows],
                static=gridded.static[i],
            )
        )
    return found
