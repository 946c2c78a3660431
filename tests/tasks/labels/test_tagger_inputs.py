from itertools import chain

import numpy as np
import pytest

from ostinato.data.examples import Examples, Sentence
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError
from ostinato.tasks.labels.tagger_inputs import Sentences, TaggedTokens, choose_columns, cut, cut_long


@pytest.mark.parametrize("length", [0, 1, 7, 20, 21, 22, 39, 40, 41, 97, 1000])
def test_every_token_is_tagged_once_and_seen_with_its_neighbours(length):
    parts = cut(3, length, longest=20, overlap=4)
    tagged = [t for one in parts for t in range(one.begin, one.end)]
    assert tagged == list(range(length))
    for one in parts:
        assert one.sentence == 3
        assert one.is_whole == (length <= 20)
        assert one.stop - one.first <= 20
        assert one.first == (0 if one.begin == 0 else one.begin - 4)
        assert one.stop == min(length, one.end + 4)


def test_stretches_carry_the_answers_of_their_own_tokens():
    words = [[f"w{i}" for i in range(n)] for n in (3, 700, 0, 5)]
    data = Examples("tokens", [Sentence(row, {"1": row}) for row in words])
    preparation = TokenPreparation.fit(Sentences(data), columns=["1"])
    encoded = TaggedTokens(data, preparation)
    encoded.set_tags(
        [[str(i) for i in range(len(row))] for row in words], lambda tags: [int(tag) for tag in tags]
    )
    encoded.set_labels([4, 5, 6, 7])
    assert len(encoded) > 4
    batch = encoded.batch(range(len(encoded)))
    for row in range(len(encoded)):
        one = encoded.stretch(row)
        assert encoded.lengths[row] == one.stop - one.first
        np.testing.assert_array_equal(batch["y"][row, : one.stop - one.first], range(one.first, one.stop))
        assert batch["label"][row] == 4 + one.sentence
        assert batch["columns"].shape == (len(encoded), batch["y"].shape[1], 1)
    rows = [row.tolist() for row in encoded.by_length(400, 2)]
    assert sorted(chain.from_iterable(rows)) == list(range(len(encoded)))
    assert max(map(len, rows)) <= 2


def test_texts_are_split_as_they_are_looked_at():
    sentences = Sentences(Examples("text", ["a b", "c"]))
    assert [one.tokens for one in sentences] == [sentences[0].tokens, sentences[1].tokens]
    assert list(sentences[0].tokens) == ["a", "b"]
    assert len(sentences[0:1]) == 1


@pytest.mark.parametrize(
    ("features", "reading", "expected"),
    [
        ("auto", {"text": 0, "label": 3}, ["1", "2"]),
        ("auto", {"text": 1, "label": 3}, ["2"]),
        ("auto", {"text": "form", "label": "upos"}, []),
        ("auto", {}, []),
        ("none", {"text": 0, "label": 3}, []),
        ("1, lemma", {}, ["1", "lemma"]),
        ([2], {}, ["2"]),
    ],
)
def test_which_columns_are_learned_from(features, reading, expected):
    assert choose_columns(features, ["1", "2", "4", "lemma"], reading) == expected


def test_a_column_that_there_is_not_is_named():
    with pytest.raises(InputError, match="features: no column 'x'; further columns of the sentences: none"):
        choose_columns(["x"], [], {})


def test_long_sentences_become_several_and_a_note_says_so():
    words = [[f"w{i}" for i in range(n)] for n in (3, 700, 320)]
    data = Examples(
        "tokens", [Sentence(row, {"1": row}) for row in words], tags=words, labels=["a", "b", "c"]
    )
    parts = cut_long(data)
    assert [len(one) for one in parts.inputs] == [3, 320, 320, 60, 320]
    assert [word for one in parts.inputs for word in one.tokens] == list(chain.from_iterable(words))
    assert [list(row) for row in parts.tags] == [list(one.tokens) for one in parts.inputs]
    assert parts.labels == ["a", "b", "b", "b", "c"]
    assert "1 of 3 sentences have more than 320 tokens and were cut" in parts.notes[0]
    assert cut_long(data.select([0, 2])).notes == ()
