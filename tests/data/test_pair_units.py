"""Texts are cut into units and put together again; the kind is chosen by what the texts look like."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.byte_pairs import BytePairs
from ostinato.data.pair_units import BLANK, PairUnits, choose_unit, fit_units
from ostinato.errors import InputError, MissingExtraError, RunFolderError

TEXTS = [
    "A man, smiling (again).",
    "It's 3.5 km – naïve café, ▁ and a▁b!",
    "日本 語 🙂 \u00a0 end",
    " x\ty\n z ",
]
PAIRS = BytePairs.train([*TEXTS, "the cat sat on the mat " * 5], 300)


@pytest.mark.parametrize(
    "units", [PairUnits("word"), PairUnits("char"), PairUnits("symbol"), PairUnits("bpe", PAIRS)]
)
@given(text=st.text() | st.sampled_from(TEXTS))
@settings(max_examples=150, deadline=None)
def test_join_undoes_split(units, text):
    text = text.encode("utf-8", "replace").decode()
    assert units.join(units.split(text)) == units.clean(text)


def test_words_keep_the_blank_before_them():
    assert PairUnits("word").split(" A man, (B)") == [f"{BLANK}A", f"{BLANK}man", ",", f"{BLANK}(", "B", ")"]
    assert PairUnits("symbol").split("AH0 L  M") == ["AH0", "L", "M"]
    assert PairUnits("char").split(" ab c ") == ["a", "b", " ", "c"]
    assert PairUnits("word").split("  ") == PairUnits("bpe", PAIRS).split("") == []


def test_units_that_no_text_was_cut_into_are_text_too():
    assert PairUnits("bpe", PAIRS).join(["Ġa", "Ã", "b"]) == "a\ufffdb"
    assert PairUnits("word").join([",", f"{BLANK}a", "b"]) == ", ab"


def test_shown_is_for_people():
    words = PairUnits("word")
    assert [words.shown(unit) for unit in words.split("don't go.")] == ["don", "'", "·t", "go", "."]
    bpe = PairUnits("bpe", PAIRS)
    assert [bpe.shown(unit) for unit in ("Ġthe", "at", "Ġ")] == ["the", "·at", BLANK]
    assert PairUnits("char").shown(" ") == BLANK


def test_the_kind_is_chosen_by_the_texts():
    assert choose_unit(["hello", "world", "Straße"] * 10)[0] == "char"
    assert choose_unit(["HH AH0 L OW1", "W ER1 L D"] * 200) == (
        "symbol",
        "7 different symbols stand between blanks, each 228 times",
    )
    assert choose_unit([f"number {i} of many texts" for i in range(300)])[0] == "bpe"
    assert choose_unit(["東京は今日も雨です", "明日は晴れ"])[0] == "char"


def test_tokens_of_errors():
    assert PairUnits("char").tokens(" ab c") == ["a", "b", " ", "c"]
    assert PairUnits("bpe", PAIRS).tokens("a man,  b") == ["a", "man,", "b"]


def test_storage_gives_the_same_units():
    for units in (PairUnits("word"), fit_units("bpe", TEXTS, 280)):
        again = PairUnits.from_json(json.loads(json.dumps(units.to_json())))
        assert again.kind == units.kind
        assert [again.split(text) for text in TEXTS] == [units.split(text) for text in TEXTS]
    with pytest.raises(RunFolderError, match="damaged"):
        PairUnits.from_json({"kind": "bpe", "pairs": None})
    with pytest.raises(InputError, match="word, char, bpe, symbol"):
        fit_units("words", TEXTS, 300)


def test_byte_pairs_without_their_library_say_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ostinato\[text\]'"):
        fit_units("bpe", TEXTS, 300)


def test_scripts_without_blanks_have_a_word_for_each_sign():
    assert PairUnits("bpe", PAIRS).tokens(" 日本 and2, カ ") == ["日", "本", "and2,", "カ"]
    assert PairUnits("symbol").tokens("日本 b") == ["日本", "b"]
    assert PairUnits("word").split("日本語 and2 カナ。") == [
        f"{BLANK}日", "本", "語", f"{BLANK}and2", f"{BLANK}カ", "ナ", "。"
    ]  # fmt: skip
