"""Documents: how texts are split and cut, given sentences, nested series, batches."""

import numpy as np
import pytest

from ostinato.data.documents import DocumentLimits, NestedSeries, encode_documents, sentences_of
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError, SizeError


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two!  Three?", ["One.", "Two!", "Three?"]),
        ("Dr. No met J. Bond. They talked", ["Dr. No met J. Bond.", "They talked"]),
        ("A title\n\nA text", ["A title", "A text"]),
        (
            "It has:\n * speed\n * size\n 1. order\nand more",
            ["It has:", "* speed", "* size", "1. order\nand more"],
        ),
        ("wrapped\nline. Next", ["wrapped\nline.", "Next"]),
        (" \n\n ", []),
        ("", []),
    ],
)
def test_texts_are_split_into_sentences(text, sentences):
    assert sentences_of(text) == sentences


def test_lines_can_be_sentences_and_lists_are_taken_as_they_are():
    assert sentences_of("One. Two\n\nThree", splitter="lines") == ["One. Two", "Three"]
    assert sentences_of("One. Two\nThree", splitter="none") == ["One. Two\nThree"]
    assert sentences_of(["One. Two", " ", "Three"]) == ["One. Two", "Three"]
    assert sentences_of([["a", "b"], [], ["c"]]) == [["a", "b"], ["c"]]


def test_long_sentences_go_on_and_long_documents_lose_their_middle():
    preparation = TokenPreparation.fit(["a b c d e f g"])
    limits = DocumentLimits(max_words=3, max_sentences=4)
    cut, lost = limits.words_of(preparation, [list("abcdefg"), ["h"]])
    assert cut == [["a", "b", "c"], ["d", "e", "f"], ["g"], ["h"]]
    assert lost == 0
    cut, lost = limits.words_of(preparation, [[c] for c in "abcdefg"])
    assert cut == [["a"], ["b"], ["f"], ["g"]]
    assert lost == 3
    encoded = encode_documents(preparation, [[[c] for c in "abcdefg"], "a b"], limits)
    assert encoded.shortened == 1


def test_a_batch_holds_the_sentences_of_its_documents():
    documents = ["a b! C d e", "", "f", [["x"], ["a", "b", "c"]]]
    preparation = TokenPreparation.fit(["a b ! c d e f"])
    encoded = encode_documents(preparation, documents)
    assert encoded.counts.tolist() == [2, 0, 1, 2]
    assert encoded.lengths.tolist() == [6, 0, 1, 4]
    batch = encoded.batch([3, 1, 0])
    assert batch.sentence_counts.tolist() == [2, 0, 2]
    assert batch.lengths.tolist() == [1, 3, 3, 3]
    alone = encoded.batch([0])
    assert batch.words[2:, :3].tolist() == alone.words.tolist()


def test_nested_series_are_flat_in_a_batch():
    rng = np.random.default_rng(0)
    rows = [[rng.normal(size=(n, 3)) for n in lengths] for lengths in ([2, 5], [], [1, 0, 3])]
    series = NestedSeries(rows)
    assert series.lengths.tolist() == [7, 0, 4]
    batch = series.batch([2, 0, 1])
    assert batch.sentence_counts.tolist() == [3, 2, 0]
    assert batch.lengths.tolist() == [1, 0, 3, 2, 5]
    assert tuple(batch.x.shape) == (5, 5, 3)
    np.testing.assert_allclose(batch.x[4], rows[0][1], rtol=1e-6)
    assert not batch.x[3, 2:].any()
    assert tuple(NestedSeries([[[1.0, 2.0], [3.0]]]).batch([0]).x.shape) == (2, 2, 1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="splitter='words' is unknown; known: sentences, lines, none"):
        DocumentLimits(splitter="words")
    with pytest.raises(InputError, match="max_words=0"):
        DocumentLimits(max_words=0)
    with pytest.raises(InputError, match="a document is int"):
        sentences_of(3)
    with pytest.raises(SizeError, match="row 1 has vectors of width 3"):
        NestedSeries([[np.zeros((2, 2))], [np.zeros((1, 3))]])
    with pytest.raises(InputError, match="row 0, inner sequence 1 has a value that is not finite"):
        NestedSeries([[[1.0], [np.nan]]])
    with pytest.raises(SizeError, match=r"shape \(1, 1, 1\)"):
        NestedSeries([[np.zeros((1, 1, 1))]])
    with pytest.raises(InputError, match="no inner sequence"):
        NestedSeries([[], []])
