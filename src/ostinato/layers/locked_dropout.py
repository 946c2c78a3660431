"""Dropout that stays the same through time, and dropout of whole words: the masks of language models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.kernels.masks import Places, Rate
from ostinato.layers.dropout import MaskKey, check_probability

_LOCKED, _WORDS = 1 << 20, 1 << 21  # beyond the streams of the layers' own masks


class LockedDropout(nn.Module):
    """Variational dropout (arXiv:1512.05287): one mask for all time steps of a row in an optimizer step.

    Args:
        probability: of dropping a unit; 0 changes nothing.
        number: of this mask among those of a network, so that no two are the same.

    Raises:
        InputError: not a probability.
    """

    def __init__(self, probability: float, number: int = 0):
        super().__init__()
        self.probability = check_probability("LockedDropout", probability)
        self.number, self.mask_key = number, MaskKey()

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """x (B, T, D) with units dropped; the masks depend on the ids `rows` (B,), 0 … B-1 by default."""
        if not self.training or not self.probability:
            return x
        B, _, D = x.shape
        row = torch.arange(B, device=x.device) if rows is None else rows
        always = torch.full_like(row, -1).unsqueeze(1)
        places = Places(self.mask_key.draw(B, x.device), row, always, torch.zeros_like(always))
        return x * places.factors(Rate(_LOCKED + self.number, D, self.probability), torch.float32).to(x.dtype)


class WordDropout(nn.Module):
    """Embedding dropout (arXiv:1512.05287, arXiv:1708.02182): a dropped word is dropped wherever it occurs.

    Args:
        probability: of dropping a word; 0 changes nothing.

    Raises:
        InputError: not a probability.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = check_probability("WordDropout", probability)
        self.mask_key = MaskKey()

    def forward(self, x: Tensor, ids: Tensor, vocabulary_size: int) -> Tensor:
        """x (*, D), the vectors of ids (*), with those of dropped words zero and the others scaled."""
        if not self.training or not self.probability:
            return x
        zero = torch.zeros(1, dtype=torch.int64, device=x.device)
        places = Places(self.mask_key.draw(1, x.device), zero, zero.unsqueeze(1) - 1, zero.unsqueeze(1))
        factors = places.factors(Rate(_WORDS, vocabulary_size, self.probability), torch.float32)
        return x * factors.view(-1)[ids].unsqueeze(-1).to(x.dtype)
