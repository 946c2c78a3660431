"""Monotonic attention: each unit of a source stands for a part of the answer."""

import itertools
import random

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.joint_units import JointUnits
from ostinato.data.pair_encoding import FIRST_PART, PairPreparation
from ostinato.errors import InputError
from ostinato.tasks.translate import answers, joining, rescoring
from ostinato.tasks.translate.answers import Said, Search, found_by, may_be

SOUNDS = {"a": "AE1", "b": "B", "t": "T", "x": "K S", "h": "", "c": "K"}
SMALL = {
    "attention": "monotonic", "hidden_size": 16, "embedding_size": 10, "batch_size": 32,
    "learning_rate": 0.01, "dropout": 0.0, "progress": "quiet",
}  # fmt: skip


def sounds(word):
    """c is soft before a, h is silent, x is two sounds."""
    said = [
        "S" if letter == "c" and after == "a" else SOUNDS[letter]
        for letter, after in zip(word, [*word[1:], ""], strict=True)
    ]
    return " ".join(filter(None, said))


def words(n, seed=0):
    draw = random.Random(seed)
    found = ["".join(draw.choice("aabtxhc") for _ in range(draw.randint(2, 7))) for _ in range(n)]
    return [word for word in found if sounds(word)]


def pairs(n, seed=0):
    return [(word, sounds(word)) for word in words(n, seed)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A translator that has learned to spell, without joint n-grams; and its run."""
    run = tmp_path_factory.mktemp("monotonic") / "run"
    translator = ot.Translator(**SMALL, epochs=12, joint=False, held_out=0.1).fit(pairs(600), out=run)
    return translator, run


def test_spelling_is_learned_and_stored(fitted):
    translator, run = fitted
    assert translator.metrics_["model"]["lstm"]["token_error_rate"] < 0.02
    others = [*words(40, seed=5), "x" * 12, "c", "h", "", "xqa"]
    told = translator.predict(others)
    assert told[:41] == [sounds(word) for word in others[:41]]
    assert told[-3:-1] == ["", ""]
    assert told == ot.load(run).predict(others)
    assert told == [translator.predict([word])[0] for word in others]
    greedy = translator.predict(others, beam=1)
    assert greedy[:41] == told[:41]


def test_every_unit_of_an_answer_has_looked_at_the_unit_that_stands_for_it(fitted):
    translator, _ = fitted
    (answer,) = translator.translate(["xhab"], attention=True)
    (piece,) = answer.pieces
    assert piece.target == ["K", "S", "AE1", "B"]
    np.testing.assert_array_equal(piece.weights, np.eye(4, dtype=np.float32)[[0, 0, 2, 3]])


def test_an_answer_has_the_probability_of_all_its_readings(fitted):
    translator, _ = fitted
    network, preparation = translator.network_, translator.preparation_
    parts = [FIRST_PART + i for i in range(len(preparation.parts))]
    encoded = preparation.encode_units([["x", "h"]])
    search, wanted = Search(beam=500, length_penalty=0.0), {}
    with torch.no_grad():
        ((_, memory, decoded),) = answers.beams(network, encoded, search, translator.limits_, n_best=500)
        for reading in itertools.product(parts, repeat=2):
            state, total, before = memory.state, 0.0, 0
            for part in (*reading, encoded.end):
                scores, state, *_ = memory.step(torch.tensor([before]), state)
                total, before = total + float(scores.log_softmax(1)[0, part]), part
            ids = preparation.ids_of(reading)
            wanted[ids] = np.logaddexp(wanted.get(ids, -np.inf), total)
    found = {said.ids: said.log_p for said in found_by(decoded, 0, preparation, search)}
    assert len(found) < len(parts) ** 2
    assert found == pytest.approx(wanted, abs=1e-3)
    # All of it but what no answer has.
    assert -0.1 < np.logaddexp.reduce([*found.values()]) < 0


def test_what_repeats_itself_is_left_out_where_that_is_wanted(fitted):
    translator, _ = fitted
    assert may_be((5, 6, 5), Search(no_repeat_ngram=2))
    assert not may_be((5, 6, 5, 6), Search(no_repeat_ngram=2))
    assert translator.predict(["abab"]) == ["AE1 B AE1 B"]
    translator.settings_.no_repeat_ngram = 2
    try:
        assert translator.predict(["abab"]) != ["AE1 B AE1 B"]
    finally:
        translator.settings_.no_repeat_ngram = 0


@pytest.fixture(scope="module")
def hardly():
    """A translator that has hardly learned, and is told better by joint n-grams."""
    return ot.Translator(**SMALL, epochs=1, joint=True, held_out=0.1).fit(pairs(600))


def test_joint_n_grams_help(hardly):
    assert hardly.rescoring_ is not None
    assert hardly.metrics_["model"]["lstm"]["token_error_rate"] < 0.1
    others = [*words(30, seed=7), "", "q"]
    together = hardly.translate(others, attention=True)
    assert [one.text for one in together] == [hardly.predict([word])[0] for word in others]
    for one in together:
        for piece in one.pieces:
            assert piece.weights.shape == (len(piece.target), len(piece.source))
            assert set(piece.weights.ravel().tolist()) <= {0.0, 1.0}
            assert (np.diff(piece.weights.argmax(axis=1)) >= 0).all()


def test_what_joint_n_grams_list_has_the_probability_of_the_beam(hardly):
    preparation, search = hardly.preparation_, hardly._search(12)
    encoded = preparation.encode_units([list(word) for word in words(12, seed=3)])
    with torch.no_grad():
        for _, memory, decoded in answers.beams(hardly.network_, encoded, search, hardly.limits_, n_best=12):
            beams = [
                {ids: float(decoded.log_probs[i, k]) for k in range(12)
                 for ids in [tuple(decoded.tokens[i, k, : decoded.lengths[i, k]].tolist())]}
                for i in range(len(decoded.tokens))
            ]  # fmt: skip
            missing = [
                rescoring._Missing(i, preparation.ids_of(told), told, 0.0)
                for i, one in enumerate(beams)
                for told in one
            ]
            found = [*rescoring._of_joint(memory, missing, encoded.end, preparation, search, attends=False)]
            for one, (i, candidate) in zip(missing, found, strict=True):
                assert i == one.row
                assert candidate.said.ids == one.ids
                assert candidate.said.log_p == pytest.approx(beams[i][one.told], abs=1e-3)


def test_parts_that_are_all_the_same_are_told():
    joined = joining.JoinedPairs(JointUnits(np.array([[2, 7, 0], [3, 7, 0]])), [np.array([0, 1, 0])], [])
    assert joined.told_by_units == 1.0


def test_it_is_chosen_where_it_suits(monkeypatch):
    monkeypatch.setattr(joining, "LEAST_PAIRS", 100)
    short = {**SMALL, "attention": "auto", "epochs": 1}
    chosen = ot.Translator(**short).fit(pairs(150))
    assert (chosen.settings_.attention, chosen.settings_.joint) == (
        "monotonic",
        chosen.rescoring_ is not None,
    )
    for options in (
        {"feeding": "output"},
        {"no_repeat_ngram": 3},
        {"unit": "word"},
        {"copying": True, "unit": "char"},
    ):
        assert ot.Translator(**short, **options).fit(pairs(150)).settings_.attention == "general"
    monkeypatch.setattr(joining, "LEAST_PAIRS", 1000)
    few = ot.Translator(**short).fit(pairs(150)).settings_
    assert (few.attention, few.joint) == ("general", False)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [(lambda w: w.upper(), 1.0, 1.0), (lambda w: w[::-1], 0.0, 0.3)],
    ids=["same order", "backwards"],
)
def test_whether_targets_go_along_is_measured(said, least, most, monkeypatch):
    spelled = ["".join(random.Random(i).choices("abcdefgh", k=3 + i % 6)) for i in range(400)]
    told = [said(word) for word in spelled]
    preparation = PairPreparation.fit(spelled, told, units=("char", "char"), shared=False, size=100)
    found = joining.JoinedPairs.of(preparation.encode(spelled, told), seed=0).told_by_units
    assert least - 1e-9 <= found <= most + 1e-9
    monkeypatch.setattr(joining, "LEAST_PAIRS", 100)
    given = {**SMALL, "attention": "auto", "joint": False, "epochs": 1, "unit": "char"}
    chosen = ot.Translator(**given).fit(spelled, told).settings_.attention
    assert chosen == ("monotonic" if found > 0.5 else "general")


def test_a_run_can_start_another(fitted, tmp_path):
    _, run = fitted
    # "ab" in one unit is a part that the run does not have.
    others = [*pairs(60, seed=8), ("a", "AE1 B"), ("h", "K S")]
    again = ot.Translator(init=str(run), epochs=1, learning_rate=1e-4, progress="quiet", held_out=0.1).fit(
        others
    )
    assert again.settings_.attention == "monotonic"
    assert again.preparation_.parts == ot.load(run).preparation_.parts
    assert again.metrics_["model"]["lstm"]["token_error_rate"] < 0.2
    assert any("need what no unit of a source stands for in the run" in note for note in again.notes_)
    with pytest.raises(InputError, match="attention='general': the run in init="):
        ot.Translator(init=str(run), attention="general").fit(others)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (pairs(40), {"unit": "word"}, "attention='monotonic' needs units of char or symbol on both sides"),
        (pairs(40), {"feeding": "context"}, "feeding='context' needs an attention that chooses"),
        (pairs(40), {"copying": True, "unit": "char"}, "copying=True needs an attention that chooses"),
        ([("ab", "A B C D E F"), ("b", "B B B")] * 20, {"unit": "char,symbol"}, "there is no pair of known"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given, options, message):
    with pytest.raises(InputError, match=message):
        ot.Translator(**SMALL, epochs=1, **options).fit(given)


def test_held_out_pairs_that_cannot_be_said_are_refused_or_let_go(monkeypatch):
    valid, units = [("ab", "A B C D E")] * 5, {"unit": "char,symbol", "epochs": 1}
    with pytest.raises(InputError, match="none of the 5 pairs of the validation part can be said"):
        ot.Translator(**SMALL, **units).fit(pairs(40), valid=valid)
    monkeypatch.setattr(joining, "LEAST_PAIRS", 10)
    given = {**SMALL, **units, "attention": "auto"}
    assert ot.Translator(**given).fit(pairs(40), valid=valid).settings_.attention == "general"


def test_a_summarizer_does_not_go_along():
    with pytest.raises(InputError, match="attention='monotonic' does not go with a summarizer"):
        ot.Summarizer(attention="monotonic").fit(pairs(40))


def test_of_several_readings_the_best_says_where_it_looked(fitted):
    preparation = fitted[0].preparation_
    silent, k = (
        FIRST_PART + preparation.parts.index(part)
        for part in ((), (preparation.target_vocabulary.ids(["K"])[0],))
    )
    readings = [
        Said((k, silent), -1.0, -1.0, True, np.eye(3, 2, dtype=np.float32)),
        Said((silent, k), -2.0, -2.0, True, np.eye(3, 2, dtype=np.float32)),
    ]  # fmt: skip
    (said,) = answers._of_parts(readings, preparation, Search(length_penalty=1.0))
    assert said.log_p == pytest.approx(np.logaddexp(-1.0, -2.0))
    assert said.score == pytest.approx(said.log_p / 2)
    np.testing.assert_array_equal(said.weights, [[1.0, 0.0]])
