"""The report of a forecasting run: scores, pictures of the last window, training curves, notes,
configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ostinato import __version__
from ostinato.data.table import SeriesTable
from ostinato.errors import MissingExtraError
from ostinato.insight.plots import (
    MAX_PANELS,
    ForecastPanel,
    figure_bytes,
    forecast_figure,
    training_figure,
)
from ostinato.insight.report import Report, report_html
from ostinato.tasks.forecast import Forecaster
from ostinato.tasks.forecast.baselines import BASELINES, SeriesWindows, forecast_baseline
from ostinato.tasks.forecast.rows import prepare_rows
from ostinato.training.run_folder import RunFolder

BASELINES_S = 3.0  # per baseline, for the pictures; the scores beside them have their own time
# what the pictures take, about: to draw, and for each step of the longest series
PICTURES_S, PICTURES_STEP_S = 2.0, 2e-4
REPORT = "report.html"


def write_forecast_report(
    forecaster: Forecaster,
    path: str | os.PathLike[str],
    data: Any,
    future: Any = None,
    budget_s: float | None = None,
) -> list[str]:
    """Add report.html and plots/*.png to the finished run folder at `path`; the names of the files.

    Without matplotlib the page has no pictures, and says which extra draws them.

    Args:
        forecaster: the fitted forecaster of that run.
        path: its run folder.
        data: file or table in the form that `fit` took; the last horizon of every series is shown.
        future: as in `fit`.
        budget_s: where this is too short for pictures the page comes without them, and says so.

    Raises:
        RunFolderError: there is no finished run at `path`.
    """
    run = RunFolder.open(path)
    notes = list(forecaster.metrics_.get("notes", []))
    figures = []
    table = forecaster.read(data, future)
    needed_s = PICTURES_S + PICTURES_STEP_S * max(series.length for series in table.series)
    has_time = budget_s is None or budget_s > needed_s
    if not has_time:
        notes.append("no pictures: the time was used up")
    try:
        panels, n = _panels(forecaster, table) if has_time else ([], 0)
        if panels:
            seen = "not seen in training" if forecaster.test >= forecaster.horizon else "used for validation"
            shown = f" ({len(panels)} of {n} series)" if n > len(panels) else ""
            caption = f"The last {forecaster.horizon} steps, {seen}{shown}"
            figures.append((caption, "forecast", forecast_figure(panels)))
        history = forecaster.history_
        if len(history) and has_time:
            curves = {name: history[name] for name in history.columns}
            figures.append(("Training", "training", training_figure(curves, history.best_step)))
    except MissingExtraError as error:
        notes.append(str(error))
    for _, name, figure in figures:
        run.write_file(f"plots/{name}.png", figure_bytes(figure, "png"))
    page = Report(
        title=f"Forecasts: {Path(path).resolve().name}",
        summary=_summary(forecaster),
        facts=_facts(forecaster),
        scores=forecaster.metrics_,
        notes=notes,
        figures=[(caption, figure) for caption, _, figure in figures],
        configuration=run.read_text("config.toml"),
        footer=f"ostinato {__version__}",
    )
    run.write_file(REPORT, report_html(page).encode("utf-8"))
    run.commit(str(run.kind))
    return [REPORT, *(f"plots/{name}.png" for _, name, _ in figures)]


def _panels(forecaster: Forecaster, table: SeriesTable) -> tuple[list[ForecastPanel], int]:
    """At most nine panels, and how many there would be."""
    H, engine, frequency = forecaster.horizon, forecaster.engine_, table.frequency
    members = [
        (i, c)
        for i, series in enumerate(table.series)
        for c in range(len(table.targets))
        if series.length > H and np.isfinite(series.values[: series.length - H, c]).any()
    ]
    n, members = len(members), members[:MAX_PANELS]
    if not members:
        return [], 0
    prepared = prepare_rows(table, members, engine.columns, engine.preparation, H)
    origins = np.array([table.series[i].length - H for i, _ in members])
    said = engine.forecast(prepared, np.arange(len(members)), origins - 1)
    rows = [
        SeriesWindows(table.series[i].values[:, c], int(origin), np.array([origin]), frequency.season)
        for (i, c), origin in zip(members, origins, strict=True)
    ]
    others = {name: forecast_baseline(name, rows, H, said.levels, BASELINES_S) for name in BASELINES}
    panels = []
    for row, ((i, c), origin) in enumerate(zip(members, origins, strict=True)):
        series = table.series[i]
        times = frequency.times(series.start, series.length)
        names = [series.id] if len(table.series) > 1 else []
        names += [table.targets[c]] if len(table.targets) > 1 or not names else []
        panels.append(
            ForecastPanel(
                title=", ".join(names),
                history_times=times[:origin],
                history=series.values[:origin, c],
                times=times[origin:],
                quantiles=said.quantiles[row],
                levels=said.levels,
                mean=said.mean[row],
                actual=series.values[origin:, c],
                baselines={name: other.mean[row] for name, other in others.items() if other.covered[row]},
            )
        )
    return panels, n


def _summary(forecaster: Forecaster) -> str:
    model = next(iter(forecaster.metrics_["model"].values()))
    part = "test" if forecaster.metrics_.get("part") == "test" else "validation"
    baselines = forecaster.metrics_["baselines"]
    best = min(baselines, key=lambda name: _or_infinity(baselines[name]["mase"]), default=None)
    ratio = 0.0 if best is None else _or_infinity(model["mase"]) / _or_infinity(baselines[best]["mase"])
    if not 0 < ratio < float("inf"):
        return f"Scores on the {part} part of the data."
    compared = f"{abs(1 - ratio):.0%} {'below' if ratio < 1 else 'above'} that of the best baseline, {best}"
    return f"On the {part} part of the data the error (MASE) of the network is {compared}."


def _facts(forecaster: Forecaster) -> dict[str, str]:
    history, engine = forecaster.history_, forecaster.engine_
    n_parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    cell = forecaster.cell if isinstance(forecaster.cell, str) else forecaster.cell.__name__
    facts = {
        "series": str(len(forecaster.ends_)),
        "time step": str(forecaster.schema_.frequency),
        "season": f"{forecaster.schema_.frequency.season} steps",
        "horizon": f"{forecaster.horizon} steps",
        "network": f"{forecaster.members} × {cell}, {forecaster.num_layers} × {forecaster.hidden_size}",
        "parameters": f"{n_parameters:,}",
        "training": f"{history.steps:,} steps in {history.elapsed_s:.0f} s",
        "ended by": {"patience": "no more improvement", "": "–"}.get(history.stopped, history.stopped),
    }
    if history.best_step is not None:
        facts["kept"] = f"step {history.best_step:,}"
    return facts


def _or_infinity(value: float | None) -> float:
    return float("inf") if value is None or not value > 0 else value
