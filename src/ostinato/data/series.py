"""Tables of time series: files and frames to a `SeriesTable`. docs/data.md lists every form and refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ostinato.data.columns import ColumnSource, FrameSource, open_source
from ostinato.data.large import DEFAULT_BUDGET_BYTES
from ostinato.data.reading import Reading, shown
from ostinato.data.table import Note, Series, SeriesSpec, SeriesTable, TableSchema
from ostinato.errors import DataError, InputError

__all__ = [
    "Note",
    "Series",
    "SeriesSpec",
    "SeriesTable",
    "TableSchema",
    "drop_short",
    "read_series",
    "require_future",
    "require_moderate",
    "table_from_frame",
]

LARGEST = 1e30  # squares fit into double precision, values into single precision


def read_series(
    path: str | Path,
    *,
    spec: SeriesSpec | None = None,
    schema: TableSchema | None = None,
    future: str | Path | None = None,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> SeriesTable:
    """Read a file of time series: CSV or Parquet, plain, compressed or in an archive.

    Args:
        path: the file; `archive.zip/member.csv` names a member.
        spec: the roles of the columns.
        schema: of the training table, instead of a spec: same roles, categories and frequency.
        future: a file with the known columns at times after the last target.
        budget_bytes: parsed rows beyond it go to a temporary folder, and the arrays of the table are mapped
            from there; memory then stays constant however large the file is.

    Raises:
        DataError: anything wrong in a file; the message names the file, the line, the column and the cure.
        InputError: a spec that cannot work for any file.
        MissingExtraError: a Parquet file without pyarrow.

    Cost: one pass over the file (another where a late row changes how earlier ones read), two over the parsed
        rows.
    """
    spec, schema = _roles(spec, schema)
    sources = [_open(path, spec)]
    if future is not None:
        sources.append(_open(future, spec))
    return Reading(spec, schema, sources, str(path), budget_bytes).table()


def table_from_frame(
    frame: Any,
    spec: SeriesSpec | None = None,
    *,
    schema: TableSchema | None = None,
    future: Any = None,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> SeriesTable:
    """As `read_series`, from a pandas, polars or pyarrow table, or a dict of arrays of one axis."""
    spec, schema = _roles(spec, schema)
    sources: list[ColumnSource] = [FrameSource(frame, spec.time)]
    if future is not None:
        sources.append(FrameSource(future, spec.time))
    return Reading(spec, schema, sources, "frame", budget_bytes).table()


def drop_short(table: SeriesTable, minimum: int) -> SeriesTable:
    """The table without the series of fewer than `minimum` rows, which a note counts.

    Raises DataError where no series is long enough.
    """
    kept = table.restrict(lambda series: series.length >= minimum)
    if not kept.series:
        longest = max(table.series, key=lambda series: series.length)
        raise DataError(
            f"every series is too short: at least {minimum} rows are needed, and the longest, "
            f"{longest.id!r}, has {longest.length}; shorten the horizon or the seasons, hold out fewer "
            "rows, or give longer series",
            path=table.source,
        )
    n = len(table) - len(kept)
    if not n:
        return table
    names = [series.id for series in table.series if series.length < minimum]
    text = f"{n} of {len(table)} series left out, having fewer than {minimum} rows: {shown(names)}"
    return kept.with_notes(Note("short", text, n))


def require_moderate(table: SeriesTable) -> SeriesTable:
    """The table; DataError where a number is so large that its square or its single precision overflows."""
    for series in table.series:
        for names, values in (
            (table.targets, series.values),
            (table.known, series.known),
            (table.observed, series.observed),
        ):
            extremes = [over.reduce(values, axis=None, initial=0.0) for over in (np.fmin, np.fmax)]
            if max(-extremes[0], extremes[1]) > LARGEST:
                row, column = np.argwhere(np.abs(values) > LARGEST)[0]
                raise DataError(
                    f"series {series.id!r}: {values[row, column]:g} is beyond ±{LARGEST:g}; correct it, or "
                    "give the column in another unit",
                    path=table.source,
                    column=names[column],
                )
    return table


def require_future(table: SeriesTable, horizon: int) -> None:
    """Raise DataError unless every series has all known columns for `horizon` steps after its last target."""
    if not table.known:
        return
    for series in table.series:
        ahead = np.full((horizon, len(table.known)), np.nan)
        given = series.known[series.length : series.length + horizon]
        ahead[: len(given)] = given
        missing = np.isnan(ahead)
        if not missing.any():
            continue
        columns = [name for name, gone in zip(table.known, missing.any(axis=0), strict=True) if gone]
        steps = np.flatnonzero(missing.any(axis=1))
        times = table.frequency.format(table.times(series, future=horizon)[series.length + steps])
        listed = ", ".join(times[:3]) + (f", … {times[-1]}" if len(times) > 3 else "")
        raise DataError(
            f"series {series.id!r}: the known columns {', '.join(map(repr, columns))} have no value at "
            f"{len(times)} of the {horizon} times of the forecast: {listed}; add rows with these times, an "
            "empty target and the known columns, or give such rows in a file of their own with --future",
            path=table.source,
        )


def _roles(spec: SeriesSpec | None, schema: TableSchema | None) -> tuple[SeriesSpec, TableSchema | None]:
    if (spec is None) == (schema is None):
        raise InputError(
            "expected either spec or schema: the roles of the columns, or those of the training table"
        )
    if spec is None and schema is not None:
        spec = schema.spec
    assert spec is not None
    has_own_times = spec.time is not None and spec.start is None
    if not has_own_times and (spec.frequency is None or spec.start is None):
        raise InputError(
            "expected the column of the times (--time COLUMN), or for a table without times both its "
            "frequency and its first time (--freq h --start 2020-01-01)"
        )
    return spec, schema


def _open(path: str | Path, spec: SeriesSpec) -> ColumnSource:
    return open_source(path, separator=spec.separator, encoding=spec.encoding, header=spec.header)
