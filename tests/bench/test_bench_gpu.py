"""`ostinato bench gpu` on a CPU: its cases, clocks, judgements, processes, report and command."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from io import StringIO

import pytest
import torch
from typer.testing import CliRunner

from ostinato.bench import (
    gpu_cases,
    gpu_checks,
    gpu_pool,
    gpu_problems,
    gpu_running,
    gpu_tables,
    gpu_timing,
    gpu_worker,
)
from ostinato.bench.gpu_cases import GpuCase, GpuPlan
from ostinato.bench.gpu_pool import Deadline
from ostinato.cli.commands import app
from ostinato.kernels import gpu_choice

CPU = torch.device("cpu")
TINY = GpuCase("time", precision="float32", H=9, B=3, T=5, D=4)


def plan(checks=(), surveys=(), timings=()):
    return GpuPlan("tiny", tuple(checks), tuple(surveys), tuple(timings))


class Actor:
    """A worker that plays what it was told, by the case's tag; "lose X" loses its process while doing X."""

    def __init__(self, device):
        self.device, self.ended, self.asked = device, 0, []

    def run(self, case, seconds, limit_s, without=()):
        self.asked.append((case.label, tuple(without)))
        words = case.tag.split()
        if words[:1] == ["lose"] and words[1] not in without:
            return {"status": "failed", "detail": "hangs", "doing": words[1], "was_lost": True}
        return {"status": "ok", "left": list(without)}

    def end(self):
        self.ended += 1


# Cases ---------------------------------------------------------------------------------------------------


def test_a_case_survives_a_journey_as_json():
    for case in (*gpu_cases.full_plan().checks, *gpu_cases.full_plan().timings):
        assert GpuCase.from_job(json.loads(json.dumps(case.as_job()))) == case


@pytest.mark.parametrize("make", [gpu_cases.full_plan, gpu_cases.quick_plan, gpu_cases.tiny_plan])
def test_labels_of_a_plan_are_different(make):
    whole = make()
    labels = [case.label for case in (*whole.checks, *whole.surveys, *whole.timings)]
    assert len(set(labels)) == len(labels)


def test_the_full_plan_answers_every_goal():
    goals = {gpu_cases.goal_of(case) for case in gpu_cases.full_plan().timings} - {None}
    assert goals == set(gpu_cases.GOALS)


def test_the_full_plan_checks_the_sizes_that_are_promised():
    checks = [case for case in gpu_cases.full_plan().checks if case.kind == "check" and case.repeats >= 200]
    for cell in ("lstm", "gru", "rnn"):
        assert {1, 63, 500, 1000} <= {case.H for case in checks if case.cell == cell}
    assert {"solo", "group", "step"} <= {case.mode for case in checks}


# Clocks --------------------------------------------------------------------------------------------------


class FakeClock:
    """Each call says how long it took; `sticks` is an error that outlives its call."""

    def __init__(self, sticks=False):
        self.sticks, self.order = sticks, []

    def times_s(self, call, n):
        return [call() for _ in range(n)]

    def synchronize(self):
        if self.sticks:
            raise RuntimeError("an illegal memory access was encountered")


def test_contestants_are_timed_in_turns_and_one_failure_leaves_the_others():
    def broken():
        raise RuntimeError("no such algorithm\nmore")

    found = gpu_timing.measure({"a": lambda: 2e-3, "b": broken, "c": lambda: 4e-3}, FakeClock(), seconds=0.1)
    assert found["a"]["median_s"] == 2e-3
    assert found["c"]["median_s"] == 4e-3
    assert found["a"]["calls"] >= 5
    assert found["b"] == {"status": "failed", "detail": "RuntimeError: no such algorithm"}


def test_an_error_that_stays_is_raised():
    def broken():
        raise RuntimeError("misaligned address")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        gpu_timing.measure({"a": broken}, FakeClock(sticks=True), seconds=0.1)


def test_a_contestant_may_fail_in_a_later_turn():
    left = iter([1e-3] * 4)
    found = gpu_timing.measure({"a": lambda: next(left), "b": lambda: 1e-3}, FakeClock(), seconds=0.001)
    assert (found["a"]["status"], found["b"]["status"]) == ("failed", "ok")


# Judgements ----------------------------------------------------------------------------------------------


def test_errors_are_beside_the_largest_value_and_nothing_not_finite_passes():
    expected = {"y": torch.tensor([1.0, -4.0]), "d_x": torch.tensor([2.0])}
    near = {"y": torch.tensor([1.0, -4.0001]), "d_x": torch.tensor([2.0])}
    assert gpu_checks.verdict(near, expected, "tf32")["status"] == "ok"
    assert gpu_checks.verdict(near, expected, "float32")["status"] == "differs"
    for bad in (float("nan"), float("inf")):
        found = gpu_checks.verdict({**near, "d_x": torch.tensor([bad])}, expected, "bfloat16")
        assert (found["status"], found["worst"]) == ("differs", "d_x")
        json.dumps(found, allow_nan=False)
    assert gpu_checks.verdict(near, expected, "float32", {"y": near["y"]})["status"] == "ok"


def test_repetitions_compare_bits():
    answers = iter(
        [{"y": torch.tensor([0.0, float("nan")])}] * 3 + [{"y": torch.tensor([-0.0, float("nan")])}]
    )
    first = next(answers)
    assert gpu_checks.is_repeatable(lambda: next(answers), first, 2)
    assert not gpu_checks.is_repeatable(lambda: next(answers), first, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"cell": "gru", "is_ragged": True, "has_resets": True, "is_bidirectional": True},
        {"options": (("peephole", True), ("zoneout_h", 0.1), ("dropout_recurrent", 0.2))},
        {"options": (("recompute", True),)}, {"layers": 2, "precision": "tf32"},
        {"kind": "scan_check", "cell": "mingru", "is_ragged": True, "has_resets": True},
        {"kind": "scan_check", "cell": "linear"}, {"kind": "scan_check", "cell": "rglru"},
    ],
)  # fmt: skip
def test_ours_are_right_on_a_cpu(changes):
    found = gpu_worker.run_job(replace(TINY, **{"kind": "check", "repeats": 2, **changes}), CPU, 0.0)
    assert found["status"] == "ok", found


def test_wrong_results_of_ours_are_found(monkeypatch):
    right = gpu_problems.Problem.results
    monkeypatch.setattr(
        gpu_problems.Problem, "results",
        lambda self: {**right(self), "y": right(self)["y"] + (1e-3 if self.x.dtype == torch.float32 else 0)},
    )  # fmt: skip
    found = gpu_worker.run_job(replace(TINY, kind="check"), CPU, 0.0)
    assert (found["status"], found["worst"]) == ("differs", "y")


@pytest.mark.parametrize(("tag", "status"), [("autocast", "ok"), ("graph", "none"), ("stream", "none")])
def test_features(tag, status):
    assert gpu_worker.run_job(replace(TINY, kind="feature", tag=tag), CPU, 0.0)["status"] == status


@pytest.mark.parametrize(
    "changes", [{}, {"is_ragged": True}, {"options": (("peephole", True),)}, {"cell": "gru", "layers": 2}]
)
def test_a_timed_case_has_its_peers(changes):
    case = replace(TINY, **changes)
    found = gpu_worker.run_job(case, CPU, 0.0)
    peers = {"plain"} if case.options else {"cuDNN"}
    for mode in ("forward", "training"):
        assert set(found[mode]) == {"ostinato"} | peers
        assert all(one["status"] == "ok" for one in found[mode].values())
    assert found["status"] == "ok"
    if not case.options:
        assert found["distance_to_cudnn"] < 1e-5


def test_a_peer_that_cannot_be_built_ends_its_column_only(monkeypatch):
    def broken(problem):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(gpu_problems, "cudnn", broken)
    found = gpu_worker.run_job(TINY, CPU, 0.0)
    assert found["forward"]["cuDNN"]["detail"] == "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"
    assert found["forward"]["ostinato"]["status"] == "ok"


def test_switches_of_precision_are_put_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with gpu_problems.precision_of(replace(TINY, precision="tf32")):
        assert torch.backends.cudnn.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


# Processes -----------------------------------------------------------------------------------------------


def test_a_worker_answers_job_after_job_and_goes_on_after_a_failure():
    jobs = [TINY, replace(TINY, cell="no such cell"), replace(TINY, kind="scan_check", cell="linear")]
    lines = [json.dumps({"case": case.as_job(), "seconds": 0.0, "without": []}) + "\n" for case in jobs]
    answers = StringIO()
    assert gpu_worker.serve(CPU, StringIO("".join(lines)), answers) == 0
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    ends = [message for message in said if "result" in message or "failed" in message]
    assert said[0] == {"ready": True}
    assert [("result" in one) for one in ends] == [True, False, True]
    assert ends[1]["failed"].startswith("KeyError")
    assert not ends[1]["poisoned"]
    assert {"doing": "cuDNN"} in said


def test_a_device_that_is_of_no_use_any_more_ends_the_worker(monkeypatch):
    monkeypatch.setattr(gpu_worker, "_is_alive", lambda device: False)
    job = json.dumps({"case": replace(TINY, cell="no such cell").as_job(), "seconds": 0.0, "without": []})
    answers = StringIO()
    assert gpu_worker.serve(CPU, StringIO(job + "\n" + job + "\n"), answers) == gpu_worker.POISONED
    assert json.loads(answers.getvalue().splitlines()[-1])["poisoned"]


WORKER = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    tag = json.loads(line)["case"]["tag"]
    print(json.dumps({"doing": "cuDNN"}), flush=True)
    if tag == "hang":
        time.sleep(60)
    if tag == "die":
        sys.stderr.write("CUDA error: unspecified launch failure\\n")
        os._exit(134)
    print(json.dumps({"result": {"status": "ok", "pid": os.getpid()}}), flush=True)
"""


@pytest.fixture
def worker():
    """A worker whose process is a few lines that hang or die when told to."""
    made = gpu_pool.Worker("cpu")
    made._command = [sys.executable, "-c", WORKER]
    yield made
    made.end()


def test_a_process_that_hangs_or_dies_is_named_and_replaced(worker):
    first = worker.run(TINY, 0.0, 20.0)
    assert first["status"] == "ok"
    hung = worker.run(replace(TINY, tag="hang"), 0.0, 0.5)
    assert (hung["doing"], hung["was_lost"]) == ("cuDNN", True)
    assert "no answer within" in hung["detail"]
    died = worker.run(replace(TINY, tag="die"), 0.0, 20.0)
    assert "unspecified launch failure" in died["detail"]
    again = worker.run(TINY, 0.0, 20.0)
    assert again["status"] == "ok"
    assert again["pid"] != first["pid"]


def test_a_process_killed_between_two_cases_is_started_anew(worker):
    first = worker.run(TINY, 0.0, 20.0)
    os.kill(first["pid"], signal.SIGKILL)
    worker._process.wait()
    assert worker.run(TINY, 0.0, 20.0)["status"] == "ok"


def test_a_process_that_does_not_start_says_why(worker):
    worker._command = [sys.executable, "-c", "raise SystemExit('no module named torch')"]
    found = worker.run(TINY, 0.0, 20.0)
    assert found["doing"] == "start"
    assert "no module named torch" in found["detail"]


def test_the_real_process_computes_a_case():
    worker = gpu_pool.Worker("cpu")
    try:
        assert worker.run(replace(TINY, kind="scan_check", cell="linear"), 0.0, 120.0)["status"] == "ok"
    finally:
        worker.end()


# The whole run -------------------------------------------------------------------------------------------


def test_a_lost_contestant_is_left_out_and_the_others_are_timed():
    actors = []

    def make(device):
        actors.append(Actor(device))
        return actors[-1]

    report = gpu_running.run_gpu_benchmark(
        plan(timings=[replace(TINY, tag="lose cuDNN"), TINY]), "cpu", max_time_s=60, make_worker=make
    )
    assert [row["left"] for row in report["rows"]] == [["cuDNN"], []]
    assert report["complete"]
    assert all(actor.ended for actor in actors)


def test_what_has_no_time_left_is_skipped_and_named():
    now = [0.0]
    found = []
    deadline = Deadline(10.0, lambda: now[0])

    class Slow(Actor):
        def run(self, *arguments):
            now[0] += 6.0
            return super().run(*arguments)

    cases = [replace(TINY, H=number) for number in (1, 2, 3)]
    gpu_pool.run_all(
        cases, [Slow("cpu")], deadline, limit_s=5, seconds=0, report=lambda case, result: found.append(result)
    )
    assert [result["status"] for result in found] == ["ok", "ok", "skipped"]


def test_the_file_is_whole_after_each_case(tmp_path):
    seen = []

    def notify(line):
        path = tmp_path / gpu_running.FILE
        seen.append(json.loads(path.read_text())["rows"] if path.exists() else [])

    gpu_running.run_gpu_benchmark(
        plan(checks=[replace(TINY, kind="check", H=number) for number in (1, 2, 3)]), "cpu", max_time_s=60,
        folder=tmp_path, notify=notify, make_worker=Actor,
    )  # fmt: skip
    assert [len(rows) for rows in seen] == [0, 1, 2]
    report = json.loads((tmp_path / gpu_running.FILE).read_text())
    assert report["complete"]
    assert set(report["versions"]) >= {"ostinato", "torch", "cuda", "cudnn", "triton", "python"}


def timed(case, ours, theirs, *, over="cuDNN", automatic="triton"):
    """A row with these times forward, and twice these with backward."""
    times = {
        mode: {
            "ostinato": {"status": "ok", "median_s": ours * k},
            over: {"status": "ok", "median_s": theirs * k},
        }
        for mode, k in (("forward", 1), ("training", 2))
    }
    sizes = gpu_running._sizes(case)
    return {"label": case.label, **sizes, "status": "ok", "path": "triton", "automatic": automatic, **times}


def test_goals_are_met_or_not_or_not_measured():
    lstm = GpuCase("time", H=256)
    rows = [timed(lstm, 1e-3, 6e-3), timed(replace(lstm, B=64), 1e-3, 4e-3)]
    rows.append(timed(replace(lstm, options=(("peephole", True),)), 1.2e-3, 1e-3, over="plain"))
    rows.append(timed(GpuCase("scan", "linear", H=1024), 1e-3, 0.9e-3, over="copy"))
    rows.append(timed(GpuCase("time", H=768), 1.7e-3, 3e-3))
    rows.append({**timed(replace(lstm, H=512), 1e-3, 6e-3), "forward": {}})
    met = {(one["label"], one["mode"]): one["is_met"] for one in gpu_running.goals(rows)}
    assert met[rows[0]["label"], "forward"]
    assert met[rows[1]["label"], "training"] is False
    assert met[rows[2]["label"], "forward"]
    assert met[rows[3]["label"], "training"]
    assert met[rows[4]["label"], "forward"]
    assert met[rows[5]["label"], "forward"] is None


def test_choices_that_lose_are_listed():
    rows = [
        timed(GpuCase("time", H=256), 2e-3, 1e-3),
        timed(GpuCase("time", H=512), 1e-3, 2e-3, automatic="torch"),
    ]
    wrong = gpu_running.wrong_choices(rows)
    assert {(one["label"], one["chosen"]) for one in wrong} == {
        (rows[0]["label"], "triton"),
        (rows[1]["label"], "torch"),
    }


def test_tables_show_everything_and_markdown_keeps_its_columns():
    here = gpu_running.run_here(
        plan(
            [replace(TINY, kind="check")], [replace(TINY, kind="survey")],
            [TINY, replace(TINY, kind="copy", cell="linear"), replace(TINY, kind="scan", cell="mingru")],
        ), "cpu",
    )  # fmt: skip
    assert here["failures"] == []
    page = gpu_tables.page(here)
    for title in ("cuDNN, LSTM, µs a step", "Correctness", "The grid", "Linear scans", "Goals"):
        assert title in page
    for block in page.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, block
    assert "checks: 1 of 1 right" in gpu_tables.summary_lines(here)[0]


# The command ---------------------------------------------------------------------------------------------


def test_without_a_gpu_one_sentence_and_exit_code_one():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = CliRunner().invoke(app, ["bench", "gpu"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "no NVIDIA GPU" in result.stderr


def test_quick_and_tiny_exclude_each_other():
    result = CliRunner().invoke(app, ["bench", "gpu", "--quick", "--tiny"])
    assert result.exit_code == 2
    assert "pass one of them" in result.stderr


def test_json_files_and_the_exit_code_of_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_running, "find_device", lambda: "cpu")
    small = plan([replace(TINY, kind="check"), replace(TINY, kind="check", cell="no such cell")])
    monkeypatch.setattr(gpu_cases, "tiny_plan", lambda: small)
    result = CliRunner().invoke(app, ["bench", "gpu", "--tiny", "--json", "--out", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "KeyError" in result.stderr
    report = json.loads(result.stdout)
    assert [row["status"] for row in report["rows"]] == ["ok", "failed"]
    assert json.loads((tmp_path / "new" / "gpu.json").read_text())["failures"] == report["failures"]
    assert "failed" in (tmp_path / "new" / "gpu.md").read_text()


# The choice ----------------------------------------------------------------------------------------------


def call(**changes):
    given = {"cell": "lstm", "dtype": torch.float16, "D": 768, "H": 768, "B": 16, "is_masked": False}
    return gpu_choice.Call(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "gru"},
        {"dtype": torch.bfloat16},
        {"D": 100},
        {"H": 700},
        {"B": 12},
        {"B": None},
        {"is_masked": True},
    ],
)
def test_cudnn_is_chosen_where_it_keeps_the_weights_and_nowhere_near(changes):
    assert "cuDNN" in gpu_choice.reason_for_cudnn(call())
    assert gpu_choice.reason_for_cudnn(call(**changes)) is None


def test_every_region_says_where_it_was_measured():
    assert all(region.source and region.because for region in gpu_choice.CUDNN_IS_FASTER)
