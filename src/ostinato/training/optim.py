"""Optimizers by name, parameter groups, and learning-rate schedules as pure functions of progress."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.training.settings import TrainingSettings, require_known

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# One pass over memory per parameter instead of one per elementary operation; also on CPU.
_FUSED = ("adagrad", "adam", "adamw", "sgd")
_FUSED_DEVICES = ("cpu", "cuda")
_SET_ELSEWHERE = ("params", "lr", "weight_decay", "fused", "foreach", "differentiable", "capturable")


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer that `settings` names, over the trainable parameters of `model`.

    Each parameter group carries `base_lr`, which the schedule multiplies.

    Raises:
        InputError: an unknown optimizer or option, a prefix that no parameter has, or nothing to train.
    """
    name = settings.optimizer
    require_known("optimizer", name, sorted(OPTIMIZERS))
    kind = OPTIMIZERS[name]
    known = [option for option in inspect.signature(kind).parameters if option not in _SET_ELSEWHERE]
    for option in settings.optimizer_options:
        require_known(f"option of optimizer {name!r}", option, known)
    groups = parameter_groups(model, settings)
    parameters = [parameter for group in groups for parameter in group["params"]]
    options = dict(settings.optimizer_options)
    if (
        name in _FUSED
        and not options.get("maximize", False)
        and all(p.is_floating_point() and p.device.type in _FUSED_DEVICES for p in parameters)
    ):
        options["fused"] = True
    try:
        return kind(groups, lr=settings.learning_rate, **options)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"optimizer {name!r} refused its options {dict(settings.optimizer_options)}: {error}"
        ) from error


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Groups by (weight decay, rate): decay on matrices only, a rate factor per name prefix.

    A parameter decays when it has two axes or more and is neither a bias nor a learned initial state.
    A factor of 0 freezes: those parameters stay out of the optimizer.
    """
    factors = settings.learning_rate_factors
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for prefix, factor in factors.items():
        if not isinstance(factor, (int, float)) or not factor >= 0 or math.isinf(factor):
            raise InputError(
                f"TrainingSettings.learning_rate_factors[{prefix!r}] must be a number ≥ 0, got {factor!r}"
            )
        if not any(_has_prefix(name, prefix) for name, _ in named):
            raise InputError(
                f"TrainingSettings.learning_rate_factors: no trainable parameter begins with {prefix!r}; "
                f"the model has: {', '.join(name for name, _ in named)}"
            )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        matching = [prefix for prefix in factors if _has_prefix(name, prefix)]
        factor = factors[max(matching, key=len)] if matching else 1.0
        if factor == 0.0:
            continue
        last = name.rpartition(".")[2]
        decays = parameter.ndim >= 2 and not last.startswith(("bias", "initial"))
        decay, rate = settings.weight_decay if decays else 0.0, settings.learning_rate * factor
        group = groups.setdefault(
            (decay, rate), {"params": [], "weight_decay": decay, "lr": rate, "base_lr": rate}
        )
        group["params"].append(parameter)
    if not groups:
        raise InputError(
            f"{type(model).__name__} has no parameter to train: none requires a gradient, "
            "or learning_rate_factors freezes them all"
        )
    return list(groups.values())


def _has_prefix(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix if prefix.endswith(".") or not prefix else prefix + ".")


def _constant(progress: float, settings: TrainingSettings) -> float:
    return 1.0


def _cosine(progress: float, settings: TrainingSettings) -> float:
    return settings.final_factor + (1 - settings.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float, settings: TrainingSettings) -> float:
    return 1.0 + (settings.final_factor - 1.0) * progress


def _one_cycle(progress: float, settings: TrainingSettings) -> float:
    # Smith and Topin, arXiv:1708.07120: up from 1/25 during 30 %, then down to 1/25e4, both along a cosine.
    start, end, top = 1 / 25, 1 / 25e4, 0.3
    if progress < top:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * progress / top))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (progress - top) / (1 - top)))


# Shapes over progress in 0..1; "step" and "plateau" count intervals and validations instead.
_SHAPES: dict[str, Callable[[float, TrainingSettings], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "one_cycle": _one_cycle,
}
SCHEDULES = (*_SHAPES, "step", "plateau")


class Schedule:
    """The factor on the learning rate before each step.

    All but plateau are functions of the position alone, so that nothing has to be stored; plateau stores
    the number of decays (`decays`) in the checkpoint.
    """

    def __init__(self, settings: TrainingSettings):
        require_known("schedule", settings.schedule, SCHEDULES)
        self.settings, self.decays = settings, 0
        s = settings
        if s.schedule == "step" and s.decay_every_steps is None and s.decay_every_epochs is None:
            raise InputError("schedule 'step' needs decay_every_steps or decay_every_epochs")
        needs_length = s.schedule in ("cosine", "linear", "one_cycle")
        lengths = (s.schedule_steps, s.schedule_epochs, s.steps, s.epochs, s.max_time_s)
        if needs_length and all(length is None for length in lengths):
            raise InputError(
                f"schedule {s.schedule!r} needs its length: set schedule_steps or schedule_epochs, or a "
                "budget "
                "(steps, epochs or max_time_s)"
            )
        self._is_constant = s.schedule == "constant" and s.warmup_steps == 0

    def factor(self, step: int, epoch: float, elapsed_s: float) -> float:
        """The factor for the step that follows `step` finished ones, `epoch` (with fraction) into the run."""
        if self._is_constant:
            return 1.0
        s = self.settings
        warmup = min(1.0, (step + 1) / (s.warmup_steps + 1))
        if s.schedule == "plateau":
            return warmup * s.decay_factor**self.decays
        if s.schedule == "step":
            decays = step // s.decay_every_steps if s.decay_every_steps else 0
            decays += int(epoch) // s.decay_every_epochs if s.decay_every_epochs else 0
            return warmup * s.decay_factor**decays
        return warmup * _SHAPES[s.schedule](self.progress(step, epoch, elapsed_s), s)

    def progress(self, step: int, epoch: float, elapsed_s: float) -> float:
        """How much of the schedule is done, 0..1; by time only where neither steps nor epochs bound it."""
        s = self.settings
        steps, epochs = s.schedule_steps, s.schedule_epochs
        if steps is None and epochs is None:
            steps, epochs = s.steps, s.epochs
        done = [step / steps] if steps else []
        done += [epoch / epochs] if epochs else []
        if not done and s.max_time_s:
            done = [elapsed_s / s.max_time_s]
        return min(1.0, max(done, default=0.0))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times `factor`; returns the rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


class AveragedWeights:
    """A running average of the trainable parameters: `ema`, or `swa` (their mean: Polyak and Juditsky 1992;
    arXiv:1803.05407).

    Cost: one pass over the parameters per step and a second copy in memory. Buffers are not averaged.
    """

    def __init__(self, parameters: Iterable[Tensor], settings: TrainingSettings):
        self.parameters = list(parameters)
        self.settings = settings
        self.count = 0
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimizer step `step` (counted from 1) into the average."""
        current = [parameter.detach() for parameter in self.parameters]
        if step <= self.settings.averaging_start_steps:
            torch._foreach_copy_(self.average, current)
            return
        self.count += 1
        if self.settings.averaging == "swa":
            weight = 1.0 / self.count
        else:
            weight = 1.0 - min(self.settings.averaging_decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.average, current, weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average, in place; twice changes nothing, bitwise."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        torch._foreach_copy_([parameter.detach() for parameter in self.parameters], self.average)
        torch._foreach_copy_(self.average, current)
