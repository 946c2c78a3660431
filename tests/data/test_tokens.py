"""Words, sentences, normalised words and shapes of texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.tokens import affixes, normalised, shape, split_sentences, split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n", ""),
        ("Don't she's dogs' it’s DON’T can't've", "Do n't she 's dogs ' it ’s DO N’T ca n't 've"),
        ("l'eau qu'il O'Brien's 'n' 'quoted'", "l' eau qu' il O' Brien 's ' n ' ' quoted '"),
        ("See https://a.b/c?d=1. (www.x.com/it's)", "See https://a.b/c?d=1 . ( www.x.com/it's )"),
        ("mail me.you+x@b-c.org, now", "mail me.you+x@b-c.org , now"),
        ("10:30 3.5% $1,000.00. 80s 3rd 1/2", "10:30 3.5 % $ 1,000.00 . 80s 3rd 1/2"),
        ("well-known... ok!!! -- #tag @user_1", "well - known ... ok !!! -- #tag @user_1"),
        (":-) :D :Don't (a) x:y <3 =( ^_^", ":-) :D : Do n't ( a ) x : y <3 =( ^_^"),
        ("हिन्दी cafe\u0301 naïve", "हिन्दी cafe\u0301 naïve"),
        ("東京は大きい。", "東 京 は 大 き い 。"),
        ("👨\u200d👩\u200d👧 👍🏽 🇩🇪🇫🇷 ❤️", "👨\u200d👩\u200d👧 👍🏽 🇩🇪 🇫🇷 ❤️"),
    ],
)
def test_words(text, expected):
    assert split_words(text) == expected.split(" " if expected else None)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from("'’.:@/ -)n t4東\u0301\ud800"), max_size=40))
def test_nothing_but_blanks_is_lost(text):
    words = split_words(text)
    assert "".join(words) == "".join(text.split())
    assert all(words)


def test_a_long_line_is_split_in_one_pass():
    assert len(split_words("it's a word, " * 30_000)) == 150_000
    assert len(split_words("a" * 300_000)) == 1
    for awkward in ("a.", "a'", "'s", "@a", "1.", "www.", "a@b.", ":-", "e\u0301", "n't", "<3"):
        assert "".join(split_words(awkward * 50_000)) == awkward * 50_000


def test_sentences():
    text = (
        'Mr. Smith left the U.S. Congress. He said "No!" Then 3.5 fell. e.g. this. 好。对！ ok\n \nnew part'
    )
    assert split_sentences(text) == [
        "Mr. Smith left the U.S. Congress.",
        'He said "No!"',
        "Then 3.5 fell. e.g. this.",
        "好。",
        "对！",
        "ok",
        "new part",
    ]
    assert split_sentences(" \n") == []


def test_ids_ignore_case_digits_and_the_rest_of_addresses():
    words = ["The", "1,999", "http://a.b/c", "www.a.b", "a@b.co", "sooooo", "----", "E\u0301", "1000"]
    expected = ["the", "0,000", "http://", "http://", "@", "sooo", "---", "é", "0000"]
    assert [normalised(word) for word in words] == expected
    assert normalised("The", lowercase=False) == "The"


def test_shapes_and_affixes():
    assert [shape(w) for w in ["McDonald", "1,500", "USA", "U.S.", "東京", ""]] == [
        "XxXxx", "d,dd", "XX", "X.X.", "cc", "",
    ]  # fmt: skip
    assert affixes("running", (1, 3), (2, 3)) == ["r", "run", "ng", "ing"]
    assert affixes("a", (2,), (3,)) == ["a", "a"]
