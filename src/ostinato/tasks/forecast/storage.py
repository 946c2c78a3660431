"""A forecaster's run folder: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.config import from_toml, to_toml
from ostinato.data.preparation import Preparation
from ostinato.data.table import TableSchema
from ostinato.errors import InputError, RunFolderError
from ostinato.layers.cells import GRUCell, LSTMCell, RNNCell
from ostinato.layers.linear import MinGRUCell, MinLSTMCell, RGLRUCell
from ostinato.models.encoder import CELLS
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.engine import Engine
from ostinato.tasks.forecast.fitting import build_network
from ostinato.tasks.forecast.rows import Columns
from ostinato.tasks.forecast.settings import ForecastSettings
from ostinato.training.history import History, read_history
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.forecast.estimator import Forecaster

KIND = "forecast"


def write(forecaster: Forecaster, run: RunFolder) -> None:
    """Write the fitted forecaster into `run` and commit it."""
    engine: Engine = forecaster.engine_
    settings = forecaster.settings()
    run.write_tensors("model.safetensors", engine.model.state_dict())
    stored = {f.name: getattr(settings, f.name) for f in fields(settings)}
    if not isinstance(settings.cell, str):
        stored["cell"] = settings.cell.__name__
    run.write_file("config.toml", to_toml(ForecastSettings(**stored)).encode())
    run.write_json(
        "preparation/series.json",
        {
            "input_size": engine.model.input_size,
            "schema": forecaster.schema_.to_json(),
            "trained_until": forecaster.ends_,
            "mase_scales": forecaster.scales_,
            "columns": engine.columns.to_json(),
            "calibration": engine.calibration.to_json(),
        },
    )
    run.write_json("preparation/recurrence.json", engine.preparation.to_json())
    run.write_json("metrics.json", forecaster.metrics_)
    if (run.path / "history.csv").is_file():
        run.adopt_file("history.csv")
    run.commit(KIND)


def read(cls: type[Forecaster], run: RunFolder, cells: Sequence[type] = ()) -> Forecaster:
    """The forecaster that `write` stored."""
    stored = run.read_json("preparation/series.json")
    settings = from_toml(ForecastSettings, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))
    parameters: dict[str, Any] = {f.name: getattr(settings, f.name) for f in fields(settings)}
    parameters["cell"] = _cell(settings.cell, cells, run)
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
    forecaster.schema_ = TableSchema.from_json(stored["schema"])
    forecaster.ends_ = dict(stored["trained_until"])
    forecaster.scales_ = {k: float("nan") if v is None else v for k, v in stored["mase_scales"].items()}
    forecaster.metrics_ = run.read_json("metrics.json")
    forecaster.history_ = read_history(run.path / "history.csv") if "history.csv" in run.files else History()
    forecaster.notes_ = list(forecaster.metrics_.get("notes", []))
    return forecaster


def _cell(name: str, cells: Sequence[type], run: RunFolder) -> Any:
    built_in = (RNNCell, LSTMCell, GRUCell, MinGRUCell, MinLSTMCell, RGLRUCell)
    own: dict[str, type] = {cell.__name__: cell for cell in (*built_in, *cells)}
    if name in own:
        return own[name]
    if name in CELLS:
        return name
    raise InputError(
        f"{run.path}: the run uses the cell {name!r}, which is not part of ostinato; pass its class: "
        f"ot.load(path, cells=[{name}])"
    )
