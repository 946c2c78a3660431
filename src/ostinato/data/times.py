"""Text or integers to times: one form for the whole column, decided by the file or refused with the cure.

Times are int64 seconds since 1970 without a time zone; a plain step k is k seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.cells import quoted
from ostinato.errors import DataError, InputError

Seconds = NDArray[np.int64]
_CLOCK = r"(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2})(?:\.0*)?)?(?:\s*([AaPp])\.?[Mm]\.?)?)?"
_ISO = r"\d{4}-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)?"
_ISO_COLUMN = re.compile(rf"(?>{_ISO}\n)*+", re.ASCII)
_ISO_LIKE = re.compile(rf"{_ISO}(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?", re.ASCII)
_YEAR_FIRST = re.compile(rf"(\d{{4}})[/.-](\d{{1,2}})[/.-](\d{{1,2}}){_CLOCK}", re.ASCII)
_YEAR_LAST = re.compile(rf"(\d{{1,2}})[/.-](\d{{1,2}})[/.-](\d{{4}}){_CLOCK}", re.ASCII)
_SHORT_YEAR = re.compile(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2}(?:\D.*)?", re.ASCII)
_QUARTER = re.compile(r"(\d{4})[- ]?[Qq]([1-4])", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_KNOWN = "2016-07-01, 2016-07-01 13:00:00 (also with a time zone), 2016-07, 2016, 2016Q3, 20160701, 7/1/2016"
_SPECIAL = ("step", "epoch_s", "epoch_ms")
_CURE = "for other forms give --time-format with strptime codes such as '%d.%m.%y'"


def is_time(text: str) -> bool:
    """Whether a text has the form of a time that needs no --time-format."""
    forms = (_ISO_LIKE, _YEAR_FIRST, _YEAR_LAST, _SHORT_YEAR, _QUARTER, _INTEGER)
    return any(form.fullmatch(text.strip()) for form in forms)


class MonthFirstIsWrong(Exception):  # noqa: N818 - a signal between two passes, never shown
    """A value read so far as month/day/year turned out to be day/month/year: read the column again."""


class TimeParser:
    """Reads one column of times, chunk by chunk, and remembers the form that its first value fixed.

    Args:
        time_format: strptime codes, or "step" (counted steps), "epoch_s", "epoch_ms"; None decides.
        day_first: reads 1/2/2016 as the first of February; False until a value of the file proves otherwise.

    `parse` raises DataError through `error`, which knows the file: `error(message, position in the chunk)`.
    """

    def __init__(self, time_format: str | None = None, *, day_first: bool = False):
        if time_format is not None and time_format not in _SPECIAL and "%" not in time_format:
            raise InputError(
                f"time format {time_format!r} has no code; expected strptime codes such as '%d/%m/%Y', "
                f"or one of: {', '.join(_SPECIAL)}"
            )
        self.time_format, self.day_first = time_format, day_first
        self.kind: str | None = None if time_format is None else "format"
        self.is_aware: bool | None = None
        self.is_order_decided = day_first
        self.is_order_needed = False  # some value means two different days
        self.example = ""
        self._cache: dict[str, int] = {}
        self._error: Callable[[str, int], DataError] = lambda message, _: DataError(message)

    @property
    def is_step(self) -> bool:
        """Whether the column counts steps instead of naming times."""
        return self.kind == "step" or self.time_format == "step"

    def parse(self, column: Sequence[str], error: Callable[[str, int], DataError]) -> Seconds:
        """Text to seconds: (n,) strings give int64 (n,)."""
        self._error = error
        column = [value.strip() for value in column]
        if "" in column:
            raise error("the time is missing; fill it in or remove the row", column.index(""))
        if self.kind is None:
            self.example = column[0]
            self.kind = self._decide(column)
        kinds: dict[str, Callable[[list[str]], Seconds]] = {
            "format": self._formatted,
            "iso": self._iso,
            "year first": lambda values: self._dates(values, _YEAR_FIRST, (0, 1, 2)),
            "year last": self._year_last,
            "quarter": self._quarters,
            "year": self._integers,
            "date": self._integers,
            "step": self._integers,
        }
        return kinds[self.kind](column)

    def integers(self, column: NDArray[np.int64], error: Callable[[str, int], DataError]) -> Seconds:
        """As `parse`, for a column that holds integers already."""
        if self.time_format == "step" or self.kind == "step":
            return column
        return self.parse([str(value) for value in column.tolist()], error)

    def finish(self) -> None:
        """After the last chunk: refuse a column whose day and month could be either."""
        if self.is_order_needed and not self.is_order_decided:
            raise self._error(
                f"the times could be day/month or month/day: no value of the column decides it (one is "
                f"{self.example!r}); give --time-format, such as '%d/%m/%Y' or '%m/%d/%Y'",
                -1,
            )

    def _decide(self, column: list[str]) -> str:
        first = column[0]
        if _INTEGER.fullmatch(first):
            return self._decide_integer(column)
        forms = {
            "iso": _ISO_LIKE,
            "year first": _YEAR_FIRST,
            "year last": _YEAR_LAST,
            "quarter": _QUARTER,
        }
        fitting = [kind for kind, pattern in forms.items() if pattern.fullmatch(first)]
        for kind in fitting:
            if all(map(forms[kind].fullmatch, column[:1000])):
                return kind
        if fitting:
            return fitting[0]
        if _SHORT_YEAR.fullmatch(first):
            raise self._error(
                f"the year of {quoted(first)} has two digits; give --time-format, such as '%d/%m/%y'", 0
            )
        raise self._error(f"{quoted(first)} is not a time; expected forms such as {_KNOWN}; {_CURE}", 0)

    def _decide_integer(self, column: list[str]) -> str:
        values = self._integer_values(column)
        if ((values >= 1500) & (values <= 2200)).all():
            return "year"
        if ((values >= 1500_01_01) & (values <= 2200_12_31)).all():
            return "date"
        if np.abs(values).max() >= 10**8:
            raise self._error(
                f"{quoted(column[0])} could be seconds, milliseconds or a step number; "
                "give --time-format epoch_s, epoch_ms or step",
                0,
            )
        return "step"

    def _wrong(self, value: str, position: int, why: str = "") -> DataError:
        expected = f"a time as {self.time_format!r}" if self.time_format else f"a time like {self.example!r}"
        return self._error(f"expected {expected}, found {quoted(value)}{why}; {_CURE}", position)

    def _each(self, column: list[str], parse: Callable[[str], int | None]) -> Seconds:
        """One value at a time, each distinct text once."""
        cache = self._cache
        if len(cache) > 1 << 20:
            cache.clear()
        for position, value in enumerate(column):
            if value not in cache:
                try:
                    seconds = parse(value)
                except (ValueError, OverflowError) as error:
                    raise self._wrong(value, position, f" ({error})") from None
                if seconds is None:
                    raise self._wrong(value, position)
                cache[value] = seconds
        return np.fromiter(map(cache.__getitem__, column), np.int64, len(column))

    # ------------------------------------------------------------- the forms
    def _iso(self, column: list[str]) -> Seconds:
        if self.is_aware is not True and _ISO_COLUMN.fullmatch("\n".join(column) + "\n"):
            try:
                values = np.array(column, dtype="datetime64[s]").astype(np.int64)
            except ValueError:
                return self._each(column, self._iso_value)  # names the wrong one
            self.is_aware = False
            return values
        return self._each(column, self._iso_value)

    def _iso_value(self, value: str) -> int:
        value = f"{value}-01" if len(value) == 7 else value.replace(" UTC", "Z").replace("UTC", "Z")
        moment = datetime.fromisoformat(value)
        if self.is_aware is None:
            self.is_aware = moment.tzinfo is not None
        if self.is_aware != (moment.tzinfo is not None):
            raise ValueError("some times have a time zone and some have none")
        return _seconds(moment)

    def _formatted(self, column: list[str]) -> Seconds:
        form = self.time_format or ""
        if form in _SPECIAL:
            values = self._integer_values(column)
            scale = 1000 if form == "epoch_ms" else 1
            wrong = values % scale != 0
            if form != "step":  # the years 1 to 9999
                wrong |= (values < -62_135_596_800 * scale) | (values > 253_402_300_799 * scale)
            if wrong.any():
                position = int(wrong.argmax())
                raise self._wrong(column[position], position, " (parts of a second, or beyond the year 9999)")
            return values // scale
        return self._each(column, lambda value: _seconds(datetime.strptime(value, form)))

    def _integer_values(self, column: list[str]) -> NDArray[np.int64]:
        for position, value in enumerate(column):
            if not _INTEGER.fullmatch(value):
                raise self._wrong(value, position)
        return np.array(list(map(int, column)), np.int64)

    def _integers(self, column: list[str]) -> Seconds:
        values = self._integer_values(column)
        if self.kind == "step":
            return values
        wrong = (values < 1500) | (values > (2200 if self.kind == "year" else 2200_12_31))
        if wrong.any():
            raise self._wrong(column[int(wrong.argmax())], int(wrong.argmax()))
        if self.kind == "year":
            return _civil(values, np.ones_like(values), np.ones_like(values), self._refuse(column))
        return _civil(values // 10_000, values // 100 % 100, values % 100, self._refuse(column))

    def _quarters(self, column: list[str]) -> Seconds:
        def quarter(value: str) -> int | None:
            match = _QUARTER.fullmatch(value)
            return match and int(np.datetime64(f"{match[1]}-{3 * int(match[2]) - 2:02d}", "s").astype(int))

        return self._each(column, quarter)

    def _year_last(self, column: list[str]) -> Seconds:
        order = (2, 1, 0) if self.day_first else (2, 0, 1)
        return self._dates(column, _YEAR_LAST, order)

    def _dates(self, column: list[str], pattern: re.Pattern[str], order: tuple[int, int, int]) -> Seconds:
        distinct = list(dict.fromkeys(column))
        groups: list[tuple[Any, ...]] = []
        for value in distinct:
            match = pattern.fullmatch(value)
            if match is None:
                raise self._wrong(value, column.index(value))
            groups.append(match.groups())
        parts = np.array([[int(part or 0) for part in group[:6]] for group in groups], np.int64)
        if pattern is _YEAR_LAST:
            self._settle_order(parts[:, 0], parts[:, 1], distinct, column)
        hours = parts[:, 3]
        half = np.array([0 if group[6] is None else 1 + (group[6] in "pP") for group in groups])
        hours = np.where(half > 0, hours % 12 + 12 * (half == 2), hours)

        def refuse(position: int) -> DataError:
            return self._wrong(distinct[position], column.index(distinct[position]), " (no such day or time)")

        year, month, day = (parts[:, place] for place in order)
        bad = (hours > 23) | (parts[:, 4] > 59) | (parts[:, 5] > 59) | ((half > 0) & (parts[:, 3] > 12))
        if bad.any():
            raise refuse(int(bad.argmax()))
        seconds = _civil(year, month, day, refuse) + hours * 3600 + parts[:, 4] * 60 + parts[:, 5]
        if len(distinct) == len(column):
            return seconds
        found = dict(zip(distinct, seconds.tolist(), strict=True))
        return np.fromiter(map(found.__getitem__, column), np.int64, len(column))

    def _settle_order(self, first: Seconds, second: Seconds, distinct: list[str], column: list[str]) -> None:
        """The two numbers before the year: one above 12 is a day, and says so for the whole file."""
        day, month = (first, second) if self.day_first else (second, first)
        if (month > 12).any():
            position = int((month > 12).argmax())
            if self.day_first or self.is_order_decided or day[position] > 12:
                why = " (other values of this column decide which number is the day)"
                raise self._wrong(distinct[position], column.index(distinct[position]), why)
            raise MonthFirstIsWrong
        if (day > 12).any():
            self.is_order_decided = True
        differs = first != second
        if differs.any() and not self.is_order_needed:
            self.is_order_needed = True
            self.example = distinct[int(differs.argmax())]

    def _refuse(self, column: list[str]) -> Callable[[int], DataError]:
        return lambda position: self._wrong(column[position], position, " (no such day)")


def _seconds(moment: datetime) -> int:
    if moment.microsecond:
        raise ValueError("parts of a second; number the rows and give --time-format step")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())


def _civil(year: Seconds, month: Seconds, day: Seconds, refuse: Callable[[int], DataError]) -> Seconds:
    """Midnight of calendar days as seconds; `refuse(position)` makes the error for a day there is not."""
    months = (year - 1970) * 12 + month - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]")
    length = ((months + 1).astype("datetime64[M]").astype("datetime64[D]") - first).astype(np.int64)
    wrong = (month < 1) | (month > 12) | (day < 1) | (day > length)
    if wrong.any():
        raise refuse(int(wrong.argmax()))
    return np.asarray((first.astype(np.int64) + day - 1) * 86_400)
