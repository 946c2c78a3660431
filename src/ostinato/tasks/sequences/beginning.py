"""Estimators of sequences that begin with the network of another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ostinato.data.scaling import Scaling
from ostinato.errors import InputError
from ostinato.models.encoder import CELLS
from ostinato.models.labeller import Labeller
from ostinato.tasks.sequences import storage
from ostinato.tasks.transfer import Moved, decided, open_source, own_cells, take

if TYPE_CHECKING:
    from ostinato.tasks.sequences.estimator import SequenceEstimator

E = TypeVar("E", bound="SequenceEstimator")

_FAR = 3.0


def read_first(settings: E) -> E | None:
    """The estimator in the run that `init` names; None without one.

    Raises:
        InputError: a run of another kind, or a cell of the user's own that was not passed.
        RunFolderError: there is no finished run, or it was altered.
    """
    if settings.init is None:
        return None
    run = open_source(settings.init, [settings.kind])
    cell = storage.read_config(type(settings), run).cell
    return storage.read(type(settings), run, own_cells(cell, settings.cell, CELLS, settings.init))


def settings_with(settings: E, first: E) -> E:
    """Parameters with those that the run in `init` decides.

    Raises:
        InputError: others are asked for.
    """
    assert settings.init is not None
    values = decided(settings, type(settings)(), first.settings_, storage.DECIDED, settings.init)
    return replace(settings, **values)


def inputs_of(estimator: E, first: E) -> Scaling:
    """The scaling of the inputs of the run in `init`, whose inputs and answers have the same form.

    Raises:
        InputError: they have another one.
    """
    for what, found, had in (
        ("X: columns", estimator.n_features_in_, first.n_features_in_),
        ("y: one answer for each", estimator.output_, first.output_),
    ):
        if found != had:
            raise InputError(
                f"{what}: the run in init={str(estimator.init)!r} has {had}, found {found}; give data of the "
                "same form, or train without that run"
            )
    return first.network_.inputs


def notes_on(estimator: E, real: NDArray[Any], answers: NDArray[Any]) -> list[str]:
    """What to say about the run in `init`, whose network and scaling were taken over.

    Args:
        estimator: learns; it has the scaling of that run.
        real: (n, D) the steps to learn from.
        answers: (n,) or (n, C) the targets.
    """
    notes = [f"begins with the network and the scaling of the run in {str(estimator.init)!r}"]
    for name, values, scaling in (
        ("X", real, estimator.network_.inputs if estimator.settings_.scale_inputs else None),
        ("y", answers, estimator._scaling_of_answers()),
    ):
        if scaling is None:
            continue
        flat = values.reshape(len(values), -1)
        away = np.median(np.abs(scaling.forward(flat)), axis=0)
        far = np.flatnonzero(away > _FAR).tolist()
        if far:
            c = far[0]
            notes.append(
                f"{name}: more than half of the values of {_columns(far, flat.shape[1])} lie over "
                f"{_FAR:g} standard deviations away from the mean of that run (median "
                f"{np.median(flat[:, c]):g}, there {scaling.mean[c]:g} ± {scaling.scale[c]:g}); give them in "
                "the same unit, or train without that run"
            )
    return notes


def _columns(far: list[int], count: int) -> str:
    if count == 1:
        return "its column"
    shown = ", ".join(map(str, far[:10])) + (", …" if len(far) > 10 else "")
    return f"column{'s' if len(far) > 1 else ''} {shown} (counted from 0)"


def take_network(model: Labeller, first: E, rows: list[int]) -> None:
    """Give a network the weights of another, its output layer by `rows`."""
    moved = {f"head.{name}": Moved(rows) for name in ("weight", "bias")}
    take(model, first.network_.model.state_dict(), moved)
