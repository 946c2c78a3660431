import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from ostinato.errors import InputError, RunFolderError
from ostinato.training import run_folder
from ostinato.training.run_folder import RunFolder


def make(path, tensors=None):
    run = RunFolder.create(path)
    run.write_tensors("model.safetensors", tensors or {"w": torch.arange(6.0).reshape(2, 3)})
    run.write_file("config.toml", b"[model]\nhidden_size = 5\n")
    run.write_json("preparation/scaler.json", {"mean": 1.5, "worst": float("nan")})
    run.commit("forecast")
    return run


def edit_manifest(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_what_was_written_is_read_in_full(tmp_path):
    make(tmp_path / "deep" / "run")
    run = RunFolder.open(tmp_path / "deep" / "run")
    assert run.kind == "forecast"
    assert sorted(run.files) == ["config.toml", "model.safetensors", "preparation/scaler.json"]
    assert torch.equal(run.read_tensors()["w"], torch.arange(6.0).reshape(2, 3))
    assert run.read_json("preparation/scaler.json") == {"mean": 1.5, "worst": None}
    assert run.read_text("config.toml") == "[model]\nhidden_size = 5\n"
    assert sorted(os.listdir(run.path)) == [
        "config.toml",
        "manifest.json",
        "model.safetensors",
        "preparation",
    ]
    with pytest.raises(RunFolderError, match=r"no file 'x'.*config\.toml"):
        run.read_bytes("x")
    with pytest.raises(RunFolderError, match="limit of 10"):
        run.read_bytes("config.toml", max_bytes=10)


def test_the_same_content_gives_the_same_bytes_in_another_process(tmp_path):
    """Order of insertion, memory layout, sharing and the hash seed must not show in the files."""
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    make(tmp_path / "a", {"b": weights.T, "a": weights, "tied": weights})
    program = f"""
import torch; from ostinato.training.run_folder import RunFolder
weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
run = RunFolder.create({str(tmp_path / "b")!r})
run.write_json("preparation/scaler.json", {{"worst": float("nan"), "mean": 1.5}})
run.write_file("config.toml", b"[model]\\nhidden_size = 5\\n")
run.write_tensors("model.safetensors", {{"tied": weights.clone(), "a": weights, "b": weights.clone().T}})
run.commit("forecast")
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for name in ("manifest.json", "model.safetensors", "config.toml", "preparation/scaler.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml", "preparation/scaler.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "one bit", "longer", "folder", "link"])
def test_every_damage_to_every_file_is_named(tmp_path, name, damage):
    make(tmp_path / "run")
    file = tmp_path / "run" / name
    data = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[:-1])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "one bit":
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif damage == "longer":
        file.write_bytes(data + b" ")
    elif damage == "folder":
        file.mkdir()
    elif damage == "link":
        (tmp_path / "same").write_bytes(data)
        file.symlink_to(tmp_path / "same")
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(tmp_path / "run")
    assert str(file) in str(caught.value), caught.value
    assert caught.value.exit_code == 2


def test_every_truncation_of_the_manifest_is_refused(tmp_path):
    make(tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    text = manifest.read_bytes()
    for length in range(0, len(text) - 2, 7):
        manifest.write_bytes(text[:length])
        with pytest.raises(RunFolderError, match=r"manifest\.json"):
            RunFolder.open(tmp_path / "run")
    for nonsense in (b"\xff\xfe", b"[" * 100_000, b" " * (1 << 20) + text, b"7", b"{}"):
        manifest.write_bytes(nonsense)
        with pytest.raises(RunFolderError, match=r"manifest\.json"):
            RunFolder.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "zip"),
        ("format_version", "1"),
        ("format_version", -1),
        ("kind", 7),
        ("package_version", None),
        ("files", []),
        ("files", {"config.toml": {"size_bytes": 3}}),
        ("files", {"config.toml": {"size_bytes": True, "sha256": "0" * 64}}),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, key, value):
    make(tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda manifest: manifest.update({key: value}))
    with pytest.raises(RunFolderError, match=r"manifest\.json"):
        RunFolder.open(tmp_path / "run")


OUTSIDE = (
    "../secret /etc/hostname a/../../secret a\\..\\b C:x ./config.toml a//b . nul\0 .staged/x Manifest.json"
)


@pytest.mark.parametrize("name", [*OUTSIDE.split(), ""])
def test_names_cannot_lead_outside(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    make(tmp_path / "run")
    entry = {"size_bytes": 6, "sha256": "0" * 64}
    edit_manifest(tmp_path / "run", lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(RunFolderError, match="not allowed"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(RunFolderError, match="not allowed"):
        RunFolder.create(tmp_path / "other").write_file(name, b"")


def test_a_linked_folder_inside_is_refused(tmp_path):
    make(tmp_path / "run")
    (tmp_path / "run" / "preparation").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "preparation").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="symbolic link"):
        RunFolder.open(tmp_path / "run")


def test_a_newer_format_is_refused_and_an_unknown_older_one_too(tmp_path):
    make(tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda manifest: manifest.update(format_version=2, package_version="9.1"))
    with pytest.raises(RunFolderError, match=r"9\.1.*upgrade ostinato"):
        RunFolder.open(tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda manifest: manifest.update(format_version=0, package_version="0.1"))
    with pytest.raises(RunFolderError, match=r"no longer reads.*0\.1"):
        RunFolder.open(tmp_path / "run")


def test_older_formats_migrate_step_by_step_without_touching_the_disk(tmp_path, monkeypatch):
    make(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(run_folder, "FORMAT_VERSION", 3)
    monkeypatch.setitem(
        run_folder.MIGRATIONS,
        1,
        lambda read: {"config.toml": read("config.toml").replace(b"hidden_size", b"width")},
    )
    monkeypatch.setitem(
        run_folder.MIGRATIONS,
        2,
        lambda read: {"settings.toml": read("config.toml") + b"depth = 1\n", "config.toml": None},
    )
    run = RunFolder.open(tmp_path / "run")
    assert run.read_text("settings.toml") == "[model]\nwidth = 5\ndepth = 1\n"
    assert "config.toml" not in run.files
    assert run.read_json("preparation/scaler.json")["mean"] == 1.5
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run.commit("forecast")
    assert RunFolder.open(tmp_path / "run").read_text("settings.toml") == "[model]\nwidth = 5\ndepth = 1\n"


def test_an_existing_folder_and_a_missing_one_say_what_to_do(tmp_path):
    make(tmp_path / "run")
    with pytest.raises(InputError, match="--resume"):
        RunFolder.create(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        RunFolder.create(tmp_path / "file", exist_ok=True)
    with pytest.raises(InputError, match="not a folder"):
        RunFolder.create(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match="no such folder"):
        RunFolder.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(tmp_path / "empty")
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="--resume"):
        RunFolder.open(tmp_path / "half")


def test_abandon_leaves_nothing_behind_but_what_others_wrote(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.write_file("config.toml", b"x")
    run.abandon()
    assert not (tmp_path / "run").exists()
    for name in ("notes.txt", "checkpoints/best.pt"):
        run = RunFolder.create(tmp_path / "run")
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
        run.write_file("config.toml", b"x")
        run.abandon()
        assert [str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()] == [name]
        shutil.rmtree(run.path)


@pytest.mark.parametrize("number", [None, "000001"])
def test_a_training_without_a_checkpoint_leaves_no_folder(tmp_path, number):
    run = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_text("step\n")
    (tmp_path / "run/checkpoints/.000002.partial").mkdir(parents=True)
    if number is not None:
        (tmp_path / "run/checkpoints" / number).mkdir()
    run.abandon()
    assert (tmp_path / "run").exists() == (number is not None)
    if number is not None:
        assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "history.csv"]


def test_a_log_written_during_training_is_adopted(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_text("step,loss\n1,0.5\n")
    run.adopt_file("history.csv")
    run.commit("forecast")
    assert RunFolder.open(tmp_path / "run").read_text("history.csv") == "step,loss\n1,0.5\n"
    with pytest.raises(RunFolderError, match="missing"):
        run.adopt_file("other.csv")


def test_a_kill_at_any_instant_of_a_second_commit_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch):
    """Every rename in turn is the last that happens; the folder then opens as the old run or as the new
    one."""
    rename = os.replace
    seen = set()
    for survivors in range(8):
        path = tmp_path / f"run{survivors}"
        make(path)
        left = survivors

        def killed(start, end):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            rename(start, end)

        run = RunFolder.create(path, exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            try:
                run.write_file("config.toml", b"new")
                run.write_tensors("model.safetensors", {"w": torch.ones(3)})
                run.commit("forecast")
            except KeyboardInterrupt:
                pass
        opened = RunFolder.open(path)
        what = (opened.read_text("config.toml") == "new", opened.read_tensors()["w"].numel() == 3)
        assert what in ((True, True), (False, False)), f"after {survivors} renames: {what}"
        assert "preparation/scaler.json" in opened.files or what[0]
        seen.add(what)
    assert len(seen) == 2
