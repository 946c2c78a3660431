"""What a run was learned from, as a few digits: a run is only gone on with on the same data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostinato.errors import InputError, RunFolderError
from ostinato.tasks.stored import changes
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.run_folder import RunFolder

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
    if not _has_checkpoint(folder) or not (folder / _STATE).is_file():
        return {}
    try:
        return {str(name): dict(one) for name, one in json.loads((folder / _STATE).read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{folder / _STATE}: is not what training wrote ({error}); remove the folder to start afresh"
        ) from None


def forget(folder: Path) -> None:
    """Take back `keep` where no checkpoint came after it."""
    if not _has_checkpoint(folder):
        shutil.rmtree((folder / _STATE).parent, ignore_errors=True)


def _has_checkpoint(folder: Path) -> bool:
    checkpoints = (folder / _STATE).parent
    return checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())


def _difference(name: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    if then == now:
        return ""
    if then is None or now is None:
        return f"{_NAMES[name]} was {'not given' if then is None else 'given'}"
    if name == INIT:
        return f"{_NAMES[name]}: another one"
    if then["examples"] != now["examples"]:
        return f"{_NAMES[name]}: {then['examples']} examples → {now['examples']}"
    return f"{_NAMES[name]}: other examples or labels"


def run_fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A digest of a finished run; raises RunFolderError where there is none."""
    files = RunFolder.open(path).files
    sums = "".join(f"{name}\0{files[name]['sha256']}\n" for name in sorted(files))
    return {"digest": hashlib.blake2b(sums.encode(), digest_size=16).hexdigest()}


def joined_bytes(texts: Sequence[str]) -> bytes:
    """Texts as bytes, so that neither texts nor their borders can be taken for each other's."""
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return len(texts).to_bytes(8, "little") + len(joined).to_bytes(8, "little") + joined
