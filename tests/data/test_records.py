"""Records: random tables survive all ways of writing; what does not fit is refused with line and column."""

from __future__ import annotations

import csv
import io
import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.examples import Examples, Sentence
from ostinato.data.labelled import read_labelled
from ostinato.errors import DataError, InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
LABEL = st.sampled_from(["ham", "spam", "0", "ü"])


def read(folder: Path, body: str | bytes, name: str = "a.csv", **options: Any) -> Examples:
    path = folder / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return read_labelled(path, **options)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXT, LABEL), min_size=1, max_size=6),
    st.sampled_from([",", ";", "\t", "json"]),
    st.sampled_from([0, 1 << 20]),
)
def test_random_tables_survive(rows: list[tuple[str, str]], form: str, large_bytes: int) -> None:
    if form == "json":
        body = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    else:
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, delimiter=form, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("text", "label"), *rows])
        body = stream.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.jsonl" if form == "json" else "a.csv")
        path.write_bytes(body.encode())
        found = read_labelled(path, large_bytes=large_bytes, separator=None if form == "json" else form)
        again = read_labelled(path, **found.reading)
    assert list(found.inputs) == list(again.inputs) == [text for text, _ in rows]
    assert found.labels == [label for _, label in rows]


def test_a_quote_between_tabs_is_text(tmp_path: Path) -> None:
    body = 'ham\t"Hi" he said\nspam\ta 5" pipe\nham\t"all of it"\n'
    found = read(tmp_path, body, "a.tsv", text=1, label=0, header=False)
    assert list(found.inputs) == ['"Hi" he said', 'a 5" pipe', '"all of it"']
    assert found.reading == {"kind": "text", "text": 1, "label": 0, "header": False}


@pytest.mark.parametrize(
    "body", ['y\tx\nu\t"a\tb"\n', 'y\tx\nu\t"a\nb"\n', 'y\tx\nu\t"a ""b"""\n', '"y"\t"x"\n"u"\t"a"\n']
)
def test_quotes_between_tabs_enclose_where_the_file_shows_it(tmp_path: Path, body: str) -> None:
    assert read(tmp_path, body, "a.tsv", text="x").inputs[0] in ("a\tb", "a\nb", 'a "b"', "a")


def test_a_text_of_100_000_words_is_read(tmp_path: Path) -> None:
    text = "word, " * 100_000
    for body, name in ((f'text,y\n"{text}",u\n', "a.csv"), (json.dumps({"text": text, "y": 1}), "a.jsonl")):
        assert len(read(tmp_path, body, name).inputs[0].split()) == 100_000
    assert csv.field_size_limit() == 131_072  # the process's own limit is as it was


def test_empty_texts_and_missing_labels_are_counted(tmp_path: Path) -> None:
    lines = [
        {"text": "a", "label": 1},
        {"text": "", "label": True},
        {"text": None, "label": "x"},
        {"text": "b"},
    ]
    body = "\n\n".join(map(json.dumps, lines))
    found = read(tmp_path, body, "a.jsonl")
    assert (list(found.inputs), found.labels, list(found.places)) == (
        ["a", "", ""],
        ["1", "True", "x"],
        [1, 3, 5],
    )
    assert found.notes == (
        "blank lines, passed over: 3 (the first in line 2)",
        "examples of text that are empty, kept: 2 (the first in line 3)",
        "examples without a label, left out: 1 (the first in line 7)",
    )
    unlabelled = read(tmp_path, body, "a.jsonl", needs_labels=False)
    assert (len(unlabelled), unlabelled.labels) == (4, None)


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    note = "blank lines, passed over: 2 (the first in line 2)"
    assert read(tmp_path, "text,label\n\na,b\nc,d\r\n\r\n", "a.csv").notes == (note,)
    one = '{"text": "a", "label": 1}\n'
    assert read(tmp_path, f"{one}\n{one} \n", "a.jsonl").notes == (note,)
    assert read(tmp_path, "A b\n\n \nC d\n", "a", format="trec").notes == (note,)


def test_lines_of_json_end_at_line_feeds_only(tmp_path: Path) -> None:
    body = '{"text":"a\u2028b\x85","label":1}\r\n{"text":"half \\ud83d","label":2}'
    found = read(tmp_path, body, "a.jsonl")
    assert list(found.inputs) == ["a\u2028b\x85", "half \ufffd"]
    assert found.notes[0].startswith("broken characters in JSON, replaced: 1")
    assert read(tmp_path, '[{"text":"a","label":1}]', "a.json").labels == ["1"]


def test_tokens_with_tags_and_classes(tmp_path: Path) -> None:
    lines = [
        {"tokens": ["a", "b"], "tags": ["X", "Y"], "pos": ["P", "Q"], "intent": "u", "n": 3},
        {"tokens": ["c"], "tags": ["X"], "pos": ["P"], "intent": "v", "n": 4},
    ]
    found = read(tmp_path, "\n".join(map(json.dumps, lines)), "a.jsonl", kind="tokens")
    assert found.inputs[0] == Sentence(("a", "b"), {"pos": ("P", "Q")})
    assert (found.labels, list(found.tags or ())) == (["u", "v"], [["X", "Y"], ["X"]])
    csv_found = read(tmp_path, "s,t\na b,X Y\nc,X\n", kind="tokens", text="s", label="t")
    assert list(csv_found.tags or ()) == [["X", "Y"], ["X"]]


def test_letters_lose_blanks_and_case(tmp_path: Path) -> None:
    found = read(tmp_path, "label,sequence\nEI,    acg tN \nN,GG\n", letters=True)
    assert (found.kind, list(found.inputs), found.labels) == ("letters", ["ACGTN", "GG"], ["EI", "N"])


@pytest.mark.parametrize(
    ("body", "name", "options", "message"),
    [
        (
            "text,label\na,b\n",
            "a.csv",
            {"text": "txt"},
            r"no column 'txt'; did you mean 'text'\? the columns are: 'te",
        ),
        (
            "a,b,c\n1,2,3\n",
            "a.csv",
            {"label": "c"},
            r"say which column holds the input; the columns are: 'a', 'b'",
        ),
        ("text,x\na,b\n", "a.csv", {}, r"say which column holds the labels; the columns are: 'text', 'x'"),
        (
            "a,b\nc,d\n",
            "a.csv",
            {"label": "y", "text": "x"},
            r"columns are: 'a', 'b' \(if .* --no-header",
        ),
        ("text,y\na,b\n", "a.csv", {"label": "y", "header": False}, r"'0', '1' \(.* leave out --no-header\)"),
        ("text,label\na,b\n", "a.csv", {"label": 0, "text": 0}, r"column 'text' is also the label"),
        ("text,label\na,b,c\n", "a.csv", {}, r"line 2: expected 2 fields separated by ',', found 3"),
        ('text,label\n"a" b,c\n', "a.csv", {}, r"line 2: the quoting is broken"),
        ('text,label\na,b\n"a b,c\nd,e\n', "a.csv", {}, r"line 3: the quoting is broken"),
        ("text,label\n", "a.csv", {}, r"expected rows below the names 'text', 'label', found none"),
        ("", "a.csv", {}, r"expected one example or more, found none; it is empty"),
        (b"text,label\nna\xefve,u\n", "a.csv", {}, r"line 2: byte 3 of the line \(0xEF, byte 13 .* latin-1"),
        (
            "text,label\na,b\n".encode("utf-16"),
            "a.csv",
            {},
            r"starts as UTF-16 does: set the encoding to utf-16",
        ),
        ('{"text":"a","label":1}\n{"text":"b"', "a.jsonl", {}, r"line 2: column 12: not JSON"),
        ('{"text":"a","label":1}\n[1]', "a.jsonl", {}, r"line 2: expected a JSON object .* found '\[1\]'"),
        (
            '{"text":"a","label":1}\n{"x":"b"}',
            "a.jsonl",
            {},
            r"line 2: the object has no 'text'; its names are: 'x'",
        ),
        ('{"text":"a","label":[1]}', "a.jsonl", {}, r"line 1: column 'label': expected one class"),
        (
            '[{"text":"a","label":1},\n{"label":2}]',
            "a.json",
            {},
            r"element 2: the object has no 'text'|one JSON list of more than 0 bytes",
        ),
        ("[" * 99_999, "a.jsonl", {}, r"cannot be read|not JSON"),
        ('{"text":"a","label":1}', "a.txt", {"encoding": "klingon"}, r"'klingon' is not known"),
        ("hello\nworld", "a.txt", {}, r"cannot be told from its name or its first lines"),
    ],
)
@pytest.mark.parametrize("large_bytes", [0, 1 << 20])
def test_what_does_not_fit_is_refused(
    tmp_path: Path, body: str | bytes, name: str, options: dict[str, Any], message: str, large_bytes: int
) -> None:
    if body == "[" * 99_999 and large_bytes == 0:
        message = r"one JSON list of more than 0 bytes"
    with pytest.raises(InputError, match=message):
        read(tmp_path, body, name, large_bytes=large_bytes, **options)


def test_encodings(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16", "cp1252", "utf-8-sig"):
        for large_bytes in (0, 1 << 20):
            body = "text,label\r\nnaïve,u\r\n".encode(encoding)
            found = read(tmp_path, body, encoding=encoding, large_bytes=large_bytes)
            assert (list(found.inputs), found.labels) == (["naïve"], ["u"])
    with pytest.raises(DataError, match=r"byte 9 is not shift_jis.*set the encoding"):
        read(tmp_path, b"text,lab\n\x85", encoding="shift_jis")


def test_a_numbered_column_of_a_file_with_names_is_noted(tmp_path: Path) -> None:
    found = read(tmp_path, "hi,u\nyo,v\n", text=0, label=-1)
    assert found.notes[0].startswith("the first line is taken for names ('hi', 'u'), --no-header makes it an")


def test_large_files_are_read_from_disk_as_often_as_needed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {i} é", "label": i % 3}) for i in range(500)]
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    small, large = read_labelled(path), read_labelled(path, large_bytes=1000)
    assert type(small.inputs) is list
    assert type(large.inputs).__name__ == "FileRows"
    assert list(large.inputs) == list(small.inputs) == list(large.inputs)
    assert large.labels == small.labels
    chosen = large.select([499, 3, 3])
    assert list(chosen.inputs) == ["text 499 é", "text 3 é", "text 3 é"]
    assert (chosen.labels, list(chosen.places)) == (["1", "0", "0"], [500, 4, 4])
    assert large.inputs[-2:] == ["text 498 é", "text 499 é"]


def test_lists_tables_and_records() -> None:
    assert read_labelled([("a", "x"), ("b", 2)]).labels == ["x", "2"]
    assert list(read_labelled([(["a", "b"], ["X", "Y"], "u")]).tags or ()) == [["X", "Y"]]
    assert read_labelled([{"text": "a", "label": 1.0}]).labels == ["1"]
    table = {"words": ["a", "b"], "label": np.array([True, False])}
    assert read_labelled(table).labels == ["True", "False"]
    arrays = read_labelled([(np.ones((2, 3)), "u"), (np.zeros((1, 3)), "v")])
    assert (arrays.kind, arrays.inputs[1].shape, arrays.inputs[1].dtype) == ("arrays", (1, 3), np.float32)
    with pytest.raises(
        DataError, match=r"element 2: the signal has 2 dimensions, expected 3 as in element 1"
    ):
        read_labelled([(np.ones((2, 3)), "u"), (np.ones((1, 2)), "v")])
    with pytest.raises(DataError, match=r"element 1: 1 tags for 2 tokens"):
        read_labelled([(["a", "b"], ["X"])])
    for wrong in (5, [3, 4], ["a"]):
        with pytest.raises(InputError, match=r"expected"):
            read_labelled(wrong)
    with pytest.raises(InputError, match=r"no option 'txt'; did you mean 'text'\?"):
        read_labelled("a.csv", txt=3)
    with pytest.raises(InputError, match=r"one of them"):
        read_labelled("a.csv", letters=True, sequence=True)


def test_data_frames() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"tokens": [["a", "b"], ["c"]], "tags": [["X", "Y"], ["Z"]]})
    assert list(read_labelled(frame, kind="tokens").tags or ()) == [["X", "Y"], ["Z"]]
    frame = polars.DataFrame({"text": ["a", None, "c"], "label": [1, None, 2]})
    found = read_labelled(frame)
    assert (list(found.inputs), found.labels, list(found.places)) == (["a", "c"], ["1", "2"], [1, 3])
