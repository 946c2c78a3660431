"""When a run ends and which weights it ends with: the best so far, patience, budgets, and time."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from ostinato.errors import InputError
from ostinato.training.settings import TrainingSettings


@dataclass
class BestSoFar:
    """Follows the monitored metric.

    Any strict improvement makes a new best; only one larger than `min_delta` resets the patience. A metric
    that is not a number is never an improvement.
    """

    value: float = math.nan
    step: int | None = None
    reference: float = math.nan
    since: int = 0
    since_decay: int = 0

    def update(self, metrics: dict[str, float], step: int, settings: TrainingSettings) -> bool:
        """Take a validation in; True when it is the best so far.

        Raises:
            InputError: the monitored metric is not among `metrics`.
        """
        if settings.monitor not in metrics:
            raise InputError(
                f"TrainingSettings.monitor={settings.monitor!r} is not among what validate returned: "
                f"{', '.join(metrics)}"
            )
        value = float(metrics[settings.monitor])
        sign = 1.0 if settings.mode == "min" else -1.0
        if math.isnan(self.reference) or sign * (self.reference - value) > settings.min_delta:
            if not math.isnan(value):
                self.reference = value
            self.since = self.since_decay = 0 if not math.isnan(value) else self.since + 1
        else:
            self.since += 1
            self.since_decay += 1
        is_best = not math.isnan(value) and (math.isnan(self.value) or sign * (self.value - value) > 0)
        if is_best:
            self.value, self.step = value, step
        return is_best

    def plateau_reached(self, validations: int) -> bool:
        """True once per `validations` in a row without improvement."""
        if self.since_decay < validations:
            return False
        self.since_decay = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, math.nan if value is None and name in ("value", "reference") else value)


class Clock:
    """Wall time of a run and what the next pieces of work will cost, so that a time budget holds.

    A prediction is the largest of the last three durations of its kind and a tenth more.
    """

    def __init__(self, settings: TrainingSettings, started_s: float | None = None):
        self.budget_s = settings.max_time_s
        self.started_s = time.monotonic() if started_s is None else started_s
        self.before_s = 0.0
        self._durations: dict[str, list[float]] = {"step": [], "validation": [], "checkpoint": []}

    @property
    def elapsed_s(self) -> float:
        """Seconds of this run, its earlier parts included."""
        return self.before_s + time.monotonic() - self.started_s

    def took(self, kind: str, duration_s: float) -> None:
        """Record how long a step, a validation or a checkpoint took."""
        durations = self._durations[kind]
        durations.append(duration_s)
        if len(durations) > 3:
            del durations[0]

    def cost_s(self, *kinds: str, margin: float = 1.1) -> float:
        """Predicted duration of one of each kind; 0 for a kind never seen."""
        return sum(margin * max(self._durations[kind], default=0.0) for kind in kinds)

    def knows(self, kind: str) -> bool:
        """Whether a duration of this kind was recorded."""
        return bool(self._durations[kind])

    def fits(self, *kinds: str, margin: float = 1.1) -> bool:
        """Whether one of each kind still ends within the budget."""
        return self.budget_s is None or self.elapsed_s + self.cost_s(*kinds, margin=margin) <= self.budget_s
