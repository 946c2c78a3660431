"""Smooth calendar features: sines and cosines of where a time lies in its hour, day, week, month and year.

Source of the encoding: harmonic (Fourier) terms of a known period, as in dynamic harmonic regression
(Hyndman and Athanasopoulos, *Forecasting: Principles and Practice*, section 12.1). Every feature lies
in [-1, 1], so none of them needs a scaler, and 23:59 is next to 00:00.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
HOUR_S = 3_600


@dataclass(frozen=True)
class Cycle:
    """One calendar cycle: its name and how many harmonics of it are encoded.

    `without_last_sine` drops the sine of the highest harmonic where that is zero at every point of the grid.
    """

    name: str
    harmonics: int
    without_last_sine: bool = False

    def feature_names(self) -> tuple[str, ...]:
        """`hour_of_day_sin1`, `hour_of_day_cos1`, `hour_of_day_sin2`, … in the order of the columns."""
        return tuple(
            f"{self.name}_{wave}{harmonic}"
            for harmonic in range(1, self.harmonics + 1)
            for wave in ("sin", "cos")
            if not (wave == "sin" and harmonic == self.harmonics and self.without_last_sine)
        )


def _cycle(name: str, period: int, step: int, harmonics: int) -> tuple[Cycle, ...]:
    """The cycle as far as a grid of `step` can show it: no harmonic above half the points of one period."""
    if period % step:
        return (Cycle(name, harmonics),)
    points = period // step
    harmonics = min(harmonics, points // 2)
    return (Cycle(name, harmonics, without_last_sine=points == 2 * harmonics),) if harmonics else ()


def cycles_of(unit: str, step: int) -> tuple[Cycle, ...]:
    """The cycles that vary at a frequency; `step` is in seconds for the unit "s", in months for "month"."""
    if unit == "month":
        return () if step % 12 == 0 else _cycle("month_of_year", 12, step, 3)
    if unit == "B":
        return Cycle("day_of_week", 2), Cycle("day_of_month", 1), Cycle("day_of_year", 2)
    if unit != "s":
        return ()
    cycles: list[Cycle] = []
    if step < HOUR_S:
        cycles += _cycle("minute_of_hour", HOUR_S, step, 1)
    if step < DAY_S:
        cycles += _cycle("hour_of_day", DAY_S, step, 3)
    if step % (7 * DAY_S):
        cycles += [Cycle("day_of_week", 3), Cycle("day_of_month", 1)]
    cycles.append(Cycle("day_of_year", 2))
    return tuple(cycles)


def phases(name: str, times: NDArray[np.datetime64], unit: str, step: int) -> NDArray[np.float64]:
    """Where each time lies in the cycle `name`: (n,) in [0, 1).

    Where the step divides the cycle, the phase counts from the grid's own first point, so that the highest
    harmonic is a cosine of 1 and -1 whichever month or minute the grid starts at.
    """
    seconds = times.astype("datetime64[s]").astype(np.int64)
    days = times.astype("datetime64[D]")
    months = times.astype("datetime64[M]")
    if name in ("minute_of_hour", "hour_of_day"):
        period = HOUR_S if name == "minute_of_hour" else DAY_S
        within = seconds % period
        return (within - within % step if period % step == 0 else within) / period
    if name == "day_of_week":  # whole days: Saturday is the same all day; day 0 was a Thursday
        weekday = (days.astype(np.int64) + 3) % 7
        return np.minimum(weekday, 4) / 5 if unit == "B" else weekday / 7
    if name == "day_of_month":
        length = ((months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")).astype(np.int64)
        return (days - months.astype("datetime64[D]")).astype(np.int64) / length
    years = times.astype("datetime64[Y]")
    if name == "month_of_year":
        month = (months - years.astype("datetime64[M]")).astype(np.int64)
        return (month - month % step if 12 % step == 0 else month) / 12
    length = ((years + 1).astype("datetime64[D]") - years.astype("datetime64[D]")).astype(np.int64)
    return (days - years.astype("datetime64[D]")).astype(np.int64) / length


def calendar_features(
    times: NDArray[np.datetime64], unit: str, step: int, cycles: tuple[Cycle, ...]
) -> NDArray[np.float32]:
    """Columns in the order of `Cycle.feature_names`: (n,) times give float32 (n, P). O(n P)."""
    columns = []
    for cycle in cycles:
        angle = 2 * np.pi * phases(cycle.name, times, unit, step)
        for harmonic in range(1, cycle.harmonics + 1):
            if not (harmonic == cycle.harmonics and cycle.without_last_sine):
                columns.append(np.sin(harmonic * angle))
            columns.append(np.cos(harmonic * angle))
    if not columns:
        return np.zeros((len(times), 0), np.float32)
    return np.stack(columns, axis=1).astype(np.float32)
