"""The machine under measurement: its name, its speed at matrix products, and who else uses it."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

_STAT, _CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
_INSTRUCTIONS = {"avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd"}
# Shares of all processors' time: above them a case is noisy.
FOREIGN_LIMIT, STEAL_LIMIT = 0.06, 0.03


def available_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Processor, its instruction sets, the one that our kernels are held to, and how many processors."""
    fields_of: dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields_of.setdefault(name.strip(), value.strip())
    flags = set(fields_of.get("flags", fields_of.get("Features", "")).split())
    family = ", ".join(
        f"{name} {fields_of[name]}" for name in ("cpu family", "model", "stepping") if name in fields_of
    )
    return {
        "cpu": fields_of.get("model name") or platform.processor() or platform.machine(),
        "family": family,
        "instructions": sorted(flags & _INSTRUCTIONS),
        "kernels": os.environ.get("OSTINATO_ISA", "widest set of instructions"),
        "cpus": available_cpus(),
        "system": platform.system(),
    }  # fmt: skip


def page_faults() -> int:
    """First touches of a page by this process so far; 0 where the system does not count them."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def gemm_flops_per_s(n: int = 2048, seconds: float = 1.0) -> float:
    """The best of repeated float32 products (n, n) x (n, n) at torch's present number of threads."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    out = torch.empty(n, n)
    times: list[float] = []
    ends_s = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < ends_s:
        started_s = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - started_s)
    return 2.0 * n**3 / min(times)


class Reading(NamedTuple):
    """What the counters say now; `busy_s` and `steal_s` are None where there is no /proc/stat."""

    at_s: float
    own_s: float
    busy_s: float | None
    steal_s: float | None


class Shares(NamedTuple):
    """Shares of all processors' time between two readings."""

    foreign: float
    steal: float

    @property
    def is_noisy(self) -> bool:
        """Others used enough of the machine to be seen in a median."""
        return self.foreign > FOREIGN_LIMIT or self.steal > STEAL_LIMIT


def read_counters() -> Reading:
    """Processor time of everybody, and of this process with its ended children."""
    times = os.times()
    own_s = times.user + times.system + times.children_user + times.children_system
    if not _STAT.is_file():
        return Reading(time.perf_counter(), own_s, None, None)
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    counts = [int(word) for word in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = counts
    return Reading(
        time.perf_counter(), own_s, (user + nice + system + irq + softirq) * tick_s, steal * tick_s
    )


def shares_between(before: Reading, after: Reading) -> Shares | None:
    """What others took; None where the system does not say."""
    if before.busy_s is None or after.busy_s is None or before.steal_s is None or after.steal_s is None:
        return None
    capacity_s = max(1e-3, (after.at_s - before.at_s) * (os.cpu_count() or 1))
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return Shares(max(0.0, foreign_s) / capacity_s, max(0.0, after.steal_s - before.steal_s) / capacity_s)


@dataclass
class LoadGuard:
    """Waits for a quiet machine, within its patience, and says whether a measurement was disturbed.

    Attributes:
        patience_s: how long it may wait, and repeat measurements, in all.
        waited_s: how long it has done so.
        foreign: the share of others in each measurement.
    """

    patience_s: float
    waited_s: float = 0.0
    foreign: list[float] = field(default_factory=list)

    def wait_for_quiet(self, look_s: float = 0.1) -> None:
        """Return when nobody else computes, or when patience is over."""
        while self.waited_s < self.patience_s:
            before = read_counters()
            time.sleep(look_s)
            self.waited_s += look_s
            shares = shares_between(before, read_counters())
            # one tick in so short a look is 5 % of two processors
            if shares is None or shares.foreign < 2 * FOREIGN_LIMIT:
                return

    def judge(self, before: Reading) -> Shares | None:
        """What others took since `before`."""
        shares = shares_between(before, read_counters())
        if shares is not None:
            self.foreign.append(shares.foreign)
        return shares

    def may_repeat(self, before: Reading) -> bool:
        """Whether there is patience for the measurement since `before` once more; it is then used up."""
        taken_s = time.perf_counter() - before.at_s
        if self.waited_s + taken_s > self.patience_s:
            return False
        self.waited_s += taken_s
        return True

    @property
    def typical_foreign(self) -> float | None:
        """Median over the measurements."""
        return statistics.median(self.foreign) if self.foreign else None


def wait_for_own_threads(limit_s: float = 0.06) -> None:
    """Return when no thread of this process spins any more.

    Threads of OpenMP and of ONNX Runtime spin for milliseconds after a call and would share a core with
    whoever is timed next.
    """
    ends_s = time.perf_counter() + limit_s
    while time.perf_counter() < ends_s:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        time.sleep(0.001)
        if time.process_time() - cpu_s < 0.15 * (time.perf_counter() - wall_s):
            return
