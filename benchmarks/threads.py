"""What the kernels' own threads cost, alone and in turn with PyTorch's operators, whose threads spin too.

    make native && python benchmarks/threads.py [--repeats 200]

A region is 8 tasks that are busy for a fixed time, so the ideal on two threads is half of one thread's time.
Before each comes what a program would do in between: nothing, Python, small operators, or a product on two of
PyTorch's threads. Medians, one and two threads in turn; and the time of what lies between, which our threads
must not slow down.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

PROBE = Path(__file__).parents[1] / "build" / "dev" / "libostinato_pool_probe.so"
N_TASKS = 8
TASKS_US = (0, 5, 25, 100)


def load_probe() -> ctypes.CDLL:
    if not PROBE.exists():
        raise SystemExit(f"{PROBE} is missing; build it with: make native")
    probe = ctypes.CDLL(str(PROBE))
    probe.probe_region_ns.restype = ctypes.c_int64
    probe.probe_region_ns.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    probe.probe_gang.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    return probe


def busy(time_us: float) -> None:
    end = time.perf_counter_ns() + int(1000 * time_us)
    while time.perf_counter_ns() < end:
        pass


def between() -> dict[str, Callable[[], object]]:
    small, large = torch.randn(64, 64), torch.randn(256, 256)
    return {
        "nothing": lambda: None,
        "0.1 ms of Python": lambda: busy(100),
        "1 ms of Python": lambda: busy(1000),
        "5 small operators": lambda: [small + small for _ in range(5)],
        "a product on 2 threads": lambda: large @ large,
    }


def median_us(times_ns: list[int]) -> float:
    return statistics.median(times_ns) / 1000


def measure(probe: ctypes.CDLL, what: Callable[[], object], task_us: int, repeats: int) -> list[float]:
    """Medians in µs: a region on one thread, on two, what is between with one, with two."""
    regions: dict[int, list[int]] = {1: [], 2: []}
    betweens: dict[int, list[int]] = {1: [], 2: []}
    for _ in range(max(1, repeats // 20)):
        for n_threads in (1, 2):
            for _ in range(20):
                start = time.perf_counter_ns()
                what()
                betweens[n_threads].append(time.perf_counter_ns() - start)
                regions[n_threads].append(probe.probe_region_ns(n_threads, N_TASKS, 1000 * task_us))
    return [median_us(times) for times in (regions[1], regions[2], betweens[1], betweens[2])]


def barrier_ns(probe: ctypes.CDLL, repeats: int) -> float | None:
    n_steps, times = 1000, []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        if probe.probe_gang(2, n_steps, 0) == 0:
            times.append((time.perf_counter_ns() - start) / n_steps)
        else:
            time.sleep(0.003)  # a gang is refused for a while after other programs delayed one
    return statistics.median(times) if times else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    probe = load_probe()
    torch.set_num_threads(2)
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{machine}, torch {torch.__version__}; medians in µs")
    columns = ("between", "region", "1 thread", "2 threads", "between, 1", "between, 2")
    print("{:>24} {:>10} {:>9} {:>9} {:>11} {:>11}".format(*columns))
    for name, what in between().items():
        for task_us in TASKS_US:
            one, two, between_one, between_two = measure(probe, what, task_us, options.repeats)
            size = f"{N_TASKS} x {task_us}"
            print(f"{name:>24} {size:>10} {one:9.1f} {two:9.1f} {between_one:11.1f} {between_two:11.1f}")
    step_ns = barrier_ns(probe, options.repeats)
    print(
        "meeting of two threads:", "refused, the machine is busy" if step_ns is None else f"{step_ns:.0f} ns"
    )


if __name__ == "__main__":
    main()
