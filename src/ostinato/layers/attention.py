"""Attention pooling: a weighted mean of the steps of a sequence, whose weights a learned vector decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.layers.arguments import check_input, check_sizes, make_stretch


class AttentionPooling(nn.Module):
    """What a sequence says as a whole: the mean of its steps, weighted by additive attention.

        u_t = tanh(W x_t + b)
        a_t = softmax over the real steps of (u_t · c)
        s   = sum_t a_t x_t

    c is the context vector, a learned question to every step: hierarchical attention networks (Yang et al.
    2016, N16-1174), eq. 5-7. With several heads each has its own c and the answers stand side by side
    (arXiv:1703.03130). Weights say where the network looked, not why it decided.

    Cost per step and sequence: 2·A·(D + heads) + 2·D·heads flops, A being the attention size.

    Args:
        input_size: D, width of one step.
        attention_size: A, width of u; None: D.
        heads: how many context vectors.

    Attributes:
        output_size: heads·D.

    Raises:
        InputError: a size below 1.
        SizeError: an input whose last axis is not D, or lengths and masks that do not fit.
    """

    def __init__(self, input_size: int, *, attention_size: int | None = None, heads: int = 1):
        super().__init__()
        attention_size = input_size if attention_size is None else attention_size
        check_sizes("AttentionPooling", input_size=input_size, attention_size=attention_size, heads=heads)
        self.input_size, self.heads = input_size, heads
        self.output_size = heads * input_size
        self.project = nn.Linear(input_size, attention_size)
        # As wide apart as leaves a first attention nearly even, yet passes a gradient to `project`.
        self.context = nn.Parameter(torch.randn(heads, attention_size) / attention_size**0.5)

    def forward(
        self, x: Tensor, *, lengths: Tensor | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, heads·D); zeros for a sequence without steps.

        Args:
            x: what stands at steps that are not real, NaN included, has no influence at all.
            lengths: (B,) how many steps of each row are real, from the first on; None: all.
            mask: (B, T) True at real steps, anywhere; not together with `lengths`.
        """
        return self.attend(x, lengths=lengths, mask=mask)[0]

    def attend(
        self, x: Tensor, *, lengths: Tensor | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the weights (B, heads, T) beside it.

        The weights of a head sum to 1 and are exactly 0 at steps that are not real; a sequence without steps
        has zeros only.
        """
        x = check_input("AttentionPooling", x, self.input_size, 3, self.context)
        real = make_stretch(
            "AttentionPooling", x, lengths=lengths, mask=mask, resets=None, dt=None, takes_dt=False
        ).mask
        if x.shape[1] == 0:
            return x.new_zeros(len(x), self.output_size), x.new_zeros(len(x), self.heads, 0)
        if real is not None:
            x = x.masked_fill(~real.unsqueeze(2), 0.0)
        scores = F.linear(torch.tanh(self.project(x)), self.context).transpose(1, 2)  # (B, heads, T)
        if real is None:
            weights = torch.softmax(scores, dim=2)
        else:
            # The lowest number rather than -inf, with which an empty row would have NaN in its gradient.
            hidden = ~real.unsqueeze(1)
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
            weights = torch.softmax(scores, dim=2).masked_fill(hidden, 0.0)
        return torch.bmm(weights, x.to(weights.dtype)).flatten(1), weights
