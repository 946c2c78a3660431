"""A forecaster's run folder: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config import from_toml, to_toml
from ostinato.data.preparation import Preparation
from ostinato.data.table import TableSchema
from ostinato.errors import RunFolderError
from ostinato.layers.cells import GRUCell, LSTMCell, RNNCell
from ostinato.layers.linear import MinGRUCell, MinLSTMCell, RGLRUCell
from ostinato.models.encoder import CELLS
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.engine import Engine
from ostinato.tasks.forecast.fitting import build_network
from ostinato.tasks.forecast.rows import Columns
from ostinato.tasks.forecast.settings import ForecastSettings
from ostinato.tasks.stored import adopt_history, cell_by_name, history_of
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.forecast.estimator import Forecaster

E = TypeVar("E", bound="Forecaster")

KIND = "forecast"
DECIDED = ("cell", "hidden_size", "num_layers", "members", "head", "season")
"""Parameters that the run in `init` decides."""
BUILT_IN = (RNNCell, LSTMCell, GRUCell, MinGRUCell, MinLSTMCell, RGLRUCell)


def as_config(forecaster: Forecaster) -> ForecastSettings:
    """The parameters as TOML can hold them, a cell by its name."""
    return _named(forecaster.settings())


def _named(settings: ForecastSettings) -> ForecastSettings:
    cell = settings.cell
    return settings if isinstance(cell, str) else replace(settings, cell=cell.__name__)


def write(forecaster: Forecaster, run: RunFolder) -> None:
    """Write the fitted forecaster into `run` and commit it."""
    engine: Engine = forecaster.engine_
    settings = _named(replace(forecaster.settings(), **forecaster.decided_))
    run.write_tensors("model.safetensors", engine.model.state_dict())
    run.write_file("config.toml", to_toml(settings).encode())
    run.write_json(
        "preparation/series.json",
        {
            "input_size": engine.model.input_size,
            "schema": forecaster.schema_.to_json(),
            "trained_until": forecaster.ends_,
            "mase_scales": forecaster.scales_,
            "columns": engine.columns.to_json(),
            "calibration": engine.calibration.to_json(),
            "data": forecaster.fingerprints_,
        },
    )
    run.write_json("preparation/recurrence.json", engine.preparation.to_json())
    run.write_json("metrics.json", forecaster.metrics_)
    adopt_history(run)
    run.commit(KIND)


def read_settings(run: RunFolder) -> ForecastSettings:
    """The parameters of a run; a cell of the user's own by its name."""
    return from_toml(ForecastSettings, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))


def read(cls: type[E], run: RunFolder, cells: Sequence[type] = ()) -> E:
    """The forecaster that `write` stored."""
    stored = run.read_json("preparation/series.json")
    settings = read_settings(run)
    parameters: dict[str, Any] = {f.name: getattr(settings, f.name) for f in fields(settings)}
    parameters["cell"] = cell_by_name(settings.cell, (*BUILT_IN, *cells), CELLS, run)
    forecaster = cls(**parameters)
    columns = Columns.from_json(stored["columns"])
    preparation = Preparation.from_json(run.read_json("preparation/recurrence.json"))
    model = build_network(int(stored["input_size"]), preparation, columns, forecaster.settings())
    try:
        model.load_state_dict(run.read_tensors("model.safetensors"))
    except RuntimeError as error:
        raise RunFolderError(
            f"{run.path}: model.safetensors does not fit config.toml ({str(error).splitlines()[0]}); take an "
            "unaltered copy of the folder"
        ) from error
    model.eval()
    forecaster.engine_ = Engine(
        model,
        preparation,
        columns,
        Calibration.from_json(stored["calibration"]),
        settings.horizon,
        settings.paths,
        settings.seed,
    )
    decided = () if settings.init is None else DECIDED
    forecaster.decided_ = {name: getattr(forecaster, name) for name in decided}
    forecaster.schema_ = TableSchema.from_json(stored["schema"])
    forecaster.ends_ = dict(stored["trained_until"])
    forecaster.scales_ = {k: float("nan") if v is None else v for k, v in stored["mase_scales"].items()}
    forecaster.fingerprints_ = dict(stored.get("data", {}))
    forecaster.metrics_ = run.read_json("metrics.json")
    forecaster.history_ = history_of(run)
    forecaster.notes_ = list(forecaster.metrics_.get("notes", []))
    return forecaster
