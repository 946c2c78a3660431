"""How much to believe each of several models that judge the same examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.errors import InputError

_STEPS = 100


@torch.no_grad()
def fit_scales(parts: Sequence[Tensor], y: Tensor, *, prior: float = 1.0) -> Tensor:
    """Non-negative scales (P,) with which the summed logits of P models explain y best.

    Minimised is the cross entropy of softmax(sum_p s_p z_p) plus `prior` times the squared distance of the
    scales from 1/P, the plain mean, which counts where there are few examples. The problem is convex. A model
    that only repeats what the others say, or that knows nothing, gets a scale near 0; one that is too sure
    of itself is toned down (with one model: temperature scaling, Guo et al. 2017, arXiv:1706.04599).

    Args:
        parts: logits (N, K) of each model, for examples that it has not learned from.
        y: (N,) class numbers.
        prior: its weight.

    Raises:
        InputError: no model, or shapes that differ.

    Cost: some 20 passes over (P, N, K).
    """
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or len(parts[0]) != len(y):
        raise InputError(f"fit_scales: expected logits (N, K) with N={len(y)} of each model, found {shapes}")
    z = torch.stack([part.double() for part in parts])
    s = torch.full((len(z),), 1.0 / len(z), dtype=torch.float64)
    value, slope, curve = _objective(z, y, s, prior)
    for _ in range(_STEPS):
        # A scale that is 0 and would go below stays out of this step.
        free = (s > 0) | (slope < 0)
        if not free.any():
            break
        move = torch.zeros_like(s)
        move[free] = torch.linalg.solve(curve[free][:, free], slope[free])
        ahead, size = (s - move).clamp(min=0.0), 1.0
        while _objective(z, y, ahead, prior)[0] > value and size > 1e-9:
            size *= 0.5
            ahead = (s - size * move).clamp(min=0.0)
        before, s = value, ahead
        value, slope, curve = _objective(z, y, s, prior)
        if before - value < 1e-10 * (1.0 + abs(float(value))):
            break
    return s.float()


def _objective(z: Tensor, y: Tensor, s: Tensor, prior: float) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and curvature."""
    logits = torch.einsum("p,pnk->nk", s, z)
    p = torch.softmax(logits, dim=1)
    away = s - 1.0 / len(s)
    value = F.cross_entropy(logits, y, reduction="sum") + prior * (away**2).sum()
    error = p.clone()
    error[torch.arange(len(y)), y] -= 1.0
    slope = torch.einsum("pnk,nk->p", z, error) + 2 * prior * away
    centred = z - torch.einsum("pnk,nk->pn", z, p).unsqueeze(2)
    curve = torch.einsum("pnk,qnk,nk->pq", centred, centred, p)
    return value, slope, curve + (2 * prior + 1e-9) * torch.eye(len(s), dtype=curve.dtype)
