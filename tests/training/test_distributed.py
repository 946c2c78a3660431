"""`torchrun --nproc-per-node 2` equals one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TOLERANCE = {"float32": 1e-5, "float64": 1e-9, "sgd_accumulated": 1e-9, "tbptt": 1e-9}


@pytest.fixture(scope="module")
def together(programs, tmp_path_factory) -> Path:
    """The folder that two processes wrote."""
    folder = tmp_path_factory.mktemp("together")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, programs.__file__, "two_processes", str(folder)],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(programs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    programs.two_processes(folder)
    return folder


@pytest.mark.parametrize("name", list(TOLERANCE))
def test_two_processes_equal_one(together, alone, name):
    ours, expected = load_file(together / f"{name}.safetensors"), load_file(alone / f"{name}.safetensors")
    assert len(expected["losses"]) == 100
    for key, value in expected.items():
        error = ((ours[key] - value).abs().max() / value.abs().max()).item()
        assert error < TOLERANCE[name], f"{name}, {key}: relative difference {error}"


def test_only_the_first_process_writes_and_all_random_states_are_stored(together):
    (checkpoint,) = (together / "run-float32" / "checkpoints").iterdir()
    assert sorted(p.name for p in checkpoint.glob("rank-*")) == [
        "rank-0000.safetensors",
        "rank-0001.safetensors",
    ]


def test_two_processes_resume_bitwise_skip_together_and_need_shares(together):
    first, second = ((together / f"special-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    for log in (first, second):
        assert log[:2] == ["resumed equal True", "skipped 1"], log
        assert "has no set_share(rank, world_size)" in log[-1], log
    # Row 1 belongs to the second process; the first one tells.
    assert first[2] == "3: loss is not finite; 1 of 66 values of the batch's 'x' are not finite", first


def test_sums_are_exact_for_a_single_process(programs):
    from ostinato.training.distributed import Processes
    from ostinato.training.settings import TrainingSettings

    alone = Processes("cpu", TrainingSettings())
    assert alone.sum([0.1, 2.0]) == [0.1, 2.0]
    assert alone.gather_bytes(b"abc") == [b"abc"]
    assert alone.all_agree(True)
    assert not alone.all_agree(False)
    assert alone.device == torch.device("cpu")
