"""From sources to answers: batches, limits, pieces of long sources, attention."""

import numpy as np
import pytest
import torch

from ostinato.data.pair_encoding import PairPreparation
from ostinato.models.seq2seq import EncoderDecoder
from ostinato.tasks.translate.answers import Limits, Search, answer, pieces_of

SOURCES = ["a b. c", "d", "", "b b b a", "c d e a b d e", "e"]


@pytest.fixture(scope="module")
def made():
    """An untrained network with its preparation, and its limits."""
    preparation = PairPreparation.fit(
        SOURCES, SOURCES[:2] * 3, units=("word", "word"), shared=True, size=50, copies=True
    )
    torch.manual_seed(0)
    network = EncoderDecoder(
        preparation.source_size,
        preparation.target_size,
        embedding_size=6,
        hidden_size=8,
        tie="all",
        copying=True,
    )
    return network.eval(), preparation, Limits(20, 12, 1.5)


def said(made, sources, **options):
    network, preparation, limits = made
    cuts = options.pop("cuts", False)
    attends = options.pop("attends", False)
    return answer(network, preparation, sources, Search(**options), limits, cuts=cuts, attends=attends)


def test_a_batch_is_answered_as_one_by_one(made):
    together = said(made, SOURCES, beam=3)
    assert [one.source for one in together] == SOURCES
    assert together[2].text == ""
    assert together[2].pieces == []
    for source, one in zip(SOURCES, together, strict=True):
        (alone,) = said(made, [source], beam=3)
        assert alone.text == one.text
        for mine, theirs in zip(alone.pieces, one.pieces, strict=True):
            assert mine.score == pytest.approx(theirs.score, rel=1e-4)
    assert said(made, []) == []


def test_a_beam_may_be_larger_than_the_vocabulary(made):
    assert len(said(made, SOURCES, beam=200)) == len(SOURCES)


def test_attention_has_a_row_for_each_unit_of_the_answer(made):
    for one in said(made, SOURCES, attends=True):
        for piece in one.pieces:
            assert piece.weights.shape == (len(piece.target), len(piece.source))
            assert np.allclose(piece.weights.sum(axis=1), 1, atol=1e-5)
    assert said(made, SOURCES)[0].pieces[0].weights is None


def test_answers_are_limited_by_what_training_has_seen(made):
    limits = Limits.of(np.array([4, 8]), np.array([2, 8]), 50)
    assert limits.of_answer(np.array([2, 1000])).tolist() == [12, 22]
    for one in said(made, SOURCES, no_repeat_ngram=2):
        for piece in one.pieces:
            grams = list(zip(piece.target, piece.target[1:], strict=False))
            assert len(set(grams)) == len(grams)
            assert len(piece.target) <= made[2].of_answer(np.array([len(piece.source)]))[0]


def test_long_sources_go_in_pieces_that_end_with_sentences_or_words():
    units = ["▁a", "b", ".", "▁c", "▁d", "e", "▁f", "g", "h", "i", "j", "k", "l"]
    pieces = list(pieces_of(units, 4))
    assert pieces == [units[:3], units[3:6], units[6:10], units[10:]]
    assert list(pieces_of(units[:4], 4)) == [units[:4]]
    assert list(pieces_of([], 4)) == [[]]


def test_a_very_long_source_is_answered(made):
    long = " ".join(["a b c."] * 100)
    (whole,) = said(made, [long], beam=2)
    assert len(whole.pieces) == 20
    assert sum(len(piece.source) for piece in whole.pieces) == 400
    (begun,) = said(made, [long], beam=2, cuts=True)
    assert len(begun.pieces) == 1
    assert len(begun.pieces[0].source) == 20
