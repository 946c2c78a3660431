import numpy as np
import pandas as pd
import pytest
from statsmodels.tsa.exponential_smoothing.ets import ETSModel

from ostinato.errors import InputError
from ostinato.tasks.forecast import exponential_smoothing
from ostinato.tasks.forecast.exponential_smoothing import ExponentialSmoothing, Form

LEVELS = np.array([0.1, 0.5, 0.9])


def seasonal_series(T=120, m=6, seed=1):
    rng = np.random.default_rng(seed)
    t = np.arange(T)
    return (20 + 0.2 * t) * (1 + 0.3 * np.sin(2 * np.pi * t / m)) + rng.normal(size=T)


FORMS = [
    Form(error, trend, damped, season)
    for error in ("add", "mul")
    for trend, damped in ((False, False), (True, False), (True, True))
    for season in (None, "add", "mul")
    if (error, season) != ("add", "mul")
]


def statsmodels_model(values, form, fitted, m):
    p = fitted.parameters
    return ETSModel(
        pd.Series(values),  # its prediction intervals fail on plain arrays
        error=form.error,
        trend="add" if form.trend else None,
        damped_trend=form.damped,
        seasonal=form.season,
        seasonal_periods=m if form.season else None,
        initialization_method="known",
        initial_level=p.level,
        **({"initial_trend": p.growth} if form.trend else {}),
        **({"initial_seasonal": p.season} if form.season else {}),
    )


@pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.ConvergenceWarning")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_update_agrees_with_statsmodels_run_over_the_longer_series(form, monkeypatch):
    """For each form: same states, same forecasts at every origin, same closed-form spread."""
    m, H = 6, 15
    values = seasonal_series()
    monkeypatch.setattr(exponential_smoothing, "_candidates", lambda *args: [form])
    fitted = ExponentialSmoothing().fit(values[:90], m)
    assert fitted.form == form
    origins = np.array([90, 97, 101, 120])
    mean, quantiles = fitted.forecast(values, origins, H, LEVELS)
    p = fitted.parameters
    names = {"alpha": True, "beta": form.trend, "gamma": form.season is not None, "phi": form.damped}
    smoothing = [getattr(p, name) for name, used in names.items() if used]
    for row, origin in enumerate(origins):
        result = statsmodels_model(values[:origin], form, fitted, m).smooth(np.array(smoothing))
        # statsmodels converts gamma and beta by divisions that it keeps away from zero: a relative 1e-6
        np.testing.assert_allclose(mean[row], result.forecast(H), rtol=3e-6, err_msg=f"{form} at {origin}")
        if form.error == "add":
            theirs = result.get_prediction(origin, origin + H - 1)
            spread = (quantiles[row, :, 2] - mean[row]) / fitted.sigma
            expected = np.sqrt(theirs.forecast_variance / result.mse)
            np.testing.assert_allclose(spread / spread[0], expected / expected[0], rtol=1e-6)
    assert (np.diff(quantiles, axis=-1) > 0).all()
    width = quantiles[..., 2] - quantiles[..., 0]
    assert (width[:, 12] > width[:, 0]).all(), "the same phase of the season, two seasons later"


def test_simulated_quantiles_agree_with_the_closed_form_of_additive_errors(monkeypatch):
    """With tiny relative errors ETS(M,Ad,A) is ETS(A,Ad,A), whose quantiles are known."""
    values = 1000 + seasonal_series()
    monkeypatch.setattr(exponential_smoothing, "_candidates", lambda *args: [Form("mul", True, True, "add")])
    fitted = ExponentialSmoothing().fit(values, 6)
    mean, simulated = fitted.forecast(values, np.array([100, 120]), 13, LEVELS)
    monkeypatch.setattr(fitted, "form", Form("add", True, True, "add"))
    monkeypatch.setattr(fitted, "sigma", fitted.sigma * mean.mean())
    _, closed = fitted.forecast(values, np.array([100, 120]), 13, LEVELS)
    width = closed[..., 2] - closed[..., 0]
    worst = (np.abs(simulated - closed) / width[..., None]).max()
    assert worst < 0.05, f"{worst:.3f} of the interval"


def test_missing_values_carry_the_state_and_never_reach_the_forecast():
    values = seasonal_series()
    holes = values.copy()
    holes[[0, 1, 17, 40, 41, 42, 95, 99]] = np.nan
    fitted = ExponentialSmoothing().fit(holes[:90], 6)
    mean, quantiles = fitted.forecast(holes, np.array([90, 96, 100]), 6, LEVELS)
    assert np.isfinite(mean).all()
    assert np.isfinite(quantiles).all()
    whole, _ = ExponentialSmoothing().fit(values[:90], 6).forecast(values, np.array([90, 96, 100]), 6, LEVELS)
    error = np.abs(mean - whole).mean()
    assert error < 1.5, f"mean difference {error:.2f} where the noise is 1 and the season 8"
    # at a missing value the state moves on as predicted: forecasting from before it or after it is the same
    before, _ = fitted.forecast(holes, np.array([95]), 6, LEVELS)
    np.testing.assert_allclose(before[0, 1:], mean[1, :-1], rtol=1e-12)


def test_nothing_after_the_origin_is_looked_at():
    values = seasonal_series()
    fitted = ExponentialSmoothing().fit(values[:90], 6)
    changed = values.copy()
    changed[100:] = 1e6
    for ours, theirs in zip(
        fitted.forecast(values, np.array([90, 100]), 9, LEVELS),
        fitted.forecast(changed, np.array([90, 100]), 9, LEVELS),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "values", [[5.0] * 30, [3.0], [1.0, 2.0], [0.0] * 12 + [1.0], list(range(7))], ids=len
)
def test_constant_and_tiny_series_have_finite_forecasts(values):
    values = np.array(values, dtype=float)
    fitted = ExponentialSmoothing().fit(values, 12)
    mean, quantiles = fitted.forecast(values, np.array([len(values)]), 5, LEVELS)
    assert np.isfinite(mean).all()
    assert np.isfinite(quantiles).all()
    assert fitted.note is None or "not seen twice" in fitted.note


def test_a_series_without_a_value_is_refused():
    with pytest.raises(InputError, match="every training value is missing"):
        ExponentialSmoothing().fit(np.full(9, np.nan), 1)


def test_long_seasons_and_long_series_say_what_was_done(monkeypatch):
    rng = np.random.default_rng(4)
    t = np.arange(1500)
    values = 10 * np.sin(2 * np.pi * t / 500) + rng.normal(size=t.size)
    fitted = ExponentialSmoothing().fit(values[:1200], 500)
    assert "fixed profile" in fitted.note
    mean, _ = fitted.forecast(values, np.array([1200, 1250]), 100, LEVELS)
    error = np.abs(mean[0] - 10 * np.sin(2 * np.pi * t[1200:1300] / 500)).mean()
    assert error < 2.0, f"{error:.2f} on a season of amplitude 10 with noise 1"
    monkeypatch.setattr(exponential_smoothing, "MAX_FIT_STEPS", 200)
    values = seasonal_series(T=1000)
    fitted = ExponentialSmoothing().fit(values, 6)
    assert "last 196 of 1000 steps" in fitted.note  # a whole number of seasons
    mean, _ = fitted.forecast(values, np.array([1000]), 12, LEVELS)
    expected = (20 + 0.2 * np.arange(1000, 1012)) * (1 + 0.3 * np.sin(2 * np.pi * np.arange(1000, 1012) / 6))
    np.testing.assert_allclose(mean[0], expected, rtol=0.05)


def test_a_season_of_48_is_used_and_beats_leaving_it_out():
    rng = np.random.default_rng(2)
    t = np.arange(48 * 20)
    values = 50 + 10 * np.sin(2 * np.pi * t / 48) + 3 * np.cos(2 * np.pi * t / 16) + rng.normal(size=t.size)
    fitted = ExponentialSmoothing().fit(values[: 48 * 18], 48)
    assert fitted.note is None
    assert fitted.form.season
    mean, _ = fitted.forecast(values, np.array([48 * 18]), 96, LEVELS)
    error = np.abs(mean[0] - values[48 * 18 :]).mean()
    assert error < 1.1, f"{error:.2f}, where the noise alone costs 0.8"
