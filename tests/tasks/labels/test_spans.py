import itertools
import random
import warnings

import pytest

from ostinato.errors import InputError
from ostinato.tasks.labels.spans import detect_scheme, span_scores, spans, tag_accuracy, write_spans

TYPES = ("NP", "VP", "B-C")


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        ([["B-NP", "I-NP", "O", "B-VP"]], "iob2"),
        ([["I-NP", "I-NP", "B-NP", "O", "I-VP"]], "iob1"),
        ([["I-NP", "O"], ["I-VP"]], "iob1"),
        ([["B-NP", "E-NP"], ["O", "S-VP"]], "bioes"),
        ([["B-NP", "I-NP", "L-NP", "U-VP"]], "bioes"),
        ([["B", "M", "E", "S"]], "bioes"),
        ([["B", "I", "O"]], "iob2"),
        ([["B-a-b", "O"], []], "iob2"),
        ([["NOUN", "VERB", "O"]], None),
        ([["O", "O"]], None),
        ([["I", "O"]], None),
        ([["B-NP", "X-NP"]], None),
        ([], None),
    ],
)
def test_scheme_is_told_from_the_names_of_the_tags(rows, scheme):
    assert detect_scheme(rows) == scheme


def test_a_few_broken_spans_do_not_hide_iob2():
    assert detect_scheme([["B-NP", "I-NP", "O"], ["B-VP"], ["O", "I-NP"]]) == "iob2"


@pytest.mark.parametrize("letters", ["BIO", "BIESO"])
def test_spans_are_those_of_the_library(letters):
    from seqeval.metrics.sequence_labeling import get_entities

    source = random.Random(3)
    for _ in range(400):
        length = source.randrange(0, 9)
        chosen = [source.choice(letters) for _ in range(length)]
        tags = [letter if letter == "O" else f"{letter}-{source.choice(TYPES)}" for letter in chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = [(kind, first, last + 1) for kind, first, last in get_entities(list(tags))]
        assert spans(tags) == expected, tags


@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bioes"])
def test_writing_spans_is_the_inverse_of_reading_them(scheme):
    source = random.Random(5)
    for _ in range(200):
        length = source.randrange(1, 12)
        cuts = sorted(source.sample(range(length + 1), source.randrange(0, min(6, length))))
        found = [
            (source.choice((*TYPES, "")), a, b) for a, b in itertools.pairwise(cuts) if source.random() < 0.7
        ]
        assert spans(write_spans(found, length, scheme)) == found


def test_iob1_writes_a_begin_only_between_spans_of_one_type():
    found = [("NP", 0, 2), ("NP", 2, 3), ("VP", 3, 4)]
    assert write_spans(found, 5, "iob1") == ["I-NP", "I-NP", "B-NP", "I-VP", "O"]


def test_scores_count_whole_spans():
    actual = [["B-NP", "I-NP", "O", "B-VP"], ["O"]]
    said = [["B-NP", "O", "O", "B-VP"], ["B-NP"]]
    scores = span_scores(actual, said)
    assert scores == pytest.approx(
        {"span_f1": 2 * (1 / 3) * 0.5 / (1 / 3 + 0.5), "span_precision": 1 / 3, "span_recall": 0.5}
    )
    assert tag_accuracy(actual, said) == pytest.approx(3 / 5)


def test_scores_know_the_letters_l_u_and_m():
    assert span_scores([["B-X", "L-X", "U-Y"]], [["B-X", "E-X", "S-Y"]])["span_f1"] == 1.0
    assert span_scores([["B", "M", "E", "S"]], [["B", "M", "E", "S"]])["span_f1"] == 1.0


def test_scores_without_a_single_span_are_zero_without_a_warning():
    assert span_scores([["O", "O"]], [["O", "O"]])["span_f1"] == 0.0


def test_a_tag_that_is_no_span_is_named():
    with pytest.raises(InputError, match=r"tag 'NOUN' at token 2"):
        spans(["O", "NOUN"])
    with pytest.raises(InputError, match="unknown; known: 'iob1'"):
        write_spans([], 1, "bmes")
