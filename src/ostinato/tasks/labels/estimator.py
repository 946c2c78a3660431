"""What the estimators of labelled sequences share: parameters, the flow of fitting, evaluation, storage."""

from __future__ import annotations

import math
import time as clock
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from ostinato.data.examples import Examples
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.models.encoder import check_cell
from ostinato.tasks import same_data
from ostinato.tasks.labels.beginning import read_first
from ostinato.tasks.labels.fingerprint import fingerprint
from ostinato.tasks.labels.fitting import Training, training_settings
from ostinato.tasks.labels.reading import read_examples, reading_of
from ostinato.tasks.labels.splitting import Encoded, Held, Rows, hold_out
from ostinato.tasks.run_estimator import RunEstimator
from ostinato.tasks.transfer import decided
from ostinato.training.history import History
from ostinato.training.randomness import kept_randomness
from ostinato.training.run_folder import RunFolder
from ostinato.training.settings import TrainingSettings

_FURTHER = "baselines.safetensors"


@dataclass(kw_only=True, eq=False, repr=False)
class LabelEstimator(RunEstimator):
    """What `Classifier` and `Tagger` share.

    A parameter that is None is chosen from the data; what was chosen is in `settings_` after `fit`.

    A subclass has a `fit` that calls `_fit`, and fills the hooks below.

    Attributes (after `fit`):
        network_: the network; settings_: the parameters with every choice made.
        preparation_: what turns inputs into the network's numbers.
        history_: of training.
        metrics_: scores of the network and the baselines, of the test part if there is one, else of the part
            held out for validation; `part` says which.
        notes_: what reading and fitting had to say, as text.
        reading_: how the data were read; `evaluate` and `predict` read theirs in the same way.
    """

    _inputs: ClassVar[tuple[str, ...]]
    """Kinds of examples that the estimator learns from."""
    _others: ClassVar[str] = ""
    """Where other kinds belong."""
    _decided: ClassVar[tuple[str, ...]]
    """Parameters that the run in `init` decides."""

    cell: Any = None
    """rnn, lstm, gru, mingru, minlstm, rglru, or a `Cell` class built by (input_size, hidden_size)."""
    hidden_size: int | None = None
    """H, width of the recurrent state in each direction."""
    num_layers: int | None = None
    """Recurrent layers."""
    dropout: float | None = None
    """Share of the numbers between the parts of the network that is set to 0 in training."""
    epochs: int | None = None
    """Most passes over the training part."""
    max_time_s: float | None = None
    """Seconds for the whole call of `fit`: reading, baselines, training, calibration and scores."""
    patience: int | None = None
    """Validations without improvement after which training stops."""
    batch_size: int | None = None
    """Examples of one optimizer step."""
    learning_rate: float | None = None
    """The highest rate of the schedule."""
    weight_decay: float | None = None
    """On matrices only."""
    init: str | Path | None = None
    """Run folder to begin with: of a language model that texts and sentences are read by, or of an estimator
    of the same kind, whose weights and preparation are gone on with. Everything is trained on."""
    held_out: float | None = None
    """Share of the training data to validate on where no `valid` is given; None: a tenth, of many sentences
    about 500."""
    seed: int = 0
    """Of initial weights, batches, dropout and the choice of what is held out."""
    device: str = "cpu"
    """cpu, cuda, … or auto; of training, and of what the fitted estimator does."""
    progress: str = "auto"
    """auto, bar, lines or quiet."""

    # ------------------------------------------------------------------------------------------- fit

    def _fit(
        self,
        data: Any,
        y: Any,
        reading: Mapping[str, Any],
        *,
        valid: Any = None,
        test: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        started_s: float | None = None,
    ) -> Self:
        """What the `fit` of a subclass calls, which says what the other arguments are.

        Args:
            reading: how `data`, `valid` and `test` are read: options of `read_labelled`.
        """
        started_s = clock.monotonic() if started_s is None else started_s
        settings = self._checked()

        def read() -> tuple[dict[str, Examples], same_data.Fingerprints]:
            parts = {
                name: self._checked_examples(read_examples(part, answers, reading), name)
                for name, part, answers in (("data", data, y), ("valid", valid, None), ("test", test, None))
                if part is not None
            }
            return parts, {name: fingerprint(part) for name, part in parts.items()}

        def learn(parts: dict[str, Examples], folder: Path | None) -> None:
            self.reading_ = reading_of(parts["data"], reading)
            self._first = read_first(settings)
            try:
                self._learn(settings, parts, folder, resume, started_s)
            finally:
                self._first = None

        return self._fit_run(out, resume, read, learn)

    def _checked(self) -> Self:
        """A copy with plain Python numbers, the parameters checked as far as that needs no data."""
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in self.get_params().items()}
        settings = type(self)(**plain)
        sizes = {name: getattr(settings, name) for name in ("hidden_size", "num_layers", "batch_size")}
        check_sizes(type(self).__name__, **{n: v for n, v in sizes.items() if v is not None})
        if settings.dropout is not None and not 0 <= settings.dropout < 1:
            raise InputError(f"dropout is {settings.dropout!r}, expected a number from 0 to below 1")
        if settings.held_out is not None and not 0 < settings.held_out < 1:
            raise InputError(f"held_out is {settings.held_out!r}, expected a fraction between 0 and 1")
        settings._check_network()
        given = ("epochs", "max_time_s", "learning_rate", "weight_decay", "seed")
        budgets = {n: v for n in given if (v := getattr(settings, n)) is not None}
        TrainingSettings(**budgets, patience_validations=settings.patience)
        return settings

    def _check_network(self) -> None:
        if self.cell is not None:
            check_cell(self.cell, self.hidden_size or 8, self.num_layers or 1)

    def _learn(
        self,
        settings: Self,
        parts: Mapping[str, Examples],
        folder: Path | None,
        resume: bool,
        started_s: float,
    ) -> None:
        data, valid = parts["data"], parts.get("valid")
        self.notes_: list[str] = []
        for part in parts.values():
            self.notes_ += [note for note in part.notes if note not in self.notes_]
        self._learn_answers(data, valid)
        self.settings_ = replace(settings)
        first: Self | None = self._first
        if first is not None:
            assert settings.init is not None
            run = decided(settings, type(self)(), first.settings_, self._decided, settings.init)
            self.settings_ = replace(settings, **run)
        for name, value in self._choose(data).items():
            if getattr(self.settings_, name) is None:
                setattr(self.settings_, name, value)
        held = self._hold_out(data) if valid is None else Held.none(len(data))
        learned = data.select(held.learned)
        checked = data.select(held.checked) if valid is None else valid
        self._fit_preparation(learned)
        self._fit_baselines(learned, held.folds_of(held.learned), self._left_s(started_s))
        inputs = self._encode(learned, held.folds_of(held.learned))
        checks = self._encode(checked, held.folds_of(held.checked) if valid is None else None)
        # The caller's random numbers stay as they were.
        with kept_randomness(torch.device("cpu")):
            torch.manual_seed(settings.seed)
            self.network_: nn.Module = self._build()
        if first is not None:
            self._take_from(first)
        self._begin(inputs, checks, self._left_s(started_s))
        n_tests = len(parts["test"]) if "test" in parts else 0
        self.history_ = self._train(inputs, checks, n_tests, folder, resume, started_s)
        self.notes_ += self.history_.notes
        self._finish(checks)
        self.metrics_ = self._final_scores(checked, checks, parts.get("test"))

    def _take_from(self, first: Self) -> None:
        self.notes_.append(f"begins with the run in {str(self.settings_.init)!r}: {self._take(first)}")
        if first.fingerprints_.get("data") == self.fingerprints_.get("data"):
            self.notes_.append(
                "that run learned from the same data: it may have learned from what is held out here, and "
                "scores on that may be too good"
            )

    def _train(
        self,
        inputs: Encoded,
        checks: Encoded,
        n_tests: int,
        folder: Path | None,
        resume: bool,
        started_s: float,
    ) -> History:
        s = self.settings_
        assert s.batch_size is not None
        steps_per_epoch = math.ceil(len(inputs) / s.batch_size)
        # A run to begin with may be the best that there is.
        optimizer = {"validate_first": self._first is not None} | self._optimizer()
        training = Training(
            self.network_,
            inputs,
            s.batch_size,
            lambda budget_s, epochs: training_settings(s, optimizer, budget_s, epochs, steps_per_epoch),
            lambda: self._validate(checks),
            len(checks),
            n_tests,
            s.seed,
            s.device,
            s.progress,
        )
        return training.run(lambda: self._left_s(started_s), folder=folder, resume=resume)

    def _optimizer(self) -> dict[str, Any]:
        return {"optimizer": "adamw"}

    def _final_scores(self, checked: Examples, checks: Encoded, test: Examples | None) -> dict[str, Any]:
        scores = {"part": "validation", **self._scores(checked, checks)}
        more = {} if test is None else self._scores(test, self._encode(test), self.notes_)
        return {"part": "test", **more, "validation": scores} if more else scores

    # ------------------------------------------------------------------------------------------ after

    def evaluate(self, data: Any, y: Any = None) -> dict[str, Any]:
        """Scores of the network and of the baselines on data in the form that `fit` took.

        Returns:
            {"model": {NAME: scores}, "baselines": {NAME: scores}}; `notes_` then is about these data.

        Raises:
            InputError: the data have no answers, or other inputs than the training data.
        """
        examples = self._given(data, y, "data")
        self.notes_ = list(examples.notes)
        return self._scores(examples, self._encode(examples), self.notes_)

    def read_with(self, **options: Any) -> Self:
        """Have `evaluate` and `predict` read files otherwise than the training file was read.

        Args:
            options: fields of `ostinato.data.labelled.LabelledSpec`, such as `encoding="latin-1"`.

        Raises:
            InputError: an unknown option.
        """
        self._require_fitted("network_")
        LabelledSpec().with_options(options)
        self.reading_ = {**self.reading_, **options}
        return self

    def _given(self, data: Any, y: Any = None, name: str | None = None) -> Examples:
        """Data read as in `fit`; with answers, checked as in `fit`, where `name` is given."""
        self._require_fitted("network_")
        examples = read_examples(data, y, self.reading_, needs_answers=name is not None)
        return examples if name is None else self._checked_examples(examples, name)

    def _checked_examples(self, examples: Examples, name: str) -> Examples:
        if examples.kind not in self._inputs:
            raise InputError(
                f"{name}: {type(self).__name__} learns from {' or '.join(self._inputs)}, found "
                f"{examples.kind} in {examples.source or 'the data'}{self._others}"
            )
        if not len(examples):
            raise InputError(f"{name}: no example in {examples.source or 'the data'}")
        return self._check_examples(examples, name)

    def _write_parts(self, run: RunFolder) -> dict[str, Any]:
        files = self._to_json()
        for name, values in files.items():
            run.write_json(f"preparation/{name}.json", values)
        if further := self._tensors():
            run.write_tensors(_FURTHER, further)
        return {"files": sorted(files)}

    def _read_parts(self, run: RunFolder, stored: Mapping[str, Any]) -> None:
        self._from_json({name: run.read_json(f"preparation/{name}.json") for name in stored["files"]})
        self._take_tensors(run.read_tensors(_FURTHER) if _FURTHER in run.files else {})
        self.network_ = self._build()

    # ------------------------------------------------------------------------------------------ hooks

    @abstractmethod
    def _check_examples(self, examples: Examples, name: str) -> Examples:
        """Refuse examples without usable answers; `name` is the argument they came by."""

    @abstractmethod
    def _learn_answers(self, data: Examples, valid: Examples | None) -> None:
        """Which answers there are; may add to `notes_`."""

    @abstractmethod
    def _choose(self, data: Examples) -> dict[str, Any]:
        """A value for every parameter that may be None, by name."""

    def _strata(self, data: Examples) -> Sequence[str] | None:
        """For each example a group of which the held-out part is a fair sample."""
        return data.labels

    def _hold_out(self, data: Examples) -> Held:
        """What is learned from and what is validated on, where no `valid` was given."""
        s = self.settings_
        assert s.held_out is not None
        return hold_out(len(data), s.held_out, s.seed, self._strata(data))

    @abstractmethod
    def _fit_preparation(self, learned: Examples) -> None:
        """Set `preparation_`."""

    @abstractmethod
    def _encode(self, examples: Examples, folds: Rows | None = None) -> Encoded:
        """Examples as batches: of the inputs, with `y` where the answers are known.

        Args:
            examples: N.
            folds: (N,) the part of the training data that each belongs to, where `_hold_out` made several.
        """

    @abstractmethod
    def _build(self) -> nn.Module:
        """The untrained network, from `settings_`, `preparation_` and the answers."""

    @abstractmethod
    def _take(self, first: Self) -> str:
        """Give `network_` the weights of that of another; returns what of the answers is taken."""

    def _begin(self, inputs: Encoded, checks: Encoded, left_s: float | None) -> None:
        """What of `network_` is fitted before training, in a part of the time that is left."""

    @abstractmethod
    def _validate(self, checks: Encoded) -> dict[str, float]:
        """Scores of `network_` while it is trained; `selection` decides which weights are kept: the more the
        better."""

    @abstractmethod
    def _fit_baselines(self, learned: Examples, folds: Rows | None, left_s: float | None) -> None:
        """Learn the baselines, in a small part of the time that is left; `folds` as for `_encode`."""

    def _finish(self, checks: Encoded) -> None:
        """What is fitted to the held-out part once the network is trained, such as a calibration."""

    @abstractmethod
    def _scores(self, examples: Examples, encoded: Encoded, notes: list[str] | None = None) -> dict[str, Any]:
        """{"model": …, "baselines": …}; `notes` takes what is peculiar about the answers."""

    @abstractmethod
    def _to_json(self) -> dict[str, Any]:
        """Everything learned but the tensors, as plain values by file name under preparation/."""

    @abstractmethod
    def _from_json(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `_to_json`."""

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Arrays of the baselines and of other parts outside the network, by name."""
        return {}

    def _take_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `_tensors`."""
