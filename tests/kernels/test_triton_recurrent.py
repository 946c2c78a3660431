"""The Triton kernels without a GPU: how they cut a call; `triton_interpreted_recurrent.py` in processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ostinato.errors import InputError
from ostinato.kernels import triton_plan, triton_recurrent
from ostinato.kernels.cell_options import CellOptions
from ostinato.kernels.task import Task
from ostinato.kernels.triton_plan import CHIPS

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
SIZES = (1, 17, 32, 64, 128, 160, 192, 256, 384, 512, 768, 1000, 1024, 1536, 3000)
GROUPS = ("solo or options", "group or step or again or directions or no_step or upstream or precision")


def task(cell: str = "lstm", keeps: str = "gates", **options) -> Task:
    return Task(cell, CellOptions(**options), False, False, keeps)


@needs_triton
@pytest.mark.parametrize("group", GROUPS)
def test_triton_equals_the_steps_in_the_interpreter(group):
    file = Path(__file__).with_name("triton_interpreted_recurrent.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), "-k", group],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_triton_cuts_cover_all_units_and_fit(cell, dtype, capability):
    chip = CHIPS[capability]
    for H in SIZES:
        for B in (1, 8, 16, 64, 128, 129):
            for n_directions in (1, 2):
                cut = triton_plan.plan(task(cell), B, H, dtype, chip, n_directions=n_directions)
                assert cut.n_blocks * cut.U >= H > (cut.n_blocks - 1) * cut.U
                assert min(cut.K, cut.back_K) >= H
                if cut.mode == "group":
                    # A cooperative launch: all thread blocks at once, one on a multiprocessor.
                    assert cut.n_blocks * cut.tiles_at_once * n_directions <= chip.n_processors
                if cut.stays:
                    assert cut.rows * cut.K * dtype.itemsize < chip.shared_bytes
                    for chunks, K in ((cut.chunks, cut.K), (cut.back_chunks, cut.back_K)):
                        ends = [first + length for first, length in chunks]
                        assert [0, *ends] == [first for first, _ in chunks] + [K]
                        assert all(length & (length - 1) == 0 for _, length in chunks)


def test_triton_modes_by_size():
    modes = [triton_recurrent.mode(task(), 16, H, torch.bfloat16, (9, 0)) for H in (128, 768, 3000)]
    assert [one.name for one in modes] == ["solo", "group", "step"]
    assert all(one.reason for one in modes)
    assert triton_recurrent.mode(task("rnn"), 16, 256, torch.bfloat16, (9, 0)).name == "solo"
    with pytest.raises(InputError, match=r"capability: unknown \(3, 5\); known: 8.0"):
        triton_recurrent.mode(task(), 16, 64, torch.bfloat16, (3, 5))
    with pytest.raises(InputError, match="mode: unknown name 'duo'; known: solo, group, step"):
        triton_plan.plan(task(), 1, 8, torch.float32, CHIPS[9, 0], only="duo")
    with pytest.raises(InputError, match="mode='solo' does not fit"):
        triton_plan.plan(task(), 1, 1024, torch.float32, CHIPS[9, 0], only="solo")


def test_triton_says_what_it_cannot():
    like = torch.empty(1, device="meta")
    for wrong in (
        task("mingru"), task(projection=3), task(keeps="outputs", peephole=True),
        task(keeps="outputs", norm=True), task("gru", keeps="outputs", reset_after=False),
    ):  # fmt: skip
        assert triton_recurrent.obstacle(wrong, like.bfloat16())
    assert "float64" in triton_recurrent.obstacle(task(), like.double())


@pytest.mark.parametrize("wanted", [task(norm=True), task("gru", reset_after=False)], ids=["norm", "before"])
def test_triton_cuts_of_whole_rows(wanted):
    """Solo where all weights fit into a thread block, else step by step: never in a group."""
    half, chip = torch.bfloat16, CHIPS[9, 0]
    modes = [triton_recurrent.mode(wanted, 16, H, half, (9, 0)) for H in (64, 128, 192, 768, 3000)]
    assert [one.name for one in modes] == ["solo", "solo", "step", "step", "step"]
    assert "thread blocks of a group meet" in modes[-1].reason
    with pytest.raises(InputError, match=r"mode='group' does not fit: .* thread blocks of a group meet"):
        triton_plan.plan(wanted, 16, 256, half, chip, only="group")
    for H in SIZES:
        for B in (1, 129, 5000):
            cut = triton_plan.plan(wanted, B, H, half, chip)
            assert cut.n_blocks == 1
            assert cut.U >= H
            assert cut.N * cut.tiles_at_once >= B
    # Rows share a thread block where there are more of them than thread blocks can be at work.
    assert triton_plan.plan(wanted, 5000, 256, half, chip).N > 1


def test_triton_is_not_imported_for_the_cpu():
    code = (
        "import sys, torch, ostinato; from ostinato.kernels import triton_recurrent; "
        "ostinato.LSTM(3, 4)(torch.randn(2, 5, 3)); assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
