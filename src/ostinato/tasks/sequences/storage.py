"""The run folder of an estimator of sequences: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config import NONE, from_toml, to_toml
from ostinato.data.scaling import Scaling
from ostinato.models.encoder import CELLS
from ostinato.tasks.sequences.network import Network
from ostinato.tasks.stored import adopt_history, cell_by_name, history_of, misfit
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.sequences.estimator import SequenceEstimator

E = TypeVar("E", bound="SequenceEstimator")

DECIDED = ("cell", "hidden_size", "num_layers", "bidirectional", "pooling", "layer_options", "scale_inputs")
"""Parameters that the run in `init` decides."""
_PREPARATION = "preparation/sequences.json"


def write(estimator: SequenceEstimator, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.model.state_dict())
    run.write_file("config.toml", to_toml(as_config(estimator.settings_)).encode())
    run.write_json(
        _PREPARATION,
        {
            "input_size": estimator.n_features_in_,
            "output": estimator.output_,
            "columns": estimator.columns_,
            "inputs": estimator.network_.inputs.to_json(),
            "answers": estimator._answers_to_json(),
            "notes": estimator.notes_,
            "data": estimator.fingerprints_,
        },
    )
    run.write_json("metrics.json", estimator.metrics_)
    adopt_history(run)
    run.commit(estimator.kind)


def read_config(cls: type[E], run: RunFolder) -> E:
    """An estimator that is not fitted, with the parameters of a run; a cell of the user's own by its name."""
    return from_toml(cls, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))


def read(cls: type[E], run: RunFolder, cells: Sequence[type] = ()) -> E:
    """The estimator that `write` stored.

    Raises:
        RunFolderError: the files do not fit each other; InputError: a cell of the user's own is missing.
    """
    estimator = read_config(cls, run)
    estimator.cell = cell_by_name(estimator.cell, cells, CELLS, run)
    if (weight := getattr(estimator, "class_weight", None)) is not None:
        plain = None if weight == NONE else weight
        estimator.set_params(class_weight=dict(plain) if isinstance(plain, list) else plain)
    stored = run.read_json(_PREPARATION)
    try:
        estimator.n_features_in_ = int(stored["input_size"])
        estimator.output_ = str(stored["output"])
        estimator.columns_ = stored["columns"]
        inputs = Scaling.from_json(stored["inputs"])
        estimator._answers_from_json(stored["answers"])
        estimator.notes_ = list(stored["notes"])
        estimator.fingerprints_ = dict(stored.get("data", {}))
        model = estimator._build(estimator, estimator.n_features_in_, None)
        model.load_state_dict(run.read_tensors("model.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise misfit(run, error) from error
    estimator.network_ = Network(model.eval(), inputs)
    estimator.settings_ = type(estimator)(**estimator.get_params())
    estimator.metrics_ = run.read_json("metrics.json")
    estimator.history_ = history_of(run)
    return estimator


def as_config(estimator: E) -> E:
    """The parameters as TOML can hold them: a cell by its name, factors of labels as pairs."""
    plain = {f.name: _plain(getattr(estimator, f.name)) for f in fields(estimator)}
    plain["init"] = None if estimator.init is None else str(estimator.init)
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
