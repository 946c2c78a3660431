"""Output heads: from a layer's features to a distribution, its loss and its samples.

A forecasting head speaks in units of the running scale, relative to the last value; the anchors are simple
forecasts in the same unit. Every head mixes the anchors with learned weights and adds a learned correction,
so that an untrained head *is* a mixture of simple forecasts, and training starts from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ostinato.errors import InputError


class QuantileHead(nn.Module):
    """Quantiles that cannot cross: a median, and positive steps away from it on both sides.

    Args:
        features: width of the input.
        anchors: A, how many simple forecasts are mixed into the median.
        horizon: H; each step has its own prior mixture and spread.
        levels: odd in number, rising, symmetric about 0.5.

    Shapes: `forward(features (…, H, F), anchors (…, H, A)) -> (…, H, Q)`; with `prior` (…) of integers, which
    of the H priors each target takes, `forward(features (…, F), anchors (…, A), prior) -> (…, Q)`.
    """

    levels: Tensor
    first_mixture: Tensor
    first_spread: Tensor

    def __init__(self, features: int, anchors: int, horizon: int, levels: Sequence[float]):
        super().__init__()
        if (
            len(levels) % 2 == 0
            or list(levels) != sorted(set(levels))
            or any(abs(a + b - 1) > 1e-9 for a, b in zip(levels, reversed(levels), strict=True))
        ):
            raise InputError(
                f"levels must rise, with 0.5 in the middle and the others in pairs; got {list(levels)}"
            )
        self.anchors = anchors
        self.project = nn.Linear(features, anchors + len(levels))
        self.mixture = nn.Parameter(torch.zeros(horizon, anchors))
        self.spread = nn.Parameter(torch.zeros(horizon, len(levels) - 1))
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float64), persistent=False)
        self.register_buffer("first_mixture", torch.zeros(horizon, anchors))
        self.register_buffer("first_spread", torch.zeros(horizon, len(levels) - 1))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    @torch.no_grad()
    def start_from(self, mixture: Tensor, gaps: Tensor) -> None:
        """Begin at given mixture weights (H, A) and distances between neighbouring quantiles (H, Q - 1)."""
        self.mixture.copy_(mixture.clamp(min=1e-3).log())
        self.spread.copy_(_inverse_softplus(gaps.clamp(min=1e-3)))
        self.first_mixture.copy_(self.mixture)
        self.first_spread.copy_(self.spread)

    def forward(self, features: Tensor, anchors: Tensor, prior: Tensor | None = None) -> Tensor:
        """Quantiles in rising order."""
        raw = self.project(features)
        mixture = self.mixture if prior is None else self.mixture[prior]
        spread = self.spread if prior is None else self.spread[prior]
        weights = torch.softmax(raw[..., : self.anchors] + mixture, dim=-1)
        median = (weights * anchors).sum(-1) + raw[..., self.anchors]
        return self._around(median, F.softplus(raw[..., self.anchors + 1 :] + spread))

    def untrained(self, anchors: Tensor) -> Tensor:
        """What the head said before training: a fixed mixture of the anchors (…, H, A) -> (…, H, Q)."""
        median = (torch.softmax(self.first_mixture, dim=-1) * anchors).sum(-1)
        return self._around(median, F.softplus(self.first_spread).expand(*median.shape, -1))

    @staticmethod
    def _around(median: Tensor, gaps: Tensor) -> Tensor:
        middle = gaps.shape[-1] // 2
        below = gaps[..., :middle].flip(-1).cumsum(-1).flip(-1)
        above = gaps[..., middle:].cumsum(-1)
        median = median.unsqueeze(-1)
        return torch.cat([median - below, median, median + above], dim=-1)

    def loss(self, quantiles: Tensor, y: Tensor) -> Tensor:
        """Pinball loss averaged over levels, per target: (…, H)."""
        levels = self.levels.to(quantiles.dtype)
        error = y.unsqueeze(-1) - quantiles
        return torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)


def joint_quantiles(heads: Sequence[QuantileHead], features: Sequence[Tensor], anchors: Tensor) -> Tensor:
    """Quantiles of M heads for the same targets.

    As each head says them, up to rounding, in a third of the time: the axes of anchors and quantiles are a
    few elements long and come first here, so that every operation runs over long rows.

    Args:
        heads: M heads alike.
        features: of each head (n, H, F).
        anchors: (n, H, A).

    Returns:
        (M, Q, n, H).
    """
    n, H, A = anchors.shape
    n_gaps = heads[0].spread.shape[1]
    with torch.autocast(anchors.device.type, enabled=False):
        raw = torch.stack(
            [
                torch.addmm(head.project.bias[:, None], head.project.weight, x.flatten(0, 1).t())
                for head, x in zip(heads, features, strict=True)
            ]
        )
        own, shift, gaps = raw.view(len(heads), -1, n, H).split([A, 1, n_gaps], dim=1)
        mixture = torch.stack([head.mixture for head in heads]).transpose(1, 2).unsqueeze(2)
        weights = torch.softmax(own + mixture, dim=1)
        median = (weights * anchors.permute(2, 0, 1).contiguous()).sum(1) + shift.squeeze(1)
        spread = torch.stack([head.spread for head in heads]).transpose(1, 2).unsqueeze(2)
        steps = F.softplus(gaps + spread).unbind(1)
    middle = n_gaps // 2
    said = [median]
    for step in reversed(steps[:middle]):
        said.insert(0, said[0] - step)
    for step in steps[middle:]:
        said.append(said[-1] + step)
    return torch.stack(said, dim=1)


def joint_pinball(quantiles: Tensor, y: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
    """Pinball loss of quantiles (M, Q, n, H) at `levels` (Q,), averaged over heads and levels, times `weight`
    (n, H), summed over the targets `y` (n, H)."""
    levels = levels.to(quantiles.dtype)[:, None, None]
    return cast("Tensor", _Pinball.apply(quantiles, y, weight, levels)) / quantiles.shape[:2].numel()


class _Pinball(torch.autograd.Function):
    """Sum of max(l·e, (l - 1)·e)·weight, e = y - quantile: one slope serves the value and the gradient."""

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, y: Tensor, weight: Tensor, levels: Tensor) -> Tensor:
        """A single number."""
        error = y - quantiles
        slope = torch.where(error < 0, levels - 1.0, levels).mul_(weight)
        ctx.save_for_backward(slope)
        return error.mul_(slope).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        """The slope, down: only quantiles are learned."""
        (slope,) = ctx.saved_tensors
        return slope * -d_total, None, None, None


class DistributionHead(nn.Module):
    """A distribution of the next value around a mixture of anchors.

    Subclasses say how many parameters they need beyond the location, their loss and how they are sampled. All
    take `last` and `scale`, the value that the relative unit is measured from and its length.
    """

    n_shape: int
    counts_only = False

    def __init__(self, features: int, anchors: int):
        super().__init__()
        self.anchors = anchors
        self.project = nn.Linear(features, anchors + 1 + self.n_shape)
        self.mixture = nn.Parameter(torch.zeros(anchors))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    @torch.no_grad()
    def start_from(self, mixture: Tensor) -> None:
        """Begin at given mixture weights (A,)."""
        self.mixture.copy_(mixture.clamp(min=1e-3).log())

    def forward(self, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Location (…,) and raw shape parameters (…, n_shape)."""
        raw = self.project(features)
        weights = torch.softmax(raw[..., : self.anchors] + self.mixture, dim=-1)
        return (weights * anchors).sum(-1) + raw[..., self.anchors], raw[..., self.anchors + 1 :]

    def loss(self, location: Tensor, shape: Tensor, y: Tensor, last: Tensor, scale: Tensor) -> Tensor:
        """Negative log-likelihood of `y` (relative unit), per target."""
        raise NotImplementedError

    def sample(
        self, location: Tensor, shape: Tensor, last: Tensor, scale: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One draw each, in the relative unit."""
        raise NotImplementedError


class GaussianHead(DistributionHead):
    """Normal distribution: -log p = ((y - mu) / sigma)² / 2 + log sigma + log(2 pi) / 2."""

    n_shape = 1

    def loss(self, location: Tensor, shape: Tensor, y: Tensor, last: Tensor, scale: Tensor) -> Tensor:
        """Negative log-likelihood."""
        sigma = _spread(shape[..., 0])
        return 0.5 * ((y - location) / sigma) ** 2 + sigma.log() + 0.5 * math.log(2 * math.pi)

    def sample(
        self, location: Tensor, shape: Tensor, last: Tensor, scale: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One draw each."""
        noise = torch.randn(location.shape, generator=generator, dtype=location.dtype)
        return location + _spread(shape[..., 0]) * noise


class StudentTHead(DistributionHead):
    """Student's t with 2 or more degrees of freedom: heavy tails, finite variance."""

    n_shape = 2

    def loss(self, location: Tensor, shape: Tensor, y: Tensor, last: Tensor, scale: Tensor) -> Tensor:
        """Negative log-likelihood."""
        sigma, df = _spread(shape[..., 0]), 2.0 + F.softplus(shape[..., 1] + 2.0)
        square = ((y - location) / sigma) ** 2
        constant = torch.lgamma(df / 2) - torch.lgamma((df + 1) / 2) + 0.5 * torch.log(df * math.pi)
        return constant + sigma.log() + 0.5 * (df + 1) * torch.log1p(square / df)

    def sample(
        self, location: Tensor, shape: Tensor, last: Tensor, scale: Tensor, generator: torch.Generator
    ) -> Tensor:
        """A normal draw over the root of a gamma draw, both from `generator`."""
        sigma, df = _spread(shape[..., 0]), 2.0 + F.softplus(shape[..., 1] + 2.0)
        normal = torch.randn(location.shape, generator=generator, dtype=location.dtype)
        gamma = torch._standard_gamma(df / 2, generator=generator)
        return location + sigma * normal * torch.rsqrt((gamma / (df / 2)).clamp(min=1e-6))


class NegativeBinomialHead(DistributionHead):
    """Counts 0, 1, 2 …: mean m and variance m + a·m² (DeepAR, arXiv:1704.04110, section 3.1)."""

    n_shape = 1
    counts_only = True

    def _mean_and_excess(
        self, location: Tensor, shape: Tensor, last: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        # softplus keeps the mean positive and leaves it alone once it is a few scales above zero.
        mean = scale * F.softplus((last + scale * location) / scale) + 1e-4
        return mean, F.softplus(shape[..., 0] - 2.0) + 1e-4

    def loss(self, location: Tensor, shape: Tensor, y: Tensor, last: Tensor, scale: Tensor) -> Tensor:
        """Negative log-likelihood of the count."""
        mean, a = self._mean_and_excess(location, shape, last, scale)
        count = (last + scale * y).round().clamp(min=0)
        r = 1.0 / a
        log_p = torch.lgamma(count + r) - torch.lgamma(count + 1) - torch.lgamma(r)
        return -(log_p - r * torch.log1p(a * mean) + count * (torch.log(a * mean) - torch.log1p(a * mean)))

    def sample(
        self, location: Tensor, shape: Tensor, last: Tensor, scale: Tensor, generator: torch.Generator
    ) -> Tensor:
        """A Poisson draw whose rate is a gamma draw, both from `generator`."""
        mean, a = self._mean_and_excess(location, shape, last, scale)
        rate = torch._standard_gamma(1.0 / a, generator=generator) * a * mean
        return (torch.poisson(rate, generator=generator) - last) / scale


DISTRIBUTIONS: dict[str, type[DistributionHead]] = {
    "gaussian": GaussianHead,
    "student_t": StudentTHead,
    "negative_binomial": NegativeBinomialHead,
}
"""The heads that are trained one step ahead and sampled along paths."""


def distribution_head(name: str, features: int, anchors: int) -> DistributionHead:
    """A head by name; an unknown name raises with the known ones."""
    if name not in DISTRIBUTIONS:
        raise InputError(f"head is {name!r}; known distributions: {', '.join(DISTRIBUTIONS)}")
    return DISTRIBUTIONS[name](features, anchors)


def _spread(raw: Tensor) -> Tensor:
    return F.softplus(raw + 0.5) + 1e-3


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
