import json
import os
import re
import subprocess
import sys
from time import monotonic
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

import ostinato
from ostinato import tasks
from ostinato.cli import STARTED_S, commands, estimators, output
from ostinato.cli.durations import parse_duration_s
from ostinato.errors import DivergenceError, InputError
from ostinato.insight import forecast_report
from ostinato.training.run_folder import RunFolder

SCORES = {
    "model": {"gru": {"mase": 0.41, "smape": 3.2, "rmse": 17.0, "wql": 0.02, "coverage80": 0.75}},
    "baselines": {
        "naive": {"mase": 2.5, "smape": 20.0, "rmse": 99.0, "wql": 0.1, "coverage80": 0.5},
        "seasonal_naive": {"mase": 1.5, "smape": 10.0, "rmse": 50.0, "wql": 0.05, "coverage80": 1.0},
        "ets": {"mase": 0.40, "smape": 4.0, "rmse": 20.0, "wql": 0.03, "coverage80": float("nan")},
    },
}


class FakeForecaster:
    """What the command line needs of a forecaster: the arguments it takes, and where its results lie."""

    calls: ClassVar[list] = []
    fails: BaseException | None = None

    def __init__(
        self,
        horizon: int = 1,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int | None = None,
        max_time_s: float | None = None,
        test: int = 0,
        seed: int = 0,
        device: str = "auto",
        progress: str = "auto",
    ):
        self.progress, self.max_time_s = progress, max_time_s
        self.settings = dict(horizon=horizon, cell=cell, hidden_size=hidden_size, num_layers=num_layers)
        self.settings |= dict(max_time_s=max_time_s, test=test, seed=seed, device=device)
        self.notes_ = ["3 rows were out of order and were sorted"]

    def fit(
        self,
        data: object,
        *,
        time: str | int | None = None,
        target: str | int | list[str | int] | None = None,
        header: bool = True,
        future: object = None,
        out: object = None,
        resume: bool = False,
        started_s: float | None = None,
    ):
        print("chatter of a library")  # noqa: T201 - what the command has to keep off standard output
        assert started_s <= monotonic()
        assert self.settings["max_time_s"] is None or started_s < STARTED_S
        fitted = dict(data=str(data), time=time, target=target, header=header, resume=resume)
        self.calls.append((self.settings, {**fitted, "progress": self.progress, "future": future}))
        if self.fails is not None:
            raise self.fails
        if not (out / "manifest.json").exists():
            run = RunFolder.create(out, exist_ok=resume)
            run.write_json("metrics.json", SCORES)
            run.write_file("report.html", b"<p>")
            run.commit("forecast")
        return self

    @classmethod
    def from_run(cls, run):
        return cls()

    def set_params(self, **parameters):
        self.settings |= parameters
        return self

    def evaluate(self, data, windows="last", in_sample=False):
        self.calls.append((self.settings, dict(data=str(data), windows=windows, in_sample=in_sample)))
        return SCORES

    def predict(self, data, future=None):
        times = pd.date_range("2024-02-28", periods=3, freq="D")
        return pd.DataFrame(
            {"series": ["a"] * 3, "time": times, "mean": [1.5, np.nan, 0.1], "q0.1": [1, 2, 3]}
        )


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs the command in this process with the fake forecaster: (exit code, standard output, standard
    error)."""
    monkeypatch.setattr(FakeForecaster, "calls", [])
    monkeypatch.setattr(estimators, "_forecaster_class", lambda: FakeForecaster)
    monkeypatch.setattr(estimators, "NEEDED", ())
    monkeypatch.setattr(
        forecast_report, "write_forecast_report", lambda *a, **_: pytest.fail("stands already")
    )
    monkeypatch.setattr(tasks, "load", lambda path: FakeForecaster.from_run(RunFolder.open(path)))

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            commands.app([str(argument) for argument in arguments])
        text, errors = capsys.readouterr()
        return ended.value.code, text, errors

    return run


def test_options_become_settings_and_those_not_given_stay_the_estimators(run_command, tmp_path):
    code, text, errors = run_command(
        *(
            "train",
            "forecast",
            "load.csv",
            "--time",
            "hour",
            "--target",
            "load",
            "--target",
            "-1",
            "--horizon",
            24,
        ),
        *("--cell", "lstm", "--hidden", 32, "--max-time", "1m30s", "--no-header", "--out", tmp_path / "run"),
    )
    assert code == 0, errors
    ((settings, fitted),) = FakeForecaster.calls
    assert settings == dict(
        horizon=24,
        cell="lstm",
        hidden_size=32,
        num_layers=None,
        max_time_s=90.0,
        test=0,
        seed=0,
        device="auto",
    )
    assert fitted == dict(
        data="load.csv",
        time="hour",
        target=["load", "-1"],
        header=False,
        resume=False,
        progress="auto",
        future=None,
    )
    assert "gru" in text
    assert "chatter" in errors
    assert "chatter" not in text
    assert "note: 3 rows" in errors
    assert str(tmp_path / "run" / "report.html") in text.replace("\n", "")


def test_config_set_and_options_lie_over_one_another(run_command, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('horizon = 48\ncell = "rnn"\nhidden_size = 8\ntarget = "load"\nmax_time_s = 5\n')
    code, _, errors = run_command(
        *("train", "forecast", "x.csv", "--out", tmp_path / "run", "--config", config, "--cell", "lstm"),
        *("--set", "hidden_size=16", "--set", "cell=gru", "--set", "time=-1"),
    )
    assert code == 0, errors
    settings, fitted = FakeForecaster.calls[0]
    assert (settings["horizon"], settings["hidden_size"], settings["cell"]) == (48, 16, "lstm")
    assert settings["max_time_s"] == 5.0
    assert fitted["target"] == "load"
    assert fitted["time"] == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "hiden_size=3"], "unknown key 'hiden_size'; did you mean 'hidden_size'"),
        (["--set", "hidden_size=x"], "'hidden_size' must be a whole number"),
        (["--set", "resume=true"], "unknown key 'resume'"),
        (["--config", "none.toml"], "none.toml: the configuration cannot be read"),
        (["--max-time", "soon"], "is not a duration"),
        (["--hidden", "many"], "--hidden"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_message(run_command, tmp_path, arguments, message):
    code, text, errors = run_command("train", "forecast", "x.csv", "--out", tmp_path / "run", *arguments)
    assert code == 2, errors
    assert message in re.sub(r"[│\s]+", " ", errors), errors
    assert "Traceback" not in errors
    assert text == ""
    assert not (tmp_path / "run").exists()


def test_an_existing_out_exits_2_and_with_resume_changes_nothing(run_command, tmp_path):
    arguments = ("train", "forecast", "x.csv", "--out", tmp_path / "run", "--json")
    assert run_command(*arguments, "--resume")[0] == 0  # no checkpoint starts afresh
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()}
    code, text, errors = run_command(*arguments)
    assert (code, text) == (2, "")
    assert "--resume" in errors
    assert run_command(*arguments, "--resume")[0] == 0
    assert before == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("hour: no such column"), 2, "ostinato: hour: no such column"),
        (DivergenceError("diverged at step 7"), 1, "ostinato: diverged at step 7"),
        (KeyboardInterrupt(), 130, "--resume"),
        (
            OSError(28, "No space left on device", "run/model.safetensors"),
            1,
            "model.safetensors: No space left",
        ),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_failures_have_their_exit_code_and_one_line(run_command, tmp_path, monkeypatch, error, code, message):
    monkeypatch.setattr(FakeForecaster, "fails", error)
    found, text, errors = run_command("train", "forecast", "x.csv", "--out", tmp_path / "run", "--json")
    assert found == code
    assert message in errors
    assert text == ""
    assert "Traceback" not in errors


def test_json_is_one_object_and_nothing_else(run_command, tmp_path):
    code, text, _ = run_command("train", "forecast", "x.csv", "--out", tmp_path / "run", "--json")
    assert code == 0
    result = json.loads(text)
    assert result["run"] == str(tmp_path / "run")
    assert result["model"] == SCORES["model"]
    assert result["baselines"]["ets"]["coverage80"] is None
    assert result["notes"] == ["3 rows were out of order and were sorted"]
    code, text, _ = run_command("evaluate", tmp_path / "run", "y.csv", "--windows", "rolling", "--json")
    assert code == 0
    assert set(json.loads(text)) == {"model", "baselines"}
    assert FakeForecaster.calls[-1][1] == dict(data="y.csv", windows="rolling", in_sample=False)
    assert run_command("evaluate", tmp_path / "run", "y.csv", "--in-sample", "--seed", 3, "--quiet")[2] == ""
    assert FakeForecaster.calls[-1][0]["seed"] == 3
    assert FakeForecaster.calls[-1][1]["in_sample"] is True


def test_the_table_shows_every_score_with_baselines_below(capsys):
    output.print_scores(SCORES, "Scores")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.count("│") > 4}
    assert list(rows) == ["gru", "naive", "seasonal_naive", "ets"]
    assert [cell.strip() for cell in rows["gru"].split("│")[2:-1]] == [
        "0.410",
        "3.20",
        "17.00",
        "0.0200",
        "75.0 %",
    ]
    assert "–" in rows["ets"]


def test_predict_writes_csv_and_parquet_alike(run_command, tmp_path):
    run_command("train", "forecast", "x.csv", "--out", tmp_path / "run")
    expected = "series,time,mean,q0.1\na,2024-02-28,1.5,1\na,2024-02-29,,2\na,2024-03-01,0.1,3\n"
    code, text, _ = run_command("predict", tmp_path / "run", "y.csv", "--out", tmp_path / "f.csv")
    assert code == 0
    assert "3 rows" in text
    assert (tmp_path / "f.csv").read_text() == expected
    assert run_command("predict", tmp_path / "run", "y.csv")[1] == expected
    assert run_command("predict", tmp_path / "run", "y.csv", "--out", tmp_path / "f.parquet")[0] == 0
    assert pd.read_parquet(tmp_path / "f.parquet")["q0.1"].tolist() == [1, 2, 3]
    _, text, _ = run_command("predict", tmp_path / "run", "y.csv", "--json")
    assert json.loads(text)["forecast"]["mean"] == [1.5, None, 0.1]
    code, _, errors = run_command("predict", tmp_path / "run", "y.csv", "--out", tmp_path / "f.xlsx")
    assert code == 2
    assert ".parquet" in errors
    code, _, errors = run_command("predict", tmp_path / "none", "y.csv")
    assert code == 2
    assert "no such folder" in errors


def test_the_demo_takes_the_first_free_folder(run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(estimators.DEMOS, "forecast", ("py.typed", {"horizon": 12, "target": "passengers"}))
    assert run_command("demo")[0] == 0
    assert run_command("demo", "forecast", "--seed", "5")[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["demo-forecast", "demo-forecast-2"]
    assert [call[0]["seed"] for call in FakeForecaster.calls] == [0, 5]
    code, _, errors = run_command("demo", "cooking")
    assert code == 2
    assert "known are forecast" in errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("4m", 240), ("1h30m", 5400), ("240", 240), ("1.5h", 5400), ("2min 5s", 125), (".5m", 30)],
)
def test_durations(text, expected):
    assert parse_duration_s(text) == expected


@pytest.mark.parametrize("text", ["", "m", "4q", "-4m", "0s", "4m4m", "1e3s", "m4", "inf"])
def test_what_is_not_a_duration(text):
    with pytest.raises(Exception, match="not a duration"):
        parse_duration_s(text)


def command_line(*arguments, **more):
    program = "import sys; from ostinato.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from ostinato.cli import main\n"
        "try: main(['train', 'forecast', '--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'matplotlib', 'lightning_fabric', 'pandas', 'statsmodels', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_version_and_usage_errors_of_the_real_command():
    done = command_line("--version")
    assert (done.returncode, done.stdout) == (0, f"ostinato {ostinato.__version__}\n")
    done = command_line("train", "forecast")
    assert done.returncode == 2
    done = command_line("evaluate", "nowhere", "none.csv")
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_the_command_is_loaded_causes_no_traceback():
    program = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ostinato.cli.commands': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from ostinato.cli import main\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.skipif(os.name == "nt", reason="pipes end differently on Windows")
def test_a_reader_that_leaves_causes_no_traceback():
    program = (
        "import sys; sys.path.insert(0, '')\n"
        "from ostinato.cli import STARTED_S, commands, estimators, output\n"
        "table = output.Table('forecast', {'mean': list(range(300_000))})\n"
        "estimators.predict = lambda *args, **more: (table, [])\n"
        "commands.app(['predict', 'run', 'x.csv'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "mean\n"
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert errors == ""
    assert process.returncode == 1
