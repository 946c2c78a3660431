import sys

import numpy as np
import pytest

from ostinato.errors import InputError, MissingExtraError
from ostinato.tasks.forecast import baselines
from ostinato.tasks.forecast.baselines import SeriesWindows, baseline, forecast_baseline

LEVELS = np.arange(1, 10) / 10
NAN = float("nan")


def noisy_season(T=200, m=6, seed=3):
    rng = np.random.default_rng(seed)
    return 10 + 3 * np.sin(2 * np.pi * np.arange(T) / m) + rng.normal(size=T)


def test_naive_and_seasonal_naive_by_hand():
    values = np.array([1.0, 2.0, 3.0, 4.0, NAN, 6.0, NAN])
    origins = np.array([3, 5, 7])
    mean, _ = baseline("naive").fit(values, 3).forecast(values, origins, 2, LEVELS)
    np.testing.assert_array_equal(mean, [[3, 3], [4, 4], [6, 6]])
    mean, _ = baseline("seasonal_naive").fit(values, 3).forecast(values, origins, 4, LEVELS)
    # origin 5: phases 2, 0, 1, 2: 3, 4, 2 (as 5th is missing), 3; origin 7: phases 1, 2, 0, 1
    np.testing.assert_array_equal(mean, [[1, 2, 3, 1], [3, 4, 2, 3], [2, 6, 4, 2]])
    # a phase never seen: the last known value
    mean, _ = baseline("seasonal_naive").fit(values, 7).forecast(values, np.array([2]), 4, LEVELS)
    np.testing.assert_array_equal(mean, [[2, 2, 2, 2]])


@pytest.mark.parametrize("name", ["naive", "seasonal_naive"])
def test_in_sample_intervals_cover_as_they_say_and_the_median_is_the_forecast(name):
    values = noisy_season(T=3000)
    origins = np.arange(100, 2900, 7)
    mean, quantiles = baseline(name).fit(values, 6).forecast(values, origins, 14, LEVELS)
    np.testing.assert_array_equal(mean, quantiles[..., 4])
    actual = values[origins[:, None] + np.arange(14)]
    for low, high, share in ((0, 8, 0.8), (2, 6, 0.4)):
        inside = ((actual >= quantiles[..., low]) & (actual <= quantiles[..., high])).mean(axis=0)
        assert np.abs(inside - share).max() < 0.07, f"{name}: {inside.round(2)} instead of {share}"
    assert (np.diff(quantiles, axis=-1) >= 0).all()


def test_a_short_series_widens_with_the_square_root_of_the_seasons():
    values = np.array([1.0, 2.0, 4.0, 3.0])
    _, quantiles = baseline("naive").fit(values, 1).forecast(values, np.array([4]), 4, LEVELS)
    width = quantiles[0, :, 8] - quantiles[0, :, 0]
    np.testing.assert_allclose(width, width[0] * np.sqrt([1, 2, 3, 4]))
    np.testing.assert_allclose(width[0], 2 * 1.2815515655446004 * np.sqrt((1 + 4 + 1) / 3))
    _, quantiles = baseline("naive").fit(values[:1], 1).forecast(values, np.array([1]), 2, LEVELS)
    assert (quantiles == 1.0).all()


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_nothing_after_an_origin_or_after_the_training_part_is_looked_at(name):
    values = noisy_season()
    changed = values.copy()
    changed[150:] = -1e6
    windows = [SeriesWindows(v, 120, np.array([100, 133, 150]), 6) for v in (values, changed)]
    ours, theirs = (forecast_baseline(name, [window], 8, LEVELS) for window in windows)
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.quantiles, theirs.quantiles)
    assert ours.covered.all()
    assert ours.mean.shape == (3, 8)
    assert ours.quantiles.shape == (3, 8, 9)


@pytest.mark.parametrize("name", list(baselines.BASELINES))
def test_a_change_of_the_last_value_moves_the_forecast(name):
    values = noisy_season()
    changed = values.copy()
    changed[149] += 5
    origins = np.array([150])
    one = baseline(name).fit(values[:120], 6).forecast(values, origins, 6, LEVELS)[0]
    other = baseline(name).fit(values[:120], 6).forecast(changed, origins, 6, LEVELS)[0]
    assert (one != other).any()


def test_series_come_back_in_their_order_and_the_budget_samples_with_a_note():
    series = [
        SeriesWindows(noisy_season(seed=i) + 100 * i, 120, np.array([120, 130 + i]), 6) for i in range(9)
    ]
    whole = forecast_baseline("naive", series, 3, LEVELS)
    assert whole.notes == []
    np.testing.assert_array_equal(np.round(whole.mean[:, 0], -2), np.repeat(100 * np.arange(9), 2))
    ticks = iter(range(100))
    part = forecast_baseline("naive", series, 3, LEVELS, budget_s=3.5, clock=lambda: next(ticks))
    assert part.notes == ["naive: sampled, 4 of 9 series: all would take over 3.5 s"]
    assert part.covered.sum() == 8
    np.testing.assert_array_equal(part.mean[part.covered], whole.mean[part.covered])
    assert np.isnan(part.mean[~part.covered]).all()


def test_a_series_that_cannot_be_fitted_and_one_without_its_season_are_counted():
    series = [SeriesWindows(noisy_season(), 120, np.array([120]), 100) for _ in range(2)]
    late = noisy_season()
    late[:50] = NAN
    series.append(SeriesWindows(late, 30, np.array([120]), 6))
    result = forecast_baseline("ets", series, 2, LEVELS)
    assert result.covered.tolist() == [True, True, False]
    assert sorted(result.notes) == [
        "ets: every training value is missing; leave this series out (1 series)",
        "ets: season 100 is not seen twice and was left out (2 series)",
    ]


def test_wrong_calls_say_what_is_known():
    with pytest.raises(InputError, match="'nave'; known are naive, seasonal_naive, ets"):
        baseline("nave")
    values = np.array([NAN, NAN, 1.0, 2.0])
    for origin in (2, 5):
        with pytest.raises(InputError, match=r"expected 3 .* to 4"):
            forecast_baseline("naive", [SeriesWindows(values, 4, np.array([origin]))], 1, LEVELS)
    with pytest.raises(InputError, match="horizon is 0"):
        forecast_baseline("naive", [], 0, LEVELS)


def test_ets_without_statsmodels_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.tsa.exponential_smoothing.ets", None)
    with pytest.raises(MissingExtraError, match=r"ostinato\[baselines\]"):
        forecast_baseline("ets", [SeriesWindows(noisy_season(), 120, np.array([120]), 6)], 2, LEVELS)
