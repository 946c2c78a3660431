"""Resumed equals never interrupted, bitwise; damaged, newer or missing checkpoints; a full disk; kill -9."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ostinato.errors import InputError, OstinatoError, RunFolderError
from ostinato.training import checkpoint as checkpoint_module
from ostinato.training import events
from ostinato.training.checkpoint import pack, unpack

KINDS = ["plain", "accumulate", "tbptt", "carried", "k2_beyond_k1", "k2_below_k1"]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    # Only a loss of power could tell the difference; the killed programs do wait.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class CrashError(Exception):
    pass


class CrashAt:
    """Ends the run as a crash would: nothing is written after step `step`."""

    def __init__(self, step):
        self.step = step

    def notify(self, event):
        if isinstance(event, events.StepEnded) and event.step == self.step:
            raise CrashError


def assert_equal_runs(resumed, whole):
    (model, history), (expected, expected_history) = resumed, whole
    for name, value in expected.state_dict().items():
        difference = (model.state_dict()[name] - value).abs().max().item()
        assert torch.equal(model.state_dict()[name], value), f"{name} differs by {difference}"
    assert history.columns == expected_history.columns
    for name in history.columns:
        if name != "elapsed_s":
            np.testing.assert_array_equal(history[name], expected_history[name], err_msg=name)
    assert (history.best, history.best_step) == (expected_history.best, expected_history.best_step)
    assert history.stopped == expected_history.stopped


def without_times(path: Path) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    place = rows[0].index("elapsed_s")
    return [row[:place] + row[place + 1 :] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crashed_run_resumes_bitwise(programs, tmp_path, kind):
    whole = programs.run(kind, tmp_path / "whole")
    steps = whole[1].steps
    for crash in (1, 6, steps // 2, steps):
        folder = tmp_path / f"crash-{crash}"
        with pytest.raises(CrashError):
            programs.run(kind, folder, listeners=[CrashAt(crash)])
        assert_equal_runs(programs.run(kind, folder), whole)
        assert without_times(folder / "history.csv") == without_times(tmp_path / "whole" / "history.csv")


def test_crashing_again_and_again_still_gives_the_same_bits(programs, tmp_path):
    whole = programs.run("tbptt", tmp_path / "whole", checkpoint_every_steps=1)
    crash = 0
    while True:
        crash += 2
        try:
            resumed = programs.run(
                "tbptt", tmp_path / "run", listeners=[CrashAt(crash)], checkpoint_every_steps=1
            )
            break
        except CrashError:
            continue
    assert crash > 20, f"the run ended after {crash} steps, too few to mean anything"
    assert_equal_runs(resumed, whole)


def test_checkpoints_change_nothing(programs, tmp_path):
    whole = programs.run("plain", tmp_path / "a", checkpoint_every_steps=1, keep_checkpoints=1)
    assert_equal_runs(programs.run("plain", None, resume=False), whole)
    assert len(list((tmp_path / "a" / "checkpoints").iterdir())) == 1


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_resuming_a_finished_run_changes_nothing_and_gives_its_history(programs, tmp_path):
    whole = programs.run("plain", tmp_path / "run", resume=True)
    before = contents(tmp_path / "run")
    again = programs.run("plain", tmp_path / "run")
    assert_equal_runs(again, whole)
    assert again[1]["elapsed_s"] == whole[1]["elapsed_s"]
    assert contents(tmp_path / "run") == before


def test_an_existing_run_needs_resume(programs, tmp_path):
    programs.run("plain", tmp_path / "run", resume=False)
    with pytest.raises(InputError, match="resume=True"):
        programs.run("plain", tmp_path / "run", resume=False)


def test_a_larger_budget_extends_a_finished_run(programs, tmp_path):
    _, short = programs.run("tbptt", tmp_path / "run", epochs=1)
    assert short.epochs == 1
    resumed = programs.run("tbptt", tmp_path / "run", epochs=3)
    assert resumed[1].epochs == 3
    assert resumed[1].steps == 3 * short.steps


def test_other_settings_are_refused(programs, tmp_path):
    programs.run("plain", tmp_path / "run")
    with pytest.raises(InputError, match=r"learning_rate 0\.001 → 0\.1"):
        programs.run("plain", tmp_path / "run", learning_rate=0.1)


def test_another_model_is_refused(programs, tmp_path):
    from ostinato.training.loop import train

    programs.run("plain", tmp_path / "run")
    model = programs.Net(cell=torch.nn.LSTM)
    with pytest.raises(RunFolderError, match="another model"):
        train(
            model,
            programs.batches(),
            programs.settings("plain"),
            validate=programs.validate,
            folder=tmp_path / "run",
            resume=True,
            progress="quiet",
        )


def crashed_with_two_checkpoints(programs, folder):
    with pytest.raises(CrashError):
        programs.run("plain", folder, listeners=[CrashAt(12)])
    found = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in found] == ["000001", "000002"]
    return found


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "manifest", "no manifest"])
def test_a_damaged_newest_checkpoint_is_skipped(programs, tmp_path, damage):
    whole = programs.run("plain", None, resume=False)
    for name in ("model", "optimizer", "run", "rank-0000", "average"):
        folder = tmp_path / name
        newest = crashed_with_two_checkpoints(programs, folder)[-1]
        file = newest / f"{name}.safetensors"
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        elif damage == "altered":
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(bytes(content))
        elif damage == "missing":
            file.unlink()
        elif damage == "manifest":
            manifest = newest / "manifest.json"
            manifest.write_bytes(manifest.read_bytes()[:50])
        else:
            (newest / "manifest.json").unlink()
        resumed = programs.run("plain", folder)
        assert_equal_runs(resumed, whole)
        notes = resumed[1].notes
        assert "1 damaged checkpoint" in notes[-1], notes
        assert str(newest) in notes[0], notes
        assert not newest.exists() or "000002" not in notes[-1]
        if damage in ("manifest", "no manifest"):
            break


def test_nothing_whole_is_an_error_and_not_a_fresh_start(programs, tmp_path):
    for path in crashed_with_two_checkpoints(programs, tmp_path / "run"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunFolderError, match="none of the 2 checkpoint"):
        programs.run("plain", tmp_path / "run")


def test_a_newer_format_is_refused(programs, tmp_path):
    newest = crashed_with_two_checkpoints(programs, tmp_path / "run")[-1] / "manifest.json"
    manifest = json.loads(newest.read_text())
    newest.write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(RunFolderError, match="format 2 is newer than 1"):
        programs.run("plain", tmp_path / "run")


def test_a_manifest_cannot_lead_outside(programs, tmp_path):
    paths = crashed_with_two_checkpoints(programs, tmp_path / "run")
    (tmp_path / "secret").write_bytes(b"")
    for path in paths:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["../../../secret"] = {"size_bytes": 0, "sha256": ""}
        (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="not a plain file name"):
        programs.run("plain", tmp_path / "run")


def test_a_full_disk_leaves_the_last_checkpoint_usable(programs, tmp_path, monkeypatch):
    whole = programs.run("plain", None, resume=False)
    write, calls = checkpoint_module._write, []

    def full(path, content):
        calls.append(path)
        if len(calls) > 9:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(checkpoint_module, "_write", full)
    with pytest.raises(OstinatoError, match=r"No space left on device.*last good checkpoint is .*000001"):
        programs.run("plain", tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["000001"]
    monkeypatch.setattr(checkpoint_module, "_write", write)
    assert_equal_runs(programs.run("plain", tmp_path / "run"), whole)


def test_kill_9_at_random_instants_then_resume_gives_the_same_bits(programs, tmp_path):
    whole = programs.run("tbptt", None, resume=False, epochs=12)
    generator = np.random.default_rng(int.from_bytes(b"kill", "big"))
    path = Path(programs.__file__)
    for number in range(3):
        where = tmp_path / str(number)
        where.mkdir()
        program = subprocess.Popen([sys.executable, str(path), "tbptt", str(where)], stderr=subprocess.PIPE)
        stop = 10 + int(generator.integers(25))
        while program.poll() is None and (
            not (where / "step").exists() or int((where / "step").read_text() or 0) < stop
        ):
            time.sleep(0.001 * generator.random())
        program.send_signal(signal.SIGKILL)
        _, message = program.communicate()
        assert program.returncode == -signal.SIGKILL, message.decode()
        assert_equal_runs(programs.run("tbptt", where / "run", epochs=12), whole)


def test_pack_keeps_every_kind_of_tensor():
    shared = torch.randn(3, 4)
    tensors = {
        "a": shared,
        "b": shared.t(),
        "bf16": torch.randn(2).bfloat16(),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    loaded, values = unpack(pack(tensors, {"x": [1, 0.1, None]}))
    assert values == {"x": [1, 0.1, None]}
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value), name
        assert loaded[name].dtype == value.dtype
