"""Frames and Parquet give the tables that CSV gives; the real files are read whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato.data.series import SeriesSpec, SeriesTable, read_series, table_from_frame
from ostinato.errors import DataError, InputError, MissingExtraError

FULL = SeriesSpec(time="t", target="y", series="id", known=("price", "sky"), observed="open", static="region")
FULL_TEXT = (
    "id,t,y,price,sky,open,region\n"
    "a,1,10,1.5,sun,yes,north\na,2,20,2.5,rain,no,north\na,3,,3.5,rain,yes,north\na,4,,4.5,,,\n"
    "b,2,30,5.5,fog,no,south\nb,3,40,6.5,sun,no,south\n"
)


OPEN_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "series"


def kinds(table: SeriesTable) -> dict[str, int]:
    return {note.kind: note.count for note in table.notes}


def same(left: np.ndarray[Any, Any], right: Any) -> None:
    np.testing.assert_array_equal(np.asarray(left, float), np.asarray(right, float))


def frames() -> dict[str, Any]:
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    columns: dict[str, Any] = {
        "t": np.datetime64("2020-01-01T00", "us") + np.arange(5).astype("m8[h]"),
        "y": [1.0, None, 3.0, 4.0, 5.0],
        "k": [1, 2, 3, 4, 5],
        "w": ["sun", "rain", None, "sun", "sun"],
        "b": [True, False, True, None, True],
    }
    zone = polars.DataFrame(columns).with_columns(polars.col("t").dt.replace_time_zone("UTC"))
    return {
        "pandas": pandas.DataFrame(columns),
        "pandas index": pandas.DataFrame(columns).set_index("t"),
        "pandas arrow": pandas.DataFrame(columns).convert_dtypes(),
        "polars": polars.DataFrame(columns),
        "polars zone": zone,
        "pyarrow": pyarrow.table(columns),
        "dict": {
            name: np.array(values, dtype=object) if name in "wb" else values
            for name, values in columns.items()
        }
        | {"y": np.array([1, np.nan, 3, 4, 5])},
    }


@pytest.mark.parametrize(
    "kind", ["pandas", "pandas index", "pandas arrow", "polars", "polars zone", "pyarrow", "dict"]
)
def test_frames_of_every_kind_give_the_same_table(kind: str) -> None:
    spec = SeriesSpec(time="t", target="y", known=("k", "w"), observed="b")
    table = table_from_frame(frames()[kind], spec)
    nan = np.nan
    series = table.series[0]
    assert (table.frequency.name, series.start) == ("h", np.datetime64("2020-01-01", "s"))
    same(series.values[:, 0], [1, nan, 3, 4, 5])
    same(series.known, [[1, 0, 1], [2, 1, 0], [3, nan, nan], [4, 0, 1], [5, 0, 1]])
    same(series.observed[:, 0], [1, 0, 1, nan, 1])
    assert ("time zone" in kinds(table)) == (kind == "polars zone")


def test_frames_that_cannot_be_read_are_refused() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    spec = SeriesSpec(time="t", target="y")
    with pytest.raises(DataError, match=r"unique column names"):
        table_from_frame(pandas.DataFrame([[1, 2, 3]], columns=["t", "y", "y"]), spec)
    with pytest.raises(InputError, match="found LazyFrame"):
        table_from_frame(polars.DataFrame({"t": [1], "y": [1]}).lazy(), spec)
    with pytest.raises(DataError, match="at least two rows, found none"):
        table_from_frame(polars.DataFrame({"t": [], "y": []}), spec)
    for wrong in (np.array([2**64 - 1, 1], np.uint64), np.array([1e300, 1]), np.array([0.5, 1])):
        with pytest.raises(DataError, match="column 't'"):
            table_from_frame({"t": wrong, "y": [1, 2]}, spec)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"ostinato\[parquet\]"):
        read_series(tmp_path / "t.parquet", spec=FULL)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parquet_equals_csv(suffix: str, tmp_path: Path) -> None:
    import gzip

    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    columns = [line.split(",") for line in FULL_TEXT.splitlines()]
    table = {name: [row[i] or None for row in columns[1:]] for i, name in enumerate(columns[0])}
    for name in ("t", "y", "price"):
        table[name] = [None if cell is None else float(cell) for cell in table[name]]
    file = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table(table), file, row_group_size=2)
    if suffix:
        packed = tmp_path / "table.parquet.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        file = packed
    text = tmp_path / "table.csv"
    text.write_text(FULL_TEXT)
    found, expected = read_series(file, spec=FULL), read_series(text, spec=FULL)
    for left, right in zip(found, expected, strict=True):
        for name in ("values", "known", "observed", "static"):
            same(getattr(left, name), getattr(right, name))


# ------------------------------------------------------------------ real files
REAL = {
    "AirPassengers.csv": (SeriesSpec(time="Month", target="#Passengers"), "MS", 144, 0),
    "ETTh1.csv.xz": (SeriesSpec(time="date", target="OT", observed=("HUFL", 2)), "h", 17420, 0),
    "taylor.csv": (SeriesSpec(target="Y", frequency="30min", start="2000-06-05"), "30min", 4032, 0),
    "temps.csv": (SeriesSpec(time="Date", target=-1), "D", 3652, 2),
    "monthly-sunspots.csv": (SeriesSpec(time="Month", target="Sunspots"), "MS", 2820, 0),
    "vega-co2-concentration.csv": (SeriesSpec(time="Date", target="CO2"), "MS", 746, 5),
    "vega-seattle-weather.csv": (
        SeriesSpec(time="date", target="temp_max", observed="weather"),
        "D",
        1461,
        0,
    ),
}


@pytest.mark.benchmark_data
@pytest.mark.parametrize("file", REAL)
def test_real_files(file: str) -> None:
    if not OPEN_DATA.is_dir():
        pytest.skip(f"the measuring data is not here: {OPEN_DATA}")
    spec, frequency, length, n_missing = REAL[file]
    table = read_series(OPEN_DATA / file, spec=spec)
    assert (table.frequency.name, table.series[0].length) == (frequency, length)
    assert kinds(table).get("missing rows", 0) == n_missing
    assert int(np.isnan(table.series[0].values).sum()) == n_missing
