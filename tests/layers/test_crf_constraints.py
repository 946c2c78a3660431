"""Schemes of span tags: what may follow what, how they are read, mended and spelled anew."""

import itertools

import pytest

from ostinato.errors import InputError
from ostinato.layers.crf_constraints import (
    SCHEMES,
    Constraints,
    constraints_for,
    infer_scheme,
    respell,
    spans,
)

TAGS = {
    "bio": ("O", "B-x", "I-x", "B-y", "I-y"),
    "iob1": ("O", "I-x", "B-x", "I-y", "B-y"),
    "bioes": ("O", "B-x", "I-x", "E-x", "S-x", "S-y"),
    "bilou": ("O", "B-x", "I-x", "L-x", "U-x", "U-y"),
}


@pytest.mark.parametrize("scheme", list(TAGS))
def test_a_path_is_allowed_exactly_if_its_spans_are_spelled_that_way(scheme):
    """Over every sequence of up to four tags: the rules agree with reading and spelling again."""
    tags = TAGS[scheme]
    constraints = constraints_for(tags, scheme)
    for T in range(5):
        for path in itertools.product(range(len(tags)), repeat=T):
            words = [tags[tag] for tag in path]
            assert (constraints.violations(path) == 0) == (respell(words, scheme) == words), words


@pytest.mark.parametrize("scheme", list(TAGS))
def test_spelling_in_any_scheme_keeps_the_spans(scheme):
    found = [("x", 0, 1), ("x", 1, 3), ("y", 3, 4), ("x", 5, 8)]
    spelled = respell(["B-x", "B-x", "I-x", "B-y", "O", "I-x", "I-x", "I-x", "O"], scheme)
    assert spans(spelled) == found
    assert all(spans(respell(spelled, other)) == found for other in TAGS)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O I-x I-y O", [("x", 1, 2), ("y", 2, 3)]),
        ("I-x B-x I-x", [("x", 0, 1), ("x", 1, 3)]),
        ("E-x I-x O", [("x", 0, 1), ("x", 1, 2)]),
        ("B-x S-x E-x", [("x", 0, 1), ("x", 1, 2), ("x", 2, 3)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
        ("B- I- O", [("", 0, 2)]),
        ("", []),
    ],
)
def test_spans_are_read_as_conlleval_reads_them(tags, found):
    assert spans(tags.split()) == found


def test_spans_equal_those_of_seqeval():
    entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    tags = ("O", "B-x", "I-x", "E-x", "S-x", "I-y")
    for path in itertools.product(tags, repeat=4):
        assert spans(path) == [(kind, first, last + 1) for kind, first, last in entities(list(path))]


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["B-x I-x O", "O B-y"], "bio"),
        (["I-x I-x O", "O I-y B-y"], "iob1"),
        (["B-x I-x O"] * 9 + ["O I-x"], "bio"),
        (["B-x E-x O", "S-y"], "bioes"),
        (["B-x L-x O", "U-y"], "bilou"),
        (["NN VB", "DT"], "none"),
        (["B-x LOC"], "none"),
        (["B-x E-x U-x"], "none"),
        (["I-x E-x O E-x"], "none"),
        (["O O"], "none"),
        ([], "none"),
    ],
)
def test_the_scheme_is_seen_from_the_tags(rows, scheme):
    assert infer_scheme([row.split() for row in rows]) == scheme


def test_mixing_steps():
    assert constraints_for(TAGS["bio"], "bio").mixing_steps() == 2
    assert constraints_for(TAGS["iob1"], "iob1").mixing_steps() == 2
    assert constraints_for(TAGS["bioes"], "bioes").mixing_steps() == 2
    two_types = tuple(f"{letter}-{kind}" for letter in "BIES" for kind in "xy")
    assert constraints_for(("O", *two_types), "bioes").mixing_steps() == 3
    # I-y cannot be reached without B-y, and does not count.
    assert constraints_for(("O", "B-x", "I-x", "I-y"), "bio").mixing_steps() == 2
    alternating = Constraints(((False, True), (True, False)), (True, True), (True, True))
    assert alternating.mixing_steps() is None


def test_every_scheme_is_known_and_others_are_refused():
    assert constraints_for(("a", "b"), "none") is None
    for scheme in SCHEMES[1:]:
        assert constraints_for(TAGS[scheme], scheme).num_tags == len(TAGS[scheme])
    with pytest.raises(InputError, match="'iob3' is unknown; known: 'none', 'bio'"):
        constraints_for(("O",), "iob3")
    with pytest.raises(InputError, match="'none' is unknown; known: 'bio'"):
        respell(["O"], "none")
    with pytest.raises(InputError, match="tag 'E-x' is not of the scheme 'bio', which knows O, B-TYPE"):
        constraints_for(("O", "E-x"), "bio")
    with pytest.raises(InputError, match="start has 2 tags, end 1, transitions 2 rows of"):
        Constraints(((True, True), (True, True)), (True, True), (True,))
