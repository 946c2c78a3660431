"""Tables in and out of a forecaster: files, frames and tables that were read already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.data.frequency import Frequency
from ostinato.data.series import SeriesSpec, read_series, require_moderate, table_from_frame
from ostinato.data.table import SeriesTable, TableSchema
from ostinato.errors import InputError
from ostinato.tasks.forecast.engine import Distribution

OUTPUT_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


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
        return require_moderate(read_series(data, spec=spec, schema=schema, future=future))
    return require_moderate(table_from_frame(data, spec, schema=schema, future=future))


def with_season(table: SeriesTable, season: int) -> SeriesTable:
    """The table with another main season."""
    return replace(table, frequency=table.frequency.with_season(season))


class ForecastColumns:
    """Forecasts one below the other: columns series, time[, target], mean, q0.1 … q0.9."""

    def __init__(self, frequency: Frequency, n_targets: int):
        self._frequency, self._n_targets = frequency, n_targets
        self._columns: dict[str, list[Any]] = {"series": [], "time": [], "target": [], "mean": []}
        self._columns |= {f"q{level:g}": [] for level in OUTPUT_LEVELS}

    def add(self, series: str, target: str, first: np.datetime64, said: Distribution, row: int) -> None:
        """The forecast `said.mean[row]` of one target, whose first step is at time `first`."""
        H = said.mean.shape[1]
        columns = self._columns
        columns["series"] += [series] * H
        columns["time"] += self._frequency.format(self._frequency.times(first, H))
        columns["target"] += [target] * H
        columns["mean"] += said.mean[row].tolist()
        for level in OUTPUT_LEVELS:
            q = int(np.argmin(np.abs(said.levels - level)))
            columns[f"q{level:g}"] += said.quantiles[row, :, q].tolist()

    def result(self) -> dict[str, list[Any]]:
        """All columns; `target` only where there are several."""
        return {k: v for k, v in self._columns.items() if k != "target" or self._n_targets > 1}


def like(data: Any, columns: dict[str, list[Any]]) -> Any:
    """A table of the same kind as `data`; a dict of columns for files, dicts and tables."""
    if isinstance(data, str | Path | dict | SeriesTable):
        return columns
    import narwhals as nw

    frame = nw.from_native(data, eager_only=True)
    return nw.from_dict(columns, backend=frame.implementation).to_native()
