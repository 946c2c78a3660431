"""A whole benchmark: grids over thread counts, checked before timed, as one plain report."""

from __future__ import annotations

import importlib
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch

import ostinato
from ostinato.bench import custom_peers, scan_peers, situations, subjects, torch_loop
from ostinato.bench.cases import OWN_CELLS, SCAN, Case, Grid, Problem, choose_grids, has_option
from ostinato.bench.checking import TOLERANCE, judge, oracle
from ostinato.bench.machine import (
    LoadGuard,
    Shares,
    available_cpus,
    describe_machine,
    gemm_flops_per_s,
    read_counters,
)
from ostinato.bench.timing import (
    FULL,
    QUICK,
    QUICK_STEPS,
    STEPS,
    Contestant,
    Effort,
    Timing,
    geometric_mean,
    measure,
    ratio,
    ratio_spread,
    summary,
)
from ostinato.errors import InputError, MissingExtraError

FORMAT = 1
_REPEATS = 3  # of a noisy case, at most
_PEERS = {"torch": "torch_peers", "onnxruntime": "onnx_peers", "jax": "jax_peers"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        grids: in order.
        threads: numbers of threads, each over all grids.
        is_quick: fewer sizes and rounds, no repetition of noisy cases.
    """

    grids: tuple[Grid, ...]
    threads: tuple[int, ...]
    is_quick: bool = False

    @classmethod
    def read(
        cls,
        only: Sequence[str] | None = None,
        threads: Sequence[int] | None = None,
        *,
        is_quick: bool = False,
    ) -> Plan:
        """From names of grids and numbers of threads; all grids, and 1 and 2 threads, by default.

        Raises:
            InputError: an unknown grid, or more threads than there are processors.
        """
        cpus = available_cpus()
        chosen = tuple(sorted({1, min(2, cpus)})) if threads is None else tuple(threads)
        for number in chosen:
            if not 1 <= number <= cpus:
                raise InputError(f"--threads {number}: expected 1 to {cpus}, the processors that may be used")
        if any(a >= b for a, b in pairwise(chosen)):
            raise InputError(f"--threads {','.join(map(str, chosen))}: expected rising numbers, such as 1,2")
        return cls(tuple(choose_grids(only)), chosen, is_quick)

    def cases(self, grid: Grid) -> tuple[Case, ...]:
        """Those of a grid that this plan runs."""
        return grid.quick if self.is_quick else grid.cases


@dataclass
class Peers:
    """The packages to compare with.

    Attributes:
        modules: name -> module with `contestant(problem, threads)`.
        versions: name -> version.
        missing: name -> what to do about it.
    """

    modules: dict[str, ModuleType]
    versions: dict[str, str]
    missing: dict[str, str]

    @classmethod
    def load(cls, threads: int) -> Peers:
        """Import what is installed; `threads` is the most that any case will use."""
        modules, versions, missing = {}, {}, {}
        for name, module_name in _PEERS.items():
            module = importlib.import_module(f"ostinato.bench.{module_name}")
            if hasattr(module, "prepare"):
                module.prepare(threads)
            try:
                versions[name] = module.version()
            except MissingExtraError as error:
                missing[name] = f"not installed: {error}"
            else:
                modules[name] = module
        return cls(modules, versions, missing)


def run_benchmark(plan: Plan, notify: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure everything in the plan.

    Args:
        plan: what to run.
        notify: told what is being measured, one line at a time.

    Returns:
        A report of plain values: `machine`, `versions`, `not_installed`, `gemm_flops_per_s` by threads,
        `rows`, `geometric_means`, `notes`, `failures` (cases in which our own outputs are wrong).
    """
    guard = LoadGuard(patience_s=5.0 if plan.is_quick else 180.0)
    peers = Peers.load(max(plan.threads))
    rows: list[Row] = []
    notes: list[str] = []
    peak: dict[str, float] = {}
    threads_before = torch.get_num_threads()
    try:
        for threads in plan.threads:
            torch.set_num_threads(threads)
            for grid in plan.grids:
                if grid.kind == "recompute" and not has_option("recompute"):
                    notes.append(f"{grid.name}: the layers have no option 'recompute'; skipped")
                    continue
                guard.wait_for_quiet()
                # Before every grid, and the best of all: a peak is what nobody disturbed.
                speed = gemm_flops_per_s(seconds=0.2 if plan.is_quick else 0.5)
                peak[str(threads)] = max(speed, peak.get(str(threads), 0.0))
                for number, case in enumerate(cases := plan.cases(grid)):
                    at = f"{threads} thread{'s' * (threads > 1)}, {grid.name} {number + 1}/{len(cases)}"
                    notify(f"{at}: {case.label}")
                    rows.append(_row(grid, case, threads, peers, plan, guard))
    finally:
        torch.set_num_threads(threads_before)
    _add_gemm_shares(rows, peak)
    return {
        "format": FORMAT,
        "machine": describe_machine(),
        "versions": {
            "ostinato": ostinato.__version__, "python": platform.python_version(), **peers.versions
        },
        "not_installed": peers.missing,
        "quick": plan.is_quick,
        "threads": list(plan.threads),
        "tolerance": TOLERANCE,
        "gemm_flops_per_s": peak,
        "foreign_share": guard.typical_foreign,
        "rows": rows,
        "geometric_means": geometric_means(rows),
        "notes": sorted(set(notes)) + _noise_notes(rows),
        "failures": [_name(row) for row in rows if row["times"].get(subjects.NAME, {}).get("status") != "ok"],
    }  # fmt: skip


def _name(row: Row) -> str:
    tag = f" {row['tag']}" if row["tag"] else ""
    return (
        f"{row['grid']} {row['cell']} {row['mode']}{tag} H={row['H']} B={row['B']} threads={row['threads']}"
    )


def _noise_notes(rows: Sequence[Row]) -> list[str]:
    noisy = sum(row["noisy"] for row in rows)
    if not noisy:
        return []
    return [f"{noisy} of {len(rows)} cases are noisy: others used the machine while they ran; marked with ~"]


def _add_gemm_shares(rows: Iterable[Row], peak: Mapping[str, float]) -> None:
    for row in rows:
        for time in row["times"].values():
            if "flops" in row and "median_s" in time:
                time["gemm_share"] = row["flops"] / time["median_s"] / peak[str(row["threads"])]


def _row(grid: Grid, case: Case, threads: int, peers: Peers, plan: Plan, guard: LoadGuard) -> Row:
    problem = _draw(case)
    expected = oracle(problem)
    contestants, verdicts = [], {}
    for one in _contestants(grid, problem, threads, peers):
        if isinstance(one, Contestant):
            # The plain cell beside an option answers another question.
            verdict = None if one.name == situations.PLAIN else judge(one, expected)
            verdicts[one.name] = {
                "status": "differs" if verdict and verdict.differs else "ok",
                "error": min(verdict.error, 1e30) if verdict else None,
                "worst": verdict.worst if verdict else None,
                "detail": one.detail,
            }
            contestants.append(one)
        else:
            verdicts[one[0]] = {"status": "failed", "detail": one[1]}
    sound = [one for one in contestants if verdicts[one.name]["status"] == "ok"]
    row: Row = {
        **{name: getattr(case, name) for name in ("grid", "cell", "mode", "H", "B", "T", "D", "tag")},
        "threads": threads, "kind": grid.kind, "path": contestants[0].detail, "times": verdicts, "ratios": {},
        "noisy": False,
    }  # fmt: skip
    if subjects.NAME in [one.name for one in sound]:
        _time(row, grid, problem, sound, plan, guard)
    return row


def _draw(case: Case) -> Problem:
    if case.cell == SCAN:
        return scan_peers.draw(case)
    return custom_peers.draw(case) if case.cell in OWN_CELLS else Problem.draw(case)


def _contestants(
    grid: Grid, problem: Problem, threads: int, peers: Peers
) -> Iterator[Contestant | tuple[str, str]]:
    """Ours first; a peer that cannot be built is (name, why)."""
    case = problem.case
    if case.cell == SCAN:
        yield from scan_peers.contestants(problem, has_jax="jax" in peers.modules)
        return
    if case.cell in OWN_CELLS:
        yield from custom_peers.contestants(problem, threads, situations.PLAIN)
        return
    if case.mode == "step":
        yield from subjects.steppers(problem, threads)
    else:
        yield subjects.ours(problem, threads)
    if grid.kind == "options":
        plain = Problem.draw(replace(case, options=(), tag=""))
        yield subjects.ours(plain, threads, name=situations.PLAIN)
        yield torch_loop.loop(problem, threads)
        return
    if grid.kind == "scans":
        yield subjects.ours(problem, threads, name=situations.STEPS, backend=situations.STEPS)
        return
    if grid.kind == "recompute":
        yield subjects.ours(problem, threads, name=situations.RECOMPUTING, recompute=True)
        return
    for name, module in peers.modules.items():
        if grid.kind in ("load", "alternating") and name != "torch":
            continue
        try:
            peer = module.contestant(problem, threads)
        except (RuntimeError, ValueError, TypeError) as error:  # a peer's own failure ends its column only
            yield name, f"{type(error).__name__}: {error}"
            continue
        if peer is not None:
            yield peer


def _effort(case: Case, plan: Plan) -> Effort:
    if case.mode == "step":
        return QUICK_STEPS if plan.is_quick else STEPS
    return QUICK if plan.is_quick else FULL


def _time(
    row: Row,
    grid: Grid,
    problem: Problem,
    sound: Sequence[Contestant],
    plan: Plan,
    guard: LoadGuard,
) -> None:
    """Fill in times and ratios; a noisy case is measured again, and the quietest of the runs counts."""
    is_threaded, effort = row["threads"] > 1, _effort(problem.case, plan)
    best: tuple[float, dict[str, Timing], Shares | None] | None = None
    for _ in range(_REPEATS):
        guard.wait_for_quiet()
        before = read_counters()
        timings = measure(sound, effort, is_threaded=is_threaded)
        shares = guard.judge(before)
        noise = 0.0 if shares is None else shares.foreign + shares.steal
        if best is None or noise < best[0]:
            best = noise, timings, shares
        if shares is None or not shares.is_noisy or not guard.may_repeat(before):
            break
    assert best is not None
    _, timings, shares = best
    if grid.kind == "peers" and row["mode"] != "step":
        row["flops"] = problem.case.flops(problem.n_steps)
    row["noisy"] = bool(shares is not None and shares.is_noisy)
    row["foreign"] = None if shares is None else shares.foreign
    mine = timings[subjects.NAME]
    for name, timing in timings.items():
        row["times"][name] |= summary(timing)
        if name not in (subjects.NAME, situations.PLAIN, situations.RECOMPUTING):
            low, high = ratio_spread(timing, mine)
            row["ratios"][name] = {"ratio": ratio(timing, mine), "low": low, "high": high}
    row |= situations.more(grid.kind, problem, sound, timings, effort, is_threaded)


def geometric_means(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """For each grid, threads, cell and mode: over torch, over the best peer, and the lowest ratio to it."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "peers" and row["ratios"]:
            groups[row["grid"], row["threads"], row["mode"], row["cell"]].append(row)
    means = []
    for (grid, threads, mode, cell), members in groups.items():
        own = [{name: r["ratio"] for name, r in row["ratios"].items() if name in _PEERS} for row in members]
        names = [name for name in _PEERS if any(name in ratios for ratios in own)]
        means.append(
            {
                "grid": grid, "threads": threads, "mode": mode, "cell": cell, "cases": len(members),
                "over": {name: geometric_mean([r[name] for r in own if name in r]) for name in names},
                "over_best_peer": geometric_mean([min(r.values()) for r in own if r]),
                "lowest": min(min(r.values()) for r in own if r),
                "below_one": sum(min(r.values()) < 1.0 for r in own if r),
            }
        )  # fmt: skip
    return means


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def explain_paths(plan: Plan) -> list[dict[str, Any]]:
    """Which path each case takes and why, without running it: cases of one answer together."""
    answers: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for grid in plan.grids:
        if grid.kind == "recompute" and not has_option("recompute"):
            continue
        for case in plan.cases(grid):
            if case.cell == SCAN or case.cell in OWN_CELLS:
                continue
            for threads in plan.threads:
                with _torch_threads(threads):
                    path = _explained(case)
                answers[grid.name, case.cell, case.mode, case.tag, *path].append((case, threads))
    return [
        {
            "grid": grid, "cell": cell, "mode": mode, "tag": tag, "path": path, "reason": reason,
            "sizes": list(dict.fromkeys(f"{case.H}x{case.B}" for case, _ in members)),
            "threads": sorted({threads for _, threads in members}),
        }
        for (grid, cell, mode, tag, path, reason), members in answers.items()
    ]  # fmt: skip


def _explained(case: Case) -> tuple[str, str]:
    layer = case.make_layer()
    lengths: dict[str, Any] = {}
    if case.is_ragged:
        lengths["lengths"] = torch.full((case.B,), max(1, case.T // 2))
    with torch.set_grad_enabled(case.mode == "training"):
        path = layer.explain(torch.zeros(case.B, case.T, case.D), **lengths)
    return path.path, path.reason
