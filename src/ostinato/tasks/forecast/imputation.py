"""`Imputer`: fills the gaps of series, and the time before they start, from both sides."""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ostinato.config import from_toml, to_toml
from ostinato.data.interpolation import Floats, Indices, gap_lengths
from ostinato.data.series import SeriesSpec
from ostinato.data.table import Names, Note, SeriesTable, TableSchema
from ostinato.errors import DataError, InputError, RunFolderError
from ostinato.models.encoder import CELLS
from ostinato.tasks.base import Estimator
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.engine import LEVELS
from ostinato.tasks.forecast.gaps import GapRows, Places, Scaling, margin_of, window_batch
from ostinato.tasks.forecast.imputation_fitting import (
    ImputationEngine,
    ImputationSettings,
    build_imputer,
    fit_imputer,
)
from ostinato.tasks.forecast.rows import Columns
from ostinato.tasks.forecast.tables import OUTPUT_LEVELS, like, read_table, with_season
from ostinato.training.history import History
from ostinato.training.run_folder import RunFolder

KIND = "imputer"
_FEWEST = 8
_CELLS = 400_000
_S = ImputationSettings


class Imputer(Estimator):
    """Bidirectional recurrent network that fills gaps and predicts the time before a series starts.

    It mixes and corrects simple estimates (linear interpolation, the seasons before and after) with what it
    reads on both sides of a gap. Training hides known values in gaps as long as the real ones; untrained it
    is the best mixture of the estimates, and training is kept only as far as it helps on held-out gaps, which
    also calibrate the intervals. Parameters are explained in `ImputationSettings`, which holds their
    defaults. With `training_steps` the same seed gives the same bits; a time limit ends where it ends.

    Attributes (after `fit`):
        engine_: network, scaling and calibration.
        history_: of training.
        schema_: how tables are read.
        notes_: what reading, training and the last call had to say, as text.
    """

    def __init__(  # noqa: PLR0913 - one argument per setting is scikit-learn's way
        self,
        *,
        cell: Any = _S.cell,
        hidden_size: int = _S.hidden_size,
        num_layers: int = _S.num_layers,
        members: int = _S.members,
        dropout: float = _S.dropout,
        season: int | None = _S.season,
        window: int | None = _S.window,
        backcast_steps: int | None = _S.backcast_steps,
        transform: str = _S.transform,
        batch_size: int = _S.batch_size,
        learning_rate: float = _S.learning_rate,
        training_steps: int | None = _S.training_steps,
        max_time_s: float | None = _S.max_time_s,
        patience: int | None = _S.patience,
        seed: int = _S.seed,
        device: str = _S.device,
        progress: str = _S.progress,
    ):
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.members = members
        self.dropout = dropout
        self.season = season
        self.window = window
        self.backcast_steps = backcast_steps
        self.transform = transform
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.training_steps = training_steps
        self.max_time_s = max_time_s
        self.patience = patience
        self.seed = seed
        self.device = device
        self.progress = progress

    def settings(self) -> ImputationSettings:
        """The parameters, checked."""
        return ImputationSettings(**{f.name: getattr(self, f.name) for f in fields(ImputationSettings)})

    # ------------------------------------------------------------------------------------------- fit

    def fit(  # noqa: PLR0913 - the roles of the columns, one argument each
        self,
        data: Any,
        *,
        target: Names,
        time: str | int | None = None,
        series: str | int | None = None,
        known: Names = (),
        observed: Names = (),
        static: Names = (),
        frequency: str | None = None,
        start: str | None = None,
        time_format: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
        encoding: str = "utf-8",
        header: bool = True,
    ) -> Self:
        """Learn from a file, a pandas, polars or pyarrow table, or a dict of columns, with or without gaps.

        Args:
            data: the file or table, in long format: one row per series and time. A time without a row is a
                gap as well.
            target, time, series, known, observed, static: columns and their roles, as in `SeriesSpec`.
            frequency, start: of a table without times.
            time_format, separator, decimal, encoding, header: how a file is written.

        Raises:
            InputError: a wrong argument or column; DataError: a file that cannot be used, with its line; a
                series without any value, or none long enough to learn from.
        """
        started_s = clock.monotonic()
        settings = self.settings()
        spec = SeriesSpec(
            target=target,
            time=time,
            series=series,
            known=known,
            observed=observed,
            static=static,
            frequency=frequency,
            start=start,
            time_format=time_format,
            separator=separator,
            decimal=decimal,
            encoding=encoding,
            header=header,
        )
        return self._fit(read_table(data, spec=spec), settings, started_s)

    def fit_schema(self, data: Any, schema: TableSchema) -> Self:
        """`fit`, with the columns and the frequency of a table that was read before."""
        started_s = clock.monotonic()
        settings = self.settings()
        return self._fit(read_table(data, schema=schema), settings, started_s)

    def _fit(self, table: SeriesTable, settings: ImputationSettings, started_s: float) -> Self:
        table = self._with_own_season(_require_values(table))
        if max(int((~np.isnan(s.values)).sum(axis=0).max()) for s in table.series) < _FEWEST:
            raise DataError(
                f"no series has {_FEWEST} known values, which is the least to learn from; give longer series",
                path=table.source,
            )
        self.schema_ = TableSchema.from_json(table.schema())
        self.engine_, self.history_ = fit_imputer(table, settings, started_s)
        self.notes_ = [str(note) for note in table.notes] + list(self.history_.notes)
        return self

    # ---------------------------------------------------------------------------------------- impute

    def impute(self, data: Any) -> Any:
        """The table with every gap filled.

        A gap is a missing target at a time between a series' first row and its last known target; what comes
        after that is a forecast.

        Args:
            data: in the form that `fit` took; the series need not be those of training.

        Returns:
            columns series, time[, target], value, is_imputed, q0.1 … q0.9, as a table of the kind of `data`
            (for a file: a dict of columns). Known values come back as they are, in `value` and in all
            quantiles; the value of a gap is its median, q0.5.

        Raises:
            DataError: a series without any value; a table that does not fit the training table.

        Cost: the windows that have gaps in them; memory is bounded however long the series are.
        """
        engine: ImputationEngine = self._require_fitted("engine_")
        table = self._table(data)
        rows = GapRows.of(table, engine.columns, engine.scaling)
        filled = self._filled(rows)
        missing = sum(len(steps) for steps, _ in filled)
        if not missing:
            table = table.with_notes(Note("no gaps", "there is nothing to fill: no target is missing"))
        self.notes_ = [str(note) for note in table.notes]
        columns = _columns(["value", "is_imputed"])
        for (i, c), (steps, quantiles) in zip(rows.members, filled, strict=True):
            series = table.series[i]
            values = np.repeat(series.values[:, c : c + 1], len(LEVELS), axis=1)
            values[steps] = quantiles
            is_imputed = np.zeros(series.length, dtype=np.bool_)
            is_imputed[steps] = True
            times = table.frequency.format(table.times(series))
            _extend(columns, series.id, times, table.targets[c], values)
            columns["value"] += values[:, len(LEVELS) // 2].tolist()
            columns["is_imputed"] += is_imputed.tolist()
        return like(data, _without_target(columns, table))

    def _filled(self, rows: GapRows) -> list[tuple[Indices, Floats]]:
        """Of each row the steps that are missing, and their quantiles (n, Q) in the original unit."""
        engine: ImputationEngine = self.engine_
        width, lengths = engine.width, rows.lengths
        todo = [np.flatnonzero(np.isnan(row)) for row in rows.values]
        found = [np.empty((len(steps), len(LEVELS))) for steps in todo]
        longest = max((max(_lengths(row)) for row in rows.values), default=0)
        margin = max(margin_of(engine.scaling.seasons, width), longest + width)
        jobs: list[tuple[int, int, int, int]] = []
        for r, steps in enumerate(todo):
            done = 0
            while done < len(steps):
                # A window answers for its middle half, where it has seen both sides.
                start = int(np.clip(steps[done] - width // 4, 0, max(int(lengths[r]) - width, 0)))
                stop = start + width - width // 4 if start + width < lengths[r] else int(lengths[r])
                end = int(np.searchsorted(steps, stop))
                jobs.append((r, start, done, end))
                done = end
        for part in _parts(jobs, width + 2 * margin):
            which, starts = np.array([j[0] for j in part]), np.array([j[1] for j in part])
            said = engine.values(window_batch(rows, Places.whole(which, starts, width, lengths), margin))
            for b, (r, start, first, last) in enumerate(part):
                found[r][first:last] = said[b, todo[r][first:last] - start]
        return list(zip(todo, found, strict=True))

    # -------------------------------------------------------------------------------------- backcast

    def backcast(self, data: Any, steps: int) -> Any:
        """The `steps` values before the first row of every series, from what follows it.

        Args:
            data: in the form that `fit` took.
            steps: how many.

        Returns:
            columns series, time[, target], mean, q0.1 … q0.9, as a table of the kind of `data` (for a file: a
            dict of columns). Known columns count as missing before the first row.

        Raises:
            InputError: `steps` is no whole number ≥ 1; DataError: as `impute`.
        """
        engine: ImputationEngine = self._require_fitted("engine_")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise InputError(f"steps must be a whole number ≥ 1, got {steps!r}")
        table = self._table(data)
        if steps > engine.prepared_steps:
            text = f"{steps} steps are asked for and training has hidden beginnings of up to "
            text += f"{engine.prepared_steps}; fit with backcast_steps={steps} for better intervals"
            table = table.with_notes(Note("long backcast", text))
        self.notes_ = [str(note) for note in table.notes]
        rows = GapRows.of(table, engine.columns, engine.scaling)
        width = max(engine.width, steps + engine.width // 2)
        lead = max((_lengths(row)[0] for row in rows.values), default=0)
        margin = max(margin_of(engine.scaling.seasons, width), lead + width)
        columns = _columns(["mean"])
        levels = np.array(LEVELS)
        # The mean is the integral of the quantile function; each level stands for its neighbourhood.
        share = np.diff(np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]]))
        for part in _parts(range(len(rows.members)), width + 2 * margin):
            which = np.array(part, dtype=np.int64)
            places = Places.whole(which, np.full(len(which), -steps), width, rows.lengths)
            said = engine.values(window_batch(rows, replace(places, begin=places.starts), margin))
            for b, r in enumerate(which):
                i, c = rows.members[r]
                series = table.series[i]
                times = table.frequency.format(table.frequency.times(series.start, steps, offset=-steps))
                _extend(columns, series.id, times, table.targets[c], said[b, :steps])
                columns["mean"] += (said[b, :steps] @ share).tolist()
        return like(data, _without_target(columns, table))

    # --------------------------------------------------------------------------------------- storage

    def save(self, path: str | Path) -> Self:
        """Write a run folder that `ot.load` reads on any machine; nothing in it can run code."""
        engine: ImputationEngine = self._require_fitted("engine_")
        run = RunFolder.create(path)
        settings = self.settings()
        if not isinstance(settings.cell, str):
            settings = replace(settings, cell=settings.cell.__name__)
        run.write_tensors("model.safetensors", engine.model.state_dict())
        run.write_file("config.toml", to_toml(settings).encode())
        stored = {
            "input_size": engine.model.stacks[0].input_size,
            "schema": self.schema_.to_json(),
            "columns": engine.columns.to_json(),
            "scaling": engine.scaling.to_json(),
            "near": engine.near.to_json(),
            "apart": engine.apart.to_json(),
            "width": engine.width,
            "prepared_steps": engine.prepared_steps,
        }
        run.write_json("preparation/series.json", stored)
        run.commit(KIND)
        return self

    @classmethod
    def from_run(cls, run: RunFolder, cells: Sequence[type] = ()) -> Imputer:
        """The fitted imputer of a verified run folder; `cells` supplies the user's own cell classes."""
        stored = run.read_json("preparation/series.json")
        where = str(Path(run.path) / "config.toml")
        settings = from_toml(ImputationSettings, run.read_text("config.toml"), where)
        known = {cell.__name__: cell for cell in cells}
        if settings.cell not in known and settings.cell not in CELLS:
            raise InputError(
                f"{run.path}: the run uses the cell {settings.cell!r}, which is not part of ostinato; pass "
                f"its class: ot.load(path, cells=[{settings.cell}])"
            )
        settings = replace(settings, cell=known.get(settings.cell, settings.cell))
        imputer = cls(**{f.name: getattr(settings, f.name) for f in fields(settings)})
        scaling = Scaling.from_json(stored["scaling"])
        model = build_imputer(int(stored["input_size"]), scaling, settings)
        try:
            model.load_state_dict(run.read_tensors("model.safetensors"))
        except RuntimeError as error:
            raise RunFolderError(
                f"{run.path}: model.safetensors does not fit config.toml ({str(error).splitlines()[0]}); "
                "take an unaltered copy of the folder"
            ) from error
        imputer.engine_ = ImputationEngine(
            model.eval(),
            scaling,
            Columns.from_json(stored["columns"]),
            Calibration.from_json(stored["near"]),
            Calibration.from_json(stored["apart"]),
            int(stored["width"]),
            int(stored["prepared_steps"]),
        )
        imputer.schema_ = TableSchema.from_json(stored["schema"])
        imputer.history_, imputer.notes_ = History(), []
        return imputer

    # -------------------------------------------------------------------------------------- internal

    def _table(self, data: Any) -> SeriesTable:
        return self._with_own_season(_require_values(read_table(data, schema=self.schema_)))

    def _with_own_season(self, table: SeriesTable) -> SeriesTable:
        return with_season(table, self.season) if self.season else table


def _require_values(table: SeriesTable) -> SeriesTable:
    """The table, unless one of its series has nothing to be filled from."""
    empty = next((note for note in table.notes if note.kind == "no target"), None)
    if empty is not None:
        raise DataError(
            f"{empty.count} series without any value, which cannot be filled; leave these series out",
            path=table.source,
        )
    for series in table.series:
        for c, name in enumerate(table.targets):
            if np.isnan(series.values[:, c]).all():
                raise DataError(
                    f"series {series.id!r} has no value of {name!r}, so nothing to fill it from; leave this "
                    "series or this target out",
                    path=table.source,
                )
    return table


def _lengths(row: Floats) -> list[int]:
    """Lengths of what is missing in a row: at its start, the longest gap, at its end."""
    first, between, last = gap_lengths(np.isnan(row))
    return [first, max(between, default=0), last]


def _parts(jobs: Sequence[Any], width: int) -> Iterator[list[Any]]:
    """Jobs in groups that fit in memory."""
    size = max(1, min(64, _CELLS // width))
    for i in range(0, len(jobs), size):
        yield list(jobs[i : i + size])


def _columns(middle: list[str]) -> dict[str, list[Any]]:
    names = ["series", "time", "target", *middle, *(f"q{level:g}" for level in OUTPUT_LEVELS)]
    return {name: [] for name in names}


def _extend(
    columns: dict[str, list[Any]], series: str, times: list[str], target: str, values: Floats
) -> None:
    """Add a row's names, times and quantiles (n, Q)."""
    columns["series"] += [series] * len(times)
    columns["time"] += times
    columns["target"] += [target] * len(times)
    for level in OUTPUT_LEVELS:
        columns[f"q{level:g}"] += values[:, LEVELS.index(level)].tolist()


def _without_target(columns: dict[str, list[Any]], table: SeriesTable) -> dict[str, list[Any]]:
    return columns if len(table.targets) > 1 else {k: v for k, v in columns.items() if k != "target"}
