"""Progress lines, the progress bar, TensorBoard, and listeners that hold something open."""

from __future__ import annotations

import io
import sys
import time

import pytest

from ostinato.errors import InputError, MissingExtraError
from ostinato.training import events
from ostinato.training.history import History, read_history
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings


def run(programs, listener, **changes):
    settings = TrainingSettings(**{"epochs": 2, **changes})
    validate = lambda model: {"loss": 0.5, "mase": 0.75}  # noqa: E731
    return train(
        programs.Net(),
        programs.batches(),
        settings,
        validate=validate,
        listeners=[listener],
        progress="quiet",
    )


def test_plain_lines(programs):
    stream = io.StringIO()
    run(programs, events.PlainLines(stream, interval_s=0.0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10 + 2 + 1
    assert lines[0].startswith("epoch 0/2, step 1: loss ")
    assert "steps/s" in lines[4]
    assert "left" in lines[4]
    assert lines[5].startswith("epoch 1/2, step 5: validation loss 0.5, mase 0.75 (best so far)")
    assert lines[-1].startswith("ended after 10 steps, 0.")
    assert lines[-1].endswith("(epochs done); best 0.5 at step 5")
    assert "\x1b" not in stream.getvalue()


def test_plain_lines_are_few(programs):
    stream = io.StringIO()
    run(programs, events.PlainLines(stream))
    assert len(stream.getvalue().splitlines()) == 3


def test_the_bar_shows_loss_rate_and_time_left(programs):
    from rich.console import Console

    bar = events.ProgressBar(io.StringIO())
    stream = io.StringIO()
    bar._console = bar._bar.live.console = Console(file=stream, force_terminal=True, width=120)
    pause = type("Pause", (), {"notify": lambda self, event: time.sleep(0.05)})()
    train(
        programs.Net(), programs.batches(), TrainingSettings(steps=10), validate=lambda model: {"loss": 0.5},
        listeners=[bar, pause], progress="quiet",
    )  # fmt: skip
    text = stream.getvalue()
    for expected in ("step 1/10", "loss ", "steps/s", "left", "validation loss 0.5", "ended after 10 steps"):
        assert expected in text, f"{expected!r} is not in {text!r}"


def test_quiet_and_auto(programs, capsys):
    for progress, lines in (("quiet", 0), ("lines", 1), ("auto", 1)):
        train(programs.Net(), programs.batches(), TrainingSettings(epochs=1), progress=progress)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert len(shown.err.splitlines()) == lines, progress


def test_the_fraction_of_the_budget():
    pace = events.Pace()
    pace.notify(events.Started(TrainingSettings(epochs=4, max_time_s=100.0), 0, 0, 10, 0.0))
    pace.notify(events.StepEnded(20, 2, 1.0, 0.1, 1.0, 10.0))
    assert pace.fraction == 0.5
    assert pace.rate_hz == 2.0
    assert pace.text() == "2 steps/s, 10 s left at most"
    pace.notify(events.StepEnded(21, 2, 1.0, 0.1, 1.0, 75.0))
    assert pace.fraction == 0.75


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.26, "0.3 s"), (42.4, "42 s"), (119.6, "2 min 00 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds, text):
    assert events._duration(seconds) == text


def test_tensorboard(programs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(programs, events.TensorBoardLog(tmp_path, every_steps=4))
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert [e.step for e in log.Scalars("train/loss")] == [4, 8]
    assert [e.step for e in log.Scalars("validation/mase")] == [5, 10]
    assert log.Scalars("validation/mase")[0].value == 0.75
    assert log.Scalars("train/learning_rate")[0].value == pytest.approx(1e-3)


def test_tensorboard_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ostinato\[tensorboard\]'"):
        events.TensorBoardLog(tmp_path)


def test_a_listener_is_closed_by_an_error_too(programs):
    class Holding:
        closed = 0

        def notify(self, event):
            if isinstance(event, events.StepEnded):
                raise KeyboardInterrupt

        def close(self):
            self.closed += 1

    holding = Holding()
    with pytest.raises(KeyboardInterrupt):
        run(programs, holding)
    assert holding.closed == 1


def test_every_event_is_told(programs, tmp_path):
    told = set()
    listener = type("All", (), {"notify": lambda self, event: told.add(type(event))})()
    data = programs.batches()
    data[3]["x"] = data[3]["x"] * float("nan")
    train(
        programs.Net(), data, TrainingSettings(epochs=1), validate=lambda model: {"loss": 1.0},
        listeners=[listener], folder=tmp_path, progress="quiet",
    )  # fmt: skip
    assert told == set(events.EVENTS)


def test_history_columns_rows_and_errors(tmp_path):
    history = History()
    for step, extra in ((1, {}), (2, {"loss": 0.5}), (2, {"mase": 0.25})):
        history.add(
            {"step": step, "epoch": 0, "elapsed_s": 0.1, "train_loss": 0.3, "learning_rate": 0.1, **extra}
        )
    assert history.rows()[1]["mase"] == 0.25
    assert history.rows()[1]["loss"] == 0.5
    assert len(history) == 2
    with pytest.raises(InputError, match="no column 'accuracy'; it has: step"):
        history["accuracy"]
    with pytest.raises(InputError, match="is missing"):
        read_history(tmp_path / "history.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="column 'step' is missing"):
        read_history(tmp_path / "other.csv")
