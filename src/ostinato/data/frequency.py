"""`Frequency`: the regular grid that the times of a table lie on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ostinato.data.calendar import DAY_S, HOUR_S, Cycle, calendar_features, cycles_of
from ostinato.errors import InputError

Times = NDArray[np.datetime64]
WEEK_S = 7 * DAY_S

# what a user may write -> (unit, size of one step in that unit, at the end of the month)
_UNITS: dict[str, tuple[str, int, bool]] = {
    **dict.fromkeys(("s", "S", "sec", "second", "seconds"), ("s", 1, False)),
    **dict.fromkeys(("min", "T", "minute", "minutes"), ("s", 60, False)),
    **dict.fromkeys(("h", "H", "hour", "hours", "hourly"), ("s", HOUR_S, False)),
    **dict.fromkeys(("D", "d", "day", "days", "daily"), ("s", DAY_S, False)),
    **dict.fromkeys(("W", "w", "week", "weeks", "weekly"), ("s", WEEK_S, False)),
    **dict.fromkeys(("B", "business"), ("B", 1, False)),
    **dict.fromkeys(("MS", "M", "month", "months", "monthly"), ("month", 1, False)),
    **dict.fromkeys(("ME",), ("month", 1, True)),
    **dict.fromkeys(("QS", "Q", "quarter", "quarters", "quarterly"), ("month", 3, False)),
    **dict.fromkeys(("QE",), ("month", 3, True)),
    **dict.fromkeys(("YS", "Y", "A", "AS", "year", "years", "yearly"), ("month", 12, False)),
    **dict.fromkeys(("YE",), ("month", 12, True)),
    **dict.fromkeys(("step", "steps"), ("step", 1, False)),
}
_LONGEST = {"s": 400 * 365 * DAY_S, "month": 4800, "B": 1, "step": 1 << 60}
_EXAMPLES = "s, min, 15min, 30min, h, D, B (business days), W, MS (months), QS (quarters), YS (years), step"
_PLAIN = {"s": "second", "min": "minute", "h": "hour", "D": "day", "W": "week", "B": "business day"}
_PLAIN |= {"MS": "month", "ME": "month end", "QS": "quarter", "QE": "quarter end", "YS": "year"}
_PLAIN |= {"YE": "year end", "step": "step"}


def _name(unit: str, step: int, at_end: bool) -> tuple[int, str]:
    """The multiple and the symbol that a frequency is printed with: the largest unit that divides it."""
    sizes = {
        "s": ((WEEK_S, "W"), (DAY_S, "D"), (HOUR_S, "h"), (60, "min"), (1, "s")),
        "month": ((12, "YE"), (3, "QE"), (1, "ME")) if at_end else ((12, "YS"), (3, "QS"), (1, "MS")),
        "B": ((1, "B"),),
        "step": ((1, "step"),),
    }[unit]
    size, symbol = next(pair for pair in sizes if step % pair[0] == 0)
    return step // size, symbol


def _season_lengths(unit: str, step: int) -> tuple[int, tuple[int, ...]]:
    """The season of the baselines, and the seasons that a network may look back to, in steps of the grid."""
    if unit == "month":
        points = 12 // math.gcd(12, step)
        return points, (points,) if points > 1 else ()
    if unit == "B":
        return 5, (5, 260)
    if unit == "step":
        return 1, ()
    if step >= WEEK_S:
        points = round(365.25 * DAY_S / step)
        return (52 if step == WEEK_S else max(points, 1)), (points,) if points > 1 else ()
    periods = (WEEK_S, 365 * DAY_S) if step >= DAY_S else (DAY_S, WEEK_S)
    if step <= 60:
        periods = (HOUR_S, DAY_S)
    found = []
    for period in periods:
        whole = math.lcm(step, period)  # 7 h does not divide a day, but 24 steps of it are exactly a week
        if period == 365 * DAY_S:
            found.append(round(period / step))
        elif whole <= 7 * period and whole // step > 1:
            found.append(whole // step)
    seasons = tuple(sorted(set(found)))
    season = seasons[-1] if step == 60 else next(iter(seasons), 1)
    return season, seasons


@dataclass(frozen=True)
class Frequency:
    """A regular grid of times: a fixed number of seconds, of months, business days, or plain counted steps.

    Make one with `Frequency.parse("30min")`. All times are `datetime64[s]` without a time zone; counted steps
    are stored as seconds since 1970, so step k is the time k.

    Attributes:
        unit: "s", "month", "B" (Monday to Friday) or "step".
        step: length of one step in that unit (days, weeks, … are seconds; quarters and years are months).
        at_end: True where months are stamped with their last day.
        season: steps of one season, for the seasonal baselines (24 hourly, 7 daily, 12 monthly; 1 is none).
        seasons: candidate seasons for networks, such as (24, 168) hourly or (7, 365) daily.
    """

    unit: str
    step: int
    at_end: bool
    season: int
    seasons: tuple[int, ...]

    @classmethod
    def of(cls, unit: str, step: int, at_end: bool = False) -> Frequency:
        """The frequency of `step` times `unit`, with its default seasons."""
        season, seasons = _season_lengths(unit, step)
        return cls(unit, step, at_end and unit == "month", season, seasons)

    @classmethod
    def parse(cls, text: str | Frequency) -> Frequency:
        """Read `h`, `1h`, `30min`, `15T`, `D`, `W`, `MS`, `M`, `Q`, `Y`, `B`, …; InputError for others."""
        if isinstance(text, Frequency):
            return text
        match = re.fullmatch(r"\s*(\d{0,18})\s*([A-Za-z]+)(?:-[A-Z]{3})?\s*", str(text))
        known = _UNITS.get(match[2], _UNITS.get(match[2].lower())) if match else None
        if match is None or known is None:
            raise InputError(
                f"frequency {text!r} is not known; write one of: {_EXAMPLES}, or a multiple such as 2h"
            )
        multiple = int(match[1] or 1)
        unit, size, at_end = known
        if not 1 <= multiple <= _LONGEST[unit] // size:
            found = "business days have no multiples" if unit == "B" else "the step is zero or too long"
            raise InputError(f"frequency {text!r}: {found}; write one of: {_EXAMPLES}")
        return cls.of(unit, multiple * size, at_end)

    @property
    def name(self) -> str:
        """The shortest name: "h", "30min", "D", "2W", "MS", … `Frequency.parse(f.name)` gives `f` back."""
        multiple, symbol = _name(self.unit, self.step, self.at_end)
        return symbol if multiple == 1 else f"{multiple}{symbol}"

    def __str__(self) -> str:
        multiple, symbol = _name(self.unit, self.step, self.at_end)
        plain = _PLAIN[symbol]
        return f"{self.name} (every {plain})" if multiple == 1 else f"{self.name} (every {multiple} {plain}s)"

    def with_season(self, season: int) -> Frequency:
        """A copy whose `season` is what the user says; it also leads the candidates."""
        if season < 1:
            raise InputError(f"season: expected a number of steps of at least 1, found {season}")
        more = (season,) if season > 1 else ()
        return replace(self, season=season, seasons=tuple(sorted({*self.seasons, *more})))

    # ------------------------------------------------------------------ times
    def times(self, start: np.datetime64, n: int, offset: int = 0) -> Times:
        """The `n` times of the grid from `offset` steps (also negative) after `start`: datetime64[s] (n,)."""
        steps = np.arange(offset, offset + n, dtype=np.int64)
        return self.shift(start, steps)

    def shift(self, start: np.datetime64 | Times, steps: NDArray[np.int64]) -> Times:
        """`start` moved by whole steps; both may be arrays that broadcast."""
        start = np.asarray(start, "datetime64[s]")
        if self.unit in ("s", "step"):
            return start + (steps * self.step).astype("timedelta64[s]")
        day = start.astype("datetime64[D]")
        of_day = start - day
        if self.unit == "B":
            return np.busday_offset(day, steps, roll="forward").astype("datetime64[s]") + of_day
        month = day.astype("datetime64[M]")
        moved = month + (steps * self.step).astype("timedelta64[M]")
        last = (moved + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
        if self.at_end:
            return last.astype("datetime64[s]") + of_day
        same_day = moved.astype("datetime64[D]") + (day - month.astype("datetime64[D]"))
        return np.minimum(same_day, last).astype("datetime64[s]") + of_day

    def index(self, start: np.datetime64 | Times, times: Times) -> NDArray[np.int64]:
        """How many steps each time lies after `start`: int64; raises InputError for a time off the grid."""
        found, on_grid = self.locate(start, times)
        if not on_grid.all():
            wrong = np.asarray(times)[~on_grid].reshape(-1)[0]
            raise InputError(f"time {wrong} is not on the grid of {self} that starts at {start}")
        return found

    def locate(
        self, start: np.datetime64 | Times, times: Times
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """As `index`, but says which times lie on the grid instead of raising: (int64, bool)."""
        start, times = np.asarray(start, "datetime64[s]"), np.asarray(times, "datetime64[s]")
        if self.unit in ("s", "step"):
            seconds = (times - start).astype(np.int64)
            return seconds // self.step, seconds % self.step == 0
        if self.unit == "B":
            first, days = start.astype("datetime64[D]"), times.astype("datetime64[D]")
            steps = np.asarray(np.busday_count(first, days), np.int64)
        else:
            months = (times.astype("datetime64[M]") - start.astype("datetime64[M]")).astype(np.int64)
            steps = months // self.step
        return steps, np.asarray(self.shift(start, steps) == times)

    def phase(self, times: Times) -> NDArray[np.int64]:
        """A number that is equal for two times exactly if one grid can hold both: int64, same shape."""
        times = np.asarray(times, "datetime64[s]")
        seconds = times.astype(np.int64)
        if self.unit in ("s", "step"):
            return seconds % self.step
        of_day = seconds % DAY_S
        if self.unit == "B":
            return of_day
        months = times.astype("datetime64[M]")
        day = (times.astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
        month = months.astype(np.int64) % self.step
        # the 29th to 31st are one phase with the last of shorter months, into which the grid moves them
        return of_day + DAY_S * ((0 if self.at_end else np.minimum(day, 27)) + 32 * month)

    def format(self, times: Times) -> list[str]:
        """Times as text for output files: ISO dates where every time is a midnight, else date and time."""
        times = np.asarray(times, "datetime64[s]")
        if self.unit == "step":
            return [str(step) for step in times.astype(np.int64)]
        whole_days = self.unit != "s" or self.step % DAY_S == 0
        if whole_days and not (times.astype(np.int64) % DAY_S).any():
            return np.datetime_as_string(times, "D").tolist()
        return [text.replace("T", " ") for text in np.datetime_as_string(times, "s").tolist()]

    # --------------------------------------------------------------- calendar
    @property
    def cycles(self) -> tuple[Cycle, ...]:
        """The calendar cycles that vary at this frequency."""
        return cycles_of(self.unit, self.step)

    @property
    def calendar_names(self) -> tuple[str, ...]:
        """Names of the P calendar features, in the order of their columns."""
        return tuple(name for cycle in self.cycles for name in cycle.feature_names())

    def calendar(self, start: np.datetime64, n: int, offset: int = 0) -> NDArray[np.float32]:
        """Calendar features of `times(start, n, offset)`: float32 (n, P), each in [-1, 1]."""
        return calendar_features(self.times(start, n, offset), self.unit, self.step, self.cycles)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values that `from_json` reads back."""
        return {"name": self.name, "season": self.season, "seasons": list(self.seasons)}

    @classmethod
    def from_json(cls, stored: dict[str, object]) -> Frequency:
        """The frequency that `to_json` wrote."""
        seasons = stored["seasons"]
        assert isinstance(seasons, list)
        season = int(str(stored["season"]))
        return replace(cls.parse(str(stored["name"])), season=season, seasons=tuple(map(int, seasons)))
