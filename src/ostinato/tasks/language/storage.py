"""The run folder of a language model: what it holds, how it is read back, and how a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ostinato.config import NONE, from_toml, to_toml
from ostinato.data.corpus_units import CorpusUnits
from ostinato.errors import RunFolderError
from ostinato.models.encoder import CELLS
from ostinato.tasks.language.ngrams import Baselines, KneserNey
from ostinato.tasks.language.plan import build
from ostinato.tasks.stored import OUTWARD, adopt_history, cell_by_name, history_of, misfit, read_finished
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.language.estimator import LanguageModel

E = TypeVar("E", bound="LanguageModel")

PLAN = "plan.json"
_FIT, _UNITS = "preparation/fit.json", "preparation/units.json"
_BASELINES = "baselines.safetensors"


def write(estimator: LanguageModel, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.state_dict())
    run.write_file("config.toml", to_toml(_as_config(estimator)).encode())
    baselines = estimator.baselines_
    run.write_json(
        _FIT,
        {
            "chosen": _chosen(estimator.settings_), "reading": estimator.reading_,
            "notes": estimator.notes_, "ngrams": baselines.ngrams.to_json(), "baseline": baselines.name,
            "share": estimator.share_,
            "data": estimator.fingerprints_,
        },
    )  # fmt: skip
    run.write_json(_UNITS, estimator.units_.to_json())
    run.write_tensors(_BASELINES, baselines.ngrams.tensors())
    run.write_json("metrics.json", estimator.metrics_)
    adopt_history(run)
    run.commit(estimator.kind)
    (run.path / PLAN).unlink(missing_ok=True)


def _chosen(settings: LanguageModel) -> dict[str, Any]:
    plain = _as_config(settings)
    return {f.name: getattr(plain, f.name) for f in fields(plain) if f.name not in OUTWARD}


def read(cls: type[E], run: RunFolder, cells: Sequence[type] = ()) -> E:
    """The estimator that `write` stored.

    Raises:
        RunFolderError: the files do not fit each other; InputError: a cell of the user's own is missing.
    """
    estimator = from_toml(cls, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))
    estimator.cell = _cell(estimator.cell, cells, run)
    stored = run.read_json(_FIT)
    try:
        settings = replace(estimator, **stored["chosen"])
        settings.cell = _cell(settings.cell, cells, run)
        estimator.settings_ = settings
        estimator.reading_, estimator.notes_ = dict(stored["reading"]), list(stored["notes"])
        estimator.units_ = CorpusUnits.from_json(run.read_json(_UNITS))
        ngrams = KneserNey.from_json(stored["ngrams"], run.read_tensors(_BASELINES))
        estimator.baselines_ = Baselines.of(estimator.units_.counts, ngrams, str(stored["baseline"]))
        estimator.share_, estimator.fingerprints_ = stored["share"], dict(stored["data"])
        estimator.network_ = build(settings, len(estimator.units_))
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


def keep_plan(folder: Path, settings: LanguageModel) -> None:
    """Note what was chosen before training, part of it from the speed of this machine, for a resumed run."""
    write_bytes_atomically(folder / PLAN, json.dumps(_chosen(settings), indent=1).encode())


def kept_plan(folder: Path) -> dict[str, Any] | None:
    """What `keep_plan` noted in the folder of a run that was stopped; None where there is nothing.

    Raises:
        RunFolderError: the file was altered.
    """
    try:
        return dict(json.loads((folder / PLAN).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RunFolderError(
            f"{folder / PLAN}: is not what training wrote ({error}); remove the folder to start afresh"
        ) from None


def _as_config(estimator: E) -> E:
    """The parameters as TOML can hold them: a cell by its name, numpy's numbers as Python's."""
    plain: dict[str, Any] = {}
    for field in fields(estimator):
        value = getattr(estimator, field.name)
        plain[field.name] = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain["cell"], type):
        plain["cell"] = plain["cell"].__name__
    return type(estimator)(**plain)


def _cell(name: Any, cells: Sequence[type], run: RunFolder) -> Any:
    if name in (None, NONE) and name not in [cell.__name__ for cell in cells]:
        return None
    return cell_by_name(name, cells, tuple(CELLS), run)
