"""The run folder of an estimator of sequences: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config import from_toml, to_toml
from ostinato.data.scaling import Scaling
from ostinato.errors import InputError, RunFolderError
from ostinato.models.encoder import CELLS
from ostinato.tasks.sequences.network import Network
from ostinato.training.history import History, read_history
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.sequences.estimator import SequenceEstimator

E = TypeVar("E", bound="SequenceEstimator")

# Where and how loudly a run was made says nothing about its result.
_OUTWARD = ("device", "progress")
_PREPARATION = "preparation/sequences.json"


def write(estimator: SequenceEstimator, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.model.state_dict())
    run.write_file("config.toml", to_toml(_as_config(estimator.settings_)).encode())
    run.write_json(
        _PREPARATION,
        {
            "input_size": estimator.n_features_in_,
            "output": estimator.output_,
            "columns": estimator.columns_,
            "inputs": estimator.network_.inputs.to_json(),
            "answers": estimator._answers_to_json(),
            "notes": estimator.notes_,
        },
    )
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
    estimator.cell = _cell(estimator.cell, cells, run)
    if hasattr(estimator, "class_weight") and isinstance(estimator.class_weight, list):
        estimator.class_weight = dict(estimator.class_weight)
    stored = run.read_json(_PREPARATION)
    try:
        estimator.n_features_in_ = int(stored["input_size"])
        estimator.output_ = str(stored["output"])
        estimator.columns_ = stored["columns"]
        inputs = Scaling.from_json(stored["inputs"])
        estimator._answers_from_json(stored["answers"])
        estimator.notes_ = list(stored["notes"])
        model = estimator._build(estimator, estimator.n_features_in_, None)
        model.load_state_dict(run.read_tensors("model.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunFolderError(
            f"{run.path}: the files of the run do not fit each other ({str(error).splitlines()[0]}); take an "
            "unaltered copy of the folder"
        ) from error
    estimator.network_ = Network(model.eval(), inputs)
    estimator.settings_ = type(estimator)(**estimator.get_params())
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
    stored = read(type(estimator), run, [] if isinstance(estimator.cell, str) else [estimator.cell])
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


def _as_config(estimator: SequenceEstimator) -> SequenceEstimator:
    """The parameters as TOML can hold them: a cell by its name, factors of labels as pairs."""
    plain = {f.name: _plain(getattr(estimator, f.name)) for f in fields(estimator)}
    if not isinstance(estimator.cell, str):
        plain["cell"] = estimator.cell.__name__
    if isinstance(plain.get("class_weight"), Mapping):
        plain["class_weight"] = [[_plain(label), float(w)] for label, w in plain["class_weight"].items()]
    if plain["layer_options"] is not None:
        # TOML has no null, and None is the default of every option that may be None.
        plain["layer_options"] = {n: v for n, v in plain["layer_options"].items() if v is not None}
    return type(estimator)(**plain)


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def _cell(name: str, cells: Sequence[type], run: RunFolder) -> Any:
    own = {cell.__name__: cell for cell in cells}
    if name in own:
        return own[name]
    if name in CELLS:
        return name
    raise InputError(
        f"{run.path}: the run uses the cell {name!r}, which is not part of ostinato; pass its class: "
        f"ot.load(path, cells=[{name}])"
    )
