"""What run folders of all estimators share: the history, cells by name, runs that were finished before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from ostinato.errors import InputError, RunFolderError
from ostinato.training.history import History, read_history
from ostinato.training.run_folder import RunFolder

E = TypeVar("E")

_HISTORY = "history.csv"
# Where and how loudly a run was made says nothing about its result.
OUTWARD = ("device", "progress")


def adopt_history(run: RunFolder) -> None:
    """Make the history that training wrote part of the run."""
    if (run.path / _HISTORY).is_file():
        run.adopt_file(_HISTORY)


def history_of(run: RunFolder) -> History:
    """The history of a run; an empty one where it has none."""
    return read_history(run.path / _HISTORY) if _HISTORY in run.files else History()


def misfit(run: RunFolder, error: Exception) -> RunFolderError:
    """What to raise where reading met `error` although every single file is whole."""
    return RunFolderError(
        f"{run.path}: the files of the run do not fit each other ({str(error).splitlines()[0]}); take an "
        "unaltered copy of the folder"
    )


def cell_by_name(name: str, cells: Sequence[type], known: Collection[str], run: RunFolder) -> Any:
    """The class of that name among `cells`, or the name itself where it is `known`.

    Raises:
        InputError: it is neither.
    """
    own = {cell.__name__: cell for cell in cells}
    if name in own:
        return own[name]
    if name in known:
        return name
    raise InputError(
        f"{run.path}: the run uses the cell {name!r}, which is not part of ostinato; pass its class: "
        f"ot.load(path, cells=[{name}])"
    )


def read_finished(
    estimator: E,
    run: RunFolder,
    read: Callable[[type[E], RunFolder, Sequence[type]], E],
    as_config: Callable[[E], E],
) -> E:
    """The estimator of a finished run that is to be resumed.

    Args:
        estimator: a dataclass with `kind` and `cell`: what was asked for.
        run: the finished run.
        read: reads a run with the user's own cells.
        as_config: the parameters as they are stored.

    Raises:
        InputError: the run is of another kind, or was made with other parameters.
    """
    asked: Any = estimator
    if run.kind != asked.kind:
        raise InputError(f"{run.path}: holds a {run.kind!r}, not a {asked.kind!r}; choose another folder")
    stored = read(type(estimator), run, [asked.cell] if isinstance(asked.cell, type) else [])
    wanted, had = as_config(estimator), as_config(stored)
    names = [f.name for f in fields(asked) if f.name not in OUTWARD]
    then, now = ({name: getattr(one, name) for name in names} for one in (had, wanted))
    if changed := changes(then, now):
        raise InputError(
            f"{run.path}: the run there is finished and was made with other parameters "
            f"({changed}); choose another folder"
        )
    return stored


def changes(had: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The parameters that differ, with their values then and now, for a message; empty where none does."""
    return ", ".join(
        f"{name} {had.get(name)!r} → {value!r}" for name, value in wanted.items() if value != had.get(name)
    )
