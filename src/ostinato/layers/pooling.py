"""From the steps of a sequence to one vector: the choices that models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.attention import AttentionPooling
from ostinato.layers.options import check_choice
from ostinato.types import POOLINGS, Output

# Kind -> its parts, which stand side by side.
KINDS: dict[str, tuple[str, ...]] = {
    **{kind: (kind,) for kind in POOLINGS},
    "attention": ("attention",),
    "max_mean": ("max", "mean"),
    "mix": ("last", "max", "mean", "attention"),
}


class SequencePooling(nn.Module):
    """One vector for what a recurrent layer said about a sequence, over its real steps.

    `last` (forward at the last step, backward at the first), `max`, `mean`, `sum`, `attention`
    (`AttentionPooling`), or several side by side: `max_mean`, and `mix` of last, max, mean and attention.
    A sequence without steps gives zeros.

    Args:
        kind: a name in `KINDS`.
        input_size: D, width of one step.
        heads: of attention.

    Attributes:
        output_size: width of the vector.

    Raises:
        InputError: an unknown kind; several heads for a kind without attention.

    Cost: one pass over (B, T, D) for each part, and that of attention.
    """

    def __init__(self, kind: str, input_size: int, *, heads: int = 1):
        super().__init__()
        check_choice("SequencePooling", "pooling", kind, KINDS)
        self.parts = KINDS[kind]
        if heads != 1 and "attention" not in self.parts:
            raise InputError(f"SequencePooling: heads={heads} acts on attention, and pooling is {kind!r}")
        self.attention = AttentionPooling(input_size, heads=heads) if "attention" in self.parts else None
        widths = [heads if part == "attention" else 1 for part in self.parts]
        self.output_size = sum(widths) * input_size

    def forward(self, output: Output) -> Tensor:
        """(B, output_size)."""
        return self.attend(output)[0]

    def attend(self, output: Output) -> tuple[Tensor, Tensor | None]:
        """`forward`, and the weights of attention (B, heads, T), None for a kind that has none."""
        vectors: list[Tensor] = []
        weights: Tensor | None = None
        for part in self.parts:
            if part == "attention":
                assert self.attention is not None
                vector, weights = self.attention.attend(output.y, mask=output.mask)
            else:
                vector = output.pooled(part)
            vectors.append(vector)
        return (vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)), weights
