"""Forecasters that begin with the network of another."""

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.errors import DataError, InputError

STILL = {"steps": 1, "learning_rate": 1e-12}


@pytest.fixture
def runs(fitted, tmp_path, without_ets):
    """A forecaster with every kind of column, and the folder it lies in."""
    first, _ = fitted
    first.save(tmp_path / "run")
    return first, str(tmp_path / "run")


def same_weights(begun, first, *, but=("blend", "first_mixture", "first_spread")):
    own, had = begun.engine_.model.state_dict(), first.engine_.model.state_dict()
    assert own.keys() == had.keys()
    for name, value in own.items():
        if name.rpartition(".")[2] not in but:
            torch.testing.assert_close(value, had[name], msg=name)


def test_the_network_is_taken_and_the_scales_are_its_own(runs, kit, tmp_path):
    first, path = runs
    table = kit.long_table((60,), seed=3, missing=0.0)
    table["y"] = [1000 * value for value in table["y"]]
    table["price"] = [100 + value for value in table["price"]]
    begun = ot.Forecaster(6, init=path, progress="quiet", paths=40, **STILL).fit(table, **kit.ALL_ROLES)
    same_weights(begun, first)
    engine = begun.engine_
    assert engine.columns.known[0, 0] > 99
    np.testing.assert_array_equal(engine.columns.static, first.engine_.columns.static)
    assert engine.columns.calendar == first.engine_.columns.calendar
    assert any("begins with the network of the run" in note for note in begun.notes_)
    assert np.isfinite(next(iter(begun.metrics_["model"].values()))["mase"])
    begun.save(tmp_path / "begun")
    loaded = ot.load(tmp_path / "begun")
    assert (loaded.hidden_size, loaded.members, loaded.head) == (8, 1, first.head)
    future = {name: values[-1:] * 6 for name, values in table.items()}
    future["month"] = [str(np.datetime64("2005-01") + k) for k in range(6)]
    del future["y"]
    assert loaded.predict(table, future) == begun.predict(table, future)


def test_series_too_short_for_a_season_borrow_it(runs, kit):
    first, path = runs
    table = kit.long_table((20,), seed=4, missing=0.0)
    begun = ot.Forecaster(6, init=path, progress="quiet", paths=40, **STILL).fit(table, **kit.ALL_ROLES)
    alone = kit.quick(steps=1, head=first.head).fit(table, **kit.ALL_ROLES)
    assert alone.engine_.preparation.seasons == ()
    assert begun.engine_.preparation.seasons == first.engine_.preparation.seasons == (12,)
    same_weights(begun, first)


def test_few_values_go_further(kit, tmp_path, without_ets):
    def chaos(n, y):
        values = [y := 3.9 * y * (1 - y) for _ in range(n)]
        return {"day": [str(np.datetime64("2020-01-01") + t) for t in range(n)], "y": values}

    roles = {"target": "y", "time": "day"}
    much = kit.quick(1, steps=200, learning_rate=1e-2, context=40).fit(chaos(600, 0.3), **roles)
    much.save(tmp_path / "much")
    losses, errors = [], []
    for init in (None, tmp_path / "much"):
        fitted = kit.quick(1, init=init, **STILL).fit(chaos(60, 0.4), **roles)
        losses.append(fitted.history_["loss"][0])
        errors.append(fitted.metrics_["model"]["lstm"]["mase"])
    assert losses[1] < 0.5 * losses[0]
    assert errors[1] < 0.6 * errors[0]


def test_what_does_not_fit_is_refused(runs, kit):
    first, path = runs
    table, quiet = kit.long_table((60,)), {"progress": "quiet"}
    with pytest.raises(InputError, match=r"hidden_size=9: the run in init='.*' has 8; leave it out"):
        ot.Forecaster(6, init=path, hidden_size=9, **quiet).fit(table, **kit.ALL_ROLES)
    with pytest.raises(InputError, match=r"known: the run in init=.* has the columns price, found none"):
        ot.Forecaster(6, init=path, **quiet).fit(table, **{**kit.ALL_ROLES, "known": ()})
    with pytest.raises(InputError, match=r"observed: the run in init=.* has the columns rain, found price"):
        ot.Forecaster(6, init=path, **quiet).fit(
            table, **{**kit.ALL_ROLES, "observed": "price", "known": "price"}
        )
    with pytest.raises(
        InputError, match=r"target: the run in init=.* forecasts 1 columns side by side, found 2"
    ):
        ot.Forecaster(6, init=path, **quiet).fit(
            kit.long_table((60,), targets=2), **{**kit.ALL_ROLES, "target": ["y", "y1"]}
        )
    days = {**table, "month": [str(np.datetime64("2000-01-01") + t) for t in range(60)]}
    with pytest.raises(DataError, match="the model was trained on the frequency MS"):
        ot.Forecaster(6, init=path, **quiet).fit(days, **kit.ALL_ROLES)
    with pytest.raises(InputError, match=r"frequency: the run in init=.* has MS \(every month\), found D"):
        ot.Forecaster(6, init=path, **quiet).fit(days, **kit.ALL_ROLES, frequency="D")
    if first.head == "quantile":
        with pytest.raises(InputError, match=r"horizon=5: the run in init=.* says 6 steps at once"):
            ot.Forecaster(5, init=path, **quiet).fit(table, **kit.ALL_ROLES)
    else:
        shorter = ot.Forecaster(5, init=path, paths=40, **quiet, **STILL).fit(table, **kit.ALL_ROLES)
        same_weights(shorter, first)


def test_a_run_of_something_else(tmp_path, kit):
    x = np.random.default_rng(0).normal(size=(20, 5, 2))
    ot.SequenceRegressor(epochs=1, progress="quiet").fit(x, x[:, :, 0].mean(1)).save(tmp_path / "other")
    with pytest.raises(
        InputError, match="holds a 'sequence_regressor'; begin with a run of ostinato train f"
    ):
        ot.Forecaster(6, init=tmp_path / "other").fit(kit.long_table((60,)), **kit.ALL_ROLES)


def test_a_run_that_was_begun_is_gone_on_with(plain, kit, tmp_path, without_ets):
    first, table = plain
    first.save(tmp_path / "first")
    given = {"init": str(tmp_path / "first"), "progress": "quiet", "steps": 30, "seed": 2}
    whole = ot.Forecaster(6, **given).fit(table, **kit.ROLES, out=tmp_path / "run")
    for name in ("manifest.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    resumed = ot.Forecaster(6, **given).fit(table, **kit.ROLES, out=tmp_path / "run", resume=True)
    own, had = resumed.engine_.model.state_dict(), whole.engine_.model.state_dict()
    assert all(torch.equal(own[name], had[name]) for name in had)
    again = ot.Forecaster(6, **given).fit(table, **kit.ROLES, out=tmp_path / "run", resume=True)
    assert again.predict(table) == whole.predict(table)
