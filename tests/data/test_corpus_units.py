import pytest

from ostinato.data.corpus_units import JOINED, CorpusUnits, choose_unit, is_split
from ostinato.errors import InputError, RunFolderError

PTB = (
    " no it was n't black <unk> monday \n but while the new york stock exchange did n't fall apart friday \n"
)
PROSE = """It was the best of times, it was the worst of times; it was the age of wisdom!
"What?" said he, "is this (really) the spring of hope?" -- and she didn't answer: no, never.
"""


def test_text_that_is_split_already_is_told_from_running_text():
    assert is_split(PTB * 2)
    assert is_split(
        "the cat , which sat on the mat , said : what is that ? and no one knew , they say .\n" * 3
    )
    assert not is_split(PROSE)
    assert not is_split("一二三四五六七八九十" * 30)
    assert not is_split("a few words")
    assert choose_unit(PTB * 2, 100)[0] == "word"
    assert choose_unit(PROSE, 100)[0] == "char"
    assert choose_unit(PROSE, 10**9)[0] == "bpe"


def test_words_of_split_text_are_counted_as_papers_count_them():
    units = CorpusUnits.fit([PTB], "word", splitting="blanks")
    # 19 words and one <eos> a line; <unk> is the unknown word itself, so that rare words are kept.
    ids = units.encode(PTB)
    assert len(ids) == 21
    assert ids[5] == 0
    assert units.counts[0] == 1
    assert units.text_of(units.start) == "\n"
    assert units.counts[units.start] == 2
    assert units.decode(ids) == "no it was n't black <unk> monday\n" + PTB.split("\n")[1].strip() + "\n"
    assert len(units) == 1 + 1 + 17
    assert (units.counts[1:-1] >= units.counts[2:]).all()


@pytest.mark.parametrize("unit", ["char", "word", "bpe"])
def test_running_text_comes_back(unit):
    more = {"again": [PROSE], "size": 300} if unit == "bpe" else {"splitting": "words"}
    units = CorpusUnits.fit([PROSE], unit, minimum_count=1, **more)
    ids = units.encode(PROSE)
    assert units.decode(ids) == PROSE
    assert ids.max() < len(units)
    other = CorpusUnits.from_json(units.to_json())
    assert (other.encode(PROSE) == ids).all()
    assert other.decode(ids) == PROSE


def test_pieces_appear_as_soon_as_they_are_certain():
    units = CorpusUnits.fit(["é♥ ab\n"], "bpe", size=256, again=["é♥ ab\n"])
    decoder, said = units.decoder(), []
    for number in units.encode("é♥ ab"):
        said.append(decoder.push(int(number)))
    assert "".join(said) == "é♥ ab"
    assert "" in said
    half = units.decoder()
    half.push(int(units.encode("é")[1]))
    assert half.finish() == "�"


def test_words_joined_to_the_one_before_are_marked():
    units = CorpusUnits.fit(["no, (never)!\n"], "word", splitting="words", minimum_count=1)
    texts = [units.text_of(number) for number in units.encode("no, (never)!\n")]
    assert texts == ["no", f"{JOINED},", "(", f"{JOINED}never", f"{JOINED})", f"{JOINED}!", "\n"]


def test_rare_words_are_unknown_where_the_text_has_no_unknown_word_itself():
    units = CorpusUnits.fit(["one two two\none three\n"], "word", splitting="blanks")
    assert len(units) == 4
    assert units.counts[0] == 1
    assert units.encode("three four\n").tolist() == [0, 0, units.start]
    assert len(CorpusUnits.fit(["one two two\n"], "word", splitting="blanks", size=1)) == 2


def test_unknown_characters_are_the_unknown_unit():
    units = CorpusUnits.fit(["abc\n"], "char")
    assert units.encode("a☃b").tolist() == [units.encode("a")[0], 0, units.encode("b")[0]]
    assert units.decode([0]) == "<unk>"
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    assert len(CorpusUnits.fit([many + many[:200]], "char")) == 201
    assert CorpusUnits.fit(["ab"], "char").start == 0


def test_the_narrowest_ids_are_taken():
    assert CorpusUnits.fit(["ab"], "char").encode("a").dtype == "uint8"
    many = " ".join(map(str, range(300))) + "\n"
    assert CorpusUnits.fit([many], "word", splitting="blanks", minimum_count=1).encode("1").dtype == "uint16"


def test_wrong_names_and_damage_are_refused():
    with pytest.raises(InputError, match="known: char, word, bpe"):
        CorpusUnits.fit(["a"], "letter")
    with pytest.raises(InputError, match="known: blanks, words"):
        CorpusUnits.fit(["a"], "word", splitting="commas")
    with pytest.raises(RunFolderError, match="damaged"):
        CorpusUnits.from_json({"unit": "char"})
    stored = CorpusUnits.fit(["a"], "char").to_json()
    with pytest.raises(RunFolderError, match="unit is 'page'"):
        CorpusUnits.from_json({**stored, "unit": "page"})


def test_nothing_is_unknown_to_byte_pairs_and_the_end_of_a_line_is_always_a_unit():
    text = "one line without an end, one line"
    for given in ({"unit": "bpe", "size": 300, "again": [text]}, {"unit": "word", "splitting": "blanks"}):
        units = CorpusUnits.fit([text], **given)
        assert units.text_of(units.start) == "\n"
        assert units.counts.tolist()[1:] == sorted(units.counts.tolist()[1:], reverse=True)
    pairs = CorpusUnits.fit([text], "bpe", size=300, again=[text])
    strange = "שלום ☃\n日本"
    assert pairs.encode(strange).min() > 0
    assert pairs.decode(pairs.encode(strange)) == strange
    assert CorpusUnits.fit([text], "bpe", size=300, again=[text], minimum_count=2).encode("☃")[-1] == 0


def test_byte_pairs_may_be_those_of_before():
    before = CorpusUnits.fit(["low lower lowest " * 9], "bpe", size=270, again=["low lower lowest " * 9])
    units = CorpusUnits.fit(["other words\n"], "bpe", pairs=before.pairs)
    assert units.pairs is before.pairs
    assert set(units.vocabulary.entries) == set(before.vocabulary.entries)


def test_units_that_are_all_too_rare_are_refused():
    with pytest.raises(InputError, match="minimum_count=9: no unit of the text occurs so often"):
        CorpusUnits.fit(["abc\n"], "char", minimum_count=9)
