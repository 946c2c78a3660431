"""Tables in and out of a forecaster: files, frames and tables that were read already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ostinato.data.series import SeriesSpec, read_series, table_from_frame
from ostinato.data.table import SeriesTable, TableSchema
from ostinato.errors import InputError


def read_table(
    data: Any, *, spec: SeriesSpec | None = None, schema: TableSchema | None = None, future: Any = None
) -> SeriesTable:
    """The table in a file or a frame; a `SeriesTable` is taken as it is, if its columns fit `schema`."""
    if isinstance(data, SeriesTable):
        if schema is not None:
            expected = (schema.frequency.name, *map(str, schema.spec.columns("target")))
            found = (data.frequency.name, *data.targets)
            if found != expected:
                raise InputError(
                    f"data: expected frequency and targets {', '.join(expected)}, found {', '.join(found)}; "
                    "give a table read as the training table was"
                )
        return data
    if isinstance(data, str | Path):
        return read_series(data, spec=spec, schema=schema, future=future)
    return table_from_frame(data, spec, schema=schema, future=future)


def with_season(table: SeriesTable, season: int) -> SeriesTable:
    """The table with another main season."""
    return replace(table, frequency=table.frequency.with_season(season))


def like(data: Any, columns: dict[str, list[Any]]) -> Any:
    """A table of the same kind as `data`; a dict of columns for files, dicts and tables."""
    if isinstance(data, str | Path | dict | SeriesTable):
        return columns
    import narwhals as nw

    frame = nw.from_native(data, eager_only=True)
    return nw.from_dict(columns, backend=frame.implementation).to_native()
