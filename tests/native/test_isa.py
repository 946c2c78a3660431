"""Which instruction set the kernels run on, and how it is overridden."""

import os
import subprocess
import sys

import pytest

from ostinato import _native

PRINT_ISA = "from ostinato import _native; print(_native.isa(), *_native.isa_facts())"
VECTOR_BYTES = {"baseline": 16, "neon": 16, "avx2": 32, "avx512": 64}


def run_with(isa, code=PRINT_ISA):
    environment = {**os.environ, "OSTINATO_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def restored_isa():
    before = _native.isa()
    yield before
    _native.set_isa(before)


def test_the_widest_set_is_taken_by_default():
    done = run_with("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == _native.isas()[-1]


@pytest.mark.parametrize("isa", _native.isas())
def test_the_environment_chooses(isa):
    done = run_with(isa)
    assert done.returncode == 0, done.stderr
    name, vector_bytes, has_fma = done.stdout.split()
    assert (name, int(vector_bytes)) == (isa, VECTOR_BYTES[isa])
    assert (has_fma == "True") == (isa != "baseline")


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "x" * 500])
def test_an_unknown_name_in_the_environment_is_an_error_that_lists_the_known(isa):
    done = run_with(isa)
    assert done.returncode != 0
    message = done.stderr.splitlines()[-1]
    assert "environment variable OSTINATO_ISA: unknown instruction set" in message
    assert message.endswith(", ".join(_native.isas()))


def test_a_set_of_another_processor_does_not_run_here():
    foreign = "neon" if "baseline" in _native.isas() else "avx2"
    before = _native.isa()
    with pytest.raises(ValueError, match=f"set_isa: instruction set '{foreign}' does not run here; known: "):
        _native.set_isa(foreign)
    assert _native.isa() == before


@pytest.mark.parametrize("isa", _native.isas())
def test_the_set_can_be_switched_in_the_process(isa, restored_isa):
    _native.set_isa(isa)
    assert _native.isa() == isa
    assert _native.isa_facts()[0] == VECTOR_BYTES[isa]


def test_an_unknown_name_changes_nothing(restored_isa):
    with pytest.raises(
        ValueError, match="unknown instruction set 'sse9'; known: " + ", ".join(_native.isas())
    ):
        _native.set_isa("sse9")
    assert _native.isa() == restored_isa
