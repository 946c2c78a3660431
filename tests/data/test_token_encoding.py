"""The preparation of tokens: what is fitted, what a batch holds, and the same numbers in prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ostinato.data.examples import Sentence, Tree
from ostinato.data.token_encoding import MAX_CHARACTERS, TokenPreparation
from ostinato.data.vocabulary import UNKNOWN
from ostinato.data.word_vectors import WordVectors
from ostinato.errors import DataError, InputError, RunFolderError

SENTENCES = [
    ["The", "cat", "sat", "on", "the", "mat", "."],
    ["Dogs", "sat", "."],
    ["THE", "dog", "ran", "1999", "miles", ",", "the", "cat", "2024"],
    ["a"],
]


def _again(preparation):
    return TokenPreparation.from_json(json.loads(json.dumps(preparation.to_json())))


def _is_same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_holds_what_it_says():
    preparation = TokenPreparation.fit(SENTENCES)
    encoded = preparation.encode(SENTENCES)
    assert len(encoded) == 4
    assert encoded.lengths.tolist() == [7, 3, 9, 1]
    batch = encoded.batch([1, 0])
    assert batch.size == 2
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "words": (2, 7), "lengths": (2,), "spelled": (2, 7),
        "spellings": (9, 4), "spelling_lengths": (9,), "shapes": (9, 6),
    }  # fmt: skip
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert (batch.words[0, 3:] == 0).all()
    words = preparation.words
    assert batch.words[1, 0] == batch.words[1, 4] == words.id("the")
    assert batch.spelled[1, 0] != batch.spelled[1, 4]
    # The padding is a spelling of its own, without characters.
    padding = batch.spelled[0, 3]
    assert batch.spelling_lengths[padding] == 0
    assert not batch.spellings[padding].any()
    assert not batch.shapes[padding].any()
    cat = batch.spelled[1, 1]
    assert preparation.characters is not None
    assert batch.spellings[cat, :3].tolist() == preparation.characters.ids("cat")
    assert words.id("0000") > UNKNOWN
    assert preparation.word_counts[words.id("the")] == 4


def test_each_sentence_of_a_batch_is_as_it_is_alone():
    preparation = TokenPreparation.fit(SENTENCES)
    encoded = preparation.encode(SENTENCES)
    together = encoded.batch([2, 0, 3])
    for row, index in enumerate([2, 0, 3]):
        alone = preparation.encode([SENTENCES[index]]).batch([0])
        T = int(alone.lengths[0])
        assert together.words[row, :T].tolist() == alone.words[0].tolist()
        one, other = together.spelled[row, :T], alone.spelled[0]
        assert torch.equal(together.shapes[one], alone.shapes[other])
        C = alone.spellings.shape[1]
        assert torch.equal(together.spellings[one][:, :C], alone.spellings[other])
        assert not together.spellings[one][:, C:].any()


def test_prediction_sees_the_same_numbers_from_json():
    new = [["The", "unseen", "catfish", "sat", "on", "2001", "\u00fcber", ""], []]
    for options in ({}, {"characters": False}, {"shapes": False}, {"lowercase": False, "minimum_count": 2}):
        preparation = TokenPreparation.fit(SENTENCES, **options)
        again = _again(preparation)
        assert again.sizes == preparation.sizes
        for rows in ([0, 1], [1]):
            assert _is_same(preparation.encode(new).batch(rows), again.encode(new).batch(rows))


def test_the_order_of_the_training_part_does_not_matter():
    assert TokenPreparation.fit(SENTENCES).to_json() == TokenPreparation.fit(SENTENCES[::-1]).to_json()


def test_empty_sentences_and_endless_words():
    preparation = TokenPreparation.fit([["a" * 1000, "b"], []])
    batch = preparation.encode([[], ["a" * 500 + "b" * 500]]).batch([0, 1])
    assert batch.lengths.tolist() == [0, 1]
    assert batch.spelling_lengths.max() == MAX_CHARACTERS
    empty = preparation.encode([[]]).batch([0])
    assert empty.words.tolist() == [[0]]
    assert empty.lengths.tolist() == [0]


def test_a_line_of_a_hundred_thousand_words():
    text = "word " * 100_000
    preparation = TokenPreparation.fit([text])
    batch = preparation.encode([text]).batch([0])
    assert batch.words.shape == (1, 100_000)
    assert batch.spellings.shape == (1, 4)


def test_more_than_the_budget_lies_on_disk_and_is_the_same(monkeypatch):
    monkeypatch.setattr("ostinato.data.ragged._CHUNK", 8)
    sentences = [Sentence(words, {"tag": words[::-1]}) for words in SENTENCES]
    preparation = TokenPreparation.fit(iter(sentences), columns=["tag"])
    kept, spilled = preparation.encode(sentences), preparation.encode(iter(sentences), budget_bytes=0)
    assert spilled.rows.is_on_disk
    assert not kept.rows.is_on_disk
    assert _is_same(kept.batch([3, 2, 1]), spilled.batch([3, 2, 1]))


def test_further_columns():
    sentences = [
        Sentence(("a", "b"), {"pos": ("N", "V"), "x": ("1", "2")}),
        Sentence(("c",), {"x": ("1",), "pos": ("N",)}),
    ]
    preparation = TokenPreparation.fit(sentences, columns=["x", "pos"])
    assert preparation.sizes["columns"] == [4, 4]
    batch = _again(preparation).encode(sentences).batch([1, 0])
    assert batch["columns"].tolist() == [[[2, 2], [0, 0]], [[2, 2], [3, 3]]]
    unknown = preparation.encode([Sentence(("a",), {"x": ("9",), "pos": ("V",)})]).batch([0])
    assert unknown["columns"].tolist() == [[[UNKNOWN, 3]]]
    with pytest.raises(InputError, match=r"no column 'pos'; its columns: 'x'"):
        preparation.encode([Sentence(("a",), {"x": ("1",)})])


def test_texts_by_words_and_by_characters():
    texts = ["Don't go.", "It goes on"]
    words = TokenPreparation.fit(texts)
    assert words.split("Don't") == ["Do", "n't"]
    assert words.encode(texts).lengths.tolist() == [4, 3]
    letters = TokenPreparation.fit(["ACGT", "GATN"], unit="char")
    assert letters.sizes == {"words": 7, "vectors": [0, 0], "characters": 0, "shapes": [], "columns": []}
    batch = letters.encode(["TAX", "a"]).batch([0, 1])
    assert sorted(batch) == ["lengths", "words"]
    assert batch.words[0, 2] == batch.words[1, 0] == UNKNOWN
    tree = Tree(("a", "b"), ((), (), (0, 1)), (None, None, "x"))
    assert words.encode([tree]).lengths.tolist() == [2]


def test_byte_pairs_know_every_text():
    texts = ["the cat sat on the mat", "the dogs sat on the cats"] * 3
    preparation = TokenPreparation.fit(texts, unit="bpe", maximum_size=280)
    again = _again(preparation)
    for text in ["the cats", "\u00fcnk\u00f6wn \u6771 \ud800", "", "  x"]:
        assert again.split(text) == preparation.split(text)
    assert preparation.split("the cat") == ["\u0120the", "\u0120cat"]
    assert preparation.to_json() == TokenPreparation.fit(texts, unit="bpe", maximum_size=280).to_json()
    with pytest.raises(InputError, match="two passes"):
        TokenPreparation.fit(iter(texts), unit="bpe")


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="known: word, char, bpe"):
        TokenPreparation.fit(["a"], unit="syllable")
    with pytest.raises(InputError, match="maximum_size=0"):
        TokenPreparation.fit(["a"], maximum_size=0)
    with pytest.raises(InputError, match="size=100, expected at least 256"):
        TokenPreparation.fit(["a"], unit="bpe", maximum_size=100)
    with pytest.raises(InputError, match="no token at all"):
        TokenPreparation.fit(["", " "])
    for unit in ("char", "bpe"):
        with pytest.raises(InputError, match="splits texts, found tokens"):
            TokenPreparation.fit(SENTENCES, unit=unit)
    preparation = TokenPreparation.fit(["abc"], unit="char")
    with pytest.raises(InputError, match="splits texts, found tokens"):
        preparation.encode([["a"]])


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"format": None}, {"words": 3}, {"shapes": None}, {"columns": []}]
)
def test_stored_values_that_are_not_a_preparation(change):
    stored = TokenPreparation.fit(SENTENCES).to_json()
    with pytest.raises(RunFolderError):
        TokenPreparation.from_json(stored | change)
    missing = {name: value for name, value in stored.items() if name != "characters"}
    with pytest.raises(RunFolderError, match="characters"):
        TokenPreparation.from_json(missing)


def test_words_of_the_vectors_that_training_lacks_have_ids(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("3 2\nCat 1 2\nzebra 3 4\nlion 5 6\n")
    preparation = TokenPreparation.fit(SENTENCES, vectors=WordVectors(path, extra=1))
    V = len(preparation.words)
    assert preparation.sizes["vectors"] == [V + 1, 2]
    assert preparation.vectors is not None
    assert preparation.vectors[preparation.words.id("cat")].tolist() == [1, 2]
    assert preparation.vectors[V].tolist() == [3, 4]
    again = _again(preparation)
    assert again.sizes == preparation.sizes
    for one in (preparation, again):
        assert one.encode([["ZEBRA", "lion"]]).batch([0]).words.tolist() == [[V, UNKNOWN]]


def test_vectors_of_another_language(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("x 1\n")
    with pytest.raises(DataError, match="none of its words"):
        TokenPreparation.fit(SENTENCES, vectors=WordVectors(path))


def test_rows_may_be_arrays():
    encoded = TokenPreparation.fit(SENTENCES).encode(SENTENCES)
    assert _is_same(encoded.batch(np.array([1, 2])), encoded.batch([1, 2]))
