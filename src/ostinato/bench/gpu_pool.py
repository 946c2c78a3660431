"""Worker processes of the GPU benchmark: started, asked, and ended when they do not answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from ostinato.bench.gpu_cases import GpuCase
from ostinato.bench.gpu_problems import OURS

_START_S = 120.0
_LINES_OF_A_CRASH = 4
Failed = dict[str, Any]


class Worker:
    """One process that computes cases; it may be lost, and is then started anew with the next case."""

    def __init__(self, device: str, *, threads: int = 1):
        self._command = [sys.executable, "-m", "ostinato.bench.gpu_worker", device]
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._complaints: IO[str] | None = None

    def run(
        self, case: GpuCase, seconds: float, limit_s: float, without: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What the case gives; where the process fails, hangs or dies `status` failed, `detail`, `doing`."""
        ends_s = time.monotonic() + limit_s
        failure = self._start(min(limit_s, _START_S))
        if failure is not None:
            return failure
        job = {"case": case.as_job(), "seconds": seconds, "without": list(without)}
        doing = OURS
        try:
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError:
            return self._lost(doing)
        while True:
            message = self._next(ends_s)
            if message is None:
                if time.monotonic() < ends_s:
                    return self._lost(doing)
                self.end()
                return _failure(
                    f"no answer within {limit_s:.0f} s; its process was ended", doing, was_lost=True
                )
            if "doing" in message:
                doing = message["doing"]
            elif "failed" in message:
                if message["poisoned"]:
                    self.end()
                return _failure(message["failed"], doing, was_lost=message["poisoned"])
            elif "result" in message:
                return message["result"]

    def end(self) -> None:
        """Kill the process, if there is one."""
        self._lost("")

    def _start(self, limit_s: float) -> Failed | None:
        if self._process is not None and self._process.poll() is None:
            return None
        self.end()
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True,
            encoding="utf-8", env=self._environment, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=_forward_lines, args=(self._process, self._answers), daemon=True).start()
        message = self._next(time.monotonic() + limit_s)
        if message is not None and message.get("ready"):
            return None
        return self._lost("start")

    def _next(self, ends_s: float) -> dict[str, Any] | None:
        """The next message; None where the process has ended or the time is up."""
        try:
            line = self._answers.get(timeout=max(0.0, ends_s - time.monotonic()))
        except queue.Empty:
            return None
        return None if line is None else json.loads(line)

    def _lost(self, doing: str) -> Failed:
        """End the process, and say how it ended and what it complained of."""
        process, self._process = self._process, None
        complaints, self._complaints = self._complaints, None
        if process is None or complaints is None:
            return _failure("it had no process", doing, was_lost=True)
        code = process.poll()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        with complaints:
            complaints.seek(0)
            said = [line.strip() for line in complaints.read().splitlines() if line.strip()]
        detail = f"its process ended with code {code}: {' | '.join(said[-_LINES_OF_A_CRASH:])[-600:]}"
        return _failure(detail, doing, was_lost=True)


def _forward_lines(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put(None)


def _failure(detail: str, doing: str, *, was_lost: bool) -> Failed:
    return {"status": "failed", "detail": detail, "doing": doing, "was_lost": was_lost}


class Deadline:
    """The time that is left."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._ends_s = clock() + seconds

    @property
    def left_s(self) -> float:
        """Never below 0."""
        return max(0.0, self._ends_s - self._clock())


def run_all(
    cases: Sequence[GpuCase],
    workers: Sequence[Any],
    deadline: Deadline,
    *,
    limit_s: float,
    seconds: float,
    report: Callable[[GpuCase, Mapping[str, Any]], None],
) -> None:
    """Compute cases in their order, as many at a time as there are workers; tell each result as it comes.

    A case that began too late is told as skipped. A contestant of a timed case whose process was lost is left
    out, and the case computed again for the others.
    """
    waiting: queue.SimpleQueue[GpuCase] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    lock = threading.Lock()

    def serve(worker: Any) -> None:
        while True:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                return
            result = _run_one(case, worker, deadline, limit_s, seconds)
            with lock:
                report(case, result)

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run_one(
    case: GpuCase, worker: Any, deadline: Deadline, limit_s: float, seconds: float
) -> Mapping[str, Any]:
    without: list[str] = []
    first: Mapping[str, Any] = {}
    while True:
        left_s = deadline.left_s
        if left_s < 1.0:
            return first or {"status": "skipped", "detail": "the time was up"}
        result = worker.run(case, seconds, min(limit_s, left_s), without)
        first = first or result
        is_repeatable = case.kind == "time" and result.get("was_lost") and len(without) < 3
        if not is_repeatable or result["doing"] in (*without, "start"):
            return result
        without.append(result["doing"])
