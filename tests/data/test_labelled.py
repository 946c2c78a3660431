"""Other forms: FASTA, TREC, slots, plain lines; how forms are told apart; tags written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ostinato.data.annotated import annotated_lines
from ostinato.data.examples import Examples, Sentence
from ostinato.data.labelled import read_labelled
from ostinato.data.labelled_format import find_format
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.errors import DataError, SizeError

LARGE = pytest.mark.parametrize("large_bytes", [0, 1 << 20])


def read(folder: Path, body: str, name: str, **options: Any) -> Examples:
    path = folder / name
    path.write_bytes(body.encode(options.get("encoding", "utf-8")))
    return read_labelled(path, **options)


@LARGE
def test_fasta(tmp_path: Path, large_bytes: int) -> None:
    named = read(
        tmp_path, ">s1 label=EI x\nACGT\nacg\n>s2 label=N y\n\nTT T\n", "a.fa", large_bytes=large_bytes
    )
    assert (list(named.inputs), named.labels, list(named.places)) == (["ACGTACG", "TTT"], ["EI", "N"], [1, 4])
    assert named.notes == ("sequences with small letters, read as capitals: 1 (the first in line 1)",)
    last = read(tmp_path, ">s1|EI\nACGT\n>s2|N\nGG*\n", "a.fasta", large_bytes=large_bytes)
    assert (list(last.inputs), last.labels) == (["ACGT", "GG"], ["EI", "N"])
    own = read(tmp_path, ">s1 taxon=u\nA\n>s2 taxon=v\nC\n", "a.fa", label="taxon", large_bytes=large_bytes)
    assert own.labels == ["u", "v"]
    assert read(tmp_path, ">s1\nA\n", "a.fa", needs_labels=False, large_bytes=large_bytes).labels is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (">s1\nACGT\n", r"line 1: the header has no class"),
        ("ACGT\n>s1 x\nA\n", r"line 1: expected a header that starts with '>'"),
        (">s1 x\nAC1GT\n", r"line 1: expected letters, found '1'"),
        (">s1 label=x\nA\n>s2\nC\n", r"line 3: the header has no label=CLASS; its fields are: s2"),
        ("", r"expected one example or more"),
    ],
)
def test_broken_fasta(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, body, "a.fa")


def test_trec(tmp_path: Path) -> None:
    found = read(tmp_path, "DESC:manner How did ?\n0 What\n", "a", format="trec")
    assert (list(found.inputs), found.labels) == (["How did ?", "What"], ["DESC", "0"])
    path = tmp_path / "b"
    path.write_bytes("A x\nB na\xefve\n".encode("latin-1"))
    found = read_labelled(path, format="trec")
    assert found.inputs[1] == "naïve"
    assert found.notes == ("bytes that are not UTF-8, file read as latin-1: 1 (the first in line 2)",)
    with pytest.raises(DataError, match=r"line 2: byte 5 of the line"):
        read_labelled(path, format="trec", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: expected a label, a blank and a text"):
        read(tmp_path, "DESC:manner\n", "a", format="trec")


def slots(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / {"words": "seq.in", "tags": "seq.out", "label": "label"}[name]).write_text(
            text, encoding="utf-8"
        )
    return folder


@LARGE
def test_slots(tmp_path: Path, large_bytes: int) -> None:
    folder = slots(tmp_path, words="a b \nc\n", tags="X Y\nZ\n", label="p\nq\n")
    found = read_labelled(folder, large_bytes=large_bytes)
    assert list(found.inputs) == [Sentence(("a", "b")), Sentence(("c",))]
    assert (found.labels, list(found.tags or ())) == (["p", "q"], [("X", "Y"), ("Z",)])
    for part, message in (
        ({"tags": "X Y\n"}, r"seq\.out: the file ends before line 2"),
        ({"tags": "X\nZ\n"}, r"seq\.out, line 1: 1 tags for 2 words"),
    ):
        with pytest.raises(DataError, match=message):
            read_labelled(slots(tmp_path, **part), large_bytes=large_bytes)
    (tmp_path / "seq.out").unlink()
    with pytest.raises(DataError, match=r"seq\.out: the file does not exist"):
        read_labelled(folder, large_bytes=large_bytes)
    assert read_labelled(folder, needs_labels=False, large_bytes=large_bytes).tags is None


@LARGE
def test_plain_lines(tmp_path: Path, large_bytes: int) -> None:
    body = "hello there\n\nworld\n"
    found = read(tmp_path, body, "a.txt", needs_labels=False, large_bytes=large_bytes)
    assert (list(found.inputs), found.labels) == (["hello there", "", "world"], None)
    options = {"kind": "tokens", "text": 0, "label": 2, "columns": [1]}
    tokens = read(tmp_path, body, "a.txt", needs_labels=False, large_bytes=large_bytes, **options)
    assert [len(one) for one in tokens.inputs] == [2, 0, 1]


@pytest.mark.parametrize(
    ("body", "name", "spec", "expected"),
    [
        ('{"text": 1}\n', "a.txt", {}, "jsonl"),
        ("a b\nc d\n\ne f\n", "a.txt", {}, "conll"),
        ("a\tb\nc\td\n\ne\tf\n", "a.tsv", {"kind": "tokens"}, "conll"),
        ("a\tb\nc\td\n", "a.tsv", {"text": 0}, "csv"),
        ("a b\nc d\n", "a.txt", {"kind": "tokens"}, "conll"),
        ("a b\nc d\n", "a.txt", {"kind": "tokens", "needs_labels": False}, "lines"),
        ("(a b)\n", "a.txt", {}, "trees"),
        (">a b\nACGT\n", "a.txt", {}, "fasta"),
        ("@problemName x\n@data\n1:a\n", "a.txt", {}, "ts"),
        ("x,y\n1,2\n", "a.txt", {"text": "x"}, "csv"),
        ("1\ta" + "\t_" * 8 + "\n", "a.conll", {}, "conllu"),
        ("a b\n", "a.conll.gz", {}, "conll"),
    ],
)
def test_forms_are_told_apart(
    tmp_path: Path, body: str, name: str, spec: dict[str, Any], expected: str
) -> None:
    import gzip

    path = tmp_path / name
    path.write_bytes(gzip.compress(body.encode()) if name.endswith(".gz") else body.encode())
    assert find_format(path, LabelledSpec(**spec)) == expected


def test_tags_are_written_back_in_the_form_of_the_source(tmp_path: Path) -> None:
    def written(source: Any, found: Examples, tags: list[list[str]], labels: list[str] | None = None) -> str:
        spec = LabelledSpec().with_options(found.reading)
        return "".join(annotated_lines(source, found.inputs, tags, spec, labels))

    lines = '{"tokens":["é","b"],"tags":["X","Y"],"n":1}\n\n{"tokens":["c"],"tags":["X"],"n":2}\n'
    found = read(tmp_path, lines, "a.jsonl", kind="tokens")
    answers = written(tmp_path / "a.jsonl", found, [["P", "Q"], ["R"]], ["u", "v"])
    assert [json.loads(line) for line in answers.splitlines() if line] == [
        {"tokens": ["é", "b"], "tags": ["P", "Q"], "n": 1, "label": "u"},
        {"tokens": ["c"], "tags": ["R"], "n": 2, "label": "v"},
    ]
    folder = slots(tmp_path, words="a b\nc\n", tags="X Y\nZ\n", label="p\nq\n")
    assert written(folder, read_labelled(folder), [["P", "Q"], ["R"]]) == "P Q\nR\n"
    plain = read_labelled([["a", "b"]], needs_labels=False)
    assert written([["a", "b"]], plain, [["P", "Q"]]) == "a\tP\nb\tQ\n\n"
    conll = read(tmp_path, "a\tX\n\nb\tY\n", "a.conll")
    assert written(tmp_path / "a.conll", conll, [["P"], ["Q"]]) == "a\tP\n\nb\tQ\n"
    with pytest.raises(SizeError, match=r"for 1 sentences, found 2 tags"):
        written([["a"]], plain, [["P"], ["Q"]])


@LARGE
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lines_may_end_as_they_did_of_old(tmp_path: Path, large_bytes: int, encoding: str) -> None:
    found = read(tmp_path, "text,label\ra,u\rb,v\r", "a.csv", large_bytes=large_bytes, encoding=encoding)
    assert (list(found.inputs), found.labels, list(found.places)) == (["a", "b"], ["u", "v"], [2, 3])


def test_a_broken_first_row_does_not_make_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: expected 10 columns between tabs, found 2"):
        read(tmp_path, "x\ta\n1\ta" + "\t_" * 8 + "\n", "a.conllu")


def test_bare_inputs_need_no_column_of_labels(tmp_path: Path) -> None:
    learned = read(tmp_path, "u\thello you\nv\tyo\n", "a.tsv", text=1, label=0, header=False)
    bare = read(tmp_path, "hi\n\nso\n", "b.tsv", needs_labels=False, **learned.reading)
    assert (list(bare.inputs), bare.labels) == (["hi", "", "so"], None)
