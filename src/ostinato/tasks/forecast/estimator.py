"""`Forecaster`: from a table of series to forecasts with their uncertainty."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ostinato.data.series import SeriesSpec, drop_short, require_future
from ostinato.data.table import Names, Note, SeriesTable, TableSchema
from ostinato.errors import DataError, InputError
from ostinato.models.encoder import check_cell
from ostinato.tasks import same_data
from ostinato.tasks.base import Estimator
from ostinato.tasks.forecast import storage
from ostinato.tasks.forecast.backtest import (
    Windows,
    choose_windows,
    score_baselines,
    score_model,
    steps_trained,
)
from ostinato.tasks.forecast.beginning import Beginning
from ostinato.tasks.forecast.engine import Engine
from ostinato.tasks.forecast.fingerprint import fingerprints
from ostinato.tasks.forecast.fitting import fit_engine
from ostinato.tasks.forecast.rows import PreparedRows, prepare_rows, row_groups, row_id
from ostinato.tasks.forecast.session import Session
from ostinato.tasks.forecast.settings import ForecastSettings
from ostinato.tasks.forecast.tables import ForecastColumns, like, read_table, with_season
from ostinato.tasks.stored import plain_parameters, read_finished
from ostinato.training.metrics import seasonal_naive_scale
from ostinato.training.run_folder import RunFolder

_S = ForecastSettings


class Forecaster(Estimator):
    """Recurrent network that forecasts one or many series, with quantiles, beside honest baselines.

    The network corrects simple forecasts (the last value, the last season, exponential smoothing): untrained
    it is a mixture of them, and training is kept only as far as it helps on held-out windows. Intervals are
    calibrated on those windows. Parameters are explained in `ForecastSettings`, which holds their defaults.

    Attributes (after `fit`):
        engine_: network, preparation and calibration.
        history_: of training.
        notes_: what reading and training had to say, as text.
        metrics_: scores of the network and the baselines, on the test part if there is one, else on the
            validation part.
    """

    kind = storage.KIND

    def __init__(  # noqa: PLR0913 - one argument per setting is scikit-learn's way
        self,
        horizon: int,
        *,
        cell: Any = _S.cell,
        head: str = _S.head,
        hidden_size: int = _S.hidden_size,
        num_layers: int = _S.num_layers,
        members: int = _S.members,
        dropout: float = _S.dropout,
        season: int | None = _S.season,
        init: str | Path | None = _S.init,
        context: int | None = _S.context,
        transform: str = _S.transform,
        batch_size: int = _S.batch_size,
        learning_rate: float = _S.learning_rate,
        epochs: int | None = _S.epochs,
        steps: int | None = _S.steps,
        max_time_s: float | None = _S.max_time_s,
        patience: int | None = _S.patience,
        paths: int = _S.paths,
        test: int = _S.test,
        seed: int = _S.seed,
        device: str = _S.device,
        progress: str = _S.progress,
    ):
        self.horizon = horizon
        self.cell = cell
        self.head = head
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.members = members
        self.dropout = dropout
        self.season = season
        self.init = init
        self.context = context
        self.transform = transform
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.steps = steps
        self.max_time_s = max_time_s
        self.patience = patience
        self.paths = paths
        self.test = test
        self.seed = seed
        self.device = device
        self.progress = progress

    def settings(self) -> ForecastSettings:
        """The parameters, checked."""
        return ForecastSettings(**{f.name: getattr(self, f.name) for f in fields(ForecastSettings)})

    # ------------------------------------------------------------------------------------------- fit

    def fit(  # noqa: PLR0913 - the roles of the columns, one argument each
        self,
        data: Any,
        *,
        target: Names | None = None,
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
        future: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        started_s: float | None = None,
    ) -> Self:
        """Learn from a file, a pandas, polars or pyarrow table, or a dict of columns.

        Args:
            data: the file or table, in long format: one row per series and time; or a `SeriesTable`, whose
                columns have their roles already.
            target, time, series, known, observed, static: columns and their roles, as in `SeriesSpec`.
            frequency, start: of a table without times.
            time_format, separator, decimal, encoding, header: how a file is written.
            future: rows with known columns after the last target, where `data` does not have them.
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.
            started_s: `time.monotonic()` from which `max_time_s` counts; None: now.

        Raises:
            InputError: a wrong argument or column; DataError: a file that cannot be used, with its line.
        """
        started_s = clock.monotonic() if started_s is None else started_s
        settings = self.settings()
        stored = read_finished(self, out, resume, storage.read, storage.as_config, storage.DECIDED)
        folder = None if out is None else Path(out)
        check_cell(settings.cell, settings.hidden_size, settings.num_layers)
        if (target is None) != isinstance(data, SeriesTable):
            raise InputError(
                "target: expected the column to forecast; only a SeriesTable names its own columns"
            )
        spec = (
            None
            if target is None
            else SeriesSpec(
                target, time, series, known, observed, static, frequency=frequency, start=start,
                time_format=time_format, separator=separator, decimal=decimal, encoding=encoding,
                header=header,
            )
        )  # fmt: skip
        begun = Beginning.read(type(self), settings) if stored is None else Beginning.again(stored)
        if begun is None:
            table = read_table(data, spec=spec, future=future)
        else:
            settings = replace(settings, **begun.decided)
            table = begun.read_table(data, spec, future)
        table = table if settings.season is None else with_season(table, settings.season)
        table = drop_short(table, settings.minimum_length + settings.test)
        prints = fingerprints(table, settings.test)
        if folder is not None and stored is not None:
            return same_data.take_over(self, stored, prints, folder)
        asked = plain_parameters(storage.as_config(self))
        with same_data.learning(self, folder, resume, prints, asked) as run:
            self._fit(table, settings, folder, resume, started_s, begun)
        if run is not None:
            storage.write(self, run)
        return self

    def _fit(
        self,
        table: SeriesTable,
        settings: ForecastSettings,
        folder: Path | None,
        resume: bool,
        started_s: float,
        begun: Beginning | None,
    ) -> None:
        self.decided_ = {} if begun is None else begun.decided
        ends = [s.length - settings.test for s in table.series]
        self.engine_, self.history_ = fit_engine(
            table, ends, settings, folder=folder, resume=resume, started_s=started_s,
            first=None if begun is None else begun.engine,
        )  # fmt: skip
        self.schema_ = TableSchema.from_json(table.schema())
        self.ends_ = {
            s.id: str(table.frequency.times(s.start, 1, offset=n - 1)[0])
            for s, n in zip(table.series, ends, strict=True)
        }
        season = table.frequency.season
        self.scales_ = {
            row_id(s.id, name): seasonal_naive_scale(s.values[:n, c], season)
            for s, n in zip(table.series, ends, strict=True)
            for c, name in enumerate(table.targets)
        }
        self.notes_ = [str(note) for note in table.notes] + list(self.history_.notes)
        self.notes_ += [f"frequency: {table.frequency}; season: {season} steps"]
        if begun is not None:
            self.notes_.append(begun.note)
        left_s = (
            None if settings.max_time_s is None else settings.max_time_s - (clock.monotonic() - started_s)
        )
        self.metrics_ = self._final_scores(table, ends, settings, left_s)
        if 0 < settings.test < settings.horizon:
            self.notes_.append(
                f"the {settings.test} points held out are fewer than the horizon of {settings.horizon}: the "
                "scores are those of the validation part"
            )
        self.notes_ += self.metrics_["notes"]
        self.metrics_["notes"] = list(self.notes_)

    def _final_scores(
        self, table: SeriesTable, ends: Sequence[int], settings: ForecastSettings, left_s: float | None
    ) -> dict[str, Any]:
        """Scores on the test part, or on what validation held out, with baselines as far as time allows."""
        H = settings.horizon
        held = settings.test if settings.test >= H else 0
        part = "test" if held else "validation"
        starts = [n if held else max(n - max(H, int(0.15 * n) // H * H), 1) for n in ends]
        until = [s.length if held else n for s, n in zip(table.series, ends, strict=True)]
        origins = [np.arange(a, b - H + 1, H) for a, b in zip(starts, until, strict=True)]
        windows = Windows(origins, starts)
        scores = self._scores(
            table, windows, budget_s=60.0 if left_s is None else float(np.clip(left_s / 3, 0.1, 60.0))
        )
        return {"part": part, **scores}

    # --------------------------------------------------------------------------------------- evaluate

    def evaluate(
        self, data: Any, *, windows: str = "last", in_sample: bool = False, future: Any = None
    ) -> dict[str, Any]:
        """Scores of the network and of the baselines on data in the form that `fit` took.

        Args:
            data: may reach beyond the training data.
            windows: `last` scores the last horizon points of every series; `rolling` every whole window of
                the horizon after the training data, each forecast from all that precedes it.
            in_sample: allow windows that overlap the training data.
            future: as in `fit`.

        Returns:
            {"model": {NAME: scores}, "baselines": {NAME: scores}}, with the scores mase, smape, rmse, wql,
            coverage80 and crps.

        Raises:
            InputError: an unknown `windows`; no window that training has not seen.
        """
        engine: Engine = self._require_fitted("engine_")
        table = self._table(data, future)
        chosen = choose_windows(
            table, steps_trained(table, self.ends_), engine.horizon, windows=windows, in_sample=in_sample
        )
        scores = self._scores(table, chosen)
        self.notes_ = [str(note) for note in table.notes] + scores.pop("notes")
        without = sum(not len(origins) for origins in chosen.origins)
        if without:
            self.notes_.append(f"{without} of {len(table)} series have no window to score and are left out")
        return scores

    def _scores(self, table: SeriesTable, windows: Windows, budget_s: float = 60.0) -> dict[str, Any]:
        engine: Engine = self.engine_
        scales = [
            self.scales_.get(
                row_id(s.id, name), seasonal_naive_scale(s.values[:start, c], table.frequency.season)
            )
            for s, start in zip(table.series, windows.trained, strict=True)
            for c, name in enumerate(table.targets)
        ]
        cell = self.decided_.get("cell", self.cell)
        name = cell if isinstance(cell, str) else cell.__name__
        model = score_model(
            engine, table, windows, scales, row_groups(table, self.engine_.preparation, self.engine_.columns)
        )
        baselines, notes = score_baselines(table, windows, scales, engine.horizon, budget_s=budget_s)
        return {"model": {name: model}, "baselines": baselines, "notes": notes}

    # ---------------------------------------------------------------------------------------- predict

    def predict(self, data: Any, future: Any = None) -> Any:
        """Forecast the `horizon` steps after the last target of every series.

        Args:
            data: in the form that `fit` took; from the first values of each series on for the best forecast.
            future: rows with known columns after the last target, where `data` does not have them.

        Returns:
            columns series, time[, target], mean, q0.1 … q0.9, as a table of the kind of `data` (for a file: a
            dict of columns).

        Raises:
            DataError: known columns are missing for some of the steps; the message names the times.
        """
        engine: Engine = self._require_fitted("engine_")
        table = self._table(data, future)
        require_future(table, engine.horizon)
        self.notes_ = [str(note) for note in table.notes]
        columns = ForecastColumns(table.frequency, len(table.targets))
        for members in row_groups(table, self.engine_.preparation, self.engine_.columns):
            prepared = self._prepare(table, members)
            said = engine.forecast(prepared, np.arange(len(members)), prepared.lengths - 1)
            for r, (i, c) in enumerate(members):
                series = table.series[i]
                first = table.frequency.times(series.start, 1, offset=series.length)[0]
                columns.add(series.id, table.targets[c], first, said, r)
        return like(data, columns.result())

    def read(self, data: Any, future: Any = None) -> SeriesTable:
        """The table that `evaluate` and `predict` see: data in the form that `fit` took, read as there."""
        return self._table(data, future)

    def session(self, data: Any = None) -> Session:
        """A stream: state, scaler, lags, clock and row ids in one object, fed a row at a time.

        Args:
            data: history to begin with, in the form that `fit` took; None: nothing was seen.
        """
        engine: Engine = self._require_fitted("engine_")
        session = Session(engine, self.schema_)
        if data is not None:
            session.feed(self._table(data, None))
        return session

    def impute(self, data: Any, **options: Any) -> Any:
        """The table with its missing targets filled by a bidirectional network; see `Imputer`."""
        return self._imputer(data, options).impute(data)

    def backcast(self, data: Any, steps: int, **options: Any) -> Any:
        """The `steps` values before the start of every series, from what follows them; see `Imputer`."""
        return self._imputer(data, {"backcast_steps": steps} | options).backcast(data, steps)

    def _imputer(self, data: Any, options: dict[str, Any]) -> Any:
        from ostinato.tasks.forecast.imputation import Imputer

        self._require_fitted("engine_")
        given: dict[str, Any] = {"seed": self.seed, "device": self.device, "progress": self.progress}
        return Imputer(**given | options).fit_schema(data, self.schema_)

    # ---------------------------------------------------------------------------------------- storage

    def save(self, path: str | Path) -> Self:
        """Write a run folder that `ot.load` reads on any machine; nothing in it can run code."""
        self._require_fitted("engine_")
        storage.write(self, RunFolder.create(path))
        return self

    @classmethod
    def from_run(cls, run: RunFolder, cells: Sequence[type] = ()) -> Forecaster:
        """The fitted forecaster of a verified run folder; `cells` supplies the user's own cell classes."""
        return storage.read(cls, run, cells)

    def set_params(self, **parameters: Any) -> Self:
        """As scikit-learn's; `device`, `seed` and `paths` also take effect on what was fitted or loaded."""
        super().set_params(**parameters)
        engine: Engine | None = getattr(self, "engine_", None)
        if engine is not None and parameters.keys() & {"device", "seed", "paths"}:
            settings = self.settings()
            engine.seed, engine.paths = settings.seed, settings.paths
            if "device" in parameters:
                engine.move_to(settings.device)
        return self

    # --------------------------------------------------------------------------------------- internal

    def _table(self, data: Any, future: Any) -> SeriesTable:
        table = read_table(data, schema=self.schema_, future=future)
        empty = [s.id for s in table.series if np.isnan(s.values).all()]
        if len(empty) == len(table.series):
            raise DataError("no series has any target value to forecast from", path=table.source)
        if empty:
            table = table.restrict(lambda s: not np.isnan(s.values).all())
            table = table.with_notes(
                Note("empty series", f"{len(empty)} series without values left out", len(empty))
            )
        return with_season(table, self.schema_.frequency.season) if self.season else table

    def _prepare(self, table: SeriesTable, members: Sequence[tuple[int, int]]) -> PreparedRows:
        engine: Engine = self.engine_
        return prepare_rows(table, members, engine.columns, engine.preparation, engine.horizon)
