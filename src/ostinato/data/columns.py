"""Where columns come from: text files, Parquet, and frames; all give the same chunks of columns and lines."""

from __future__ import annotations

import difflib
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ostinato.data.files import TextTable, is_parquet, open_binary
from ostinato.errors import DataError, InputError, MissingExtraError

Column = list[str] | NDArray[Any]
CHUNK_ROWS = 32_768


class Named(Protocol):
    """Something with named columns that can say where an error is."""

    names: list[str]

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        ...


class ColumnSource(Protocol):
    """A table that is read column by column, chunk by chunk, as often as needed."""

    names: list[str]
    is_frame: bool  # or Parquet: the names cannot be values
    has_zone: bool  # whether times were converted to UTC
    unit: str  # what a record is called: "line" or "row"

    def chunks(self, wanted: Sequence[int]) -> Iterator[tuple[list[Column], NDArray[np.int64]]]:
        """The wanted columns, and the line (file) or row (frame) of each record, counted from 1."""
        ...

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        ...


def resolve(source: Named, wanted: str | int, option: str) -> int:
    """The index of a column given by name, or by number (negative from the end)."""
    names = source.names
    if isinstance(wanted, str) and wanted in names:
        if names.count(wanted) > 1:
            places = [i for i, name in enumerate(names) if name == wanted]
            raise source.error(
                f"{option}: {len(places)} columns are named {wanted!r}; give a number, one of {places}",
                line=1,
            )
        return names.index(wanted)
    try:
        index = int(wanted)
    except ValueError:
        index = None
    if index is not None and -len(names) <= index < len(names):
        return index % len(names)
    near = difflib.get_close_matches(str(wanted), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(repr(name) for name in names[:30]) + (", …" if len(names) > 30 else "")
    raise source.error(f"{option}: there is no column {wanted!r}; {hint}the columns are: {shown}")


class TextSource:
    """Columns of a CSV file."""

    unit = "line"

    def __init__(self, table: TextTable):
        self.table, self.names = table, table.names
        self.is_frame = self.has_zone = False

    def chunks(self, wanted: Sequence[int]) -> Iterator[tuple[list[Column], NDArray[np.int64]]]:
        """The wanted columns, a chunk at a time."""
        for records in self.table.chunks(CHUNK_ROWS):
            columns: list[Column] = [[row[i] for row in records.rows] for i in wanted]
            yield columns, np.asarray(records.lines, np.int64)

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        if line in (None, 1) and not self.table.header:
            message += " (if the first line holds the names of the columns, leave out --no-header)"
        return DataError(message, path=self.table.path, line=line, column=column)


class FrameSource:
    """Columns of a pandas, polars or pyarrow table, or of a dict of arrays."""

    unit = "row"

    def __init__(self, frame: Any, time: str | int | None = None):
        import narwhals.stable.v2 as nw
        from narwhals.exceptions import NarwhalsError

        if isinstance(frame, Mapping):
            self._columns = {str(name): np.asarray(values) for name, values in frame.items()}
            sizes = {name: values.shape for name, values in self._columns.items()}
            if any(len(shape) != 1 for shape in sizes.values()) or len(set(sizes.values())) > 1:
                raise DataError(f"expected arrays of one axis and equal length, found shapes {sizes}")
            self._frame, self.names = None, list(self._columns)
            self._n = next(iter(sizes.values()))[0] if sizes else 0
        else:
            if time is not None and getattr(getattr(frame, "index", None), "name", None) == time:
                frame = frame.reset_index()
            try:
                self._frame = nw.from_native(frame, eager_only=True)
            except TypeError:
                raise InputError(
                    "expected a pandas, polars or pyarrow table or a dict of arrays, "
                    f"found {type(frame).__name__}"
                ) from None
            except NarwhalsError as error:
                raise DataError(f"the table cannot be read: {error}; rename its columns") from None
            self.names, self._n = [str(name) for name in self._frame.columns], len(self._frame)
        self.is_frame, self.has_zone = True, False

    def chunks(self, wanted: Sequence[int]) -> Iterator[tuple[list[Column], NDArray[np.int64]]]:
        """The wanted columns, a chunk at a time."""
        columns = {i: self._column(i) for i in wanted}
        for first in range(0, self._n, CHUNK_ROWS):
            rows = slice(first, min(first + CHUNK_ROWS, self._n))
            yield [columns[i][rows] for i in wanted], np.arange(rows.start + 1, rows.stop + 1)

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        where = [] if line is None else [f"row {line}"]
        where += [] if column is None else [f"column {column!r}"]
        error = DataError(f"{', '.join(where)}: {message}" if where else message)
        error.line, error.column = line, column
        return error

    def _column(self, index: int) -> Column:
        if self._frame is None:
            return _from_numpy(self._columns[self.names[index]])
        import narwhals.stable.v2 as nw

        column = self._frame[:, index]
        kind = column.dtype
        if isinstance(kind, nw.Datetime) and kind.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            self.has_zone = True
        if isinstance(kind, (nw.Datetime, nw.Date)):
            return np.asarray(column.to_numpy(), "datetime64[us]")
        if kind.is_numeric():
            if not column.is_null().any():
                return _from_numpy(column.to_numpy())
            return np.array([np.nan if _is_null(value) else value for value in column.to_list()], np.float64)
        return _from_numpy(np.array(column.to_list(), dtype=object))


def _from_numpy(values: NDArray[Any]) -> Column:
    """Numbers as float64 or int64, times as datetime64, everything else as text."""
    if values.dtype.kind in "iu" and not (values > np.iinfo(np.int64).max).any():
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if values.dtype.kind == "M":
        return values
    return ["" if _is_null(value) else str(value) for value in values.tolist()]


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value) in ("<NA>", "NaT")


class ParquetSource:
    """Columns of a Parquet file, a batch of rows at a time."""

    unit = "row"

    def __init__(self, path: str | Path):
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtraError(f"reading the Parquet file {path}", "pyarrow", "parquet") from None
        self.path, self._pq = Path(path), pq
        self.is_frame, self.has_zone = True, False
        with self.opened() as file:
            self.names = list(file.schema_arrow.names)

    def chunks(self, wanted: Sequence[int]) -> Iterator[tuple[list[Column], NDArray[np.int64]]]:
        """The wanted columns, a chunk at a time."""
        import pyarrow as pa

        done = 0
        with self.opened() as file:
            for batch in file.iter_batches(batch_size=CHUNK_ROWS):
                part = FrameSource(pa.Table.from_batches([batch]))
                for columns, rows in part.chunks(wanted):
                    yield columns, rows + done
                self.has_zone |= part.has_zone
                done += batch.num_rows

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The file, unpacked to a temporary one where it is compressed: Parquet is read from its end."""
        import pyarrow as pa

        with open_binary(self.path) as packed, tempfile.TemporaryFile() as plain:
            direct = packed.name == str(self.path) if hasattr(packed, "name") else False
            if not direct:
                shutil.copyfileobj(packed, plain)
                plain.seek(0)
            try:
                yield self._pq.ParquetFile(packed if direct else plain)
            except (pa.ArrowException, OSError, UnicodeError) as error:
                raise DataError(
                    f"not a readable Parquet file ({error}); write it again", path=self.path
                ) from error

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        where = "" if line is None else f"row {line}: "
        error = DataError(where + message, path=self.path, column=column)
        error.line = line
        return error


def open_source(
    path: str | Path, *, separator: str | None = None, encoding: str = "utf-8", header: bool = True
) -> ColumnSource:
    """The file as columns: Parquet where its first bytes say so, else text."""
    if is_parquet(path):
        return ParquetSource(path)
    return TextSource(TextTable(path, separator=separator, encoding=encoding, header=header))
