"""What the training tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    """The module programs.py: a small model, batches and runs."""
    path = Path(__file__).with_name("programs.py")
    spec = importlib.util.spec_from_file_location("training_programs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
