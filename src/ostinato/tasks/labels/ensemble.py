"""Several networks that answer together, each trained without another part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.tasks.labels.inputs import Labelled
from ostinato.types import Batch, LossOutput


class Ensemble(nn.Module):
    """M networks whose probabilities are averaged.

    Trained at once, on the same batches; where these say the `fold` of each row, member m looks away from the
    rows of fold m. What it says about those is what a network says about data it has not seen, so that nearly
    all examples serve both learning and validation (bagging by folds). Their gradients never meet.

    Args:
        members: networks with `forward(batch) -> logits (B, K)` and `loss`.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of each member, (M, B, K)."""
        return torch.stack([member(batch) for member in self.members])

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy of the classes `y` (B,), summed over members and the rows that each learns from;
        without `fold` the sum of the members' own losses."""
        fold = batch.get("fold")
        if fold is None:
            said = [member.loss(batch) for member in self.members]  # type: ignore[operator]
            total = torch.stack([one.total for one in said]).sum()
            return LossOutput(total, torch.stack([torch.as_tensor(one.count) for one in said]).sum())
        logits = self(batch)
        M, B = logits.shape[:2]
        each = F.cross_entropy(logits.flatten(0, 1), batch.y.repeat(M), reduction="none").view(M, B)
        learns = fold.unsqueeze(0) != torch.arange(M, device=fold.device).unsqueeze(1)
        return LossOutput(each.masked_fill(~learns, 0.0).sum(), learns.sum())


def chunks(order: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of similar length, in their order, few enough at a time for the memory."""
    result, first = [], 0
    while first < len(order):
        longest = max(int(lengths[order[min(first + 255, len(order) - 1)]]), 1)
        size = int(np.clip((1 << 16) // longest, 1, 256))
        result.append(order[first : first + size])
        first += size
    return result


@torch.no_grad()
def held_out_probabilities(
    network: Ensemble, encoded: Labelled, shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, K), not calibrated: the mean over the members; of folded examples what that member says which has
    not learned from them; of empty ones the `shares` (K,) of the classes."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    result = np.empty((len(encoded), len(shares)))
    lengths = encoded.lengths
    order = np.argsort(lengths, kind="stable")
    for rows in chunks(order, lengths):
        batch = encoded.whole_batch(rows).to(device)
        each = torch.softmax(network(batch).double(), dim=2).cpu().numpy()
        if encoded.folds is None:
            result[rows] = each.mean(axis=0)
        else:
            result[rows] = each[encoded.folds[rows], np.arange(len(rows))]
    result[lengths == 0] = shares
    network.train(was_training)
    return result
