"""Estimators whose training is a run: begun in a folder, gone on with, stored, and read back."""

from __future__ import annotations

import time as clock
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from ostinato.config import NONE, from_toml, to_toml
from ostinato.models.encoder import CELLS
from ostinato.tasks import same_data
from ostinato.tasks.base import Estimator
from ostinato.tasks.stored import (
    adopt_history,
    cell_by_name,
    history_of,
    misfit,
    plain_parameters,
    read_finished,
)
from ostinato.training.distributed import find_device
from ostinato.training.history import History
from ostinato.training.run_folder import RunFolder

Parts = TypeVar("Parts")
E = TypeVar("E", bound="RunEstimator")

_FIT = "preparation/fit.json"


class RunEstimator(Estimator):
    """A dataclass of parameters, `cell`, `device` and `max_time_s` among them.

    A subclass has a `fit` that calls `_fit_run`, and fills the hooks at the end.
    """

    kind: ClassVar[str]
    """Under which `ostinato.load` finds the class."""
    _cells: ClassVar[tuple[str, ...]] = tuple(CELLS)
    """Names of cells that a stored run may have."""

    cell: Any
    device: str
    max_time_s: float | None
    network_: Any
    settings_: Self
    reading_: dict[str, Any]
    metrics_: dict[str, Any]
    history_: History

    _first: Any = None
    """While `fit` runs, the estimator of the run that it begins with, where that is one of its own kind."""

    def _fit_run(
        self,
        out: str | Path | None,
        resume: bool,
        read: Callable[[], tuple[Parts, same_data.Fingerprints]],
        learn: Callable[[Parts, Path | None], None],
    ) -> Self:
        """Learn, in a folder if one is given.

        Args:
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.
            read: the data, and what tells them from others.
            learn: sets every attribute that `fit` leaves, from the data and the folder.

        Raises:
            InputError: resuming without a folder, with other parameters or on other data.
        """
        stored = read_finished(self, out, resume, read_run, as_config)
        folder = None if out is None else Path(out)
        parts, prints = read()
        if folder is not None and stored is not None:
            return same_data.take_over(self, stored, prints, folder)
        with same_data.learning(self, folder, resume, prints, chosen(self)) as run:
            learn(parts, folder)
        if run is not None:
            _write_run(self, run)
        return self

    def _left_s(self, started_s: float) -> float | None:
        """Seconds left of `max_time_s`, or None where there is no limit."""
        limit_s = self.settings_.max_time_s
        return None if limit_s is None else max(limit_s - (clock.monotonic() - started_s), 0.0)

    def set_params(self, **parameters: Any) -> Self:
        """As scikit-learn's; `device` also takes effect on what was fitted or loaded."""
        super().set_params(**parameters)
        if "device" in parameters and hasattr(self, "network_"):
            self.network_.to(find_device(self.device))
        return self

    @property
    def name_(self) -> str:
        """The name of the network in `metrics_`: that of its cell."""
        cell = self._require_fitted("settings_").cell
        return cell if isinstance(cell, str) else str(cell.__name__)

    def save(self, path: str | Path) -> Self:
        """Write a run folder that `ot.load` reads on any machine; nothing in it can run code."""
        self._require_fitted("network_")
        _write_run(self, RunFolder.create(path))
        return self

    @classmethod
    def from_run(cls, run: RunFolder, cells: Sequence[type] = ()) -> Self:
        """The fitted estimator of a verified run folder; `cells` supplies the user's own cell classes."""
        return read_run(cls, run, cells)

    # ------------------------------------------------------------------------------------------ hooks

    @abstractmethod
    def _write_parts(self, run: RunFolder) -> dict[str, Any]:
        """Write what the run has beside its network; returns what joins preparation/fit.json."""

    @abstractmethod
    def _read_parts(self, run: RunFolder, stored: Mapping[str, Any]) -> None:
        """The inverse of `_write_parts`; sets `network_` too, its weights aside."""


def _write_run(estimator: RunEstimator, run: RunFolder) -> None:
    """Write the fitted estimator into `run` and commit it."""
    run.write_tensors("model.safetensors", estimator.network_.state_dict())
    run.write_file("config.toml", to_toml(as_config(estimator)).encode())
    own = estimator._write_parts(run)
    run.write_json(
        _FIT,
        {
            "chosen": chosen(estimator.settings_),
            "reading": estimator.reading_,
            "data": estimator.fingerprints_,
            "notes": estimator.notes_,
            **own,
        },
    )
    run.write_json("metrics.json", estimator.metrics_)
    adopt_history(run)
    run.commit(estimator.kind)


def read_run(cls: type[E], run: RunFolder, cells: Sequence[type] = ()) -> E:
    """The estimator that was stored.

    Raises:
        RunFolderError: the files do not fit each other; InputError: a cell of the user's own is missing.
    """
    estimator = from_toml(cls, run.read_text("config.toml"), str(Path(run.path) / "config.toml"))
    estimator.cell = _cell(estimator.cell, cells, cls._cells, run)
    stored = run.read_json(_FIT)
    try:
        settings: E = replace(estimator, **stored["chosen"])  # type: ignore[type-var]
        settings.cell = _cell(settings.cell, cells, cls._cells, run)
        estimator.settings_ = settings
        estimator.reading_, estimator.notes_ = dict(stored["reading"]), list(stored["notes"])
        estimator.fingerprints_ = dict(stored["data"])
        estimator._read_parts(run, stored)
        estimator.network_.load_state_dict(run.read_tensors("model.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise misfit(run, error) from error
    estimator.network_.eval()
    estimator.metrics_ = run.read_json("metrics.json")
    estimator.history_ = history_of(run)
    return estimator


def as_config(estimator: E) -> E:
    """The parameters as TOML can hold them: a cell by its name, paths as text, numbers as Python's."""
    plain: dict[str, Any] = {}
    for field in fields(estimator):  # type: ignore[arg-type]
        value = getattr(estimator, field.name)
        value = str(value) if isinstance(value, Path) else value
        plain[field.name] = value.item() if hasattr(value, "item") else value
    if isinstance(plain["cell"], type):
        plain["cell"] = plain["cell"].__name__
    return type(estimator)(**plain)


def chosen(settings: RunEstimator) -> dict[str, Any]:
    """The parameters with every choice made, as plain values by name."""
    return plain_parameters(as_config(settings))


def _cell(name: Any, cells: Sequence[type], known: Sequence[str], run: RunFolder) -> Any:
    # A class of the user's own may have any name.
    if name in (None, NONE) and name not in [cell.__name__ for cell in cells]:
        return None
    return cell_by_name(name, cells, known, run)
