"""What was built: not bound to PyTorch or a second OpenMP, and each instruction set's code by itself."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ostinato import _native

DEVELOPMENT_BUILD = Path(__file__).parents[2] / "build" / "dev"


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("ldd") is None, reason="ldd lists libraries on Linux"
)
def test_the_module_needs_only_the_system():
    done = subprocess.run(["ldd", _native.__file__], capture_output=True, text=True, timeout=60, check=True)
    needed = {line.split()[0].rpartition("/")[2] for line in done.stdout.splitlines()}
    foreign = {name for name in needed if re.search(r"torch|c10|omp|mkl|python", name)}
    assert not foreign, f"{_native.__file__} is linked with {foreign}"


def objects_by_isa():
    found = {
        isa: sorted(DEVELOPMENT_BUILD.glob(f"CMakeFiles/ostinato_{isa}.dir/native/*.o"))
        for isa in _native.isas()
    }
    return [(isa, path) for isa, paths in found.items() for path in paths]


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm lists symbols")
@pytest.mark.parametrize(
    ("isa", "path"), objects_by_isa(), ids=[f"{isa}-{path.stem}" for isa, path in objects_by_isa()]
)
def test_a_set_s_code_shares_nothing_with_the_others(isa, path):
    """Of a shared inline function the linker keeps one copy: perhaps the one that this machine cannot run."""
    done = subprocess.run(
        ["nm", "--demangle", "--defined-only", "--extern-only", path],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    shared = [line for line in done.stdout.splitlines() if f" T ostinato::{isa}::" not in line]
    assert not shared, f"{path.name} of {isa} exports {shared}; put it into an anonymous namespace"


@pytest.mark.skipif(
    not (DEVELOPMENT_BUILD / "ostinato_tests").exists(), reason="`make native` builds the C++ tests"
)
def test_the_native_tests_pass():
    done = subprocess.run(
        [DEVELOPMENT_BUILD / "ostinato_tests"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("passed ") >= 10, done.stdout
