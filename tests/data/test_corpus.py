import io

import numpy as np
import pytest

from ostinato.data.corpus import encode_corpus, hold_out, open_texts, read_blocks
from ostinato.data.corpus_units import CorpusUnits
from ostinato.errors import DataError, InputError

TEXT = "To be, or not to be,\nthat is the question:\n\nWhether 'tis nobler in the mind to suffer\n" * 20


def characters(text=TEXT):
    return CorpusUnits.fit([text], "char")


def test_files_and_texts_in_memory_give_the_same_ids(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, newline="")
    (tmp_path / "b.txt").write_bytes(TEXT.replace("\n", "\r\n").encode("utf-16"))
    units = characters()
    expected = units.encode(TEXT)
    for given, more in (
        (tmp_path / "a.txt", {}),
        (io.StringIO(TEXT), {}),
        (str(tmp_path / "b.txt"), {"encoding": "utf-16"}),
    ):
        corpus = encode_corpus(open_texts(given, **more), units)
        assert np.array_equal(corpus.ids, expected)
        assert corpus.characters == len(TEXT)
        assert corpus.starts.tolist() == [0]
        assert not corpus.unknown


def test_files_are_documents_and_so_are_lines(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(TEXT[:63])
    parts = open_texts([tmp_path / "a", tmp_path / "b"])
    units = characters()
    assert encode_corpus(parts, units).starts.tolist() == [0, 63]
    lines = encode_corpus(parts, units, documents="line")
    begins = [units.text_of(lines.ids[at]) for at in lines.starts]
    assert begins == ["T", "t", "W"] * 2
    with pytest.raises(InputError, match="known: file, line"):
        encode_corpus(parts, units, documents="page")


def test_large_texts_are_mapped_from_a_folder_that_goes_away(tmp_path):
    units = characters()
    corpus = encode_corpus(open_texts(io.StringIO(TEXT)), units, folder=tmp_path, budget_bytes=100)
    assert isinstance(corpus.ids, np.memmap)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(corpus.ids, units.encode(TEXT))
    del corpus
    assert not list(tmp_path.iterdir())


def test_the_last_line_of_words_ends_although_no_line_feed_ends_it():
    units = CorpusUnits.fit(["a b <unk>\n"], "word", splitting="blanks")
    corpus = encode_corpus(open_texts(io.StringIO("a b\nb a")), units)
    assert units.decode(corpus.ids) == "a b\nb a\n"
    assert corpus.characters == 8


def test_what_is_held_out_is_the_end_from_a_line_on():
    parts = open_texts(io.StringIO(TEXT))
    learned, held = hold_out(parts, 0.1)
    texts = ["".join(read_blocks(part)) for part in (learned, held)]
    assert "".join(texts) == TEXT
    assert texts[0].endswith("\n")
    assert 0.05 < len(texts[1]) / len(TEXT) < 0.11
    assert held[0].line == 1 + texts[0].count("\n")


def test_texts_without_lines_are_cut_between_words_and_never_inside_a_character():
    for text in ("word " * 200, "é" * 500):
        learned, held = hold_out(open_texts(io.StringIO(text)), 0.1)
        assert "".join(read_blocks(learned)) + "".join(read_blocks(held)) == text
    several = open_texts([io.StringIO("ab\n" * 10), io.StringIO("cd\n" * 10)])
    learned, held = hold_out(several, 0.25)
    assert (len(learned), len(held)) == (2, 1)
    with pytest.raises(DataError, match="too short to hold out"):
        hold_out(open_texts(io.StringIO("a")), 0.1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"good\nbad \xff\n", "line 2.*not UTF-8"),
        (b"good\nbin\0ary\n", "line 2: a null character"),
    ],
)
def test_files_that_are_no_text_are_refused_with_their_line(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_blocks(open_texts(tmp_path / "a.txt")))


def test_what_is_no_file_is_refused():
    with pytest.raises(InputError, match=r"io\.StringIO\(text\)"):
        open_texts([3])
    with pytest.raises(InputError, match="expected a file"):
        open_texts([])
    with pytest.raises(InputError, match="opened as bytes"):
        open_texts(io.BytesIO(b"abc"))
    with pytest.raises(DataError, match="blanks only"):
        encode_corpus(open_texts(io.StringIO("  \n")), characters(), documents="line")


def test_a_line_of_a_hundred_thousand_words_is_a_line():
    text = "word and " * 50_000 + "\n"
    units = CorpusUnits.fit([text], "word", splitting="blanks")
    corpus = encode_corpus(open_texts(io.StringIO(text)), units)
    assert len(corpus) == 100_001


def test_only_a_line_feed_ends_a_document_and_blank_lines_are_counted_but_not_told():
    text = "anna\u2028b\ncarl\x0bd\n\n \t\nemil"
    units = CorpusUnits.fit([text], "char")
    corpus = encode_corpus(open_texts(io.StringIO(text)), units, documents="line")
    assert units.decode(corpus.ids) == "anna\u2028b\ncarl\x0bd\nemil"
    assert corpus.starts.tolist() == [0, 7, 14]
    assert (corpus.characters, corpus.blank_lines) == (18, 2)
    words = CorpusUnits.fit([text], "word", splitting="blanks", minimum_count=1)
    corpus = encode_corpus(open_texts(io.StringIO("carl\n  ")), words, documents="line")
    assert words.decode(corpus.ids) == "carl\n"
    assert corpus.blank_lines == 1


def test_a_text_in_place_of_a_path_is_told():
    for text in ("to be,\nor not", "to be, or not to be " * 300):
        with pytest.raises(InputError, match=r"found a text of .* wrap a text in memory as io.StringIO"):
            open_texts(text)
