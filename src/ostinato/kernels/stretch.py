"""Which steps of a call are real, where rows are reset, and how the reverse direction meets them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Stretch:
    """Which steps of x (B, T, D) are real, and where rows are reset; shared by all layers of a call."""

    n_steps: int
    mask: Tensor | None = None
    resets: Tensor | None = None
    dt: Tensor | None = None
    is_right_padded: bool = False

    @property
    def is_one_plain_step(self) -> bool:
        """T is 1 and there is nothing to mask or reset."""
        return self.n_steps == 1 and self.mask is None and self.resets is None

    @cached_property
    def lengths(self) -> Tensor | None:
        """(B,) how many steps of each row are real; None where all are."""
        return None if self.mask is None else self.mask.sum(dim=1)

    @cached_property
    def forward_order(self) -> Tensor | None:
        """(B, T): the real steps of each row in front, in order; None where they are there already."""
        if self.mask is None or self.is_right_padded:
            return None
        return torch.argsort(~self.mask, dim=1, stable=True)

    @cached_property
    def reverse_order(self) -> Tensor | None:
        """(B, T): the real steps of each row in front, the last one first; None for a plain flip."""
        if self.mask is None:
            return None
        t = torch.arange(self.n_steps, device=self.mask.device)
        return torch.argsort(torch.where(self.mask, -t, self.n_steps), dim=1, stable=True)

    @property
    def reversed_resets(self) -> Tensor | None:
        """(B, T) as the reverse direction meets them: it resets after step t, so before its next step."""
        return None if self.resets is None else F.pad(self.resets.flip(1), (1, -1))

    def flipped(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """`(mask, resets, dt)` as the reverse direction meets them, (B, T).

        The time between two real steps is the same in both directions, so dt moves to the other one of
        them, and is 0 at the first step of the reverse direction.
        """
        mask = None if self.mask is None else self.mask.flip(1)
        return mask, self.reversed_resets, None if self.dt is None else self._reversed_dt()

    def _reversed_dt(self) -> Tensor:
        assert self.dt is not None
        if self.mask is None:
            return F.pad(self.dt.flip(1), (1, -1))
        order = torch.argsort(~self.mask, dim=1, stable=True)
        compact = self.dt.masked_fill(~self.mask, 0.0).gather(1, order)
        return F.pad(compact[:, 1:], (0, 1)).gather(1, order.argsort(dim=1)).flip(1)
