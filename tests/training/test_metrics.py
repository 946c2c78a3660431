import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ostinato.errors import InputError, SizeError
from ostinato.training import metrics

LEVELS = np.arange(1, 10) / 10
NAN = float("nan")


def close(value, expected):
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-12), f"{value} instead of {expected}"


def test_scale_by_hand():
    values = [1.0, 3.0, 2.0, 6.0]
    close(metrics.seasonal_naive_scale(values, 1), (2 + 1 + 4) / 3)
    close(metrics.seasonal_naive_scale(values, 2), (1 + 3) / 2)
    close(metrics.seasonal_naive_scale([1.0, NAN, 2.0, 6.0, 5.0], 1), (4 + 1) / 2)
    close(metrics.seasonal_naive_scale(values, 4), (2 + 1 + 4) / 3)  # too short for the season: lag 1
    close(metrics.seasonal_naive_scale([1.0, 2.0, 1.0, 2.0, 1.0], 2), 1.0)  # repeats itself: lag 1
    for without in ([], [5.0], [5.0, 5.0, 5.0], [1.0, NAN, 2.0]):
        assert np.isnan(metrics.seasonal_naive_scale(without, 3)), without


def test_point_metrics_by_hand():
    actual, forecast = [[1.0, 2.0], [4.0, NAN]], [[2.0, 2.0], [2.0, 9.0]]
    close(metrics.mase(actual, forecast, 2.0), (1 / 2 + 0 + 2 / 2) / 3)
    close(metrics.mase(actual, forecast, [0.5, 4.0]), (1 / 0.5 + 0 + 2 / 4) / 3)
    close(metrics.mase(actual, forecast, [0.5, 0.0]), (1 / 0.5 + 0) / 2)
    close(metrics.smape(actual, forecast), 200 * (1 / 3 + 0 + 2 / 6) / 3)
    close(metrics.rmse(actual, forecast), np.sqrt((1 + 0 + 4) / 3))
    close(metrics.mae(actual, forecast), (1 + 0 + 2) / 3)
    close(metrics.smape([0.0, 1.0], [0.0, -1.0]), 100.0)  # 0/0 is 0; opposite signs are 200


def test_quantile_metrics_by_hand():
    actual, quantiles = [10.0, -2.0], [[8.0, 11.0], [-1.0, 0.0]]
    levels = [0.25, 0.75]
    expected = [[0.25 * 2, 0.25 * 1], [0.75 * 1, 0.25 * 2]]
    np.testing.assert_allclose(metrics.pinball(actual, quantiles, levels), expected)
    close(metrics.wql(actual, quantiles, levels), 2 * np.mean([1.25, 0.75]) / 12)
    close(metrics.coverage([1.0, 2.0, 3.0, NAN], [1.0] * 4, [2.5] * 4), 2 / 3)
    # mass ½ on 8 and ½ on 11, actual 10: E|X - y| = 1.5, ½ E|X - X'| = ½ · ½ · 3
    close(metrics.crps_from_quantiles([10.0], [[8.0, 11.0]], levels), 1.5 - 0.75)
    close(metrics.crps_from_samples([10.0], [[11.0, 8.0]]), 1.5 - 0.75)
    close(metrics.crps_from_samples([10.0, NAN], [[7.0], [1.0]]), 3.0)
    assert np.isnan(metrics.wql([0.0], [[1.0, 2.0]], levels))


def test_crps_of_a_normal_distribution():
    """The closed form of Gneiting & Raftery 2007, equation 5: at its centre σ·(2/√(2π) - 1/√π)."""
    S = 4001
    levels = (np.arange(S) + 0.5) / S
    normal = np.sqrt(2) * np.array([_inverse_erf(2 * p - 1) for p in levels])
    expected = 2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi)
    for value in (
        metrics.crps_from_quantiles([0.0], [normal], levels),
        metrics.crps_from_samples([0.0], [normal]),
    ):
        assert abs(value - expected) < 2e-4, f"{value} instead of {expected}"


def _inverse_erf(value):
    from statistics import NormalDist

    return NormalDist().inv_cdf((value + 1) / 2) / np.sqrt(2)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_crps_from_samples_is_the_double_sum_and_the_quantile_form(S, W, seed):
    rng = np.random.default_rng(seed)
    samples, actual = rng.normal(size=(W, S)), rng.normal(size=W)
    spread = np.abs(samples[:, :, None] - samples[:, None, :]).mean(axis=(1, 2))
    expected = (np.abs(samples - actual[:, None]).mean(axis=1) - spread / 2).mean()
    close(metrics.crps_from_samples(actual, samples), expected)
    levels = (np.arange(S) + 0.5) / S
    close(metrics.crps_from_quantiles(actual, np.sort(samples, axis=1), levels), expected)


def test_score_forecasts_agrees_with_its_parts_and_skips_missing_actuals():
    rng = np.random.default_rng(3)
    W, H = 5, 7
    actual, mean = rng.normal(size=(W, H)), rng.normal(size=(W, H))
    quantiles = np.sort(rng.normal(size=(W, H, 9)), axis=-1)
    scale = rng.uniform(0.5, 2, size=W)
    scores = metrics.score_forecasts(actual, mean, quantiles, LEVELS, scale)
    assert list(scores) == ["mase", "smape", "rmse", "wql", "coverage80", "crps"]
    close(scores["mase"], (np.abs(actual - quantiles[..., 4]) / scale[:, None]).mean())
    close(scores["rmse"], np.sqrt(((actual - mean) ** 2).mean()))
    close(scores["coverage80"], ((actual >= quantiles[..., 0]) & (actual <= quantiles[..., 8])).mean())
    # windows and steps that are missing are as if they had never been asked for, whatever was forecast there
    extra = [np.concatenate((part, part[:2])) for part in (actual, mean, quantiles, scale)]
    extra[0][W:] = NAN
    extra[1][W:] = NAN
    assert metrics.score_forecasts(*extra[:3], LEVELS, extra[3]) == scores


def test_a_forecast_that_is_nan_is_seen():
    quantiles = np.tile(LEVELS, (1, 2, 1))
    quantiles[0, 1] = NAN
    scores = metrics.score_forecasts([[0.3, 0.4]], [[NAN, 0.2]], quantiles, LEVELS, 1.0)
    assert all(np.isnan(score) for score in scores.values()), scores


def test_nothing_to_score_is_nan_without_a_warning():
    quantiles = np.zeros((0, 3, 9))
    scores = metrics.score_forecasts(np.zeros((0, 3)), np.zeros((0, 3)), quantiles, LEVELS, [])
    assert all(np.isnan(score) for score in scores.values()), scores


def test_quantile_at_interpolates_within_the_levels_only():
    quantiles = np.array([[1.0, 2.0, 4.0]])
    close(metrics.quantile_at(quantiles, [0.1, 0.3, 0.9], 0.3)[0], 2.0)
    close(metrics.quantile_at(quantiles, [0.1, 0.3, 0.9], 0.6)[0], 3.0)
    with pytest.raises(InputError, match="outside the levels"):
        metrics.quantile_at(quantiles, [0.2, 0.3, 0.9], 0.1)


def test_class_and_number_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(5)
    actual, guess = rng.integers(0, 4, 61), rng.integers(1, 6, 61)
    close(metrics.accuracy(actual, guess), sklearn_metrics.accuracy_score(actual, guess))
    close(
        metrics.macro_f1(actual, guess),
        sklearn_metrics.f1_score(actual, guess, average="macro", zero_division=0),
    )
    x, y = rng.normal(size=(17, 3)), rng.normal(size=(17, 3))
    y[:, 2] = x[:, 2] = 1.5
    close(metrics.r2(x, y), sklearn_metrics.r2_score(x, y))
    close(metrics.mae(x, y), sklearn_metrics.mean_absolute_error(x, y))
    close(metrics.r2(x[:, 0], y[:, 0]), sklearn_metrics.r2_score(x[:, 0], y[:, 0]))


def test_class_and_number_metrics_by_hand():
    close(metrics.accuracy(["a", "b", "b"], ["a", "b", "a"]), 2 / 3)
    # a: TP 1, FP 1, FN 0; b: TP 1, FP 0, FN 1
    close(metrics.macro_f1(["a", "b", "b"], ["a", "b", "a"]), (2 / 3 + 2 / 3) / 2)
    close(metrics.r2([1.0, 2.0, 3.0, NAN], [1.0, 2.0, 4.0, 0.0]), 1 - 1 / 2)


def test_wrong_shapes_and_levels_are_named():
    with pytest.raises(SizeError, match=r"\(3,\).*\(2,\)"):
        metrics.rmse([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(SizeError, match="one per level"):
        metrics.wql([1.0, 2.0], [[1.0], [2.0]], LEVELS)
    with pytest.raises(InputError, match="must rise"):
        metrics.wql([1.0], [[1.0, 2.0]], [0.9, 0.1])
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.wql([1.0], [[1.0]], [1.0])
    with pytest.raises(SizeError, match="one per row"):
        metrics.mase([[1.0], [2.0]], [[1.0], [2.0]], [1.0, 1.0, 1.0])
    with pytest.raises(SizeError, match="flatten"):
        metrics.accuracy([[1]], [[1]])
    with pytest.raises(InputError, match="expected numbers"):
        metrics.mae(["x"], ["y"])
    with pytest.raises(InputError, match="at least 1"):
        metrics.seasonal_naive_scale([1.0, 2.0], 0)
    with pytest.raises(SizeError, match="S of 1 or more"):
        metrics.crps_from_samples([1.0], np.zeros((1, 0)))
