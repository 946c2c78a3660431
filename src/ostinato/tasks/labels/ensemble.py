"""Several networks that answer together, each trained without another part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.types import Batch, LossOutput


class Ensemble(nn.Module):
    """M networks whose probabilities are averaged.

    Trained at once, on the same batches: member m looks away from the rows of `fold` m. What it says about
    those is what a network says about data it has not seen, so that nearly all examples serve both learning
    and validation (bagging by folds). Their gradients never meet.

    Args:
        members: networks with `forward(batch) -> logits (B, K)`.
        smoothing: share of the target that goes to all classes alike.
    """

    def __init__(self, members: Sequence[nn.Module], *, smoothing: float = 0.0):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> Tensor:
        """Logits of each member, (M, B, K)."""
        return torch.stack([member(batch) for member in self.members])

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy of the classes `y` (B,), summed over members and the rows that each learns from."""
        y, fold = batch.y, batch.get("fold")
        logits = self(batch)
        M, B = logits.shape[:2]
        each = F.cross_entropy(
            logits.flatten(0, 1), y.repeat(M), reduction="none", label_smoothing=self.smoothing
        ).view(M, B)
        if fold is None:
            return LossOutput(each.sum(), torch.tensor(M * B))
        learns = fold.unsqueeze(0) != torch.arange(M, device=fold.device).unsqueeze(1)
        return LossOutput(each.masked_fill(~learns, 0.0).sum(), learns.sum())
