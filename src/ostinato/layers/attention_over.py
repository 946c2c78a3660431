"""`AttentionOver`: what a query reads of a memory; additive, dot, general and local attention, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_sizes, make_stretch
from ostinato.layers.options import check_choice

KINDS = ("additive", "dot", "general", "local")


@dataclass(frozen=True, eq=False)
class Memory:
    """What an `AttentionOver` can read, prepared once for all queries.

    Attributes:
        keys: (B, S, A), what queries are compared with.
        values: (B, S, E), what is read; exactly 0 at steps that are not real.
        mask: (B, S), True at real steps; None where all are real.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None

    def select(self, rows: Tensor) -> Memory:
        """Keep or reorder or repeat rows (an index over B)."""
        mask = None if self.mask is None else self.mask[rows]
        return Memory(self.keys[rows], self.values[rows], mask)


class AttentionOver(nn.Module):
    """Softmax attention of queries (B, T, Q) over a memory (B, S, E).

        a_ts = softmax over the real s of score(q_t, m_s)        context_t = sum_s a_ts m_s

        additive    v · tanh(W_q q + W_m m + b)      Bahdanau et al. 2014, arXiv:1409.0473
        dot         q · m                            Luong et al. 2015, arXiv:1508.04025; needs Q = E
        general     q · W m                          the same
        local       general within the window |s - p| <= D, then times exp(-(s - p)^2 / (2 (D/2)^2)),
                    p = n sigmoid(v · tanh(W q)) for a row of n real steps: the same, local-p; the weights
                    then sum to less than 1

    With `coverage` the additive score also sees what was read before, W_m m + w c (See et al. 2017,
    arXiv:1704.04368); the caller sums the weights of earlier queries into c.

    Args:
        kind: a name in `KINDS`.
        query_size: Q.
        memory_size: E.
        attention_size: A of additive attention; None: Q.
        window: D of local attention, in steps to each side.
        coverage: whether scores see the sum of earlier weights; additive only.

    Raises:
        InputError: an unknown kind, a size below 1, `dot` over a memory of another width, or an option that
            this kind has no use for.

    Cost for each query: 2·S·(A + E) flops; additive also takes S·A tanh, and B·T·S·A values of memory.
    """

    def __init__(
        self,
        kind: str,
        query_size: int,
        memory_size: int,
        *,
        attention_size: int | None = None,
        window: int | None = None,
        coverage: bool = False,
    ):
        super().__init__()
        check_choice("AttentionOver", "kind", kind, KINDS)
        check_sizes("AttentionOver", query_size=query_size, memory_size=memory_size)
        if kind == "dot" and query_size != memory_size:
            raise InputError(
                f"AttentionOver: kind='dot' compares queries of width {query_size} with a memory of width "
                f"{memory_size}; make them equal or take kind='general'"
            )
        for name, value, owner in (
            ("attention_size", attention_size, "additive"),
            ("window", window, "local"),
            ("coverage", coverage or None, "additive"),
        ):
            if value is not None and kind != owner:
                raise InputError(
                    f"AttentionOver: {name}={value!r} acts on kind={owner!r}, and kind is {kind!r}"
                )
        self.kind, self.query_size, self.memory_size = kind, query_size, memory_size
        size = query_size if attention_size is None else attention_size
        self.window = 10 if window is None else window
        check_sizes("AttentionOver", attention_size=size, window=self.window)
        self.of_query = nn.Linear(query_size, size, bias=False) if kind == "additive" else None
        if kind == "dot":
            self.of_memory = None
        else:
            self.of_memory = nn.Linear(memory_size, size, bias=kind == "additive")
        # As wide as leaves the first attention nearly even, yet passes a gradient on.
        self.v = nn.Parameter(torch.randn(size) / size**0.5) if kind == "additive" else None
        self.of_coverage = nn.Parameter(torch.randn(size) / size**0.5) if coverage else None
        self.place = None
        if kind == "local":
            self.place = nn.Sequential(
                nn.Linear(query_size, query_size, bias=False), nn.Tanh(), nn.Linear(query_size, 1, bias=False)
            )

    def remember(
        self, values: Tensor, *, lengths: Tensor | Sequence[int] | None = None, mask: Tensor | None = None
    ) -> Memory:
        """Prepare a memory (B, S, E) for any number of calls.

        Args:
            values: what stands at steps that are not real, NaN included, has no influence at all.
            lengths: (B,) how many steps of each row are real, from the first on; None: all.
            mask: (B, S) True at real steps, anywhere; not together with `lengths`.

        Raises:
            SizeError: another width than E, or lengths and masks that do not fit.
        """
        if values.dim() != 3 or values.shape[2] != self.memory_size:
            raise SizeError(
                f"AttentionOver: the memory has shape {tuple(values.shape)}, expected "
                f"(B, S, {self.memory_size})"
            )
        real = make_stretch(
            "AttentionOver", values, lengths=lengths, mask=mask, resets=None, dt=None, takes_dt=False
        ).mask
        if real is not None:
            values = values.masked_fill(~real.unsqueeze(2), 0.0)
        keys = values if self.of_memory is None else self.of_memory(values)
        return Memory(keys, values, real)

    def forward(self, query: Tensor, memory: Memory, coverage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Contexts (B, T, E) and weights (B, T, S) of queries (B, T, Q).

        Weights are exactly 0 at steps that are not real. A row without real steps gives zeros.

        Args:
            query: each is answered by itself.
            memory: from `remember`.
            coverage: (B, T, S), what queries before each have read; for `coverage=True`, and only there.

        Raises:
            SizeError: shapes that do not fit.
            InputError: coverage where none is used, or none where it is.
        """
        if query.dim() != 3 or query.shape[2] != self.query_size or len(query) != len(memory.values):
            raise SizeError(
                f"AttentionOver: queries have shape {tuple(query.shape)}, expected "
                f"({len(memory.values)}, T, {self.query_size})"
            )
        if (coverage is None) != (self.of_coverage is None):
            said = "needs" if coverage is None else "has no use for"
            raise InputError(f"AttentionOver: this attention {said} coverage (B, T, S)")
        scores = self._scores(query, memory.keys, coverage)
        if self.place is not None:
            weights = self._near(query, scores, memory.mask)
        else:
            weights = masked_softmax(scores, memory.mask)
        return torch.bmm(weights, memory.values.to(weights.dtype)), weights

    def _scores(self, query: Tensor, keys: Tensor, coverage: Tensor | None) -> Tensor:
        """(B, T, S)."""
        if self.of_query is None:
            return torch.bmm(query, keys.to(query.dtype).transpose(1, 2))
        assert self.v is not None
        compared = self.of_query(query).unsqueeze(2) + keys.unsqueeze(1)
        if coverage is not None:
            assert self.of_coverage is not None
            compared = compared + coverage.unsqueeze(3) * self.of_coverage
        return F.linear(torch.tanh(compared), self.v.unsqueeze(0)).squeeze(3)

    def _near(self, query: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Weights about a place that the query says."""
        assert self.place is not None
        B, _, S = scores.shape
        if mask is None:
            steps = torch.arange(S, device=scores.device).expand(B, S)
            n = steps.new_full((B,), S)
        else:
            # Among the real steps only: what is not real has no place.
            steps, n = mask.cumsum(1) - 1, mask.sum(1)
        centre = torch.sigmoid(self.place(query)) * n.view(B, 1, 1)
        distance = steps.unsqueeze(1) - centre
        is_near = distance.abs() <= self.window
        if mask is not None:
            is_near = is_near & mask.unsqueeze(1)
        return masked_softmax(scores, is_near) * torch.exp(distance.square() * (-2.0 / self.window**2))


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of (B, T, S) over S where the mask (B, S) or (B, T, S) is True, exactly 0 elsewhere."""
    if mask is None:
        return torch.softmax(scores, dim=2)
    hidden = ~(mask if mask.dim() == 3 else mask.unsqueeze(1))
    # The lowest number rather than -inf, with which an empty row would have NaN in its gradient.
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=2).masked_fill(hidden, 0.0)


def coverage_loss(weights: Tensor, before: Tensor | None = None) -> Tensor:
    """How much each query reads again what was read before it: sum_s min(a_ts, sum_{t' < t} a_t's).

    See et al. 2017 (arXiv:1704.04368), eq. 12.

    Args:
        weights: (B, T, S).
        before: (B, S) read before the first query; None: nothing.

    Returns:
        (B, T).
    """
    covered = weights.cumsum(1) - weights
    if before is not None:
        covered = covered + before.unsqueeze(1)
    return torch.minimum(weights, covered).sum(2)
