"""The run folder of an estimator of labelled sequences: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config import NONE, from_toml, to_toml
from ostinato.tasks.stored import OUTWARD, adopt_history, cell_by_name, history_of, misfit, read_finished
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.labels.estimator import LabelEstimator

E = TypeVar("E", bound="LabelEstimator")

_FIT = "preparation/fit.json"
_FURTHER = "baselines.safetensors"


def write(estimator: LabelEstimator, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.state_dict())
    run.write_file("config.toml", to_toml(_as_config(estimator)).encode())
    settings = _as_config(estimator.settings_)
    chosen = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in OUTWARD}
    files = estimator._to_json()
    run.write_json(
        _FIT,
        {
            "chosen": chosen,
            "reading": estimator.reading_,
            "data": estimator.fingerprints_,
            "notes": estimator.notes_,
            "files": sorted(files),
        },
    )
    for name, values in files.items():
        run.write_json(f"preparation/{name}.json", values)
    further = estimator._tensors()
    if further:
        run.write_tensors(_FURTHER, further)
    run.write_json("metrics.json", estimator.metrics_)
    adopt_history(run)
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
        estimator.fingerprints_ = dict(stored["data"])
        estimator._from_json({name: run.read_json(f"preparation/{name}.json") for name in stored["files"]})
        estimator._take_tensors(run.read_tensors(_FURTHER) if _FURTHER in run.files else {})
        estimator.network_ = estimator._build()
        estimator.network_.load_state_dict(run.read_tensors("model.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise misfit(run, error) from error
    estimator.network_.eval()
    estimator.metrics_ = run.read_json("metrics.json")
    estimator.history_ = history_of(run)
    return estimator


def read_again(estimator: E, run: RunFolder) -> E:
    """The estimator of a finished run that is to be resumed; errors as of `stored.read_finished`."""
    return read_finished(estimator, run, read, _as_config)


def _as_config(estimator: E) -> E:
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
    # A class of the user's own may have any name.
    if name in (None, NONE) and name not in [cell.__name__ for cell in cells]:
        return None
    return cell_by_name(name, cells, known, run)
