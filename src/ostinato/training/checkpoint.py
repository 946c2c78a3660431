"""Checkpoints on the disk: whole or not there, verified on loading, nothing in them is executed.

A checkpoint is a folder `checkpoints/NNNNNN` of safetensors and JSON files with a `manifest.json` that names
size and SHA-256 of each. It is written aside (`.NNNNNN.partial`), forced to the disk, then renamed; the ones
before it go only after that. A kill, a full disk or a loss of power leaves the last one usable.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ostinato import __version__
from ostinato.errors import OstinatoError, RunFolderError
from ostinato.training.atomic import sync_folder

FORMAT = "ostinato-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 20


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made at the first write.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.last: Path | None = None
        self._good: list[Path] = []

    def write(self, step: int, files: dict[str, bytes]) -> Path:
        """Write one, then remove those that are no longer kept.

        Raises:
            OstinatoError: the disk is full or not writable; the last checkpoint stays as it was.
        """
        partial: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self._next_number():06d}"
            partial = self.folder / f".{path.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "package_version": __version__,
                "step": step,
                "files": {
                    name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
                    for name, content in files.items()
                },
            }
            for name, content in files.items():
                _write(partial / name, content)
            _write(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
            sync_folder(partial)
            os.rename(partial, path)
            sync_folder(self.folder)
        except OSError as error:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
            stays = (
                f"the last good checkpoint is {self.last}" if self.last else "no earlier checkpoint exists"
            )
            raise OstinatoError(
                f"{self.folder}: the checkpoint at step {step} could not be written ({error}); {stays}; "
                "make room "
                "on the disk and resume"
            ) from error
        self.last = path
        self._good.append(path)
        self._prune()
        return path

    def read_newest(self) -> tuple[dict[str, bytes] | None, list[str]]:
        """The files of the newest checkpoint that is whole, and notes about those that are not.

        None where there is no checkpoint at all.

        Raises:
            RunFolderError: there are checkpoints but none is whole, or one is of a newer format.
        """
        paths = self._paths()
        notes: list[str] = []
        for path in reversed(paths):
            try:
                files = _read(path)
            except _DamagedError as error:
                notes.append(f"checkpoint {path} was skipped: {error}")
                continue
            self.last = path
            self._good = [path]
            if notes:
                notes.append(f"{len(notes)} damaged checkpoint(s) skipped; resumed from {path}")
            return files, notes
        if paths:
            raise RunFolderError(
                f"{self.folder}: none of the {len(paths)} checkpoint(s) is whole: {'; '.join(notes)}; "
                "remove the folder to start afresh"
            )
        return None, []

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if p.name.isdigit()), key=lambda path: int(path.name))

    def _next_number(self) -> int:
        paths = self._paths()
        return int(paths[-1].name) + 1 if paths else 1

    def _prune(self) -> None:
        self._good = self._good[-self.keep :]
        for path in [*self._paths(), *self.folder.glob(".*.partial")]:
            if path not in self._good:
                # Without its manifest a half-removed checkpoint cannot be taken for a whole one.
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)


class _DamagedError(Exception):
    """A checkpoint is not what its manifest says."""


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, bytes]:
    manifest = _read_manifest(path / MANIFEST)
    files = {}
    for name, entry in manifest["files"].items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise _DamagedError(f"its manifest names {name!r}, which is not a plain file name")
        try:
            size = (path / name).lstat().st_size
            if size != entry["size_bytes"]:
                raise _DamagedError(f"{name} has {size} bytes, expected {entry['size_bytes']}")
            content = (path / name).read_bytes()
        except OSError as error:
            raise _DamagedError(f"{name} cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise _DamagedError(f"the checksum of {name} is wrong")
        files[name] = content
    return files


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if path.lstat().st_size > _MAX_MANIFEST_BYTES:
            raise _DamagedError(f"its {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
        manifest = json.loads(path.read_bytes())
        version, form = manifest["format_version"], manifest["format"]
        entries = {name: (entry["size_bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except OSError as error:
        raise _DamagedError(f"its {MANIFEST} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"its {MANIFEST} is not a manifest ({error})") from None
    if form != FORMAT or not isinstance(version, int) or not entries:
        raise _DamagedError(f"its {MANIFEST} is not that of a checkpoint")
    if version > FORMAT_VERSION:
        raise RunFolderError(
            f"{path}: checkpoint format {version} is newer than {FORMAT_VERSION}, which this version of "
            "ostinato "
            f"({__version__}) reads; upgrade ostinato"
        )
    return dict(manifest)


def pack(tensors: dict[str, Tensor], values: Any = None) -> bytes:
    """Tensors (any device; shared memory is stored twice) and plain values as safetensors bytes."""
    content = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    if values is not None:
        text = json.dumps(values).encode()
        content["values.json"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return save(content)


def unpack(content: bytes) -> tuple[dict[str, Tensor], Any]:
    """The inverse of `pack`, on the CPU."""
    try:
        tensors = load(content)
        text = tensors.pop("values.json", None)
        return tensors, None if text is None else json.loads(bytes(text.numpy()))
    except (SafetensorError, ValueError) as error:
        raise RunFolderError(f"a checkpoint's file is not safetensors: {error}") from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> bytes:
    """The optimizer's state by parameter number, and its groups."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                plain[f"{index}/{name}"] = value
    return pack(tensors, {"groups": state["param_groups"], "plain": plain})


def unpack_optimizer(content: bytes, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer of the same parameters its stored state.

    Raises:
        RunFolderError: it was stored for other parameters.
    """
    tensors, values = unpack(content)
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **values["plain"]}.items():
        index, _, slot = name.partition("/")
        state.setdefault(int(index), {})[slot] = value
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in values["groups"]
    ]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise RunFolderError(
            f"the checkpoint's optimizer has other parameters than this model: {error}"
        ) from error
