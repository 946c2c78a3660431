"""What run folders of all estimators share: the history, cells by name, runs that were finished before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ostinato.errors import InputError, RunFolderError
from ostinato.training.history import History, read_history
from ostinato.training.run_folder import RunFolder, is_committed

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
    out: str | Path | None,
    resume: bool,
    read: Callable[[type[E], RunFolder, Sequence[type]], E],
    as_config: Callable[[E], Any],
    decided: Collection[str] = (),
) -> E | None:
    """The estimator of a finished run that is to be resumed; None where there is none, or resuming was not
    asked for.

    Args:
        estimator: has `kind`, `cell` and `init`: what was asked for.
        out, resume: as for its `fit`.
        read: reads a run with the user's own cells.
        as_config: the parameters as they are stored, a dataclass.
        decided: those that a run in `init` decides, so that nobody needs to ask for them.

    Raises:
        InputError: resuming without a folder; the run is of another kind, or was made with other parameters.
    """
    if not resume:
        return None
    if out is None:
        raise InputError("resume=True goes on with the run in a folder; pass out as well")
    if not is_committed(Path(out)):
        return None
    asked: Any = estimator
    run = RunFolder.open(out)
    if run.kind != asked.kind:
        raise InputError(f"{run.path}: holds a {run.kind!r}, not a {asked.kind!r}; choose another folder")
    stored = read(type(estimator), run, [asked.cell] if isinstance(asked.cell, type) else [])
    wanted = plain_parameters(as_config(estimator))
    if getattr(asked, "init", None) is not None:
        usual = {f.name: f.default for f in fields(as_config(estimator))}
        wanted = {n: v for n, v in wanted.items() if n not in decided or v != usual[n]}
    if changed := changes(plain_parameters(as_config(stored)), wanted):
        raise InputError(
            f"{run.path}: the run there is finished and was made with other parameters "
            f"({changed}); choose another folder"
        )
    return stored


def plain_parameters(config: Any) -> dict[str, Any]:
    """The parameters that tell of the result of a run, by name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in OUTWARD}


def changes(had: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The parameters that differ, with their values then and now, for a message; empty where none does."""
    return ", ".join(
        f"{name} {had.get(name)!r} → {value!r}" for name, value in wanted.items() if value != had.get(name)
    )
