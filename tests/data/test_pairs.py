"""Pairs from two files, a file of pairs, tables and memory; what is wrong is said with its place."""

import gzip
import json

import pytest

from ostinato.data.pair_files import Pairs
from ostinato.data.pairs import read_pairs
from ostinato.errors import DataError, InputError, SizeError

ODD = ["a\u2028b", "c\x0bd\x85e", 'say "no', ""]


def put(folder, name, text):
    path = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_two_files_go_line_by_line_and_only_line_feeds_end_lines(tmp_path):
    source = put(tmp_path, "x.de.gz", "".join(f"{line}\n" for line in ODD))
    target = put(tmp_path, "x.en", "1\r\n2\r\n3\r\n4")
    for given in ((source, target), ((str(source), str(target)),)):
        pairs = read_pairs(*given)
        assert pairs.sources == ODD
        assert pairs.targets == ["1", "2", "3", "4"]
        assert list(pairs.places) == [1, 2, 3, 4]
        assert pairs.reading["lines"]
    complete, note = pairs.complete()
    assert complete.sources == ODD[:3]
    assert "left out: 1 (the first in line 4)" in note
    assert complete.complete() == (complete, "")


def test_files_of_unequal_length_are_refused_with_both_lengths(tmp_path):
    source, target = put(tmp_path, "a", "1\n2\n3\n"), put(tmp_path, "b", "1\n2\n\n\n")
    with pytest.raises(DataError, match=r"a has 3 lines, .*b has 4"):
        read_pairs(source, target)
    with pytest.raises(DataError, match=r"expected one pair or more, found none"):
        read_pairs(put(tmp_path, "e", ""), put(tmp_path, "f", ""))


def test_a_file_of_pairs_is_split_on_tabs_without_quoting(tmp_path):
    path = put(tmp_path, "pairs.tsv", '"a b\tx "y\n\nc\u2028\td\n \te\n')
    pairs = read_pairs(path)
    assert pairs.sources == ['"a b', "", "c\u2028", " "]
    assert pairs.targets == ['x "y', "", "d", "e"]
    assert "left out: 2 (the first in line 2)" in pairs.complete()[1]
    with pytest.raises(DataError, match=r"line 2: expected source, a tab and target, found no tab"):
        read_pairs(put(tmp_path, "one.tsv", "a\tb\nc d\n"))
    with pytest.raises(DataError, match=r"line 1: .* found 3 fields"):
        read_pairs(put(tmp_path, "three.tsv", "a\tb\tc\n"))


def test_sources_alone_come_from_pairs_and_lines(tmp_path):
    path = put(tmp_path, "some.txt", "a\tb\nc\n\n")
    pairs = read_pairs(path, needs_targets=False)
    assert pairs.sources == ["a", "c", ""]
    assert pairs.targets is None
    assert pairs.notes == ("targets after a tab, not looked at: 1 (the first in line 1)",)
    assert read_pairs(path, needs_targets=False, lines=True).sources == ["a\tb", "c", ""]
    # A plain file of lines is an input also of what learned from a table.
    assert read_pairs(path, needs_targets=False, lines=True, source="text").sources == ["a\tb", "c", ""]


def test_tables_have_two_named_columns(tmp_path):
    rows = [{"id": 1, "long": "a\nb", "short": "x"}, {"long": "c", "short": None}, {"long": "\u2028"}]
    path = put(tmp_path, "rows.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    pairs = read_pairs(path, source="long", target="short")
    assert pairs.sources == ["a\nb", "c", "\u2028"]
    assert pairs.targets == ["x", "", ""]
    assert read_pairs(path, source="long", target="short", needs_targets=False).targets is None
    table = put(tmp_path, "rows.csv", 'n,from,to\n1,"a, b",x\n2,c,y\n')
    pairs = read_pairs(table, source="from", target="to")
    assert (pairs.sources, pairs.targets) == (["a, b", "c"], ["x", "y"])
    with pytest.raises(InputError, match="--source COL --target COL"):
        read_pairs(path)
    with pytest.raises(
        DataError, match=r"no object has a 'shot'; the names of the first are: id, long, short"
    ):
        read_pairs(path, source="long", target="shot")
    with pytest.raises(DataError, match=r"did you mean 'to'"):
        read_pairs(table, source="from", target="too")
    with pytest.raises(DataError, match=r"line 1, column 'id': expected a text, found 1"):
        read_pairs(path, source="id", target="short")


def test_binary_files_and_mixed_encodings_are_told(tmp_path):
    good = put(tmp_path, "good", "a\nb\n")
    with pytest.raises(DataError, match=r"bad, line 2: .*0xE4.* is not UTF-8"):
        read_pairs(good, put(tmp_path, "bad", b"a\n\xe4\n"))
    with pytest.raises(DataError, match=r"binary, line 2: a null byte"):
        read_pairs(good, put(tmp_path, "binary", b"a\n\0b\n"))
    latin = read_pairs(good, put(tmp_path, "latin", b"\xe4\n\xf6\n"), encoding="latin-1")
    assert latin.targets == ["ä", "ö"]
    with pytest.raises(DataError, match="missing"):
        read_pairs(good, tmp_path / "missing")


def test_forms_in_memory():
    pairs = read_pairs(["a", "b"], ["x", None])
    assert (pairs.sources, pairs.targets) == (["a", "b"], ["x", ""])
    assert read_pairs([("a", "x"), ("b", "y")]).targets == ["x", "y"]
    assert read_pairs((["a", "b"], ["x", "y"])).sources == ["a", "b"]
    assert read_pairs({"source": ["a"], "target": ["x"], "more": [1]}).targets == ["x"]
    assert read_pairs({"long": ["a"], "short": ["x"]}, source="long", target="short").sources == ["a"]
    assert read_pairs(pairs) is pairs
    picked = pairs.select([1])
    assert (picked.sources, picked.targets, list(picked.places)) == (["b"], [""], [2])
    assert read_pairs(["a", "b"], needs_targets=False).targets is None


def test_forms_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="no targets"):
        read_pairs(["a", "b"])
    with pytest.raises(SizeError, match="2 sources and 1 targets"):
        read_pairs(["a", "b"], ["x"])
    with pytest.raises(InputError, match=r"data\[1\] is 3; expected a text"):
        read_pairs(["a", 3], ["x", "y"])
    with pytest.raises(InputError, match=r"data\[1\].*expected a pair"):
        read_pairs([("a", "b"), ("c",)])
    with pytest.raises(InputError, match=r"targets: .* is a file"):
        read_pairs(put(tmp_path, "a", "1\n"), ["x"])
    with pytest.raises(InputError, match="name columns of one table"):
        read_pairs(put(tmp_path, "a", "1\n"), put(tmp_path, "b", "1\n"), source="x")
    with pytest.raises(InputError, match="there is no column 'source'"):
        read_pairs({"a": ["1"], "target": ["2"]})
    with pytest.raises(InputError, match="have their own"):
        read_pairs(Pairs(["a"], ["b"]), ["c"])
    with pytest.raises(InputError, match="a list of texts or a file, found int"):
        read_pairs(3)


def test_large_files_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("ostinato.data.pair_files.LARGE_BYTES", 8)
    path = put(tmp_path, "pairs.tsv", "one\tuno\ntwo\tdos\n")
    pairs = read_pairs(path)
    assert not isinstance(pairs.sources, list)
    assert [*pairs.sources] == ["one", "two"]
    assert [*pairs.targets] == ["uno", "dos"]
    source, target = put(tmp_path, "s", "one\ntwo \n"), put(tmp_path, "t", "uno\ndos\n")
    assert [*read_pairs(source, target).targets] == ["uno", "dos"]


def test_tabs_and_tables_in_what_is_read_as_lines_are_told(tmp_path):
    pairs, other = put(tmp_path, "p.tsv", "a\tb\n\nc\td\n"), put(tmp_path, "o", "1\n2\n3\n")
    assert read_pairs(pairs, lines=True, needs_targets=False).notes == (
        "lines with a tab, each read as one source: 2 (the first in line 1)",
    )
    assert read_pairs(other, lines=True, needs_targets=False).notes == ()
    both = put(tmp_path, "q.tsv", "a\tb\nc\td\n"), put(tmp_path, "r", "1\n2\n")
    assert "a file of pairs is given alone" in read_pairs(*both).notes[0]
    assert read_pairs(pairs, other).notes == ()
    rows = put(tmp_path, "rows.jsonl.gz", '{"x": "a"}\n')
    for lines in (True, False):
        (note,) = read_pairs(rows, lines=lines, needs_targets=False).notes
        assert "each line is read as a text" in note
    array = put(tmp_path, "rows.json", '[{"x": "a", "y": "b"}]')
    with pytest.raises(DataError, match="a JSON array; write JSON lines"):
        read_pairs(array, source="x", target="y")
