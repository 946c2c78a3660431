"""The commands with the real forecaster, as small as it gets."""

import csv
import json

import numpy as np
import pytest

from ostinato.cli import commands

SMALL = ("--steps", "2", "--hidden", "4", "--set", "members=1", "--seed", "1", "--quiet")


@pytest.fixture
def call(capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            commands.app([str(argument) for argument in arguments])
        text, errors = capsys.readouterr()
        return ended.value.code, text, errors

    return run


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(8)
    rows = "".join(f"{np.datetime64('2023-01-01') + i},{10 + i % 7 + rng.normal():.3f}\n" for i in range(57))
    path = tmp_path / "sales.csv"
    path.write_text("day,sold\n" + rows)
    return path


def test_train_evaluate_predict(call, data, tmp_path):
    run = tmp_path / "run"
    train = ("train", "forecast", data, "--time", "day", "--target", "sold", "--horizon", 5, *SMALL)
    code, text, errors = call(*train, "--test", 10, "--out", run, "--json")
    assert code == 0, errors
    trained = json.loads(text)
    assert list(trained["baselines"]) == ["ets", "naive", "seasonal_naive"]
    assert (run / "report.html").is_file()
    code, text, errors = call("evaluate", run, data, "--windows", "rolling", "--json")
    assert code == 0, errors
    scores = json.loads(text)
    assert set(scores) == {"model", "baselines"}
    assert set(scores["model"]["lstm"]) >= {"mase", "smape", "rmse", "wql", "coverage80"}
    code, _, errors = call("predict", run, data, "--out", tmp_path / "f.csv")
    assert code == 0, errors
    with open(tmp_path / "f.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["time"] for row in rows] == [f"2023-02-{day}" for day in range(27, 29)] + [
        f"2023-03-0{day}" for day in range(1, 4)
    ]
    assert list(rows[0]) == ["series", "time", "mean", *(f"q0.{i}" for i in range(1, 10))]
    for row in rows:
        quantiles = [float(row[f"q0.{i}"]) for i in range(1, 10)]
        assert quantiles == sorted(quantiles)
    # with --resume a finished run stays as it is; a folder that was tampered with is refused everywhere
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert call(*train, "--test", 10, "--out", run, "--resume")[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    model = run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    for command in (("evaluate", run, data), ("predict", run, data), (*train, "--out", run, "--resume")):
        code, text, errors = call(*command)
        assert (code, text) == (2, "")
        assert "model.safetensors: is truncated" in errors


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "sales.csv"),
        ("", "sales.csv"),
        ("day,price\n2023-01-01,3\n", "there is no column 'sold'"),
        ("day,sold\n2023-01-01,3\n", "sales.csv"),
        ("day,sold\n2023-01-01,3\n2023-01-02,many\n", "line 3"),
    ],
)
def test_bad_data_exits_2_with_one_message_and_leaves_nothing(call, data, tmp_path, content, expected):
    if content is None:
        data.unlink()
    else:
        data.write_text(content)
    arguments = ("train", "forecast", data, "--time", "day", "--target", "sold", "--horizon", 5, *SMALL)
    code, text, errors = call(*arguments, "--out", tmp_path / "run", "--json")
    assert (code, text) == (2, ""), errors
    assert errors.startswith("ostinato: ")
    assert errors.count("\n") == 1, errors
    assert expected in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_what_has_no_default_is_asked_for(call, data, tmp_path):
    for left_out, message in (("--target", "--target is missing"), ("--horizon", "--horizon is missing")):
        given = {"--time": "day", "--target": "sold", "--horizon": "5", "--out": tmp_path / "run"}
        words = [word for pair in given.items() if pair[0] != left_out for word in pair]
        code, _, errors = call("train", "forecast", data, *words)
        assert code == 2
        assert message in errors
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_another(call, data, tmp_path):
    def train(horizon, *more):
        roles = ("--time", "day", "--target", "sold", "--horizon", horizon)
        return call("train", "forecast", data, *roles, *SMALL, "--json", *more)

    assert train(5, "--out", tmp_path / "one")[0] == 0
    code, text, errors = train(5, "--init", tmp_path / "one", "--out", tmp_path / "two")
    assert code == 0, errors
    note = f"begins with the network of the run in '{tmp_path / 'one'}'"
    assert any(said.startswith(note) for said in json.loads(text)["notes"])
    code, _, errors = train(3, "--init", tmp_path / "one", "--out", tmp_path / "three")
    assert code == 2
    assert "says 5 steps at once; pass horizon=5" in errors
    assert not (tmp_path / "three").exists()
