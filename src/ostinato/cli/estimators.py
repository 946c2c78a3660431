"""Between the command line and the estimators: the one place that knows both."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import importlib.resources
import inspect
import itertools
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ostinato.cli import STARTED_S, output
from ostinato.cli.translations import translations
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
# kinds of runs that answer about a file -> what `evaluate` and `predict` may be told besides
ANSWERS: dict[str, tuple[str, ...]] = {
    "forecast": ("windows", "in_sample", "future"), "classifier": ("encoding",), "tagger": ("encoding",),
    "language": ("encoding",),
    "translator": ("targets", "source", "target", "beam", "attention", "encoding"),
    "summarizer": ("targets", "source", "target", "beam", "attention", "encoding"),
}  # fmt: skip
ABOUT = {
    "forecast": "forecasts",
    "classifier": "files of labelled sequences",
    "translator": "translations",
    "summarizer": "translations",
}
# what `evaluate` and `predict` may be told of how a file is to be read
READ_WITH = ("encoding", "source", "target")
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

    more = {} if future is None else {"future": future}
    forecaster = _fit(
        _forecaster_class(), data, out, options, config=config, overrides=overrides, more=more, needed=NEEDED,
        resume=resume, quiet=quiet, kept_s=_report_s,
    )  # fmt: skip
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


def train_labels(
    estimator: str,
    data: Path,
    out: Path,
    options: Mapping[str, Any],
    *,
    config: Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fit a `Classifier` or `Tagger`, with settings as in `train_forecast`, and return what that returns.

    Raises:
        InputError: `out` exists already and `resume` is false; a setting is wrong.
    """
    from ostinato.training.distributed import is_first_process

    cls = getattr(importlib.import_module("ostinato"), estimator)
    fitted = _fit(
        cls, data, out, options, config=config, overrides=overrides, more={}, needed=(), resume=resume,
        quiet=quiet, kept_s=lambda _: 0.0,
    )  # fmt: skip
    if not is_first_process():
        return {}
    return {"run": str(out), **fitted.metrics_, "notes": [str(note) for note in fitted.notes_]}


def _fit(  # noqa: PLR0913 - what the commands of training share
    cls: Any,
    data: Path,
    out: Path,
    options: Mapping[str, Any],
    *,
    config: Path | None,
    overrides: Iterable[str],
    more: Mapping[str, Any],
    needed: Iterable[str],
    resume: bool,
    quiet: bool,
    kept_s: Callable[[float | None], float],
) -> Any:
    """A fitted estimator whose run lies in `out`; `kept_s` says how much of the time is for what follows."""
    from ostinato.training.distributed import is_first_process

    if out.exists() and not resume and is_first_process():
        raise InputError(
            f"{out}: exists already; continue that run with --resume, or choose another folder with --out"
        )
    settings = _given(settings_class(cls), config, overrides, options)
    own = inspect.signature(cls).parameters
    _require(settings, {**inspect.signature(cls.fit).parameters, **own}, needed)
    estimator = cls(
        **{name: value for name, value in settings.items() if name in own},
        progress="quiet" if quiet else "auto",
    )
    estimator.fit(
        data,
        **{name: value for name, value in settings.items() if name not in own},
        **more,
        out=out,
        resume=resume,
        started_s=STARTED_S - kept_s(estimator.max_time_s),
    )
    return estimator


def _require(
    settings: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], needed: Iterable[str]
) -> None:
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        required |= name in needed
        if required and name not in settings and name not in ("self", *NOT_SETTINGS):
            raise InputError(f"--{name} is missing; give it here, as {name} = … in --config, or by --set")


def _report_s(max_time_s: float | None) -> float:
    """How much of the time to keep for the report, and for what Python took before our clock began."""
    return 0.0 if max_time_s is None else min(REPORT_S, 0.2 * max_time_s)


def evaluate(
    run: Path,
    data: Path,
    options: Mapping[str, Any],
    *,
    seed: int | None = None,
    device: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What the run's `evaluate` returns, {"model": {NAME: scores}, "baselines": {NAME: scores}}, and notes.

    Args:
        run, data: the run folder and the file.
        options: further arguments of the estimator's `evaluate`; None was not given.
        seed, device: parameters of the estimator.

    Raises:
        InputError: an option that is not about this kind of run.
    """
    _, given = _checked_kind(run, options)
    if "targets" in given and ("source" in given or "target" in given):
        raise InputError("--source, --target: name columns of one table; leave them out with two files")
    own = {name: given.pop(name, None) for name in ("beam", *READ_WITH)}
    estimator = _load(run, seed=seed, device=device, **own)
    scores = estimator.evaluate(data, **given)
    return scores, [str(note) for note in estimator.notes_]


def predict(
    run: Path,
    data: Path,
    out: Path | None,
    options: Mapping[str, Any],
    *,
    seed: int | None = None,
    device: str | None = None,
) -> tuple[output.Table | output.Lines, list[str]]:
    """What the run says about a file, written to `out` if there is one, and notes; else as `evaluate`."""
    kind, given = _checked_kind(run, options)
    result: output.Table | output.Lines
    if kind == "language":
        raise InputError(
            f"{run}: holds a language model; `ostinato generate` has it go on from a prompt, and `ostinato "
            "evaluate` tells how probable it finds a text"
        )
    if kind == "forecast":
        output.check_table_name(out, (".csv", ".parquet"))
        estimator = _load(run, seed=seed, device=device)
        result = output.Table("forecast", output.to_columns(estimator.predict(data, **given)))
    elif kind == "classifier":
        output.check_table_name(out)
        estimator = _load(run, seed=seed, device=device, **given)
        result = output.Table("labels", estimator.answers(data))
    elif kind == "tagger":
        output.check_folder_of(out)
        estimator = _load(run, seed=seed, device=device, **given)
        said = estimator.annotate(data)
        result = output.Lines("sentences", said.text, said.values, said.files)
    else:
        output.check_folder_of(out)
        attends = given.pop("attention", False)
        estimator = _load(run, seed=seed, device=device, **given)
        result = translations(estimator, data, out, attends=attends)
    if out is not None:
        result.write(out)
    return result, [str(note) for note in estimator.notes_]


def _checked_kind(run: Path, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a run that answers about files, and the options that were given."""
    from ostinato.training.run_folder import RunFolder

    kind = RunFolder.open(run).kind or ""
    if kind not in ANSWERS:
        raise InputError(
            f"{run}: holds a {kind!r}, which takes arrays or tables in memory, by ostinato.load(…); the "
            f"commands evaluate and predict know: {', '.join(ANSWERS)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in ANSWERS[kind]:
            about = next(ABOUT[other] for other, known in ANSWERS.items() if name in known)
            option = "a second file" if name == "targets" else f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is about {about}, and {run} holds a {kind}; leave it out")
    return kind, given


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


def language_model(run: Path, *, device: str | None) -> Any:
    """The language model of a run.

    Raises:
        InputError: the run holds something else.
    """
    from ostinato.training.run_folder import RunFolder

    kind = RunFolder.open(run).kind
    if kind != "language":
        raise InputError(f"{run}: holds a {kind!r}; text comes from a run of `ostinato train language`")
    return _load(run, device=device)


def _load(run: Path, **options: Any) -> Any:
    """The estimator of a run; `options` are its parameters, or of `READ_WITH`, None where not given."""
    from ostinato.tasks import load

    given = {name: value for name, value in options.items() if value is not None}
    reading = {name: given.pop(name) for name in READ_WITH if name in given}
    estimator = load(run).set_params(**given)
    return estimator.read_with(**reading) if reading else estimator


def settings_class(estimator: Any) -> type:
    """A dataclass of all that `--config` and `--set` may say: the arguments of the estimator and of its
    `fit`."""
    return _config_from_signatures(
        f"{estimator.__name__}Settings", estimator.__init__, estimator.fit, skip=NOT_SETTINGS
    )


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
