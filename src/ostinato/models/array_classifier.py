"""A class for a whole sequence of numbers: recurrent layers, several poolings side by side, a dense layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.layers.pooling import SequencePooling
from ostinato.models.encoder import build_encoder
from ostinato.types import Batch, LossOutput


class ArrayClassifier(nn.Module):
    """Sequences of numbers to classes.

    In training, noise is added to the inputs and a part of what the poolings say is dropped: the sets that
    such networks learn from are small.

    Args:
        input_size: D, numbers of one step, each of about mean 0 and variance 1.
        output_size: K classes.
        cell: a name in `encoder.CELLS`, or a `Cell` class built by (input_size, hidden_size).
        hidden_size: H of each direction.
        num_layers: L.
        bidirectional: also read from the end to the start.
        pooling: what represents a sequence, a kind of `SequencePooling`.
        dropout: share of the pooled numbers, and of those between layers, that is dropped in training.
        noise: standard deviation of the noise on the inputs in training.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; a dropout outside [0, 1).

    Cost: that of the recurrent layers, and one pass over their outputs for each part of the pooling.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        cell: str | type[Cell] = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = True,
        pooling: str = "mix",
        dropout: float = 0.2,
        noise: float = 0.1,
    ):
        super().__init__()
        check_sizes("ArrayClassifier", output_size=output_size)
        if not 0 <= dropout < 1:
            raise InputError(f"ArrayClassifier: dropout must be from 0 to below 1, got {dropout}")
        self.noise = noise
        options: dict[str, Any] = {"dropout_between": dropout} if num_layers > 1 and dropout else {}
        self.encoder = build_encoder(
            cell, input_size, hidden_size, num_layers, bidirectional=bidirectional, **options
        )
        self.pool = SequencePooling(pooling, self.encoder.output_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.pool.output_size, output_size)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch with `x` (B, T, D) and, where sequences differ, `lengths` (B,)."""
        x = batch.x
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        output = self.encoder(x, lengths=batch.get("lengths"))
        logits: Tensor = self.head(self.dropout(self.pool(output)))
        return logits

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy of the classes `y` (B,), summed."""
        logits = self(batch)
        return LossOutput(F.cross_entropy(logits, batch.y, reduction="sum"), torch.tensor(len(logits)))
