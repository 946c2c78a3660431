import errno
import os
import stat

import pytest

from ostinato.training import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_new_file_stands_alone_with_ordinary_permissions(tmp_path):
    path = tmp_path / "metrics.json"
    atomic.write_text_atomically(path, "höher\r\n")
    atomic.write_text_atomically(path, "höher\n")
    assert path.read_bytes() == "höher\n".encode()
    assert names(tmp_path) == ["metrics.json"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, broken):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")

    def fails(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, broken, fails)
    with pytest.raises(OSError, match="No space"):
        atomic.write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("stands", [True, False])
def test_replace_folder(tmp_path, stands):
    source, destination = tmp_path / "new", tmp_path / "run"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_bytes(b"new")
    if stands:
        destination.mkdir()
        (destination / "b").write_bytes(b"old")
    atomic.replace_folder(source, destination)
    assert names(tmp_path) == ["run"]
    assert names(destination) == ["deep"]
    assert (destination / "deep" / "a").read_bytes() == b"new"


def test_replace_folder_puts_the_old_folder_back(tmp_path, monkeypatch):
    source, destination = tmp_path / "new", tmp_path / "run"
    source.mkdir()
    destination.mkdir()
    (destination / "b").write_bytes(b"old")
    rename = os.rename

    def fails(start, end):
        if start == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(start, end)

    monkeypatch.setattr(atomic.os, "rename", fails)
    with pytest.raises(OSError, match="cross-device"):
        atomic.replace_folder(source, destination)
    assert (destination / "b").read_bytes() == b"old"
    assert names(tmp_path) == ["new", "run"]
