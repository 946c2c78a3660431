"""Files as they come: compressed or inside an archive, in some encoding, with some separator. Gives records.

Nothing here knows what a column means. Every failure that the bytes of a file can cause is a `DataError` that
names the file, and the line where there is one; reading never runs anything, and a record has a bounded size,
so a hostile file cannot exhaust the memory.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import difflib
import gzip
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from ostinato.errors import DataError, InputError

LINE_LIMIT = 1 << 24  # characters; a longer line is not a table
_LINE_END = re.compile(r"\r\n|\r|\n")
SEPARATORS = "\t;|,"  # in order of preference where several would fit
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DAMAGED = (
    EOFError,
    OSError,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
)


@contextmanager
def open_binary(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through `.gz`, `.xz`, `.bz2` and the members of a `.zip`.

    `archive.zip` opens its only member, `archive.zip/data.csv` the one named. Raises DataError for a file
    that is missing, is a folder or cannot be read, and, while reading, for broken compression.
    """
    path = Path(path)
    archive, member = _split_archive(path)
    with _open_raw(archive, path) as raw:
        try:
            if archive.suffix.lower() == ".zip":
                with (
                    _open_member(raw, member, archive) as inner,
                    _decompressed(inner, Path(inner.name or "")) as plain,
                ):
                    yield plain
            else:
                with _decompressed(raw, archive) as plain:
                    yield plain
        except _DAMAGED as error:
            raise DataError(
                f"the file is damaged or truncated ({error or type(error).__name__}); make or fetch it again",
                path=path,
            ) from error


def _open_raw(archive: Path, path: Path) -> BinaryIO:
    try:
        return archive.open("rb")
    except FileNotFoundError:
        raise DataError(_missing(path), path=path) from None
    except IsADirectoryError:
        raise DataError("expected a file, found a folder; name the file in it", path=path) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise DataError(
            f"the file cannot be opened: {error}; check path and permissions", path=path
        ) from error


@contextmanager
def _decompressed(raw: BinaryIO, name: Path) -> Iterator[BinaryIO]:
    opener = _OPENERS.get(name.suffix.lower())
    if opener is None:
        yield raw
        return
    with opener(raw, "rb") as stream:
        yield cast(BinaryIO, stream)


def _split_archive(path: Path) -> tuple[Path, str | None]:
    """`a/b.zip/c/d.csv` is the member `c/d.csv` of `a/b.zip`, unless a folder has that name."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, None


@contextmanager
def _open_member(raw: BinaryIO, wanted: str | None, archive: Path) -> Iterator[BinaryIO]:
    try:
        zipped = zipfile.ZipFile(raw)
        inner = zipped.open(_member(zipped, wanted, archive))
    except DataError:
        raise
    except (
        ValueError,
        IndexError,
        RuntimeError,
    ) as error:  # how zipfile meets names and headers that are damaged
        raise zipfile.BadZipFile(str(error)) from error
    with zipped, inner:
        yield cast(BinaryIO, inner)


def _member(zipped: zipfile.ZipFile, wanted: str | None, archive: Path) -> zipfile.ZipInfo:
    members = [
        info for info in zipped.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")
    ]
    names = [info.filename for info in members]
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    if wanted is None and len(members) != 1:
        cure = f"name one, as {archive.name}/MEMBER; it holds: {shown}" if members else "it is empty"
        raise DataError(f"expected an archive with one file, found {len(members)}; {cure}", path=archive)
    if wanted is not None and wanted not in names:
        raise DataError(f"the archive has no file {wanted!r}; it holds: {shown}", path=archive)
    found = members[0 if wanted is None else names.index(wanted)]
    if found.flag_bits & 1:
        raise DataError(f"{found.filename!r} needs a password; extract it first", path=archive)
    return found


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the file does not exist, nor does the folder {str(folder)!r}; check the path"
    near = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1)
    return "the file does not exist; " + (f"did you mean {near[0]!r}?" if near else "check the path")


def is_parquet(path: str | Path) -> bool:
    """Whether the file is Parquet, by its first four bytes."""
    with open_binary(path) as stream:
        found = stream.read(4) == b"PAR1"
    if not found and Path(path).suffix.lower() in (".parquet", ".pq"):
        raise DataError("not a Parquet file, though its name says so; write or name it anew", path=path)
    return found


@dataclass(frozen=True)
class Records:
    """Consecutive records: `rows` of equal width, and `lines`, where each starts, counted from 1."""

    rows: list[list[str]]
    lines: list[int]


class TextTable:
    """A CSV file, or one with another separator, as chunks of records. Iterate `chunks()` as often as needed.

    Args:
        path: the file; see `open_binary` for the forms it may have.
        separator: one character; None finds comma, semicolon, tab or pipe from the first lines.
        encoding: a Python codec name; a byte order mark is dropped in every Unicode encoding.
        header: whether the first record holds the names; without it the columns are named "0", "1", ….

    Raises:
        DataError: an empty file, wrong encoding, broken quoting, rows of unequal width.
        InputError: an unknown encoding, a separator that is not one character.
    """

    def __init__(
        self, path: str | Path, *, separator: str | None = None, encoding: str = "utf-8", header: bool = True
    ):
        self.path, self.header = Path(path), header
        self.encoding = codec(encoding)
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise InputError(f"separator: expected one character such as ',' or ';', found {separator!r}")
        self.separator = separator if separator is not None else self._sniff()
        first = self._first_record()
        self.names = [name.strip() for name in first] if header else [str(i) for i in range(len(first))]
        self.width = len(first)

    def chunks(self, size: int = 32_768) -> Iterator[Records]:
        """The records after the header, `size` at a time, in constant memory."""
        with self._reader() as (reader, read):
            done = 0
            if self.header:
                self._skip_header(read)
                done = reader.line_num
            while rows := read(size):
                lines = _starting_lines(rows, done, reader.line_num)
                done = reader.line_num
                records = self._uniform(rows, lines)
                if records.rows:
                    yield records

    def _uniform(self, rows: list[list[str]], lines: list[int]) -> Records:
        """Drop blank lines (in a file of one column a blank line is a missing value), refuse other widths."""
        if set(map(len, rows)) == {self.width}:
            return Records(rows, lines)
        if self.width == 1:
            rows = [row or [""] for row in rows]
        kept = [(row, line) for row, line in zip(rows, lines, strict=True) if row]
        for row, line in kept:
            if len(row) != self.width:
                raise DataError(
                    f"expected {self.width} fields separated by {self.separator!r}, found {len(row)}; "
                    "quote fields that contain the separator, or set the separator",
                    path=self.path,
                    line=line,
                )
        return Records([row for row, _ in kept], [line for _, line in kept])

    def _first_record(self) -> list[str]:
        with self._reader() as (_, read):
            first = self._skip_header(read)
        if not first:
            raise DataError("the file is empty; expected a header and rows", path=self.path)
        return first

    @staticmethod
    def _skip_header(read: Callable[[int], list[list[str]]]) -> list[str]:
        while rows := read(1):
            if rows[0]:
                return [rows[0][0].removeprefix("\ufeff"), *rows[0][1:]]
        return []

    @contextmanager
    def _reader(self) -> Iterator[tuple[_LineCounter, Callable[[int], list[list[str]]]]]:
        """A csv reader, and a function that reads up to n records from it with broken quoting reported."""
        with self._text() as lines:
            reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=True, strict=True)

            def read(count: int) -> list[list[str]]:
                try:
                    return list(islice(reader, count))
                except csv.Error as error:
                    raise DataError(
                        f"the quoting is broken ({error}); close the quote, and double a quote inside quotes",
                        path=self.path,
                        line=reader.line_num,
                    ) from error

            yield cast(_LineCounter, reader), read

    @contextmanager
    def _text(self) -> Iterator[Iterator[str]]:
        """The decoded lines, line ends included."""
        try:
            with open_binary(self.path) as raw:
                yield self._bounded(TextIOWrapper(raw, encoding=self.encoding, newline=""))
        except UnicodeError as error:
            raise self._wrong_encoding(error) from error

    def _bounded(self, text: TextIOWrapper) -> Iterator[str]:
        while line := text.readline(LINE_LIMIT):
            if len(line) == LINE_LIMIT:
                raise DataError(
                    f"a line is longer than {LINE_LIMIT:,} characters; expected a table", path=self.path
                )
            yield line
        text.detach()  # the caller closes the bytes

    def _wrong_encoding(self, error: UnicodeError) -> DataError:
        """Find the byte and the line that do not decode: the stream's error counts from its last buffer."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        offset, line, head = 0, 1, b""
        with open_binary(self.path) as raw:
            while block := raw.read(1 << 16):
                head = head or block[:4]
                pending = len(decoder.getstate()[0])
                try:
                    line += decoder.decode(block).count("\n")
                except UnicodeError as found:
                    start = getattr(found, "start", 0)  # counts from the bytes kept of the last block
                    line += block[: max(start - pending, 0)].count(b"\n")
                    offset += start - pending
                    break
                offset += len(block)
        name = self.encoding.removesuffix("-sig")
        return DataError(
            f"byte {offset} is not {name}; {encoding_cure(head, name)}", path=self.path, line=line
        )

    def _sniff(self) -> str:
        """The separator of the first lines."""
        with self._text() as lines:
            sample, size = [], 0
            for line in islice(lines, 200):
                sample.append(line)
                size += len(line)
                if size > 1 << 18:
                    break
        return find_separator(sample)


def find_separator(sample: list[str]) -> str:
    """The separator that splits lines into the most even table of two columns or more; else the comma."""
    best, chosen = 0.0, ","
    for separator in SEPARATORS:
        try:
            rows = list(csv.reader(sample, delimiter=separator, skipinitialspace=True))
        except csv.Error:
            continue
        widths = [len(row) for row in rows if row]
        if not widths or widths[0] < 2:
            continue
        even = sum(width == widths[0] for width in widths) / len(widths)
        if even > best:
            best, chosen = even, separator
    return chosen


class _LineCounter(Protocol):
    @property
    def line_num(self) -> int: ...


def _starting_lines(rows: list[list[str]], done: int, now: int) -> list[int]:
    """The line each record starts on, after `done` lines and up to line `now`."""
    if now - done == len(rows):
        return list(range(done + 1, now + 1))
    lines, line = [], done + 1
    for row in rows:
        lines.append(line)
        line += 1 + sum(len(_LINE_END.findall(field)) for field in row)
    return lines


def codec(encoding: str) -> str:
    """The codec's own name, with the byte order mark dropped from UTF-8; InputError where it is not known."""
    try:
        name = codecs.lookup(encoding).name
        TextIOWrapper(BytesIO(), encoding=name)
    except (LookupError, ValueError, TypeError):  # unknown, not a text encoding, or with a null character
        raise InputError(
            f"encoding: {encoding!r} is not known; common ones are utf-8, utf-16, cp1252, latin-1, shift_jis"
        ) from None
    return "utf-8-sig" if name == "utf-8" else name


def encoding_cure(head: bytes, tried: str) -> str:
    """What to do about bytes that are not in the encoding tried; `head` holds the first bytes of the file."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "the file starts as UTF-16 does: set the encoding to utf-16"
    others = [name for name in ("utf-8", "cp1252", "latin-1") if name != tried]
    return f"set the encoding the file was written in, such as {' or '.join(others)}"
