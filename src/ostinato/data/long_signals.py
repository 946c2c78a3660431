"""Signals in long format: a row for each step, and a column that says which signal it is of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ostinato.data.cells import is_missing, is_number, numbers
from ostinato.data.columns import Column, ColumnSource, resolve
from ostinato.data.examples import Examples
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.large import LazyScratch, RowStore, full
from ostinato.data.lines import Collector, Findings, Row
from ostinato.data.record_roles import LABEL_NAMES, shown, usual
from ostinato.data.record_values import as_label
from ostinato.data.times import MonthFirstIsWrong, TimeParser
from ostinato.errors import DataError

TIME_NAMES = ("time", "timestamp", "t", "step", "frame", "date", "datetime")


def read_long_signals(source: ColumnSource, spec: LabelledSpec, name: str) -> Examples:
    """One signal for each value of the column `spec.series`, in the order in which they first appear.

    The rows of a signal need not be together. They are sorted by `spec.time` (or a column with a usual name
    of times), else taken in their order. `spec.values` are the dimensions, by default every other column
    whose first cell is a number. The label must be the same in all rows of a signal.

    Args:
        source: the table.
        spec: the columns; beyond `spec.large_bytes` of numbers the signals are kept in a temporary file.
        name: of the source, for messages.

    Raises:
        DataError: columns that there are not, cells that are missing or no finite numbers, a label that
            changes within a signal; with line and column.
    """
    findings = Findings(unit=source.unit)
    try:
        table = _LongTable(source, spec, TimeParser(), findings)
    except MonthFirstIsWrong:
        table = _LongTable(source, spec, TimeParser(day_first=True), findings)
    values, bounds = table.signals()
    collector = Collector("arrays", name, spec, findings, has_labels=table.label is not None)
    kept: list[int] = []
    for code, place in enumerate(table.first_lines):
        before = len(collector.places)
        collector.add(Row(values[bounds[code] : bounds[code + 1]], table.labels[code]), place)
        if len(collector.places) > before:
            kept.append(code)
    examples = collector.finish(table.reading())
    names = list(table.codes)
    views = SignalViews(values, bounds, kept, table.scratch)
    return replace(examples, inputs=views, ids=[names[code] for code in kept])


class SignalViews(Sequence[NDArray[np.float32]]):
    """Signals as slices of one array (ΣT, D), which may be mapped from a file in `scratch`."""

    def __init__(
        self,
        values: NDArray[np.float32],
        bounds: NDArray[np.int64],
        kept: Sequence[int],
        scratch: LazyScratch,
    ):
        self._values, self._bounds, self._kept = values, bounds, np.asarray(kept, np.int64)
        self._scratch = scratch

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.float32]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        code = self._kept[index]
        return np.asarray(self._values[self._bounds[code] : self._bounds[code + 1]])


class _LongTable:
    """The rows of the table, read once: codes of the signals, times, values.

    Attributes:
        label: index of the label's column, None without one.
        first_lines, labels: of each signal.
    """

    def __init__(self, source: ColumnSource, spec: LabelledSpec, times: TimeParser, findings: Findings):
        self.source, self.spec, self._times, self._findings = source, spec, times, findings
        assert spec.series is not None
        self.series = resolve(source, spec.series, "sequence")
        self.label = self._label()
        self.time = self._time()
        head = next(source.chunks(range(len(source.names))), None)
        self.values = self._value_columns([] if head is None else head[0])
        self.scratch = LazyScratch()
        self.codes: dict[str, int] = {}
        self.first_lines: list[int] = []
        self.labels: list[str | None] = []
        self._label_lines: list[int] = []
        self._is_numeric_time: bool | None = None
        self.store = RowStore(1 + len(self.values), spec.large_bytes, self.scratch)
        for columns, lines in source.chunks(self._wanted()):
            self._take(columns, lines)
        times.finish()

    def reading(self) -> dict[str, Any]:
        """The columns as options of `LabelledSpec`."""
        is_named = self.source.names != [str(i) for i in range(len(self.source.names))]

        def column(index: int) -> str | int:
            return self.source.names[index] if is_named else index

        found: dict[str, Any] = {"kind": "arrays", "series": column(self.series)}
        found |= {"values": [column(i) for i in self.values]}
        found |= {} if self.time is None else {"time": column(self.time)}
        return found | ({} if self.label is None else {"label": column(self.label)})

    def signals(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """All steps, signal after signal, float32 (ΣT, D), and where each signal starts (N + 1,)."""
        n_codes, width = len(self.codes), len(self.values)
        counts = np.zeros(n_codes, np.int64)
        for head, _ in self.store.chunks():
            counts += np.bincount(head[:, 1], minlength=n_codes)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        scratch = self.scratch.get() if self.store.is_spilled else None
        values = full((int(bounds[-1]), width), 0, np.float32, scratch)
        times = full((int(bounds[-1]),), 0, np.float64, scratch)
        filled = bounds[:-1].copy()
        for head, body in self.store.chunks():
            places = _places(head[:, 1], filled)
            values[places], times[places] = body[:, 1:], body[:, 0]
        self.store.drop()
        if self.time is not None:
            self._sort(values, times, bounds)
        return values, bounds

    def _sort(self, values: NDArray[Any], times: NDArray[Any], bounds: NDArray[np.int64]) -> None:
        for code in range(len(bounds) - 1):
            rows = slice(bounds[code], bounds[code + 1])
            steps = np.diff(times[rows])
            if (steps < 0).any():
                order = np.argsort(times[rows], kind="stable")
                values[rows], times[rows] = values[rows][order], times[rows][order]
                self._findings.add("signals whose rows were out of order, sorted", self.first_lines[code])
            if (np.diff(times[rows]) == 0).any():
                self._findings.add("signals with two rows of the same time, kept", self.first_lines[code])

    def _label(self) -> int | None:
        if self.spec.label is not None:
            try:
                return resolve(self.source, self.spec.label, "label")
            except DataError:
                if self.spec.needs_labels:
                    raise
                return None
        found = usual(self.source, LABEL_NAMES, {self.series})
        if found is None and self.spec.needs_labels:
            columns = shown(self.source)
            raise self.source.error(f"label: say which column holds the labels; the columns are: {columns}")
        return found

    def _time(self) -> int | None:
        if self.spec.time is not None:
            return resolve(self.source, self.spec.time, "time")
        taken = {self.series} | (set() if self.label is None else {self.label})
        if self.spec.values is not None:
            taken |= {resolve(self.source, wanted, "values") for wanted in self.spec.values}
        return usual(self.source, TIME_NAMES, taken)

    def _value_columns(self, head: Sequence[Column]) -> list[int]:
        if self.spec.values is not None:
            return [resolve(self.source, wanted, "values") for wanted in self.spec.values]
        found = []
        for i, column in enumerate(head):
            if i in (self.series, self.label, self.time):
                continue
            first = next((cell for cell in _cells(column) if not is_missing(cell)), "")
            if is_number(first):
                found.append(i)
            else:
                self._findings.add(f"column without numbers, left out ({self.source.names[i]!r})", 1)
        if not found:
            columns = shown(self.source)
            raise self.source.error(f"values: no column with numbers is left; the columns are: {columns}")
        return found

    def _wanted(self) -> list[int]:
        return [self.series, *(i for i in (self.label, self.time) if i is not None), *self.values]

    def _take(self, columns: Sequence[Column], lines: NDArray[np.int64]) -> None:
        parts = iter(columns)
        series = list(_cells(next(parts)))
        labels = None if self.label is None else list(_cells(next(parts)))
        times = np.zeros(len(lines)) if self.time is None else self._seconds(next(parts), lines)
        codes = np.array([self._code(cell, line) for cell, line in zip(series, lines.tolist(), strict=True)])
        if labels is not None:
            self._check_labels(codes, labels, lines, series)
        body = np.empty((len(lines), 1 + len(self.values)))
        body[:, 0] = times
        for place, (index, column) in enumerate(zip(self.values, parts, strict=True), 1):
            body[:, place] = self._numbers(column, lines, index)
        head = np.stack([np.zeros_like(lines), codes, lines], axis=1)
        self.store.append(head, body)

    def _code(self, cell: str, line: int) -> int:
        key = cell.strip()
        if not key:
            raise self.source.error(
                "which signal the row is of is missing; fill it in or remove the row",
                line,
                self.source.names[self.series],
            )
        if key not in self.codes:
            self.codes[key] = len(self.codes)
            self.first_lines.append(line)
            self.labels.append(None)
            self._label_lines.append(0)
        return self.codes[key]

    def _check_labels(
        self, codes: NDArray[np.int64], labels: list[str], lines: NDArray[np.int64], series: list[str]
    ) -> None:
        assert self.label is not None
        name = self.source.names[self.label]
        for i, (code, cell) in enumerate(zip(codes.tolist(), labels, strict=True)):
            label = as_label(cell, lambda message: self.source.error(message, column=name))
            if label is None:
                continue
            if self.labels[code] is None:
                self.labels[code], self._label_lines[code] = label, int(lines[i])
            elif self.labels[code] != label:
                raise self.source.error(
                    f"the signal {series[i]!r} has label {label!r} here and {self.labels[code]!r} in "
                    f"{self.source.unit} {self._label_lines[code]}; a signal has one label",
                    int(lines[i]),
                    name,
                )

    def _seconds(self, column: Column, lines: NDArray[np.int64]) -> NDArray[np.float64]:
        name = self.source.names[self.time or 0]

        def fail(message: str, position: int) -> DataError:
            line = int(lines[position]) if position >= 0 else None
            return self.source.error(message, line, name)

        if isinstance(column, np.ndarray) and column.dtype.kind == "M":
            return column.astype("datetime64[us]").astype(np.float64)
        cells = list(_cells(column))
        if self._is_numeric_time is None:
            self._is_numeric_time = is_number(cells[0])
        if not self._is_numeric_time:
            return self._times.parse(cells, fail).astype(np.float64)
        found = numbers(cells, fail)
        if np.isnan(found).any():
            raise fail("the time is missing; fill it in or remove the row", int(np.isnan(found).argmax()))
        return found

    def _numbers(self, column: Column, lines: NDArray[np.int64], index: int) -> NDArray[np.float64]:
        name = self.source.names[index]

        def fail(message: str, position: int) -> DataError:
            return self.source.error(message, int(lines[position]), name)

        if isinstance(column, np.ndarray) and column.dtype.kind in "if":
            found = column.astype(np.float64)
        else:
            found = numbers(list(_cells(column)), fail, decimal=".")
        wrong = ~np.isfinite(found) | (np.abs(found) > np.finfo(np.float32).max)
        if wrong.any():
            what = "missing" if np.isnan(found[wrong][0]) else "infinite or beyond float32"
            raise fail(f"the value is {what}; fill gaps first, or leave the signal out", int(wrong.argmax()))
        return found


def _places(codes: NDArray[np.int64], filled: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each row of a chunk goes: behind those of its signal so far, whose counts are updated."""
    order = np.argsort(codes, kind="stable")
    in_order = codes[order]
    firsts = np.flatnonzero(np.diff(in_order, prepend=-1))
    sizes = np.diff(np.append(firsts, len(codes)))
    within = np.arange(len(codes)) - np.repeat(firsts, sizes)
    places = np.empty_like(order)
    places[order] = filled[in_order] + within
    filled[in_order[firsts]] += sizes
    return places


def _cells(column: Column) -> Iterator[str]:
    if isinstance(column, np.ndarray):
        return (
            "" if isinstance(value, float) and math.isnan(value) else str(value) for value in column.tolist()
        )
    return iter(column)
