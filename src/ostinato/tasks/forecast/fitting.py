"""Fitting a forecaster: split, prepare, train, calibrate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostinato.data.preparation import Indices, Preparation
from ostinato.data.smoothing_search import CELLS_IN_ALL
from ostinato.data.table import SeriesTable
from ostinato.errors import DataError
from ostinato.models.forecaster import AutoregressiveForecaster, DirectForecaster
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.engine import LEVELS, Engine
from ostinato.tasks.forecast.rows import GROUP_CELLS, Columns, PreparedRows, prepare_rows, row_id
from ostinato.tasks.forecast.settings import ForecastSettings
from ostinato.tasks.forecast.validation import blend, calibrate, check_origins, validation_loss, witnesses
from ostinato.tasks.forecast.windows import WindowShape, WindowSource
from ostinato.tasks.transfer import take
from ostinato.training.history import History
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings

BASELINES_SHARE = 0.1  # of max_time_s


@dataclass(frozen=True)
class Split:
    """Where each row's parts end, in steps: learning before `train`, choice and calibration before `end`."""

    members: list[tuple[int, int]]
    train: Indices
    end: Indices


def split_rows(table: SeriesTable, ends: Sequence[int], horizon: int) -> Split:
    """Hold out every row's end for validation: 15 %, at least a horizon, at most ten in short series."""
    members, train, end = [], [], []
    for i, (series, n) in enumerate(zip(table.series, ends, strict=True)):
        held = max(horizon, min(int(0.15 * n), 10 * horizon if n < 1000 else n))
        held = min(held, max(1, n // 3)) if n < 3 * horizon else held
        for c in range(len(table.targets)):
            if np.isnan(series.values[: n - held, c]).all():
                continue
            members.append((i, c))
            train.append(n - held)
            end.append(n)
    if not members:
        raise DataError(
            "no series has a target value before the part that is held out for validation; give more history "
            "or a shorter horizon",
            path=table.source,
        )
    return Split(members, np.array(train, dtype=np.int64), np.array(end, dtype=np.int64))


def fit_engine(
    table: SeriesTable,
    ends: Sequence[int],
    settings: ForecastSettings,
    *,
    folder: Path | None,
    resume: bool,
    started_s: float,
    first: Engine | None = None,
) -> tuple[Engine, History]:
    """Fit every part of a forecaster to the first `ends[i]` steps of the series of `table`.

    Args:
        table: with every series at least `settings.minimum_length` long up to its end.
        ends: training length of each series, validation included.
        settings: of the forecaster.
        folder: for checkpoints and history; None: nothing is written.
        resume: continue from the folder's newest checkpoint.
        started_s: `time.monotonic()` when the command began; `max_time_s` counts from there.
        first: the forecaster whose network is gone on with; `settings` are those that it has.
    """
    split = split_rows(table, ends, settings.horizon)
    columns = Columns.fit(table, ends)
    columns = columns if first is None else columns.like(first.columns)
    preparation = _fit_preparation(table, split, settings, None if first is None else first.preparation)
    shards, limits = _shards(table, split, columns, preparation, settings.horizon)
    torch.manual_seed(settings.seed)
    source, shape = _source(shards, limits, preparation, settings)
    preparing_started_s = time.monotonic()
    rows = source.shard(0)
    preparing_s = (time.monotonic() - preparing_started_s) * len(shards)
    model = build_network(rows.x.shape[-1], preparation, columns, settings)
    engine = Engine(
        model,
        preparation,
        columns,
        Calibration.none(settings.horizon, len(LEVELS)),
        settings.horizon,
        settings.paths,
        settings.seed,
    )
    _start(model, rows, limits[0], preparation, shape)
    if first is not None:
        _take(model, first)
    checks = check_origins(source, settings)
    validation_started_s = time.monotonic()
    validation_loss(engine, checks, shape)
    spent_s = time.monotonic() - validation_started_s
    budget = None
    if settings.max_time_s is not None:
        longest = rows.x.shape[1]
        checked = min(1.0, (longest - int(checks.at.min()) + 4 * shape.context) / longest)
        checked *= len(np.unique(checks.rows)) / len(split.members)
        # What follows training: calibration, the scores (every row from its beginning), the baselines.
        reserve_s = 1.0 + 2.0 * spent_s + preparing_s + spent_s / checked
        reserve_s += 10.0 * spent_s if engine.is_autoregressive else 0.0
        reserve_s += BASELINES_SHARE * settings.max_time_s
        budget = settings.max_time_s - (time.monotonic() - started_s) - reserve_s
    history = train(
        model,
        source,
        _training_settings(settings, budget, len(source)),
        validate=lambda _: {"loss": validation_loss(engine, checks, shape)},
        folder=folder,
        resume=resume,
        device=settings.device,
        progress=settings.progress,
    )
    engine.device = str(next(model.parameters()).device)
    independent = witnesses(checks, settings.horizon)
    said = blend(engine, checks, independent, shape)
    engine = replace(engine, calibration=calibrate(engine, checks, independent, said))
    return engine, history


def _fit_preparation(
    table: SeriesTable, split: Split, settings: ForecastSettings, old: Preparation | None
) -> Preparation:
    rows = [table.series[i].values[:n, c] for (i, c), n in zip(split.members, split.train, strict=True)]
    seasons = table.frequency.seasons
    main = table.frequency.season
    ordered = tuple(dict.fromkeys((main, *seasons)))[:2] if main > 1 else tuple(seasons)[:2]
    counts = settings.head == "negative_binomial"
    if counts:
        _check_counts(table)
    ids = [row_id(table.series[i].id, table.targets[c]) for i, c in split.members]
    fitted = Preparation.fit(
        rows,
        ids,
        ordered if old is None else old.seasons,
        settings.horizon,
        transform="none" if counts else settings.transform,
        seed=settings.seed,
        cells=_cells(settings.max_time_s),
    )
    if old is None or fitted.seasons == old.seasons:
        return fitted
    # Too short to show the seasons twice, which the network has an input for each of.
    return old.for_rows(rows, ids, transform=fitted.transform)


def _cells(max_time_s: float | None) -> int:
    """How far the search for smoothing gains may go; less than usual where less than two minutes are given.

    A number of values, not of seconds: the same command finds the same gains on a busy machine.
    """
    return CELLS_IN_ALL if max_time_s is None else int(CELLS_IN_ALL * min(1.0, (max_time_s / 120.0) ** 1.5))


def _check_counts(table: SeriesTable) -> None:
    """Refuse what the negative binomial cannot say: values that are no counts."""
    for series in table.series:
        for c, name in enumerate(table.targets):
            known = series.values[:, c][~np.isnan(series.values[:, c])]
            wrong = known[(known < 0) | (known != np.round(known))]
            if len(wrong):
                raise DataError(
                    f"series {series.id!r}, column {name!r}: head='negative_binomial' needs counts, "
                    f"found {wrong[0]:g}; use head='student_t' or 'quantile'",
                    path=table.source,
                )


def _shards(
    table: SeriesTable, split: Split, columns: Columns, preparation: Preparation, horizon: int
) -> tuple[list[Any], list[Indices]]:
    """Groups of rows whose prepared arrays fit in memory, as functions preparing them; their limits."""
    trained = replace(
        table,
        series=[s.until(int(n)) for s, n in zip(table.series, _ends_of(table, split), strict=True)],
    )
    width = len(preparation.feature_names) + 2 * columns.ahead_size + 8
    size = max(1, GROUP_CELLS // (int(split.end.max()) * width))
    # Validation looks at the first group only; a shuffled one speaks for all.
    order = np.random.default_rng(0).permutation(len(split.members))
    order = order if size < len(order) else np.sort(order)
    groups = [order[i : i + size] for i in range(0, len(order), size)]

    def prepare(group: Indices) -> Any:
        members = [split.members[i] for i in group]
        return lambda: prepare_rows(trained, members, columns, preparation, horizon)

    return [prepare(group) for group in groups], [split.train[group] for group in groups]


def _ends_of(table: SeriesTable, split: Split) -> list[int]:
    ends = [s.length for s in table.series]
    for (i, _), end in zip(split.members, split.end, strict=True):
        ends[i] = int(end)
    return ends


def _source(
    shards: list[Any], limits: list[Indices], preparation: Preparation, settings: ForecastSettings
) -> tuple[WindowSource, WindowShape]:
    main = preparation.seasons[0] if preparation.seasons else 1
    context = settings.context or min(max(2 * main, 64), 336)
    autoregressive = settings.head != "quantile"
    shape = WindowShape(
        rows=settings.batch_size,
        context=context,
        origins=8,
        horizon=settings.horizon,
        autoregressive=autoregressive,
    )
    return WindowSource(shards, limits, preparation, shape, seed=settings.seed), shape


def build_network(
    input_size: int, preparation: Preparation, columns: Columns, settings: ForecastSettings
) -> DirectForecaster | AutoregressiveForecaster:
    """The untrained network that settings and preparation call for."""
    anchors = len(preparation.anchor_names)
    shared: dict[str, Any] = {
        name: getattr(settings, name) for name in ("cell", "hidden_size", "num_layers", "members", "dropout")
    }
    if settings.head == "quantile":
        return DirectForecaster(input_size, columns.ahead_size, anchors, settings.horizon, LEVELS, **shared)
    return AutoregressiveForecaster(input_size, anchors, settings.head, **shared)


def _start(
    model: DirectForecaster | AutoregressiveForecaster,
    prepared: PreparedRows,
    limits: Indices,
    preparation: Preparation,
    shape: WindowShape,
) -> None:
    """Begin at the mixture of anchors that the training part speaks for, and at the spread of its errors."""
    rng = np.random.default_rng(0)
    rows = rng.choice(len(limits), size=512)
    H = shape.horizon if not shape.autoregressive else 1
    earliest = limits[rows] // 3
    latest = np.maximum(limits[rows] - 1 - H, earliest + 1)
    at = np.minimum((earliest + rng.random(512) * (latest - earliest)).astype(np.int64), limits[rows] - 1)
    _, anchors = prepared.relative(preparation, rows, at, H)
    y, mask = prepared.targets(preparation, rows, at, H, limits[rows])
    weight = (prepared.history.scale[rows, at] / prepared.units[rows])[:, None] * mask
    error = (np.abs(anchors - y[..., None]) * weight[..., None]).sum((0, 1)) / max(weight.sum(), 1e-9)
    score = np.maximum(-6.0 * (error / max(error.min(), 1e-9) - 1.0), -4.0)
    mixture = np.exp(score) / np.exp(score).sum()
    if isinstance(model, AutoregressiveForecaster):
        model.start_from(torch.from_numpy(mixture).float())
        return
    residual = y - (anchors * mixture).sum(-1)
    gaps = np.empty((H, len(LEVELS) - 1))
    for h in range(H):
        column = residual[:, h][mask[:, h]]
        column = column if len(column) > 20 else residual[mask]
        gaps[h] = np.diff(np.quantile(column, LEVELS)) if len(column) else 0.1
    model.start_from(torch.from_numpy(np.tile(mixture, (H, 1))).float(), torch.from_numpy(gaps).float())


def _take(model: DirectForecaster | AutoregressiveForecaster, first: Engine) -> None:
    """Give the network the weights of another; the mixture of simple forecasts that validation weighs it
    against stays that of its own data."""
    mixtures = [f"heads.{i}.{n}" for i in range(len(model.heads)) for n in ("first_mixture", "first_spread")]
    take(model, first.model.state_dict(), own=["blend", *mixtures])


def _training_settings(settings: ForecastSettings, budget_s: float | None, epoch: int) -> TrainingSettings:
    fixed = settings.epochs is not None or settings.steps is not None
    return TrainingSettings(
        epochs=settings.epochs,
        steps=settings.steps,
        max_time_s=None if budget_s is None else max(budget_s, 0.5),
        optimizer="adamw",
        learning_rate=settings.learning_rate,
        weight_decay=1e-2,
        warmup_steps=50,
        averaging="ema",
        averaging_decay=0.99,
        clip_norm=1.0,
        validate_first=True,
        validate_every_epochs=None,
        validate_every_steps=max(25, min(epoch, 200)),
        patience_validations=None if fixed else settings.patience,
        seed=settings.seed,
    )
