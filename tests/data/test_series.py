"""Tables of series: what is read from files and frames, and what the notes say about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.series import (
    SeriesSpec,
    SeriesTable,
    read_series,
    table_from_frame,
)

TY = SeriesSpec(time="t", target="y")
BY_ID = SeriesSpec(time="t", target="y", series="id")


def read(tmp_path: Path, text: str, spec: SeriesSpec = TY, **options: Any) -> SeriesTable:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode(spec.encoding))
    return read_series(file, spec=spec, **options)


def kinds(table: SeriesTable) -> dict[str, int]:
    return {note.kind: note.count for note in table.notes}


def same(left: np.ndarray[Any, Any], right: Any) -> None:
    np.testing.assert_array_equal(np.asarray(left, float), np.asarray(right, float))


# ----------------------------------------------------------------------- times
@pytest.mark.parametrize(
    ("times", "name", "start"),
    [
        (["2020-01-01", "2020-01-02", "2020-01-03"], "D", "2020-01-01"),
        (["20200101", "20200102", "20200103"], "D", "2020-01-01"),
        (["2020-01-01 00:00", "2020-01-01 00:30", "2020-01-01T01:00:00"], "30min", "2020-01-01"),
        (["2020-01-01T00:00:00+02:00", "2020-01-01T01:00:00+02:00"], "h", "2019-12-31T22:00"),
        (["2020-01-01 00:00:00 UTC", "2020-01-01 00:15:00 UTC"], "15min", "2020-01-01"),
        (["2020-01", "2020-02", "2020-03"], "MS", "2020-01-01"),
        (["1999", "2000", "2001"], "YS", "1999-01-01"),
        (["1990", "2000", "2010"], "10YS", "1990-01-01"),
        (["2020Q1", "2020Q2", "2020 Q3", "2020-q4"], "QS", "2020-01-01"),
        (["2020-01-31", "2020-02-29", "2020-03-31"], "ME", "2020-01-31"),
        (["2020-03-31", "2020-06-30", "2020-09-30"], "QE", "2020-03-31"),
        (["2020-01-15", "2020-02-15", "2020-03-15"], "MS", "2020-01-15"),
        (["2020-01-06", "2020-01-13", "2020-01-20"], "W", "2020-01-06"),
        (["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"], "B", "2020-01-02"),
        (["13.1.2020", "14.1.2020"], "D", "2020-01-13"),
        (["1/13/2020", "1/14/2020"], "D", "2020-01-13"),
        (["1/2/2020", "2/2/2020", "13/2/2020"], None, "2020-02-01"),
        (["2020/1/9", "2020/1/10", "2020/1/11"], "D", "2020-01-09"),
        (["2020-1-9", "2020-1-10", "2020-1-11"], "D", "2020-01-09"),
        (["1/13/2020 1:00 PM", "1/13/2020 2:00 PM"], "h", "2020-01-13T13:00"),
        (["1/1/2019", "1/1/2020", "1/1/2021"], "YS", "2019-01-01"),
        (["0", "1", "2"], "step", "1970-01-01"),
        (["10", "15", "20"], "5step", "1970-01-01T00:00:10"),
    ],
)
def test_forms_of_time(times: list[str], name: str | None, start: str, tmp_path: Path) -> None:
    rows = "".join(f"{time},{i}\n" for i, time in enumerate(times))
    frequency = None if name else "D"
    table = read(tmp_path, "t,y\n" + rows, SeriesSpec(time="t", target="y", frequency=frequency))
    assert table.frequency.name == (name or "D")
    assert table.series[0].start == np.datetime64(start, "s")
    valid = table.series[0].values[:, 0]
    assert valid[~np.isnan(valid)].tolist() == list(range(len(times)))


@pytest.mark.parametrize(
    ("form", "times", "start"),
    [
        ("%d.%m.%y", ["1.2.20", "2.2.20", "3.2.20"], "2020-02-01"),
        ("%b %Y", ["Jan 2020", "Feb 2020"], "2020-01-01"),
        ("epoch_s", ["1577836800", "1577840400"], "2020-01-01"),
        ("epoch_ms", ["1577836800000", "1577840400000"], "2020-01-01"),
        ("step", ["1577836800", "1577836801"], "2020-01-01"),
        ("%m/%d/%Y", ["1/2/2020", "1/3/2020"], "2020-01-02"),
    ],
)
def test_time_format(form: str, times: list[str], start: str, tmp_path: Path) -> None:
    rows = "".join(f"{time},1.5\n" for time in times)
    table = read(tmp_path, "t,y\n" + rows, SeriesSpec(time="t", target="y", time_format=form))
    assert table.series[0].start == np.datetime64(start, "s")
    assert table.series[0].length == len(times)


def test_day_and_month_are_decided_by_a_late_row(tmp_path: Path) -> None:
    days = np.datetime64("2020-01-01") + np.arange(366)
    for order in ("{2}/{1}/{0}", "{1}/{2}/{0}"):
        rows = [order.format(*map(int, str(day).split("-"))) for day in days]
        early = [i for i, day in enumerate(days) if int(str(day)[-2:]) <= 12]
        late = [i for i in range(len(days)) if i not in set(early)]
        text = "t,y\n" + "".join(f"{rows[i]},{i}\n" for i in [*early, *late])
        table = read(tmp_path, text)
        same(table.series[0].values[:, 0], range(366))
        assert kinds(table)["date order"] == 1


def test_a_table_without_times_starts_where_the_user_says(tmp_path: Path) -> None:
    spec = SeriesSpec(target="y", frequency="30min", start="2020-06-05", known="k")
    table = read(tmp_path, "y,k\n1,5\n2,6\n,7\n,8\n", spec)
    series = table.series[0]
    assert (series.length, series.future) == (2, 2)
    same(series.known[:, 0], [5, 6, 7, 8])
    expected = ["2020-06-05 00:00:00", "2020-06-05 00:30:00", "2020-06-05 01:00:00"]
    assert table.frequency.format(table.times(series, future=1)) == expected


def test_counted_steps_with_a_start(tmp_path: Path) -> None:
    spec = SeriesSpec(time="n", target="y", series="id", frequency="h", start="2020-01-01")
    table = read(tmp_path, "id,n,y\na,0,1\na,1,2\nb,5,3\nb,7,4\n", spec)
    assert table["b"].start == np.datetime64("2020-01-01T05:00", "s")
    same(table["b"].values[:, 0], [3, np.nan, 4])


# ------------------------------------------------------------------------ rows
def test_gaps_disorder_and_missing_values_are_noted(tmp_path: Path) -> None:
    text = "t,y\n2020-01-05,5\n2020-01-01,1\n2020-01-02,\n2020-01-04,NA\n2020-01-06,6\n"
    table = read(tmp_path, text, SeriesSpec(time="t", target="y", frequency="D"))
    same(table.series[0].values[:, 0], [1, np.nan, np.nan, np.nan, 5, 6])
    assert kinds(table) == {"frequency": 5, "unordered": 1, "missing rows": 1, "missing targets": 2}


def test_interleaved_series_keep_their_own_spans(tmp_path: Path) -> None:
    text = "id,t,y\nb,2020-01-03,30\na,2020-01-01,1\nb,2020-01-04,40\na,2020-01-02,2\na,2020-01-03,3\n"
    table = read(tmp_path, text, BY_ID)
    assert [series.id for series in table] == ["b", "a"]
    same(table["a"].values[:, 0], [1, 2, 3])
    same(table["b"].values[:, 0], [30, 40])
    assert table["b"].start == np.datetime64("2020-01-03", "s")
    assert "unordered" not in kinds(table)


def test_newest_first_is_sorted(tmp_path: Path) -> None:
    text = "t,y\n" + "".join(f"2020-01-{day:02d},{day}\n" for day in range(20, 0, -1))
    table = read(tmp_path, text)
    assert table.frequency.name == "D"
    same(table.series[0].values[:, 0], range(1, 21))
    assert kinds(table)["unordered"] == 19


def test_constant_series_and_series_without_targets_are_noted(tmp_path: Path) -> None:
    text = "id,t,y\na,1,7\na,2,7\nb,1,\nb,2,\nc,1,1\nc,2,2\n"
    table = read(tmp_path, text, BY_ID)
    assert [series.id for series in table] == ["a", "c"]
    assert kinds(table)["constant"] == 1
    assert kinds(table)["no target"] == 1


def test_several_targets_share_the_grid(tmp_path: Path) -> None:
    table = read(tmp_path, "t,y,z\n1,1,\n2,,20\n3,3,\n", SeriesSpec(time="t", target=("z", "y")))
    same(table.series[0].values, [[np.nan, 1], [20, np.nan], [np.nan, 3]])
    assert table.targets == ("z", "y")


def test_columns_by_number_count_from_both_ends(tmp_path: Path) -> None:
    table = read(tmp_path, "1,10,5\n2,20,6\n", SeriesSpec(time=0, target="-2", observed=2, header=False))
    same(table.series[0].values[:, 0], [10, 20])
    same(table.series[0].observed[:, 0], [5, 6])
    assert (table.targets, table.observed) == (("1",), ("2",))


@pytest.mark.parametrize("text", ["t;y\n1;1,5\n2;2\n3;-,25\n", 't,y\n1,"1,5"\n2,2\n3,"-,25"\n'])
def test_decimal_commas_are_found_and_noted(text: str, tmp_path: Path) -> None:
    table = read(tmp_path, text)
    same(table.series[0].values[:, 0], [1.5, 2, -0.25])
    assert kinds(table)["decimal comma"] == 1


def test_a_decimal_comma_may_be_given(tmp_path: Path) -> None:
    table = read(tmp_path, "t;y\n1;1,500\n2;2,250\n", SeriesSpec(time="t", target="y", decimal=","))
    same(table.series[0].values[:, 0], [1.5, 2.25])


def test_other_encodings(tmp_path: Path) -> None:
    for encoding in ("cp1252", "utf-16", "latin-1"):
        spec = SeriesSpec(time="t", target="y", series="Ort", encoding=encoding)
        assert read(tmp_path, "Ort,t,y\nK\u00f6ln,1,1\nK\u00f6ln,2,2\n", spec)["K\u00f6ln"].length == 2


def test_long_form_reads_back(tmp_path: Path) -> None:
    table = read(tmp_path, "id,t,y\na,1,1\nb,2,5\na,2,\na,3,3\nb,3,6\n", BY_ID)
    again = table_from_frame(table.to_long(), SeriesSpec(time="time", target="y", series="series"))
    for series in table:
        same(series.values, again[series.id].values)
        assert series.start == again[series.id].start


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), name=st.sampled_from(["s", "15min", "h", "D", "B", "W", "MS", "ME", "QS", "YS", "step"])
)
def test_a_random_table_is_recovered_whatever_its_order(data: st.DataObject, name: str) -> None:
    from ostinato.data.frequency import Frequency

    frequency = Frequency.parse(name)
    start = np.datetime64(3 if name == "step" else "2016-02-29" if frequency.at_end else "2016-01-01", "s")
    n_series = data.draw(st.integers(1, 4))
    ids, times, values, expected = [], [], [], {}
    for number in range(n_series):
        offset, n = data.draw(st.integers(0, 20)), data.draw(st.integers(12, 30))
        column = np.arange(n) + 0.5 + 100 * number
        gone = data.draw(st.sets(st.integers(2, n - 2), max_size=2))
        kept = [i for i in range(n) if i not in gone]
        ids += [f"s{number}"] * len(kept)
        times += np.asarray(frequency.format(frequency.times(start, n, offset)))[kept].tolist()
        values += column[kept].tolist()
        column[list(gone)] = np.nan
        expected[f"s{number}"] = (frequency.times(start, 1, offset)[0], column)
    order = data.draw(st.permutations(range(len(ids)))) if data.draw(st.booleans()) else range(len(ids))
    frame = {
        "id": [ids[i] for i in order],
        "t": [times[i] for i in order],
        "y": np.array(values)[list(order)],
    }
    table = table_from_frame(frame, BY_ID, budget_bytes=data.draw(st.sampled_from([0, 1 << 30])))
    assert table.frequency.name == name
    for series_id, (first, column) in expected.items():
        assert table[series_id].start == first
        same(table[series_id].values[:, 0], column)
