"""Every wrong table is refused with one message that says where, what and how to cure it."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ostinato.data.series import SeriesSpec, drop_short, read_series, table_from_frame
from ostinato.errors import DataError, InputError

DAYS = "t,y\n2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n2020-01-04,4\n"
TY = SeriesSpec(time="t", target="y")
BY_ID = SeriesSpec(time="t", target="y", series="id")


def refuse(tmp_path: Path, text: str | bytes, spec: SeriesSpec = TY) -> str:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as caught:
        read_series(file, spec=spec)
    message = str(caught.value)
    assert "table.csv" in message, f"the file is not named: {message}"
    return message


REFUSED = {
    "empty": ("", TY, ["empty"]),
    "only blank lines": ("\n\n\n", TY, ["empty"]),
    "only a header": ("t,y\n", TY, ["only a header", "two rows"]),
    "one row": ("t,y\n2020-01-01,1\n", TY, ["1 row", "two rows"]),
    "missing column": (DAYS, SeriesSpec(time="t", target="Y2"), ["'Y2'", "'t', 'y'"]),
    "near column": (
        "time,load\n2020-01-01,1\n",
        SeriesSpec(time="time", target="laod"),
        ["did you mean 'load'"],
    ),
    "index out of range": (DAYS, SeriesSpec(time="t", target=7), ["7", "'t', 'y'"]),
    "two roles": (DAYS, SeriesSpec(time="t", target="y", observed="y"), ["--target", "--observed"]),
    "duplicate name": ("t,y,y\n2020-01-01,1,2\n", TY, ["2 columns", "[1, 2]"]),
    "ragged": (DAYS + "2020-01-05,5,6\n", TY, ["line 6", "expected 2 fields", "found 3"]),
    "short row": (DAYS + "2020-01-05\n", TY, ["line 6", "found 1"]),
    "text": ("t,y\n2020-01-01,1\n2020-01-02,high\n", TY, ["line 3", "'y'", "'high'"]),
    "infinity": ("t,y\n2020-01-01,1\n2020-01-02,-inf\n", TY, ["line 3", "infinite"]),
    "overflow": ("t,y\n2020-01-01,1\n2020-01-02,1e999\n", TY, ["line 3", "infinite"]),
    "underscore": ("t,y\n2020-01-01,1\n2020-01-02,1_000\n", TY, ["line 3", "1_000"]),
    "other digits": ("t,y\n2020-01-01,1\n2020-01-02,٣\n", TY, ["line 3", "٣"]),
    "thousands": ('t,y\n2020-01-01,"1,234.5"\n2020-01-02,2\n', TY, ["line 2", "thousands"]),
    "thousands or decimal": ('t,y\n2020-01-01,"1,234"\n2020-01-02,2\n', TY, ["line 2", "--decimal"]),
    "two decimal signs": ("t;y\n2020-01-01;1,5\n2020-01-02;2.5\n", TY, ["line 3", "decimal comma"]),
    "all missing": ("t,y\n2020-01-01,\n2020-01-02,NA\n", TY, ["every value", "'y'"]),
    "no time": ("t,y\n2020-01-01,1\n,2\n", TY, ["line 3", "time is missing"]),
    "not a time": ("t,y\nsoon,1\nlater,2\n", TY, ["line 2", "'soon'", "--time-format"]),
    "no such day": ("t,y\n2020-02-28,1\n2020-02-30,2\n", TY, ["line 3", "2020-02-30"]),
    "no such month first day": ("t,y\n28/02/2020,1\n30/02/2020,2\n", TY, ["line 3", "30/02/2020"]),
    "two forms": ("t,y\n2020-02-28,1\n29.2.2020,2\n", TY, ["line 3", "29.2.2020"]),
    "day or month": ("t,y\n1/2/2020,1\n2/2/2020,2\n", TY, ["day/month", "--time-format"]),
    "both orders": ("t,y\n13/2/2020,1\n2/14/2020,2\n", TY, ["line 3", "2/14/2020"]),
    "short year": ("t,y\n1/2/20,1\n2/2/20,2\n", TY, ["two digits", "--time-format"]),
    "zones mixed": ("t,y\n2020-01-01T00:00Z,1\n2020-01-01T01:00,2\n", TY, ["line 3", "time zone"]),
    "part of a second": ("t,y\n2020-01-01T00:00:00.5,1\n2020-01-01T00:00:01.5,2\n", TY, ["line 2", "second"]),
    "epoch or step": ("t,y\n1577836800,1\n1577840400,2\n", TY, ["epoch_s"]),
    "duplicate": (DAYS + "2020-01-02,9\n", TY, ["line 6", "line 3", "twice", "--series"]),
    "duplicate of one series": (
        "id,t,y\na,2020-01-01,1\nb,2020-01-01,1\nb,2020-01-02,1\na,2020-01-01,1\n",
        BY_ID,
        ["line 5", "line 2", "'a'"],
    ),
    "no series name": ("id,t,y\na,2020-01-01,1\n,2020-01-01,1\n", BY_ID, ["line 3", "'id'", "no name"]),
    "irregular": (
        "t,y\n2020-01-01,1\n2020-01-02,2\n2020-01-03,2\n2020-01-03 07:00,3\n",
        TY,
        ["line 5", "--freq", "most common step is D"],
    ),
    "no frequency": ("id,t,y\na,2020-01-01,1\nb,2020-01-01,1\n", BY_ID, ["frequency is unknown", "--freq"]),
    "shifted series": (
        "id,t,y\na,2020-01-01,1\na,2020-01-02,1\nb,2020-01-01 06:00,1\nb,2020-01-02 06:00,1\n",
        BY_ID,
        ["'a'", "'b'", "06:00"],
    ),
    "coarser frequency": (
        DAYS,
        SeriesSpec(time="t", target="y", frequency="W"),
        ["line 3", "the grid W", "holds every row is D"],
    ),
    "open quote": ('t,y\n2020-01-01,"1\n2020-01-02,2\n', TY, ["line", "quot"]),
    "static changes": (
        "t,y,s\n2020-01-01,1,a\n2020-01-02,2,b\n",
        SeriesSpec(time="t", target="y", static="s"),
        ["line 3", "'s'", "line 2"],
    ),
    "start and times": (
        DAYS,
        SeriesSpec(time="t", target="y", frequency="D", start="2020-01-01"),
        ["--start"],
    ),
    "steps and a frequency": (
        "t,y\n0,1\n1,2\n",
        SeriesSpec(time="t", target="y", frequency="D"),
        ["--start"],
    ),
    "header where none is said": (
        DAYS,
        SeriesSpec(time=0, target=1, header=False),
        ["line 1", "--no-header"],
    ),
    "no header where one is said": (
        "2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n",
        SeriesSpec(time=0, target=1),
        ["line 1", "--no-header"],
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_wrong_table_is_refused_with_place_and_cure(case: str, tmp_path: Path) -> None:
    text, spec, expected = REFUSED[case]
    message = refuse(tmp_path, text, spec)
    for part in expected:
        assert part in message, f"{part!r} is not in: {message}"
    assert "Traceback" not in message
    assert len(message) < 600, f"{len(message)} characters: {message}"


def test_far_apart_times_are_too_irregular(tmp_path: Path) -> None:
    rows = "".join(f"{1000 + i * i * i},1\n" for i in range(60))
    message = refuse(tmp_path, "t,y\n0,1\n1,1\n" + rows)
    assert "--freq" in message or "irregular" in message


def test_a_wrong_encoding_names_byte_and_line(tmp_path: Path) -> None:
    text = "t,y,ort\n2020-01-01,1,a\n2020-01-02,2,K\u00f6ln\n"
    message = refuse(tmp_path, text.encode("latin-1"))
    offset = text.encode("latin-1").index(b"\xf6")
    assert f"byte {offset}" in message
    assert "line 3" in message
    assert "latin-1" in message


def test_a_wrong_encoding_far_into_the_file_is_located(tmp_path: Path) -> None:
    good = b"t,y\n" + b"".join(b"%d,1.5\n" % i for i in range(30_011))
    message = refuse(tmp_path, good + b"30011,\xe9\n")
    assert f"byte {len(good) + 6}" in message
    assert "line 30013" in message


def test_utf16_is_named_when_the_file_starts_like_it(tmp_path: Path) -> None:
    assert "utf-16" in refuse(tmp_path, DAYS.encode("utf-16"))


def test_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text(DAYS)
    with pytest.raises(DataError, match=r"laod\.csv: the file does not exist; did you mean 'load\.csv'"):
        read_series(tmp_path / "laod.csv", spec=TY)
    with pytest.raises(DataError, match="nor does the folder"):
        read_series(tmp_path / "nowhere" / "load.csv", spec=TY)
    with pytest.raises(DataError, match="found a folder"):
        read_series(tmp_path, spec=TY)


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zip", "parquet"])
def test_damaged_containers_are_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"table.csv.{suffix}"
    file.write_bytes(b"PAR1 no more than that" if suffix == "parquet" else b"not what the name says")
    with pytest.raises(DataError, match=r"damaged|not a readable Parquet"):
        read_series(file, spec=TY)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.csv.gz"
    rows = "".join(
        f"{day},{value}\n"
        for day, value in zip(range(4000), np.random.default_rng(3).random(4000), strict=True)
    )
    file.write_bytes(gzip.compress(("t,y\n" + rows).encode())[:-900])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_series(file, spec=TY)


def test_archive_with_many_files_asks_for_one(tmp_path: Path) -> None:
    file = tmp_path / "tables.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", DAYS)
        archive.writestr("folder/b.csv", DAYS)
    with pytest.raises(DataError, match=r"found 2; name one.*a\.csv, folder/b\.csv"):
        read_series(file, spec=TY)
    with pytest.raises(DataError, match=r"no file 'c\.csv'"):
        read_series(file / "c.csv", spec=TY)
    assert len(read_series(file / "folder" / "b.csv", spec=TY).series[0].values) == 4


def test_settings_that_fit_no_file_are_refused() -> None:
    with pytest.raises(InputError, match=r"--time COLUMN.*--freq h --start"):
        read_series("any.csv", spec=SeriesSpec(target="y"))
    with pytest.raises(InputError, match="frequency 'fortnight'"):
        SeriesSpec(target="y", time="t", frequency="fortnight")
    with pytest.raises(InputError, match="decimal"):
        SeriesSpec(target="y", time="t", decimal=";")
    with pytest.raises(InputError, match="target"):
        SeriesSpec(target=(), time="t")
    with pytest.raises(InputError, match="either spec or schema"):
        read_series("any.csv")


def test_unknown_encoding_separator_and_time_format(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(DAYS)
    for wrong, match in (
        ({"encoding": "klingon"}, "klingon"),
        ({"encoding": "rot13"}, "rot13"),
        ({"separator": "::"}, "separator"),
        ({"time_format": "DD/MM"}, "strptime"),
    ):
        with pytest.raises(InputError, match=match):
            read_series(tmp_path / "a.csv", spec=SeriesSpec(time="t", target="y", **wrong))


def test_frames_are_refused_by_row_and_column() -> None:
    days = np.datetime64("2020-01-01") + np.arange(4)
    with pytest.raises(DataError, match=r"row 3, column 'y'.*infinite"):
        table_from_frame({"t": days, "y": [1.0, 2.0, np.inf, 3.0]}, TY)
    with pytest.raises(DataError, match=r"row 2, column 'y'.*'x'"):
        table_from_frame({"t": days, "y": np.array([1.0, "x", 2.0, 3.0], dtype=object)}, TY)
    with pytest.raises(DataError, match="equal length"):
        table_from_frame({"t": days, "y": [1.0]}, TY)
    with pytest.raises(InputError, match="expected a pandas, polars or pyarrow table"):
        table_from_frame(3, TY)
    with pytest.raises(DataError, match=r"row 4.*time is missing"):
        table_from_frame({"t": np.array([*days[:3], "NaT"], "M8[D]"), "y": np.arange(4.0)}, TY)


def test_series_too_short_for_use(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("id,t,y\na,0,1\na,1,2\na,2,3\nb,0,1\nb,1,2\n")
    table = read_series(file, spec=BY_ID)
    kept = drop_short(table, 3)
    assert [series.id for series in kept] == ["a"]
    assert [(note.kind, note.count) for note in kept.notes][-1] == ("short", 1)
    assert drop_short(table, 2) is table
    with pytest.raises(DataError, match=r"at least 36 rows are needed, and the longest, 'a', has 3; shorten"):
        drop_short(table, 36)
