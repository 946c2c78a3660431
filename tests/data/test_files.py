"""The reader of text files: random tables survive all ways of writing; random bytes give only DataError."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ostinato.data.files import TextTable, open_binary
from ostinato.data.series import SeriesSpec, read_series
from ostinato.errors import DataError, InputError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis"]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    width = draw(st.integers(2, 5))
    names = draw(st.lists(TEXT, min_size=width, max_size=width))
    rows = draw(st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=1, max_size=12))
    return names, rows


def write(names: list[str], rows: list[list[str]], separator: str, quoting: int, end: str) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([names, *rows])
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(
    table=tables(),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(ENCODINGS),
    packed=st.sampled_from(sorted(PACKERS)),
    size=st.sampled_from([1, 3, 1000]),
)
def test_random_tables_survive_every_way_of_writing(
    table: tuple[list[str], list[list[str]]], separator: str, end: str, encoding: str, packed: str, size: int
) -> None:
    names, rows = table
    assume(not names[0].startswith("\ufeff"))
    text = write(names, rows, separator, csv.QUOTE_ALL, end)
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        assume(False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"table.csv{packed}"
        file.write_bytes(PACKERS[packed](data))
        codec = encoding.removesuffix("-sig")
        read = TextTable(file, separator=separator, encoding=codec)
        chunks = list(read.chunks(size))
    found = [row for chunk in chunks for row in chunk.rows]
    assert read.names == [name.strip() for name in names]
    assert found == rows
    lines = [line for chunk in chunks for line in chunk.lines]
    expected, line = [], 1 + lines_of(names)
    for row in rows:
        expected.append(line)
        line += lines_of(row)
    assert lines == expected


def lines_of(fields: list[str]) -> int:
    return 1 + sum(field.count("\n") + field.count("\r") - field.count("\r\n") for field in fields)


@settings(max_examples=80, deadline=None)
@given(
    numbers=st.lists(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=2,
        max_size=9,
    ),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_the_separator_is_found(numbers: list[list[float]], separator: str, end: str) -> None:
    rows = [[repr(number) for number in row] for row in numbers]
    text = write(["one", "two", "three"], rows, separator, csv.QUOTE_MINIMAL, end)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        file.write_text(text, newline="")
        read = TextTable(file)
        assert read.separator == separator
        assert [row for chunk in read.chunks() for row in chunk.rows] == rows


def check(file: Path, spec: SeriesSpec) -> None:
    """The file is read, or refused by name; any other exception is a defect."""
    message = None
    try:
        table = read_series(file, spec=spec)
    except DataError as error:
        message = str(error)
    else:
        assert table.n_points >= 1
    assert message is None or file.name in message, f"the file is not named: {message}"


SPECS = [
    SeriesSpec(time=0, target=-1),
    SeriesSpec(time=0, target=1, series=2, header=False),
    SeriesSpec(target=0, frequency="h", start="2020-01-01", observed=1, encoding="utf-16"),
    SeriesSpec(time="t", target="y", known="k", decimal=",", separator=";", encoding="cp1252"),
]
ALMOST = st.lists(
    st.sampled_from(
        [
            *("t", "y", "k", ",", ";", '"', "\n", "\r\n", " ", "", "x", "\ufeff", "nan", "inf", "1e400"),
            *("2020-01-01", "2020-01-02 10:00", "1/2/2020", "13.1.2020", "2020", "2020Q3", "99999999999"),
            *("0", "1", "-2.5", "1,5"),
        ]
    ),
    max_size=40,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200), ALMOST.map(str.encode), ALMOST.map(lambda text: text.encode("utf-16"))
    ),
    name=st.sampled_from(["t.csv", "t.csv.gz", "t.xz", "t.bz2", "t.zip", "t.parquet"]),
    spec=st.sampled_from(SPECS),
)
@example(data=b"PAR1" + bytes(40) + b"PAR1", name="t.parquet", spec=SPECS[0])
@example(data=b"PK\x05\x06" + bytes(18), name="t.zip", spec=SPECS[0])
@example(data=b"t,y\n1,1\n2,2\n", name="t.csv", spec=SPECS[0])
def test_arbitrary_bytes_give_a_table_or_a_data_error(data: bytes, name: str, spec: SeriesSpec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        check(file, spec)


@settings(max_examples=60, deadline=None)
@given(
    data=ALMOST.map(str.encode),
    cut=st.integers(0, 60),
    packed=st.sampled_from([".gz", ".xz", ".bz2", ".zip"]),
)
def test_cut_or_altered_containers_give_a_data_error(data: bytes, cut: int, packed: str) -> None:
    if packed == ".zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("t.csv", data)
        whole = stream.getvalue()
    else:
        whole = PACKERS[packed](data)
    altered = bytearray(whole)
    altered[cut % len(whole)] ^= 0x55
    with tempfile.TemporaryDirectory() as folder:
        for content in (whole[: max(len(whole) - cut - 1, 0)], bytes(altered)):
            file = Path(folder) / f"t{packed}"
            file.write_bytes(content)
            check(file, SPECS[0])


def test_names_survive_a_byte_order_mark_and_padding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"time" , load\n1, 2\n')
    with pytest.raises(DataError, match="quoting is broken"):
        TextTable(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"time", load\n1, 2\n')
    assert TextTable(tmp_path / "a.csv").names == ["time", "load"]


def test_blank_lines_are_dropped_but_are_values_in_a_single_column(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\na,b\n\n1,2\n\n\n3,4\n\n")
    chunks = list(TextTable(file).chunks())
    assert [row for chunk in chunks for row in chunk.rows] == [["1", "2"], ["3", "4"]]
    assert [line for chunk in chunks for line in chunk.lines] == [4, 7]
    file.write_text("y\n1\n\n3\n")
    assert [row for chunk in TextTable(file).chunks() for row in chunk.rows] == [["1"], [""], ["3"]]


def test_without_a_header_columns_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    table = TextTable(tmp_path / "a.csv", header=False)
    assert table.names == ["0", "1"]
    assert next(iter(table.chunks())).rows == [["1", "2"], ["3", "4"]]


def test_layers_of_packing_open_by_themselves(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/", "")
        archive.writestr("__MACOSX/deep/._t.csv.gz", "junk")
        archive.writestr("deep/t.csv.gz", gzip.compress(b"a,b\n1,2\n"))
    with open_binary(tmp_path / "a.zip") as stream:
        assert stream.read() == b"a,b\n1,2\n"


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.csv.gz"
    file.write_bytes(gzip.compress(bytes(1 << 25)))
    with pytest.raises(DataError, match="longer than 16,777,216 characters"):
        read_series(file, spec=SPECS[0])


def test_a_separator_must_be_one_character(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a:b\n1:2\n")
    assert TextTable(tmp_path / "a.csv", separator=":").names == ["a", "b"]
    with pytest.raises(InputError, match="one character"):
        TextTable(tmp_path / "a.csv", separator="")
