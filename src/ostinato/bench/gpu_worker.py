"""One case of the GPU benchmark at a time, in a process that may be lost.

A kernel that hangs is ended with its process, and an error that CUDA cannot get over ends its process only.
Started as `python -m ostinato.bench.gpu_worker DEVICE`, it reads jobs from standard input, one JSON object a
line, and answers each by lines `{"doing": …}` and one line `{"result": …}` or `{"failed": …}`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import torch

from ostinato.bench import gpu_checks, gpu_problems, gpu_scans
from ostinato.bench.gpu_cases import GpuCase
from ostinato.bench.gpu_problems import COMPILED, CUDNN, OURS, PLAIN
from ostinato.bench.gpu_timing import Call, clock_of, described, measure

POISONED = 3  # exit code of a worker whose device is of no use any more
# How far ours may be from cuDNN at full length, where both round their state at each of many steps.
_FAR = 0.1
Notify = Callable[[str], None]


def run_job(
    case: GpuCase,
    device: torch.device,
    seconds: float,
    without: tuple[str, ...] = (),
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """What one case gives, as plain values; `without` leaves contestants out."""
    notify(OURS)
    if case.kind == "check":
        return gpu_checks.check_layer(case, device)
    if case.kind == "scan_check":
        return gpu_checks.check_scan(case, device)
    if case.kind == "feature":
        return gpu_checks.check_feature(case, device)
    jobs = {"survey": _survey, "time": _time, "scan": _scan, "copy": _copy}
    with gpu_problems.precision_of(case):
        return jobs[case.kind](case, device, seconds, without, notify)


def _survey(
    case: GpuCase, device: torch.device, seconds: float, without: tuple[str, ...], notify: Notify
) -> dict[str, Any]:
    notify(CUDNN)
    peer = gpu_problems.cudnn(gpu_problems.draw(case, device))
    assert peer is not None
    modes = {"forward": {CUDNN: peer.forward}, "training": {CUDNN: peer.training}}
    return _timed(modes, device, seconds, notify)


def _time(
    case: GpuCase, device: torch.device, seconds: float, without: tuple[str, ...], notify: Notify
) -> dict[str, Any]:
    problem = gpu_problems.draw_ours(case, device)
    automatic = gpu_problems.draw(case, device).layer.explain(problem.x, lengths=problem.lengths)
    ours = problem.layer.explain(problem.x)
    forward: dict[str, Call] = {OURS: problem.forward}
    training: dict[str, Call] = {OURS: problem.training}
    refused: dict[str, Any] = {}
    makers: dict[str, Callable[[], Any]] = {
        CUDNN: lambda: gpu_problems.cudnn(problem), PLAIN: lambda: gpu_problems.plain(problem)
    }  # fmt: skip
    if case.compiles:
        makers[COMPILED] = lambda: gpu_problems.compiled_loop(problem)
    far = None
    for name, make in makers.items():
        if name in without:
            refused[name] = {"status": "failed", "detail": "left out: its process was lost"}
            continue
        notify(name)
        try:
            peer = make()
            if peer is None:
                continue
            if name == CUDNN and OURS not in without:
                far = _distance(problem, peer)
        except Exception as error:  # noqa: BLE001 - a peer's own failure ends its column only
            clock_of(device).synchronize()
            refused[name] = {"status": "failed", "detail": described(error)}
            continue
        forward[name], training[name] = peer.forward, peer.training
    if OURS in without:
        refused[OURS] = {"status": "failed", "detail": "left out: its process was lost"}
        forward.pop(OURS)
        training.pop(OURS)
    timed = _timed({"forward": forward, "training": training}, device, seconds, notify)
    for mode in ("forward", "training"):
        timed[mode] |= refused
    status = "ok" if far is None or far <= _FAR else "differs"
    path = {"path": ours.path, "automatic": automatic.path, "why": automatic.reason}
    return {"status": status, "distance_to_cudnn": far, **path, **timed}


def _distance(problem: gpu_problems.Problem, peer: gpu_problems.Peer) -> float:
    ours, theirs = problem.forward(), peer.y()
    if problem.lengths is not None:
        times = torch.arange(problem.case.T)
        ours = ours * (times < problem.lengths.unsqueeze(1)).unsqueeze(2).to(ours)
    return min(1e30, gpu_checks.errors({"y": ours}, {"y": theirs.double()})["y"])


def _scan(
    case: GpuCase, device: torch.device, seconds: float, without: tuple[str, ...], notify: Notify
) -> dict[str, Any]:
    ours = gpu_scans.draw(case, device)
    modes = {
        mode: {OURS: call, gpu_scans.COPY: gpu_scans.copier(ours.moved_bytes(mode), device)}
        for mode, call in (("forward", ours.forward), ("training", ours.training))
    }
    moved = {f"{mode}_bytes": ours.moved_bytes(mode) for mode in modes}
    return {"status": "ok", "path": ours.path(), **moved, **_timed(modes, device, seconds, notify)}


def _copy(
    case: GpuCase, device: torch.device, seconds: float, without: tuple[str, ...], notify: Notify
) -> dict[str, Any]:
    n_bytes = 8 * case.B * case.T * case.H
    calls = {gpu_scans.COPY: gpu_scans.copier(n_bytes, device)}
    timed = _timed({"forward": calls}, device, seconds, notify)
    found = timed["forward"][gpu_scans.COPY]
    speed = n_bytes / found["median_s"] if found["status"] == "ok" else None
    return {"bytes_per_s": speed, **timed}


def _timed(
    modes: Mapping[str, Mapping[str, Call]], device: torch.device, seconds: float, notify: Notify
) -> dict[str, Any]:
    clock = clock_of(device)
    found: dict[str, Any] = {"status": "ok"}
    for mode, calls in modes.items():
        watched = {name: _announced(name, call, notify) for name, call in calls.items()}
        found[mode] = measure(watched, clock, seconds=seconds / len(modes))
    return found


def _announced(name: str, call: Call, notify: Notify) -> Call:
    """The call; before its first time it says who comes."""
    is_known = [False]

    def first() -> Any:
        if not is_known[0]:
            is_known[0] = True
            notify(name)
        return call()

    return first


# The process ---------------------------------------------------------------------------------------------


def serve(device: torch.device, jobs: TextIO, answers: TextIO) -> int:
    """Answer jobs until there are none; the exit code."""

    def send(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    send({"ready": True})
    for line in jobs:
        job = json.loads(line)
        case = GpuCase.from_job(job["case"])
        try:
            result = run_job(
                case, device, job["seconds"], tuple(job["without"]), lambda name: send({"doing": name})
            )
            send({"result": result})
        except Exception as error:  # noqa: BLE001 - whatever a case does, its process says so
            is_poisoned = not _is_alive(device)
            send({"failed": described(error), "poisoned": is_poisoned})
            if is_poisoned:
                return POISONED
        _forget(device)
    return 0


def _is_alive(device: torch.device) -> bool:
    try:
        clock_of(device).synchronize()
        return bool(torch.ones((), device=device) == 1)
    except RuntimeError:
        return False


def _forget(device: torch.device) -> None:
    """Give back what the last case kept."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    """Serve on standard input and output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return serve(torch.device(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    sys.exit(main())
