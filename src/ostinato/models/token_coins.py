"""A coin for each token: which are hidden, or replaced by what a model says itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.layers.dropout import Clock, Kind, MaskKey, check_probability

# From this number down, beyond the layers of any stack, whose masks are drawn under the same key.
_LAST_LAYER = 4094


class TokenCoins(nn.Module):
    """A throw of a coin for each token of ids (B, T), a function of (seed, optimizer step) and its place.

    Args:
        name: begins the error message.
        probability: of True, in training; in evaluation all are False.
        number: of this coin among those of a network, 0 … 99, so that no two are the same.
        ramp_steps: optimizer steps over which the probability rises from 0 to `probability`. Without a
            training loop, which says the step, it is `probability` at once.

    Raises:
        InputError: a probability that is none.
    """

    def __init__(self, name: str, probability: float, number: int, *, ramp_steps: int = 0):
        super().__init__()
        self.probability = check_probability(name, probability)
        self.number, self.ramp_steps = number, ramp_steps
        self.mask_key = _SteppedKey()

    def extra_repr(self) -> str:
        """The probability, and how it rises."""
        return f"{self.probability}, ramp_steps={self.ramp_steps}"

    @property
    def now(self) -> float:
        """The probability at the present optimizer step; 0 in evaluation."""
        if not self.training:
            return 0.0
        step = self.mask_key.step
        share = 1.0 if step is None or not self.ramp_steps else min(1.0, step / self.ramp_steps)
        return self.probability * share

    def forward(self, ids: Tensor) -> Tensor | None:
        """(B, T) bool; None where all are False."""
        probability = self.now
        if not probability:
            return None
        B, T = ids.shape
        rows, steps = torch.arange(B, device=ids.device), torch.arange(T, device=ids.device)
        key = self.mask_key.draw(B, ids.device)
        clock = Clock(key, rows, steps.expand(B, T), rows.new_zeros(B, 1))
        layer = _LAST_LAYER - self.number
        return ~clock.keep(Kind.INPUT, layer, 0, 1, probability, is_variational=False).view(B, T)


class _SteppedKey(MaskKey):
    """A mask key that knows the optimizer step."""

    step: int | None = None

    def set_mask_key(self, seed: int, step: int) -> None:
        super().set_mask_key(seed, step)
        self.step = step

    def reset(self) -> None:
        super().reset()
        self.step = None
