"""Signals: .ts, .npz and tables in long or wide format; what is missing or does not fit has its place."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato.data.examples import Examples
from ostinato.data.labelled import read_labelled
from ostinato.errors import DataError, InputError

HEADER = "#c\n@problemName X\n@timeStamps false\n@dimensions 2\n@classLabel true a b\n@data\n"
STAMPED = HEADER.replace("false", "true")
SIGNALS = np.arange(12.0).reshape(2, 3, 2)
LARGE = pytest.mark.parametrize("large_bytes", [0, 1 << 20])


def read(folder: Path, body: str, name: str, **options: Any) -> Examples:
    path = folder / name
    path.write_text(body, encoding="utf-8")
    return read_labelled(path, **options)


def listed(examples: Examples) -> list[Any]:
    return [signal.tolist() for signal in examples.inputs]


@LARGE
def test_ts_files_of_unequal_lengths(tmp_path: Path, large_bytes: int) -> None:
    found = read(tmp_path, HEADER + "1,2:3,4:a\n5:6:b\n", "a.ts", large_bytes=large_bytes)
    assert (listed(found), found.labels, list(found.places)) == (
        [[[1, 3], [2, 4]], [[5, 6]]],
        ["a", "b"],
        [7, 8],
    )
    assert found.inputs[0].dtype == np.float32
    stamped = read(
        tmp_path, STAMPED + "(12:30:00,1),(13:00:00,2):(0,3),(1,4):a\n", "a.ts", large_bytes=large_bytes
    )
    assert listed(stamped) == [[[1, 3], [2, 4]]]
    bare = HEADER.replace("true a b", "false") + "1,2:3,4\n"
    assert read(tmp_path, bare, "a.ts", needs_labels=False).labels is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (HEADER + "1,2:3,4:c\n", r"line 7: class 'c' is not in @classLabel; the classes are: a, b"),
        (HEADER + "1,2:3:a\n", r"line 7: dimension 2 has 1 steps, dimension 1 has 2"),
        (HEADER + "1,?:3,4:a\n", r"line 7: dimension 1, step 1: the value is missing \(\?\)"),
        (HEADER + "1,2:NaN,4:a\n", r"line 7: dimension 2, step 0: the value is missing"),
        (HEADER + "1,x:3,4:a\n", r"line 7: dimension 1, step 1: expected a finite number, found 'x'"),
        (HEADER + "1,1e40:3,4:a\n", r"line 7: the value at step 1, dimension 0 is infinite"),
        (HEADER + "1,2:a\n", r"line 7: expected 2 dimensions \(@dimensions\), found 1"),
        (HEADER.replace("@data\n", ""), r"expected a line @data"),
        (HEADER.replace("true a b", "false") + "1,2:3,4\n", r"says that it has no labels"),
        (STAMPED + "(0,1),(1:(0,3),(1,4):a\n", r"line 7: expected 2 dimensions|expected \(time, value\)"),
        ("hello\n" + HEADER, r"line 1: expected a line such as @problemName or @data, found 'hello'"),
        ("@dimensions many\n@data\n", r"line 1: expected a whole number after @dimensions"),
        ("@dimensions ²\n@data\n", r"line 1: expected a whole number after @dimensions"),
    ],
)
def test_broken_ts_files(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, body, "a.ts")


def npz(folder: Path, options: dict[str, Any], **arrays: Any) -> Examples:
    path = folder / "a.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return read_labelled(path, **options)


@LARGE
def test_arrays_padded_or_end_to_end(tmp_path: Path, large_bytes: int) -> None:
    options = {"large_bytes": large_bytes}
    whole = npz(tmp_path, options, x=SIGNALS, y=[1, 0])
    assert (listed(whole), whole.labels) == (SIGNALS.tolist(), ["1", "0"])
    gaps = SIGNALS.copy()
    gaps[0, 1:] = np.nan  # padding is never looked at
    padded = npz(tmp_path, options, x=gaps, lengths=[1, 3], who=["a", "b"])
    assert (listed(padded), padded.labels) == ([[[0, 1]], SIGNALS[1].tolist()], ["a", "b"])
    joined = npz(tmp_path, options, x=SIGNALS.reshape(6, 1, 2), length=[2, 4], y=["a", "b"], z=[1, 2])
    assert listed(joined) == [SIGNALS.reshape(6, 2)[:2].tolist(), SIGNALS.reshape(6, 2)[2:].tolist()]
    assert joined.reading == {"kind": "arrays", "text": "x", "length": "length", "label": "y"}
    path = tmp_path / "a.npz"
    (tmp_path / "b.npz.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert listed(read_labelled(tmp_path / "b.npz.gz", **options)) == listed(joined)


@pytest.mark.parametrize(
    ("options", "arrays", "message"),
    [
        (
            {},
            {"x": SIGNALS, "length": [1, 9], "y": [1, 2]},
            r"'length' does not fit 'x' of shape \(2, 3, 2\)",
        ),
        (
            {},
            {"x": np.where(SIGNALS == 8, np.nan, SIGNALS), "y": [1, 2]},
            r"signal 1: the value at step 1, dim.* 0",
        ),
        ({}, {"x": SIGNALS * 1e300, "y": [1, 2]}, r"signal 0: the value at step 0, dimension 1 is infinite"),
        ({}, {"x": SIGNALS, "y": [1, 2, 3]}, r"'y' has shape \(3,\), expected 2 labels"),
        ({}, {"x": SIGNALS, "a": [1, 2], "b": [1, 2]}, r"the arrays are: x \(2, 3, 2\), a \(2,\), b \(2,\)"),
        ({"label": "c"}, {"x": SIGNALS, "a": [1, 2]}, r"label: there is no array 'c'; the arrays are: x"),
        ({}, {"x": np.array([None, 1]), "y": [1, 2]}, r"'x' holds pickled objects, which are never loaded"),
        ({}, {"u": [1, 2], "v": [1, 2]}, r"say which array holds the signals"),
    ],
)
def test_arrays_that_do_not_fit(
    tmp_path: Path, options: dict[str, Any], arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        npz(tmp_path, options, **arrays)


def test_damaged_arrays(tmp_path: Path) -> None:
    npz(tmp_path, {}, x=SIGNALS, y=[1, 2])
    whole = (tmp_path / "a.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 9):
        (tmp_path / "b.npz").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"damaged|no arrays"):
            read_labelled(tmp_path / "b.npz")


LONG = "id,t,a,b,label\n1,2,1.5,2,u\n2,1,4,5,v\n1,1,1,3,u\n1,3,0,0,u\n"


@LARGE
@pytest.mark.parametrize("options", [{"series": "id"}, {"sequence": "id", "label": "label"}])
def test_rows_of_signals_are_gathered_and_sorted(
    tmp_path: Path, options: dict[str, Any], large_bytes: int
) -> None:
    found = read(tmp_path, LONG, "a.csv", large_bytes=large_bytes, **options)
    assert listed(found) == [[[1, 3], [1.5, 2], [0, 0]], [[4, 5]]]
    assert (found.labels, list(found.places)) == (["u", "v"], [2, 3])
    assert found.notes == ("signals whose rows were out of order, sorted: 1 (the first in line 2)",)
    again = read_labelled(tmp_path / "a.csv", **found.reading)
    assert listed(again) == listed(found)
    dates = LONG.replace("\n1,2,", "\n1,2020-01-02,").replace("\n1,3,", "\n1,2020-01-03,")
    dates = dates.replace("\n1,1,", "\n1,2020-01-01,").replace("\n2,1,", "\n2,2020-01-01,")
    assert listed(read(tmp_path, dates, "b.csv", **options)) == listed(found)
    frame = {"id": [1, 1, 2], "v": [1.0, 2.0, 3.0], "label": ["a", "a", "b"]}
    assert listed(read_labelled(frame, sequence="id")) == [[[1], [2]], [[3]]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            LONG.replace("1,1,1,3,u", "1,1,1,3,w"),
            r"line 4, column 'label': the signal '1' has label 'w' here and 'u'",
        ),
        (LONG.replace("1,1,1,3", "1,1,1,"), r"line 4, column 'b': the value is missing"),
        (LONG.replace("1,1,1,3", "1,1,1,x"), r"line 4, column 'b'"),
        (LONG.replace("1,1,1,3", "1,,1,3"), r"line 4, column 't': the time is missing"),
        (LONG.replace("2,1,4,5", ",1,4,5"), r"line 3, column 'id': which signal the row is of is missing"),
        (
            "id,name,label\n1,x,u\n1,y,u\n",
            r"no column with numbers is left; the columns are: 'id', 'name', 'label'",
        ),
        ("id,v\n1,1\n1,2\n", r"say which column holds the labels; the columns are: 'id', 'v'"),
    ],
)
def test_long_tables_that_do_not_fit(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, body, "a.csv", series="id")


def test_a_signal_may_fill_a_cell_of_a_table() -> None:
    table = {"x": [np.zeros((2, 3)), np.ones((1, 3))], "label": ["a", "b"]}
    found = read_labelled(table, sequence="x")
    assert ([np.shape(one) for one in found.inputs], found.labels) == ([(2, 3), (1, 3)], ["a", "b"])


def test_what_has_no_effect_is_noted(tmp_path: Path) -> None:
    found = read(tmp_path, HEADER + "1,2:3,4:a\n", "a.ts", sequence="x")
    assert found.notes == ("a file of format ts has no columns of inputs, 'x' was not looked for",)


def test_a_table_of_steps_is_no_table_of_signals(tmp_path: Path) -> None:
    body = "id,x,label\ns1,1,a\ns1,2,a\ns2,3,b\n"
    with pytest.raises(
        DataError, match=r"line 2: column 'id': expected a number .* found 's1'; .*--sequence COL"
    ):
        read(tmp_path, body, "a.csv", sequence=True)
    with pytest.raises(DataError, match=r"no column with numbers is left; .* leave out --no-header"):
        read(tmp_path, body, "a.csv", sequence=0, label=-1, header=False)


def test_a_signal_may_fill_a_row_or_a_field(tmp_path: Path) -> None:
    wide = read(tmp_path, "y,1,2,3\na,1,2,3\nb,4,5,\n", "a.csv", sequence=True, label="y")
    assert listed(wide) == [[[1], [2], [3]], [[4], [5]]]
    field = read(tmp_path, "y,sig\na,1 2 3\nb,4 5\n", "a.csv", sequence="sig", label="y")
    assert listed(field) == [[[1], [2], [3]], [[4], [5]]]
    nested = read(
        tmp_path, '{"x":[[1,2]],"label":0}\n{"x":[[3,4],[5,6]],"label":1}', "a.jsonl", sequence=True
    )
    assert listed(nested) == [[[1, 2]], [[3, 4], [5, 6]]]
    with pytest.raises(DataError, match=r"line 2: value 1 is missing"):
        read(tmp_path, "y,1,2,3\na,1,,3\n", "a.csv", sequence=True, label="y")
    with pytest.raises(DataError, match=r"line 2: the signal has 1 dimensions, expected 2 as in line 1"):
        read(tmp_path, '{"x":[[1,2]],"label":0}\n{"x":[1],"label":1}', "a.jsonl", sequence="x")


def test_signals_keep_the_names_that_their_column_gives_them(tmp_path):
    path = tmp_path / "steps.csv"
    path.write_text("who,at,x,note,kind\nb,2,3,n,u\na,1,5,n,v\nb,1,4,n,u\nc,1,6,n,\n")
    found = read_labelled(path, sequence="who", time="at", values=["x"], label="kind")
    assert found.ids == ["b", "a"]
    assert [one.tolist() for one in found.inputs] == [[[4.0], [3.0]], [[5.0]]]
    assert found.select([1]).ids == ["a"]
    every = read_labelled(path, **{**found.reading, "needs_labels": False})
    assert every.ids == ["b", "a", "c"]
    with pytest.raises(InputError, match="time: 'at' is about rows that are steps"):
        read_labelled(path, text="note", label="kind", time="at")
