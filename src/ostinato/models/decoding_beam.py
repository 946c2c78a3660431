"""Beam search over all rows and hypotheses at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.models.decoding_result import Decoded
from ostinato.models.decoding_rules import Rules, Scorer, Step
from ostinato.types import map_state

_LENGTHS = {"gnmt": lambda n, alpha: ((5 + n) / 6) ** alpha, "plain": lambda n, alpha: n**alpha}
_COVERAGES = ("uncovered", "repeated")
# Attention below this counts as this: a place never looked at would otherwise cost infinitely much.
_LEAST_ATTENTION = 1e-6


@dataclass(frozen=True)
class LengthPenalty:
    """What a log-probability is divided by, so that long sequences may win: n tokens, the end token counted.

    Attributes:
        alpha: 0: nothing; 1 with `plain`: the mean log-probability of a token.
        kind: `gnmt`: ((5 + n) / 6)^alpha (arXiv:1609.08144, eq. 14); `plain`: n^alpha.
        lookahead: a search is done when nothing that its hypotheses can become within so many more tokens
            would be among its best. None: within `max_length`, which is exact, and with a steep penalty long.
    """

    alpha: float = 0.6
    kind: str = "gnmt"
    lookahead: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _LENGTHS:
            raise InputError(f"LengthPenalty: unknown kind {self.kind!r}; known: {', '.join(_LENGTHS)}")
        if not 0 <= self.alpha < float("inf"):
            raise InputError(f"LengthPenalty: alpha must be 0 or more, found {self.alpha}")
        if self.lookahead is not None and self.lookahead < 0:
            raise InputError(f"LengthPenalty: lookahead must be 0 or more, or None, found {self.lookahead}")

    def divisor(self, n: Tensor) -> Tensor:
        """For lengths n >= 1, elementwise; never falls with n."""
        return _LENGTHS[self.kind](n.to(torch.float64), self.alpha)


@dataclass(frozen=True, eq=False)
class CoveragePenalty:
    """Added to the scores of whole sequences, by how much attention each place of the source got: its sum c.

    Hypotheses in the making are ranked without it: they have not looked at everything yet.

    Attributes:
        weight: beta, 0 or more.
        kind: `uncovered`: beta · sum log min(c, 1), against forgetting (arXiv:1609.08144, eq. 14; c is taken
            as at least 1e-6); `repeated`: -beta · sum max(c - 1, 0), against saying twice (arXiv:1808.10792).
        source_lengths: (B,), places beyond them do not count; None: all count.
    """

    weight: float
    kind: str = "uncovered"
    source_lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in _COVERAGES:
            raise InputError(f"CoveragePenalty: unknown kind {self.kind!r}; known: {', '.join(_COVERAGES)}")
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"CoveragePenalty: weight must be 0 or more, found {self.weight}")

    def penalty(self, attended: Tensor, rows: Tensor) -> Tensor:
        """attended (b, W, S) -> (b, W), 0 or less."""
        if self.kind == "uncovered":
            places = attended.clamp(_LEAST_ATTENTION, 1).log()
        else:
            places = -(attended - 1).clamp(min=0)
        if self.source_lengths is not None:
            beyond = torch.arange(places.shape[2], device=places.device) >= self.source_lengths[rows].view(
                -1, 1, 1
            )
            places = places.masked_fill(beyond, 0)
        return self.weight * places.sum(2)


def beam_search(
    step: Step,
    state: Any,
    start: Tensor,
    *,
    end: int | None,
    max_length: int | Tensor,
    beam: int = 5,
    n_best: int = 1,
    length_penalty: LengthPenalty | None = None,
    coverage: CoveragePenalty | None = None,
    rules: Rules | None = None,
) -> Decoded:
    """The most probable sequences that a beam of hypotheses comes across.

    At each step the K best continuations of a row's hypotheses are kept. Those that end are set aside with
    their final score, and K others take the place of all at the next step. A row is done when nothing that
    its hypotheses can still become would be among its n best: the result is that of a search to `max_length`
    (unless `length_penalty.lookahead` says that fewer tokens are enough).
    A sequence cut off there is given only where fewer than n ended.

    Args:
        step: see `ostinato.models.decoding`.
        state: before the start token; tensors (B, ...).
        start: (B,) int64, the tokens that the first step reads.
        end: the token that ends a sequence; None: nothing but `max_length` does.
        max_length: at most so many tokens, the end token counted; a number, or int64 (B,).
        beam: K. More than there are sequences is the same as all of them.
        n_best: n, how many to give, at most K.
        length_penalty: None: the log-probability is the score.
        coverage: needs a step that gives attention.
        rules: forced, forbidden and fused; with a second model of negative weight nothing bounds what a
            hypothesis can become, and the search always goes to `max_length`.

    Raises:
        InputError: an argument out of its range; NaN among the logits.
        SizeError: shapes that do not fit.

    Cost: one `step` per token over at most K hypotheses of every row that is not done. Beside the states
    16·K bytes per row and token, and 4·K·S where the step gives attention.
    """
    if isinstance(beam, bool) or not isinstance(beam, int) or beam < 1:
        raise InputError(f"beam_search: beam must be 1 or more, a whole number, found {beam!r}")
    if not 1 <= n_best <= beam:
        raise InputError(f"beam_search: n_best must be from 1 to beam ({beam}), found {n_best}")
    scorer = Scorer("beam_search", step, rules, start, end=end, max_length=max_length)
    places = None if coverage is None else coverage.source_lengths
    if places is not None and places.shape != start.shape:
        raise SizeError(
            f"beam_search: coverage.source_lengths must have shape {tuple(start.shape)}, found "
            f"{tuple(places.shape)}"
        )
    with torch.no_grad():
        search = _Search(scorer, start, beam, n_best, length_penalty or LengthPenalty(0.0), coverage)
        search.run(scorer.initial(state, len(start)))
        return search.results()


class _Step(NamedTuple):
    """What one step chose, for the rows that were left."""

    rows: Tensor  # (b,)
    parents: Tensor  # (b, W) places among the hypotheses of the step before
    tokens: Tensor  # (b, W)
    attention: Tensor | None  # (b, hypotheses before, S)


class _Pool:
    """The n best whole sequences of each row, best first.

    A sequence is where its last token stands among the steps: step `when` (-1: it has none), place `slot`.
    """

    def __init__(self, B: int, n: int, device: torch.device):
        self.n = n
        self.scores = torch.full((B, n), -torch.inf, dtype=torch.float64, device=device)
        self.log_probs = self.scores.clone()
        self.when = torch.full((B, n), -1, device=device)
        self.slots = torch.zeros_like(self.when)
        self.ended = torch.zeros(B, n, dtype=torch.bool, device=device)

    def add(
        self, rows: Tensor, scores: Tensor, log_probs: Tensor, slots: Tensor, when: int, ended: Tensor
    ) -> None:
        """Others (b, W) of these rows; a score of -inf is none. `ended` is (b, W)."""
        ours = (self.scores, self.log_probs, self.when, self.slots, self.ended)
        theirs = (scores, log_probs, torch.full_like(slots, when), slots, ended)
        both = [torch.cat([a[rows], b.to(a.dtype)], 1) for a, b in zip(ours, theirs, strict=True)]
        order = both[0].argsort(dim=1, descending=True, stable=True)
        # Those that ended come first, whatever their score.
        is_last = ~both[4] | both[0].isneginf()
        order = order.gather(1, is_last.gather(1, order).byte().argsort(dim=1, stable=True))[:, : self.n]
        for a, b in zip(ours, both, strict=True):
            a[rows] = b.gather(1, order)


class _Search:
    def __init__(
        self,
        scorer: Scorer,
        start: Tensor,
        beam: int,
        n_best: int,
        length: LengthPenalty,
        coverage: CoveragePenalty | None,
    ):
        self.scorer, self.beam, self.length, self.coverage = scorer, beam, length, coverage
        B, device = len(start), start.device
        self.pool = _Pool(B, n_best, device)
        self.steps: list[_Step] = []
        self.rows = torch.arange(B, device=device)
        self.tokens = start
        self.totals: Tensor | None = None  # (b, W), -inf where a row has fewer hypotheses
        self.prefix = start.new_empty(B, 0) if scorer.needs_prefix else None
        self.attended: Tensor | None = None  # (b, W, S)
        self.has_ended = False

    def run(self, state: Any) -> None:
        """Until no row is left."""
        W = 1
        for t in range(self.scorer.longest):
            b = len(self.rows)
            rows = self.rows.unsqueeze(1).expand(b, W).reshape(-1)
            scores, state, attention = self.scorer(t, self.tokens, state, rows, self.prefix)
            if attention is not None:
                attention = attention.view(b, W, -1)
                if self.coverage is not None:
                    self.attended = attention if self.attended is None else self.attended + attention
            elif self.coverage is not None:
                raise InputError("beam_search: coverage needs attention, but step returned none")
            totals, parents, tokens = self._best(t, scores.view(b, W, -1))
            totals = self._set_aside(t, totals, parents, tokens)
            totals, parents, tokens = _without_dead(totals, parents, tokens)
            if not tokens.shape[1]:
                return
            self.steps.append(_Step(self.rows, parents, tokens, attention))
            kept = self._unfinished(t, totals)
            if not len(kept):
                return
            before = parents
            if b > 1:
                before = parents + torch.arange(0, b * W, W, device=kept.device).unsqueeze(1)
            if len(kept) < b:
                before, totals, tokens = before[kept], totals[kept], tokens[kept]
                self.rows = self.rows[kept]
            state = self._reorder(before.flatten(), state)
            W = tokens.shape[1]
            self.totals, self.tokens = totals, tokens.flatten()
            if self.prefix is not None:
                self.prefix = torch.cat([self.prefix, self.tokens.unsqueeze(1)], 1)

    def _best(self, t: int, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The K best continuations of each row (b, K): their sums, hypotheses and tokens."""
        W, V = scores.shape[1:]
        K = min(self.beam, W * V)
        # With one hypothesis its sum changes nothing about the order, and would cost digits.
        sums = scores if W == 1 or self.totals is None else scores + self.totals.unsqueeze(2)
        if K == 1:
            places = sums.flatten(1).argmax(1, keepdim=True)
            totals = sums.flatten(1).gather(1, places)
        else:
            totals, places = sums.flatten(1).topk(K, 1)
        if torch.isnan(totals[:, 0].sum()).item():
            self.scorer.refuse(t, self.rows[totals[:, 0].isnan()])
        if W == 1 and self.totals is not None:
            totals = totals + self.totals
        return totals, places // V, places % V

    def _set_aside(self, t: int, totals: Tensor, parents: Tensor, tokens: Tensor) -> Tensor:
        """Put what ends among the whole sequences; the sums, -inf there."""
        if self.scorer.end is None:
            return totals
        ends = tokens == self.scorer.end
        if not bool(ends.any()):
            return totals
        self.has_ended = True
        ended = totals.masked_fill(~ends, -torch.inf)
        self.pool.add(self.rows, self._final(t, ended, parents), ended, parents, t - 1, ends)
        return totals.masked_fill(ends, -torch.inf)

    def _final(self, t: int, totals: Tensor, parents: Tensor) -> Tensor:
        """The scores of sequences of t + 1 tokens."""
        final = totals.double() / self.length.divisor(torch.tensor(t + 1))
        if self.coverage is not None and self.attended is not None:
            final += self.coverage.penalty(self.attended, self.rows).gather(1, parents)
        return final

    def _unfinished(self, t: int, totals: Tensor) -> Tensor:
        """Which rows go on (an index over b); of those at their full length keep what is cut off."""
        done = totals[:, 0].isneginf()
        if t + 1 >= self.scorer.longest or not self.scorer.is_even:
            is_full = self.scorer.max_lengths[self.rows] <= t + 1
            full = is_full.nonzero()[:, 0]
            if len(full):
                self._cut_off(t, full, totals)
            done |= is_full
        if self.has_ended and self.scorer.only_falls:
            # No term can rise: tokens only lower the sum, and the longest sequence has the largest divisor.
            longest = self.scorer.max_lengths[self.rows]
            if self.length.lookahead is not None:
                longest = longest.clamp(max=t + 1 + self.length.lookahead)
            bound = totals[:, 0].double() / self.length.divisor(longest)
            pool = self.pool
            done |= pool.ended[self.rows, -1] & (pool.scores[self.rows, -1] >= bound)
        return (~done).nonzero()[:, 0]

    def _cut_off(self, t: int, full: Tensor, totals: Tensor) -> None:
        scores = self._final(t, totals, self.steps[-1].parents)[full]
        totals = totals[full]
        slots = torch.arange(totals.shape[1], device=totals.device).expand_as(totals)
        self.pool.add(self.rows[full], scores, totals, slots, t, torch.zeros_like(slots, dtype=torch.bool))

    def _reorder(self, before: Tensor, state: Any) -> Any:
        """Go on with these hypotheses (an index over b·W); the states, likewise."""
        if self.prefix is not None:
            self.prefix = self.prefix[before]
        if self.attended is not None:
            self.attended = self.attended.flatten(0, 1)[before].view(
                len(self.rows), -1, self.attended.shape[2]
            )
        return map_state(lambda leaf: leaf[before], state)

    def results(self) -> Decoded:
        """Follow the whole sequences back to their beginnings."""
        pool = self.pool
        B, n = pool.when.shape
        T = int(pool.when.max()) + 1
        tokens = pool.slots.new_full((B, n, T), self.scorer.end or 0)
        attention = None
        if self.steps and (like := self.steps[0].attention) is not None:
            attention = like.new_zeros(B, n, T, like.shape[2])
        slots = torch.zeros_like(pool.slots)
        for t in reversed(range(T)):
            step = self.steps[t]
            slots = torch.where(pool.when == t, pool.slots, slots)
            here, is_there = slots[step.rows], pool.when[step.rows] >= t
            parents = step.parents.gather(1, here)
            tokens[step.rows, :, t] = torch.where(
                is_there, step.tokens.gather(1, here), tokens[step.rows, :, t]
            )
            if attention is not None and step.attention is not None:
                index = parents.unsqueeze(2).expand(-1, -1, attention.shape[3])
                looked = step.attention.gather(1, index)
                attention[step.rows, :, t] = looked.masked_fill(~is_there.unsqueeze(2), 0)
            slots[step.rows] = torch.where(is_there, parents, here)
        return Decoded(tokens, pool.when + 1, pool.ended, pool.scores, pool.log_probs, attention)


def _without_dead(totals: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Those that go on first, and no more places than the row with the most of them needs."""
    dead = totals.isneginf()
    if not bool(dead.any()):
        return totals, *others
    W = totals.shape[1] - int(dead.sum(1).min())
    order = dead.byte().argsort(dim=1, stable=True)[:, :W]
    return totals.gather(1, order), *(other.gather(1, order) for other in others)
