"""Whether a contestant computes the case: its outputs beside float64, before any clock runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ostinato.bench import custom_peers, scan_peers, subjects, torch_loop, torch_peers
from ostinato.bench.cases import LINEAR_CELLS, OWN_CELLS, SCAN, Array, Problem
from ostinato.bench.timing import Contestant

# Largest error over largest value, for y, the final state and every gradient.
TOLERANCE = 2e-5


class Verdict(NamedTuple):
    """How far a contestant is from float64.

    Attributes:
        error: the largest, over the largest value of its tensor.
        worst: the tensor that it is in.
    """

    error: float
    worst: str

    @property
    def differs(self) -> bool:
        """Too far for a ratio to mean anything."""
        return not self.error <= TOLERANCE

    def __str__(self) -> str:
        return f"{self.worst}: {self.error:.1e} of its largest value"


def oracle(problem: Problem) -> dict[str, Array]:
    """The case in float64 by torch: `torch.nn` where it has the cell, a loop of operators elsewhere.

    Layers of linear recurrences are judged by their equations in torch operators, the path `torch steps`.
    """
    if problem.case.cell == SCAN:
        return scan_peers.loop(problem, torch.float64).results()
    if problem.case.cell in OWN_CELLS:
        return custom_peers.loop(problem, torch.float64).results()
    if problem.case.cell in LINEAR_CELLS:
        return subjects.ours(problem, 1, dtype=torch.float64, backend="torch steps").results()
    contestant = torch_peers.contestant(problem, 1, torch.float64) or torch_loop.loop(
        problem, 1, torch.float64
    )
    return contestant.results()


def judge(contestant: Contestant, expected: dict[str, Array]) -> Verdict:
    """Compare all that the oracle names; what is missing, misshapen or not finite is infinitely far."""
    found = contestant.results()
    verdict = Verdict(0.0, "y")
    for name, value in expected.items():
        mine = found.get(name)
        error = float("inf")
        if mine is not None and mine.shape == value.shape:
            error = float(np.abs(mine - value).max(initial=0.0) / (np.abs(value).max(initial=0.0) or 1.0))
            error = error if np.isfinite(error) else float("inf")
        if error > verdict.error:
            verdict = Verdict(error, name)
    return verdict
