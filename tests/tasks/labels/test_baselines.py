"""The regressions that classifiers are measured against: features, storage, time, folds."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato.data.examples import Examples, Tree
from ostinato.tasks.labels import baselines
from ostinato.tasks.labels.baselines import Regression, cross_predicted, features_for


def examples(kind: str, N: int = 40) -> Examples:
    rng = np.random.default_rng(0)
    y = ["ab"[i % 2] for i in range(N)]
    if kind == "arrays":
        x = [rng.normal(size=(int(rng.integers(1, 6)), 2)) + 3 * (k == "a") for k in y]
    elif kind == "letters":
        x = [("AC" if k == "a" else "GA") + "".join(rng.choice(list("ACGT"), 4)) for k in y]
    elif kind == "ragged letters":
        x = [("ACAC" if k == "a" else "GGG") + "T" * int(rng.integers(1, 4)) for k in y]
    elif kind == "trees":
        x = [Tree((f"word{k}", "x"), ((), (), (0, 1)), (None, None, k)) for k in y]
    else:
        x = [f"{'good' if k == 'a' else 'bad'} thing {i % 5}" for i, k in enumerate(y)]
    return Examples(kind.rsplit(maxsplit=1)[-1], x, y)


NAMES = {
    "text": "tfidf_logistic_regression",
    "trees": "tfidf_logistic_regression",
    "ragged letters": "tfidf_logistic_regression",
    "letters": "positional_logistic_regression",
    "arrays": "summary_logistic_regression",
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_has_one_that_is_stored(kind):
    data = examples(kind)
    made = Regression.fit(data, 0, None)
    assert made.features.name == NAMES[kind]
    said = made.predict(data.inputs)
    assert np.mean([a == b for a, b in zip(said, data.labels, strict=True)]) > 0.9
    assert made.notes == []
    again = Regression.from_json(made.to_json(), made.tensors())
    assert again.predict(data.inputs) == said


def test_texts_without_a_word():
    data = Examples("text", ["", " ", ""], ["a", "b", "a"])
    made = Regression.fit(data, 0, None)
    assert made.predict(["", "new"]) == ["a", "a"]


def test_letters_beyond_the_places_and_unknown_ones():
    features = features_for(examples("letters"))
    features.fit(["ACG", "TCG"])
    rows = features.transform(["AC", "ACGTT", "aZg"])
    assert rows.shape == (3, 3 * 4)
    assert rows.sum(axis=1).tolist() == [2.0, 3.0, 2.0]


def test_many_examples_are_cut_to_the_time_and_that_is_said(monkeypatch):
    monkeypatch.setattr(baselines, "TRIED", 10)
    data = examples("text", 100)
    made = Regression.fit(data, 0, 1e-3)
    assert len(made.notes) == 1
    assert "learned from 10 of 100 examples" in made.notes[0]


def test_folds_are_answered_by_what_has_not_seen_them():
    data = examples("text", 30)
    own = np.arange(30) % 3
    said = cross_predicted(data, own, 2, 0, None)
    rows = np.flatnonzero(own < 2)
    assert len(said) == len(rows)
    for fold in range(2):
        model = Regression.fit(data.select(np.flatnonzero(own != fold)), 0, None)
        expected = model.predict(data.select(np.flatnonzero(own == fold)).inputs)
        assert [one for one, row in zip(said, rows, strict=True) if own[row] == fold] == expected
