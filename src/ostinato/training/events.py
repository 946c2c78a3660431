"""What a run tells its listeners, and the listeners that come with the package.

| event | when |
| --- | --- |
| `Started` | before the first step (after resuming) |
| `StepEnded` | after each optimizer step that was taken |
| `StepSkipped` | after a bad step: loss or gradient not finite, or a loss that exploded |
| `Validated` | after each validation |
| `CheckpointWritten` | after a checkpoint stands |
| `Ended` | after the last step, with the reason |

A listener is any object with `notify(event)`; it is called in the process of rank 0 only, between steps, and
must not change the model or draw random numbers.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from ostinato.errors import MissingExtraError
from ostinato.training.settings import TrainingSettings, require_known


@dataclass(frozen=True, slots=True)
class Started:
    """A run begins, or goes on after `step` steps; `steps_per_epoch` is None where the source has no
    length."""

    settings: TrainingSettings
    step: int
    epoch: int
    steps_per_epoch: int | None
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class StepEnded:
    """One optimizer step; `loss` is the mean per target of this step, `grad_norm` that before clipping."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class StepSkipped:
    """A bad step; `reason` says what was wrong and where, `consecutive` how many in a row by now."""

    step: int
    reason: str
    consecutive: int


@dataclass(frozen=True, slots=True)
class Validated:
    """A validation; `is_best` by the monitored metric."""

    step: int
    epoch: int
    metrics: dict[str, float]
    is_best: bool
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint stands at `path`."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """The run ended; `reason` is epochs, steps, time or patience."""

    step: int
    epoch: int
    reason: str
    best: float
    best_step: int | None
    elapsed_s: float


Event = Started | StepEnded | StepSkipped | Validated | CheckpointWritten | Ended
EVENTS = (Started, StepEnded, StepSkipped, Validated, CheckpointWritten, Ended)


class Listener(Protocol):
    """Anything that wants to know."""

    def notify(self, event: Event) -> None:
        """Take one event; called between steps, so keep it short."""
        ...


@runtime_checkable
class Closable(Protocol):
    """A listener that holds something open; closed when the run ends, by an error too."""

    def close(self) -> None:
        """Let go; may be called twice."""
        ...


class PlainLines:
    """One line per validation, bad step and end, and at most one every `interval_s` between: for logs."""

    def __init__(self, stream: TextIO | None = None, interval_s: float = 10.0):
        self.stream, self.interval_s = stream or sys.stderr, interval_s
        self._last_s = time.monotonic()
        self._pace = Pace()

    def notify(self, event: Event) -> None:
        """Write what is due."""
        self._pace.notify(event)
        if isinstance(event, StepEnded):
            if time.monotonic() - self._last_s >= self.interval_s:
                self._write(f"{self._pace.position(event)}: loss {event.loss:.5g}, {self._pace.text()}")
        elif isinstance(event, Validated):
            metrics = ", ".join(f"{name} {value:.5g}" for name, value in event.metrics.items())
            best = " (best so far)" if event.is_best else ""
            self._write(f"{self._pace.position(event)}: validation {metrics}{best}, {self._pace.text()}")
        elif isinstance(event, StepSkipped):
            self._write(f"step {event.step}: skipped, {event.reason}")
        elif isinstance(event, Ended):
            self._write(end_text(event))

    def _write(self, line: str) -> None:
        self._last_s = time.monotonic()
        self.stream.write(line + "\n")
        self.stream.flush()


class ProgressBar:
    """A bar on the terminal with loss, steps per second and time left (Rich)."""

    def __init__(self, stream: TextIO | None = None):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=stream or sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
            console=self._console, auto_refresh=False, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=None, text="")
        self._pace = Pace()
        self._drawn_s = -math.inf
        self._validation = ""

    def notify(self, event: Event) -> None:
        """Draw at most ten times a second; leave one line when the run ends."""
        self._pace.notify(event)
        if isinstance(event, Started):
            self._bar.start()
        elif isinstance(event, Validated):
            name, value = next(iter(event.metrics.items()), ("", math.nan))
            self._validation = f", validation {name} {value:.4g}" if event.metrics else ""
        elif isinstance(event, StepSkipped):
            self._bar.console.print(
                f"step {event.step}: skipped, {event.reason}", markup=False, highlight=False
            )
        elif isinstance(event, Ended):
            self._bar.stop()
            self._console.print(end_text(event), markup=False, highlight=False)
        elif isinstance(event, StepEnded) and time.monotonic() - self._drawn_s > 0.1:
            self._drawn_s = time.monotonic()
            self._bar.update(
                self._task, description=self._pace.position(event), total=1.0, completed=self._pace.fraction,
                text=f"loss {event.loss:.4g}{self._validation}, {self._pace.text()}", refresh=True,
            )  # fmt: skip

    def close(self) -> None:
        """Give the terminal back when the run fails."""
        self._bar.stop()


class Pace:
    """Steps per second, how much of the budget is done, and the time left."""

    def __init__(self) -> None:
        self.settings: TrainingSettings | None = None
        self.rate_hz = self.fraction = 0.0
        self._steps_per_epoch: int | None = None
        self._start = (0, 0.0)
        self._elapsed_s = 0.0

    def notify(self, event: Event) -> None:
        """Follow the run."""
        if isinstance(event, Started):
            self.settings, self._steps_per_epoch = event.settings, event.steps_per_epoch
            self._start = (event.step, event.elapsed_s)
        elif isinstance(event, (StepEnded, Validated)):
            self._elapsed_s = event.elapsed_s
            steps, seconds = event.step - self._start[0], event.elapsed_s - self._start[1]
            self.rate_hz = steps / seconds if seconds > 0 else 0.0
            self.fraction = self._done(event.step)

    def _done(self, step: int) -> float:
        s = self.settings
        if s is None:
            return 0.0
        done = [step / s.steps] if s.steps else []
        if s.epochs and self._steps_per_epoch:
            done.append(step / (s.epochs * self._steps_per_epoch))
        if s.max_time_s:
            done.append(self._elapsed_s / s.max_time_s)
        return min(1.0, max(done, default=0.0))

    def position(self, event: StepEnded | Validated) -> str:
        """Where the run is: epoch and step, with their budgets."""
        s = self.settings
        epochs = f"/{s.epochs}" if s and s.epochs else ""
        steps = f"/{s.steps}" if s and s.steps else ""
        return f"epoch {event.epoch}{epochs}, step {event.step}{steps}"

    def text(self) -> str:
        """Rate and time left."""
        left = ""
        if self.fraction > 0:
            spent_s = self._elapsed_s - self._start[1]
            left_s = spent_s * (1 - self.fraction) / self.fraction
            left = f", {_duration(left_s)} left at most"
        return f"{self.rate_hz:.3g} steps/s{left}"


def end_text(event: Ended) -> str:
    """The last line of a run."""
    best = "" if event.best_step is None else f"; best {event.best:.5g} at step {event.best_step}"
    spent = _duration(event.elapsed_s)
    return f"ended after {event.step} steps, {spent} ({_REASONS[event.reason]}){best}"


_REASONS = {
    "epochs": "epochs done",
    "steps": "steps done",
    "time": "time used up",
    "patience": "no more improvement",
}


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


class TensorBoardLog:
    """Event files for TensorBoard: loss, rate and gradient norm every `every_steps`, and each validation.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, every_steps: int = 50):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("TensorBoardLog", "tensorboard", "tensorboard") from None
        self._writer: Any = SummaryWriter(log_dir=str(folder))
        self.every_steps = every_steps

    def notify(self, event: Event) -> None:
        """Write what is due."""
        if isinstance(event, StepEnded):
            if event.step % self.every_steps == 0:
                for name in ("loss", "learning_rate", "grad_norm"):
                    self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)
        elif isinstance(event, Validated):
            for name, value in event.metrics.items():
                self._writer.add_scalar(f"validation/{name}", value, event.step)
        elif isinstance(event, StepSkipped):
            self._writer.add_text("skipped", event.reason, event.step)
        elif isinstance(event, Ended):
            self.close()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


PROGRESS = ("auto", "bar", "lines", "quiet")


def progress_listener(progress: str) -> list[Listener]:
    """The listener for `auto` (a bar on a terminal, lines elsewhere), `bar`, `lines`; none for `quiet`."""
    require_known("progress", progress, PROGRESS)
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() else "lines"
    if progress == "quiet":
        return []
    return [ProgressBar() if progress == "bar" else PlainLines()]
