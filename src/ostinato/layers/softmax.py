"""Output layers over large vocabularies: softmax fused with cross-entropy, whole or in clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_sizes

# Numbers of a block of logits: such a block stays in a CPU's cache between the passes over it.
_BLOCK = 2_500_000
_LEAST_ROWS = 64
NARROWER = 4
"""Each cluster's vectors are this many times narrower than those of the cluster before it."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Block by block of rows: logits, their softmax in place, and in training the gradient too."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, compute: torch.dtype
    ) -> Tensor:
        needs = [ctx.needs_input_grad[i] for i in range(3)]
        N, V = h.shape[0], weight.shape[0]
        exact = torch.promote_types(compute, torch.float32)
        given, table = h.to(compute), weight.to(compute)
        rows = max(_LEAST_ROWS, _BLOCK // V)
        buffer = given.new_empty(min(rows, N), V, dtype=exact) if compute == exact else None
        d_h = torch.empty_like(given) if needs[0] else None
        d_weight = torch.zeros_like(weight, dtype=exact) if needs[1] else None
        d_bias = weight.new_zeros(V, dtype=exact) if needs[2] else None
        total = torch.zeros((), dtype=torch.float64, device=h.device)
        if h.device.type == "mps":
            total = total.float()
        for first in range(0, N, rows):
            x, y = given[first : first + rows], targets[first : first + rows].unsqueeze(1)
            out = None if buffer is None else buffer[: len(x)]
            p = torch.mm(x, table.t(), out=out).to(exact)
            if bias is not None:
                p.add_(bias)
            highest = p.amax(1, keepdim=True)
            right = p.gather(1, y)
            p.sub_(highest).exp_()
            mass = p.sum(1, keepdim=True)
            total += (mass.log() + highest - right).sum(dtype=total.dtype)
            if not any(needs):
                continue
            p.div_(mass).scatter_add_(1, y, torch.full_like(mass, -1.0))
            if d_bias is not None:
                d_bias += p.sum(0)
            p = p.to(compute)
            if d_h is not None:
                torch.mm(p, table, out=d_h[first : first + rows])
            if d_weight is not None and compute == exact:
                d_weight.addmm_(p.t(), x)
            elif d_weight is not None:
                d_weight += p.t() @ x
        ctx.save_for_backward(
            None if d_h is None else d_h.to(h.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
        )
        return total.to(exact)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradients: list[Tensor | None] = []
        for kept in ctx.saved_tensors:
            if kept is None:
                gradients.append(None)
            elif upstream == 1:
                gradients.append(kept)
            else:
                # In place: a second pass through the graph is refused by autograd's count of versions.
                gradients.append(kept.mul_(upstream.to(kept.dtype)))
        return *gradients, None, None


def linear_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Σ -log softmax(h Wᵀ + b)[target]: the sum over rows, without an (N, V) tensor of logits or gradients.

    In training the gradient is computed together with the loss, while a block of logits is in the cache; it
    can be taken once. Under autocast the products are in its dtype and the softmax in float32.

    Args:
        h: (N, E).
        weight: (V, E).
        bias: (V,) or None.
        targets: (N,) int64, 0 … V-1.

    Raises:
        SizeError: shapes that do not fit.

    Cost: 2·N·V·E flops, three times that in training; memory for a block of logits (10 MB, or 64 rows) and
    for the gradients of the arguments.
    """
    if h.dim() != 2 or weight.dim() != 2 or h.shape[1] != weight.shape[1] or targets.shape != h.shape[:1]:
        raise SizeError(
            f"linear_cross_entropy: h {tuple(h.shape)}, weight {tuple(weight.shape)}, targets "
            f"{tuple(targets.shape)}; expected (N, E), (V, E) and (N,)"
        )
    device = h.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        total: Tensor = _LinearCrossEntropy.apply(h, weight, bias, targets, compute)
    return total


class ClusterTables(nn.Module):
    """Vectors of V units in clusters of falling frequency, rarer ones narrower (arXiv:1809.10853).

    One cluster is a plain table (V, E). The vectors of cluster k are E / 4^k wide, and a matrix of the
    cluster makes them E wide. The same tables serve as embeddings and as the weights of `SoftmaxHead`.

    Args:
        vocabulary_size: V; ids must be sorted by falling frequency where there are cutoffs.
        width: E.
        cutoffs: the first ids of the second cluster, of the third, …; () for one cluster.

    Raises:
        InputError: cutoffs that are not increasing numbers between 0 and V; a size below 1.
    """

    def __init__(self, vocabulary_size: int, width: int, cutoffs: Sequence[int] = ()):
        super().__init__()
        check_sizes("ClusterTables", vocabulary_size=vocabulary_size, width=width)
        self.bounds = (0, *cutoffs, vocabulary_size)
        if any(b <= a for a, b in zip(self.bounds, self.bounds[1:], strict=False)):
            raise InputError(
                f"cutoffs {tuple(cutoffs)}: expected increasing numbers between 0 and V={vocabulary_size}"
            )
        self.vocabulary_size, self.width = vocabulary_size, width
        widths = [max(8, width // NARROWER**k) if k else width for k in range(len(self.bounds) - 1)]
        self.weights = nn.ParameterList(
            torch.empty(self.bounds[k + 1] - self.bounds[k], w) for k, w in enumerate(widths)
        )
        self.projections = nn.ParameterList(torch.empty(width, w) for w in widths[1:])
        for weight in self.weights:
            nn.init.uniform_(weight, -0.1, 0.1)
        for projection in self.projections:
            nn.init.xavier_uniform_(projection)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors of ids of any shape: (*, E)."""
        if len(self.weights) == 1:
            return nn.functional.embedding(ids, self.weights[0])
        flat = ids.reshape(-1)
        vectors = self.weights[0].new_zeros(len(flat), self.width)
        for k, weight in enumerate(self.weights):
            first, last = self.bounds[k], self.bounds[k + 1]
            rows = ((flat >= first) & (flat < last)).nonzero().squeeze(1)
            own = nn.functional.embedding(flat[rows] - first, weight)
            if k:
                own = nn.functional.linear(own, self.projections[k - 1])
            vectors = vectors.index_copy(0, rows, own.to(vectors.dtype))
        return vectors.view(*ids.shape, self.width)


class SoftmaxHead(nn.Module):
    """Probabilities of V units, whole or in clusters: adaptive softmax (arXiv:1609.04309).

    With clusters, P(w) = P(w | frequent) for a unit of the first one, else P(cluster) · P(w | cluster): the
    frequent units and the clusters share one softmax, and a tail is computed only for rows whose target is in
    it. The probabilities are exact, and those of all units sum to one.

    Args:
        tables: whose clusters these are. At each call tables are passed whose vectors are the weights, by
            `tied` the very ones of the embedding.

    Cost: a row of the first cluster 2·E·(n₀ + K) flops, one of tail k 2·E_k·(E + n_k) more.
    """

    def __init__(self, tables: ClusterTables):
        super().__init__()
        sizes = [len(weight) for weight in tables.weights]
        self.n_clusters = len(sizes) - 1
        self.bounds = tables.bounds
        self.biases = nn.ParameterList(
            torch.zeros(size + (self.n_clusters if k == 0 else 0)) for k, size in enumerate(sizes)
        )
        if self.n_clusters:
            self.clusters = nn.Parameter(torch.empty(self.n_clusters, tables.width).uniform_(-0.1, 0.1))

    def loss(self, h: Tensor, targets: Tensor, tables: ClusterTables) -> Tensor:
        """Σ -log P(target) over the rows of h (N, E), targets (N,)."""
        if not self.n_clusters:
            return linear_cross_entropy(h, tables.weights[0], self.biases[0], targets)
        first = targets.clone()
        total = h.new_zeros((), dtype=torch.promote_types(h.dtype, torch.float32))
        for k in range(1, self.n_clusters + 1):
            begin, end = self.bounds[k], self.bounds[k + 1]
            rows = ((targets >= begin) & (targets < end)).nonzero().squeeze(1)
            if not len(rows):
                continue
            first[rows] = self.bounds[1] + k - 1
            narrow = nn.functional.linear(h[rows], tables.projections[k - 1].t())
            own = targets[rows] - begin
            total = total + linear_cross_entropy(narrow, tables.weights[k], self.biases[k], own)
        return total + linear_cross_entropy(h, self._head_weight(tables), self.biases[0], first)

    @torch.no_grad()
    def unit_nats(self, h: Tensor, targets: Tensor, tables: ClusterTables) -> Tensor:
        """(N,) -log P(target) of each row, without gradients; block by block of rows."""
        rows = max(_LEAST_ROWS, _BLOCK // tables.vocabulary_size)
        said = []
        for x, y in zip(h.split(rows), targets.split(rows), strict=True):
            log_probs = self.log_probs(x, tables).float()
            right = log_probs.gather(1, y.unsqueeze(1)).squeeze(1)
            said.append((log_probs.logsumexp(1) - right) if not self.n_clusters else -right)
        return torch.cat(said) if said else h.new_zeros(0)

    def log_probs(self, h: Tensor, tables: ClusterTables) -> Tensor:
        """(N, V) log-probabilities of all units; of one cluster the logits, which differ by a constant."""
        head = nn.functional.linear(h, self._head_weight(tables), self.biases[0])
        if not self.n_clusters:
            return head
        head = torch.log_softmax(head, dim=1)
        parts = [head[:, : self.bounds[1]]]
        for k in range(1, self.n_clusters + 1):
            narrow = nn.functional.linear(h, tables.projections[k - 1].t())
            own = nn.functional.linear(narrow, tables.weights[k], self.biases[k])
            at = self.bounds[1] + k - 1
            parts.append(torch.log_softmax(own, dim=1) + head[:, at : at + 1])
        return torch.cat(parts, dim=1)

    def _head_weight(self, tables: ClusterTables) -> Tensor:
        if not self.n_clusters:
            return tables.weights[0]
        return torch.cat([tables.weights[0], self.clusters])


def choose_cutoffs(vocabulary_size: int) -> tuple[int, ...]:
    """Where clusters of rarer units begin: at a twentieth and at a third of the units."""
    return tuple(
        sorted({n for n in (vocabulary_size // 20, vocabulary_size // 3) if 0 < n < vocabulary_size})
    )
