"""A class for a row of letters, such as DNA: letters and places to vectors, then as for arrays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.models.array_classifier import ArrayClassifier
from ostinato.types import Batch, LossOutput


class LetterClassifier(nn.Module):
    """Rows of letters to classes.

    A letter becomes the sum of its vector and that of its place; recurrent layers and poolings follow as in
    `ArrayClassifier`. Places are of use where all rows are windows around a site; elsewhere they are left
    out. The unknown letter is the mean of all.

    Args:
        letters: V, different letters; number V is the unknown one.
        output_size: K classes.
        places: how many places have a vector, 0 for none.
        stride: letters that become one step, their vectors side by side; the last step is filled up with
            zeros.
        embedding_size: width of the vectors.
        cell, hidden_size, num_layers, bidirectional, pooling, dropout: as in `ArrayClassifier`.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1.
    """

    def __init__(
        self,
        letters: int,
        output_size: int,
        *,
        places: int = 0,
        stride: int = 1,
        embedding_size: int = 32,
        cell: str | type[Cell] = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        pooling: str = "mix",
        dropout: float = 0.3,
    ):
        super().__init__()
        check_sizes("LetterClassifier", letters=letters, embedding_size=embedding_size, stride=stride)
        self.letters, self.stride = letters, stride
        self.embedding = nn.Parameter(torch.randn(letters, embedding_size))
        self.places = nn.Parameter(torch.randn(places, embedding_size) * 0.1) if places else None
        self.dropout = nn.Dropout(dropout)
        self.body = ArrayClassifier(
            stride * embedding_size, output_size, cell=cell, hidden_size=hidden_size, num_layers=num_layers,
            pooling=pooling, dropout=dropout, noise=0.0,
        )  # fmt: skip

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K) of a batch with `letters` (B, T) and, where rows differ, `lengths` (B,)."""
        table = torch.cat([self.embedding, self.embedding.mean(0, keepdim=True)])
        x = F.embedding(batch["letters"], table)
        if self.places is not None:
            T = x.shape[1]
            x = x + F.pad(self.places[:T], (0, 0, 0, max(T - len(self.places), 0)))
        lengths = batch.get("lengths")
        if self.stride > 1:
            if lengths is not None:
                steps = torch.arange(x.shape[1], device=x.device)
                x = x * (steps < lengths.unsqueeze(1)).unsqueeze(2)
                lengths = (lengths + self.stride - 1) // self.stride
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stride)).unflatten(1, (-1, self.stride)).flatten(2)
        named = {"x": self.dropout(x)}
        if lengths is not None:
            named["lengths"] = lengths
        logits: Tensor = self.body(Batch(named))
        return logits

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy of the classes `y` (B,), summed."""
        logits = self(batch)
        return LossOutput(F.cross_entropy(logits, batch.y, reduction="sum"), torch.tensor(len(logits)))
