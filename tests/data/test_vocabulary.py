"""Ids of words: their order, what is unknown, and what is stored."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from ostinato.data.vocabulary import FIRST_ID, PADDING, UNKNOWN, Vocabulary
from ostinato.errors import InputError, RunFolderError


def test_frequent_first_then_by_code_points_whatever_the_order_of_counting():
    words = ["b", "a", "c", "c", "b", "d", "é", "Z"]
    one = Vocabulary.fit(Counter(words))
    assert one.entries == ("b", "c", "Z", "a", "d", "\u00e9")
    assert one == Vocabulary.fit(Counter(reversed(words)))
    assert one.counts.tolist() == [0, 0, 2, 2, 1, 1, 1, 1]
    assert len(one) == 8
    assert one.ids(["b", "x", "\u00e9"]) == [FIRST_ID, UNKNOWN, 7]
    assert one.entry(FIRST_ID) == "b"


def test_rare_words_and_those_beyond_the_maximum_are_unknown():
    counts = Counter("aaabbbccd")
    rare = Vocabulary.fit(counts, minimum_count=2)
    assert rare.entries == ("a", "b", "c")
    assert rare.counts.tolist() == [0, 1, 3, 3, 2]
    assert Vocabulary.fit(counts, maximum_size=1).counts.tolist() == [0, 6, 3]


def test_no_text_of_the_data_is_taken_for_the_special_ids():
    vocabulary = Vocabulary.fit(Counter(["", "<unk>", "<pad>", "\ud800"]))
    assert {PADDING, UNKNOWN}.isdisjoint(vocabulary.ids(["", "<unk>", "<pad>", "\ud800"]))


def test_json_reads_back_also_what_utf8_cannot_write():
    vocabulary = Vocabulary.fit(Counter(["a", "\n", "\ud800", "a", "東"]), minimum_count=1)
    stored = json.loads(json.dumps(vocabulary.to_json()))
    assert Vocabulary.from_json(stored) == vocabulary


@pytest.mark.parametrize(
    "change",
    [{"entries": None}, {"entries": [1, 2]}, {"counts": [1]}, {"entries": ["a", "a"], "counts": [1, 1]}],
)
def test_damaged_json_is_named(change):
    stored = Vocabulary.fit(Counter("ab")).to_json() | change
    with pytest.raises(RunFolderError, match="damaged"):
        Vocabulary.from_json(stored)


def test_wrong_questions_are_refused():
    vocabulary = Vocabulary.fit(Counter("ab"))
    for number in (-1, PADDING, UNKNOWN, 4):
        with pytest.raises(InputError, match="has no text"):
            vocabulary.entry(number)
    with pytest.raises(InputError, match="minimum_count=0"):
        Vocabulary.fit(Counter("ab"), minimum_count=0)
