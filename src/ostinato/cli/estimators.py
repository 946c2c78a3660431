"""Between the command line and the estimators: the one place that knows both."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.resources
import inspect
import itertools
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ostinato.cli import STARTED_S
from ostinato.config import field_names, load_config
from ostinato.errors import InputError

# task -> the file in bundled/, and the settings of its demo
DEMOS: dict[str, tuple[str, dict[str, Any]]] = {
    "forecast": (
        "airpassengers.csv",
        {"time": "Month", "target": "#Passengers", "horizon": 12, "test": 12, "max_time_s": 120.0},
    ),
}
NEEDED = ("target",)  # only a table in memory names its own
REPORT_S = 8.0  # at most, for report and pictures
# arguments of `fit` that are not settings: the data, where the run goes, and how it is shown
NOT_SETTINGS = ("data", "future", "out", "resume", "progress", "started_s")


def train_forecast(
    data: Path,
    out: Path,
    options: Mapping[str, Any],
    *,
    config: Path | None = None,
    overrides: Iterable[str] = (),
    future: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit a forecaster and return what its run folder says: metrics of model and baselines, notes, and where
    it lies. Under torchrun the first process writes and speaks; the others return nothing.

    Settings are the forecaster's defaults, then the file `config`, then `overrides`, then `options`.

    Raises:
        InputError: `out` exists already and `resume` is false; a setting is wrong.
    """
    from ostinato.training.distributed import is_first_process

    if out.exists() and not resume and is_first_process():
        raise InputError(
            f"{out}: exists already; continue that run with --resume, or choose another folder with --out"
        )
    estimator = _forecaster_class()
    settings = _given(settings_class(estimator), config, overrides, options)
    own = inspect.signature(estimator).parameters
    _require(settings, {**inspect.signature(estimator.fit).parameters, **own})
    forecaster = estimator(
        **{name: value for name, value in settings.items() if name in own},
        progress="quiet" if quiet else "auto",
    )
    more = {} if future is None else {"future": future}
    forecaster.fit(
        data,
        **{name: value for name, value in settings.items() if name not in own},
        **more,
        out=out,
        resume=resume,
        started_s=STARTED_S - _report_s(forecaster.max_time_s),
    )
    if not is_first_process():
        return {}
    from ostinato.insight.forecast_report import REPORT, write_forecast_report
    from ostinato.training.run_folder import RunFolder

    run = RunFolder.open(out)
    if REPORT not in run.files:  # a run that was finished before stays as it is
        limit_s = forecaster.max_time_s
        left_s = None if limit_s is None else STARTED_S + limit_s - time.monotonic()
        write_forecast_report(forecaster, out, data, **more, budget_s=left_s)
    metrics = run.read_json("metrics.json")
    return {"run": str(out), **metrics, "notes": [str(note) for note in forecaster.notes_]}


def _require(settings: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        required |= name in NEEDED
        if required and name not in settings and name not in ("self", *NOT_SETTINGS):
            raise InputError(f"--{name} is missing; give it here, as {name} = … in --config, or by --set")


def _report_s(max_time_s: float | None) -> float:
    """How much of the time to keep for the report, and for what Python took before our clock began."""
    return 0.0 if max_time_s is None else min(REPORT_S, 0.2 * max_time_s)


def evaluate(
    run: Path,
    data: Path,
    *,
    windows: str,
    in_sample: bool,
    future: Path | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What `Forecaster.evaluate` returns, {"model": {NAME: scores}, "baselines": {NAME: scores}}, and
    notes."""
    estimator = _load(run, seed=seed, device=device)
    more = {} if future is None else {"future": future}
    scores = estimator.evaluate(data, windows=windows, in_sample=in_sample, **more)
    return scores, [str(note) for note in estimator.notes_]


def predict(
    run: Path,
    data: Path,
    *,
    future: Path | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> tuple[Any, list[str]]:
    """The frame of forecasts, and notes on the file."""
    estimator = _load(run, seed=seed, device=device)
    frame = estimator.predict(data, **({} if future is None else {"future": future}))
    return frame, [str(note) for note in estimator.notes_]


def run_demo(task: str, out: Path | None, options: Mapping[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Train on the bundled data of a task, by default in the first free folder runs/demo-TASK,
    runs/demo-TASK-2, …"""
    name, settings = DEMOS[task]
    given = {name: value for name, value in options.items() if value is not None}
    with importlib.resources.as_file(importlib.resources.files("ostinato") / "bundled" / name) as data:
        return train_forecast(
            data, out or _free_folder(Path("runs") / f"demo-{task}"), settings | given, quiet=quiet
        )


def _free_folder(path: Path) -> Path:
    numbered = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())


def _load(run: Path, **parameters: Any) -> Any:
    from ostinato.tasks import load

    given = {name: value for name, value in parameters.items() if value is not None}
    return load(run).set_params(**given)


def settings_class(estimator: Any) -> type:
    """A dataclass of all that `--config` and `--set` may say: the arguments of the estimator and of its
    `fit`."""
    return _config_from_signatures("ForecastSettings", estimator.__init__, estimator.fit, skip=NOT_SETTINGS)


def _forecaster_class() -> Any:
    from ostinato.tasks.forecast import Forecaster

    return Forecaster


def _given(
    cls: type, config: Path | None, overrides: Iterable[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that differ from the estimator's own defaults, checked."""
    settings: Any = load_config(cls, config, overrides, options)
    defaults: Any = cls()
    return {
        name: value
        for name in field_names(cls)
        if (value := getattr(settings, name)) != getattr(defaults, name)
    }


def _config_from_signatures(name: str, *callables: Callable[..., Any], skip: Iterable[str]) -> type:
    fields: dict[str, Any] = {}
    for function in callables:
        hints = typing.get_type_hints(function)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in ("self", *skip) or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ):
                continue
            hint, default = hints.get(parameter.name, Any), parameter.default
            if default is parameter.empty:
                hint, default = hint | None, None
            fields[parameter.name] = (
                parameter.name,
                hint,
                dataclasses.field(default_factory=functools.partial(copy.copy, default)),
            )
    return dataclasses.make_dataclass(name, list(fields.values()), frozen=True)
