"""Token columns: files survive being read and written back; broken rows are refused with their place."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.conll import read_conll, tagged_lines
from ostinato.data.examples import Examples, Sentence
from ostinato.data.labelled import read_labelled
from ostinato.data.labelled_format import find_format
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.errors import DataError, SizeError

UNIVERSAL = """\
# sent_id = 1
# text = vámonos x
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_
2\tnos\tnos\tPRON\tP\t_\t1\tobj\t_\t_
2.1\tx\tx\tX\tX\t_\t_\t_\t_\t_

# a comment alone

1\ta b\ta\tNOUN\t_\t_\t0\troot\t_\tSpaceAfter=No
"""
CELL = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t\x00 "), min_size=1, max_size=6
)
WORD = CELL.filter(lambda cell: not cell.startswith("-DOCSTART-") and not cell.startswith("\ufeff"))


def read(folder: Path, body: str, name: str = "a.conll", **options: Any) -> Examples:
    path = folder / name
    path.write_bytes(body.encode())
    return read_labelled(path, **options)


def written(path: Path, tags: Any, **options: Any) -> str:
    return "".join(tagged_lines(path, tags, LabelledSpec().with_options(options)))


def test_plain_columns_keep_every_row_as_a_token(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\n# # O\n1-1 CD O \n\n\nx  y\tz"
    found = read(tmp_path, text)
    assert [one.tokens for one in found.inputs] == [("EU", "#", "1-1"), ("x",)]
    assert found.inputs[0].columns == {"1": ("NNP", "#", "CD")}
    assert list(map(tuple, found.tags or ())) == [("B-ORG", "O", "O"), ("z",)]
    assert list(found.places) == [3, 8]
    assert found.notes == ("-DOCSTART- lines, passed over: 1 (the first in line 1)",)
    assert found.reading == {"kind": "tokens", "text": 0, "label": 2, "columns": [1], "width": 3}


def test_universal_columns_pass_over_ranges_and_empty_nodes(tmp_path: Path) -> None:
    found = read(tmp_path, UNIVERSAL, "a.txt")  # recognised by its rows
    assert [one.tokens for one in found.inputs] == [("vamos", "nos"), ("a b",)]
    assert found.inputs[0].columns["lemma"] == ("ir", "nos")
    assert list(map(tuple, found.tags or ())) == [("VERB", "PRON"), ("NOUN",)]
    assert [note.split(":")[0] for note in found.notes] == [
        "ranges of words (3-4), passed over",
        "empty nodes (3.1), passed over",
        "blocks without a word, passed over",
    ]
    assert list(map(tuple, read(tmp_path, UNIVERSAL, "a.conllu", label="xpos").tags or ())) == [
        ("V", "P"),
        ("_",),
    ]


def test_columns_can_be_named(tmp_path: Path) -> None:
    plus = "# global.columns = ID FORM BIO\n1\ta\tO\n"
    assert read(tmp_path, plus, "a.conllup", label="bio").inputs[0] == Sentence(("a",), {})
    tokens_last = read(tmp_path, "X a\nY b\n", text=-1, label=0)
    assert tokens_last.inputs[0].tokens == ("a", "b")
    assert tokens_last.reading["text"] == 1


def test_a_line_without_columns_before_a_sentence_is_a_comment(tmp_path: Path) -> None:
    found = read(tmp_path, "# id 1\nEU\tB\n#\tO\n\n# id 2\nx\tO\n")
    assert [one.tokens for one in found.inputs] == [("EU", "#"), ("x",)]
    assert found.notes == ("comments, passed over: 2 (the first in line 1)",)


def test_files_without_tags_are_read_where_none_are_needed(tmp_path: Path) -> None:
    learned = read(tmp_path, "EU NN B\n\nx NN O\n")
    bare = read(tmp_path, "EU NN\nfoo VB\n\nbar JJ\n", "b.conll", needs_labels=False, **learned.reading)
    assert bare.tags is None
    assert bare.inputs[0].columns == {"1": ("NN", "VB")}
    assert written(tmp_path / "b.conll", [["P", "Q"], ["R"]], **learned.reading) == (
        "EU NN P\nfoo VB Q\n\nbar JJ R\n"
    )
    empty = UNIVERSAL.replace("VERB", "_").replace("PRON", "_").replace("NOUN", "_")
    assert read(tmp_path, empty, "c.conllu", needs_labels=False).tags is None
    with pytest.raises(DataError, match=r"every 'upos' is _"):
        read(tmp_path, empty, "c.conllu")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("large_bytes", [1, 1 << 20])
def test_other_tags_leave_all_else_as_it_was(tmp_path: Path, ends: str, large_bytes: int) -> None:
    text = "\ufeff" + UNIVERSAL.replace("\n", ends)
    found = read(tmp_path, text, "a.conllu", large_bytes=large_bytes)
    path = tmp_path / "a.conllu"
    options = {**found.reading, "large_bytes": large_bytes}
    assert written(path, found.tags, **options) == text
    changed = written(path, [["A", "B"], ["C"]], **options)
    assert changed == text.replace("VERB", "A").replace("PRON", "B").replace("NOUN", "C")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("EU B-ORG\nfoo\n", "a.conll", r"a\.conll, line 2: expected 2 columns between blanks, found 1"),
        ("EU\tB\nx\ty\tz\n", "a.conll", r"line 2: expected 2 columns between tabs, found 3"),
        (UNIVERSAL.replace("\tobj", ""), "a.conllu", r"line 5: expected 10 columns between tabs, found 9"),
        (
            UNIVERSAL.replace("2\tnos", "x\tnos"),
            "a.conllu",
            r"line 5: expected an id such as 3, .* found 'x'",
        ),
        ("EU\nfoo\n", "a.conll", r"column '0' holds the tokens; the file has no other column"),
        ("", "a.conll", r"expected one example or more, found none; it is empty"),
    ],
)
def test_broken_rows_are_refused(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, name)


def test_bytes_outside_the_encoding_have_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_bytes("a O\nna\xefve O\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"line 2: byte 3 of the line \(0xEF, byte 6 of the file\) is not UTF-8"
    ):
        read_labelled(path)
    assert read_labelled(path, encoding="latin-1").inputs[0].tokens == ("a", "naïve")


def test_empty_tokens_are_counted_and_tags_must_fit(tmp_path: Path) -> None:
    found = read(tmp_path, "EU\tB\n\tO\n")
    assert found.inputs[0].tokens == ("EU", "_")
    assert found.notes == ("empty tokens, read as _: 1 (the first in line 1)",)
    for tags in ([["B"]], [], [["B", "O"], ["B"]]):
        with pytest.raises(SizeError, match=r"tags: expected"):
            written(tmp_path / "a.conll", tags)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[list[list[str]]]]:
    """A file of token columns, and the rows of each sentence that it must be read as."""
    width = draw(st.integers(2, 4))
    separator = draw(st.sampled_from(["\t", " ", "  "]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    row = st.lists(WORD, min_size=width, max_size=width)
    sentences = draw(st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=5))
    text = ""
    for sentence in sentences:
        text += "".join(separator.join(cells) + end for cells in sentence)
        text += end * draw(st.integers(1, 2))
    return text, sentences


@settings(max_examples=60, deadline=None)
@given(files(), st.sampled_from([1, 1 << 20]))
def test_what_is_read_is_written_back(file: tuple[str, list[list[list[str]]]], large_bytes: int) -> None:
    text, sentences = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(text.encode())
        spec = LabelledSpec(format="conll", large_bytes=large_bytes)
        found = read_conll(path, spec)
        assert [list(one.tokens) for one in found.inputs] == [[row[0] for row in one] for one in sentences]
        assert [list(tags) for tags in found.tags or ()] == [[row[-1] for row in one] for one in sentences]
        assert "".join(tagged_lines(path, found.tags or [], spec)) == text


def test_files_without_line_feeds_and_empty_ones_are_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mac"
    path.write_bytes(b"she O\rsaw O\rOslo B\r\rhe O\rleft O\r")
    for needs_labels in (True, False):
        assert find_format(path, LabelledSpec(kind="tokens", needs_labels=needs_labels)) == "conll"
    path.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="mac: expected one example or more, found none; the file is empty"):
        read_labelled(path, kind="tokens")


READING = {"kind": "tokens", "text": 0, "label": 2, "columns": [1], "width": 3}


@pytest.mark.parametrize(
    ("row", "needs_labels", "message"),
    [
        ("a X\n", True, r"line 1: expected 3 columns .*\(0: tokens, 1: learned from, 2: tags\), found 2"),
        ("a\n", False, r"line 1: expected 3 columns .*\(0: tokens, 1: learned from, 2: tags, not needed\)"),
    ],
)
def test_columns_that_training_had_are_missed(tmp_path, row, needs_labels, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, f"{row}\n{row}", **READING, needs_labels=needs_labels)


def test_a_file_of_another_width_is_noted(tmp_path):
    (note,) = read(tmp_path, "a X Y Z\n\na X Y Z\n", **READING).notes
    assert "4 columns, the training file had 3" in note
    without_tags = read(tmp_path, "a X\n\nb Y\n", **READING, needs_labels=False)
    assert without_tags.notes == ()
    assert without_tags.tags is None
