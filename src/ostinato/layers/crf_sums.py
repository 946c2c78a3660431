"""Sums over all paths of a linear chain: the forward-backward algorithm, and its gradient by hand.

A path of tags y scores start[y_0] + Σ emissions[t, y_t] + Σ transitions[y_t, y_t+1] + end[y_last]. Sums of
exp(score) are products of matrices: one step is (B, K) × (K, K), where logsumexp would take B·K·K
exponentials. Float64 holds exp(±700), so the messages are rescaled only every n-th step; n follows from the
range of the scores, and where no n is safe, `log_partition_by_logsumexp` answers instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

# Half of what float64 can hold: products of a forward and a backward message must fit as well.
_LOG_BUDGET = 300.0
# Stands for the score of what is not allowed: far from every real score, and never -inf - -inf.
_FORBIDDEN = {torch.float64: -1e200, torch.float32: -1e30}


@dataclass(frozen=True)
class Allowed:
    """Constraints as tensors: transitions (K, K), start (K,), end (K,); and after how many steps they mix."""

    transitions: Tensor
    start: Tensor
    end: Tensor
    mixing_steps: int | None


def log_partition(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor | None,
    allowed: Allowed | None,
) -> Tensor:
    """log Σ exp(score) over all allowed paths of each row, (B,) float64.

    Rows of length 0 have one path, which scores 0. Rows without an allowed path give -inf. Differentiable any
    number of times; the first derivative costs one backward recursion and no graph over the steps.

    Args:
        emissions: (B, T, K).
        transitions: (K, K), [from, to].
        start, end: (K,).
        lengths: (B,) on the same device; None: T everywhere.
        allowed: None: everything.

    Cost: 2·B·T·K² flops and 16·B·T·K bytes; the same again for the gradient.
    """
    if not emissions.numel():
        return emissions.sum((1, 2), dtype=working_dtype(emissions))
    return cast("Tensor", _LogPartition.apply(emissions, transitions, start, end, (lengths, allowed)))


def marginals(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor | None,
    allowed: Allowed | None,
) -> Tensor:
    """Probability of each tag at each step over all allowed paths, (B, T, K) float64, without a graph.

    Zeros beyond a row's length, and in rows without an allowed path.
    """
    if not emissions.numel():
        return emissions.detach().to(working_dtype(emissions))
    chain = _Chain.prepare((emissions, transitions, start, end), lengths, allowed)
    if chain is None:
        with torch.enable_grad():
            wanted = emissions.detach().requires_grad_()
            total = log_partition_by_logsumexp(wanted, transitions, start, end, lengths, allowed)
            total = total[total.isfinite()].sum()
            found = torch.autograd.grad(total, wanted)[0].to(working_dtype(wanted))
        # Scores beyond 1e12 leave float64 no digits for their differences.
        return found / found.sum(2, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    chain.forward()
    probabilities, _, _ = chain.backward(torch.ones_like(chain.log_scale))
    return probabilities.transpose(0, 1)


def log_partition_by_logsumexp(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor,
    end: Tensor,
    lengths: Tensor | None,
    allowed: Allowed | None,
) -> Tensor:
    """What `log_partition` returns, from differentiable operators: any range of scores, any derivative.

    Cost: B·T·K² exponentials, and a graph over the steps.
    """
    work = working_dtype(emissions)
    emissions, transitions, start, end = (value.to(work) for value in (emissions, transitions, start, end))
    forbidden = _FORBIDDEN[work]
    if allowed is not None:
        transitions = transitions.masked_fill(~allowed.transitions, forbidden)
        start = start.masked_fill(~allowed.start, forbidden)
        end = end.masked_fill(~allowed.end, forbidden)
    T = emissions.shape[1]
    if lengths is not None:
        emissions = emissions.masked_fill(_padding(lengths, T).unsqueeze(2), 0.0)
    message = start + emissions[:, 0]
    for t in range(1, T):
        after = torch.logsumexp(message.unsqueeze(2) + transitions, dim=1) + emissions[:, t]
        message = after if lengths is None else torch.where((lengths > t).unsqueeze(1), after, message)
    total = torch.logsumexp(message + end, dim=1)
    total = total.masked_fill(total < forbidden / 2, -math.inf)
    return total if lengths is None else total.masked_fill(lengths == 0, 0.0)


def _padding(lengths: Tensor, T: int) -> Tensor:
    return torch.arange(T, device=lengths.device) >= lengths.unsqueeze(1)


def working_dtype(like: Tensor) -> torch.dtype:
    """The dtype of sums and paths: float64, except on Apple's devices, which have none."""
    return torch.float32 if like.device.type == "mps" else torch.float64


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        emissions: Tensor,
        transitions: Tensor,
        start: Tensor,
        end: Tensor,
        limits: tuple[Tensor | None, Allowed | None],
    ) -> Tensor:
        scores = (emissions, transitions, start, end)
        ctx.save_for_backward(*scores)
        ctx.limits = limits
        ctx.chain = _Chain.prepare(scores, *limits)
        if ctx.chain is None:
            return log_partition_by_logsumexp(*scores, *limits)
        return cast("_Chain", ctx.chain).forward()

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        scores = ctx.saved_tensors
        if ctx.chain is None or torch.is_grad_enabled():
            # Asked for a graph of the gradient (or out of range): through operators that have one.
            needed = [value for value, needs in zip(scores, ctx.needs_input_grad, strict=False) if needs]
            creates_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                total = log_partition_by_logsumexp(*scores, *ctx.limits)
                slow = iter(
                    torch.autograd.grad(
                        total, needed, d_total, create_graph=creates_graph, materialize_grads=True
                    )
                )
            return (*(next(slow) if needs else None for needs in ctx.needs_input_grad[:4]), None)
        chain: _Chain = ctx.chain
        probabilities, d_transitions, d_end = chain.backward(d_total)
        d_emissions = probabilities.transpose(0, 1).to(scores[0].dtype)
        found = (d_emissions, d_transitions, probabilities[0].sum(0), d_end)
        return (*(d.to(value.dtype) for d, value in zip(found, scores, strict=True)), None)


class _Chain:
    """Messages of one batch in exp-space, time first: (T, B, K) float64."""

    def __init__(
        self,
        weights: Tensor,
        transfer: tuple[Tensor, Tensor, Tensor],
        log_scale: Tensor,
        lengths: Tensor | None,
        every: int,
    ):
        self.weights = weights
        self.transfer, self.first, self.last = transfer
        self.log_scale, self.lengths, self.every = log_scale, lengths, every
        self.messages = torch.empty_like(weights)

    @classmethod
    def prepare(
        cls, scores: Sequence[Tensor], lengths: Tensor | None, allowed: Allowed | None
    ) -> _Chain | None:
        """Exponentials of the scores, and how often to rescale; None where float64 might not hold them."""
        emissions, transitions, start, end = scores
        if working_dtype(emissions) != torch.float64:
            return None
        T, K = emissions.shape[1:]
        weights = torch.empty(T, len(emissions), K, dtype=torch.float64, device=emissions.device)
        weights.copy_(emissions.detach().transpose(0, 1))
        if lengths is not None:
            weights.masked_fill_(_padding(lengths, T).T.unsqueeze(2), 0.0)
        top = weights.amax(2)
        edges = torch.cat([transitions.flatten(), start, end]).double()
        highest = edges.max()
        widest = (top - weights.amin(2)).max() + (highest - edges.min())
        # One step changes a message by a factor within exp(±step).
        step = widest.item() + math.log(K)
        mixing = 1 if allowed is None else allowed.mixing_steps
        # Once tags mix, the smallest part of a message is at most that many steps' range below its largest.
        spread = T if mixing is None else min(mixing, T)
        if not (spread + 1) * step <= _LOG_BUDGET:
            return None
        every = max(1, int(_LOG_BUDGET / max(step, 1.0)) - spread)
        weights.sub_(top.unsqueeze(2)).exp_()
        transfer, first, last = (edges - highest).exp_().split([K * K, K, K])
        transfer = transfer.view(K, K)
        if allowed is not None:
            transfer, first, last = (
                value * may
                for value, may in zip(
                    (transfer, first, last), (allowed.transitions, allowed.start, allowed.end), strict=True
                )
            )
        steps = T if lengths is None else lengths
        return cls(weights, (transfer, first, last), top.sum(0) + (steps + 1) * highest, lengths, every)

    def forward(self) -> Tensor:
        """log Σ exp(score) of each row, (B,)."""
        T = len(self.weights)
        messages, weights = self.messages.unbind(0), self.weights.unbind(0)
        message = torch.mul(self.first, weights[0], out=messages[0])
        total = self.log_scale
        for t in range(1, T):
            message = torch.mm(message, self.transfer, out=messages[t]).mul_(weights[t])
            if t % self.every == 0:
                scale = _rescale(message)
                log_scale = scale.log().squeeze(1)
                if self.lengths is not None:
                    log_scale = log_scale.masked_fill_(self.lengths <= t, 0.0)
                total = total + log_scale
        ended = self._ends(self.messages)
        total = total + (ended @ self.last).log()
        return total if self.lengths is None else total.masked_fill(self.lengths == 0, 0.0)

    def backward(self, d_total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of emissions (T, B, K), transitions and end: d_total times the probabilities."""
        T, B, K = self.weights.shape
        # What begins at each row's last step is added by the same product that carries the rest back.
        behind = torch.zeros_like(self.weights)
        if self.lengths is None:
            behind[-1] = self.last
        else:
            rows = self.lengths.nonzero().squeeze(1)
            behind[self.lengths[rows] - 1, rows] = self.last
        ahead = torch.empty_like(self.weights)
        scales = self.weights.new_ones(T, B)
        messages, weights, products = behind.unbind(0), self.weights.unbind(0), ahead.unbind(0)
        back = self.transfer.T
        for t in range(T - 1, 0, -1):
            product = torch.mul(messages[t], weights[t], out=products[t])
            messages[t - 1].addmm_(product, back)
            if t % self.every == 0:
                scales[t - 1] = _rescale(messages[t - 1]).squeeze(1)
        probabilities = behind.mul_(self.messages)
        norm = probabilities.sum(2)
        # A row's padding, and a row without an allowed path, weigh nothing.
        weight = torch.where(norm > 0, d_total / norm, 0.0)
        d_end = self._ends(probabilities.mul_(weight.unsqueeze(2))).sum(0)
        before = self.messages[:-1] * (weight[:-1] / scales[:-1]).unsqueeze(2)
        d_transitions = before.reshape((T - 1) * B, K).T @ ahead[1:].reshape((T - 1) * B, K)
        return probabilities, d_transitions.mul_(self.transfer), d_end

    def _ends(self, values: Tensor) -> Tensor:
        """What (T, B, K) holds at each row's last step, (B, K); zeros for an empty row."""
        if self.lengths is None:
            return values[-1]
        rows = torch.arange(len(self.lengths), device=values.device)
        ended = values[(self.lengths - 1).clamp(min=0), rows]
        return ended.masked_fill((self.lengths == 0).unsqueeze(1), 0.0)


def _rescale(message: Tensor) -> Tensor:
    """Divide each row by its largest part, in place; that part, (B, 1). Rows of zeros stay."""
    scale = message.amax(1, keepdim=True)
    scale.masked_fill_(scale == 0, 1.0)
    message.div_(scale)
    return scale
