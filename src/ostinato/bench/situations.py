"""Measurements that are more than a race: options, memory, foreign load, operators in between."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ostinato.bench import scan_peers, subjects
from ostinato.bench.cases import SCAN, Problem
from ostinato.bench.machine import available_cpus
from ostinato.bench.timing import Contestant, Effort, Timing, measure

PLAIN = "plain cell"
RECOMPUTING = "recomputing"
STEPS = "torch steps"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def more(
    kind: str,
    problem: Problem,
    contestants: Sequence[Contestant],
    alone: dict[str, Timing],
    effort: Effort,
    is_threaded: bool,
) -> dict[str, Any]:
    """What a kind of grid adds to a row, after the ordinary race `alone`."""
    mine = alone[subjects.NAME].median_s
    if kind in ("options", "custom"):
        return {"cost_over_plain": mine / alone[PLAIN].median_s}
    if kind == "scans" and problem.case.cell == SCAN:
        return {"copy_share": scan_peers.copy_s(problem.case) / mine}
    if kind == "recompute":
        return {
            "cost_of_recomputing": alone[RECOMPUTING].median_s / mine if RECOMPUTING in alone else None,
            "saved_bytes": {one.name: saved_bytes(one.call) for one in contestants},
            "peak_bytes": {one.name: peak_bytes(one.call) for one in contestants},
        }
    if kind == "load":
        with foreign_load(available_cpus()):
            loaded = measure(contestants, effort, is_threaded=is_threaded)
        return {"growth": _growth(alone, loaded)}
    if kind == "alternating":
        a = torch.randn(512, 512)
        after = measure(contestants, effort, is_threaded=is_threaded, between=lambda: torch.mm(a, a))
        return {"growth": _growth(alone, after)}
    return {}


def _growth(alone: dict[str, Timing], disturbed: dict[str, Timing]) -> dict[str, float]:
    return {name: disturbed[name].median_s / timing.median_s for name, timing in alone.items()}


@contextmanager
def foreign_load(processes: int) -> Iterator[None]:
    """Processes that compute and do nothing else, until the block ends."""
    program = "print(flush=True)\nwhile True: pass"
    busy: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            busy.append(subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE))
        for process in busy:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in busy:
            process.kill()
            process.communicate()


def saved_bytes(call: Callable[[], Any]) -> int:
    """Bytes that the graph holds between forward and backward, every storage once; inputs are among them."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(storages.values())


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """How far one call raises the resident memory at its highest; None where the system does not say."""
    if not _RESET.exists() or not _status_bytes("VmHWM"):
        return None
    call()
    _return_free_memory()
    try:
        _RESET.write_text("5", encoding="ascii")  # the high-water mark starts from the present size
    except PermissionError:
        return None
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _return_free_memory() -> None:
    """Give pages that the C library keeps for later back to the system; what it keeps would hide a peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
