"""A run is gone on with, and taken over, on the data that it began with, and on no other."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ostinato as ot
from ostinato.data.examples import Examples, Sentence, Tree
from ostinato.errors import InputError, RunFolderError
from ostinato.tasks import same_data
from ostinato.tasks.labels.fingerprint import fingerprint
from ostinato.training.loop import _Run

SMALL = {"hidden_size": 4, "epochs": 2, "members": 1, "progress": "quiet"}
X = [f"{'good' if i % 2 else 'bad'} film {i}" for i in range(30)]
Y = ["good" if i % 2 else "bad" for i in range(30)]


def tree(*labels):
    return Tree(("a", "b"), ((), (), (0, 1)), labels)


DIFFERENT = [
    Examples("text", ["ab", "c"], labels=["x", "y"]),
    Examples("letters", ["ab", "c"], labels=["x", "y"]),
    Examples("text", ["a", "bc"], labels=["x", "y"]),
    Examples("text", ["ab", "c"], labels=["x", "z"]),
    Examples("text", ["ab", "c"]),
    Examples("tokens", [Sentence(["ab", "c"])], tags=[["x", "y"]]),
    Examples("tokens", [Sentence(["ab", "c"])], tags=[["x", "z"]]),
    Examples("tokens", [Sentence(["ab", "c"], {"1": ["x", "y"]})], tags=[["x", "y"]]),
    Examples("tokens", [Sentence(["ab"]), Sentence(["c"])], tags=[["x"], ["y"]]),
    Examples("trees", [tree(None, None, "1")], labels=["1"]),
    Examples("trees", [tree(None, "0", "1")], labels=["1"]),
    Examples("arrays", [np.zeros((2, 3), np.float32)], labels=["1"]),
    Examples("arrays", [np.zeros((3, 2), np.float32)], labels=["1"]),
    Examples("arrays", [np.ones((3, 2), np.float32)], labels=["1"]),
]


def test_it_tells_data_apart_and_nothing_else():
    every = [fingerprint(one) for one in DIFFERENT]
    assert len({one["digest"] for one in every}) == len(DIFFERENT)
    assert [fingerprint(one) for one in DIFFERENT] == every
    moved = Examples("text", ["ab", "c"], labels=["x", "y"], places=[7, 9], source="elsewhere", notes=("n",))
    assert fingerprint(moved) == every[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": X[:-1], "y": Y[:-1]}, "the training data: 30 examples → 29"),
        ({"y": Y[::-1]}, "the training data: other examples or labels"),
        ({"test": (X[:4], Y[:4])}, "the test part was not given"),
    ],
)
def test_a_finished_run_is_not_taken_for_one_on_other_data(changed, said, tmp_path):
    ot.Classifier(**SMALL).fit(X, Y, out=tmp_path / "run")
    given = {"x": X, "y": Y} | changed
    with pytest.raises(InputError, match=f"made from other data \\({said}\\)"):
        ot.Classifier(**SMALL).fit(given.pop("x"), given.pop("y"), out=tmp_path / "run", resume=True, **given)
    again = ot.Classifier(**SMALL).fit(X, Y, out=tmp_path / "run", resume=True)
    again.save(tmp_path / "copy")
    assert ot.load(tmp_path / "copy").fingerprints_ == again.fingerprints_


class PowerCutError(Exception):
    """The end, without a word."""


def stopped(folder, monkeypatch, *, stores):
    """An unfinished run in `folder`, with a checkpoint where it `stores` one."""

    def cut(run):
        if stores:
            run.store.write(run, "")
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", cut)
        with pytest.raises(PowerCutError):
            ot.Classifier(**SMALL).fit(X, Y, test=(X, Y), out=folder)


def test_an_unfinished_run_goes_on_with_its_own_data_alone(tmp_path, monkeypatch):
    run = tmp_path / "run"
    stopped(run, monkeypatch, stores=True)
    with pytest.raises(RunFolderError, match=r"not finished.*--resume"):
        ot.load(run)
    with pytest.raises(InputError, match="30 examples → 28"):
        ot.Classifier(**SMALL).fit(X[:28], Y[:28], out=run, resume=True)
    stored = run / "checkpoints" / "data.json"
    whole = stored.read_bytes()
    stored.write_text("[1]")
    with pytest.raises(RunFolderError, match=r"data\.json"):
        ot.Classifier(**SMALL).fit(X, Y, out=run, resume=True)
    stored.write_bytes(whole)
    # Nothing is learned from the test part: it may be another one.
    done = ot.Classifier(**SMALL).fit(X, Y, test=(X[:9], Y[:9]), out=run, resume=True)
    kept = json.loads(stored.read_text())
    assert kept.pop("parameters")["epochs"] == SMALL["epochs"]
    assert kept == done.fingerprints_
    assert done.fingerprints_["test"]["examples"] == 9


def test_without_a_checkpoint_nothing_is_left_in_the_way(tmp_path, monkeypatch):
    stopped(tmp_path / "run", monkeypatch, stores=False)
    assert not (tmp_path / "run").exists()


def test_what_was_killed_before_its_first_checkpoint_is_called_unfinished(tmp_path):
    (tmp_path / "run").mkdir()
    same_data.keep({"data": {"examples": 1, "digest": "0"}}, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"not finished.*--resume"):
        ot.load(tmp_path / "run")
    # There is nothing to go on from, so other data do as well.
    assert ot.Classifier(**SMALL).fit(X, Y, out=tmp_path / "run", resume=True).score(X, Y) > 0.5
