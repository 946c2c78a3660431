"""The loss of models that say one class for each example."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.dropout import check_probability
from ostinato.types import LossOutput


class ClassLoss(nn.Module):
    """Cross entropy summed over examples, with factors for classes and smoothed targets.

    Args:
        where: begins error messages.
        output_size: K.
        class_weights: (K,) or None.
        label_smoothing: from 0 to below 1.

    Raises:
        InputError: a number of factors other than K, or a share that is none.
    """

    class_weights: Tensor | None

    def __init__(
        self, where: str, output_size: int, class_weights: Sequence[float] | None, label_smoothing: float
    ):
        super().__init__()
        if class_weights is not None and len(class_weights) != output_size:
            raise InputError(f"{where}: {len(class_weights)} class_weights for output_size={output_size}")
        self.where = where
        self.label_smoothing = check_probability(f"{where}: label_smoothing", label_smoothing)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        # Of use in training only; a stored network answers the same without them.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, y: Tensor) -> LossOutput:
        """Of logits (B, K) and class numbers (B,)."""
        if y.shape != logits.shape[:1]:
            raise InputError(
                f"{self.where}.loss: y has shape {tuple(y.shape)}, expected one class number for each of "
                f"{len(logits)} examples"
            )
        each = F.cross_entropy(
            logits, y, self.class_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return LossOutput(each.sum(), torch.tensor(each.numel()))
