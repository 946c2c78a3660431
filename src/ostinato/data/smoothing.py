"""Exponential smoothing as a recurrence: the anchor that forecasting networks correct.

One step of the filter, for every row at once (all letters are arrays over rows):

    expected = level + phi·trend + season1[p1] + season2[p2] + rho·residual
    error    = y - expected                                  (0 where y is missing)
    level    = level + phi·trend + alpha·error
    trend    = phi·trend + beta·error
    season_i = season_i + gamma_i·(what the level left)·error
    residual = y - (expected - rho·residual)

Gains start as running averages (1/n), so there is no initialisation pass and nothing looks ahead: a row's
numbers at time t depend on its values up to t only. The additive form with damped trend is Gardner (1985),
two seasons with an autoregressive residual are Taylor (2003). `smoothing_search.py` chooses the gains.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

OFF = -1.0
"""A seasonal gain that switches the season off."""

SCALE_MEMORY = 200
"""Steps over which the running error scale forgets."""


@dataclass
class SmoothingParameters:
    """Gains of the filter, one value a row; `gamma` is (rows, seasons), `OFF` where a season is unused."""

    alpha: Floats
    beta: Floats
    phi: Floats
    rho: Floats
    gamma: Floats

    def select(self, rows: NDArray[np.intp]) -> SmoothingParameters:
        """Parameters of some rows, in that order; rows may repeat."""
        return SmoothingParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def parts(self) -> Floats:
        """How many parts beyond a level are in use: trend, seasons, and half for the residual's memory."""
        return (self.beta > 0) + (self.gamma >= 0).sum(axis=1) + 0.5 * (self.rho > 0)

    def typical(self) -> SmoothingParameters:
        """One row: the median of all, for a series that was not in training."""
        gamma = self.gamma
        used = np.where(gamma < 0, np.nan, gamma)
        mostly_off = (gamma < 0).mean(axis=0) > 0.5
        middle = np.zeros(gamma.shape[1])
        for i in range(gamma.shape[1]):
            middle[i] = OFF if mostly_off[i] else np.nanmedian(used[:, i])
        return SmoothingParameters(
            alpha=np.median(self.alpha, keepdims=True),
            beta=np.median(self.beta, keepdims=True),
            phi=np.median(self.phi, keepdims=True),
            rho=np.median(self.rho, keepdims=True),
            gamma=middle[None],
        )


@dataclass
class SmoothingState:
    """What the filter remembers of each row; `advance` writes into it."""

    level: Floats
    trend: Floats
    residual: Floats
    scale: Floats
    observed: Floats
    clock: NDArray[np.int64]
    season: list[Floats]
    visits: list[Floats]

    @staticmethod
    def start(rows: int, seasons: tuple[int, ...]) -> SmoothingState:
        """Nothing seen yet."""
        return SmoothingState(
            level=np.zeros(rows),
            trend=np.zeros(rows),
            residual=np.zeros(rows),
            scale=np.zeros(rows),
            observed=np.zeros(rows),
            clock=np.zeros(rows, dtype=np.int64),
            season=[np.zeros((rows, m)) for m in seasons],
            visits=[np.zeros((rows, m)) for m in seasons],
        )

    def select(self, rows: NDArray[np.intp]) -> SmoothingState:
        """A copy of some rows; rows may repeat (sampled paths)."""
        return SmoothingState(
            level=self.level[rows],
            trend=self.trend[rows],
            residual=self.residual[rows],
            scale=self.scale[rows],
            observed=self.observed[rows],
            clock=self.clock[rows],
            season=[s[rows] for s in self.season],
            visits=[v[rows] for v in self.visits],
        )


@dataclass
class SmoothingStep:
    """What one step leaves behind: arrays over rows."""

    filled: Floats
    error: Floats
    seasonal: list[Floats]


def advance(
    state: SmoothingState, parameters: SmoothingParameters, seasons: tuple[int, ...], y: Floats
) -> SmoothingStep:
    """Feed one value a row (NaN where missing) into `state`, in place."""
    rows = np.arange(len(y))
    observed = ~np.isnan(y)
    first = observed & (state.observed == 0)
    learning = observed & ~first
    drift = parameters.phi * state.trend
    base = state.level + drift
    phases = [state.clock % m for m in seasons]
    for season, phase in zip(state.season, phases, strict=True):
        base = base + season[rows, phase]
    expected = base + parameters.rho * state.residual
    filled = np.where(observed, y, expected)
    error = np.where(learning, filled - expected, 0.0)

    gain = np.maximum(parameters.alpha, 1.0 / (state.observed + 1.0))
    state.level = np.where(first, filled, state.level + drift + gain * error)
    # A trend learned before the first season is complete would be the season's own slope.
    warm = state.observed >= max((2, *seasons[:1]))
    state.trend = drift + np.where(warm, parameters.beta * error, 0.0)
    left = 1.0 - gain
    seasonal = []
    for i, (season, visits, phase) in enumerate(zip(state.season, state.visits, phases, strict=True)):
        gamma = parameters.gamma[:, i]
        seen = visits[rows, phase]
        start = 1.0 / (seen + 1.0) if i == 0 else 0.5 * (seen == 0)
        gamma = np.where(gamma < 0, 0.0, np.maximum(gamma, start))
        value = season[rows, phase] + gamma * left * error
        season[rows, phase] = value
        visits[rows, phase] = seen + observed
        left = left * (1.0 - gamma)
        seasonal.append(value)
    state.residual = np.where(first, 0.0, np.where(observed, filled - base, parameters.rho * state.residual))
    state.observed = state.observed + observed
    steps = np.maximum(state.observed - 1.0, 1.0)
    rate = np.maximum(1.0 / steps, 1.0 / SCALE_MEMORY)
    state.scale = np.where(learning, state.scale + rate * (np.abs(error) - state.scale), state.scale)
    state.clock = state.clock + 1
    return SmoothingStep(filled, error, seasonal)


def horizon_weights(parameters: SmoothingParameters, horizon: int) -> tuple[Floats, Floats]:
    """Factors of trend and residual at steps 1 … horizon: two arrays (rows, horizon)."""
    k = np.arange(1, horizon + 1)
    damping = np.cumsum(parameters.phi[:, None] ** k, axis=1)
    return damping, parameters.rho[:, None] ** k


def forecast(state: SmoothingState, parameters: SmoothingParameters, horizon: int) -> Floats:
    """Forecast of the next `horizon` values from `state`: (rows, horizon)."""
    damping, fading = horizon_weights(parameters, horizon)
    values = state.level[:, None] + damping * state.trend[:, None] + fading * state.residual[:, None]
    steps = np.arange(horizon)
    for season in state.season:
        phase = (state.clock[:, None] + steps) % season.shape[1]
        values = values + np.take_along_axis(season, phase, axis=1)
    return values
