"""Training a language model in the time there is: which network, how many passes, and a schedule that ends
with the time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ostinato.data.corpus import Corpus
from ostinato.data.corpus_units import CorpusUnits
from ostinato.data.token_streams import TokenStreams
from ostinato.models.language import LanguageNetwork
from ostinato.tasks.language import plan
from ostinato.tasks.language.scoring import text_nats
from ostinato.tasks.transfer import SIZES, LanguageSource, begin_with, decided
from ostinato.training.distributed import find_device
from ostinato.training.history import History
from ostinato.training.loop import train
from ostinato.training.randomness import kept_randomness
from ostinato.training.settings import TrainingSettings

LEAST_S = 0.5
FILES_S = 0.5
BYTES_PER_S = 100e6
VALIDATIONS = 20
"""About so many in a run, where a pass over the text takes longer."""


@dataclass
class Fitting:
    """One training of a language model.

    Attributes:
        settings: the estimator's parameters; None where a choice is to be made.
        corpus, checks: what is learned from, and what is validated on.
        n_tests: units that are looked at once more after training.
        V: different units.
        left_s: seconds left of the time limit, None without one.
        units: of the corpus.
        source: the language model to begin with.
        notes: what there was to say about it.
    """

    settings: Any
    corpus: Corpus
    checks: Corpus
    n_tests: int
    V: int
    left_s: Callable[[], float | None]
    units: CorpusUnits
    source: LanguageSource | None = None
    notes: list[str] = field(default_factory=list)

    def choose(self) -> tuple[dict[str, Any], list[str]]:
        """A value for every parameter that is None, and what to say about it.

        With a time limit the speed of this machine decides too: two networks are tried for a few steps.
        """
        given, N = self.settings, len(self.corpus)
        few = self.V <= plan.FEW_UNITS
        chunk = given.chunk or max(32, min(128 if few else 48, N // 2000))
        s = replace(given)
        if self.source is not None:
            had = SimpleNamespace(**self.source.sizes)
            s = replace(s, **decided(given, type(given)(), had, SIZES, given.init))
        for name, value in (
            ("cell", "lstm"),
            ("chunk", chunk),
            ("batch_size", max(1, min(32 if few else 24, N // 250 // chunk))),
            ("learning_rate", 0.004 if few else 0.003),
            ("weight_decay", 0.01),
        ):
            if getattr(s, name) is None:
                setattr(s, name, value)
        speed_s = None if self.left_s() is None else self._weight_s(s)
        sizes = plan.choose_size(s, N, self.V, speed_s, self._budget_s(s, speed_s))
        for name, value in sizes.items():
            if getattr(s, name) is None:
                setattr(s, name, value)
        wanted = plan.wanted_passes(N, self.V)
        # Without a time limit three times what is needed at least; more may still be of use.
        most = s.epochs or max(1, round((3 if speed_s is None else 6) * wanted))
        weights = self._weights(s)
        passes = float(most)
        if speed_s is not None:
            budget_s = self._budget_s(s, speed_s) or 0.0
            passes = min(passes, max(budget_s / (speed_s * weights * N), 0.1))
        size = plan.Size(s.embedding_size, s.hidden_size, s.num_layers)
        own = size.weights(0, tied=s.tied, gates=4)
        regularisers = plan.choose_regularisers(own, N, passes, few_units=few)
        for name, value in regularisers.items():
            if getattr(s, name) is None:
                setattr(s, name, value)
        s.epochs = most
        chosen = {name: getattr(s, name) for name in vars(s) if getattr(given, name, 0) != getattr(s, name)}
        return chosen, [
            f"{s.cell} of {s.num_layers} × {s.hidden_size}: {passes:.1f} passes over {N:,} units of text"
        ]

    def _weights(self, s: Any) -> int:
        size = plan.Size(s.embedding_size, s.hidden_size, s.num_layers)
        gates = plan.gates_of(s.cell)
        return size.weights(self.V, tied=s.tied, gates=gates)

    def _weight_s(self, s: Any) -> float:
        """Seconds of training for a weight and a unit of text, with a network of middle size."""
        trial = replace(s)
        ladder = plan.OF_WORDS if self.V > plan.FEW_UNITS else plan.OF_CHARACTERS
        middle = ladder[2]
        defaults = {
            "tied": self.V > plan.FEW_UNITS, "adaptive": False, "embedding_size": middle.embedding_size,
            "hidden_size": middle.hidden_size, "num_layers": middle.num_layers, "dropout": 0.2,
            "dropout_in": 0.1, "dropout_between": 0.2, "word_dropout": 0.0, "weight_drop": 0.2,
        }  # fmt: skip
        for name, value in defaults.items():
            if getattr(trial, name) is None:
                setattr(trial, name, value)
        network = self._built(trial)
        device = torch.device(find_device(s.device))
        return plan.seconds_per_unit(network, self._streams(trial), device) / self._weights(trial)

    def _budget_s(self, s: Any, weight_s: float | None) -> float | None:
        """What training may take of the time left: less the scores of what was held out, and the files."""
        left_s = self.left_s()
        if left_s is None:
            return None
        # Looking at a unit costs a third of learning from it; two looks and the tests come after training.
        looks = 2.5 * len(self.checks) + 1.2 * self.n_tests
        after_s = FILES_S if weight_s is None else FILES_S + 0.0
        share = looks / 3 / max(len(self.corpus), 1)
        return max((left_s - after_s) * (1 - min(share, 0.3)), LEAST_S)

    def train(self, folder: Path | None, resume: bool) -> tuple[LanguageNetwork, History]:
        """The trained network."""
        s = self.settings
        # The caller's random numbers stay as they were.
        with kept_randomness(torch.device("cpu")):
            torch.manual_seed(s.seed)
            network = self._built(s)
        if self.source is not None:
            self.notes.append(begin_with(network, self.units, self.source))
        streams = self._streams(s)
        budget_s, epochs = None, s.epochs
        if self.left_s() is not None:
            device = torch.device(find_device(s.device))
            unit_s = plan.seconds_per_unit(network, streams, device)
            check_s = unit_s / 3 * len(self.checks)
            size_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
            after_s = FILES_S + 3 * size_bytes / BYTES_PER_S
            after_s += 1.5 * check_s + 1.3 * unit_s / 3 * self.n_tests
            budget_s = max((self.left_s() or 0.0) - after_s, LEAST_S)
            epochs = min(epochs, max(1, math.ceil(budget_s / (unit_s * len(self.corpus) + check_s))))
            if epochs * unit_s * len(self.corpus) > 0.9 * budget_s:
                # The schedule follows the clock: whatever the machine does meanwhile, it ends with the time.
                epochs = None
        history = train(
            network,
            streams,
            self._training_settings(budget_s, epochs, len(streams)),
            validate=lambda _: {"loss": text_nats(network, self.checks) / len(self.checks)},
            folder=folder,
            resume=resume,
            device=s.device,
            progress=s.progress,
        )
        return network, history

    def _training_settings(
        self, budget_s: float | None, epochs: int | None, steps_per_epoch: int
    ) -> TrainingSettings:
        s = self.settings
        steps = steps_per_epoch * (epochs or s.epochs)
        # Validations cost about a thirtieth of a pass with a tenth held out; of long passes several.
        every_steps = (
            max(1, steps_per_epoch * s.epochs // VALIDATIONS) if s.epochs < VALIDATIONS // 4 else None
        )
        return TrainingSettings(
            epochs=epochs,
            max_time_s=budget_s,
            patience_validations=s.patience,
            optimizer="adamw",
            learning_rate=s.learning_rate,
            weight_decay=s.weight_decay,
            schedule="cosine",
            final_factor=0.01,
            warmup_steps=min(100, max(1, steps // 20)),
            averaging=s.averaging,
            averaging_decay=0.998,
            averaging_start_steps=steps // 2 if s.averaging == "swa" else 0,
            validate_every_epochs=max(1, s.epochs // VALIDATIONS),
            validate_every_steps=every_steps,
            carry_state=True,
            seed=s.seed,
        )

    def _built(self, s: Any) -> LanguageNetwork:
        return plan.build(s, self.V)

    def _streams(self, s: Any) -> TokenStreams:
        c = self.corpus
        streams = min(s.batch_size, len(c))
        return TokenStreams(c.ids, c.starts, c.start, streams=streams, steps=s.chunk, seed=s.seed)
