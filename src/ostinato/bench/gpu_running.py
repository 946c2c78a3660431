"""`ostinato bench gpu` as one plain report: cuDNN alone, correctness, then the grid; written as it grows."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ostinato
from ostinato.bench.gpu_cases import GOALS, Goal, GpuCase, GpuPlan, goal_of
from ostinato.bench.gpu_pool import Deadline, Worker, run_all
from ostinato.bench.gpu_problems import CUDNN, OURS
from ostinato.errors import OstinatoError
from ostinato.kernels import gpu_choice
from ostinato.training.atomic import write_bytes_atomically

FORMAT = 1
FILE = "gpu.json"
# Shares of the time: what has not been checked by then is skipped, so that the grid is timed in any case.
_SURVEY_SHARE, _CHECK_SHARE = 0.15, 0.55
_CASE_LIMIT_S = 90.0
_MOST_WORKERS = 8
_SECONDS = {"full": 1.2, "quick": 0.6, "tiny": 0.0}
Row = dict[str, Any]
Notify = Callable[[str], None]


@dataclass
class Report:
    """The report as it grows; in a file after each case where there is a folder."""

    plan: str
    device: Mapping[str, Any]
    folder: Path | None = None
    notify: Notify = lambda _: None
    rows: list[Row] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    n_cases: int = 0
    is_complete: bool = False

    def add(self, case: GpuCase, result: Mapping[str, Any]) -> None:
        """Take a result."""
        self.rows.append({"label": case.label, **_sizes(case), **result})
        detail = result.get("detail", "") if result["status"] in ("failed", "differs") else ""
        said = f"{len(self.rows)}/{self.n_cases} {case.label}: {result['status']} {detail}"
        self.notify(said.strip())
        self.write()

    def write(self) -> None:
        """The file, whole at any moment."""
        if self.folder is not None:
            text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
            write_bytes_atomically(self.folder / FILE, text.encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain values: `gpu`, `versions`, `rows`, `goals`, `choice`, `failures`, `skipped`, `complete`."""
        return {
            "format": FORMAT, "plan": self.plan, "gpu": dict(self.device), "versions": versions(),
            "seconds": round(time.monotonic() - self.began_s, 1), "complete": self.is_complete,
            "rows": self.rows, "goals": goals(self.rows), "choice": wrong_choices(self.rows),
            "failures": failures(self.rows),
            "skipped": [row["label"] for row in self.rows if row["status"] == "skipped"],
        }  # fmt: skip


def _sizes(case: GpuCase) -> Row:
    job = case.as_job()
    job["D"] = case.width
    return {**job, "options": dict(case.options)}


def find_device() -> str:
    """The name of the GPU to measure.

    Raises:
        OstinatoError: there is none that PyTorch can use, or no Triton.
    """
    if not torch.cuda.is_available():
        raise OstinatoError(
            "bench gpu: PyTorch finds no NVIDIA GPU here; run it on a machine with one (`ostinato bench cpu` "
            "measures a processor)"
        )
    obstacle = gpu_choice.device_obstacle(torch.empty(0, device="cuda"))
    if obstacle:
        raise OstinatoError(f"bench gpu: {obstacle}")
    return "cuda"


def describe_device(device: str) -> dict[str, Any]:
    """Name, driver, compute capability, multiprocessors, memory."""
    if device != "cuda":
        return {"name": device}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name, "driver": _driver(), "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count, "memory_bytes": found.total_memory,
    }  # fmt: skip


def _driver() -> str:
    # Without nvidia-smi, which a container may lack.
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return "unknown"
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "unknown")


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {
        "ostinato": ostinato.__version__, "python": platform.python_version(), "torch": str(torch.__version__)
    }  # fmt: skip
    found["cuda"] = str(torch.version.cuda)
    found["cudnn"] = str(torch.backends.cudnn.version())
    for name in ("triton", "flashrnn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def run_gpu_benchmark(
    plan: GpuPlan,
    device: str,
    *,
    max_time_s: float,
    folder: Path | None = None,
    notify: Notify = lambda _: None,
    make_worker: Callable[[str], Any] = Worker,
) -> dict[str, Any]:
    """Do the whole plan within the time, in other processes; what takes too long is skipped and named.

    Args:
        plan: what to do.
        device: such as `cuda`.
        max_time_s: of everything.
        folder: of the report's file, which must be there; None for no file.
        notify: told of each result, one line at a time.
        make_worker: by device; has `run(case, seconds, limit_s, without)` and `end()`.
    """
    report = Report(plan.name, describe_device(device), folder, notify)
    report.n_cases = len(plan.checks) + len(plan.surveys) + len(plan.timings)
    seconds = _SECONDS[plan.name]
    # What is written last must be written too.
    deadline = Deadline(max_time_s - 5.0)
    n_workers = max(1, min(_MOST_WORKERS, (os.cpu_count() or 2) // 2, len(plan.checks)))
    workers = [make_worker(device) for _ in range(n_workers)]
    try:
        phases: tuple[tuple[Sequence[GpuCase], Sequence[Any], float, float], ...] = (
            (plan.surveys, workers[:1], _SURVEY_SHARE, seconds / 6),
            (plan.checks, workers, _CHECK_SHARE, seconds),
            (plan.timings, workers[:1], 1.0, seconds),
        )
        for cases, some, share, turn in phases:
            spent_s = time.monotonic() - report.began_s
            until = Deadline(min(deadline.left_s, max(0.0, share * max_time_s - spent_s)))
            run_all(cases, some, until, limit_s=_CASE_LIMIT_S, seconds=turn, report=report.add)
            for worker in some if cases else ():
                worker.end()
    finally:
        for worker in workers:
            worker.end()
    report.is_complete = True
    report.write()
    return report.as_dict()


def run_here(
    plan: GpuPlan, device: str, *, folder: Path | None = None, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """The plan in this process, without time limits: for tools that watch a process."""
    from ostinato.bench.gpu_timing import described
    from ostinato.bench.gpu_worker import run_job

    report = Report(plan.name, describe_device(device), folder, notify)
    cases = (*plan.checks, *plan.surveys, *plan.timings)
    report.n_cases = len(cases)
    for case in cases:
        try:
            result = run_job(case, torch.device(device), _SECONDS[plan.name])
        except Exception as error:  # noqa: BLE001 - the other cases have their say
            result = {"status": "failed", "detail": described(error)}
        report.add(case, result)
    report.is_complete = True
    report.write()
    return report.as_dict()


# What the rows come to -----------------------------------------------------------------------------------


def median_s(row: Mapping[str, Any], mode: str, name: str) -> float | None:
    """A contestant's time; None where it has none."""
    found = row.get(mode, {}).get(name, {})
    return found.get("median_s") if found.get("status") == "ok" else None


def goals(rows: Iterable[Row]) -> list[Row]:
    """For each timed row with a goal and each mode: what was measured, what is wanted, met or not.

    `is_met` is None where it could not be measured.
    """
    found = []
    for row in rows:
        if row["kind"] not in ("time", "scan"):
            continue
        goal = goal_of(GpuCase.from_job({**row, "options": row["options"].items()}))
        if goal is None:
            continue
        for mode, wanted in (("forward", goal.forward), ("training", goal.training)):
            if wanted is not None:
                found.append(_answer(row, goal, mode, wanted))
    order = {goal.name: number for number, goal in enumerate(GOALS)}
    return sorted(found, key=lambda one: order[one["goal"]])


def _answer(row: Row, goal: Goal, mode: str, wanted: float) -> Row:
    mine, theirs = median_s(row, mode, OURS), median_s(row, mode, goal.over)
    measured: float | None = None
    if not goal.over:
        measured = mine
        is_met = None if mine is None else mine <= wanted
    else:
        if mine is not None and theirs is not None:
            measured = mine / theirs if goal.is_cost else theirs / mine
        is_met = None if measured is None else (measured <= wanted if goal.is_cost else measured >= wanted)
    return {
        "goal": goal.name, "label": row["label"], "mode": mode, "over": goal.over, "wanted": wanted,
        "measured": measured, "is_met": is_met, "ours_s": mine, "is_cost": goal.is_cost,
    }  # fmt: skip


def wrong_choices(rows: Iterable[Row]) -> list[Row]:
    """Timed rows for which the other of Triton and cuDNN would have been faster than what `auto` takes.

    That is what `kernels/gpu_choice.py` should be told.
    """
    found = []
    for row in rows:
        if row["kind"] != "time" or row.get("path") != "triton":
            continue
        for mode in ("forward", "training"):
            mine, theirs = median_s(row, mode, OURS), median_s(row, mode, CUDNN)
            if mine is None or theirs is None:
                continue
            fastest = "triton" if mine <= theirs else "torch"
            if row["automatic"] != fastest:
                found.append(
                    {"label": row["label"], "mode": mode, "chosen": row["automatic"], "ratio": theirs / mine}
                )
    return found


def failures(rows: Iterable[Row]) -> list[str]:
    """Rows in which ours are wrong or did not run."""
    found = []
    for row in rows:
        if row["status"] in ("failed", "differs", "not repeatable"):
            found.append(
                f"{row['label']}: {row['status']} {row.get('detail') or row.get('worst', '')}".strip()
            )
            continue
        for mode in ("forward", "training"):
            mine = row.get(mode, {}).get(OURS, {})
            if mine.get("status") == "failed":
                found.append(f"{row['label']}: {mode} failed {mine['detail']}")
    return found
