"""Imputing network: reads a window in both directions and says the quantiles of what is missing in it.

The bidirectional recurrent network of Schuster and Paliwal (1997) over values with holes. As in BRITS
(arXiv:1805.10572) a step's input tells what is visible, how far the nearest visible values are, and a simple
estimate where nothing is visible; unlike there, the estimates come from interpolation, and the network says
how to mix and correct them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.cells import Cell
from ostinato.layers.heads import QuantileHead
from ostinato.models.encoder import build_encoder
from ostinato.types import Batch, LossOutput, State


class BidirectionalImputer(nn.Module):
    """Quantiles of every step of a window, from what is visible before and after it.

    Args:
        input_size: D, features of one step.
        anchors: A, simple estimates that are mixed and corrected.
        priors: how many classes of steps begin with a mixture and spread of their own (near an observation,
            far from one, with none on one side).
        levels: Q quantile levels, symmetric about 0.5.
        cell: a name in `encoder.CELLS`, or a `Cell` class.
        hidden_size: H of each direction and member.
        num_layers: L.
        members: M networks whose quantiles are averaged.
        dropout: before the head.

    Raises:
        InputError: an unknown cell, or levels that QuantileHead does not take.

    Cost: a window of T steps takes about M·T·(16·H·(D + H) + 256·H) flops forward.
    """

    def __init__(
        self,
        input_size: int,
        anchors: int,
        priors: int,
        levels: Sequence[float],
        *,
        cell: str | type[Cell] = "lstm",
        hidden_size: int = 32,
        num_layers: int = 1,
        members: int = 2,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.stacks = nn.ModuleList(
            build_encoder(cell, input_size, hidden_size, num_layers, bidirectional=True)
            for _ in range(members)
        )
        width = 2 * hidden_size
        self.decoders = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width + input_size, 64),
                nn.GELU(),
                nn.Dropout(dropout),
            )
            for _ in range(members)
        )
        self.heads = nn.ModuleList(QuantileHead(64, anchors, priors, levels) for _ in range(members))

    def start_from(self, mixture: Tensor, gaps: Tensor) -> None:
        """Begin every member with the mixture (priors, A) and the quantile gaps (priors, Q - 1) of each
        class."""
        for head in self.heads:
            assert isinstance(head, QuantileHead)
            head.start_from(mixture, gaps)

    def forward(self, x: Tensor, anchors: Tensor, prior: Tensor, mask: Tensor | None = None) -> Tensor:
        """Quantiles of every member.

        Args:
            x: (B, T, D) features.
            anchors: (B, T, A) estimates relative to the step's base, in its unit.
            prior: (B, T) class of each step.
            mask: (B, T) True where the window lies inside the series; None: everywhere.

        Returns:
            (M, B, T, Q) in the unit of the anchors.
        """
        quantiles = []
        for stack, decoder, head in zip(self.stacks, self.decoders, self.heads, strict=True):
            hidden, _ = stack(x, mask=mask)
            quantiles.append(head(decoder(torch.cat([hidden, x], dim=-1)), anchors, prior))
        return torch.stack(quantiles)

    def predict(self, batch: Batch) -> Tensor:
        """Quantiles averaged over members, (B, T, Q), of a batch as `loss` takes it."""
        return self(batch.x, batch.anchors, batch.prior, batch.inside).mean(0)

    def loss(self, batch: Batch, state: State | None = None) -> LossOutput:
        """Weighted pinball loss, averaged over members, summed over the hidden steps.

        The batch holds `x` (B, T, D), `anchors` (B, T, A), `prior`, `inside` (the mask of `forward`), `y`,
        `mask` (True at steps that were hidden and are known) and `weight`: all (B, T).

        Raises:
            InputError: a carried state: a network that reads backwards needs the whole window.
        """
        if state is not None:
            raise InputError(
                f"{type(self).__name__}.loss: got a state, but a bidirectional network cannot carry one; "
                "train without truncated BPTT"
            )
        quantiles = self(batch.x, batch.anchors, batch.prior, batch.inside)
        head = self.heads[0]
        assert isinstance(head, QuantileHead)
        per_target = head.loss(quantiles, batch.y).mean(0)
        mask = batch.mask.to(per_target.dtype)
        return LossOutput((per_target * mask * batch.weight).sum(), mask.sum(), None)
