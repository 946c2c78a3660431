"""`Classifier`: every kind of input, what it stores, what it refuses, and that a resumed run is the same."""

from __future__ import annotations

import shutil
import time
from dataclasses import fields

import numpy as np
import pytest

import ostinato as ot
from ostinato.data.examples import Examples, Tree
from ostinato.errors import DataError, InputError
from ostinato.tasks.labels.classifier import Classifier
from ostinato.training.loop import _Run

SMALL = {"hidden_size": 5, "epochs": 2, "progress": "quiet"}


def arrays(N: int = 41, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences of unequal length, three classes that differ in level and in slope."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, N)
    x = []
    for label in y:
        T = int(rng.integers(3, 9))
        x.append(rng.normal(size=(T, 2)) * 0.3 + label + np.linspace(0, label, T)[:, None])
    return x, y


def texts(N: int = 47, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    words = {"good": ["great", "fine", "lovely"], "bad": ["awful", "poor", "sad"]}
    filling = ["the", "film", "was", "very", "quite", "so", "and", "story", "plot"]
    y = [str(label) for label in rng.choice(["good", "bad"], N)]
    x = [" ".join(rng.permutation([*rng.choice(words[k], 2), *rng.choice(filling, 4)])) for k in y]
    return x, y


def trees(N: int = 31) -> tuple[list[Tree], list[str]]:
    x, y = texts(N)
    made = []
    for text, label in zip(x, y, strict=True):
        a, b, c = text.split()[:3]
        made.append(Tree((a, b, c), ((), (), (0, 1), (), (2, 3)), (None, None, "good", None, label)))
    return made, y


def of_kind(kind: str) -> tuple[list, list, dict, dict]:
    """Inputs, classes, parameters, options of fit."""
    if kind == "arrays":
        x, y = arrays()
        return x, y.tolist(), {}, {}
    if kind == "letters":
        rng = np.random.default_rng(1)
        x = ["".join(rng.choice(list("ACGT"), 11)) for _ in range(41)]
        return x, ["yes" if "A" in one[:3] else "no" for one in x], {}, {"letters": True}
    if kind == "trees":
        x, y = trees()
        return x, y, {"tree": True}, {}
    x, y = texts()
    if kind == "documents":
        return [f"{text}. And so on. {text}" for text in x], y, {"hierarchy": True}, {}
    return x, y, {}, {}


@pytest.mark.parametrize("kind", ["text", "documents", "letters", "arrays", "trees"])
def test_a_stored_classifier_says_the_same(kind, tmp_path):
    x, y, parameters, options = of_kind(kind)
    made = Classifier(**SMALL, **parameters).fit(x, y, out=tmp_path / "run", **options)
    assert made.kind_ == kind
    assert list(made.classes_) == sorted(set(y))
    read = ot.load(tmp_path / "run")
    probabilities = made.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (read.predict_proba(x) == probabilities).all()
    assert read.predict(x).tolist() == made.predict(x).tolist()
    assert read.evaluate(x, y) == made.evaluate(x, y)
    assert read.metrics_ == made.metrics_
    assert read.score(x, y) == made.score(x, y)
    assert [getattr(read, f.name) for f in fields(read)] == [getattr(made, f.name) for f in fields(made)]


def test_one_by_one_is_as_all_at_once():
    x, y = arrays()
    made = Classifier(**SMALL).fit(x, y)
    together = made.predict_proba(x)
    alone = np.concatenate([made.predict_proba([one]) for one in x])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


def test_scores_stand_beside_baselines():
    x, y = texts(60)
    made = Classifier(**SMALL).fit(x, y, test=texts(23, seed=1))
    assert made.metrics_["part"] == "test"
    assert set(made.metrics_["baselines"]) == {"majority", "tfidf_logistic_regression"}
    scores = made.metrics_["model"]["lstm"]
    assert set(scores) == {"accuracy", "macro_f1", "log_loss", "calibration_error"}
    # The linear model beside the network learns this at once.
    assert scores["accuracy"] > 0.9
    assert made.metrics_["validation"]["part"] == "validation"
    assert made.calibration_.examples > 20
    assert any("linear model over n-grams" in note for note in made.notes_)
    # One example alone can be scored, too.
    assert made.evaluate(x[:1], y[:1])["model"]["lstm"]["accuracy"] in (0.0, 1.0)


def test_columns_of_tables_are_lists():
    polars = pytest.importorskip("polars")
    x, y = texts(40)
    table = polars.DataFrame({"x": x, "y": y})
    made = Classifier(**SMALL | {"epochs": 1}, members=1).fit(table["x"], table["y"])
    assert made.predict(table["x"]).tolist() == made.predict(x).tolist()


def test_classes_keep_their_type():
    x, y = arrays()
    SMALL = {"hidden_size": 3, "epochs": 1, "members": 1, "progress": "quiet"}
    assert Classifier(**SMALL).fit(x, y).predict(x).dtype == np.int64
    assert Classifier(**SMALL).fit(x, y > 0).predict(x).dtype == np.bool_
    named = Classifier(**SMALL).fit(x, [f"c{k}" for k in y])
    assert named.classes_.tolist() == ["c0", "c1", "c2"]
    both = Classifier(**SMALL).fit([(text, label) for text, label in zip(*texts(), strict=True)])
    assert both.classes_.tolist() == ["bad", "good"]


def test_letters_that_training_did_not_have_are_counted():
    x, y, _, _ = of_kind("letters")
    made = Classifier(**SMALL, members=1).fit(x, y, letters=True)
    made.predict(["ACGTNNA", "nxacgt"])
    assert made.notes_ == ["4 letters are none that the training part had: 'N' (3), 'X' (1)"]


def test_other_files_may_be_written_otherwise(tmp_path):
    x, y = texts(30)
    made = Classifier(**SMALL, members=1).fit(x, y)
    (tmp_path / "new.txt").write_bytes("caf\xe9 noir\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        made.predict(tmp_path / "new.txt")
    assert len(made.read_with(encoding="latin-1").predict(tmp_path / "new.txt")) == 1
    with pytest.raises(InputError, match="no option 'encodng'; did you mean 'encoding'"):
        made.read_with(encodng="latin-1")


def test_columns_in_another_order_are_noted(tmp_path):
    x, y = texts(30)
    rows = list(zip(x, y, strict=True))
    (tmp_path / "a.csv").write_text("".join(f"{k},{t}\n" for t, k in rows))
    (tmp_path / "b.csv").write_text("".join(f"{t},{k}\n" for t, k in rows))
    made = Classifier(**SMALL, members=1).fit(tmp_path / "a.csv", text=1, label=0, header=False)
    made.predict(tmp_path / "b.csv")
    assert any("are the columns in another order?" in note for note in made.notes_)
    made.predict(tmp_path / "a.csv")
    assert made.notes_ == []


def test_a_share_to_hold_out_is_of_one_network():
    x, y = arrays(60)
    made = Classifier(**SMALL, held_out=0.4).fit(x, y)
    assert made.settings_.members == 1
    assert made.calibration_.examples == 24


class PowerCutError(Exception):
    """The end, without a word."""


@pytest.mark.parametrize("kind", ["arrays", "text"])
def test_resumed_equals_never_interrupted(kind, tmp_path, monkeypatch):
    x, y, _, _ = of_kind(kind)
    whole = Classifier(**SMALL).fit(x, y)
    ordinary, count = _Run._step, [0]

    def cut(run):
        count[0] += 1
        if count[0] == 5:
            run.store.write(run, "")
            raise PowerCutError
        return ordinary(run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", cut)
        with pytest.raises(PowerCutError):
            Classifier(**SMALL).fit(x, y, out=tmp_path / "run")
    with pytest.raises(InputError, match="resume=True"):
        Classifier(**SMALL).fit(x, y, out=tmp_path / "run")
    resumed = Classifier(**SMALL).fit(x, y, out=tmp_path / "run", resume=True)
    assert (resumed.predict_proba(x) == whole.predict_proba(x)).all()
    assert resumed.metrics_ == whole.metrics_
    again = Classifier(**SMALL).fit(x, y, out=tmp_path / "run", resume=True)
    assert (again.predict_proba(x) == whole.predict_proba(x)).all()
    with pytest.raises(InputError, match=r"seed 0 → 1.*another folder"):
        Classifier(**SMALL, seed=1).fit(x, y, out=tmp_path / "run", resume=True)


def test_the_caller_keeps_his_random_numbers():
    x, y = arrays()
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (Classifier(**SMALL).fit(x, y) for _ in range(2))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (one.predict_proba(x) == two.predict_proba(x)).all()
    other = Classifier(**SMALL, seed=1).fit(x, y)
    assert (other.predict_proba(x) != one.predict_proba(x)).any()


def test_the_whole_command_keeps_its_time(tmp_path):
    x, y = arrays(300)
    started_s = time.monotonic()
    made = Classifier(hidden_size=5, epochs=10_000, max_time_s=1.5, progress="quiet")
    made.fit(x, y, test=arrays(200, seed=1), out=tmp_path / "run")
    # What is measured is a busy machine, not only us.
    assert time.monotonic() - started_s < 3.0
    assert made.history_.epochs < 10_000


def test_given_validation_is_what_is_validated_on():
    x, y = arrays()
    made = Classifier(**SMALL, members=2).fit(x, y, valid=arrays(19, seed=1))
    assert made.calibration_.examples == 19
    assert made.settings_.members == 2


class TestBadInput:
    def test_one_class(self):
        with pytest.raises(DataError, match=r"every example is of the class 'a'; .* two classes"):
            Classifier(**SMALL).fit(["x y", "z"], ["a", "a"])

    def test_class_only_in_validation_or_test(self):
        x, y = texts()
        made = Classifier(**SMALL).fit(x, y, valid=([*x[:9], "new"], [*y[:9], "odd"]))
        assert made.classes_.tolist() == ["bad", "good"]
        assert any("1 examples of the validation part are of classes" in note for note in made.notes_)
        scores = made.evaluate(["new", *x[:3]], ["odd", *y[:3]])["model"]["lstm"]
        assert scores["accuracy"] <= 0.75
        assert np.isfinite(scores["log_loss"])
        assert any("'odd' (1)" in note for note in made.notes_)

    def test_empty_sequences_get_the_shares_of_the_classes(self):
        x, y = texts()
        made = Classifier(**SMALL).fit([*x, ""], [*y, "bad"])
        np.testing.assert_allclose(made.predict_proba([""])[0], made.shares_)
        assert made.notes_ == ["1 empty sequences were answered by the shares of the classes"]
        x, y = arrays()
        made = Classifier(**SMALL).fit(x, y)
        np.testing.assert_allclose(made.predict_proba([np.zeros((0, 2)), x[0]])[0], made.shares_)

    def test_a_class_of_one_example_is_learned_from(self):
        x, y = texts()
        assert "rare" in Classifier(**SMALL).fit([*x, "odd"], [*y, "rare"]).classes_

    def test_too_few_examples(self):
        with pytest.raises(InputError, match="too few to hold"):
            Classifier(**SMALL).fit(["a", "b"], ["x", "y"])
        with pytest.raises(InputError, match="those of each class, are too few"):
            Classifier(**SMALL).fit(list("abcdefgh"), list("stuvwxyz"))

    def test_a_class_for_every_two_examples(self):
        x = [f"word{i // 2} here" for i in range(24)]
        made = Classifier(**SMALL).fit(x, [str(i // 2) for i in range(24)])
        assert len(made.classes_) == 12

    def test_validation_without_a_known_class(self):
        x, y = texts()
        with pytest.raises(DataError, match="none of its classes is in the training data"):
            Classifier(**SMALL).fit(x, y, valid=(x[:3], ["new"] * 3))

    def test_inputs_of_several_types(self):
        with pytest.raises(InputError, match="one kind: texts, arrays or trees; found NoneType at place 1"):
            Classifier(**SMALL).fit(["a", None, "b"], ["x", "y", "x"])

    @pytest.mark.parametrize(
        ("x", "match"),
        [
            ([np.full((3, 2), np.nan)] * 4, "NaN"),
            ([np.zeros((3, 2)), np.zeros((3, 1))] * 2, "width 1, expected 2"),
        ],
    )
    def test_arrays(self, x, match):
        with pytest.raises(InputError, match=match):
            Classifier(**SMALL).fit(x, [0, 1, 0, 1])

    def test_another_width_or_kind_at_prediction(self):
        x, y = arrays()
        made = Classifier(**SMALL).fit(x, y)
        with pytest.raises(InputError, match=r"expected \(T, 2\)"):
            made.predict([np.zeros((4, 3))])
        with pytest.raises(InputError, match="the data hold text"):
            made.predict(["a text"])

    def test_missing_classes(self):
        with pytest.raises(InputError, match="y is missing"):
            Classifier(**SMALL).fit(["a", "b"])
        with pytest.raises(InputError, match="2 labels for 3 inputs"):
            Classifier(**SMALL).fit(["a", "b", "c"], [0, 1])
        with pytest.raises(InputError, match=r"y\[1\] is missing"):
            Classifier(**SMALL).fit(["a", "b"], ["x", None])
        with pytest.raises(InputError, match="no classes"):
            Classifier(**SMALL).fit(Examples("text", ["a", "b"]))

    @pytest.mark.parametrize(
        ("parameters", "match"),
        [
            ({"cell": "gur"}, "'lstm', 'gru'"),
            ({"cell": "nary"}, "'lstm', 'gru'"),
            ({"cell": "lstm", "tree": True}, "nary"),
            ({"tree": True, "hierarchy": True}, "choose one"),
            ({"tree": True}, "parse trees"),
            ({"hidden_size": 0}, "hidden_size"),
            ({"dropout": 1.0}, "dropout"),
            ({"held_out": 0.0}, "held_out"),
            ({"held_out": 0.3, "members": 2}, "held_out=0.3 is of a single network"),
            ({"members": 0}, "members"),
            ({"unit": "sentence"}, "word, char, bpe"),
        ],
    )
    def test_parameters(self, parameters, match):
        x, y = texts()
        with pytest.raises(InputError, match=match):
            Classifier(**{**SMALL, **parameters}).fit(x, y)

    def test_words_of_arrays(self):
        with pytest.raises(InputError, match="unit='word' is about words"):
            Classifier(**SMALL, unit="word").fit(*arrays())

    def test_a_failed_fit_leaves_no_folder(self, tmp_path):
        with pytest.raises(InputError):
            Classifier(**SMALL, unit="sentence").fit(*texts(), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_an_altered_run(self, tmp_path):
        x, y = arrays()
        Classifier(**SMALL).fit(x, y, out=tmp_path / "run")
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (tmp_path / "copy" / "preparation" / "inputs.json").write_text("{}")
        with pytest.raises(InputError, match="truncated"):
            ot.load(tmp_path / "copy")


def test_files_are_read_the_same_way_again(tmp_path):
    x, y = texts()
    path = tmp_path / "train.csv"
    path.write_text("kind,said\n" + "".join(f"{k},{t}\n" for t, k in zip(x, y, strict=True)))
    made = Classifier(**SMALL).fit(path, text="said", label="kind", out=tmp_path / "run")
    without = tmp_path / "new.csv"
    without.write_text("said\n" + "".join(f"{t}\n" for t in x))
    read = ot.load(tmp_path / "run")
    assert (read.predict_proba(without) == made.predict_proba(path)).all()
    assert read.evaluate(path) == made.evaluate(path)


def test_scikit_learn_can_clone_and_search():
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score

    x, y = arrays(36)
    made = clone(Classifier(**SMALL))
    assert made.get_params()["hidden_size"] == 5
    padded = np.zeros((36, 8, 2))
    for row, one in zip(padded, x, strict=True):
        row[: len(one)] = one
    assert len(cross_val_score(made, padded, y, cv=2)) == 2
