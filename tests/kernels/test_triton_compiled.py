"""Kernels compiled for sm_80 and sm_90 without a GPU: shared memory, registers, tensor-core instructions.

A few of the table; `benchmarks/triton_compile.py` looks at all of it.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ostinato[triton]'")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets its kernels in this process", allow_module_level=True)

from ostinato.bench import gpu_compiled

# The largest of each mode and cell, where memory and registers run out first.
NAMES = [
    "lstm forward group B=16 H=768 bfloat16 tf32 sm_90",
    "lstm backward group B=16 H=768 bfloat16 tf32 sm_90",
    "lstm forward solo B=16 H=128 bfloat16 tf32 sm_90",
    "gru backward solo B=32 H=64 float16 tf32 sm_80",
    "lstm forward group B=16 H=256 float32 tf32 sm_80",
    "gru forward group B=32 H=1000 float16 tf32 sm_90",
    "lstm-norm backward solo B=16 H=128 bfloat16 tf32 sm_90",
    "lstm-norm backward step B=32 H=512 bfloat16 tf32 everything sm_80",
    "gru-norm-before backward solo B=32 H=128 bfloat16 tf32 everything sm_80",
    "gru-norm-before reset_backward B=32 H=512 bfloat16 sm_90",
    "linear forward float32 look-back sm_90",
    "minlstm backward bfloat16 look-back sm_80",
]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Compiled anew: what a user's cache holds may be of another compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_kernel_is_as_it_must_be(name):
    (case,) = (case for case in gpu_compiled.cases() if case.name == name)
    found = gpu_compiled.examine(case)
    assert not gpu_compiled.faults(case, found), found


def test_faults_are_named():
    case = gpu_compiled.cases()[0]
    bad = gpu_compiled.Findings(255, 640, 3, 10**6, 0, 0, 100, 0.0)
    said = " ".join(gpu_compiled.faults(case, bad))
    assert "shared memory" in said
    assert "3 spills" in said
    assert "no HMMA" in said
    assert gpu_compiled.faults(case, bad._replace(shared_bytes=0))[0].endswith("of weights in it")
