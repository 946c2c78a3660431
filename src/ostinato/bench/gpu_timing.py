"""Clocks of a GPU and of a CPU, and calls timed in turns on either."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
_MOST_CALLS = 200


class Clock(Protocol):
    """How long calls take on a device."""

    def times_s(self, call: Call, n: int) -> list[float]:
        """Seconds of each of n calls, one after the other; raises what a call raises, late errors too."""

    def synchronize(self) -> None:
        """Wait for everything that was started."""


class EventClock:
    """CUDA events around each call: what the GPU took, waiting for its next kernel included."""

    def times_s(self, call: Call, n: int) -> list[float]:
        """As `Clock.times_s`."""
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)
        ]
        for begin, end in pairs:
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e-3 for begin, end in pairs]

    def synchronize(self) -> None:
        """As `Clock.synchronize`."""
        torch.cuda.synchronize()


class HostClock:
    """The processor's clock, for calls that return when they are done."""

    def times_s(self, call: Call, n: int) -> list[float]:
        """As `Clock.times_s`."""
        times = []
        for _ in range(n):
            began_s = time.perf_counter()
            call()
            times.append(time.perf_counter() - began_s)
        return times

    def synchronize(self) -> None:
        """Nothing to wait for."""


def clock_of(device: torch.device) -> Clock:
    """The clock for calls on this device."""
    return EventClock() if device.type == "cuda" else HostClock()


def measure(
    calls: Mapping[str, Call], clock: Clock, *, seconds: float, rounds: int = 5
) -> dict[str, dict[str, Any]]:
    """Time contestants in turns, each turn a few calls; at least `rounds` turns each, about `seconds` in all.

    Returns:
        For each name `status` ("ok", or "failed" with `detail`), and where it is ok `median_s` (of all
        calls), `low_s` and `high_s` (quartiles) and `calls`. A contestant that fails leaves the others
        theirs, unless its error outlives its call: that is raised.
    """
    found: dict[str, dict[str, Any]] = {}
    per_turn: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    turn_s = seconds / (rounds * max(1, len(calls)))
    for name, call in calls.items():
        failure = _attempt(clock, call, 2)
        if isinstance(failure, list):
            estimate_s = max(min(clock.times_s(call, 2)), 1e-7)
            per_turn[name] = max(1, min(_MOST_CALLS, int(turn_s / estimate_s)))
        else:
            found[name] = failure
    for turn in range(rounds):
        names = list(per_turn)
        shift = turn % max(1, len(names))
        for name in (*names[shift:], *names[:shift]):
            taken = _attempt(clock, calls[name], per_turn[name] + 1)
            if isinstance(taken, list):
                # The first one of a turn finds the rival's data in the caches.
                times[name] += taken[1:]
            else:
                found[name] = taken
                per_turn.pop(name)
    for name in per_turn:
        low, middle, high = _quartiles(times[name])
        found[name] = {
            "status": "ok", "median_s": middle, "low_s": low, "high_s": high, "calls": len(times[name])
        }  # fmt: skip
    return {name: found[name] for name in calls}


def _attempt(clock: Clock, call: Call, n: int) -> Any:
    """The times of n calls, or why one failed; an error of the device that stays is raised again."""
    try:
        return clock.times_s(call, n)
    except Exception as error:  # noqa: BLE001 - a contestant may fail in any way, and the others go on
        failure = {"status": "failed", "detail": described(error)}
    clock.synchronize()
    return failure


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def described(error: BaseException) -> str:
    """Kind and first line of an error, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
