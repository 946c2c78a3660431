"""Watching for divergence: which steps are bad, and which layer, parameter and gate went first."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch

# Rows of the packed weights, in torch.nn's order.
_GATES = {
    4: {"i": "input", "f": "forget", "g": "cell candidate", "o": "output"},
    3: {"r": "reset", "z": "update", "n": "candidate"},
}
_GATED = re.compile(r"^(weight|bias)_(ih|hh)(_l\d+)?(_reverse)?$")
# Steps before the running mean of the loss is trusted, and its decay.
_SETTLED, _DECAY = 20, 0.98


@dataclass
class Watch:
    """Counts bad steps, and knows what an ordinary loss is.

    A loss explodes when it exceeds `mean + explosion_factor * (|mean| + spread)`, where mean and spread (mean
    absolute deviation) are exponential averages (decay 0.98) over the good steps, of which there are 20 or
    more.
    """

    mean: float = 0.0
    spread: float = 0.0
    good_steps: int = 0
    consecutive: int = 0
    skipped: int = 0
    first_bad: str = ""

    def explodes(self, loss: float, settings: TrainingSettings) -> bool:
        """Whether a finite loss is far outside of what it was."""
        factor = settings.explosion_factor
        if factor is None or self.good_steps < _SETTLED:
            return False
        return loss > self.mean + factor * (abs(self.mean) + self.spread)

    def good(self, loss: float) -> None:
        """Take a good step into the averages."""
        self.consecutive, self.first_bad = 0, ""
        # The first steps are averaged plainly, so that the start does not weigh 1 / (1 - decay) steps.
        keep = min(_DECAY, self.good_steps / (self.good_steps + 1))
        self.spread = keep * self.spread + (1 - keep) * abs(loss - self.mean) if self.good_steps else 0.0
        self.mean = keep * self.mean + (1 - keep) * loss
        self.good_steps += 1

    def bad(self, step: int, reason: str) -> None:
        """Count a skipped step; the first of a series is the one that the final error explains."""
        self.consecutive += 1
        self.skipped += 1
        if not self.first_bad:
            self.first_bad = f"step {step}: {reason}"


def explain_loss(model: nn.Module, batch: Batch, replay: Callable[[], Any]) -> str:
    """Why a loss is not finite: the batch, a weight, or the first layer whose output is not finite.

    Runs the forward pass once more, with a hook on each layer.
    """
    if cause := _bad_batch(batch) or _bad_weight(model):
        return f"loss is not finite; {cause}"
    found: list[tuple[str, nn.Module]] = []
    largest: tuple[float, str, nn.Module] = (-1.0, "", model)

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal largest
            values = [leaf for leaf in _tensors(output) if leaf.is_floating_point() and leaf.numel()]
            if not found and any(_count_bad(value) for value in values):
                found.append((name, module))
            size = max((float(value.abs().max()) for value in values), default=-1.0)
            if size > largest[0]:
                largest = (size, name, module)

        return check

    # A module's hook fires after those of its parts, so the innermost layer is found first.
    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            replay()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        name, module = found[0]
        return f"loss is not finite; the first layer with such an output is {name!r}{_largest_weight(module)}"
    size, name, module = largest
    return (
        f"loss is not finite, although the outputs of all layers are; the largest output, {size:.3g}, is "
        f"that of layer {name!r}{_largest_weight(module)}"
    )


def explain_gradient(model: nn.Module, batches: Sequence[Batch] = ()) -> str:
    """Which gradient went first: that of the last layer, as the backward pass goes from the loss down.

    Args:
        model: with the gradients as they are.
        batches: those of the step, looked at for values that are not finite.
    """
    bad: dict[str, list[tuple[float, bool, str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and (count := _count_bad(parameter.grad)):
            owner, _, own = name.rpartition(".")
            rank = (count / parameter.numel(), not own.startswith("weight_hh"), name, parameter)
            bad.setdefault(owner, []).append(rank)
    if not bad:
        return "gradient norm is not finite, although each gradient is: it overflowed"
    owner, parameters = list(bad.items())[-1]
    # Of one layer's parameters the one with the fewest bad values tells most about where it began.
    _, _, name, parameter = min(parameters, key=lambda rank: rank[:2])
    gradient = parameter.grad if parameter.grad is not None else parameter
    gate = _gate(model.get_submodule(owner), name.rpartition(".")[2], gradient, parameter)
    others = sum(len(group) for group in bad.values()) - 1
    return (
        f"gradient of parameter {name!r}{gate} is not finite "
        f"({_count_bad(gradient)} of {gradient.numel()} values"
        + (f"; so are those of {others} other parameters)" if others else ")")
        + "".join(f"; {cause}" for cause in map(_bad_batch, batches) if cause)
    )


def _bad_batch(batch: Batch) -> str:
    for name, value in batch.items():
        if count := _count_bad(value):
            return f"{count} of {value.numel()} values of the batch's {name!r} are not finite"
    return ""


def _bad_weight(model: nn.Module) -> str:
    for name, parameter in model.named_parameters():
        if count := _count_bad(parameter):
            owner, _, own = name.rpartition(".")
            gate = _gate(model.get_submodule(owner), own, parameter, parameter)
            return f"parameter {name!r}{gate} is not finite ({count} of {parameter.numel()} values)"
    return ""


def _largest_weight(module: nn.Module) -> str:
    own = [(name, p) for name, p in module.named_parameters(recurse=False) if p.numel()]
    if not own:
        return ""
    name, parameter = max(own, key=lambda pair: float(pair[1].detach().abs().max()))
    size = float(parameter.detach().abs().max())
    return f" (largest weight {size:.3g} in {name!r}{_gate(module, name, parameter, parameter)})"


def _gate(owner: nn.Module, name: str, values: Tensor, weight: Tensor) -> str:
    """The gate whose rows of `values` are bad; of several, that with the largest weights."""
    match = _GATED.match(name)
    if match is None:
        return ""
    own = dict(owner.named_parameters(recurse=False))
    suffix = (match[3] or "") + (match[4] or "")
    projection, recurrent = own.get(f"weight_hr{suffix}"), own.get(f"weight_hh{suffix}")
    if recurrent is None:
        return ""
    H = recurrent.shape[1] if projection is None else projection.shape[1]
    gates = _GATES.get(values.shape[0] // H if H else 0)
    if gates is None or values.shape[0] % H:
        return ""
    bad = [_count_bad(rows) for rows in values.split(H)]
    sizes = [float(rows.detach().nan_to_num(math.inf).abs().max()) for rows in weight.split(H)]
    first = max(range(len(bad)), key=lambda gate: (bad[gate], sizes[gate]))
    letter = list(gates)[first]
    return f", gate {letter} ({gates[letter]})"


def _count_bad(value: Tensor) -> int:
    return int((~torch.isfinite(value.detach())).sum()) if value.is_floating_point() else 0


def _tensors(output: Any) -> list[Tensor]:
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
