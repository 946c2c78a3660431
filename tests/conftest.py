"""Shared fixtures: seeds, one tolerance table, few threads."""

from __future__ import annotations

import pytest
import torch

from ostinato.kernels import native
from ostinato.kernels.cell_options import CellOptions
from ostinato.kernels.task import Task

# The one tolerance table: maximum error over maximum value. Changing it needs a note in docs/log.md.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded() -> None:
    torch.manual_seed(20261122)
    # Sizes are tiny: a second thread would mostly wait, and on a busy machine for long.
    torch.set_num_threads(1)


@pytest.fixture
def fastest() -> str:
    """The path that a plain layer takes here: `native` where those kernels are built, else `torch`."""
    task = Task("gru", CellOptions(), is_reverse=False, returns_cells=False, keeps="gates")
    return "torch" if native.obstacle(task, torch.empty(0)) else "native"


@pytest.fixture
def tolerance() -> dict[torch.dtype, float]:
    """The tolerance table: maximum error over maximum value, by dtype."""
    return TOLERANCE
