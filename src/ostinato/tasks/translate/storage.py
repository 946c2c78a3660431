"""The run folder of a translator: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.config import NONE, from_toml, to_toml
from ostinato.data.pair_encoding import PairPreparation
from ostinato.errors import InputError
from ostinato.models.encoder import CELLS
from ostinato.tasks.stored import OUTWARD, adopt_history, cell_by_name, history_of, misfit, read_finished
from ostinato.tasks.translate.answers import Limits
from ostinato.tasks.translate.baselines import Baselines
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

E = TypeVar("E", bound="Translator")

KINDS = ("translator", "summarizer")
# What has to be the same where one run goes on with the weights of another.
OF_NETWORK = (
    "cell", "hidden_size", "embedding_size", "num_layers", "attention", "feeding", "copying", "coverage",
    "shared", "vocabulary_size",
)  # fmt: skip
_FIT, _UNITS, _BASELINES = "preparation/fit.json", "preparation/units.json", "preparation/baselines.json"


def write(estimator: Translator, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.state_dict())
    run.write_file("config.toml", to_toml(_as_config(estimator)).encode())
    settings = _as_config(estimator.settings_)
    chosen = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in OUTWARD}
    run.write_json(
        _FIT,
        {
            "chosen": chosen,
            "reading": estimator.reading_,
            "limits": asdict(estimator.limits_),
            "data": estimator.fingerprints_,
            "notes": estimator.notes_,
        },
    )
    run.write_json(_UNITS, estimator.preparation_.to_json())
    run.write_json(_BASELINES, estimator.baselines_.to_json())
    run.write_json("metrics.json", estimator.metrics_)
    adopt_history(run)
    run.commit(estimator.kind)


def read(cls: type[E], run: RunFolder, cells: Sequence[type] = ()) -> E:
    """The estimator that `write` stored.

    Raises:
        RunFolderError: the files do not fit each other; InputError: a cell of the user's own is missing.
    """
    estimator = from_toml(cls, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))
    estimator.cell = _cell(estimator.cell, cells, run)
    stored = run.read_json(_FIT)
    try:
        estimator.settings_ = replace(estimator, **stored["chosen"])
        estimator.settings_.cell = _cell(estimator.settings_.cell, cells, run)
        estimator.reading_, estimator.notes_ = dict(stored["reading"]), list(stored["notes"])
        estimator.fingerprints_ = dict(stored["data"])
        estimator.limits_ = Limits(**stored["limits"])
        estimator.preparation_ = PairPreparation.from_json(run.read_json(_UNITS))
        estimator.baselines_ = Baselines.from_json(run.read_json(_BASELINES))
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


def read_init(path: str, settings: E) -> E:
    """The run whose units and weights a new one begins with.

    Raises:
        RunFolderError: no finished run is there.
        InputError: a run of another kind, or of another network than `settings` ask for.
    """
    run = RunFolder.open(path)
    if run.kind not in KINDS:
        raise InputError(f"init: {path} holds a {run.kind!r}; known: {', '.join(KINDS)}")
    cells = [settings.cell] if isinstance(settings.cell, type) else []
    first = read(type(settings), run, cells)
    for name in OF_NETWORK:
        wanted, had = getattr(settings, name), getattr(first.settings_, name)
        # What has a default other than None may be left alone.
        is_asked = wanted is not None and wanted != getattr(type(settings)(), name)
        if is_asked and wanted != had:
            raise InputError(
                f"{name}={wanted!r}: the run in init={path!r} has {had!r}; leave it out, or train afresh"
            )
        setattr(settings, name, had)
    if settings.unit is not None and settings.unit not in (first.settings_.unit, "auto"):
        raise InputError(
            f"unit={settings.unit!r}: the run in init={path!r} has {first.settings_.unit!r}; leave it out"
        )
    return first


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


def _cell(name: Any, cells: Sequence[type], run: RunFolder) -> Any:
    # A class of the user's own may have any name.
    if name in (None, NONE) and name not in [cell.__name__ for cell in cells]:
        return None
    return cell_by_name(name, cells, tuple(CELLS), run)
