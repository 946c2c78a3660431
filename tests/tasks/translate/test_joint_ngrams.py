"""Joint n-grams: fitted, asked, stored; and answers rescored by them."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.pair_encoding import PairPreparation
from ostinato.errors import InputError
from ostinato.tasks.translate import joining, rescoring
from ostinato.tasks.translate.answers import Said, found_by
from ostinato.tasks.translate.joining import JoinedPairs
from ostinato.tasks.translate.joint_ngrams import UNKNOWN_LOG_P, JointNgrams
from ostinato.tasks.translate.rescoring import Candidate, choose_among, edit_distances

SOUNDS = {"a": "AE1", "b": "B", "t": "T", "x": "K S", "h": "", "c": "K"}
SMALL = {"hidden_size": 12, "embedding_size": 10, "batch_size": 64, "epochs": 2, "progress": "quiet"}


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


@pytest.fixture(scope="module")
def made():
    """Joint n-grams of a small spelling, with the preparation of its pairs."""
    spelled = words(500)
    told = [sounds(word) for word in spelled]
    preparation = PairPreparation.fit(spelled, told, units=("char", "symbol"), shared=False, size=100)
    return JointNgrams.fit(JoinedPairs.of(preparation.encode(spelled, told), seed=0)), preparation


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A translator that has hardly learned, and is told better by joint n-grams; and its run."""
    run = tmp_path_factory.mktemp("joint") / "run"
    spelled = words(600)
    translator = ot.Translator(**SMALL, joint=True, held_out=0.1)
    return translator.fit(spelled, [sounds(word) for word in spelled], out=run), run


def test_spelling_is_learned_with_its_context(made):
    ngrams, preparation = made
    others = words(60, seed=5)
    assert ngrams.say(preparation, others) == [sounds(word) for word in others]
    assert ngrams.pairs == len(words(500))


def test_together_and_one_by_one_are_the_same(made):
    ngrams, preparation = made
    encoded = preparation.encode(["cat", "", "xaqb", "hathat", "c"])
    rows = [encoded.source(row) for row in range(5)]
    together = ngrams.candidates(rows, beam=4, n_best=3)
    for row, found in zip(rows, together, strict=True):
        (alone,) = ngrams.candidates([row], beam=4, n_best=3)
        assert [ids for ids, *_ in alone] == [ids for ids, *_ in found]
        assert [p for _, p, _ in alone] == pytest.approx([p for _, p, _ in found])
        assert [p for _, p, _ in found] == sorted((p for _, p, _ in found), reverse=True)
        assert len(found) <= 3
    assert together[1][0][0] == ()
    assert ngrams.candidates([]) == []


def test_an_unknown_letter_is_silent(made):
    ngrams, preparation = made
    assert ngrams.say(preparation, ["bqat"]) == ngrams.say(preparation, ["bat"])
    known, unknown = (ngrams.candidates([preparation.encode([w]).source(0)])[0] for w in ("bat", "baqt"))
    assert unknown[0][1] == pytest.approx(known[0][1] + UNKNOWN_LOG_P)


def test_a_target_has_the_probability_of_all_its_readings(made):
    ngrams, preparation = made
    source = preparation.encode(["xh"]).source(0)
    (found,) = ngrams.candidates([source], beam=10_000, n_best=10_000)
    # After each source of a length something is said: all of it together has the probability of the source.
    assert len(found) == len({ids for ids, *_ in found})
    table = ngrams.units.table
    first, second = (np.flatnonzero(table[:, 0] == letter) for letter in source)
    total = -np.inf
    for one in first:
        for two in second:
            p, contexts = 0.0, ngrams.ngrams.after_start(1, 1)
            for unit in (two + 2, one + 2, 0):
                said, contexts = ngrams.ngrams.extend(contexts, np.array([unit]))
                p += said[0]
            total = np.logaddexp(total, p)
    assert np.logaddexp.reduce([p for _, p, _ in found]) == pytest.approx(total)


def test_stored_joint_ngrams_say_the_same(made):
    ngrams, preparation = made
    again = JointNgrams.from_json(json.loads(json.dumps(ngrams.to_json())), ngrams.tensors())
    source = preparation.encode(["cathax"]).source(0)
    assert again.candidates([source]) == ngrams.candidates([source])
    assert again.pairs == ngrams.pairs


def test_pairs_that_are_left_out(made):
    _, preparation = made
    assert JoinedPairs.of(preparation.encode(["aq", "a"], ["AE1", "AE1 AE1 AE1"]), seed=0) is None
    inputs = preparation.encode(["ab"] * 10 + ["q"], ["AE1 B"] * 10 + [""])
    joined = JoinedPairs.of(inputs, seed=0)
    assert joined.notes[0].startswith("1 of 11 pairs were not cut")
    assert JointNgrams.fit(joined).pairs == 10
    for most, pairs in ((6, 3), (7, 3), (1, 1)):
        some = JoinedPairs.of(inputs, seed=0, most_units=most)
        assert JointNgrams.fit(some).pairs == sum(cut is not None for cut in some.cuts) == pairs


def test_edit_distances_are_those_of_the_textbook():
    rng = np.random.default_rng(0)
    left, right = rng.integers(3, size=(40, 6)), rng.integers(3, size=(40, 8))
    a, b = rng.integers(7, size=40), rng.integers(9, size=40)

    def plain(x, y):
        row = list(range(len(y) + 1))
        for i, u in enumerate(x, 1):
            before, row = row, [i]
            for j, v in enumerate(y, 1):
                row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (u != v)))
        return row[-1]

    wanted = [plain(x[:m], y[:n]) for x, y, m, n in zip(left, right, a, b, strict=True)]
    assert edit_distances(left, a, right, b).tolist() == wanted
    assert edit_distances(left[:, :0], a * 0, right, b).tolist() == b.tolist()


def test_the_answer_is_the_one_of_least_expected_error():
    def one(ids, network, joint, **options):
        return Candidate(Said(tuple(ids), network, network, **options), joint)

    # The most probable one is far from all others, which are alike.
    far = one([9, 9, 9, 9], np.log(0.4), 0.0)
    alike = [
        one([1, 2, 3], np.log(0.25), 0.0),
        one([1, 2, 4], np.log(0.2), 0.0),
        one([1, 2], np.log(0.15), 0.0),
    ]
    endless = one([9], 1.0, 0.0, has_ended=False)
    tilted = [one([1], -1.0, -1.0), one([2, 2, 2], -1.5, 0.0)]
    best = choose_among([[far, *alike, endless], tilted, [endless]], 1.0)
    assert [c.ids for c in best] == [(1, 2, 3), (2, 2, 2), (9,)]
    assert choose_among([tilted], 0.1)[0].ids == (1,)


def test_rescored_answers_are_better_and_stored(fitted):
    translator, run = fitted
    assert translator.settings_.joint
    assert translator.rescoring_.weight in rescoring.WEIGHTS
    assert any(note.startswith("answers are rescored by joint n-grams, weight") for note in translator.notes_)
    scores = translator.metrics_
    assert scores["baselines"]["joint_ngrams"]["token_error_rate"] < 0.05
    assert scores["model"]["lstm"]["token_error_rate"] < 0.3
    others = [*words(30, seed=7), "qat", "", "q"]
    again = ot.load(run)
    assert again.predict(others) == translator.predict(others)
    assert again.evaluate(others[:30], [sounds(w) for w in others[:30]])["baselines"].keys() >= {
        "joint_ngrams"
    }
    own = translator.rescoring_.ngrams.say(translator.preparation_, others)
    assert [" ".join(u for p in a.pieces for u in p.second) for a in translator.translate(others)] == own
    together = translator.translate(others, attention=True)
    assert [one.text for one in together] == translator.predict(others)
    for one in together:
        (alone,) = translator.translate([one.source])
        assert alone.text == one.text
        for piece, other in zip(one.pieces, alone.pieces, strict=True):
            assert piece.weights.shape == (len(piece.target), len(piece.source))
            np.testing.assert_allclose(piece.weights.sum(axis=1), 1, atol=1e-5)
            assert piece.score == pytest.approx(other.score, rel=1e-3)
    assert together[-2].text == ""


def test_probabilities_of_told_answers_are_those_of_the_beam(fitted):
    translator, _ = fitted
    search = translator._search(8)
    encoded = translator.preparation_.encode(words(20, seed=3))
    with torch.no_grad():
        for _, memory, decoded in rescoring.beams(
            translator.network_, encoded, search, translator.limits_, attends=True, n_best=8
        ):
            told = [
                rescoring._Missing(i, ids, ids, 0.0)
                for i in range(len(decoded.tokens)) for k in range(8) if decoded.ended[i, k]
                for ids in [tuple(decoded.tokens[i, k, : decoded.lengths[i, k]].tolist())]
            ]  # fmt: skip
            preparation = translator.preparation_
            of_beam = {said.ids: said for said in found_by(decoded, 0, preparation, search)}
            for i, one in rescoring._of_joint(memory, told, encoded.end, preparation, search, attends=True):
                if i == 0:
                    beam = of_beam[one.said.ids]
                    assert one.said.log_p == pytest.approx(beam.log_p, abs=1e-3)
                    assert one.said.score == pytest.approx(beam.score, abs=1e-3)
                    n = len(one.said.ids)
                    np.testing.assert_allclose(one.said.weights[:n], beam.weights[:n], atol=1e-4)


def test_a_greedy_answer_is_that_of_the_network(fitted):
    translator, _ = fitted
    others = words(30, seed=8)
    alone = dataclasses.replace(translator)
    alone.__dict__.update({name: value for name, value in translator.__dict__.items() if name.endswith("_")})
    alone.rescoring_ = None
    assert alone.predict(others, beam=1) == translator.predict(others, beam=1)
    assert alone.predict(others) != translator.predict(others)


def test_without_a_good_weight_answers_are_the_network_s(monkeypatch):
    spelled = words(150)
    told = [sounds(word) for word in spelled]
    plain = ot.Translator(**SMALL, joint=False).fit(spelled, told)
    assert plain.rescoring_ is None
    monkeypatch.setattr(rescoring, "WEIGHTS", (0.0,))
    monkeypatch.setattr(rescoring, "choose_among", lambda lists, weight: [one[0].said for one in lists])
    dropped = ot.Translator(**SMALL, joint=True).fit(spelled, told)
    assert dropped.rescoring_ is None
    assert dropped.notes_[-1].startswith("joint n-grams are not used: token error rate")
    assert dropped.metrics_ == plain.metrics_
    others = words(30, seed=8)
    assert dropped.predict(others) == plain.predict(others)


def test_they_are_chosen_where_they_suit(made, monkeypatch):
    _, preparation = made
    inputs = preparation.encode(["abc"] * 30, ["AE1 B K"] * 30)
    assert not joining.suits(inputs)
    monkeypatch.setattr(joining, "LEAST_PAIRS", 30)
    assert joining.suits(inputs)
    assert not joining.suits(inputs, 50)
    assert not joining.suits(preparation.encode(["abc"] * 30, ["B " * 7] * 30))
    assert not joining.suits(preparation.encode(["abc" * 30] * 30, ["B"] * 30))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"joint": 3}, "joint is 3, expected True, False or None"),
        ({"joint": True, "beam": 1}, "joint=True does not go with beam=1"),
        ({"joint": True, "unit": "word"}, "joint=True needs units of char or symbol on both sides"),
        ({"joint": True, "unit": "char"}, "no pair of known units"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ot.Translator(**SMALL, **options).fit(["ab", "bc", "cd"] * 5, ["abcde abc", "bcdef", "xyzuv"] * 5)


def test_a_summarizer_has_none():
    with pytest.raises(InputError, match="joint=True does not go with a summarizer"):
        ot.Summarizer(**SMALL, joint=True).fit(["ab"] * 5, ["ab"] * 5)
