"""Training within a time limit: how many passes fit, and how much time what follows training needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ostinato.data.batching import RowSampler, RowSource
from ostinato.tasks.labels.splitting import Encoded
from ostinato.training.history import History
from ostinato.training.loop import train
from ostinato.training.randomness import kept_randomness
from ostinato.training.settings import TrainingSettings

VALIDATIONS = 20  # about so many in a run of few batches, where one a pass would cost as much as learning
LEAST_S = 0.5
STEP_FACTOR = 1.25  # of what the optimizer, averaging and the loop add to forward and backward
FILES_S = 0.3  # what the files of a run take, beyond their size
BYTES_PER_S = 100e6


def training_settings(
    chosen: Any, optimizer: Mapping[str, Any], budget_s: float | None, epochs: int | None, steps: int
) -> TrainingSettings:
    """Of the loop.

    Args:
        chosen: parameters of a `LabelEstimator` with every choice made.
        optimizer: which, with what is its own.
        budget_s, epochs: of training; fewer passes than chosen where time is short.
        steps: of a pass.
    """
    total = chosen.epochs * steps
    return TrainingSettings(
        epochs=min(chosen.epochs, epochs or chosen.epochs),
        max_time_s=budget_s,
        patience_validations=chosen.patience,
        **optimizer,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        schedule="cosine",
        final_factor=0.02,
        warmup_steps=min(100, max(1, total // 20)),
        averaging="ema",
        averaging_decay=0.99 if total < 2000 else 0.999,
        validate_every_epochs=max(1, min(chosen.epochs // VALIDATIONS, 200 // max(steps, 1))),
        monitor="selection",
        mode="max",
        seed=chosen.seed,
    )


@dataclass(frozen=True)
class Training:
    """One training of a network with everything it needs.

    Attributes:
        network: has `loss(batch, state=None)`.
        inputs: to learn from.
        batch_size: examples of a step.
        settings: of the loop, from (budget in seconds or None, epochs or None for the usual number).
        validate: scores of the network on `n_checks` held-out examples.
        n_checks: examples that one call of `validate` looks at.
        n_tests: examples that are looked at once more after training.
        seed: of the order of the batches.
        device, progress: as for `ostinato.training.loop.train`.
    """

    network: nn.Module
    inputs: Encoded
    batch_size: int
    settings: Callable[[float | None, int | None], TrainingSettings]
    validate: Callable[[], dict[str, float]]
    n_checks: int
    n_tests: int
    seed: int
    device: str
    progress: str

    def run(self, left_s: Callable[[], float | None], *, folder: Path | None, resume: bool) -> History:
        """Train; with a limit, in as many passes as fit, so that the schedule ends where the time does.

        Args:
            left_s: seconds left for training and all that follows, None without a limit.
            folder, resume: as for `train`.
        """
        lengths = np.asarray(self.inputs.lengths)
        is_ragged = bool(len(lengths)) and bool((lengths != lengths[0]).any())
        sampler = RowSampler(
            len(self.inputs), self.batch_size, seed=self.seed, lengths=lengths if is_ragged else None
        )
        budget_s: float | None = None
        epochs: int | None = None
        if left_s() is not None:
            check_s = self._validation_s()
            epoch_s = self._epoch_s(len(sampler))
            size_bytes = sum(p.numel() * p.element_size() for p in self.network.parameters())
            # Two looks at what is held out, one at the test part, and the files of the run.
            after_s = FILES_S + 2 * size_bytes / BYTES_PER_S
            after_s += check_s * (2.5 + 1.2 * self.n_tests / max(self.n_checks, 1))
            budget_s = max((left_s() or 0.0) - after_s, LEAST_S)
            usual = self.settings(budget_s, None)
            every = usual.validate_every_epochs or 1
            epochs = int(0.95 * budget_s / max(epoch_s + check_s / every, 1e-9))
            epochs = max(1, min(epochs, usual.epochs or epochs))
        return train(
            self.network,
            RowSource(sampler, self.inputs.batch),
            self.settings(budget_s, epochs),
            validate=lambda _: self.validate(),
            folder=folder,
            resume=resume,
            device=self.device,
            progress=self.progress,
        )

    def _validation_s(self) -> float:
        """Seconds of one validation, by trying."""
        self.network.eval()
        started_s = time.monotonic()
        with torch.no_grad():
            self.validate()
        return time.monotonic() - started_s

    def _epoch_s(self, batches: int) -> float:
        """Seconds of one pass, judged by a few batches; nothing of them is kept."""
        rows = np.random.default_rng([self.seed, 3]).permutation(len(self.inputs))
        size, spent_s, looked = self.batch_size, 0.0, min(4, batches)
        device = next(self.network.parameters()).device
        self.network.train()
        with kept_randomness(torch.device("cpu")):
            for i in range(looked):
                started_s = time.monotonic()
                batch = self.inputs.batch(rows[i * size : (i + 1) * size]).to(device)
                total = self.network.loss(batch).total  # type: ignore[operator]
                total.backward()
                # The first one also warms up.
                spent_s = time.monotonic() - started_s + (spent_s if i > 1 else 0.0)
        for parameter in self.network.parameters():
            parameter.grad = None
        return STEP_FACTOR * spent_s / max(looked - 1, 1) * batches
