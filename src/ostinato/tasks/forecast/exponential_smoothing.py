"""ETS: exponential smoothing, its form chosen by AICc, fitted once and then carried along the series.

statsmodels fits the smoothing parameters; the recursion that follows the series afterwards is ours, because
it passes over missing values and gives the state at every forecast origin in one run.

Source: Hyndman, Koehler, Ord & Snyder 2008, "Forecasting with Exponential Smoothing"; the letters are theirs
(level l, growth b, season s, smoothing alpha, beta, gamma, damping phi), as are the names of the forms:
ETS(error, trend, season).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError, MissingExtraError

Array = NDArray[np.float64]

# smoothing parameters are fitted on the last steps; older ones hardly weigh in a recursion
MAX_FIT_STEPS = 20_000
MAX_SEASON = 400  # statsmodels' arrays grow with steps × season; longer seasons keep a fixed profile
# steps × season up to which fitting initial states costs well under a second
ESTIMATED_INITIAL_STATES = 50_000
SIMULATED_PATHS = 1000
MAX_SIMULATED_VALUES = 4_000_000
TINY = 1e-8


@dataclass(frozen=True)
class Form:
    """One ETS form. `error` "add" or "mul"; `trend`; `damped`; `season` "add", "mul" or None."""

    error: str
    trend: bool
    damped: bool
    season: str | None

    def __str__(self) -> str:
        season = {"add": "A", "mul": "M", None: "N"}[self.season]
        return (
            f"ETS({self.error[0].upper()},{'N' if not self.trend else 'Ad' if self.damped else 'A'},{season})"
        )


@dataclass(frozen=True)
class Parameters:
    """Fitted smoothing parameters and the states before the first value."""

    alpha: float
    beta: float
    gamma: float
    phi: float
    level: float
    growth: float
    season: Array  # (m,), season[t % m] belongs to step t; a single neutral element without season


class ExponentialSmoothing:
    """ETS with automatic choice of form, as a baseline of forecasts.

    Candidates are the forms with additive or (positive values) multiplicative errors, with no, linear or
    damped trend, and no, additive or (with multiplicative errors) multiplicative season; the smallest AICc
    wins. Quantiles are
    Gaussian: in closed form for additive errors, from 1000 simulated paths of stratified draws otherwise.

    A season that is not seen twice is left out. One above 400 steps keeps a profile estimated once (gamma 0)
    under a form without season. Series above 20 000 steps are fitted on their last 20 000. `note` says where
    one of these happened.

    Attributes after `fit`:
        form: the chosen form, such as ETS(M,Ad,M).
        sigma: standard deviation of one-step errors, relative ones for multiplicative errors.
        note: what was done differently from plain ETS with this season, or None.
    """

    def fit(self, values: Array, season: int = 1) -> ExponentialSmoothing:
        """Choose the form and fit it to training values (T,), NaN where missing; cost up to a few seconds.

        Raises:
            MissingExtraError: statsmodels is not installed.
            InputError: no value is known, or statsmodels could fit no form.
        """
        values = np.asarray(values, dtype=np.float64)
        known = np.flatnonzero(np.isfinite(values))
        if not known.size:
            raise InputError("ets: every training value is missing; leave this series out")
        self.start = int(known[0])
        self.note: str | None = None
        self.fitted_from = 0
        self.rough_states: tuple[float, float, Array] | None = None
        values = values[self.start :]
        m, profile = self._seasonal_plan(values, season)
        self.m = m
        if np.ptp(values[np.isfinite(values)]) == 0 or known.size < 4:
            self.form = Form("add", False, False, None)
            self.parameters = Parameters(1.0, 0.0, 0.0, 1.0, float(values[0]), 0.0, np.zeros(1))
        else:
            self._choose(fill_gaps(values - profile[np.arange(values.size) % profile.size], m), profile)
        return self._measure(values)

    def _seasonal_plan(self, values: Array, season: int) -> tuple[int, Array]:
        """The season to fit, and the fixed profile to take off first."""
        if season > 1 and values.size < 2 * season + 2:
            self.note = f"season {season} is not seen twice and was left out"
            return 1, np.zeros(1)
        if season > MAX_SEASON:
            self.note = f"season {season} is above {MAX_SEASON} and keeps a fixed profile"
            return 1, _initial_states(fill_gaps(values, season), season, "add", values.size)[2]
        return max(season, 1), np.zeros(1)

    def _choose(self, values: Array, profile: Array) -> None:
        recent = values[-MAX_FIT_STEPS:]
        shortened = values.size > recent.size
        if shortened:
            # the phase of the season must be that of the whole series
            recent = values[values.size - MAX_FIT_STEPS + (-(values.size - MAX_FIT_STEPS)) % self.m :]
            self.note = (
                f"{self.note}; " if self.note else ""
            ) + f"fitted on the last {recent.size} of {values.size} steps"
        with _ets_model() as kind:
            forms = _candidates(recent, self.m, profile.size == 1)
            tried = [_fit(kind, recent, form, self.m, False) for form in forms]
            fits = sorted(filter(None, tried), key=lambda fit: fit.aicc)
            if recent.size * self.m <= ESTIMATED_INITIAL_STATES:
                refined = [_fit(kind, recent, fit.form, self.m, True) for fit in fits[:3]]
                fits = sorted([*fits, *filter(None, refined)], key=lambda fit: fit.aicc)
            if not fits:
                raise InputError("ets: statsmodels could fit no form to this series")
            self.form, self.parameters = fits[0].form, fits[0].parameters()
        if shortened:
            # before the fitted part only origins inside the training data need states, and rough ones do
            self.fitted_from = values.size - recent.size
            level, growth, season = _initial_states(
                values, self.m if self.form.season else 1, self.form.season or "add", 5
            )
            self.rough_states = (level, growth * self.form.trend, season)
        if profile.size > 1:
            self.form = replace(self.form, season="add")
            self.parameters = replace(self.parameters, season=profile)
            self.m = profile.size

    def _measure(self, values: Array) -> ExponentialSmoothing:
        predicted, _ = self._follow(values, np.empty(0, dtype=np.int64))
        errors = values - predicted
        if self.form.error == "mul":
            errors = errors / predicted
        errors = errors[np.isfinite(errors)]
        degrees = errors.size - _parameter_count(self.form, self.m)
        self.sigma = float(np.sqrt((errors**2).sum() / (degrees if degrees > 0 else errors.size)))
        return self

    def forecast(
        self, values: Array, origins: NDArray[np.int64], horizon: int, levels: Array
    ) -> tuple[Array, Array]:
        """Forecast from each origin with the fitted parameters; see `baselines.Baseline.forecast`."""
        _, states = self._follow(values[self.start :], origins - self.start)
        if self.form.error == "add":
            mean = self._point(states, horizon)
            spread = self._spread(horizon)
            z = np.array([NormalDist().inv_cdf(level) for level in levels])
            return mean, mean[..., None] + spread[:, None] * z
        return self._point(states, horizon), self._simulate(states, horizon, levels)

    def _follow(self, values: Array, origins: NDArray[np.int64]) -> tuple[Array, list[Array]]:
        """One run over the values: one-step predictions (T,) and the states (level, growth, season) at the
        origins.

        At a missing value the state moves on as predicted.
        """
        p, m, multiplicative = self.parameters, self.parameters.season.size, self.form.season == "mul"
        alpha, beta, gamma, phi = p.alpha, p.beta, p.gamma, p.phi
        level, growth, starting = self.rough_states or (p.level, p.growth, p.season)
        season = np.resize(starting, m).tolist()
        wanted, found = set(origins.tolist()), {}
        predicted = np.empty(values.size)
        for t, value in enumerate([*values.tolist(), float("nan")]):
            k = t % m
            if t == self.fitted_from > 0:
                level, growth, season = p.level, p.growth, p.season.tolist()
            if t in wanted:
                found[t] = (level, growth, season[k:] + season[:k])
            base, s = level + phi * growth, season[k]
            expected = base * s if multiplicative else base + s
            if t < values.size:
                predicted[t] = expected
            error = value - expected
            level, growth = base, phi * growth
            if error == error:  # noqa: PLR0124 - false for NaN, and much faster than math.isnan in this loop
                shared = error / _away_from_zero(s) if multiplicative else error
                level, growth = base + alpha * shared, growth + beta * shared
                season[k] = s + gamma * (error / _away_from_zero(base) if multiplicative else error)
        states = [np.array([found[t][i] for t in origins.tolist()]) for i in range(3)]
        return predicted, states

    def _damping(self, horizon: int) -> Array:
        """phi + … + phi^h for h = 1 … horizon: what one unit of growth adds to the level."""
        return np.cumsum(self.parameters.phi ** np.arange(1, horizon + 1))

    def _point(self, states: list[Array], horizon: int) -> Array:
        level, growth, season = states
        base = level[:, None] + growth[:, None] * self._damping(horizon)
        coming = season[:, np.arange(horizon) % season.shape[1]]
        return base * coming if self.form.season == "mul" else base + coming

    def _spread(self, horizon: int) -> Array:
        """Standard deviation of the error h steps ahead, (H,): additive errors only (equation 6.1 of the
        source)."""
        p = self.parameters
        steps = np.arange(1, horizon)
        weights = p.alpha + p.beta * self._damping(horizon)[:-1] + p.gamma * (steps % p.season.size == 0)
        return self.sigma * np.sqrt(np.concatenate(([1.0], 1.0 + np.cumsum(weights**2))))

    def _simulate(self, states: list[Array], horizon: int, levels: Array) -> Array:
        S = SIMULATED_PATHS
        normal = np.array([NormalDist().inv_cdf((i + 0.5) / S) for i in range(S)])
        rng = np.random.default_rng(0)
        shocks = np.maximum(-1.0, self.sigma * np.stack([rng.permutation(normal) for _ in range(horizon)]))
        W = states[0].size
        quantiles = np.empty((W, horizon, len(levels)))
        rows = max(1, MAX_SIMULATED_VALUES // (S * max(1, min(self.parameters.season.size, horizon))))
        for first in range(0, W, rows):
            part = slice(first, first + rows)
            quantiles[part] = self._paths_to_quantiles([state[part] for state in states], shocks, levels)
        return quantiles

    def _paths_to_quantiles(self, states: list[Array], shocks: Array, levels: Array) -> Array:
        p, multiplicative = self.parameters, self.form.season == "mul"
        H, m = shocks.shape[0], p.season.size
        level, growth = (np.repeat(state[:, None], shocks.shape[1], axis=1) for state in states[:2])
        season: list[Array] = [states[2][:, k : k + 1] for k in range(m)]
        quantiles = np.empty((level.shape[0], H, len(levels)))
        for h, shock in enumerate(shocks):
            base, s = level + p.phi * growth, season[h % m]
            expected = base * s if multiplicative else base + s
            error = expected * shock
            quantiles[:, h] = np.quantile(expected + error, levels, axis=1).T
            shared = error / _away_from_zero(s) if multiplicative else error
            level, growth = base + p.alpha * shared, p.phi * growth + p.beta * shared
            if h + m < H:
                season[h % m] = s + p.gamma * (error / _away_from_zero(base) if multiplicative else error)
        return quantiles


def fill_gaps(values: Array, season: int) -> Array:
    """Missing values by linear interpolation around the mean of each phase of the season."""
    missing = ~np.isfinite(values)
    if not missing.any():
        return values
    phases, t = np.arange(values.size) % season, np.arange(values.size)
    counts = np.bincount(phases[~missing], minlength=season)
    sums = np.bincount(phases[~missing], weights=values[~missing], minlength=season)
    overall = values[~missing].mean()
    profile = np.where(counts > 0, sums / np.maximum(counts, 1), overall) - overall
    level = values - profile[phases]
    return np.where(missing, np.interp(t, t[~missing], level[~missing]) + profile[phases], values)


def _away_from_zero(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) > TINY else TINY
    return np.where(np.abs(value) > TINY, value, TINY)


def _candidates(values: Array, m: int, multiplicative: bool) -> list[Form]:
    positive = multiplicative and bool(values.min() > 0)
    # ETS(A,·,M) is left out: it divides by states that may pass zero (section 11.1 of the source)
    return [
        Form(error, trend, damped, season)
        for error in ("add", "mul")[: 1 + positive]
        for season in ((None,) if m == 1 else (None, "add") if error == "add" else (None, "add", "mul"))
        for trend, damped in ((False, False), (True, False), (True, True))
    ]


def _parameter_count(form: Form, m: int) -> int:
    """Smoothing parameters, initial states, and the variance."""
    return 3 + 2 * form.trend + form.damped + (m if form.season else 0)


def _initial_states(values: Array, m: int, season: str, cycles: int) -> tuple[float, float, Array]:
    """Level and growth before the first value, and the season (m,): by moving averages (section 2.6 of the
    source).

    Args:
        values: (T,), none missing, T at least 2·m + 2.
        m: season in steps; 1 for none.
        season: "add" or "mul".
        cycles: how many cycles at the start the season is averaged over.
    """
    neutral = 1.0 if season == "mul" else 0.0
    profile = np.full(m, neutral)
    if m > 1:
        first = values[: max(2 * m + 2, min(values.size, m * (cycles + 1) + 1))]
        weights = np.ones(m) if m % 2 else np.concatenate(([0.5], np.ones(m - 1), [0.5]))
        cumulated = np.convolve(first, weights / m, mode="valid")
        half = m // 2
        middle = first[half : half + cumulated.size]
        detrended = middle / _away_from_zero(cumulated) if season == "mul" else middle - cumulated
        phases = (np.arange(detrended.size) + half) % m
        profile = np.bincount(phases, weights=detrended, minlength=m) / np.bincount(phases, minlength=m)
        profile = profile / profile.mean() if season == "mul" else profile - profile.mean()
    head = values[: max(10, m)][: values.size]
    coming = profile[np.arange(head.size) % m]
    head = head / _away_from_zero(coming) if season == "mul" else head - coming
    growth, level = np.polyfit(np.arange(1, head.size + 1), head, 1)
    return float(level), float(growth), profile


@contextmanager
def _ets_model() -> Iterator[Any]:
    """statsmodels' class, with BLAS held to one thread: L-BFGS factors matrices of a few rows, and several
    threads spend up to ten times the fit's own time on waiting for each other."""
    try:
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        package = (error.name or "statsmodels").partition(".")[0]
        raise MissingExtraError("the baseline 'ets'", package, "baselines") from None
    with threadpool_limits(1, user_api="blas"):
        yield ETSModel


@dataclass(frozen=True)
class _Fit:
    """A form fitted to a series: statsmodels' model and its parameters."""

    aicc: float
    form: Form
    model: Any
    found: Array

    def parameters(self) -> Parameters:
        """Ours from theirs: for the chosen form only, as statsmodels also computes a Hessian here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _parameters(self.model.smooth(self.found), self.form)


def _fit(kind: Any, values: Array, form: Form, m: int, estimate_states: bool) -> _Fit | None:
    """The fit with the lowest AICc, or None where statsmodels finds no finite likelihood or the series is too
    short."""
    count = _parameter_count(form, m)
    if values.size < count + 2 or (estimate_states and values.size < max(10 + 2 * (m // 2), 2 * m)):
        return None
    best: _Fit | None = None
    options: list[dict[str, Any]] = [{"initialization_method": "estimated"}]
    if not estimate_states:
        options = []
        # a season that drifts is best started from its first cycles, a steady one from all of them
        for cycles in (5, values.size) if form.season and values.size > 7 * m else (5,):
            level, growth, season = _initial_states(
                values, m if form.season else 1, form.season or "add", cycles
            )
            options.append({"initialization_method": "known", "initial_level": level})
            options[-1] |= {"initial_trend": growth} if form.trend else {}
            options[-1] |= {"initial_seasonal": season} if form.season else {}
    for option in options:
        with warnings.catch_warnings():
            # a start that does not converge loses by its likelihood; there is nothing for the user to do
            warnings.simplefilter("ignore")
            model = kind(
                values,
                error=form.error,
                trend="add" if form.trend else None,
                damped_trend=form.damped,
                seasonal=form.season,
                seasonal_periods=m if form.season else None,
                **option,
            )
            found = model.fit(disp=False, maxiter=200, return_params=True)
            log_likelihood = model.loglike(found)
        aicc = -2 * log_likelihood + 2 * count + 2 * count * (count + 1) / (values.size - count - 1)
        if np.isfinite(aicc) and (best is None or aicc < best.aicc):
            best = _Fit(float(aicc), form, model, found)
    return best


def _parameters(result: Any, form: Form) -> Parameters:
    neutral = 1.0 if form.season == "mul" else 0.0
    return Parameters(
        alpha=float(result.alpha),
        beta=float(result.beta) if form.trend else 0.0,
        gamma=float(result.gamma) if form.season else 0.0,
        phi=float(result.phi) if form.damped else 1.0,
        level=float(result.initial_level),
        growth=float(result.initial_trend) if form.trend else 0.0,
        season=np.asarray(result.initial_seasonal, dtype=np.float64) if form.season else np.array([neutral]),
    )
