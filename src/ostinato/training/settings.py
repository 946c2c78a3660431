"""Every option of the training loop, with its only default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ostinato.errors import InputError

AVERAGING = ("none", "ema", "swa")
MODES = ("min", "max")
PRECISIONS = ("full", "bf16")


@dataclass(frozen=True)
class TrainingSettings:
    """What `train` is told besides the model and the data.

    Units are in the names: `_s` is seconds, `_steps` optimizer steps (in `tbptt_*`: time steps), `_epochs`
    passes over the source, `_validations` calls of `validate`. None switches a limit or an interval off.

    Raises:
        InputError: a value out of range, or an unknown name, with the known ones.
    """

    epochs: int | None = None
    """Budget in passes over the source. The first budget that is used up ends the run."""
    steps: int | None = None
    """Budget in optimizer steps."""
    max_time_s: float | None = None
    """Budget in seconds of wall time for the whole call, validations and checkpoints included. Resuming
    goes on with what was left."""

    optimizer: str = "adam"
    """adadelta, adagrad, adam, adamax, adamw, nadam, radam, rmsprop or sgd."""
    learning_rate: float = 1e-3
    """The rate that the schedule multiplies."""
    weight_decay: float = 0.0
    """Applies to matrices only: never to biases, norms (one axis) or learned initial states."""
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the torch optimizer, such as `{"momentum": 0.9}` or `{"betas": (0.9, 0.98)}`."""
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Parameter-name prefix → factor on the rate; the longest prefix wins; factor 0 freezes."""

    schedule: str = "constant"
    """constant, cosine, linear, step, one_cycle or plateau."""
    warmup_steps: int = 0
    """The rate grows linearly from 0 to its full value during these steps."""
    schedule_steps: int | None = None
    """Length of cosine, linear and one_cycle in steps; None: the budget."""
    schedule_epochs: int | None = None
    """The same in epochs."""
    final_factor: float = 0.0
    """Where cosine and linear end, as a fraction of the rate."""
    decay_factor: float = 0.1
    """step and plateau multiply the rate by this."""
    decay_every_steps: int | None = None
    """Interval of the schedule step, in steps."""
    decay_every_epochs: int | None = None
    """Interval of the schedule step, in epochs."""
    plateau_validations: int = 3
    """The schedule plateau multiplies after this many validations in a row without improvement."""

    accumulate: int = 1
    """Batches (or stretches of truncated BPTT) that make one optimizer step."""
    clip_norm: float | None = 1.0
    """Scale the gradient down to this Euclidean norm."""
    clip_value: float | None = None
    """Then clamp each of its elements to ± this."""
    averaging: str = "none"
    """ema: exponential moving average of the weights; swa: their plain mean (averaged SGD). Validation and
    the finished model use the averaged weights."""
    averaging_decay: float = 0.999
    """Decay of ema per step; the first steps use the smaller (1 + n) / (10 + n)."""
    averaging_start_steps: int = 0
    """Averaging begins after this many steps; until then the average is the weights themselves."""

    validate_first: bool = False
    """Validate the untrained model too; it then takes part in the choice of the best weights."""
    validate_every_epochs: int | None = 1
    """Interval of validations in epochs."""
    validate_every_steps: int | None = None
    """Interval of validations in steps; both intervals may be set."""
    monitor: str = "loss"
    """The metric of `validate` that decides about the best weights, early stopping and plateau."""
    mode: str = "min"
    """min or max: which direction of `monitor` is better."""
    patience_validations: int | None = None
    """Stop after this many validations in a row without improvement."""
    min_delta: float = 0.0
    """An improvement smaller than this does not reset the patience (it still gives the best weights)."""
    restore_best: bool = True
    """End with the best weights by `monitor`; False: with the last ones."""

    tbptt_steps: int | None = None
    """k1: cut every batch along time into stretches of this many time steps; each is one backward pass."""
    tbptt_backward_steps: int | None = None
    """k2: how far back in time the gradient reaches; None: k1. Beyond k1 it must be a multiple of k1 and the
    earlier stretches are run again (cost k2 / k1); below k1 only a stretch's last k2 steps are trained."""
    carry_state: bool = False
    """The state after one batch is, detached, the first state of the next: the source yields consecutive
    chunks of the same streams. Starts afresh at each epoch."""

    precision: str = "full"
    """full: the weights' own dtype; bf16: autocast to bfloat16, weights and gradients stay as they are."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms on accelerators (slower); the CPU needs no asking."""
    seed: int = 0
    """Seeds Python, NumPy and torch for the run; the caller's random states are put back afterwards."""

    log_every_steps: int = 50
    """Interval of the rows of history.csv; a validation adds a row as well."""
    checkpoint_every_steps: int | None = None
    """Interval of checkpoints in steps."""
    checkpoint_every_epochs: int | None = None
    """Interval of checkpoints in epochs."""
    checkpoint_every_s: float | None = 30.0
    """Interval of checkpoints in seconds. The end of a run always writes one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""

    max_bad_steps: int = 10
    """How many steps in a row may be skipped (loss or gradient not finite, or exploded); one more ends it."""
    explosion_factor: float | None = 1000.0
    """A loss more than this many times |mean| + spread above the running mean counts as exploded."""

    def __post_init__(self) -> None:
        for name, known in (("averaging", AVERAGING), ("mode", MODES), ("precision", PRECISIONS)):
            require_known(f"TrainingSettings.{name}", getattr(self, name), known)
        for names, is_right, expected in _RANGES:
            for name in names:
                value = getattr(self, name)
                if not is_right(value) and not (value is None and name in _MAY_BE_NONE):
                    raise InputError(f"TrainingSettings.{name} must be {expected}, got {value!r}")
        self._check_truncation()

    def _check_truncation(self) -> None:
        k1, k2 = self.tbptt_steps, self.tbptt_backward_steps
        if k2 is None:
            return
        if k1 is None:
            raise InputError(
                f"TrainingSettings.tbptt_backward_steps={k2} needs tbptt_steps (k1), which is None; set it "
                "too"
            )
        if k2 > k1 and k2 % k1:
            raise InputError(
                f"TrainingSettings.tbptt_backward_steps={k2} is beyond tbptt_steps={k1} and not a multiple "
                "of it; "
                f"take {k2 // k1 * k1} or {(k2 // k1 + 1) * k1}"
            )

    def check_budget(self, *, validates: bool) -> None:
        """Whether a run can end, and has the validations that its settings rely on.

        Raises:
            InputError: which setting is missing, or needs validations that there are not.
        """
        if all(v is None for v in (self.epochs, self.steps, self.max_time_s, self.patience_validations)):
            raise InputError(
                "TrainingSettings has no end: set at least one of epochs, steps, max_time_s, "
                "patience_validations"
            )
        needs = ["patience_validations"] if self.patience_validations is not None else []
        needs += ["schedule='plateau'"] if self.schedule == "plateau" else []
        if needs and not (self.validate_every_epochs or self.validate_every_steps):
            raise InputError(
                f"TrainingSettings.{needs[0]} needs validations: set validate_every_epochs or "
                "validate_every_steps"
            )
        needs += ["validate_first"] if self.validate_first else []
        if needs and not validates:
            raise InputError(f"TrainingSettings.{needs[0]} needs the argument validate, which is None")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Settings from a table of names and values, such as a section of a configuration file.

        Raises:
            InputError: a name that is not a setting, with the known ones.
        """
        known = [setting.name for setting in fields(cls)]
        for name in values:
            require_known("training setting", name, known)
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values by name: the inverse of `from_mapping`; tuples become lists, as in JSON."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def require_known(what: str, name: str, known: Any) -> None:
    """Raise InputError unless `name` is one of `known`; the message lists them and proposes the nearest."""
    if name in known:
        return
    from difflib import get_close_matches

    near = get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{what} {name!r} is not known; known: {', '.join(known)}{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


_FROM_ZERO = ("warmup_steps", "averaging_start_steps", "max_bad_steps")
_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        tuple(
            setting.name
            for setting in fields(TrainingSettings)
            if str(setting.type).startswith("int") and setting.name not in (*_FROM_ZERO, "seed")
        ),
        lambda value: _is_whole(value) and value >= 1,
        "a whole number ≥ 1",
    ),
    (
        _FROM_ZERO,
        lambda value: _is_whole(value) and value >= 0,
        "a whole number ≥ 0",
    ),
    (("seed",), lambda value: _is_whole(value) and 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1"),
    (
        ("learning_rate", "clip_norm", "clip_value", "max_time_s", "explosion_factor"),
        lambda value: _is_number(value) and value > 0,
        "a number > 0",
    ),
    (
        ("weight_decay", "min_delta", "checkpoint_every_s"),
        lambda value: _is_number(value) and value >= 0,
        "a number ≥ 0",
    ),
    (
        ("final_factor", "decay_factor", "averaging_decay"),
        lambda value: _is_number(value) and 0 <= value <= 1,
        "a number from 0 to 1",
    ),
)
_MAY_BE_NONE = frozenset(setting.name for setting in fields(TrainingSettings) if "None" in str(setting.type))
