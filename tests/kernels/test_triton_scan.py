"""The scan on a GPU, without one: in Triton's interpreter (a process of its own), and compiled.

What is compiled is looked into: nothing spills, units are read and written 16 bytes at once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ostinato.kernels import scan, triton_scan
from ostinato.kernels.scan import Given

triton = pytest.importorskip("triton", reason="Triton is not installed")
INTERPRETED = Path(__file__).with_name("triton_interpreted_scan.py")
# The rest are those of `ostinato.kernels.triton_scan_cases` that show something of their own.
COMPILED = (
    "linear forward float32 look-back sm_90", "minlstm backward float32 look-back sm_80",
    "linear forward bfloat16 look-back sm_80", "rglru backward float32 look-back masked sm_90",
    "minlstm_linear backward float32 walk sm_90",
)  # fmt: skip


def test_interpreted():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(INTERPRETED),
    ]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning:triton")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name, tmp_path):
    from triton import knobs

    from ostinato.kernels.triton_cases import compiled
    from ostinato.kernels.triton_scan_cases import compile_cases

    case = {case.name: case for case in compile_cases()}[name]
    kernel = compiled(case)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    stack = int(re.search(r"STACK:(\d+)", usage)[1])
    assert stack == 0, f"{stack} bytes of registers spill"
    assert kernel.metadata.shared <= case.facts.shared_bytes
    for direction in ("ld", "st"):
        wide = re.findall(rf"{direction}\.global\S*\.v4\.b32", kernel.asm["ptx"])
        assert wide, f"no {direction} of 16 bytes"


def test_the_way_is_chosen_by_size():
    def looks_back(B: int, T: int, H: int) -> bool:
        part = torch.empty(()).expand(B, T, 2 * H)
        given = Given([part], torch.empty(()).expand(B, H))
        return triton_scan.plan(given, H, is_backward=False, n_processors=132).looks_back

    assert looks_back(8, 4096, 256)
    assert looks_back(1, 1 << 40, 1), "T of any size"
    assert not looks_back(8, 100, 256), "one chunk is nothing to cut"
    assert not looks_back(256, 4096, 1024), "rows and units are enough"


def test_obstacles():
    assert "on an NVIDIA GPU" in scan.obstacle(torch.zeros(1), "triton")
    meta = torch.zeros(1, dtype=torch.float64, device="meta")
    assert "NVIDIA" in scan.obstacle(meta, "triton")
