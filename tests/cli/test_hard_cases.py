"""The commands against mistakes, kills and odd tables, with the real forecaster."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import ostinato
from ostinato.cli import commands
from ostinato.errors import InputError

SMALL = ("--steps", "2", "--hidden", "4", "--set", "members=1", "--seed", "1", "--quiet")
COLUMNS = ("--time", "day", "--target", "sold", "--horizon", "5")
RNG = np.random.default_rng(3)
ROWS = [f"{np.datetime64('2023-01-01') + i},{10 + i % 7 + RNG.normal():.4f}" for i in range(57)]


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
    path = tmp_path / "sales.csv"
    path.write_text("day,sold\n" + "\n".join(ROWS) + "\n")
    return path


@pytest.mark.parametrize(
    ("more", "code", "expected"),
    [
        (("--seed", "-1"), 2, "seed must be a whole number from 0"),
        (("--seed", "9" * 20), 2, "seed must be a whole number from 0"),
        (("--device", "tpu"), 2, "known: cpu, cuda"),
        (("--device", "cuda:x"), 2, "known: cpu, cuda"),
        (("--freq", "h"), 2, "the most common step of this table is D"),
        (("--head", "negative_binomial"), 2, "needs counts"),
        (("--hidden", "100000000"), 1, "out of memory"),
        (("--test", "50"), 2, "every series is too short"),
    ],
)
def test_a_wrong_option_is_refused_and_leaves_nothing(call, data, tmp_path, more, code, expected):
    found, text, errors = call(
        "train", "forecast", data, *COLUMNS, *SMALL, *more, "--out", tmp_path / "run", "--json"
    )
    assert (found, text) == (code, ""), errors
    assert expected in errors
    assert errors.count("\n") == 1, errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.parquet", "day,sold\n2023-01-01,3\n", "not a Parquet file"),
        ("x.csv", "\n".join(["day,sold", *ROWS[:9], "2023-01-10,1e300", *ROWS[10:]]), "beyond ±1e+30"),
        ("x.csv", "\n".join(["day,sold", *ROWS, ROWS[3]]), "line 59: the time 2023-01-04 is there twice"),
        ("x.csv", "\n".join(["day,sold", *(row.split(",")[0] + "," for row in ROWS)]), "is missing"),
    ],
)
def test_a_wrong_file_is_refused_and_leaves_nothing(call, tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_text(content)
    code, text, errors = call(
        "train", "forecast", path, *COLUMNS, *SMALL, "--out", tmp_path / "run", "--json"
    )
    assert (code, text) == (2, ""), errors
    assert expected in errors
    assert not (tmp_path / "run").exists()


def test_short_series_and_loose_order_are_counted_and_reported(call, tmp_path):
    rows = [f"{name},{row}" for name in "ab" for row in ROWS] + [f"c,{row}" for row in ROWS[:3]]
    RNG.shuffle(rows)
    path = tmp_path / "many.csv"
    path.write_text("shop,day,sold\n" + "\n".join(rows) + "\n")
    run = tmp_path / "run"
    arguments = ("train", "forecast", path, "--series", "shop", *COLUMNS, *SMALL, "--test", 3, "--out", run)
    code, text, errors = call(*arguments, "--json")
    assert code == 0, errors
    notes = json.loads(text)["notes"]
    for part in ("rows were out of order", "1 of 3 series left out", "3 points held out are fewer"):
        assert any(part in note for note in notes), notes
    assert (run / "report.html").is_file()
    # what was said is kept: --resume of the finished run says it again
    code, text, errors = call(*arguments, "--resume", "--json")
    assert code == 0, errors
    assert json.loads(text)["notes"] == notes


def test_parameters_that_are_set_later_take_effect(call, data, tmp_path):
    run = tmp_path / "run"
    assert call("train", "forecast", data, *COLUMNS, *SMALL, "--head", "gaussian", "--out", run)[0] == 0
    loaded = ostinato.load(run)
    first = loaded.predict(data)["mean"]
    assert loaded.set_params(seed=9, paths=7).engine_.seed == 9
    assert loaded.engine_.paths == 7
    assert loaded.predict(data)["mean"] != first
    assert loaded.set_params(device="auto").engine_.device == str(
        next(loaded.engine_.model.parameters()).device
    )
    with pytest.raises(InputError, match="known: cpu, cuda"):
        loaded.set_params(device="quantum")


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_kill_before_and_after_the_first_checkpoint_changes_nothing(call, data, tmp_path):
    words = ["train", "forecast", str(data), *COLUMNS, *SMALL, "--steps", "60"]
    assert call(*words, "--out", tmp_path / "whole")[0] == 0
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for name, awaited in (("early", "early"), ("late", "late/checkpoints/[0-9]*")):
        command = [sys.executable, "-m", "ostinato", *words, "--out", str(tmp_path / name)]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            while not any(tmp_path.glob(awaited)) and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert call(*words, "--out", tmp_path / name, "--resume")[0] == 0
        assert (tmp_path / name / "model.safetensors").read_bytes() == whole, name
