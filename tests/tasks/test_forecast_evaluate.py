"""Back-tests: which windows are scored, on what scale, and that the baselines see the same ones."""

import numpy as np
import pytest

from ostinato.errors import InputError
from ostinato.tasks.forecast import backtest
from ostinato.tasks.forecast.backtest import choose_windows, steps_trained
from ostinato.training.metrics import seasonal_naive_scale


def counted(n, seed=0, ident="a"):
    y = np.random.default_rng(seed).normal(10, 1, n).cumsum()
    return {"id": [ident] * n, "t": list(range(n)), "y": y.tolist()}


def joined(*tables):
    return {name: [cell for table in tables for cell in table[name]] for name in tables[0]}


ROLES = {"target": "y", "time": "t", "series": "id", "time_format": "step"}


@pytest.fixture(scope="module")
def model(kit):
    """Fitted on 50 steps of series a and 30 of b."""
    return kit.quick(6, steps=3).fit(joined(counted(50), counted(30, 1, "b")), **ROLES)


def windows(model, table, **options):
    read = model.read(table)
    return choose_windows(read, steps_trained(read, model.ends_), 6, **{"in_sample": False, **options})


@pytest.mark.parametrize(
    ("reach", "rolling"), [(56, [50]), (61, [50]), (62, [50, 56]), (74, [50, 56, 62, 68])]
)
def test_rolling_windows_are_whole_and_begin_where_training_ended(model, reach, rolling):
    table = joined(counted(reach), counted(30, 1, "b"))
    chosen = windows(model, table, windows="rolling")
    assert chosen.origins[0].tolist() == rolling
    assert chosen.origins[1].tolist() == []
    assert chosen.trained[0] == 50
    assert windows(model, table, windows="last").origins[0].tolist() == [reach - 6]


def test_the_last_training_time_is_that_of_each_series(model):
    chosen = windows(model, joined(counted(44), counted(44, 1, "b")), windows="rolling")
    assert chosen.origins[0].tolist() == []
    assert chosen.origins[1].tolist() == [30, 36]


@pytest.mark.parametrize("name", ["last", "rolling"])
@pytest.mark.parametrize("reach", [50, 55])
def test_windows_inside_the_training_data_are_refused_unless_asked_for(model, name, reach):
    table = joined(counted(reach), counted(30, 1, "b"))
    with pytest.raises(InputError, match=r"--test N.*--in-sample"):
        model.evaluate(table, windows=name)
    scores = model.evaluate(table, windows=name, in_sample=True)
    assert np.isfinite(scores["model"]["lstm"]["mase"])


def test_a_history_that_begins_later_counts_time_not_rows(model):
    late = {name: cells[20:] for name, cells in counted(62).items()}
    assert windows(model, late, windows="rolling").origins[0].tolist() == [30, 36]


def test_held_out_points_are_what_last_scores(kit):
    table = counted(60)
    model = kit.quick(6, steps=3, test=12).fit(table, **ROLES)
    assert model.metrics_["part"] == "test"
    read = model.read(table)
    rolling = choose_windows(read, steps_trained(read, model.ends_), 6, windows="rolling", in_sample=False)
    assert rolling.origins[0].tolist() == [48, 54]
    assert model.evaluate(table, windows="rolling")["model"] == model.metrics_["model"]


def test_mase_is_scaled_by_the_training_part(kit):
    table = counted(60)
    y = np.array(table["y"])
    model = kit.quick(6, steps=3, test=6).fit(table, **ROLES)
    said = model.predict({name: cells[:54] for name, cells in table.items()})
    expected = np.abs(y[54:] - np.array(said["q0.5"])).mean() / seasonal_naive_scale(y[:54], 1)
    found = model.evaluate(table)["model"]["lstm"]["mase"]
    assert found == pytest.approx(expected, rel=1e-6)
    naive = np.abs(y[54:] - y[53]).mean() / seasonal_naive_scale(y[:54], 1)
    assert model.evaluate(table)["baselines"]["naive"]["mase"] == pytest.approx(naive, rel=1e-9)


def test_scores_of_all_methods_are_over_the_same_windows(kit, monkeypatch):
    """A target that begins after the first windows leaves them out for network and baselines alike."""
    n = 80
    rng = np.random.default_rng(0)
    table = {
        "t": list(range(n)),
        "y": rng.normal(5, 1, n).tolist(),
        "z": [np.nan] * 50 + rng.normal(5, 1, 30).tolist(),
    }
    roles = {"target": ["y", "z"], "time": "t", "time_format": "step"}
    model = kit.quick(5, steps=3).fit({k: v[:60] for k, v in table.items()}, **roles)
    counts, original = [], backtest.score_forecasts

    def counting(actual, *rest):
        counts.append(len(actual))
        return original(actual, *rest)

    monkeypatch.setattr(backtest, "score_forecasts", counting)
    scores = model.evaluate(table, windows="rolling", in_sample=True)
    assert len(set(counts)) == 1, counts
    assert set(scores["baselines"]) == {"naive", "seasonal_naive", "ets"}
    for one in (*scores["model"].values(), *scores["baselines"].values()):
        assert set(one) >= {"mase", "smape", "rmse", "wql", "coverage80", "crps"}


def test_series_without_a_window_are_counted_in_the_notes(model):
    model.evaluate(joined(counted(62), counted(30, 1, "b")))
    assert any("1 of 2 series have no window to score" in note for note in model.notes_), model.notes_


def test_unknown_windows_are_refused(model):
    with pytest.raises(InputError, match="known: last, rolling"):
        model.evaluate(counted(62), windows="first")
