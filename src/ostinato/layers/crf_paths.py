"""Best paths of a linear chain: the Viterbi algorithm, for one path and for several.

Scores are float64: a path that breaks a constraint pays a penalty beyond all real scores and stays
comparable, so that a row without an allowed path gets the one that breaks the fewest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.layers.crf_sums import Allowed, working_dtype

_LEAST_PENALTY = 2.0**30


@dataclass(frozen=True)
class Edges:
    """Scores of transitions (K, K) [from, to], start (K,) and end (K,), penalties included.

    Attributes:
        penalty: what a path pays for each constraint it breaks, more than twice any path's own score; None
            where everything is allowed.
    """

    transitions: Tensor
    start: Tensor
    end: Tensor
    penalty: Tensor | None = None

    @classmethod
    def penalised(
        cls,
        transitions: Tensor,
        start: Tensor,
        end: Tensor,
        allowed: Allowed | None,
        emissions: Tensor,
        lengths: Tensor | None,
    ) -> Edges:
        """The scores, less the penalty where something is not allowed, for emissions (B, T, K)."""
        work = working_dtype(transitions)
        scores = [value.detach().to(work) for value in (transitions, start, end)]
        if allowed is None:
            return cls(*scores)
        edge = torch.stack([_largest(value) for value in scores]).amax()
        penalty = _penalty(emissions, lengths, edge)
        limits = (allowed.transitions, allowed.start, allowed.end)
        transitions, start, end = (
            torch.where(may, value, value - penalty) for value, may in zip(scores, limits, strict=True)
        )
        return cls(transitions, start, end, penalty)

    def without_penalty(self, scores: Tensor) -> Tensor:
        """The scores of paths by themselves, however many constraints they break."""
        return scores if self.penalty is None else scores + self.penalty * (scores / -self.penalty).round()


def _penalty(emissions: Tensor, lengths: Tensor | None, edge: Tensor) -> Tensor:
    """A power of two, so that next to nothing is lost when it is taken off; the same for most batches."""
    T = emissions.shape[1]
    if lengths is not None:
        padding = torch.arange(T, device=lengths.device) >= lengths.unsqueeze(1)
        emissions = emissions.masked_fill(padding.unsqueeze(2), 0.0)
    most = T * _largest(emissions).to(edge.dtype) + (T + 1) * edge
    return torch.exp2(torch.log2(4.0 * most + 1.0).ceil()).clamp(min=_LEAST_PENALTY)


def _largest(values: Tensor) -> Tensor:
    """The largest finite size."""
    sizes = values.detach().abs()
    return sizes.masked_fill(~sizes.isfinite(), 0.0).amax()


def best_path(emissions: Tensor, edges: Edges, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The path with the highest score: tags (B, T) int64, 0 beyond a row's length, and scores (B,).

    Only the scores are kept, and the tag before a chosen one is looked for on the way back, among K: indices
    kept for every tag would cost the whole forward pass more.

    Args:
        emissions: (B, T, K), T at least 1.
        edges: the other scores.
        lengths: (B,); None: T everywhere.

    Cost: 2·B·T·K² additions and comparisons, 8·B·T·K bytes.
    """
    B, T, K = emissions.shape
    scores = edges.start.new_empty(T, B, K)
    scores.copy_(emissions.transpose(0, 1))
    scores[0] += edges.start
    steps = scores.unbind(0)
    for t in range(1, T):
        steps[t].add_((steps[t - 1].unsqueeze(2) + edges.transitions).amax(1))
    tags = torch.zeros(T, B, dtype=torch.int64, device=emissions.device)
    into = edges.transitions.T.contiguous()
    rows = tags.unbind(0)
    if lengths is None:
        best = steps[-1] + edges.end
        tag = torch.argmax(best, dim=1, out=rows[-1])
        for t in range(T - 2, -1, -1):
            tag = torch.argmax(into.index_select(0, tag).add_(steps[t]), dim=1, out=rows[t])
        return tags.T, best.amax(1)
    counted = torch.arange(1, T + 1, device=tags.device).unsqueeze(1)
    ends = (counted == lengths).unsqueeze(2).unbind(0)
    best = scores[(lengths - 1).clamp(min=0), torch.arange(B, device=tags.device)] + edges.end
    tag = tags[0]
    for t in range(T - 1, -1, -1):
        reach = torch.where(ends[t], edges.end, into.index_select(0, tag)).add_(steps[t])
        tag = torch.argmax(reach, dim=1, out=rows[t])
    return tags.masked_fill_(counted > lengths, 0).T, best.amax(1).masked_fill_(lengths == 0, 0.0)


def best_paths(emissions: Tensor, edges: Edges, lengths: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """The n best paths of each row, best first: tags (B, n, T) and whether there are that many (B, n).

    Args:
        emissions: (B, T, K), T at least 1.
        edges: the other scores.
        lengths: (B,); None: T everywhere. Of an empty row nothing is said.
        n: how many.

    Cost: B·T·n·K² candidates, of which each step takes the n best for every tag.
    """
    B, T, K = emissions.shape
    work = edges.start.dtype
    scores = emissions.detach().to(work)
    # best[b, k, r]: score of the r-th best path that ends in tag k; -inf where there are fewer.
    best = scores.new_full((B, K, n), -torch.inf)
    best[:, :, 0] = edges.start + scores[:, 0]
    sources = []
    for t in range(1, T):
        reach = best.unsqueeze(3) + edges.transitions.unsqueeze(1)
        highest, source = reach.flatten(1, 2).topk(n, dim=1)
        after = highest.transpose(1, 2) + scores[:, t].unsqueeze(2)
        if lengths is not None:
            goes_on = (lengths > t).view(B, 1, 1)
            after = torch.where(goes_on, after, best)
        best = after
        sources.append(source.transpose(1, 2))
    ended = (best + edges.end.unsqueeze(1)).flatten(1)
    total, place = ended.topk(n, dim=1)
    tags = place.new_zeros(B, n, T)
    for t in range(T - 1, -1, -1):
        is_real = True if lengths is None else (lengths > t).unsqueeze(1)
        tags[:, :, t] = torch.where(torch.as_tensor(is_real), place // n, 0)
        if t:
            before = sources[t - 1].flatten(1).gather(1, place)
            place = torch.where(torch.as_tensor(is_real), before, place)
    return tags, total > (-torch.inf if edges.penalty is None else -edges.penalty / 2)
