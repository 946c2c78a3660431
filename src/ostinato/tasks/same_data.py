"""What a run was learned from, as a few digits: a run is only gone on with on the same data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError, RunFolderError
from ostinato.tasks.base import Estimator
from ostinato.tasks.stored import changes
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.distributed import is_first_process
from ostinato.training.run_folder import RunFolder, has_checkpoint

E = TypeVar("E", bound=Estimator)
Fingerprints = Mapping[str, Mapping[str, Any]]

PARTS = ("data", "valid", "test")
INIT, PARAMETERS = "init", "parameters"
_NAMES = {
    "data": "the training data",
    "valid": "the validation part",
    "test": "the test part",
    INIT: "the run to begin with",
}
# Beside the checkpoints, which are named by numbers: a run without it has none either.
_STATE = Path("checkpoints") / "data.json"
UNKNOWN = (
    "the run there is older and does not say which data it was made from, so whether it was this was not "
    "checked"
)
_AT_ONCE = 1 << 20
_PLAIN = {"b": "|b1", "i": "<i8", "f": "<f8", "M": "<M8[s]"}


def take_over(estimator: E, stored: E, parts: Fingerprints, folder: Path) -> E:
    """Have an estimator be what a finished run in `folder` made, if that was made from the same `parts`.

    Raises:
        InputError: it was made from others.
    """
    if stored.fingerprints_:
        require_same(stored.fingerprints_, parts, folder)
    else:
        stored.notes_ = [*stored.notes_, UNKNOWN]
    return estimator._take_over(stored)


@contextmanager
def learning(
    estimator: Estimator, out: Path | None, resume: bool, parts: Fingerprints, asked: Mapping[str, Any]
) -> Iterator[RunFolder | None]:
    """The folder of a run for as long as it learns; None without one, and in all processes but the first.

    What the run learns from is written there, and stands in `estimator.fingerprints_`. Where learning fails,
    nothing that was learned is left behind but checkpoints.

    Args:
        estimator: learns; what it learned before is forgotten. It may begin with the run in its `init`.
        out: the folder, which `resume` allows to be there.
        resume: go on with the run in it, if that has a checkpoint.
        parts: fingerprints, as of `require_same`.
        asked: parameters by name, as plain values.

    Raises:
        InputError: the run in the folder was begun on other data or with other parameters; without `resume`,
            the folder exists.
        RunFolderError: what is kept of the run that was begun was altered.
    """
    init = getattr(estimator, "init", None)
    if init is not None:
        parts = {**parts, INIT: run_fingerprint(init)}
    begun = kept(out) if out is not None and resume else {}
    if out is not None and begun:
        require_same_parameters(begun, asked, out)
        require_same(begun, parts, out, ("data", "valid", INIT))
    run = RunFolder.create(out, exist_ok=resume) if out is not None and is_first_process() else None
    if run is not None:
        forget(run.path)
        keep({**parts, PARAMETERS: asked}, run.path)
    estimator._forget()
    estimator.fingerprints_ = parts
    try:
        yield run
    except BaseException:  # also Ctrl-C: a folder without a checkpoint would only be in the way
        estimator._forget()
        if run is not None:
            forget(run.path)
            run.abandon()
        raise


def require_same(
    stored: Fingerprints, parts: Fingerprints, folder: Path, names: Iterable[str] = PARTS
) -> None:
    """Refuse to go on with a run in `folder` on other data than it began with.

    Args:
        stored, parts: fingerprints by the names of the arguments `data`, `valid`, `test`, `init`, of then and
            now.
        names: those that matter.

    Raises:
        InputError: they differ; says which.
    """
    changed = [_difference(name, stored.get(name), parts.get(name)) for name in names]
    if any(changed):
        raise InputError(
            f"{folder}: the run there was made from other data ({', '.join(filter(None, changed))}); resume "
            "with the same, or choose another folder"
        )


def require_same_parameters(begun: Fingerprints, asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with an unfinished run with other parameters than it began with.

    The time limit may be another: it is about the command that goes on.

    Args:
        begun: what `kept` gives.
        asked: parameters by name, as plain values.
        folder: of the run, for the message.

    Raises:
        InputError: they differ; says which.
    """
    wanted = json.loads(json.dumps(asked, default=str))
    wanted.pop("max_time_s", None)
    if changed := changes(begun.get(PARAMETERS, {}), wanted):
        raise InputError(
            f"{folder}: the run there was begun with other parameters ({changed}); resume with "
            "the same, or choose another folder"
        )


def keep(parts: Fingerprints, folder: Path) -> None:
    """Write down what the run that begins in `folder` learns from, and with which `PARAMETERS`."""
    (folder / _STATE).parent.mkdir(exist_ok=True)
    write_bytes_atomically(folder / _STATE, json.dumps(parts, indent=1, default=str).encode())


def kept(folder: Path) -> Fingerprints:
    """What `keep` wrote of the unfinished run in `folder`; nothing where it has no checkpoint to go on from.

    Raises:
        RunFolderError: the file was altered.
    """
    if not has_checkpoint(folder) or not (folder / _STATE).is_file():
        return {}
    try:
        return {str(name): dict(one) for name, one in json.loads((folder / _STATE).read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{folder / _STATE}: is not what training wrote ({error}); remove the folder to start afresh"
        ) from None


def forget(folder: Path) -> None:
    """Take back `keep` where no checkpoint came after it."""
    if not has_checkpoint(folder):
        shutil.rmtree((folder / _STATE).parent, ignore_errors=True)


def _difference(name: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    if then == now:
        return ""
    if then is None or now is None:
        return f"{_NAMES[name]} was {'not given' if then is None else 'given'}"
    if name == INIT:
        return f"{_NAMES[name]}: another one"
    for unit in [unit for unit in now if unit != "digest"]:
        if then[unit] != now[unit]:
            return f"{_NAMES[name]}: {then[unit]} {unit} → {now[unit]}"
    return f"{_NAMES[name]}: other {'rows or columns' if 'rows' in now else 'examples or labels'}"


class Digest:
    """Digits of what is given one after the other; neither the pieces nor their borders can be mixed up.

    Numbers count by their value: 1.0 as float32 and as float64 are the same.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def texts(self, texts: Sequence[str]) -> None:
        """Add texts."""
        self._hash.update(joined_bytes(texts))

    def array(self, array: NDArray[Any]) -> None:
        """Add numbers, truth values, times or text. Cost: 1 ns for each byte; 8 MiB at once are converted."""
        kind = "i" if array.dtype.kind == "u" else array.dtype.kind
        self.texts([kind, *map(str, array.shape)])
        if kind == "U":
            self.texts(array.ravel().tolist())
            return
        flat = array.reshape(-1)
        for first in range(0, len(flat), _AT_ONCE):
            piece = flat[first : first + _AT_ONCE].astype(_PLAIN[kind], copy=False)
            if kind == "f" and (missing := np.isnan(piece)).any():
                # There are many NaN of the same meaning.
                piece = np.where(missing, np.nan, piece)
            self._hash.update(piece.tobytes())

    def digits(self) -> str:
        """32 hexadecimal digits of all that was added."""
        return self._hash.hexdigest()


def run_fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A digest of a finished run; raises RunFolderError where there is none."""
    files = RunFolder.open(path).files
    sums = "".join(f"{name}\0{files[name]['sha256']}\n" for name in sorted(files))
    return {"digest": hashlib.blake2b(sums.encode(), digest_size=16).hexdigest()}


def joined_bytes(texts: Sequence[str]) -> bytes:
    """Texts as bytes, so that neither texts nor their borders can be taken for each other's."""
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return len(texts).to_bytes(8, "little") + len(joined).to_bytes(8, "little") + joined
