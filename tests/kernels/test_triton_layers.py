"""Layers on the path `triton` equal the reference: by the interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ostinato[triton]'")
FILE = Path(__file__).with_name("triton_interpreted_layers.py")
# One process each, so that several workers share them.
GROUPS = ("equals_the_reference and everything", "not (equals_the_reference and everything)")


@pytest.mark.parametrize("group", GROUPS)
def test_layers_by_the_interpreter(group):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FILE), "-k", group]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, cwd=FILE.parents[2]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
