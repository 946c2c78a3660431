"""Runs of forecasters and of estimators of sequences go on with the data that they began with, and with no
other."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import ostinato as ot
from ostinato.errors import InputError
from ostinato.tasks import same_data
from ostinato.tasks.same_data import Digest
from ostinato.training.loop import _Run
from ostinato.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("without_ets")

rng = np.random.default_rng(8)
X = [rng.normal(size=(length, 2)) for length in rng.integers(1, 6, 24)]
VALUES = [row.mean() for row in X]
LABELS = np.where(np.array(VALUES) > 0, "up", "down")
NAMES = {"SequenceRegressor": VALUES, "SequenceClassifier": LABELS}


class PowerCutError(Exception):
    """The end, without a word."""


def cut(fit, monkeypatch):
    """Have a run end at its first step, with a checkpoint."""

    def stop(run):
        run.store.write(run, "")
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", stop)
        with pytest.raises(PowerCutError):
            fit()


def without_fingerprints(path, name):
    """What an older version left in the folder of a finished run."""
    run = RunFolder.open(path)
    stored = run.read_json(name)
    assert stored.pop("data")
    run.write_json(name, stored)
    run.commit(run.kind)


# ---------------------------------------------------------------------------------------- digits


def digits(*arrays):
    digest = Digest()
    for array in arrays:
        digest.array(np.asarray(array))
    return digest.digits()


def test_digits_are_those_of_values_in_their_order():
    ones = np.ones(3)
    assert digits(ones) == digits(ones.astype(np.float32))
    assert digits([1, 2]) == digits(np.array([1, 2], np.uint8))
    assert digits([np.nan, 1.0]) == digits([-np.float64("nan"), 1.0])
    assert digits(["a", "b"]) == digits(np.array(["a", "b"], "U9"))
    different = [[1.0, 2.0], [2.0, 1.0], [[1.0, 2.0]], [1, 2], [True, False], ["1", "2"], ["12", ""]]
    assert len({digits(one) for one in different}) == len(different)
    assert digits([1.0], [2.0, 3.0]) != digits([1.0, 2.0], [3.0])


def test_arrays_of_any_size_have_the_digits_of_all_that_is_in_them(monkeypatch):
    values = rng.normal(size=(7, 3))
    monkeypatch.setattr(same_data, "_AT_ONCE", 4)
    whole = digits(values)
    for place in np.ndindex(values.shape):
        other = values.copy()
        other[place] += 1
        assert digits(other) != whole


# ---------------------------------------------------------------------------------------- sequences


def sequences(name, x=X, y=None, *, out=None, resume=False, **given):
    settings = {"hidden_size": 4, "epochs": 2, "progress": "quiet"}
    fitted = {n: given.pop(n) for n in ("validation", "lengths") if n in given}
    y = NAMES[name] if y is None else y
    return getattr(ot, name)(**settings | given).fit(x, y, **fitted, out=out, resume=resume)


CHANGES = [
    ({"x": X[:-1]}, "the training data: 24 sequences → 23"),
    ({"x": X[::-1]}, "the training data: other examples or labels"),
    ({"x": [row[:, ::-1] for row in X]}, "the training data: other examples or labels"),
    ({"is_reversed": True}, "the training data: other examples or labels"),
    (
        {"validation": 0.25},
        "the training data: 24 sequences → 18, the validation part was not given",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_sequences_go_on_with_the_same_alone(name, tmp_path, monkeypatch):
    run, begun = tmp_path / "run", tmp_path / "begun"
    first = sequences(name, out=run)
    cut(lambda: sequences(name, out=begun), monkeypatch)
    for folder in (run, begun):
        for change, said in CHANGES:
            given = dict(change)
            x = given.pop("x", X)
            y = NAMES[name][: len(x)][:: -1 if given.pop("is_reversed", False) else 1]
            with pytest.raises(InputError, match=rf"from other data \({said}\); resume with the"):
                sequences(name, x, y, out=folder, resume=True, **given)
        with pytest.raises(InputError, match=r"other parameters \(epochs 2 → 3\)"):
            sequences(name, out=folder, resume=True, epochs=3)
    # The same in one array is the same.
    lengths = [len(row) for row in X]
    padded = np.zeros((len(X), max(lengths) + 1, 2))
    for row, values in zip(padded, X, strict=True):
        row[: len(values)] = values
    same = {"lengths": lengths, "resume": True}
    assert sequences(name, padded, out=run, **same).fingerprints_ == first.fingerprints_
    done = sequences(name, padded, out=begun, max_time_s=60, **same)
    assert done.fingerprints_ == first.fingerprints_ == ot.load(begun).fingerprints_
    np.testing.assert_array_equal(done.predict(X), first.predict(X))


def test_a_validation_part_of_its_own_and_a_beginning_are_the_same_too(tmp_path, monkeypatch):
    name, run, other = "SequenceRegressor", tmp_path / "run", tmp_path / "other"
    for path, seed in ((run, 0), (other, 1)):
        sequences(name, seed=seed).save(path)
    shutil.copytree(run, tmp_path / "init")
    init = {"init": str(tmp_path / "init")}

    def resume(validation):
        return sequences(name, validation=validation, out=tmp_path / "begun", resume=True, **init)

    cut(lambda: sequences(name, validation=(X, VALUES), out=tmp_path / "begun", **init), monkeypatch)
    with pytest.raises(InputError, match=r"\(the validation part: 24 sequences → 23\)"):
        resume((X[1:], VALUES[1:]))
    shutil.rmtree(tmp_path / "init")
    shutil.copytree(other, tmp_path / "init")
    with pytest.raises(InputError, match=r"\(the run to begin with: another one\)"):
        resume((X, VALUES))
    shutil.rmtree(tmp_path / "init")
    shutil.copytree(run, tmp_path / "init")
    assert resume((X, VALUES)).history_.stopped == "epochs"


def test_an_older_run_of_sequences_is_taken_over_with_a_word(tmp_path):
    fitted = sequences("SequenceRegressor", out=tmp_path / "run")
    without_fingerprints(tmp_path / "run", "preparation/sequences.json")
    loaded = ot.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    loaded.save(tmp_path / "copy")
    assert ot.load(tmp_path / "copy").notes_ == loaded.notes_ == []
    again = sequences("SequenceRegressor", out=tmp_path / "run", resume=True)
    assert again.notes_ == [same_data.UNKNOWN]


# ---------------------------------------------------------------------------------------- forecasts


@pytest.fixture
def forecast(kit):
    """Fits a forecaster to a table, the columns of which may be others."""
    table = kit.long_table((40, 36), missing=0.0)

    def fit(out=None, resume=False, change=None, settings=None, **roles):
        given = {name: list(values) for name, values in table.items()}
        given |= {} if change is None else change(given)
        return kit.quick(**{"steps": 2, "test": 6} | (settings or {})).fit(
            given, **kit.ALL_ROLES | roles, out=out, resume=resume
        )

    return fit


def last(name):
    """Adds 1 to the last value of a column, which is in the test part."""
    return lambda table: {name: [*table[name][:-1], table[name][-1] + 1]}


def first(name):
    return lambda table: {name: [table[name][0] + 1, *table[name][1:]]}


def turned(table):
    """The second series before the first."""
    return {name: values[40:] + values[:40] for name, values in table.items()}


OTHERS = [
    ({"change": first("y")}, "the training data: other rows or columns"),
    ({"change": first("price")}, "the training data: other rows or columns"),
    ({"change": turned}, "the training data: other rows or columns"),
    ({"change": lambda t: {n: v[:-2] for n, v in t.items()}}, "the training data: 64 rows → 62"),
    ({"change": lambda t: {n: v[:40] for n, v in t.items()}}, "the training data: 2 series → 1"),
    ({"known": (), "observed": ["rain", "price"]}, "the training data: other rows or columns"),
]


def test_forecasters_go_on_with_the_same_alone(forecast, tmp_path, monkeypatch):
    run, begun = tmp_path / "run", tmp_path / "begun"
    fitted = forecast(run)
    cut(lambda: forecast(begun), monkeypatch)
    for folder in (run, begun):
        for change, said in OTHERS:
            with pytest.raises(InputError, match=rf"made from other data \({said}"):
                forecast(folder, resume=True, **change)
        with pytest.raises(InputError, match=r"other parameters \(hidden_size 8 → 5\)"):
            forecast(folder, resume=True, settings={"hidden_size": 5})
    with pytest.raises(InputError, match=r"other data \(the test part: other rows or columns\)"):
        forecast(run, resume=True, change=last("y"))
    again = forecast(run, resume=True, settings={"device": "auto"})
    assert again.device == "auto"
    assert again.fingerprints_ == fitted.fingerprints_ == ot.load(run).fingerprints_
    # Nothing is learned from the test part: it may be another one; so may the time.
    done = forecast(begun, resume=True, change=last("y"), settings={"max_time_s": 99.0})
    assert json.loads((begun / "checkpoints/data.json").read_text())["test"] == done.fingerprints_["test"]
    for one in (again, done):
        weights = one.engine_.model.state_dict()
        for name, value in fitted.engine_.model.state_dict().items():
            np.testing.assert_array_equal(weights[name], value)


def test_a_forecaster_that_began_with_another_is_taken_over_as_it_is(forecast, tmp_path):
    forecast().save(tmp_path / "first")
    given = {"init": str(tmp_path / "first"), "hidden_size": 48, "members": 3}
    whole = forecast(tmp_path / "run", settings=given)
    again = forecast(tmp_path / "run", resume=True, settings=given)
    again.save(tmp_path / "copy")
    assert (again.hidden_size, ot.load(tmp_path / "copy").hidden_size) == (48, 8)
    assert again.notes_ == whole.notes_
    with pytest.raises(InputError, match=r"finished .* other parameters \(hidden_size 8 → 5\)"):
        forecast(tmp_path / "run", resume=True, settings=given | {"hidden_size": 5})
    with pytest.raises(InputError, match=r"other data \(the training data: other rows or columns\)"):
        forecast(tmp_path / "run", resume=True, settings=given, change=first("y"))


def test_an_older_run_of_a_forecaster_is_taken_over_with_a_word(forecast, tmp_path):
    fitted = forecast(tmp_path / "run")
    without_fingerprints(tmp_path / "run", "preparation/series.json")
    assert ot.load(tmp_path / "run").notes_ == fitted.notes_
    assert forecast(tmp_path / "run", resume=True).notes_ == [*fitted.notes_, same_data.UNKNOWN]


def test_resuming_needs_a_folder(forecast):
    with pytest.raises(InputError, match="resume=True goes on with the run in a folder"):
        forecast(resume=True)
    with pytest.raises(InputError, match="resume=True goes on with the run in a folder"):
        sequences("SequenceRegressor", resume=True)
