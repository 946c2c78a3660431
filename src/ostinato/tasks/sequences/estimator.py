"""What the estimators of sequences share: parameters, fitting, evaluation; scikit-learn's conventions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.arrays import sequences_from
from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.scaling import Scaling
from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.options import check_choice
from ostinato.models.labeller import Labeller
from ostinato.tasks import same_data
from ostinato.tasks.base import Estimator
from ostinato.tasks.sequences import storage
from ostinato.tasks.sequences.beginning import inputs_of, notes_on, read_first, settings_with, take_network
from ostinato.tasks.sequences.fingerprint import fingerprint
from ostinato.tasks.sequences.network import Network, Part
from ostinato.tasks.sequences.splitting import Split, split_off
from ostinato.tasks.sequences.targets import OUTPUTS, Targets, read_targets
from ostinato.tasks.stored import plain_parameters, read_finished
from ostinato.training.history import History
from ostinato.training.loop import train
from ostinato.training.randomness import kept_randomness
from ostinato.training.run_folder import RunFolder
from ostinato.training.settings import TrainingSettings

_OF_TRAINING = (
    "epochs", "max_time_s", "learning_rate", "optimizer", "weight_decay", "schedule", "clip_norm",
    "averaging", "seed",
)  # fmt: skip
_DROPOUTS = ("dropout_in", "dropout_between", "dropout_out", "dropout_recurrent")


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceEstimator(Estimator):
    """What `SequenceRegressor` and `SequenceClassifier` share.

    X is an array (N, T, D) or (N, T), or a list of N arrays (T_i, D) or (T_i,), as
    `ostinato.data.arrays.sequences_from` takes it; y one of the forms of
    `ostinato.tasks.sequences.targets.read_targets`.
    """

    kind: ClassVar[str]
    _baselines: ClassVar[tuple[str, ...]]

    cell: Any = "lstm"
    """rnn, lstm, gru, mingru, minlstm, rglru, or a `Cell` class built by (input_size, hidden_size)."""
    hidden_size: int = 64
    """H, width of the recurrent state."""
    num_layers: int = 1
    """Recurrent layers."""
    bidirectional: bool = False
    """Also read from the end to the start."""
    pooling: str = "last"
    """What represents a whole sequence: last, mean, max, sum or attention over its steps, or several side by
    side: max_mean, mix."""
    output: str = "auto"
    """sequence or step: how many answers there are; auto tells from the shape of y."""
    dropout_in: float = 0.0
    """On the inputs of the first layer."""
    dropout_between: float = 0.0
    """Between recurrent layers; needs two or more."""
    dropout_out: float = 0.0
    """On what the last layer says."""
    dropout_recurrent: float = 0.0
    """Variational, on the state (arXiv:1512.05287)."""
    layer_options: Mapping[str, Any] | None = None
    """Further options of the recurrent layers by name, such as {"norm": "layer", "zoneout_h": 0.1}."""
    scale_inputs: bool = True
    """Bring every input to mean 0 and variance 1, by the real steps of the training part."""
    init: str | Path | None = None
    """Run folder of an estimator of the same class whose network and scaling are gone on with."""
    epochs: int | None = 30
    """Passes over the training part; None: until patience or time is up."""
    max_time_s: float | None = None
    """Wall time of training in seconds."""
    patience: int | None = None
    """Epochs without improvement on the validation part after which training stops."""
    batch_size: int = 32
    """Sequences of one optimizer step."""
    learning_rate: float = 1e-3
    """Of the optimizer, before the schedule."""
    optimizer: str = "adam"
    """adadelta, adagrad, adam, adamax, adamw, nadam, radam, rmsprop or sgd."""
    weight_decay: float = 0.0
    """On matrices only."""
    schedule: str = "constant"
    """constant, cosine, linear, one_cycle, or plateau (which needs validation)."""
    clip_norm: float | None = 1.0
    """Largest Euclidean norm of a gradient."""
    averaging: str = "none"
    """none, ema or swa: whether the network ends with a running average of its weights."""
    seed: int = 0
    """Of initial weights, batches, dropout and the choice of the validation part."""
    device: str = "cpu"
    """cpu, cuda, … or auto; of training, and of what the fitted estimator does."""
    progress: str = "auto"
    """auto, bar, lines or quiet."""

    # ------------------------------------------------------------------------------------------- fit

    def fit(
        self,
        X: Any,
        y: Any,
        lengths: Any = None,
        *,
        validation: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn from N sequences.

        Args:
            X: the sequences.
            y: a target or label for each sequence, or for each step.
            lengths: (N,) how many steps of each row of an array X are real; the rest is never looked at.
            validation: a part that is not learned from: a fraction of the sequences, or (X, y) or
                (X, y, lengths). The network ends with the weights that do best on it.
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.

        Raises:
            InputError: parameters, shapes or values that do not fit; the message names them.
            DivergenceError: training went wrong at too many steps in a row.
        """
        settings = self._checked(validation)
        stored = read_finished(self, out, resume, storage.read, storage.as_config, storage.DECIDED)
        folder = None if out is None else Path(out)
        split = self._read(X, y, lengths, validation)
        parts = {"data": split.part} | ({} if split.checks is None else {"valid": split.checks})
        prints = {name: fingerprint(part) for name, part in parts.items()}
        if folder is not None and stored is not None:
            return same_data.take_over(self, stored, prints, folder)
        first = read_first(settings)
        settings = settings if first is None else settings_with(settings, first)
        asked = plain_parameters(storage.as_config(self))
        with same_data.learning(self, folder, resume, prints, asked) as run:
            self._learn(settings, split, folder, resume, first)
        if run is not None:
            storage.write(self, run)
        return self

    def _checked(self, validation: Any) -> Self:
        """A copy with plain Python numbers, the parameters checked as far as that needs no data."""
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in self.get_params().items()}
        settings = type(self)(**plain)
        check_sizes(type(self).__name__, batch_size=settings.batch_size)
        check_choice(type(self).__name__, "output", settings.output, OUTPUTS)
        if validation is None and (settings.patience is not None or settings.schedule == "plateau"):
            name = "schedule" if settings.patience is None else "patience"
            raise InputError(
                f"{name}={getattr(settings, name)!r} goes by the loss on a validation part, and there is "
                "none; pass fit(…, validation=0.1)"
            )
        settings._training_settings().check_budget(validates=validation is not None)
        return settings

    def _read(self, X: Any, y: Any, lengths: Any, validation: Any) -> Split:
        """The training part and the validation part, neither scaled nor encoded."""
        part = self._part(X, y, lengths, self.output)
        assert part.targets is not None
        if validation is None:
            return Split(part, None, part.targets)
        if not isinstance(validation, tuple | list):
            return split_off(part, validation, self.seed, self._groups(part.targets))
        if len(validation) not in (2, 3):
            raise InputError(f"validation has {len(validation)} entries, expected (X, y) or (X, y, lengths)")
        X, y, lengths = (*validation, None)[:3]
        checks = self._part(X, y, lengths, _output_of(part.targets))
        self._check_width(checks.x, part.x.shape[2])
        self._check_columns(checks.targets, part.targets.columns)
        return Split(part, checks, part.targets)

    def _part(self, X: Any, y: Any, lengths: Any, output: str) -> Part:
        x, counts = sequences_from(X, lengths, dtype=np.float64)
        if not counts.any():
            raise SizeError("X: every sequence is empty; at least one needs a step")
        return Part(x, counts, self._read_values(read_targets(y, counts, x.shape[1], output)))

    def _learn(self, settings: Self, split: Split, folder: Path | None, resume: bool, first: Any) -> None:
        part, checks = split.part, split.checks
        assert part.targets is not None
        self.settings_ = settings
        N, T, D = part.x.shape
        self.columns_, self.output_ = part.targets.columns, _output_of(part.targets)
        self.n_features_in_ = D
        self._learn_targets(part.targets, split.seen)
        real = part.x[np.arange(T) < part.lengths[:, None]]
        inputs = Scaling.fit(real) if settings.scale_inputs else Scaling.none(D)
        if first is not None:
            inputs, rows = inputs_of(self, first), self._take_answers(first)
        # The caller's random numbers stay as they were.
        with kept_randomness(torch.device("cpu")):
            torch.manual_seed(settings.seed)
            model = self._build(settings, D, part.targets)
        if first is not None:
            take_network(model, first, rows)
        self.network_ = Network(model, inputs)
        begun = [] if first is None else notes_on(self, real, part.targets.flat)
        del real
        part, checks = self._prepared(part), None if checks is None else self._prepared(checks)
        sampler = RowSampler(
            N, settings.batch_size, seed=settings.seed, lengths=part.lengths if part.is_ragged else None
        )
        self.history_: History = train(
            model,
            RowSource(sampler, part.batch),
            # The network to begin with may be the best that there is.
            replace(settings._training_settings(), validate_first=first is not None and checks is not None),
            validate=None if checks is None else lambda _: {"loss": self.network_.loss(checks)},
            folder=folder,
            resume=resume,
            device=settings.device,
            progress=settings.progress,
        )
        self.notes_ = [*begun, *self._notes(part), *self.history_.notes]
        held = "training" if checks is None else "validation"
        self.metrics_ = {"part": held, **self._scored(part if checks is None else checks)}

    def _prepared(self, part: Part) -> Part:
        assert part.targets is not None
        return Part(self.network_.prepare(part.x, part.lengths).x, part.lengths, self._encoded(part.targets))

    def _build(self, settings: Self, input_size: int, targets: Targets | None) -> Labeller:
        """The untrained network; `targets`, where known, decide about weights of the loss."""
        options = {name: getattr(settings, name) for name in _DROPOUTS if getattr(settings, name)}
        further = settings.layer_options or {}
        twice = sorted(set(further) & {*_DROPOUTS, "bidirectional"})
        if twice:
            raise InputError(f"layer_options has {twice[0]!r}, which is a parameter of its own; set it there")
        return Labeller(
            input_size,
            self._output_size(),
            per_step=self.output_ == "step",
            pooling=settings.pooling,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            bidirectional=settings.bidirectional,
            **self._objective(settings, targets),
            **options,
            **further,
        )

    def _training_settings(self) -> TrainingSettings:
        given = {name: getattr(self, name) for name in _OF_TRAINING}
        return TrainingSettings(patience_validations=self.patience, **given)

    def _notes(self, part: Part) -> list[str]:
        if (
            self.settings_.output == "auto"
            and self.output_ == "step"
            and self.columns_ is None
            and not part.is_ragged
        ):
            T = part.x.shape[1]
            return [
                f"y (N, {T}) was read as one target for each of the {T} steps; for {T} numbers per "
                "sequence pass output='sequence'"
            ]
        return []

    # -------------------------------------------------------------------------------- what it has learned

    @property
    def baseline_(self) -> dict[str, float]:
        """Scores of the best answer that looks at no input, on the part that `metrics_` is about."""
        scores: dict[str, float] = self._require_fitted("metrics_")["baselines"][self._baselines[0]]
        return scores

    def evaluate(self, X: Any, y: Any, lengths: Any = None) -> dict[str, Any]:
        """Scores of the network, and of constant answers learned from the training targets.

        Returns:
            {"model": {CELL: scores}, "baselines": {NAME: scores}}.
        """
        return self._scored(self._given(X, y, lengths))

    def _scored(self, part: Part) -> dict[str, Any]:
        assert part.targets is not None
        said = self.network_.outputs(part)
        flat = said if part.targets.real is None else said[part.targets.real]
        cell = self.settings_.cell
        name = cell if isinstance(cell, str) else cell.__name__
        return {
            "model": {name: self._scores(part.targets.flat, flat)},
            "baselines": {name: self._baseline_scores(part.targets.flat, name) for name in self._baselines},
        }

    def _given(self, X: Any, y: Any, lengths: Any) -> Part:
        """Sequences with targets of the form that `fit` saw, ready for the network."""
        self._require_fitted("network_")
        part = self._part(X, y, lengths, self.output_)
        self._check_width(part.x, self.n_features_in_)
        self._check_columns(part.targets, self.columns_)
        return self._prepared(part)

    def _said(self, X: Any, lengths: Any) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """What the network says, and the lengths where the answer is to be a list of ragged arrays."""
        network: Network = self._require_fitted("network_")
        x, counts = sequences_from(X, lengths, dtype=np.float64)
        self._check_width(x, self.n_features_in_)
        said = network.outputs(network.prepare(x, counts))
        is_list = isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.dtype.kind == "O")
        has_ends = self.output_ == "step" and (is_list or lengths is not None)
        return said, counts if has_ends else None

    def _check_width(self, x: NDArray[Any], D: int) -> None:
        if x.shape[2] != D:
            raise SizeError(f"X has width {x.shape[2]}, the training data had {D}; pass the same inputs")

    def _check_columns(self, targets: Targets | None, columns: int | None) -> None:
        found = targets.columns if targets is not None else None
        if found != columns:
            raise SizeError(
                f"y has {found or 'no axis of'} columns, the training data had {columns or 'no such axis'}; "
                "pass it in the same form"
            )

    # ---------------------------------------------------------------------------------------- storage

    def save(self, path: str | Path) -> Self:
        """Write a run folder that `ot.load` reads on any machine; nothing in it can run code."""
        self._require_fitted("network_")
        storage.write(self, RunFolder.create(path))
        return self

    @classmethod
    def from_run(cls, run: RunFolder, cells: Sequence[type] = ()) -> Self:
        """The fitted estimator of a verified run folder, on the CPU; `cells` supplies your own cells."""
        return storage.read(cls, run, cells)

    # --------------------------------------------------------------------- what the two kinds differ in

    def _groups(self, targets: Targets) -> NDArray[Any] | None:
        """(N,) what a held-out part should be a fair sample of, or None."""
        return None

    @abstractmethod
    def _read_values(self, targets: Targets) -> Targets:
        """Check y."""

    @abstractmethod
    def _learn_targets(self, targets: Targets, seen: Targets) -> None:
        """Learn what `_encoded` and the baselines need; `seen` has the rows held out for validation too."""

    @abstractmethod
    def _take_answers(self, first: Self) -> list[int]:
        """Take what of the answers of another is gone on with; for each of its own C answers the row of the
        other's output layer, `transfer.OWN` where there is none."""

    def _scaling_of_answers(self) -> Scaling | None:
        """By which the network's answers are numbers, or None."""
        return None

    @abstractmethod
    def _encoded(self, targets: Targets) -> Targets:
        """Targets as the network's loss takes them."""

    @abstractmethod
    def _output_size(self) -> int:
        """C."""

    @abstractmethod
    def _objective(self, settings: Self, targets: Targets | None) -> dict[str, Any]:
        """Arguments of the network about its loss."""

    @abstractmethod
    def _scores(self, actual: NDArray[Any], said: NDArray[np.float32]) -> dict[str, float]:
        """Of what the network said about encoded targets."""

    @abstractmethod
    def _baseline_scores(self, actual: NDArray[Any], name: str) -> dict[str, float]:
        """Of a constant answer to encoded targets."""

    @abstractmethod
    def _answers_to_json(self) -> dict[str, Any]:
        """What `_learn_targets` learned, as plain values."""

    @abstractmethod
    def _answers_from_json(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `_answers_to_json`."""


def _output_of(targets: Targets) -> str:
    return "step" if targets.per_step else "sequence"
