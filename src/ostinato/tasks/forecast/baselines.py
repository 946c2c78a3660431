"""What every forecast is measured against: naive, seasonal naive and exponential smoothing.

All share one shape: `baseline("ets").fit(values, season).forecast(values, origins, horizon, levels)`. Origin
o means that `values[:o]` are known. Nothing after an origin is looked at, missing values (NaN) are passed
over, and a fitted baseline serves any number of origins without being fitted again.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ostinato.errors import InputError, MissingExtraError, SizeError
from ostinato.tasks.forecast.exponential_smoothing import ExponentialSmoothing

Array = NDArray[np.float64]

BUDGET_S = 60.0
# what ets takes, about: to import statsmodels, and for each step of a series
ETS_IMPORT_S, ETS_STEP_S = 3.0, 4e-4
MIN_ERRORS = 20  # fewer errors h steps ahead say little about their quantiles: the formula speaks instead


class Baseline(Protocol):
    """A forecasting method without a network."""

    def fit(self, values: Array, season: int = 1) -> Self:
        """Learn from the training values (T,), NaN where missing, with `season` in steps (1: none)."""
        ...

    def forecast(
        self, values: Array, origins: NDArray[np.int64], horizon: int, levels: Array
    ) -> tuple[Array, Array]:
        """Mean (W, H) and quantiles (W, H, Q) from every origin.

        Args:
            values: (T,), the series from its first training value on, as far as it is known.
            origins: (W,), each with at least one known value before it.
            horizon: H in steps.
            levels: (Q,), rising, between 0 and 1.
        """
        ...


class SeasonalNaive:
    """The last known value of the same phase of the season; with season 1, the last known value.

    Where no value of that phase is known, the last known value stands in. Quantiles lie symmetrically around
    the forecast, as far as the empirical quantiles of the absolute in-sample errors equally many seasons
    ahead; where fewer than 20 such errors exist, at sigma·sqrt(number of seasons) times the normal quantile
    (Hyndman & Athanasopoulos 2021, "Forecasting: Principles and Practice", 3rd edition, section 5.5).
    """

    seasonal = True

    def fit(self, values: Array, season: int = 1) -> Self:
        """Keep the training values: their errors give the quantiles."""
        self.values = np.asarray(values, dtype=np.float64)
        self.season = season if self.seasonal else 1
        return self

    def forecast(
        self, values: Array, origins: NDArray[np.int64], horizon: int, levels: Array
    ) -> tuple[Array, Array]:
        """See `Baseline.forecast`. Cost: W·H reads, and one pass over the training values per season
        ahead."""
        m, T = self.season, values.size
        padded = np.concatenate((values, np.full(-T % m, np.nan))).reshape(-1, m)
        by_phase = _forward_filled(padded).reshape(-1)[:T]
        last = _forward_filled(values[:, None])[:, 0]
        steps = np.arange(horizon)
        cycles = steps // m + 1
        source = origins[:, None] + steps - m * cycles
        mean = np.where(source >= 0, by_phase[np.maximum(source, 0)], np.nan)
        mean = np.where(np.isnan(mean), last[origins - 1][:, None], mean)
        widths = np.stack([self._widths(k, levels) for k in range(1, cycles[-1] + 1)])
        return mean, mean[..., None] + widths[cycles - 1]

    def _widths(self, cycles: int, levels: Array) -> Array:
        """Distance of each quantile from the forecast (Q,), `cycles` seasons ahead."""
        errors = self._errors(cycles)
        if errors.size >= MIN_ERRORS:
            return np.sign(levels - 0.5) * np.quantile(errors, np.abs(2 * levels - 1))
        errors = self._errors(1)
        sigma = float(np.sqrt((errors**2).mean())) if errors.size else 0.0
        return sigma * np.sqrt(cycles) * np.array([NormalDist().inv_cdf(level) for level in levels])

    def _errors(self, cycles: int) -> Array:
        lag = self.season * cycles
        errors = np.abs(self.values[lag:] - self.values[:-lag])
        return errors[np.isfinite(errors)]


class Naive(SeasonalNaive):
    """The last known value, whatever the season; see `SeasonalNaive`."""

    seasonal = False


BASELINES: dict[str, Callable[[], Baseline]] = {
    "naive": Naive,
    "seasonal_naive": SeasonalNaive,
    "ets": ExponentialSmoothing,
}


def baseline(name: str) -> Baseline:
    """A new baseline: naive, seasonal_naive or ets.

    Raises:
        InputError: no baseline has this name.
    """
    if name not in BASELINES:
        raise InputError(f"baseline: no baseline {name!r}; known are {', '.join(BASELINES)}")
    return BASELINES[name]()


@dataclass(frozen=True)
class SeriesWindows:
    """One series and the origins to forecast it from.

    Attributes:
        values: (T,), NaN where missing.
        train_size: the first `train_size` values may be learned from.
        origins: (W,), each with a known value before it; o means that values[:o] are known.
        season: in steps, 1 for none.
    """

    values: Array
    train_size: int
    origins: NDArray[np.int64]
    season: int = 1


@dataclass(frozen=True)
class BaselineForecasts:
    """Forecasts of all windows of all series, in their order.

    Attributes:
        mean: (W, H), quantiles: (W, H, Q); NaN where `covered` is false.
        covered: (W,), False for windows of series that the time did not suffice for, or that could not be
            fitted.
        notes: what the reader must know about these forecasts, each with a count.
    """

    mean: Array
    quantiles: Array
    covered: NDArray[np.bool_]
    notes: list[str]


def forecast_baseline(
    name: str,
    series: Sequence[SeriesWindows],
    horizon: int,
    levels: ArrayLike,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> BaselineForecasts:
    """Fit one baseline to every series, once each, and forecast all windows.

    Series are taken in an order that is shuffled the same way every time. When `budget_s` is used up the rest
    is left out, and a note says how many were. At least one is always done, but for ets in a budget below
    60 s that even the first of its series exceeds.

    Raises:
        InputError: an unknown name, or an origin without a known value before it.
        MissingExtraError: ets without statsmodels.
    """
    levels = np.asarray(levels, dtype=np.float64)
    _check(series, horizon)
    counts = [len(one.origins) for one in series]
    first = np.concatenate(([0], np.cumsum(counts))).astype(int)
    mean = np.full((first[-1], horizon), np.nan)
    quantiles = np.full((first[-1], horizon, levels.size), np.nan)
    covered = np.zeros(first[-1], dtype=bool)
    remarks: Counter[str] = Counter()
    notes = []
    start_s, done = clock(), 0
    order = np.random.default_rng(0).permutation(len(series))
    needed_s = ETS_STEP_S * series[order[0]].train_size if len(order) else 0.0
    needed_s += 0.0 if "statsmodels" in sys.modules else ETS_IMPORT_S
    if name == "ets" and budget_s < min(needed_s, BUDGET_S):
        notes.append("ets: left out, the time left is too short for it; evaluate scores it")
        order = order[:0]
    for i in order:
        if done and clock() - start_s > budget_s:
            notes.append(
                f"{name}: sampled, {done} of {len(series)} series: all would take over {budget_s:g} s"
            )
            break
        one, rows = series[i], slice(first[i], first[i + 1])
        done += 1
        try:
            fitted = baseline(name).fit(one.values[: one.train_size], one.season)
        except MissingExtraError:
            raise
        except InputError as error:
            remarks[str(error).removeprefix(f"{name}: ")] += 1
            continue
        mean[rows], quantiles[rows] = fitted.forecast(one.values, one.origins, horizon, levels)
        covered[rows] = True
        if note := getattr(fitted, "note", None):
            remarks[note] += 1
    notes += [f"{name}: {remark} ({count} series)" for remark, count in remarks.items()]
    return BaselineForecasts(mean, quantiles, covered, notes)


def _check(series: Sequence[SeriesWindows], horizon: int) -> None:
    if horizon < 1:
        raise InputError(f"forecast_baseline: horizon is {horizon}, expected at least 1")
    for i, one in enumerate(series):
        if one.values.ndim != 1:
            raise SizeError(
                f"forecast_baseline: series {i} has values of shape {one.values.shape}, expected (T,)"
            )
        known = np.flatnonzero(np.isfinite(one.values))
        earliest = known[0] + 1 if known.size else one.values.size + 1
        if one.origins.size and not earliest <= one.origins.min() <= one.origins.max() <= one.values.size:
            raise InputError(
                f"forecast_baseline: series {i} has origins from {one.origins.min()} to {one.origins.max()}, "
                f"expected {earliest} (after its first known value) to {one.values.size}; "
                "leave these windows out"
            )


def _forward_filled(values: Array) -> Array:
    """Along the first axis of (n, m): each missing value replaced by the last known one above it."""
    rows = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(rows, axis=0), axis=0)
