"""Estimators of sequences that begin with another: what is said about it, and when the beginning is kept."""

import numpy as np
import pytest

import ostinato as ot

rng = np.random.default_rng(5)
X = rng.normal(3.0, 2.0, size=(40, 6, 2))
Y = X[:, :, 0].mean(axis=1)
QUICK = {"hidden_size": 6, "epochs": 3, "progress": "quiet"}
STILL = {"epochs": 1, "learning_rate": 1e-12, "progress": "quiet"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("sequences") / "run"
    ot.SequenceRegressor(**QUICK).fit(X, Y).save(path)
    return path


def notes(run, x, y=Y, cls=ot.SequenceRegressor):
    first, *others = cls(**STILL, init=run).fit(x, y).notes_
    assert first == f"begins with the network and the scaling of the run in {str(run)!r}"
    return others


def test_values_that_its_scaling_is_not_for_are_named(run):
    assert notes(run, X) == notes(run, X + 4, Y + 1) == []
    (said,) = notes(run, X * [1, 50])
    assert said.startswith("X: more than half of the values of column 1 (counted from 0) lie over 3 standard")
    assert "there 3.0" in said or "there 2.9" in said
    (said,) = notes(run, X - 100)
    assert "of columns 0, 1 (counted from 0) lie" in said
    (said,) = notes(run, X, Y + 1000)
    assert said.startswith("y: more than half of the values of its column lie")
    # One value that is far off tells nothing about the others.
    x = X.copy()
    x[0, 0] = 1e6
    assert notes(run, x) == []


def test_a_classifier_is_told_about_its_inputs_alone_and_only_where_they_are_scaled(tmp_path):
    labels = (Y > 3) * 1000
    for is_scaled, count in ((True, 1), (False, 0)):
        path = tmp_path / str(is_scaled)
        ot.SequenceClassifier(**QUICK, scale_inputs=is_scaled).fit(X, labels).save(path)
        assert len(notes(path, X + 100, labels, ot.SequenceClassifier)) == count


def test_the_beginning_is_kept_where_training_makes_it_worse(run):
    first = ot.load(run)
    spoilt = {"init": run, "epochs": 2, "progress": "quiet", "learning_rate": 3.0}
    begun = ot.SequenceRegressor(**spoilt).fit(X[:20], Y[:20], validation=(X[20:], Y[20:]))
    assert begun.history_["step"][0] == 0
    np.testing.assert_array_equal(begun.predict(X), first.predict(X))
    # Without a validation part nobody can tell.
    blind = ot.SequenceRegressor(**spoilt).fit(X[:20], Y[:20])
    assert np.abs(blind.predict(X) - first.predict(X)).max() > 0.1
