"""`ostinato bench cpu` from the command line: exit codes, JSON, files."""

import json

import pytest
from typer.testing import CliRunner

from ostinato.bench import running, subjects
from ostinato.bench.running import Plan
from ostinato.cli.commands import app


@pytest.fixture
def bench(plan, case, monkeypatch):
    """Runs the command on one tiny case in place of the grids."""
    tiny = plan(case(mode="inference"))
    monkeypatch.setattr(running, "_PEERS", {"torch": "torch_peers"})
    monkeypatch.setattr(Plan, "read", classmethod(lambda cls, *_, **__: tiny))
    return lambda *words: CliRunner().invoke(app, ["bench", "cpu", *words])


def test_json_is_one_object_on_standard_output(bench):
    result = bench("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["rows"][0]["ratios"]["torch"]["ratio"] > 0
    assert report["geometric_means"][0]["cases"] == 1


def test_tables_name_the_machine_and_are_not_cut(bench):
    result = bench()
    assert result.exit_code == 0, result.output
    assert "geometric means" in result.stdout.lower()
    assert "largest float32 matrix product" in result.stdout
    assert "…" not in result.stdout


def test_files_are_written(bench, tmp_path):
    pytest.importorskip("matplotlib")
    result = bench("--out", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == ["speed.json", "speed.md", "speed.png", "speed.svg"]
    assert json.loads((tmp_path / "new" / "speed.json").read_text())["format"] == running.FORMAT


def test_wrong_outputs_of_ours_exit_with_one(bench, monkeypatch):
    right = subjects.ours

    def wrong(problem, threads, **more):
        one = right(problem, threads, **more)
        return type(one)(
            one.name, one.call, lambda: {**one.results(), "y": one.results()["y"] + 1}, one.detail
        )

    monkeypatch.setattr(subjects, "ours", wrong)
    result = bench("--json")
    assert result.exit_code == 1
    assert "differ from float64" in result.stderr
    assert json.loads(result.stdout)["failures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "sequence"], "unknown grid; known: sequences"),
        (["--threads", "two"], "whole numbers"),
        (["--threads", "0"], "expected 1 to"),
    ],
)
def test_a_wrong_command_line_exits_with_two(words, said):
    result = CliRunner().invoke(app, ["bench", "cpu", *words])
    assert result.exit_code == 2
    assert said in result.stderr


def test_why_prints_paths():
    result = CliRunner().invoke(
        app, ["bench", "cpu", "--why", "--quick", "--only", "steps", "--threads", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "LSTM, step, threads 1: " in result.stdout
    as_json = CliRunner().invoke(
        app, ["bench", "cpu", "--why", "--quick", "--only", "steps", "--threads", "1", "--json"]
    )
    assert json.loads(as_json.stdout)["paths"][0]["sizes"] == ["32x1", "128x1", "512x1"]
