"""Run folders: what a training run leaves behind, verified before anything in it is used.

A folder is what its `manifest.json` names: format version, package version, kind, and size and SHA-256 of
each file. The manifest is written last and renamed, so a folder without one is unfinished. Nothing stored in
a folder is executed, no name in it may lead outside, and sizes are checked before reading. Checkpoints lie in
`checkpoints/` beside the files of the manifest and look after themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ostinato import __version__
from ostinato.errors import InputError, RunFolderError
from ostinato.training.atomic import sync_folder, write_bytes_atomically

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "ostinato-run"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
STAGED = ".staged"
CHECKPOINTS = "checkpoints"
HISTORY_FILES = ("history.csv", ".history.csv.tmp")
MAX_MANIFEST_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 28
MAX_TENSOR_BYTES = 1 << 36

ReadBytes = Callable[[str], bytes]
# Format version N -> the function that brings a folder of version N to N + 1. It gets a reader of the
# folder's files and returns the files that change, by name; None drops a file. The folder on the disk stays
# as it is.
MIGRATIONS: dict[int, Callable[[ReadBytes], Mapping[str, bytes | None]]] = {}


@dataclass
class RunFolder:
    """One run folder: made by `create` and `commit`, or verified by `open`.

    Attributes:
        path: where it lies.
        kind: what it holds (`forecast`, …); None until it is committed.
        package_version: the version that wrote it.
        files: name -> {"sha256", "size_bytes"}, as in the manifest.
    """

    path: Path
    kind: str | None = None
    package_version: str = __version__
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    _migrated: dict[str, bytes] = field(default_factory=dict, repr=False)

    # ------------------------------------------------------------------ writing

    @classmethod
    def create(cls, path: str | os.PathLike[str], exist_ok: bool = False) -> RunFolder:
        """Make a folder to write a run into; its parents are made too.

        Raises:
            InputError: something stands at `path` already and `exist_ok` is false, or `path` is not a folder.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=exist_ok)
        except (FileExistsError, NotADirectoryError):
            if exist_ok or not path.is_dir():
                raise InputError(f"{path}: is not a folder; choose another place for the run") from None
            raise InputError(
                f"{path}: exists already; continue that run with --resume (resume=True), "
                "or choose another folder"
            ) from None
        shutil.rmtree(path / STAGED, ignore_errors=True)
        return cls(path)

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file that the manifest will name; nobody sees it before `commit`.

        Args:
            name: relative to the folder, with `/` between its parts (`preparation/scaler.json`).
            data: its contents.
        """
        _check_name(name, self.path)
        staged = self.path / STAGED / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(staged, data)
        self.files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}

    def write_json(self, name: str, value: Any) -> None:
        """`write_file` of JSON, keys sorted; NaN and infinities become null."""
        self.write_file(name, json_text(value).encode("utf-8"))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """`write_file` of named tensors; the bytes depend on nothing but names and values."""
        from safetensors.torch import save

        copies = {key: tensors[key].detach().to("cpu", copy=True).contiguous() for key in sorted(tensors)}
        self.write_file(name, save(copies))

    def adopt_file(self, name: str) -> None:
        """Have the manifest name a file that stands in the folder already (a log written during training)."""
        size_bytes = _regular_size(self.path, name)
        self.files[name] = {"sha256": _digest(self.path, name), "size_bytes": size_bytes}

    def commit(self, kind: str) -> None:
        """Put the written files in place and write the manifest, all or nothing.

        Where a run stands in the folder already, it stays whole until every new file is on the disk. A commit
        that a kill interrupts after that is completed by the next `open`.
        """
        for name, data in self._migrated.items():
            self.write_file(name, data)
        self.kind, self.package_version = kind, __version__
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "kind": kind,
            "files": self.files,
        }
        (self.path / STAGED).mkdir(exist_ok=True)
        write_bytes_atomically(self.path / STAGED / MANIFEST, json_text(manifest).encode("utf-8"))
        _move_staged_files(self.path)

    def abandon(self) -> None:
        """Remove what was written but not committed, and the folder itself where nothing else is in it.

        The history of a training that can be gone on with, because there is a checkpoint, stays.
        """
        shutil.rmtree(self.path / STAGED, ignore_errors=True)
        if not has_checkpoint(self.path) and not is_committed(self.path):
            for name in HISTORY_FILES:
                (self.path / name).unlink(missing_ok=True)
            for partial in (self.path / CHECKPOINTS).glob(".*.partial"):
                shutil.rmtree(partial, ignore_errors=True)
        for folder in (self.path / CHECKPOINTS, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    # ------------------------------------------------------------------ reading

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a finished run and verify every file of it.

        Cost: one read of every file. An older format is migrated in memory.

        Raises:
            RunFolderError: there is no finished run; a file is missing, truncated or altered; a name leads
                outside the folder; or a newer version wrote it.
        """
        path = Path(path)
        if is_committed(path) and (path / STAGED / MANIFEST).is_file():
            _move_staged_files(path)
        manifest = _read_manifest(path)
        run = cls(path, manifest["kind"], manifest["package_version"], manifest["files"])
        for name, expected in run.files.items():
            _compare_size(path / name, expected["size_bytes"], _regular_size(path, name))
        for name, expected in run.files.items():
            _compare_digest(path / name, expected["sha256"], _digest(path, name))
        for version in range(manifest["format_version"], FORMAT_VERSION):
            run._migrate(version)
        return run

    def read_bytes(self, name: str, max_bytes: int = MAX_TENSOR_BYTES) -> bytes:
        """The contents of one file, verified once more as they are read.

        Raises:
            RunFolderError: the run has no such file, or it is larger than `max_bytes`, or changed since
                `open`.
        """
        if name not in self.files:
            known = ", ".join(sorted(self.files)) or "nothing"
            raise RunFolderError(f"{self.path}: the run has no file {name!r}; it has: {known}")
        expected = self.files[name]
        if expected["size_bytes"] > max_bytes:
            raise RunFolderError(
                f"{self.path / name}: {expected['size_bytes']} bytes are more than the limit of {max_bytes}; "
                "nothing was read"
            )
        if name in self._migrated:
            return self._migrated[name]
        _regular_size(self.path, name)
        with open(self.path / name, "rb") as file:
            data = file.read(expected["size_bytes"] + 1)
        _compare_size(self.path / name, expected["size_bytes"], len(data))
        _compare_digest(self.path / name, expected["sha256"], hashlib.sha256(data).hexdigest())
        return data

    def read_text(self, name: str) -> str:
        """A UTF-8 text file; as `read_bytes`."""
        try:
            return self.read_bytes(name, MAX_TEXT_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RunFolderError(
                f"{self.path / name}: is not UTF-8 text ({error}); train the run again"
            ) from None

    def read_json(self, name: str) -> Any:
        """The value in a JSON file; as `read_bytes`."""
        return _parse_json(self.path / name, self.read_text(name))

    def read_tensors(self, name: str = MODEL) -> dict[str, Tensor]:
        """The tensors of a safetensors file, on the CPU; as `read_bytes`."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.read_bytes(name))
        except (SafetensorError, ValueError, KeyError) as error:
            raise RunFolderError(
                f"{self.path / name}: is not a safetensors file ({error}); train the run again"
            ) from None

    def _migrate(self, version: int) -> None:
        if version not in MIGRATIONS:
            raise RunFolderError(
                f"{self.path}: has format version {version}, which this version of ostinato no longer reads; "
                f"open it with ostinato {self.package_version} or train it again"
            )
        for name, data in MIGRATIONS[version](self.read_bytes).items():
            self.files.pop(name, None)
            self._migrated.pop(name, None)
            if data is not None:
                self.files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
                self._migrated[name] = data


def has_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a training that ended early in the folder `path` can be gone on with."""
    folder = Path(path) / CHECKPOINTS
    return folder.is_dir() and any(one.name.isdigit() for one in folder.iterdir())


def is_committed(path: str | os.PathLike[str]) -> bool:
    """Whether a finished run stands at `path`, or one whose commit only needs its last renames."""
    return (Path(path) / MANIFEST).is_file() or (Path(path) / STAGED / MANIFEST).is_file()


def json_text(value: Any) -> str:
    """Canonical JSON: sorted keys, two spaces, a final line end; NaN and infinities become null."""
    return json.dumps(plain_json(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def plain_json(value: Any) -> Any:
    """Values that JSON knows: arrays become lists, tuples too; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _move_staged_files(path: Path) -> None:
    staged = path / STAGED
    for name in _read_manifest(path, f"{STAGED}/{MANIFEST}")["files"]:
        if (staged / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, path / name)
            sync_folder((path / name).parent)
    os.replace(staged / MANIFEST, path / MANIFEST)
    sync_folder(path)
    shutil.rmtree(staged, ignore_errors=True)


def _read_manifest(path: Path, name: str = MANIFEST) -> dict[str, Any]:
    where = path / name
    if not path.is_dir():
        raise RunFolderError(f"{path}: there is no such folder; pass the folder that was given as --out")
    if not where.exists():
        if (path / CHECKPOINTS).is_dir() or (path / HISTORY_FILES[0]).is_file():
            raise RunFolderError(
                f"{path}: the training has not finished (no {MANIFEST}); run the same command with --resume"
            )
        raise RunFolderError(
            f"{path}: is not a run folder (no {MANIFEST}); pass the folder that was given as --out"
        )
    if (size := _regular_size(path, name)) > MAX_MANIFEST_BYTES:
        raise RunFolderError(f"{where}: {size} bytes are too many for a manifest; the folder was altered")
    try:
        text = where.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{where}: is not UTF-8 text ({error}); copy the folder again") from None
    manifest = _parse_json(where, text)
    _check_manifest(manifest, where)
    for file_name in manifest["files"]:
        _check_name(file_name, path)
    return manifest


def _check_manifest(manifest: Any, where: Path) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RunFolderError(f"{where}: is not the manifest of a run folder")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 0:
        raise RunFolderError(f"{where}: format_version is {version!r}, expected a number; copy it again")
    if version > FORMAT_VERSION:
        raise RunFolderError(
            f"{where}: was written by ostinato {manifest.get('package_version')} in format version "
            f"{version}; this is ostinato {__version__}, which reads up to {FORMAT_VERSION}; upgrade ostinato"
        )
    for key, kind in (("kind", str), ("package_version", str), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise RunFolderError(f"{where}: {key} is missing or not {_A[kind]}; copy the folder again")
    for name, entry in manifest["files"].items():
        if (
            not isinstance(entry, dict)
            or type(entry.get("size_bytes")) is not int
            or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256")))
        ):
            raise RunFolderError(
                f"{where}: the entry of {name!r} lacks size_bytes or sha256; copy the folder again"
            )


_A = {str: "text", dict: "a table"}


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name).parts
    if (
        not parts
        or str(PurePosixPath(name)) != name
        or name.startswith("/")
        or any(part == ".." or re.search(r'[\\:\0<>"|?*]', part) for part in parts)
        or parts[0].lower() in (MANIFEST, STAGED)
    ):
        raise RunFolderError(
            f"{path}: {name!r} is not allowed as the name of a file in a run folder; "
            "names are relative, with /, and stay inside"
        )


def _regular_size(path: Path, name: str) -> int:
    """Size in bytes of a regular file inside `path`; a symbolic link may lead anywhere and is refused."""
    part = path
    for piece in PurePosixPath(name).parts:
        part = part / piece
        try:
            status = os.lstat(part)
        except (FileNotFoundError, NotADirectoryError):
            raise RunFolderError(
                f"{path / name}: is missing; copy the folder again or train it again"
            ) from None
        if stat.S_ISLNK(status.st_mode):
            raise RunFolderError(
                f"{part}: is a symbolic link, which could lead outside the run folder; "
                "put the file itself there"
            )
    if not stat.S_ISREG(status.st_mode):
        raise RunFolderError(f"{path / name}: is not a regular file; copy the folder again")
    return status.st_size


def _digest(path: Path, name: str) -> str:
    with open(path / name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare_size(where: Path, expected: int, found: int) -> None:
    if found != expected:
        raise RunFolderError(
            f"{where}: is {'truncated' if found < expected else 'altered'}: {found} bytes instead of "
            f"{expected}; copy the folder again or train it again"
        )
    if found > MAX_TENSOR_BYTES:
        raise RunFolderError(f"{where}: {found} bytes are more than the limit of {MAX_TENSOR_BYTES}")


def _compare_digest(where: Path, expected: str, found: str) -> None:
    if found != expected:
        raise RunFolderError(
            f"{where}: was altered (its SHA-256 is not the manifest's); "
            "copy the folder again or train it again"
        )


def _parse_json(where: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{where}: is not JSON, perhaps truncated ({error}); copy the folder again"
        ) from None
