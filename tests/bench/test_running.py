"""The whole benchmark on tiny cases: ratios for equal outputs only, the report, the tables, the figure."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ostinato.bench import figure, running, subjects, tables, torch_peers
from ostinato.bench.cases import GRIDS, Case, has_option
from ostinato.bench.running import Peers, Plan, explain_paths, geometric_means, run_benchmark
from ostinato.errors import InputError, MissingExtraError


@pytest.fixture
def only_torch(monkeypatch):
    monkeypatch.setattr(running, "_PEERS", {"torch": "torch_peers"})


def test_a_report_is_plain_and_has_a_ratio_for_equal_outputs(plan, case, only_torch):
    lines = []
    report = run_benchmark(plan(case(), case(mode="inference", cell="gru")), lines.append)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert len(lines) == 2
    assert "lstm training" in lines[0]
    assert report["failures"] == []
    assert {"format", "machine", "versions", "gemm_flops_per_s", "geometric_means", "notes"} <= set(report)
    for row in report["rows"]:
        assert row["times"]["torch"]["status"] == "ok"
        assert row["ratios"]["torch"]["ratio"] > 0
        assert row["ratios"]["torch"]["low"] <= row["ratios"]["torch"]["high"]
        assert row["times"]["ostinato"]["gemm_share"] > 0
        assert row["path"]
    assert [m["cell"] for m in report["geometric_means"]] == ["lstm", "gru"]


def test_a_peer_whose_outputs_differ_gets_no_ratio(plan, case, only_torch, monkeypatch):
    right = torch_peers.contestant

    def wrong(problem, threads, dtype=torch.float32):
        one = right(problem, threads, dtype)
        if dtype == torch.float64:
            return one
        return replace(one, results=lambda: {**one.results(), "y": one.results()["y"] * 1.001})

    monkeypatch.setattr(torch_peers, "contestant", wrong)
    report = run_benchmark(plan(case()))
    row = report["rows"][0]
    assert row["times"]["torch"]["status"] == "differs"
    assert row["times"]["torch"]["worst"] == "y"
    assert row["ratios"] == {}
    assert "median_s" not in row["times"]["torch"]
    assert report["failures"] == []
    assert "differs" in printed(report)


def test_no_ratio_at_all_where_our_own_outputs_differ(plan, case, only_torch, monkeypatch):
    right = subjects.ours

    def wrong(problem, threads, **more):
        one = right(problem, threads, **more)
        return replace(one, results=lambda: {n: np.full_like(v, np.nan) for n, v in one.results().items()})

    monkeypatch.setattr(subjects, "ours", wrong)
    report = run_benchmark(plan(case()))
    assert report["failures"] == ["sequences lstm training H=17 B=3 threads=1"]
    assert report["rows"][0]["ratios"] == {}
    json.dumps(report, allow_nan=False)
    assert "differs (y" in printed(report)


def test_a_peer_that_cannot_be_built_fails_alone(plan, case, only_torch, monkeypatch):
    right = torch_peers.contestant

    def broken(problem, threads, dtype=torch.float32):
        if dtype == torch.float32:
            raise RuntimeError("no such operator")
        return right(problem, threads, dtype)

    monkeypatch.setattr(torch_peers, "contestant", broken)
    row = run_benchmark(plan(case()))["rows"][0]
    assert row["times"]["torch"] == {"status": "failed", "detail": "RuntimeError: no such operator"}
    assert row["times"]["ostinato"]["median_s"] > 0


def test_missing_packages_are_listed_and_named_with_their_extra(plan, case, monkeypatch):
    for name in ("onnxruntime", "onnx", "jax"):
        monkeypatch.setitem(sys.modules, name, None)
    report = run_benchmark(plan(case(mode="inference")))
    assert set(report["not_installed"]) == {"onnxruntime", "jax"}
    for said in report["not_installed"].values():
        assert said.startswith("not installed: ")
        assert "ostinato[bench]" in said
    assert set(report["rows"][0]["ratios"]) == {"torch"}
    assert any("not installed" in line for line in tables.header(report))


def test_steps_options_recomputing_and_alternation_have_their_columns(plan, case, only_torch):
    step = run_benchmark(plan(case(grid="steps", mode="step", B=1, T=1)))
    assert step["rows"][0]["times"]["ostinato"]["p99_s"] >= step["rows"][0]["times"]["ostinato"]["p50_s"] > 0
    assert "µs" in printed(step) or "ms" in printed(step)
    given = case(grid="options", options=(("peephole", True),), tag="peephole")
    options = run_benchmark(plan(given, kind="options"))
    assert options["rows"][0]["cost_over_plain"] > 0
    assert set(options["rows"][0]["ratios"]) == {"torch loop"}
    assert "peephole" in printed(options)
    alternating = run_benchmark(plan(case(grid="alternating"), kind="alternating"))
    assert set(alternating["rows"][0]["growth"]) == {"ostinato", "torch"}
    printed(alternating)
    recompute = run_benchmark(plan(case(grid="recompute"), kind="recompute"))
    if not has_option("recompute"):
        assert recompute["rows"] == []
        assert "skipped" in recompute["notes"][0]
    else:
        assert set(recompute["rows"][0]["saved_bytes"]) == {"ostinato", "recomputing"}
        printed(recompute)


def test_busy_neighbours_are_measured(plan, case, only_torch):
    report = run_benchmark(plan(case(grid="load", mode="inference"), kind="load"))
    assert set(report["rows"][0]["growth"]) == {"ostinato", "torch"}
    assert all(value > 0 for value in report["rows"][0]["growth"].values())


def test_a_noisy_case_is_marked(plan, case, only_torch, monkeypatch):
    from ostinato.bench.machine import LoadGuard, Shares

    monkeypatch.setattr(LoadGuard, "judge", lambda *_: Shares(foreign=0.5, steal=0.0))
    report = run_benchmark(plan(case()))
    assert report["rows"][0]["noisy"]
    assert "1 of 1 cases are noisy" in report["notes"][0]
    assert "~" in printed(report)


def test_geometric_means_are_over_the_cases_of_one_cell_and_mode():
    def row(cell, **ratios):
        return {
            "kind": "peers", "grid": "sequences", "threads": 1, "mode": "inference", "cell": cell,
            "ratios": {name: {"ratio": value} for name, value in ratios.items()},
        }  # fmt: skip

    means = geometric_means(
        [row("lstm", torch=2.0, jax=1.0), row("lstm", torch=8.0, jax=9.0), row("gru", torch=3.0)]
    )
    assert means[0]["over"] == pytest.approx({"torch": 4.0, "jax": 3.0})
    assert means[0]["over_best_peer"] == pytest.approx(8**0.5)
    assert means[0]["lowest"] == 1.0
    assert means[1]["over"] == pytest.approx({"torch": 3.0})


def test_why_names_a_path_for_every_case_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(running, "measure", lambda *_, **__: pytest.fail("nothing is measured"))
    whole = Plan.read(["sequences", "steps", "ragged", "options"], [1], is_quick=True)
    answers = explain_paths(whole)
    sizes = sum(len(one["sizes"]) for one in answers)
    assert sizes == sum(len(grid.quick) for grid in whole.grids)
    assert all(one["path"] for one in answers)
    text = "\n".join(tables.why_lines(answers))
    assert "peephole" in text
    assert "64x8" in text


def test_plans_refuse_unknown_grids_and_impossible_threads():
    with pytest.raises(InputError, match="unknown grid; known: sequences, steps"):
        Plan.read(["sequence"])
    with pytest.raises(InputError, match="--threads 9999: expected 1 to"):
        Plan.read(None, [9999])
    with pytest.raises(InputError, match="rising"):
        Plan.read(None, [1, 1])
    assert [grid.name for grid in Plan.read(["steps", "sequences"], [1]).grids] == ["sequences", "steps"]
    assert [grid.name for grid in Plan.read(None, [1]).grids] == list(GRIDS)


def test_the_grid_is_the_one_of_the_goals():
    whole = GRIDS["sequences"].cases
    assert len(whole) == 15 * 3 * 2
    assert {(c.T, c.D == c.H, c.is_plain) for c in whole} == {(100, True, True)}
    assert {c.H for c in GRIDS["steps"].cases} == {32, 64, 128, 256, 512}
    assert Case("ragged", "lstm", "training", 128, 32, 200, 128, is_ragged=True) in GRIDS["ragged"].cases


def test_peers_load_with_versions():
    peers = Peers.load(1)
    assert peers.versions["torch"] == torch.__version__
    assert set(peers.versions) | set(peers.missing) == {"torch", "onnxruntime", "jax"}


def invented_report(threads=(1, 2)):
    rows = [
        {
            "grid": "sequences", "cell": case.cell, "mode": case.mode, "H": case.H, "B": case.B,
            "threads": number, "ratios": {"torch": {"ratio": 1.1 + case.B / case.H + number}},
        }
        for case in GRIDS["sequences"].cases
        for number in threads
    ]  # fmt: skip
    return {"rows": rows, "machine": {"cpu": "A processor"}}


def test_the_figure_shows_every_ratio_and_is_written_twice(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = figure.speed_figure(invented_report())
    axes = drawn.get_axes()
    assert len(axes) == 6
    assert (
        sum(len(line.get_xdata()) for ax in axes for line in ax.lines if line.get_marker() != "None") == 180
    )
    paths = figure.save_figure(drawn, tmp_path / "new")
    assert [path.name for path in paths] == ["speed.png", "speed.svg"]
    assert all(path.stat().st_size > 5000 for path in paths)
    with pytest.raises(InputError, match="no ratio to torch"):
        figure.speed_figure({"rows": [], "machine": {"cpu": ""}})


def test_the_figure_names_the_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"ostinato\[plots\]"):
        figure.check_plots()


def printed(report):
    from rich.console import Console

    console = Console(width=1000, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for sheet in tables.sheets(report):
        console.print(sheet.for_terminal())
    console.file.close()
    return console.export_text()


def test_scans_are_compared_with_a_copy(plan, case, only_torch):
    report = run_benchmark(plan(case(grid="scans", cell="scan", D=17), kind="scans"))
    row = report["rows"][0]
    assert row["copy_share"] > 0
    assert set(row["ratios"]) == {"torch loop"}
    assert f"({row['copy_share']:.0%})" in printed(report)


def test_the_page_has_every_table_in_markdown(plan, case, only_torch):
    report = run_benchmark(plan(case(), case(cell="gru")))
    text = tables.page(report)
    lines = text.splitlines()
    assert "| size | LSTM | GRU |" in lines
    assert lines[lines.index("| size | LSTM | GRU |") + 1] == "| --- | ---: | ---: |"
    assert sum(line.startswith("| H=17 B=3 T=7 D=5 |") for line in lines) == 1
    assert report["machine"]["cpu"] in lines[0]
