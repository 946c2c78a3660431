"""The smoothing recurrence: nothing looks ahead, rows are independent, and the search finds a season."""

import numpy as np
import pytest

from ostinato.data import smoothing_search
from ostinato.data.smoothing import (
    OFF,
    SmoothingParameters,
    SmoothingState,
    advance,
    forecast,
)
from ostinato.data.smoothing_search import fit_smoothing

SEASONS = (5, 12)


def parameters(rows, seed=0, n_seasons=2):
    rng = np.random.default_rng(seed)
    gamma = rng.random((rows, n_seasons))
    gamma[::3, -1] = OFF
    return SmoothingParameters(*(rng.random(rows) for _ in range(4)), gamma)


def values(rows=7, steps=60, seed=1, missing=0.3):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(rows, steps)).cumsum(axis=1)
    y[rng.random(y.shape) < missing] = np.nan
    y[0, :20] = np.nan
    return y


def run(y, gains, state=None, seasons=SEASONS):
    state = SmoothingState.start(len(y), seasons) if state is None else state
    steps = [advance(state, gains, seasons, y[:, t]) for t in range(y.shape[1])]
    return state, np.stack([s.filled for s in steps], 1), np.stack([s.error for s in steps], 1)


def test_nothing_looks_ahead():
    y = values()
    changed = y.copy()
    changed[:, 40:] = 1e9
    gains = parameters(len(y))
    _, filled, error = run(y, gains)
    _, filled_changed, error_changed = run(changed, gains)
    np.testing.assert_array_equal(filled[:, :40], filled_changed[:, :40])
    np.testing.assert_array_equal(error[:, :40], error_changed[:, :40])


def test_rows_together_equal_each_alone_bitwise():
    y = values()
    gains = parameters(len(y))
    state, filled, _ = run(y, gains)
    ahead = forecast(state, gains, 17)
    for r in range(len(y)):
        alone = gains.select(np.array([r]))
        state_r, filled_r, _ = run(y[r : r + 1], alone)
        np.testing.assert_array_equal(filled[r], filled_r[0])
        np.testing.assert_array_equal(ahead[r], forecast(state_r, alone, 17)[0])


def test_missing_values_leave_only_known_numbers_and_are_bridged_by_the_forecast():
    y = values(missing=0.6)
    gains = parameters(len(y))
    state, filled, error = run(y, gains)
    assert np.isfinite(filled).all()
    assert (error[np.isnan(y)] == 0).all()
    expected = forecast(state, gains, 1)[:, 0]
    step = advance(state, gains, SEASONS, np.full(len(y), np.nan))
    np.testing.assert_allclose(step.filled, expected, rtol=1e-12, atol=1e-12)


def test_forecast_of_a_known_recurrence():
    """Level 10, trend 2 damped by a half, residual 4 fading by a half: worked by hand."""
    gains = SmoothingParameters(*(np.array([v]) for v in (0.3, 0.1, 0.5, 0.5)), np.zeros((1, 0)))
    state = SmoothingState.start(1, ())
    state.level[:], state.trend[:], state.residual[:] = 10.0, 2.0, 4.0
    np.testing.assert_allclose(forecast(state, gains, 3), [[10 + 1 + 2, 10 + 1.5 + 1, 10 + 1.75 + 0.5]])


@pytest.mark.parametrize("rows_alike", [1, 4])
def test_the_search_finds_a_season_and_beats_the_naive_forecast(rows_alike):
    rng = np.random.default_rng(3)
    t = np.arange(96)
    rows = [10 + 4 * np.sin(2 * np.pi * t / 12) + rng.normal(0, 0.3, 96) for _ in range(rows_alike)]
    gains, error = fit_smoothing(rows, (12,), 6)
    assert (gains.gamma[:, 0] >= 0).all(), gains.gamma
    naive = np.mean([np.abs(row[k:] - row[:-k]).mean() for row in rows for k in range(1, 7)])
    assert error.max() < 0.25 * naive, (error, naive)


def test_equal_seeds_give_equal_gains():
    rows = list(values(3, 80, missing=0.1))
    first, second = (fit_smoothing(rows, (12,), 4, seed=5)[0] for _ in range(2))
    for name in ("alpha", "beta", "phi", "rho", "gamma"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("limit", [200_000, 1_000])
def test_a_search_that_is_too_large_is_cut_down_but_still_finds_the_season(monkeypatch, limit):
    rng = np.random.default_rng(4)
    t = np.arange(96)
    rows = [5 + 3 * np.sin(2 * np.pi * t / 12) + rng.normal(0, 0.2, 96) for _ in range(40)]
    seen = []
    original = smoothing_search.advance
    monkeypatch.setattr(
        smoothing_search, "advance", lambda s, p, m, y: seen.append(len(y)) or original(s, p, m, y)
    )
    gains, error = fit_smoothing(rows, (12,), 6, cells=limit)
    assert sum(seen) <= max(limit, 96 * 160), f"{sum(seen)} values passed over, allowed {limit}"
    assert (gains.gamma[:, 0] >= 0).mean() > 0.9
    assert np.nanmedian(error) < 0.6


def test_rows_too_short_for_a_season_do_not_use_it():
    rng = np.random.default_rng(6)
    rows = [rng.normal(size=40), rng.normal(size=9)]
    gains, _ = fit_smoothing(rows, (12,), 2)
    assert gains.gamma[1, 0] == OFF
