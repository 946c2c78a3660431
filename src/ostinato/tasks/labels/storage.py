"""The run folder of an estimator of labelled sequences: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config import NONE, from_toml, to_toml
from ostinato.errors import InputError, RunFolderError
from ostinato.training.history import History, read_history
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.labels.estimator import LabelEstimator

E = TypeVar("E", bound="LabelEstimator")

# Where and how loudly a run was made says nothing about its result.
_OUTWARD = ("device", "progress")
_FIT = "preparation/fit.json"
_FURTHER = "baselines.safetensors"


def write(estimator: LabelEstimator, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.state_dict())
    run.write_file("config.toml", to_toml(_as_config(estimator)).encode())
    chosen = {
        f.name: getattr(_as_config(estimator.settings_), f.name)
        for f in fields(estimator)
        if f.name not in _OUTWARD
    }
    files = estimator._to_json()
    run.write_json(
        _FIT,
        {"chosen": chosen, "reading": estimator.reading_, "notes": estimator.notes_, "files": sorted(files)},
    )
    for name, values in files.items():
        run.write_json(f"preparation/{name}.json", values)
    further = estimator._tensors()
    if further:
        run.write_tensors(_FURTHER, further)
    run.write_json("metrics.json", estimator.metrics_)
    if (run.path / "history.csv").is_file():
        run.adopt_file("history.csv")
    run.commit(estimator.kind)


def read(cls: type[E], run: RunFolder, cells: Sequence[type] = ()) -> E:
    """The estimator that `write` stored.

    Raises:
        RunFolderError: the files do not fit each other; InputError: a cell of the user's own is missing.
    """
    estimator = from_toml(cls, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))
    estimator.cell = _cell(estimator.cell, cells, cls._cells, run)
    stored = run.read_json(_FIT)
    try:
        settings = replace(estimator, **stored["chosen"])
        settings.cell = _cell(settings.cell, cells, cls._cells, run)
        estimator.settings_ = settings
        estimator.reading_, estimator.notes_ = dict(stored["reading"]), list(stored["notes"])
        estimator._from_json({name: run.read_json(f"preparation/{name}.json") for name in stored["files"]})
        estimator._take_tensors(run.read_tensors(_FURTHER) if _FURTHER in run.files else {})
        estimator.network_ = estimator._build()
        estimator.network_.load_state_dict(run.read_tensors("model.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunFolderError(
            f"{run.path}: the files of the run do not fit each other ({str(error).splitlines()[0]}); take an "
            "unaltered copy of the folder"
        ) from error
    estimator.network_.eval()
    estimator.metrics_ = run.read_json("metrics.json")
    estimator.history_ = read_history(run.path / "history.csv") if "history.csv" in run.files else History()
    return estimator


def read_finished(estimator: E, run: RunFolder) -> E:
    """The estimator of a finished run that is to be resumed.

    Raises:
        InputError: the run is of another kind, or was made with other parameters.
    """
    if run.kind != estimator.kind:
        raise InputError(f"{run.path}: holds a {run.kind!r}, not a {estimator.kind!r}; choose another folder")
    own = [] if estimator.cell is None or isinstance(estimator.cell, str) else [estimator.cell]
    stored = read(type(estimator), run, own)
    asked, had = _as_config(estimator), _as_config(stored)
    names = [f.name for f in fields(estimator) if f.name not in _OUTWARD]
    changed = [
        f"{n} {getattr(had, n)!r} → {getattr(asked, n)!r}"
        for n in names
        if getattr(asked, n) != getattr(had, n)
    ]
    if changed:
        raise InputError(
            f"{run.path}: the run there is finished and was made with other parameters "
            f"({', '.join(changed)}); choose another folder"
        )
    return stored


def _as_config(estimator: LabelEstimator) -> LabelEstimator:
    """The parameters as TOML can hold them: a cell by its name, numpy's numbers as Python's."""
    plain: dict[str, Any] = {}
    for field in fields(estimator):
        value = getattr(estimator, field.name)
        value = str(value) if isinstance(value, Path) else value
        plain[field.name] = value.item() if hasattr(value, "item") else value
    if isinstance(plain["cell"], type):
        plain["cell"] = plain["cell"].__name__
    return type(estimator)(**plain)


def _cell(name: Any, cells: Sequence[type], known: Sequence[str], run: RunFolder) -> Any:
    own = {cell.__name__: cell for cell in cells}
    if name in own:
        return own[name]
    if name in (None, NONE):
        return None
    if name in known:
        return name
    raise InputError(
        f"{run.path}: the run uses the cell {name!r}, which is not part of ostinato; pass its class: "
        f"ot.load(path, cells=[{name}])"
    )
