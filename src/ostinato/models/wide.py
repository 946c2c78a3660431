"""`WideLinear`: classes from weighted n-grams without a network; `WideAndDeep`: both together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.models.blending import fit_scales
from ostinato.types import Batch, LossOutput

PENALTIES = (1.0, 0.25, 0.06, 0.015)
PENALTY = 0.2
"""Where there is nothing to choose by."""
# Steps of L-BFGS between two looks at the clock and at the progress, and the most looks.
_STRIDE, _STRIDES = 8, 25
_MEMORY_BYTES = 256 << 20


class WideLinear(nn.Module):
    """Multinomial logistic regression over sparse rows, with some dense columns: logits = A w + X v + b.

    The rows of A come as `ngrams` (n,), `ngram_weights` (n,) and `ngram_counts` (B,), one row after the
    other, as `NgramRows.batch` gives them, and those of X as `dense` (B, F). The problem is convex and is
    solved as a whole by `fit`; the training loop leaves its parameters alone.

    Args:
        features: V, columns of A.
        output_size: K.
        dense: F, columns of X.

    Raises:
        InputError: a size below 1, of F below 0.

    Cost: K multiplications for each n-gram of a text and each dense column.
    """

    def __init__(self, features: int, output_size: int, dense: int = 0):
        super().__init__()
        check_sizes("WideLinear", features=features, output_size=output_size, dense=dense + 1)
        self.weight = nn.Parameter(torch.zeros(features, output_size), requires_grad=False)
        self.dense = nn.Parameter(torch.zeros(dense, output_size), requires_grad=False) if dense else None
        self.bias = nn.Parameter(torch.zeros(output_size), requires_grad=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K)."""
        return _logits(batch, self.weight, self.dense, self.bias)

    @torch.no_grad()
    def fit(
        self,
        batch: Batch,
        y: Tensor,
        *,
        checks: Batch | None = None,
        checks_y: Tensor | None = None,
        penalties: Sequence[float] | None = None,
        class_weights: Tensor | None = None,
        max_time_s: float | None = None,
    ) -> WideFit:
        """Learn from N rows at once, by L-BFGS along a path of falling penalties.

        Minimised is the sum of the cross entropies plus penalty/2 times the squared weights (scikit-learn's
        1/C); biases are free. Of several penalties the one with the smallest mean cross entropy on `checks`
        is taken, and the path ends where that rises.

        Args:
            batch: the rows.
            y: (N,) class numbers.
            checks, checks_y: rows that are not learned from, to choose the penalty by.
            penalties: from the largest to the smallest; None: `PENALTIES`, or `PENALTY` without checks.
            class_weights: (K,) factors on the cross entropy of each class.
            max_time_s: no new iteration begins after so many seconds; the best so far is kept.

        Raises:
            InputError: several penalties and nothing to choose by.

        Cost: about 50 to 200 products with the whole matrix for each penalty; in memory 6 to 20 times the
        weights.
        """
        has_checks = checks is not None and checks_y is not None and len(checks_y) > 0
        if penalties is None:
            penalties = PENALTIES if has_checks else (PENALTY,)
        if len(penalties) > 1 and not has_checks:
            raise InputError("WideLinear.fit: several penalties need checks to choose by; pass one penalty")
        deadline_s = None if max_time_s is None else time.monotonic() + max_time_s
        problem = _Problem(batch, y, self, class_weights)
        best = WideFit(float("nan"), float("inf"), True)
        own = [self.weight, *([] if self.dense is None else [self.dense]), self.bias]
        point = torch.cat([one.flatten() for one in own])
        for penalty in penalties:
            point, has_converged = problem.minimise(point, penalty, deadline_s)
            weight, dense, bias = problem.split(point)
            loss = 0.0
            if has_checks and checks is not None and checks_y is not None:
                loss = float(F.cross_entropy(_logits(checks, weight, dense, bias), checks_y, class_weights))
            if loss >= best.loss:
                break
            best = WideFit(penalty, loss, has_converged)
            for value, found in zip(own, (weight, *([] if dense is None else [dense]), bias), strict=True):
                value.copy_(found)
            if not has_converged:
                break
        return best


class WideAndDeep(nn.Module):
    """A network and a linear model over n-grams that answer together (the idea: arXiv:1606.07792).

    In evaluation mode the logits are `scales[0]` times the network's plus `scales[1]` times the linear
    model's. They are not trained jointly, where the linear model would learn the training set by heart and
    leave the network nothing to explain: `loss` and training mode are the network's alone, `wide.fit` solves
    for the linear model, and `blend` for the scales, on examples that neither has learned from. Before that
    the scales are 1 and 0.

    Args:
        network: `forward(batch) -> logits (B, K)` and `loss`.
        features, output_size, dense: of the linear model.

    Raises:
        InputError: a size below 1.
    """

    def __init__(self, network: nn.Module, features: int, output_size: int, dense: int = 0):
        super().__init__()
        self.network = network
        self.wide = WideLinear(features, output_size, dense)
        # No gradient: solved for, not trained. A parameter rather than a buffer, which the loop would copy.
        self.scales = nn.Parameter(torch.tensor([1.0, 0.0]), requires_grad=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K); the batch has what the network takes, and in evaluation mode the n-grams too."""
        if self.training:
            logits: Tensor = self.network(batch)
            return logits
        network, wide = self.parts(batch)
        return self.scales[0] * network + self.scales[1] * wide

    def parts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits (B, K) of the network, and of the linear model."""
        return self.network(batch), self.wide(batch)

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """The network's."""
        output: LossOutput = self.network.loss(batch, state)  # type: ignore[operator]
        return output

    @torch.no_grad()
    def blend(self, parts: Sequence[Tensor], y: Tensor) -> Tensor:
        """Set, and return, the scales by what both said of N examples with classes y: `parts` (N, K)."""
        self.scales.copy_(fit_scales(parts, y))
        return self.scales


@dataclass(frozen=True)
class WideFit:
    """How a fit went.

    Attributes:
        penalty: the one that was taken.
        loss: mean cross entropy on the checks, 0 without any.
        has_converged: False where time ran out.
    """

    penalty: float
    loss: float
    has_converged: bool


class _Problem:
    """The objective and its gradient; both products with the matrix are sums of bags, by rows or columns."""

    def __init__(self, batch: Batch, y: Tensor, model: WideLinear, class_weights: Tensor | None):
        self.by_row, self.V, self.K = batch, *model.weight.shape
        self.F = 0 if model.dense is None else len(model.dense)
        ids, weights, counts = batch["ngrams"], batch["ngram_weights"], batch["ngram_counts"]
        rows = torch.repeat_interleave(torch.arange(len(counts), device=ids.device), counts)
        order = torch.argsort(ids, stable=True)
        self.by_column = Batch(
            ngrams=rows[order].to(torch.int32),
            ngram_weights=weights[order],
            ngram_counts=torch.bincount(ids, minlength=self.V),
        )
        self.onehot = F.one_hot(y, self.K).to(weights.dtype)
        self.factors = weights.new_ones(len(y)) if class_weights is None else class_weights.to(weights)[y]

    def split(self, point: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        weight, dense, bias = point.split([self.V * self.K, self.F * self.K, self.K])
        return weight.view(self.V, self.K), dense.view(self.F, self.K) if self.F else None, bias

    def minimise(self, point: Tensor, penalty: float, deadline_s: float | None) -> tuple[Tensor, bool]:
        """From a point; stops where the gradient has all but vanished, or at the deadline."""
        free = nn.Parameter(point.clone())
        # Two vectors of the size of the weights for each step that is remembered.
        remembered = max(3, min(10, _MEMORY_BYTES // (8 * len(point))))
        # The mean rather than the sum, so that tolerances mean the same for few and for many texts.
        n = max(len(self.onehot), 1)
        optimizer = torch.optim.LBFGS(
            [free], max_iter=_STRIDE, tolerance_grad=1e-7, tolerance_change=1e-10, history_size=remembered,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def objective() -> float:
            point = free.detach()
            log_p = torch.log_softmax(_logits(self.by_row, *self.split(point)), dim=1)
            loss = -((log_p * self.onehot).sum(1) * self.factors).sum()
            error = (log_p.exp() - self.onehot) * self.factors.unsqueeze(1)
            slopes = [_product(self.by_column, error).flatten()]
            if self.F:
                slopes.append((self.by_row["dense"].T @ error).flatten())
            slope = torch.cat([*slopes, error.sum(0)])
            penalised = point[: -self.K]
            slope[: -self.K] += penalty * penalised
            free.grad = slope / n
            return float(loss + 0.5 * penalty * (penalised**2).sum()) / n

        before = float("inf")
        for _ in range(_STRIDES):
            value = float(optimizer.step(objective))
            if before - value < 1e-3 * abs(value):
                return free.detach(), True
            before = value
            if deadline_s is not None and time.monotonic() > deadline_s:
                return free.detach(), False
        return free.detach(), True


def _logits(batch: Batch, weight: Tensor, dense: Tensor | None, bias: Tensor) -> Tensor:
    logits = _product(batch, weight) + bias
    return logits if dense is None else torch.addmm(logits, batch["dense"], dense)


def _product(batch: Batch, table: Tensor) -> Tensor:
    """The sparse rows of a batch times a dense matrix (V, K)."""
    counts = batch["ngram_counts"]
    if not len(batch["ngrams"]):
        return table.new_zeros(len(counts), table.shape[1])
    starts = (counts.cumsum(0) - counts).to(batch["ngrams"].dtype)
    weights = batch["ngram_weights"].to(table.dtype)
    return F.embedding_bag(batch["ngrams"], table, starts, mode="sum", per_sample_weights=weights)
