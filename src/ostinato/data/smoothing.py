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
two seasons with an autoregressive residual are Taylor (2003); parameters minimise the absolute error
over all horizons rather than one step ahead, because that is what a forecast is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Transform = Callable[[Floats], Floats]

OFF = -1.0
"""A seasonal gain that switches the season off."""

SCALE_MEMORY = 200
"""Steps over which the running error scale forgets."""

CELLS_IN_ALL = 24_000_000
"""Bound on the values that a search may pass over, about 15 s on one core."""

_CELLS_PER_PASS = 4_000_000
"""Bound on the values held at once while parameters are searched: about 160 MB."""


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


# ------------------------------------------------------------------------------------------- fitting


def _same(values: Floats) -> Floats:
    return values


def fit_smoothing(
    values: Sequence[Floats],
    seasons: tuple[int, ...],
    horizon: int,
    *,
    forward: Transform = _same,
    inverse: Transform = _same,
    seed: int = 0,
    cells: int = CELLS_IN_ALL,
) -> tuple[SmoothingParameters, Floats]:
    """Choose each row's parameters by the mean absolute error of its forecasts over the whole horizon.

    A random search over shared candidates, then rounds around the best ones. A row with few
    origins leans on what is good for all rows; a row with many is refined around its own best. Where there
    are too many values for that, a sample of the rows chooses which candidates the others may choose from,
    and nothing is refined.

    Args:
        values: of each row (T_i,), NaN where missing; may be mapped from files, a part is read at a time.
        seasons: season lengths, the main one first.
        horizon: H, steps ahead that matter.
        forward: applied to the values first.
        inverse: maps back to the unit in which errors are measured.
        seed: of the search.
        cells: the most values that the search may touch.

    Returns:
        the parameters, and (rows,) the error of the chosen ones in the unit of `values`; NaN for rows that
        nobody measured.

    Cost: about 50 vector operations a time step over rows × candidates (80 to 320), four times, and never
        over more than `cells` values.
    """
    rng = np.random.default_rng(seed)
    # Recent behaviour decides: older history than this only costs time.
    keep = max(4000, 12 * max(seasons, default=1))
    search = _Search([row[-keep:] for row in values], seasons, horizon, forward, inverse)
    shared = _candidates(rng, 80 * 2 ** len(seasons), len(seasons))
    n_steps = sum(len(row) for row in search.rows)
    is_reduced = 4 * n_steps * len(shared.alpha) > cells
    if is_reduced:
        shared, errors = _preselected(rng, search, shared, n_steps, cells)
        if len(shared.alpha) == 1:
            return search.fitting(shared.select(np.zeros(len(values), dtype=np.intp)), search.rows), errors
    C = len(shared.alpha)
    errors, origins = search.errors(shared, np.arange(len(values)))
    relative = errors / np.maximum(np.median(errors, axis=1, keepdims=True), 1e-300)
    pooled = relative.mean(axis=0)
    # Twenty origins of its own weigh as much as everybody's.
    trust = (origins / (origins + 20.0))[:, None]
    score = trust * relative + (1 - trust) * pooled
    best = score.argmin(axis=1)
    chosen = search.fitting(shared.select(best), search.rows)
    chosen_error = errors[np.arange(len(values)), best]
    if is_reduced:
        return chosen, chosen_error
    # Parents of the next round: the eight best candidates so far of each row.
    best_of = [shared.select(np.argsort(row)[:8]) for row in score]
    for width in (0.4, 0.25, 0.12):
        refine = np.flatnonzero(origins >= 40)
        for ids in search.chunks(refine, C):
            parents = [best_of[i].select(rng.integers(0, 8, C)) for i in ids]
            trial = search.fitting(_perturb(rng, _concatenate(parents), width), [search.rows[i] for i in ids])
            error, _ = search.run(ids, trial)
            winner = error.argmin(axis=1)
            for j, i in enumerate(ids):
                if error[j, winner[j]] < chosen_error[i]:
                    chosen_error[i] = error[j, winner[j]]
                    _assign(chosen, i, trial, j * C + winner[j])
                    best_of[i] = trial.select(j * C + np.argsort(error[j])[:8])
    return chosen, chosen_error


def _preselected(
    rng: np.random.Generator, search: _Search, shared: SmoothingParameters, n_steps: int, limit: int
) -> tuple[SmoothingParameters, Floats]:
    """The candidates that are best for a sample of rows, and the sample's errors with the best (rows,)."""
    order = rng.permutation(len(search.rows))
    cells = np.cumsum([len(search.rows[i]) for i in order]) * len(shared.alpha)
    sample = np.sort(order[: max(1, int(np.searchsorted(cells, limit // 3)))])
    found, _ = search.errors(shared, sample)
    ranks = (found / np.maximum(np.median(found, axis=1, keepdims=True), 1e-300)).mean(axis=0).argsort()
    count = int(np.clip(limit // 2 // n_steps, 1, len(ranks)))
    errors = np.full(len(search.rows), np.nan)
    errors[sample] = found[:, ranks[0]]
    return shared.select(ranks[:count]), errors


def _candidates(rng: np.random.Generator, n: int, n_seasons: int) -> SmoothingParameters:
    u = rng.random((n, 4))
    alpha = 0.01 + 0.98 * u[:, 0] ** 2
    beta = np.minimum(np.where(u[:, 1] < 0.3, 0.0, 0.3 * u[:, 1] ** 3), alpha)
    phi = np.where(u[:, 2] < 0.25, 1.0, 0.8 + 0.2 * rng.random(n))
    phi = np.where(beta == 0, 0.9, phi)
    rho = np.where(u[:, 3] < 0.4, 0.0, u[:, 3])
    gain = rng.random((n, n_seasons))
    gamma = np.where(gain < 0.15, 0.0, 0.6 * gain**1.5)
    # Every pattern of used and unused seasons gets its share of the candidates.
    patterns = np.arange(n) % (2**n_seasons)
    for i in range(n_seasons):
        gamma[(patterns >> i) & 1 == 1, i] = OFF
    # The first candidate is the naive forecast.
    alpha[0], beta[0], rho[0], gamma[0] = 1.0, 0.0, 0.0, OFF
    return SmoothingParameters(alpha, beta, phi, rho, gamma)


def _perturb(rng: np.random.Generator, parents: SmoothingParameters, width: float) -> SmoothingParameters:
    def jitter(values: Floats, high: float) -> Floats:
        moved = np.clip(values * np.exp(rng.normal(0, width, values.shape)), 1e-4, high)
        return np.where(values <= 0, values, moved)

    phi = np.where(parents.phi == 1.0, 1.0, jitter(parents.phi, 1.0))
    return SmoothingParameters(
        jitter(parents.alpha, 1.0),
        jitter(parents.beta, 1.0),
        phi,
        jitter(parents.rho, 0.999),
        jitter(parents.gamma, 1.0),
    )


def _concatenate(parts: list[SmoothingParameters]) -> SmoothingParameters:
    return SmoothingParameters(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(parts[0]))
    )


def _assign(target: SmoothingParameters, row: int, source: SmoothingParameters, index: int) -> None:
    for f in fields(target):
        getattr(target, f.name)[row] = getattr(source, f.name)[index]


@dataclass
class _Search:
    """Rows on which candidates are tried; `rows` hold the untransformed end of each."""

    rows: list[Floats]
    seasons: tuple[int, ...]
    horizon: int
    forward: Transform
    inverse: Transform

    def fitting(self, parameters: SmoothingParameters, rows: list[Floats]) -> SmoothingParameters:
        """Switch off the seasons that a row is too short to show twice; equally many parameters a row."""
        gamma = parameters.gamma.copy()
        lengths = np.repeat([len(row) for row in rows], len(gamma) // len(rows))
        for i, m in enumerate(self.seasons):
            gamma[lengths < 2 * m, i] = OFF
        return SmoothingParameters(parameters.alpha, parameters.beta, parameters.phi, parameters.rho, gamma)

    def chunks(self, ids: NDArray[np.intp], copies: int) -> list[NDArray[np.intp]]:
        """Rows in groups that fit the memory bound."""
        longest = max((len(self.rows[i]) for i in ids), default=1)
        size = max(1, _CELLS_PER_PASS // max(1, longest * copies))
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def errors(self, shared: SmoothingParameters, ids: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Errors (ids, C) of C candidates on every row, and (ids,) how many origins they were judged at."""
        C = len(shared.alpha)
        found = []
        for chunk in self.chunks(ids, C):
            tiled = shared.select(np.tile(np.arange(C), len(chunk)))
            found.append(self.run(chunk, self.fitting(tiled, [self.rows[i] for i in chunk])))
        return np.concatenate([e for e, _ in found]), np.concatenate([n for _, n in found])

    def run(self, ids: NDArray[np.intp], parameters: SmoothingParameters) -> tuple[Floats, Floats]:
        """Errors (ids, copies) of each row's own candidates, and (ids,) how many origins judged them."""
        seasons, horizon = self.seasons, self.horizon
        rows = [self.forward(np.asarray(self.rows[i])) for i in ids]
        T = max(len(row) for row in rows)
        copies = len(parameters.alpha) // len(rows)
        values = np.full((T, len(rows)), np.nan)
        for i, row in enumerate(rows):
            values[: len(row), i] = row
        columns = np.repeat(np.arange(len(rows)), copies)
        R = len(columns)
        state = SmoothingState.start(R, seasons)
        level, trend, residual = (np.empty((T, R)) for _ in range(3))
        seasonal = [np.empty((T, R)) for _ in seasons]
        for t in range(T):
            step = advance(state, parameters, seasons, values[t, columns])
            level[t], trend[t], residual[t] = state.level, state.trend, state.residual
            for kept, new in zip(seasonal, step.seasonal, strict=True):
                kept[t] = new
        # The first season, or a third of a short row, only warms the filter up.
        warm = min(2 * max(seasons[:1], default=1), T // 3)
        origins = np.unique(np.linspace(max(warm, 1), max(T - 1, 1), min(300, max(T - warm, 1))).astype(int))
        total, count = np.zeros(R), np.zeros(R)
        damping, fading = horizon_weights(parameters, horizon)
        for k in range(1, horizon + 1):
            at = origins[origins - 1 + k < T] - 1
            if not len(at):
                break
            predicted = level[at] + damping[:, k - 1] * trend[at] + fading[:, k - 1] * residual[at]
            for kept, m in zip(seasonal, seasons, strict=True):
                back = at + k - m * -(-k // m)
                predicted = predicted + np.where(back[:, None] >= 0, kept[np.maximum(back, 0)], 0.0)
            actual = values[at + k][:, columns]
            error = np.abs(self.inverse(predicted) - self.inverse(actual))
            total += np.nansum(error, axis=0)
            count += (~np.isnan(actual)).sum(axis=0)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.inf).reshape(len(rows), copies)
        # A row on which nothing can be judged takes what is good for the others.
        mean[~np.isfinite(mean)] = 1e300
        judged = count.reshape(len(rows), copies)[:, 0] / max(horizon, 1)
        return mean, judged
