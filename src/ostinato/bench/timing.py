"""Timing several contestants in turns: round robin, every call on its own, medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ostinato.bench.cases import Array
from ostinato.bench.machine import page_faults, wait_for_own_threads


@dataclass(frozen=True)
class Contestant:
    """Something that computes a case.

    Attributes:
        name: `ostinato`, or the peer's.
        call: computes it once; what is timed.
        results: computes it and returns what came out, by name, in the forms of `Problem`.
        detail: which path or form it takes.
    """

    name: str
    call: Callable[[], Any]
    results: Callable[[], dict[str, Array]]
    detail: str = ""


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        seconds: of a case, over all contestants.
        rounds: at least; each contestant has one turn in each.
        few_rounds: enough where one round takes longer than `seconds`.
        turn_s: of one turn, at least one call.
    """

    seconds: float
    rounds: int
    few_rounds: int
    turn_s: float


FULL = Effort(0.8, 7, 5, 0.006)
QUICK = Effort(0.25, 4, 3, 0.004)
STEPS = Effort(1.5, 9, 5, 0.015)
QUICK_STEPS = Effort(0.3, 4, 3, 0.010)
_MAX_CALLS_PER_TURN = 20_000
_LONG_S = 0.2


@dataclass
class Timing:
    """Times of one contestant.

    Attributes:
        turns: one array of seconds for each turn.
        page_faults: first touches of a page in all timed calls: what fresh buffers cost.
    """

    turns: list[Array] = field(default_factory=list)
    page_faults: int = 0

    @property
    def calls(self) -> int:
        """How many calls were timed."""
        return sum(map(len, self.turns))

    @property
    def medians(self) -> list[float]:
        """Of each turn, in s."""
        return [float(np.median(turn)) for turn in self.turns]

    @property
    def median_s(self) -> float:
        """Of the turns' medians: a turn that was disturbed counts once, however many calls it had."""
        return statistics.median(self.medians)

    def percentile_s(self, percent: float) -> float:
        """Over all calls."""
        return float(np.percentile(np.concatenate(self.turns), percent))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def clock_cost_s() -> float:
    """What two readings of the clock cost by themselves, which is taken off every call."""
    clock = time.perf_counter_ns
    return float(np.median([-(clock() - clock()) for _ in range(2000)])) * 1e-9


def measure(
    contestants: Sequence[Contestant],
    effort: Effort,
    *,
    is_threaded: bool,
    between: Callable[[], Any] | None = None,
) -> dict[str, Timing]:
    """Time contestants in turns.

    Every turn begins with calls that are not timed: the caches hold the rival's data, and threads sleep.

    Args:
        contestants: with different names.
        effort: how long.
        is_threaded: whether contestants leave spinning threads behind, which are waited for.
        between: called before each call, outside the clock.
    """
    timings = {one.name: Timing() for one in contestants}
    cost_s = clock_cost_s()
    began_s = time.perf_counter()
    with _without_garbage_collection():
        for one in contestants:  # caches of packed weights, compilation, the allocator's lists
            one.call()
        rounds = 0
        while not _is_enough(effort, rounds, time.perf_counter() - began_s):
            first = rounds % len(contestants)
            for one in (*contestants[first:], *contestants[:first]):
                if is_threaded:
                    wait_for_own_threads()
                timing = timings[one.name]
                faults = page_faults()
                is_long = bool(timing.turns) and timing.turns[-1][-1] > _LONG_S
                timing.turns.append(_turn(one.call, effort.turn_s, between, cost_s, is_long=is_long))
                timing.page_faults += page_faults() - faults
            rounds += 1
    return timings


def _is_enough(effort: Effort, rounds: int, spent_s: float) -> bool:
    if spent_s >= 2 * effort.seconds:
        return rounds >= effort.few_rounds
    return rounds >= effort.rounds and spent_s >= effort.seconds


def _turn(
    call: Callable[[], Any],
    turn_s: float,
    between: Callable[[], Any] | None,
    cost_s: float,
    *,
    is_long: bool,
) -> Array:
    """Seconds of each call of a turn; what a rival left in the caches is nothing to a long call."""
    clock = time.perf_counter_ns
    if not is_long:
        started = clock()
        call()
        warm_ns = clock() - started
        if warm_ns < 2_000_000:
            for _ in range(min(50, 1 + 200_000 // (warm_ns + 1))):
                call()
    times: list[int] = []
    ends = clock() + int(turn_s * 1e9)
    while True:
        if between is not None:
            between()
        started = clock()
        call()
        ended = clock()
        times.append(ended - started)
        if ended >= ends or len(times) >= _MAX_CALLS_PER_TURN:
            return np.maximum(np.asarray(times) * 1e-9 - cost_s, 1e-9)


def ratio(peer: Timing, ours: Timing) -> float:
    """Peer's time over ours: above 1, ours is faster."""
    return peer.median_s / ours.median_s


def ratio_spread(peer: Timing, ours: Timing) -> tuple[float, float]:
    """Quartiles of the rounds' ratios."""
    ratios = [a / b for a, b in zip(peer.medians, ours.medians, strict=True)]
    low, high = np.percentile(ratios, (25, 75))
    return float(low), float(high)


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


def summary(timing: Timing) -> Mapping[str, float]:
    """As the report has it: s, and page faults a call."""
    return {
        "median_s": timing.median_s,
        "p50_s": timing.percentile_s(50),
        "p99_s": timing.percentile_s(99),
        "calls": timing.calls,
        "page_faults_per_call": timing.page_faults / max(1, timing.calls),
    }
