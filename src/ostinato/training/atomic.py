"""Files that are either the old ones or the new ones: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path


def write_bytes_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that a kill or a full disk at any instant leaves the old file or the new one.

    The folder of `path` must exist. The file gets the permissions of any newly created file.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is then unchanged, with nothing left
            beside it.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        # not tempfile: its files are readable by their owner only, and run folders are there to be shared
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with line ends as given; see `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode("utf-8"))


def replace_folder(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> None:
    """Move the finished folder `source` to `destination`, in place of a folder that may stand there.

    Both must lie on one file system. Where nothing stands at `destination`, this is one rename. Otherwise
    the old folder is renamed aside first and deleted last: at every instant a whole folder stands at
    `destination` or beside it (as `.NAME.XXXX.replaced`), and if the second rename fails the old folder is
    put back.
    """
    source, destination = Path(source), Path(destination)
    for folder, _, files in os.walk(source):
        for name in files:
            _sync(Path(folder) / name)
        sync_folder(folder)
    aside = destination.with_name(f".{destination.name}.{secrets.token_hex(6)}.replaced")
    try:
        os.rename(destination, aside)
        replaced = True
    except FileNotFoundError:
        replaced = False
    try:
        os.rename(source, destination)
    except BaseException:
        if replaced:
            os.rename(aside, destination)
        raise
    sync_folder(destination.parent)
    if replaced:
        shutil.rmtree(aside)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to the disk: renames survive a loss of power. Windows has no such call."""
    if os.name != "nt":
        _sync(folder)


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
