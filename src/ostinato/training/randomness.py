"""The random states of a process: seeding, storing, and leaving them as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy's global generator and torch (all devices), differently for each process."""
    mixed = np.random.SeedSequence([seed, rank]).generate_state(3, np.uint32)
    random.seed(int(mixed[0]))
    # Models and sources of users may draw from the global generator.
    np.random.seed(int(mixed[1]))  # noqa: NPY002
    torch.manual_seed(int(mixed[2]))


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    tensors = {"random/torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    values = {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }
    return tensors, values


def set_random_state(tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["random/torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], device)


@contextmanager
def kept_randomness(device: torch.device) -> Iterator[None]:
    """Put all random states back at the end: what happens inside leaves no trace in the numbers outside."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


@contextmanager
def determinism(is_wanted: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside; put its setting back at the end."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    if is_wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
