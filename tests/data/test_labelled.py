"""Other forms: FASTA, TREC, slots, plain lines; how forms are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ostinato.data.examples import Examples, Sentence
from ostinato.data.labelled import read_labelled
from ostinato.data.labelled_format import find_format
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.errors import DataError

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
    assert named.ids == ["s1", "s2"]
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
    found = read(tmp_path, "ham\tsee you at 5\nspam\t\n", "a", format="trec")
    assert (list(found.inputs), found.labels) == (["see you at 5", ""], ["ham", "spam"])
    path = tmp_path / "b"
    path.write_bytes("A x\nB na\xefve\n".encode("latin-1"))
    found = read_labelled(path, format="trec")
    assert found.inputs[1] == "naïve"
    assert found.notes == ("bytes that are not UTF-8, file read as latin-1: 1 (the first in line 2)",)
    with pytest.raises(DataError, match=r"line 2: byte 5 of the line"):
        read_labelled(path, format="trec", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: expected a label, a blank and a text"):
        read(tmp_path, "DESC:manner\n", "a", format="trec")


@LARGE
def test_trec_lines_without_labels(tmp_path: Path, large_bytes: int) -> None:
    learned = read(tmp_path, "DESC:manner How did ?\nNUM:x What\n", "a", format="trec")
    assert learned.reading["classes"] == ["DESC", "NUM"]
    options = {**learned.reading, "needs_labels": False, "large_bytes": large_bytes}
    bare = read(tmp_path, "Who is it\nNUM what\n", "b", **options)
    assert (list(bare.inputs), bare.labels) == (["Who is it", "NUM what"], None)
    assert bare.notes == ("lines without a known label, all lines read as texts: 1 (the first in line 1)",)
    labelled = read(tmp_path, "NUM:y what\n", "b", **options)
    assert (list(labelled.inputs), labelled.labels) == (["what"], ["NUM"])


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
        ("x,y\n1,2\n", "a.txt", {"text": "x", "needs_labels": False}, "csv"),
        ("hello, you\nthere\n", "a.txt", {"text": "x", "needs_labels": False}, "lines"),
        ("hello, you\n", "a.txt", {"text": 1, "header": False, "needs_labels": False}, "lines"),
        ("u\thello, you\n", "a.txt", {"text": 1, "header": False, "needs_labels": False}, "csv"),
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
