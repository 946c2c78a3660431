"""Choosing the gains of exponential smoothing: a search that bets on the whole horizon.

Gains minimise the absolute error over all steps of the horizon rather than of the next one, because that is
what a forecast is judged by. Parts cost a little: the error of a candidate with k parts counts exp(k / (2 n))
times, where n horizons fit into the row, a quarter of those of the other rows included (half of Akaike's
price, with horizons as the independent observations). Without it a short random walk is taken for a trend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ostinato.data.smoothing import OFF, Floats, SmoothingParameters, SmoothingState, advance, horizon_weights

Transform = Callable[[Floats], Floats]

CELLS_IN_ALL = 24_000_000
"""Bound on the values that a search may pass over, about 15 s on one core."""

_CELLS_PER_PASS = 4_000_000
"""Bound on the values held at once while parameters are searched: about 160 MB."""


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
        the parameters, and (rows,) the error of the chosen ones in the unit of `values`, with the price of
        their parts; NaN for rows that nobody measured.

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

    def __post_init__(self) -> None:
        fits = np.array([len(row) / self.horizon for row in self.rows])
        # What helps the other rows is evidence too, if less than one's own.
        self.witnesses = np.maximum(0.75 * fits + 0.25 * fits.sum(), 1.0)

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
        mean *= np.exp(parameters.parts.reshape(mean.shape) / (2.0 * self.witnesses[ids][:, None]))
        judged = count.reshape(len(rows), copies)[:, 0] / max(horizon, 1)
        return mean, judged
