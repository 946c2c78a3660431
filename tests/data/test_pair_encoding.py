"""Pairs to numbers and back: starts and ends, padding, words that are copied, one vocabulary or two."""

import dataclasses
import json

import numpy as np
import pytest

from ostinato.data.pair_encoding import FIRST_PART, START, PairPreparation
from ostinato.data.vocabulary import UNKNOWN
from ostinato.errors import InputError, RunFolderError

SOURCES = ["the red dog", "the old Zorro met Zorro and Ana", "a dog"]
TARGETS = ["dog", "Zorro met Ana", "a dog"]


def words(**options):
    given = {"units": ("word", "word"), "shared": True, "size": 100, "minimum_count": 2, **options}
    return PairPreparation.fit(SOURCES, TARGETS, **given)


def test_a_batch_has_starts_ends_and_zeros_in_the_padding():
    preparation = words(minimum_count=1)
    encoded = preparation.encode(SOURCES, TARGETS)
    assert len(encoded) == 3
    batch = encoded.batch([0, 1])
    assert batch.source.shape == (2, 7)
    assert batch.source_lengths.tolist() == [3, 7]
    assert batch.source[0, 3:].tolist() == [0] * 4
    assert batch.target_lengths.tolist() == [2, 4]
    assert batch.target_in[:, 0].tolist() == [START, START]
    assert batch.target_out[0].tolist() == [
        *preparation.target_vocabulary.ids(["▁dog"]),
        preparation.end,
        0,
        0,
    ]
    assert batch.target_in[1, 1:].tolist() == batch.target_out[1, :-1].tolist()
    assert batch.target_out[1, -1] == preparation.end == preparation.target_size - 1
    assert preparation.source_size == preparation.target_size
    assert encoded.lengths.tolist() == [4, 10, 4]
    for text, row in zip(TARGETS, encoded.batch([0, 1, 2]).target_out.tolist(), strict=True):
        assert preparation.text_of(row) == text
    assert "target_in" not in preparation.encode(SOURCES).batch([0])


def test_words_that_the_vocabulary_lacks_are_numbered_in_their_source():
    preparation = words(copies=True)
    V = preparation.target_size
    known = preparation.target_vocabulary
    assert "▁red" not in known
    assert "▁Zorro" in known
    encoded = preparation.encode(["Odo and Iris met Odo", "the dog"], ["Iris met Odo Zed", "Odo dog"])
    batch = encoded.batch([0, 1])
    met = known.id("▁met")
    # Odo, and, Iris are new in the order in which they come.
    assert batch.source_extended[0].tolist() == [V, V + 1, V + 2, met, V]
    assert batch.extra.tolist() == [3, 0]
    assert batch.source[0].tolist() == [1, 1, 1, met, 1]
    assert batch.target_out[0].tolist() == [V + 2, met, V, UNKNOWN, preparation.end]
    assert batch.target_in[0].tolist() == [START, 1, met, 1, 1]
    # What the other source has is not to be copied from this one.
    assert batch.target_out[1].tolist()[:2] == [UNKNOWN, known.id("▁dog")]
    assert preparation.text_of(batch.target_out[0].tolist(), encoded.extra[0]) == "Iris met Odo"


def test_sides_may_differ_and_long_sources_are_cut():
    preparation = PairPreparation.fit(
        ["cat", "at"], ["K AE1 T", "AE1 T"], units=("char", "symbol"), shared=False, size=50
    )
    assert (preparation.source_size, preparation.target_size) == (5, 6)
    assert not preparation.shared
    encoded = preparation.encode(["cataract", "t"], most_source=3)
    assert encoded.source_lengths.tolist() == [3, 1]
    assert encoded.shortened == 1
    assert preparation.encode(["dog"]).batch([0]).source.tolist() == [[1, 1, 1]]
    with pytest.raises(InputError, match="a shared vocabulary needs the same units"):
        PairPreparation.fit(["a"], ["b"], units=("char", "word"), shared=True, size=9)
    with pytest.raises(InputError, match="copying needs the same units"):
        PairPreparation.fit(["a"], ["b"], units=("char", "word"), shared=False, size=9, copies=True)


@pytest.mark.parametrize("shared", [True, False])
def test_storage_gives_the_same_numbers(shared):
    preparation = words(units=("bpe", "bpe"), shared=shared, size=280, copies=True)
    again = PairPreparation.from_json(json.loads(json.dumps(preparation.to_json())))
    assert again.shared == shared
    rows = np.arange(3)
    for one, other in zip(
        preparation.encode(SOURCES, TARGETS).batch(rows).values(),
        again.encode(SOURCES, TARGETS).batch(rows).values(),
        strict=True,
    ):
        assert one.equal(other)
    with pytest.raises(RunFolderError, match="damaged"):
        PairPreparation.from_json({"source": None, "target": None, "copies": False})


def test_rare_words_are_unknown_and_are_never_said():
    preparation = words()
    ids = preparation.target_vocabulary.ids(["▁dog", "▁red"])
    assert ids[1] == UNKNOWN
    assert preparation.text_of([0, *ids, preparation.end]) == "dog"
    assert np.all(preparation.encode([""]).source_lengths == 0)


def test_parts_take_the_place_of_units():
    plain = PairPreparation.fit(
        ["xa", "ha"], ["K S A", "A"], units=("char", "symbol"), shared=False, size=100
    )
    k, s, a = plain.target_vocabulary.ids(["K", "S", "A"])
    preparation = dataclasses.replace(plain, parts=((), (a,), (k, s)))
    silent, one, two = (FIRST_PART + i for i in range(3))
    assert (plain.output_size, preparation.output_size) == (plain.target_size, FIRST_PART + 3)
    rows = [[(k, s), (a,)], [(), (a,)], None, [(s,), (a,)]]
    encoded = preparation.in_parts(plain.encode(["xa", "ha", "a", "xa"], ["K S A", "A", "", "S A"]), rows)
    assert len(encoded) == 2  # one was not cut, and no part is S alone
    batch = encoded.batch([1, 0])
    assert batch.target_in.tolist() == [[START, silent], [START, two]]
    assert batch.target_out.tolist() == [[silent, one], [two, one]]
    assert batch.target_lengths.tolist() == batch.source_lengths.tolist() == [2, 2]
    assert preparation.said_for([(k, s), ()]) == (two, silent)
    assert preparation.said_for([(s,)]) is None
    assert preparation.ids_of([START, two, silent, one]) == (k, s, a)
    assert preparation.units_of(preparation.ids_of([two, one])) == ["K", "S", "A"]
    assert plain.ids_of([a, k]) == (a, k)
    again = PairPreparation.from_json(json.loads(json.dumps(preparation.to_json())))
    assert again.parts == preparation.parts
    assert PairPreparation.from_json(plain.to_json()).parts is None
    asked = preparation.encode_units([["x"], []])
    assert (asked.is_aligned, asked.end) == (True, preparation.output_size)
