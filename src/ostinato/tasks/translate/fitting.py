"""Training within a time limit: what fits into it, and what has to be kept for the answers after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.pair_encoding import EncodedPairs
from ostinato.models.seq2seq import EncoderDecoder
from ostinato.training.history import History
from ostinato.training.loop import train
from ostinato.training.randomness import kept_randomness
from ostinato.training.settings import TrainingSettings

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

VALIDATIONS = 40
LEAST_S = 0.5
FILES_S, BYTES_PER_S = 0.5, 100e6
STEP_FACTOR = 1.15  # of what the optimizer, averaging and the loop add to forward and backward
_VALIDATION_ROWS = 128
_TRIED = 5  # batches, of which the first only warms up


def training_settings(settings: Translator, steps: int) -> TrainingSettings:
    """Of the loop, from parameters with every choice made, where one pass has so many steps."""
    s = settings
    assert s.epochs is not None
    assert s.learning_rate is not None
    assert s.weight_decay is not None
    total = s.epochs * steps
    every = max(total // VALIDATIONS, 1)
    return TrainingSettings(
        epochs=s.epochs,
        patience_validations=s.patience,
        optimizer="adamw",
        learning_rate=s.learning_rate,
        weight_decay=s.weight_decay,
        schedule="cosine",
        final_factor=0.01,
        warmup_steps=min(400, max(1, total // 20)),
        averaging="ema",
        averaging_decay=0.99 if total < 3000 else 0.999,
        validate_every_epochs=None if every < 2 * steps else every // steps,
        validate_every_steps=max(every, 20) if every < 2 * steps else None,
        seed=s.seed,
    )


@dataclass(frozen=True)
class Training:
    """One training of a network with everything it needs.

    Attributes:
        network: to be trained.
        inputs: to learn from.
        checks: to choose the best weights by.
        settings: of the loop; `epochs` are what is done without a limit, and with one if they fit.
        batch_size: pairs of a step.
        device, progress: as for `ostinato.training.loop.train`.
    """

    network: EncoderDecoder
    inputs: EncodedPairs
    checks: EncodedPairs
    settings: TrainingSettings
    batch_size: int
    device: str
    progress: str

    def run(
        self,
        ends_s: float | None,
        after_s: Callable[[], float],
        *,
        folder: Path | None,
        resume: bool,
    ) -> History:
        """Train.

        Where the passes asked for do not fit into the time, the schedule goes by the clock, and ends when it
        does.

        Args:
            ends_s: `time.monotonic()` at which all is to be done, None without a limit.
            after_s: how many of them what follows will need, tried out when there is a limit.
            folder, resume: as for `train`.
        """
        settings = self.settings
        if ends_s is not None:
            size_bytes = sum(p.numel() * p.element_size() for p in self.network.parameters())
            kept_s = FILES_S + 2 * size_bytes / BYTES_PER_S + after_s()
            pass_s = self._pass_s()
            budget_s = max(ends_s - time.monotonic() - kept_s, LEAST_S)
            assert settings.epochs is not None
            # All else stays as it is, so that a run can be resumed where the machine is faster or slower.
            fits = settings.epochs * pass_s <= 0.95 * budget_s
            settings = replace(settings, max_time_s=budget_s, epochs=settings.epochs if fits else None)
        return train(
            self.network,
            RowSource(self._sampler(), self.inputs.batch),
            settings,
            validate=lambda _: self.validate(),
            folder=folder,
            resume=resume,
            device=self.device,
            progress=self.progress,
        )

    def validate(self) -> dict[str, float]:
        """`loss`: nats for a unit of the targets that are held out."""
        device = next(self.network.parameters()).device
        order = np.argsort(self.checks.lengths, kind="stable")
        total = count = 0.0
        for start in range(0, len(order), _VALIDATION_ROWS):
            loss = self.network.loss(self.checks.batch(order[start : start + _VALIDATION_ROWS]).to(device))
            total, count = total + float(loss.total), count + float(loss.count)
        return {"loss": total / count}

    @property
    def _steps(self) -> int:
        return len(self._sampler())

    def _sampler(self) -> RowSampler:
        return RowSampler(
            len(self.inputs), self.batch_size, seed=self.settings.seed, lengths=self.inputs.lengths
        )

    def _pass_s(self) -> float:
        """Seconds of one pass with its validations, judged by a few batches; nothing of them is kept."""
        device = next(self.network.parameters()).device
        spent_s, tried = 0.0, 0
        self.network.train()
        with kept_randomness(torch.device("cpu")):
            for rows in self._sampler():
                started_s = time.monotonic()
                self.network.loss(self.inputs.batch(rows).to(device)).total.backward()
                spent_s = time.monotonic() - started_s + (spent_s if tried > 1 else 0.0)
                tried += 1
                if tried == _TRIED:
                    break
        for parameter in self.network.parameters():
            parameter.grad = None
        self.network.eval()
        started_s = time.monotonic()
        with torch.no_grad():
            self.validate()
        check_s = time.monotonic() - started_s
        steps = self._steps
        every = self.settings.validate_every_steps or steps * (self.settings.validate_every_epochs or 1)
        return STEP_FACTOR * spent_s / max(tried - 1, 1) * steps + check_s * steps / every
