"""Columns to parsed rows: times to seconds, series to their numbers, cells to float64, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ostinato.data.cells import DecimalComma, is_missing, is_number, is_text, numbers, quoted
from ostinato.data.columns import Column, ColumnSource
from ostinato.data.covariates import ROLES, UNKNOWN_CODE, ColumnEncoding, CovariateEncoding
from ostinato.data.large import RowStore
from ostinato.data.times import MonthFirstIsWrong, TimeParser
from ostinato.errors import DataError

MOST_CATEGORIES = 1_000
MOST_MIXED_CATEGORIES = (
    50  # a column of numbers and texts with more values than this is a number column with typos
)
ONLY_SERIES = "series"


@dataclass(frozen=True)
class Layout:
    """Indices of the columns that play each role.

    `time` or `series` is None where the table has none; a target, observed or static column is None where a
    file of future rows does not need it.
    """

    time: int | None
    series: int | None
    target: tuple[int | None, ...]
    known: tuple[int | None, ...]
    observed: tuple[int | None, ...]
    static: tuple[int | None, ...]

    @property
    def wanted(self) -> list[int]:
        """Every index that is read, once each, in a fixed order."""
        singles = [index for index in (self.time, self.series) if index is not None]
        return list(dict.fromkeys([*singles, *(index for index in self.cells if index is not None)]))

    @property
    def cells(self) -> tuple[int | None, ...]:
        """The columns of the body, in its order: targets, known, observed, static."""
        return (*self.target, *self.known, *self.observed, *self.static)


class TextInNumbers(Exception):  # noqa: N818 - a signal between two passes, never shown
    """A covariate that held only numbers so far holds text: read it again as categories."""

    def __init__(self, key: tuple[str, int]):
        self.key = key


@dataclass
class Categories:
    """The texts of one covariate column, numbered as they come, and the first one that is no number."""

    name: str
    codes: dict[str, float] = field(default_factory=dict)
    fixed: ColumnEncoding | None = None
    n_unknown: int = 0
    first_text: tuple[int, str] | None = None

    def read(self, column: list[str], lines: NDArray[np.int64], source: ColumnSource) -> NDArray[np.float64]:
        """Cells to codes, NaN where missing."""
        for value in dict.fromkeys(column):
            if value not in self.codes:
                self._add(value, column, lines, source)
        found = np.fromiter(map(self.codes.__getitem__, column), np.float64, len(column))
        if self.fixed is not None:
            self.n_unknown += int((found == UNKNOWN_CODE).sum())
        return found

    def _add(self, value: str, column: list[str], lines: NDArray[np.int64], source: ColumnSource) -> None:
        text = value.strip()
        if is_missing(text):
            self.codes[value] = np.nan
        elif self.fixed is not None:
            self.codes[value] = self.fixed.code(text)
        else:
            same = self.codes.get(text)
            self.codes[value] = float(len(self.codes)) if same is None else same
            self.codes.setdefault(text, self.codes[value])
        line = int(lines[column.index(value)])
        if self.first_text is None and not is_missing(text) and not is_number(text):
            self.first_text = line, text
        if self.fixed is None and len(self.codes) > MOST_CATEGORIES:
            raise source.error(
                f"found text, and more than {MOST_CATEGORIES} different values: too many for categories; "
                "correct the text if this is a column of numbers, or group the rare values",
                line=self.first_text[0] if self.first_text else line,
                column=self.name,
            )

    def encoding(self, source: ColumnSource) -> ColumnEncoding:
        """The encoding of all categories found."""
        if self.fixed is not None:
            return self.fixed
        words = {word.strip() for word, code in self.codes.items() if not np.isnan(code)}
        if len(words) > MOST_MIXED_CATEGORIES and any(map(is_number, words)) and self.first_text:
            line, text = self.first_text
            raise source.error(
                f"expected a number, as in other rows of this column, found the text {quoted(text)}; correct "
                "the cell",
                line=line,
                column=self.name,
            )
        return ColumnEncoding.of_categories(self.name, sorted(words))

    def remap(self, encoding: ColumnEncoding) -> NDArray[np.float64]:
        """A table from codes as they came to places in the vocabulary."""
        table = np.full(len(self.codes) + 1, UNKNOWN_CODE)
        for word, code in self.codes.items():
            if not np.isnan(code):
                table[int(code)] = encoding.code(word.strip())
        return table


class RowReader:
    """Reads the rows of one or two sources into stores, with one set of series, categories and settings.

    Args:
        decimal: "." or ","; None finds out.
        time_format: as for `TimeParser`.
        encoding: of the training data; None collects the categories of this table.
    """

    def __init__(self, decimal: str | None, time_format: str | None, encoding: CovariateEncoding | None):
        self.decimal, self.time_format, self.encoding = decimal, time_format, encoding
        self.series: dict[str, int] = {}
        self.categories: dict[tuple[str, int], Categories] = {}
        self.times: list[TimeParser] = []
        self.found_decimal_comma = False
        self._as_text: set[tuple[str, int]] = set()
        self._positions = np.zeros(0, np.int64)

    def read(
        self, tables: Sequence[tuple[ColumnSource, Layout]], make_store: Callable[[], RowStore]
    ) -> list[RowStore]:
        """All rows of all tables. What a later row reveals about an earlier one starts the reading again."""
        day_first = [False] * len(tables)
        while True:
            self.series, self.categories, self.times, stores = {}, {}, [], []
            try:
                for number, (source, layout) in enumerate(tables):
                    stores.append(make_store())
                    self._read_one(source, layout, stores[-1], day_first[number])
                return stores
            except DecimalComma:
                self.decimal, self.found_decimal_comma = ",", True
            except MonthFirstIsWrong:
                day_first[len(stores) - 1] = True
            except TextInNumbers as found:
                self._as_text.add(found.key)
            for store in stores:
                store.drop()

    def _read_one(self, source: ColumnSource, layout: Layout, store: RowStore, day_first: bool) -> None:
        times = TimeParser(self.time_format, day_first=day_first)
        self.times.append(times)
        self._positions = np.zeros(0, np.int64)
        for columns, lines in source.chunks(layout.wanted):
            self._chunk(source, layout, dict(zip(layout.wanted, columns, strict=True)), lines, store)
        times.finish()

    def _chunk(
        self,
        source: ColumnSource,
        layout: Layout,
        columns: dict[int, Column],
        lines: NDArray[np.int64],
        store: RowStore,
    ) -> None:
        n = len(lines)
        head, body = np.zeros((n, 3), np.int64), np.empty((n, len(layout.cells)))
        head[:, 2] = lines
        if layout.series is not None:
            head[:, 1] = self._codes(columns[layout.series], lines, source, source.names[layout.series])
        else:
            self.series.setdefault(ONLY_SERIES, 0)
        if layout.time is None:
            head[:, 0] = self._count(head[:, 1])
        else:
            head[:, 0] = self._times(columns[layout.time], lines, source, source.names[layout.time])
        place = 0
        for role in ("target", *ROLES):
            for number, index in enumerate(getattr(layout, role)):
                body[:, place] = np.nan
                if index is not None:
                    cells = self._cells(source, (role, number), source.names[index], columns[index], lines)
                    body[:, place] = cells
                place += 1
        store.append(head, body)

    def _codes(
        self, column: Column, lines: NDArray[np.int64], source: ColumnSource, name: str
    ) -> NDArray[np.int64]:
        values = _as_text(column)
        for value in dict.fromkeys(values):
            if value not in self.series:
                if not value.strip() or is_missing(value):
                    raise source.error(
                        "the series has no name; fill it in or remove the row",
                        line=int(lines[values.index(value)]),
                        column=name,
                    )
                self.series[value] = len(self.series)
        return np.fromiter(map(self.series.__getitem__, values), np.int64, len(values))

    def _count(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of rows within their series, for tables without times."""
        size = int(codes.max()) + 1
        if size > len(self._positions):
            self._positions = np.r_[self._positions, np.zeros(size - len(self._positions), np.int64)]
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(self._positions))
        within = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
        found = np.empty(len(codes), np.int64)
        found[order] = within + self._positions[codes[order]]
        self._positions += counts
        return found

    def _times(
        self, column: Column, lines: NDArray[np.int64], source: ColumnSource, name: str
    ) -> NDArray[np.int64]:
        def error(message: str, position: int) -> DataError:
            line = None if position < 0 else int(lines[position])
            return source.error(message, line=line, column=name)

        if isinstance(column, list):
            return self.times[-1].parse(column, error)
        if column.dtype.kind == "M":
            self.times[-1].kind = "datetime"
            micro = column.astype("datetime64[us]")
            seconds = micro.astype("datetime64[s]")
            if np.isnat(micro).any():
                raise error(
                    "the time is missing; fill it in or remove the row", int(np.isnat(micro).argmax())
                )
            if (seconds != micro).any():
                position = int((seconds != micro).argmax())
                raise error("times have parts of a second; number the rows as steps instead", position)
            return seconds.astype(np.int64)
        if column.dtype.kind == "f":
            whole = (np.abs(column) < 1e18) & (column == np.round(column))
            if not whole.all():
                position = int((~whole).argmax())
                raise error(f"expected a time or a whole number, found {column[position]}", position)
        return self.times[-1].integers(column.astype(np.int64), error)

    def _cells(
        self,
        source: ColumnSource,
        key: tuple[str, int],
        name: str,
        column: Column,
        lines: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        def error(message: str, position: int) -> DataError:
            return source.error(message, line=int(lines[position]), column=name)

        role, number = key
        fixed = None if self.encoding is None or role == "target" else self.encoding.columns(role)[number]
        if role != "target" and (key in self._as_text or (fixed is not None and fixed.kind != "number")):
            category = self.categories.setdefault(key, Categories(name, fixed=fixed))
            return category.read(_as_text(column), lines, source)
        if isinstance(column, list):
            try:
                return numbers(column, error, decimal=self.decimal)
            except DataError:
                if role == "target" or fixed is not None or not any(map(is_text, column)):
                    raise
                raise TextInNumbers(key) from None
        if column.dtype.kind == "M":
            raise error("expected numbers, found times", 0)
        values = column.astype(np.float64)
        if np.isinf(values).any():
            message = "an infinite value; replace it by a finite one or a missing one"
            raise error(message, int(np.isinf(values).argmax()))
        return values


def _as_text(column: Column) -> list[str]:
    if isinstance(column, list):
        return column
    if column.dtype.kind == "f":
        return ["" if np.isnan(value) else f"{value:.17g}" for value in column.tolist()]
    return [str(value) for value in column.tolist()]
