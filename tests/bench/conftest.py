"""A benchmark of tiny cases that takes next to no time."""

import pytest

from ostinato.bench import running
from ostinato.bench.cases import Case, Grid
from ostinato.bench.machine import LoadGuard
from ostinato.bench.timing import Effort


def tiny_case(**changes):
    """An LSTM of odd sizes."""
    given = {"grid": "sequences", "cell": "lstm", "mode": "training", "H": 17, "B": 3, "T": 7, "D": 5}
    return Case(**{**given, **changes})


@pytest.fixture
def case():
    """Makes tiny cases."""
    return tiny_case


@pytest.fixture
def plan(monkeypatch):
    """Makes plans of given cases, measured for a few milliseconds."""
    brief = Effort(0.0, 2, 2, 0.0002)
    monkeypatch.setattr(running, "QUICK", brief)
    monkeypatch.setattr(running, "QUICK_STEPS", brief)
    monkeypatch.setattr(running, "gemm_flops_per_s", lambda **_: 1e11)
    monkeypatch.setattr(LoadGuard, "wait_for_quiet", lambda *_: None)

    def make(*cases, kind="peers"):
        grid = Grid(cases[0].grid, "tiny", cases, cases, kind)
        return running.Plan((grid,), (1,), is_quick=True)

    return make
