"""Which regular grid a set of times lies on: found from the steps between neighbouring rows, in one pass."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ostinato.data.calendar import DAY_S
from ostinato.data.frequency import Frequency

_MOST_DISTINCT = 1 << 20


class StepStatistics:
    """Counts the steps of every series while its rows go by, in constant memory.

    Rows may come in any order: they are sorted inside each chunk, so a file that is unordered throughout and
    longer than a chunk leaves only the greatest common divisor of its steps as a safe guess.
    """

    def __init__(self) -> None:
        self.seconds: Counter[int] = Counter()
        self.months: Counter[int] = Counter()
        self.divisor = self.month_divisor = 0
        self.n_unordered = 0
        self._last = np.zeros(0, np.int64)
        self._has_last = np.zeros(0, np.bool_)
        self._days: set[int] = set()
        self._of_day: set[int] = set()
        self._all_month_ends = True
        self._has_weekend = False
        self._n_over_weekend = 0

    def update(self, codes: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Count a chunk: the series number and the time (seconds) of each row, in file order."""
        self._grow(int(codes.max()) + 1)
        by_series = np.argsort(codes, kind="stable")
        self.n_unordered += self._count_unordered(codes[by_series], times[by_series])
        order = np.lexsort((times, codes))
        codes, times = codes[order], times[order]
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        ends = np.r_[starts[1:], len(codes)] - 1
        before = np.r_[times[0], times[:-1]]
        known = self._has_last[codes[starts]]
        before[starts] = np.where(known, self._last[codes[starts]], times[starts])
        self._count(before, times)
        self._last[codes[ends]] = times[ends]
        self._has_last[codes[ends]] = True
        self._describe(times)

    def _grow(self, size: int) -> None:
        if size > len(self._last):
            more = max(size, 2 * len(self._last)) - len(self._last)
            self._last = np.r_[self._last, np.zeros(more, np.int64)]
            self._has_last = np.r_[self._has_last, np.zeros(more, np.bool_)]

    def _count_unordered(self, codes: NDArray[np.int64], times: NDArray[np.int64]) -> int:
        same = codes[1:] == codes[:-1]
        starts = np.flatnonzero(np.r_[True, ~same])
        known = self._has_last[codes[starts]]
        across = int((known & (times[starts] < self._last[codes[starts]])).sum())
        return int((same & (times[1:] < times[:-1])).sum()) + across

    def _count(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> None:
        steps = np.abs(after - before)
        real = steps > 0
        before, after, steps = before[real], after[real], steps[real]
        if not len(steps):
            return
        self.divisor = math.gcd(self.divisor, int(np.gcd.reduce(steps)))
        _add(self.seconds, steps)
        months = np.abs(_month(after) - _month(before))
        self.month_divisor = math.gcd(self.month_divisor, int(np.gcd.reduce(months)))
        _add(self.months, months)
        friday = (np.minimum(before, after) // DAY_S + 3) % 7 == 4
        self._n_over_weekend += int((friday & (steps == 3 * DAY_S)).sum())

    def _describe(self, times: NDArray[np.int64]) -> None:
        days = times // DAY_S
        if len(self._of_day) <= 1:
            self._of_day.update(np.unique(times % DAY_S)[:2].tolist())
        month = _month(times)
        of_month = days - month.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
        if len(self._days) <= 1:
            self._days.update(np.unique(of_month)[:2].tolist())
        self._all_month_ends &= bool((_month((days + 1) * DAY_S) > month).all())
        self._has_weekend |= bool(((days + 3) % 7 >= 5).any())

    @property
    def n_steps(self) -> int:
        """How many steps were counted; 0 where no series has two different times."""
        return self.seconds.total()

    def _is_months(self) -> bool:
        same_day = len(self._days) == 1 or self._all_month_ends
        return same_day and len(self._of_day) == 1 and self.n_steps > 0 and min(self.seconds) >= 28 * DAY_S

    def most_common(self) -> tuple[Frequency, int]:
        """The frequency of the most common step, and how many steps it has. Needs `n_steps` above 0."""
        if self._is_months():
            step, count = _mode(self.months)
            step = self._safe(step, self.month_divisor)
            return Frequency.of("month", step, at_end=len(self._days) > 1), count
        step, count = _mode(self.seconds)
        if step == DAY_S and not self._has_weekend and self._n_over_weekend:
            return Frequency.of("B", 1), count + self._n_over_weekend
        return Frequency.of("s", self._safe(step, self.divisor)), count

    def common_divisor(self) -> Frequency:
        """The coarsest grid that holds every row."""
        if self._is_months():
            return Frequency.of("month", self.month_divisor, at_end=len(self._days) > 1)
        return Frequency.of("s", max(self.divisor, 1))

    def month_ends(self) -> bool:
        """Whether every time is the last day of its month, on different days."""
        return self._all_month_ends and len(self._days) > 1

    def _safe(self, step: int, divisor: int) -> int:
        return divisor if self.n_unordered and divisor % step else step


def _month(seconds: NDArray[np.int64]) -> NDArray[np.int64]:
    months: NDArray[np.int64] = seconds.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
    return months


def _mode(counts: Counter[int]) -> tuple[int, int]:
    """The most frequent step, the smallest of equals."""
    return max(counts.items(), key=lambda item: (item[1], -item[0]))


def _add(counts: Counter[int], values: NDArray[np.int64]) -> None:
    found, n = np.unique(values, return_counts=True)
    if len(counts) < _MOST_DISTINCT:
        counts.update(dict(zip(found.tolist(), n.tolist(), strict=True)))
