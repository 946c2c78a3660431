import random

import pytest

from ostinato.tasks.labels.spans import TagSpelling, span_scores, tag_accuracy

ROWS = {
    "bio": [["B-NP", "I-NP", "O", "B-VP"], [], ["O", "B-NP", "B-NP"]],
    "iob1": [["I-NP", "I-NP", "B-NP", "O", "I-VP"]],
    "bioes": [["B-NP", "I-NP", "E-NP"], ["O", "S-VP"]],
    "bilou": [["B-NP", "I-NP", "L-NP"], ["O", "U-VP"]],
    "none": [["NOUN", "VERB", "O"]],
}
BARE = {"bio": [["B", "I", "O", "B"]], "bioes": [["B", "M", "E", "S"], ["B", "E"]]}


@pytest.mark.parametrize("scheme", ROWS)
def test_the_scheme_is_told_from_the_tags_and_what_was_learned_is_written_in_it(scheme):
    spelling = TagSpelling.infer(ROWS[scheme])
    assert spelling.scheme == scheme
    assert spelling.learned == ("bioes" if scheme == "bio" else scheme)
    assert [spelling.from_learned(spelling.to_learned(row)) for row in ROWS[scheme]] == ROWS[scheme]


@pytest.mark.parametrize("scheme", BARE)
def test_bare_letters_are_spans_of_one_type(scheme):
    spelling = TagSpelling.infer(BARE[scheme])
    assert (spelling.scheme, spelling.is_bare) == (scheme, True)
    assert [spelling.from_learned(spelling.to_learned(row)) for row in BARE[scheme]] == BARE[scheme]


@pytest.mark.parametrize("rows", [[["O", "O"]], [["I", "O"]], [["B-NP", "X-NP"]], [["B", "N"]], []])
def test_what_is_no_span_stays_as_it_is(rows):
    spelling = TagSpelling.infer(rows)
    assert not spelling.has_spans
    assert [spelling.to_learned(row) for row in rows] == rows


def test_a_broken_span_is_mended():
    spelling = TagSpelling.infer([["B-NP", "I-NP", "O"], ["B-VP"], ["O", "I-NP"]])
    assert spelling.scheme == "bio"
    assert spelling.to_learned(["O", "I-NP", "I-VP"]) == ["O", "S-NP", "S-VP"]


def test_learned_tags_merge_into_those_of_the_data():
    spelling = TagSpelling.infer(ROWS["bio"])
    names, merged = spelling.merged(["B-NP", "E-NP", "O", "S-VP", "I-NP", "S-NP"])
    assert names == ["B-NP", "B-VP", "I-NP", "O"]
    assert [names[i] for i in merged] == ["B-NP", "I-NP", "O", "B-VP", "I-NP", "B-NP"]
    assert TagSpelling().merged(["N", "V"]) == (["N", "V"], [0, 1])


def test_scores_count_whole_spans():
    actual = [["B-NP", "I-NP", "O", "B-VP"], ["O"]]
    said = [["B-NP", "O", "O", "B-VP"], ["B-NP"]]
    expected = {"span_f1": 2 * (1 / 3) * 0.5 / (1 / 3 + 0.5), "span_precision": 1 / 3, "span_recall": 0.5}
    assert span_scores(actual, said) == pytest.approx(expected)
    assert tag_accuracy(actual, said) == pytest.approx(3 / 5)


def test_scores_are_the_same_in_every_scheme():
    source = random.Random(2)
    letters = ["B-NP", "I-NP", "O", "B-VP", "I-VP"]
    actual, said = ([[source.choice(letters) for _ in range(n)] for n in (1, 9, 30)] for _ in range(2))
    bio, other = TagSpelling("bio", "bioes"), TagSpelling("bio", "bilou")
    expected = span_scores(actual, said)["span_f1"]
    assert 0 < expected < 1
    for spelling in (bio, other):
        spelled = [[spelling.to_learned(row) for row in rows] for rows in (actual, said)]
        assert span_scores(*spelled)["span_f1"] == pytest.approx(expected)
    assert span_scores([["B", "M", "E", "S"]], [["B", "I", "E", "S"]])["span_f1"] == 1.0


def test_scores_without_a_single_span_are_zero_without_a_warning():
    assert span_scores([["O", "O"]], [["O", "O"]])["span_f1"] == 0.0
    assert span_scores([["O", "XYZ"]], [["O", "O"]])["span_f1"] == 0.0
