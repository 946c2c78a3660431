"""What forecasts depend on, and what they must not depend on."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ostinato as ot
from ostinato.errors import DataError, InputError
from ostinato.tasks.forecast import backtest
from ostinato.tasks.forecast.baselines import BASELINES

QUANTILES = [f"q0.{i}" for i in range(1, 10)]

pytestmark = pytest.mark.usefixtures("without_ets")


def array(said, *names):
    return np.stack([np.asarray(said[name], dtype=float) for name in names or QUANTILES], -1)


def future(kit, table, horizon=6, value=0.0):
    """Rows with a price after the end of every series."""
    columns = {name: [] for name in table}
    for ident in dict.fromkeys(table["id"]):
        n = table["id"].count(ident)
        for k in range(horizon):
            row = {"id": ident, "month": str(np.datetime64("2000-01") + n + k), "price": value}
            row |= {"region": table["region"][table["id"].index(ident)], "rain": np.nan}
            for name, cells in columns.items():
                cells.append(row.get(name, np.nan))
    return columns


def test_the_table_has_a_row_for_every_step_of_every_series(fitted, kit):
    model, table = fitted
    said = model.predict(table, future(kit, table))
    assert list(said) == ["series", "time", "mean", *QUANTILES]
    assert said["series"] == ["s0"] * 6 + ["s1"] * 6 + ["s2"] * 6
    assert said["time"][:2] == ["2008-01-01", "2008-02-01"]
    assert np.isfinite(array(said)).all()
    assert (np.diff(array(said), axis=-1) >= 0).all()


def test_a_change_of_the_last_observation_moves_every_step(fitted, kit):
    model, table = fitted
    changed = {name: list(cells) for name, cells in table.items()}
    last = max(i for i, name in enumerate(table["id"]) if name == "s0")
    changed["y"][last] += 5.0
    before, after = (array(model.predict(t, future(kit, table)), "q0.5")[:6] for t in (table, changed))
    assert (np.abs(after - before) > 1e-6).all(), (after - before).ravel()
    np.testing.assert_array_equal(
        *(array(model.predict(t, future(kit, table)), "q0.5")[6:] for t in (table, changed))
    )


def test_future_known_columns_matter(fitted, kit):
    model, table = fitted
    low, high = (array(model.predict(table, future(kit, table, value=v)), "mean") for v in (-2.0, 2.0))
    if model.head == "quantile" and float(model.engine_.model.blend) == 0:
        pytest.skip("validation chose the untrained mixture, which does not look at columns")
    assert (np.abs(high - low) > 1e-6).any()


@pytest.mark.parametrize("given", ["nothing", "too few", "a hole"])
def test_missing_future_known_columns_name_the_times(fitted, kit, given):
    model, table = fitted
    ahead = future(kit, table)
    if given == "nothing":
        ahead = None
    elif given == "too few":
        ahead = {name: cells[:5] for name, cells in ahead.items()}
    else:
        ahead["price"][3] = np.nan
    with pytest.raises(DataError, match=r"series 's0'.*'price'.*2008-"):
        model.predict(table, ahead)


def test_observed_values_after_the_origin_change_nothing(fitted, kit):
    model, table = fitted
    ahead = future(kit, table)
    before = array(model.predict(table, ahead))
    ahead["rain"] = [99.0] * len(ahead["rain"])
    np.testing.assert_array_equal(array(model.predict(table, ahead)), before)


def test_back_tests_do_not_see_what_comes_after_an_origin(fitted, kit):
    """Forecasts from step 60 must equal those of a table that ends there."""
    model, table = fitted
    whole = model.read(table)
    prepared = model._prepare(whole, [(0, 0)])
    inside = model.engine_.forecast(prepared, np.array([0]), np.array([59]))
    cut = whole.restrict(lambda s: s.id == "s0")
    cut = type(cut)(**{**cut.__dict__, "series": [cut.series[0].until(60)]})
    alone = model._prepare(cut, [(0, 0)])
    end = model.engine_.forecast(alone, np.array([0]), np.array([59]))
    np.testing.assert_allclose(inside.quantiles, end.quantiles, rtol=2e-5)


def test_intervals_widen_with_the_horizon(kit):
    """The mean width over many origins of a random walk never falls, for both kinds of head."""
    rng = np.random.default_rng(0)
    table = {"t": list(range(400)), "y": rng.normal(size=400).cumsum().tolist()}
    for head in ("quantile", "gaussian"):
        model = kit.quick(8, head=head, steps=20, paths=200)
        model.fit(table, target="y", time="t", time_format="step")
        prepared = model._prepare(model.read(table), [(0, 0)])
        at = np.arange(340, 392, 2 if head == "quantile" else 6)
        said = model.engine_.forecast(prepared, np.zeros(len(at), dtype=np.int64), at)
        width = (said.quantiles[:, :, 9] - said.quantiles[:, :, 1]).mean(0)
        slack = 0.0 if head == "quantile" else 0.08 * width.mean()
        assert (np.diff(width) >= -1e-9 - slack).all(), (head, width)
        assert width[-1] > 1.3 * width[0], (head, width)


def test_sampled_paths_are_joint(kit):
    """On a random walk neighbouring steps of one path go together; independent draws would not."""
    rng = np.random.default_rng(1)
    table = {"t": list(range(200)), "y": rng.normal(size=200).cumsum().tolist()}
    model = kit.quick(6, head="gaussian", paths=300).fit(table, target="y", time="t", time_format="step")
    prepared = model._prepare(model.read(table), [(0, 0)])
    paths = model.engine_.sample_paths(prepared, np.array([0]), np.array([199]))[0]
    together = np.corrcoef(paths[:, 3], paths[:, 4])[0, 1]
    assert together > 0.5, together


def test_counts_stay_whole_and_positive_and_other_numbers_are_refused(kit):
    rng = np.random.default_rng(2)
    y = np.where(rng.random(90) < 0.6, 0, rng.poisson(3, 90)).astype(float)
    table = {"t": list(range(90)), "y": y.tolist()}
    roles = {"target": "y", "time": "t", "time_format": "step"}
    model = kit.quick(5, head="negative_binomial").fit(table, **roles)
    prepared = model._prepare(model.read(table), [(0, 0)])
    paths = model.engine_.sample_paths(prepared, np.array([0]), np.array([89]))
    np.testing.assert_array_equal(paths, np.maximum(np.round(paths), 0))
    assert (array(model.predict(table)) >= 0).all()
    for wrong in (0.5, -1.0):
        with pytest.raises(DataError, match=r"needs counts.*student_t"):
            kit.quick(5, head="negative_binomial").fit({**table, "y": [wrong, *y[1:].tolist()]}, **roles)


def test_half_of_the_targets_missing(kit):
    table = kit.long_table(extras=False, missing=0.5)
    for head in ("quantile", "student_t"):
        model = kit.quick(head=head).fit(table, **kit.ROLES)
        assert np.isfinite(array(model.predict(table))).all()
        assert all(np.isfinite(v) for v in next(iter(model.metrics_["model"].values())).values())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    horizon=st.sampled_from([1, 2, 7, 30]),
    context=st.sampled_from([1, 3, 20]),
    extra=st.sampled_from([0, 1, 13]),
    head=st.sampled_from(["quantile", "gaussian"]),
)
def test_every_combination_of_context_horizon_and_length_works(kit, horizon, context, extra, head):
    n = horizon + 4 + extra
    rng = np.random.default_rng(0)
    table = {"t": list(range(n)), "y": rng.normal(10, 1, n).tolist()}
    model = kit.quick(horizon, context=context, head=head, steps=3, paths=5)
    model.fit(table, target="y", time="t", time_format="step")
    said = model.predict(table)
    assert len(said["mean"]) == horizon
    assert np.isfinite(array(said)).all()


def test_shorter_than_the_minimum_is_refused(kit):
    table = {"t": list(range(9)), "y": [1.0] * 9}
    with pytest.raises(DataError, match="at least 10 rows are needed"):
        kit.quick(6).fit(table, target="y", time="t", time_format="step")


def test_several_targets_are_forecast_together(kit):
    table = kit.long_table(targets=2, extras=False)
    model = kit.quick(test=6).fit(table, **{**kit.ROLES, "target": ["y", "y1"]})
    said = model.predict(table)
    assert list(said)[:3] == ["series", "time", "target"]
    assert said["target"][:12] == ["y"] * 6 + ["y1"] * 6
    scores = model.evaluate(table)
    assert np.isfinite(scores["model"]["lstm"]["mase"])


def test_a_series_that_training_did_not_see(plain, kit):
    model, _ = plain
    new = kit.long_table((40,), seed=9, extras=False, missing=0.0)
    new["id"] = ["new"] * 40
    said = model.predict(new)
    assert set(said["series"]) == {"new"}
    assert np.isfinite(array(said)).all()
    assert abs(np.mean(array(said, "q0.5")) - 20) < 6


@pytest.mark.parametrize(
    "y",
    [
        np.full(60, 3.0),
        np.zeros(60),
        1e-12 * np.arange(60),
        1e12 + np.arange(60.0),
        np.r_[np.full(25, np.nan), np.arange(35.0)],
    ],
    ids=["constant", "zeros", "tiny", "huge", "late start"],
)
@pytest.mark.parametrize("head", ["quantile", "gaussian"])
def test_awkward_series_give_finite_forecasts_near_their_values(kit, y, head):
    table = {"t": list(range(60)), "y": y.tolist(), "id": ["a"] * 60}
    table = {
        name: table[name] + ([*range(60), *([1.0] * 60), *(["b"] * 60)][60 * i : 60 * i + 60])
        for i, name in enumerate(("t", "y", "id"))
    }
    table["y"][60:] = (np.random.default_rng(0).normal(size=60) * (np.nanmax(np.abs(y)) or 1.0)).tolist()
    model = kit.quick(4, head=head, paths=30)
    model.fit(table, target="y", time="t", series="id", time_format="step")
    said = array(model.predict(table))[:4]
    assert np.isfinite(said).all()
    # The other series moves by 1 where this one is zero; a thousandth of that counts as nothing.
    size = np.nanmax(np.abs(y)) or 1e-3
    assert np.abs(said[:, 4] - y[-1]).max() < 2 * size, said[:, 4]


def test_a_second_fit_forgets_the_first_and_equal_seeds_give_equal_bits(kit):
    table, other = (kit.long_table(seed=s, extras=False, lengths=(50,)) for s in (0, 5))
    once = kit.quick(steps=10).fit(table, **kit.ROLES)
    twice = kit.quick(steps=10).fit(other, **kit.ROLES).fit(table, **kit.ROLES)
    np.testing.assert_array_equal(array(once.predict(table)), array(twice.predict(table)))
    another = kit.quick(steps=10, seed=1).fit(table, **kit.ROLES)
    assert np.abs(array(once.predict(table)) - array(another.predict(table))).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mqrnn"}, r"known heads: quantile, gaussian.*did you mean 'quantile'"),
        ({"horizon": 0}, "horizon must be a whole number"),
        ({"cell": "lstn"}, r"known.*rnn.*lstm.*gru"),
        ({"transform": "sqrt"}, "known: auto, none, log"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"test": -1}, "test must be"),
        ({"head": "negative_binomial", "transform": "log"}, "cannot be combined"),
        ({"head": "autoregressive_quantile"}, "known heads"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(kit, options, message):
    with pytest.raises(InputError, match=message):
        kit.quick(**{"horizon": 6, **options}).fit("no such file.csv", **kit.ROLES)


@pytest.mark.parametrize("kind", ["white noise", "random walk", "trend", "seasonal", "intermittent"])
def test_never_much_worse_than_the_best_baseline(kit, kind, monkeypatch):
    rng = np.random.default_rng(7)
    t, n = np.arange(192), 192
    y = {
        "white noise": rng.normal(0, 1, n),
        "random walk": rng.normal(0, 1, n).cumsum(),
        "trend": 0.5 * t + rng.normal(0, 1, n),
        "seasonal": 10 + 5 * np.sin(2 * np.pi * t / 12) + rng.normal(0, 1, n),
        "intermittent": np.where(rng.random(n) < 0.7, 0, rng.poisson(4, n)).astype(float),
    }[kind]
    table = {"month": [str(m) for m in np.datetime64("2000-01") + t], "y": y.tolist()}
    model = kit.quick(6, steps=60, test=48).fit(table, target="y", time="month")
    monkeypatch.setattr(backtest, "BASELINES", BASELINES)
    scores = model.evaluate(table, windows="rolling")
    best = min(s["mase"] for s in scores["baselines"].values())
    found = scores["model"]["lstm"]["mase"]
    assert found <= 1.25 * best, (kind, found, {k: s["mase"] for k, s in scores["baselines"].items()})


def test_frames_come_back_as_frames_of_the_same_kind(plain, kit):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    model, table = plain
    expected = array(model.predict(table))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        frames = pandas.DataFrame(table), polars.DataFrame(table)
    for frame in frames:
        said = model.predict(frame)
        assert type(said) is type(frame)
        np.testing.assert_array_equal(said[QUANTILES].to_numpy(), expected)


def test_an_unfitted_forecaster_says_so(kit):
    with pytest.raises(InputError, match="call fit first"):
        kit.quick().predict({"y": [1.0]})
    assert ot.Forecaster(3).get_params()["horizon"] == 3
