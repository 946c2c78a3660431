"""Word vectors in the usual text format: headers, blanks, compression, and what is wrong where."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest

from ostinato.data.vocabulary import Vocabulary
from ostinato.data.word_vectors import WordVectors
from ostinato.errors import DataError

VOCABULARY = Vocabulary.fit(Counter(["cat", "cat", "New", "dog"]))
BODY = "Cat 9 9\ncat 1 2.5\nextra -1e-1 0\nunseen 3 3\ncat 7 7\nNew 4 4 \n"


def _read(path, extra=5):
    return WordVectors(path, extra=extra).read(VOCABULARY, str.lower)


@pytest.mark.parametrize("head", ["", "6 2\n", "\n"])
@pytest.mark.parametrize("suffix", ["txt", "gz"])
def test_with_and_without_header_and_compressed(tmp_path, head, suffix):
    path = tmp_path / f"vectors.{suffix}"
    text = (head + BODY).encode()
    path.write_bytes(gzip.compress(text) if suffix == "gz" else text)
    matrix, extra = _read(path)
    assert extra == ["extra", "unseen"]
    assert matrix.dtype == "float32"
    expected = {"cat": [1, 2.5], "New": [4, 4], "dog": [0, 0]}
    for word, row in expected.items():
        assert matrix[VOCABULARY.id(word)].tolist() == row
    assert matrix[5:].tolist() == [[pytest.approx(-0.1), 0], [3, 3]]
    assert not matrix[:2].any()


def test_the_own_spelling_counts_more_than_an_earlier_other_one(tmp_path):
    path = tmp_path / "v"
    path.write_text("CAT 1 1\nCat 2 2\n")
    assert _read(path)[0][VOCABULARY.id("cat")].tolist() == [1, 1]
    path.write_text("CAT 1 1\ncat 2 2\n")
    assert _read(path)[0][VOCABULARY.id("cat")].tolist() == [2, 2]


def test_extra_words_are_the_first_and_words_may_have_blanks(tmp_path):
    path = tmp_path / "v"
    path.write_text("cat 1 1\nat new york 2 2\nb 3 3\n")
    assert _read(path, extra=1)[1] == ["at new york"]
    assert _read(path, extra=0)[1] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"cat 1 2\ndog 3\n", "line 2: expected a word and 2 numbers"),
        (b"cat 1 2\ndog 3.5 4 6\n", "line 2: expected a word and 2 numbers, found 4 fields"),
        (b"cat 1 2\ndog 3 x\n", "line 2: expected numbers"),
        (b"cat 1 nan\n", "line 1: expected finite"),
        (b"cat 1 2\n\xffdog 3 4\n", "line 2: expected UTF-8, found byte 0xff"),
        (b"cat\n", "line 1: expected a word"),
        (b"", "none of its words"),
        (b"5 0\ncat\n", "line 2: expected a word"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as error:
        _read(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        _read(tmp_path / "missing")
    path = tmp_path / "v.gz"
    path.write_bytes(gzip.compress(BODY.encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        _read(path)
