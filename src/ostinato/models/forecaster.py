"""Forecasting networks: a recurrent encoder of scaled features, and a head that corrects simple forecasts.

Two networks share the encoder. `DirectForecaster` says the quantiles of every step of the horizon at once,
from any origin inside a window (multi-horizon quantile forecasting, arXiv:1711.11053).
`AutoregressiveForecaster` says the distribution of the next value and is fed its own draws (DeepAR,
arXiv:1704.04110). Both are ensembles of `members` networks that see the same batches and differ by their
initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ostinato.layers.cells import Cell
from ostinato.layers.heads import (
    DistributionHead,
    QuantileHead,
    distribution_head,
    joint_pinball,
    joint_quantiles,
)
from ostinato.layers.stack import Stack
from ostinato.models.encoder import build_encoder
from ostinato.types import Batch, LossOutput, State


class _Encoder(nn.Module):
    """`members` recurrent stacks over the same input."""

    def __init__(
        self, cell: str | type[Cell], input_size: int, hidden_size: int, num_layers: int, members: int
    ):
        super().__init__()
        self.stacks = nn.ModuleList(
            build_encoder(cell, input_size, hidden_size, num_layers) for _ in range(members)
        )

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (B, T, D) -> hidden (B, T, M, H) and the state of every member."""
        outputs, states = [], {}
        for i, stack in enumerate(_stacks(self.stacks)):
            y, after = stack(x, None if state is None else state[f"member{i}"])
            outputs.append(y)
            states[f"member{i}"] = after
        return torch.stack(outputs, dim=2), State(states)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, D) -> hidden (B, M, H) and the next state."""
        outputs, states = [], {}
        for i, stack in enumerate(_stacks(self.stacks)):
            before = state[f"member{i}"]
            assert isinstance(before, State)
            y, states[f"member{i}"] = stack.step(x, before)
            outputs.append(y)
        return torch.stack(outputs, dim=1), State(states)

    def initial_state(self, rows: int) -> State:
        """The state of rows that saw nothing."""
        return State(
            {f"member{i}": stack.initial_state(rows) for i, stack in enumerate(_stacks(self.stacks))}
        )


def _stacks(modules: nn.ModuleList) -> list[Stack]:
    return cast("list[Stack]", list(modules))


def _heads(modules: nn.ModuleList) -> list[DistributionHead]:
    return cast("list[DistributionHead]", list(modules))


class _Trunk(torch.autograd.Function):
    """gelu(first)·keep_first -> second layer -> gelu·keep_second, whose backward pass works in place.

    The tensors are as large as a cache; one pass less over each, and one allocation less, is a sixth of the
    time of a training step.
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, weight: Tensor, bias: Tensor, keep_first: Tensor, keep_second: Tensor
    ) -> Tensor:
        """first (…, n, F), keep (…, 1, F) or empty for 1 everywhere -> (…, n, F)."""
        inner = _kept(F.gelu(first), keep_first)
        second = F.linear(inner, weight, bias)
        ctx.save_for_backward(first, inner, second, weight, keep_first, keep_second)
        return _kept(F.gelu(second), keep_second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the first layer's sums, and of the second layer."""
        first, inner, second, weight, keep_first, keep_second = ctx.saved_tensors
        d_second = d_out * keep_second if keep_second.numel() else d_out.contiguous()
        d_second = torch.ops.aten.gelu_backward(d_second, second).flatten(0, -2)
        d_first = _kept((d_second @ weight).view_as(first), keep_first)
        torch.ops.aten.gelu_backward(d_first, first, grad_input=d_first)
        d_weight = d_second.t() @ inner.flatten(0, -2)
        return d_first, d_weight, d_second.sum(0), None, None


def _kept(x: Tensor, keep: Tensor) -> Tensor:
    return x.mul_(keep) if keep.numel() else x


class _Decoder(nn.Module):
    """Two layers over a context that is shared by n steps, and what differs from step to step.

    context (…, 1 or n, C), own (…, n, W) and what is the same for all leading axes, fixed (n, V), whose
    weights follow those of `own` -> (…, n, size). The context is multiplied once, not n times, and one
    dropout mask serves all n steps, which costs a fraction of one each.
    """

    def __init__(self, context: int, own: int, size: int, dropout: float):
        super().__init__()
        self.context = nn.Linear(context, size)
        self.own = nn.Linear(own, size, bias=False)
        self.second = nn.Linear(size, size)
        self.dropout = dropout

    def forward(self, context: Tensor, own: Tensor, fixed: Tensor | None = None) -> Tensor:
        # Recurrent layers leave autocast as well; what follows is small beside them.
        with torch.autocast(own.device.type, enabled=False):
            context, own = context.to(self.own.weight.dtype), own.to(self.own.weight.dtype)
            first = F.linear(own, self.own.weight[:, : own.shape[-1]])
            first += self.context(context)
            if fixed is not None:
                first += F.linear(fixed, self.own.weight[:, own.shape[-1] :])
            keep_first, keep_second = self._keep(first), self._keep(first)
            return cast(
                "Tensor",
                _Trunk.apply(first, self.second.weight, self.second.bias, keep_first, keep_second),
            )

    def _keep(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return x.new_empty(0)
        return F.dropout(x.new_ones(*x.shape[:-2], 1, x.shape[-1]), self.dropout)


def _clip(x: Tensor) -> Tensor:
    """Anchors far away are far away; how far does not matter."""
    return 5.0 * torch.tanh(x / 5.0)


class DirectForecaster(nn.Module):
    """Quantiles of all H steps at once.

    Args:
        input_size: D, features of one step.
        future_size: P, features known of each future step (calendar, known covariates).
        anchors: A, simple forecasts.
        horizon: H.
        levels: Q quantile levels, symmetric about 0.5.
        cell: a name in `encoder.CELLS`, or a `Cell` class.
        hidden_size: width of each member's recurrent state.
        num_layers: L.
        members: M networks whose quantiles are averaged.
        dropout: between the decoder's layers.

    Attributes:
        blend: share of the trained network in `predict`, from 0 to 1; the rest is the untrained mixture of
            anchors. 1 until somebody with validation windows decides otherwise.

    Cost: a window of T steps with O origins takes about M·T·8·H·(D + H) + M·O·horizon·128·(H + P + A + 72)
    flops.
    """

    blend: Tensor

    def __init__(
        self,
        input_size: int,
        future_size: int,
        anchors: int,
        horizon: int,
        levels: Sequence[float],
        *,
        cell: str | type[Cell] = "lstm",
        hidden_size: int = 48,
        num_layers: int = 1,
        members: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.input_size = input_size
        self.encoder = _Encoder(cell, input_size, hidden_size, num_layers, members)
        self.steps = nn.ParameterList(nn.Parameter(torch.randn(horizon, 8)) for _ in range(members))
        own = future_size + anchors + 8
        self.decoders = nn.ModuleList(_Decoder(hidden_size, own, 64, dropout) for _ in range(members))
        self.heads = nn.ModuleList(QuantileHead(64, anchors, horizon, levels) for _ in range(members))
        self.register_buffer("blend", torch.ones(()))

    def start_from(self, mixture: Tensor, gaps: Tensor) -> None:
        """Begin every member as a mixture of anchors (H, A) with given gaps between quantiles (H, Q - 1)."""
        for head in self._quantile_heads:
            head.start_from(mixture, gaps)

    def encode(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (B, T, D) -> hidden (B, T, M, H) and the state after the last step."""
        return self.encoder(x, state)

    def decode(self, hidden: Tensor, future: Tensor, anchors: Tensor) -> Tensor:
        """Quantiles of every member at n origins.

        Args:
            hidden: (n, M, H) at the origins.
            future: (n, horizon, P).
            anchors: (n, horizon, A), relative to the last value in units of the scale.

        Returns:
            (M, n, horizon, Q) in the same unit.
        """
        return self._quantiles(hidden, future, anchors).permute(0, 2, 3, 1)

    def _quantiles(self, hidden: Tensor, future: Tensor, anchors: Tensor) -> Tensor:
        """`decode`, as (M, Q, n, horizon)."""
        own = torch.cat([future, _clip(anchors)], dim=-1)
        features = [
            decoder(hidden[:, i, None], own, steps)
            for i, (decoder, steps) in enumerate(zip(self.decoders, self.steps, strict=True))
        ]
        return joint_quantiles(self._quantile_heads, features, anchors)

    @property
    def _quantile_heads(self) -> list[QuantileHead]:
        return cast("list[QuantileHead]", list(self.heads))

    def predict(self, hidden: Tensor, future: Tensor, anchors: Tensor) -> Tensor:
        """Quantiles averaged over members, blended with the untrained head's: (n, horizon, Q)."""
        said = self.decode(hidden, future, anchors).mean(0)
        return torch.lerp(self._quantile_heads[0].untrained(anchors), said, self.blend)

    def loss(self, batch: Batch, state: State | None = None) -> LossOutput:
        """Weighted pinball loss, averaged over members, summed over the targets of all origins.

        The batch holds `x` (B, T, D), `origins` (B, O) steps of x after which is forecast, `future`
        (B, O, horizon, P), `anchors` (B, O, horizon, A), `y`, `mask` and `weight` (B, O, horizon).
        """
        hidden, after = self.encode(batch.x, state)
        rows = torch.arange(len(batch.x), device=hidden.device)[:, None]
        chosen = hidden[rows, batch.origins].flatten(0, 1)
        quantiles = self._quantiles(chosen, batch.future.flatten(0, 1), batch.anchors.flatten(0, 1))
        mask = batch.mask.to(quantiles.dtype)
        weight = (mask * batch.weight).flatten(0, 1)
        levels = self._quantile_heads[0].levels
        return LossOutput(joint_pinball(quantiles, batch.y.flatten(0, 1), weight, levels), mask.sum(), after)


class AutoregressiveForecaster(nn.Module):
    """The distribution of the next value; its draws, fed back, are joint paths over the horizon.

    Args:
        input_size: D.
        anchors: A, simple forecasts of the next value.
        distribution: `gaussian`, `student_t` or `negative_binomial`.
        cell, hidden_size, num_layers, members, dropout: as in `DirectForecaster`.

    Cost: a window of T steps takes about M·T·(8·H·(D + H) + 128·(H + A + 64)) flops; a sampled path pays
    horizon steps.
    """

    def __init__(
        self,
        input_size: int,
        anchors: int,
        distribution: str = "student_t",
        *,
        cell: str | type[Cell] = "lstm",
        hidden_size: int = 48,
        num_layers: int = 1,
        members: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.input_size = input_size
        self.encoder = _Encoder(cell, input_size, hidden_size, num_layers, members)
        self.decoders = nn.ModuleList(_Decoder(hidden_size, anchors, 64, dropout) for _ in range(members))
        self.heads = nn.ModuleList(distribution_head(distribution, 64, anchors) for _ in range(members))

    def start_from(self, mixture: Tensor) -> None:
        """Begin every member as a mixture of anchors (A,)."""
        for head in _heads(self.heads):
            head.start_from(mixture)

    def encode(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x (B, T, D) -> hidden (B, T, M, H) and the state after the last step."""
        return self.encoder(x, state)

    def loss(self, batch: Batch, state: State | None = None) -> LossOutput:
        """Negative log-likelihood, averaged over members, summed over the steps of all windows.

        The batch holds `x` (B, T, D), one-step `anchors` (B, T, A), `y` the next value relative to `last` in
        units of `scale`, and `mask`: all (B, T).
        """
        hidden, after = self.encode(batch.x, state)
        total = hidden.new_zeros(())
        mask = batch.mask.to(hidden.dtype)
        for i, (decoder, head) in enumerate(zip(self.decoders, _heads(self.heads), strict=True)):
            location, shape = head(decoder(hidden[:, :, i], _clip(batch.anchors)), batch.anchors)
            nll = head.loss(location, shape, batch.y, batch.last, batch.scale)
            total = total + (torch.where(batch.mask, nll, 0.0)).sum()
        return LossOutput(total / len(self.heads), mask.sum(), after)

    def sample_next(
        self,
        hidden: Tensor,
        anchors: Tensor,
        last: Tensor,
        scale: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Draw the next value of S paths from each of n origins; path j comes from network j modulo M.

        Every origin has its own source of randomness, so that its paths do not depend on which other origins
        are in the batch. Draws are made and returned on the CPU.

        Args:
            hidden: (n·S, M, H), the paths of an origin one after the other.
            anchors: (n·S, A) relative one-step forecasts.
            last, scale: (n·S,) what relative values are measured from.
            generators: one for each origin.

        Returns:
            (n·S,) relative to `last` in units of `scale`.
        """
        n, M = len(generators), len(self.heads)
        paths = last.view(n, -1).cpu()
        drawn = paths.new_empty(paths.shape)
        for i, (decoder, head) in enumerate(zip(self.decoders, _heads(self.heads), strict=True)):
            rows = torch.arange(len(last)).view(n, -1)[:, i::M].reshape(-1).to(hidden.device)
            mine = anchors[rows]
            said = head(decoder(hidden[rows, i], _clip(mine)), mine)
            inputs = [part.cpu().view(n, -1, *part.shape[1:]) for part in (*said, last[rows], scale[rows])]
            for origin, generator in enumerate(generators):
                location, shape, value, unit = (part[origin] for part in inputs)
                drawn[origin, i::M] = head.sample(location, shape, value, unit, generator)
        return drawn.view(-1)
