"""Known, observed and static columns: encodings, future rows, and reading other tables the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato.data.series import SeriesSpec, SeriesTable, TableSchema, read_series, require_future
from ostinato.errors import DataError

TY = SeriesSpec(time="t", target="y")


def read(tmp_path: Path, text: str, spec: SeriesSpec = TY, **options: Any) -> SeriesTable:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode(spec.encoding))
    return read_series(file, spec=spec, **options)


def kinds(table: SeriesTable) -> dict[str, int]:
    return {note.kind: note.count for note in table.notes}


def same(left: np.ndarray[Any, Any], right: Any) -> None:
    np.testing.assert_array_equal(np.asarray(left, float), np.asarray(right, float))


FULL = SeriesSpec(time="t", target="y", series="id", known=("price", "sky"), observed="open", static="region")
FULL_TEXT = (
    "id,t,y,price,sky,open,region\n"
    "a,1,10,1.5,sun,yes,north\na,2,20,2.5,rain,no,north\na,3,,3.5,rain,yes,north\na,4,,4.5,,,\n"
    "b,2,30,5.5,fog,no,south\nb,3,40,6.5,sun,no,south\n"
)


def test_covariates_become_columns(tmp_path: Path) -> None:
    table = read(tmp_path, FULL_TEXT, FULL)
    a = table["a"]
    assert table.known == ("price", "sky=fog", "sky=rain", "sky=sun")
    assert table.observed == ("open",)
    assert table.static == ("region=north", "region=south")
    assert (a.length, a.future) == (2, 2)
    nan = np.nan
    same(a.known, [[1.5, 0, 0, 1], [2.5, 0, 1, 0], [3.5, 0, 1, 0], [4.5, nan, nan, nan]])
    same(a.observed, [[1], [0]])
    same(a.static, [1, 0])
    same(table["b"].static, [0, 1])


def test_the_same_encoding_reads_other_tables(tmp_path: Path) -> None:
    trained = read(tmp_path, FULL_TEXT, FULL)
    schema = TableSchema.from_json(json.loads(json.dumps(trained.schema())))
    assert schema == TableSchema(FULL, trained.encoding, trained.frequency)
    other = tmp_path / "other.csv"
    other.write_text("id,t,y,price,sky,open,region\nc,7,1,1,hail,NO,east\nc,8,1.5,2,sun,yes,east\n")
    table = read_series(other, schema=schema)
    assert table.known == trained.known
    assert table.fingerprint() == trained.fingerprint()
    same(table["c"].known, [[1, 0, 0, 0], [2, 0, 0, 1]])
    same(table["c"].observed, [[0], [1]])
    same(table["c"].static, [0, 0])
    assert sum(note.count for note in table.notes if note.kind == "unknown category") == 3
    other.write_text("id,t,y,price,sky,open,region\nc,7,1,cheap,sun,no,east\nc,8,1,2,sun,yes,east\n")
    with pytest.raises(DataError, match=r"line 2, column 'price'.*'cheap'"):
        read_series(other, schema=schema)
    other.write_text(
        "id,t,y,price,sky,open,region\nc,0,1,1,sun,no,east\nc,5,1,2,sun,yes,east\nc,10,1,2,sun,,\n"
    )
    with pytest.raises(DataError, match=r"trained on the frequency step.*most common step .* is 5step"):
        read_series(other, schema=schema)


def test_a_column_that_turns_out_to_hold_text_is_read_again(tmp_path: Path) -> None:
    days = np.arange(40_000)
    rows = "".join(f"{day},1,{'0' if day < 39_000 else 'a'}\n" for day in days)
    table = read(tmp_path, "t,y,holiday\n" + rows, SeriesSpec(time="t", target="y", known="holiday"))
    assert table.known == ("holiday=0", "holiday=a")
    same(table.series[0].known.sum(axis=0), [39_000, 1_000])


def test_a_number_column_with_a_typo_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"{i},1,{'1x' if i == 77 else i / 7}\n" for i in range(100))
    with pytest.raises(DataError, match=r"line 79, column 'k'.*'1x'"):
        read(tmp_path, "t,y,k\n" + rows, SeriesSpec(time="t", target="y", known="k"))
    rows = "".join(f"{i},1,{'inf' if i == 7 else 1}\n" for i in range(10))
    with pytest.raises(DataError, match=r"line 9, column 'k'.*infinite"):
        read(tmp_path, "t,y,k\n" + rows, SeriesSpec(time="t", target="y", known="k"))
    rows = "".join(f"{i},1,word{i}\n" for i in range(1200))
    with pytest.raises(DataError, match="more than 1000 different values"):
        read(tmp_path, "t,y,k\n" + rows, SeriesSpec(time="t", target="y", known="k"))


def test_future_rows_from_a_file_of_their_own(tmp_path: Path) -> None:
    future = tmp_path / "future.csv"
    future.write_text("t,id,sky,price\n3,a,fog,9\n4,a,sun,8\n2,a,sun,7\n4,b,rain,6\n4,c,rain,6\n")
    table = read(tmp_path, FULL_TEXT, FULL, future=future)
    same(table["a"].known[2:], [[9, 1, 0, 0], [8, 0, 0, 1]])
    same(table["b"].known[2:], [[6, 0, 1, 0]])
    assert kinds(table)["future"] == 2
    require_future(table, 1)
    with pytest.raises(DataError, match=r"series 'b'.*'price', 'sky=fog'.*1 of the 2 times.*: 5; add rows"):
        require_future(table, 2)
    future.write_text("t,id,sky,price\n3,a,fog,9\n3,a,sun,8\n")
    with pytest.raises(
        DataError, match=r"future\.csv, line 3: the time 3 of series 'a' is there twice.*line 2"
    ):
        read(tmp_path, FULL_TEXT, FULL, future=future)


def test_future_rows_without_times_follow_the_last_target(tmp_path: Path) -> None:
    spec = SeriesSpec(target="y", frequency="D", start="2020-01-01", known="k")
    future = tmp_path / "future.csv"
    future.write_text("k\n7\n8\n")
    table = read(tmp_path, "y,k\n1,5\n2,6\n", spec, future=future)
    same(table.series[0].known[:, 0], [5, 6, 7, 8])


def test_missing_future_rows_are_named(tmp_path: Path) -> None:
    table = read(tmp_path, FULL_TEXT, FULL)
    with pytest.raises(
        DataError, match=r"'a'.*'sky=fog', 'sky=rain', 'sky=sun' have no value at 1 of the 2 times"
    ):
        require_future(table, 2)
    require_future(read(tmp_path, "t,y\n1,1\n2,2\n"), 99)


def test_rows_after_the_last_target_need_known_values(tmp_path: Path) -> None:
    table = read(
        tmp_path, "t,y,o\n1,1,1\n2,2,2\n3,,3\n4,,4\n", SeriesSpec(time="t", target="y", observed="o")
    )
    assert (table.series[0].length, table.series[0].future) == (2, 0)
    assert kinds(table)["trailing"] == 2


def test_split_last_keeps_known_values_as_future(tmp_path: Path) -> None:
    table = read(tmp_path, FULL_TEXT, FULL)
    before, whole = table.split_last(1)
    assert whole is table
    assert [(series.length, series.future) for series in before] == [(1, 3), (1, 1)]
    same(before["a"].known, table["a"].known)
    with pytest.raises(DataError, match="has only 2"):
        table.split_last(2)
