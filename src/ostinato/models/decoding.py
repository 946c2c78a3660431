"""Sequences out of a model that knows the next token: greedy, sampled, one token at a time; and beam search.

All of it sees nothing but a function

    step(tokens (N,) int64, state) -> (logits or log-probabilities (N, V), state)

which may return the attention (N, S) of its steps as a third value. `state` is any pytree whose tensors have
the N sequences first, so that going on with some of them, in another order, is one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.models.decoding_beam import CoveragePenalty, LengthPenalty, beam_search
from ostinato.models.decoding_draws import Draw, Uniforms
from ostinato.models.decoding_result import Decoded
from ostinato.models.decoding_rules import Fusion, Rules, Scorer, Step
from ostinato.types import map_state

__all__ = [
    "CoveragePenalty",
    "Decoded",
    "Fusion",
    "LengthPenalty",
    "Rules",
    "beam_search",
    "greedy",
    "sample",
    "stream",
]


def greedy(
    step: Step,
    state: Any,
    start: Tensor,
    *,
    end: int | None,
    max_length: int | Tensor,
    rules: Rules | None = None,
) -> Decoded:
    """At every step the most probable token: what `beam_search` gives with a beam of one.

    Args:
        step: see the module.
        state: before the start token; tensors (B, ...).
        start: (B,) int64, the tokens that the first step reads: a begin token, or a prompt's last one, whose
            others `state` has read.
        end: the token that ends a sequence; None: nothing but `max_length` does.
        max_length: at most so many tokens, the end token counted; a number, or int64 (B,).
        rules: forced, forbidden and fused; see `Rules`.

    Returns:
        One sequence per row.

    Raises:
        InputError: an argument out of its range; NaN among the logits.
        SizeError: shapes that do not fit.

    Cost: one `step` per token over the rows that have not ended, and one pass over its logits.
    """
    scorer = Scorer("greedy", step, rules, start, end=end, max_length=max_length)
    draw = Draw("greedy", 0, None, None)
    return _collect(_walk(scorer, state, start, draw, None), torch.arange(len(start)).unsqueeze(1), end)


def sample(
    step: Step,
    state: Any,
    start: Tensor,
    *,
    end: int | None,
    max_length: int | Tensor,
    seed: int | Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rules: Rules | None = None,
) -> Decoded:
    """Random sequences: every token drawn from the model's distribution, tempered and cut as asked.

    What a row gets is a function of its seed and its scores: it does not depend on the other rows of the
    batch, nor on when they end.

    Args:
        step: see the module.
        state: as for `greedy`.
        start: as for `greedy`.
        end: as for `greedy`.
        max_length: as for `greedy`.
        seed: a number: row b takes seed + b; int64 (B,): each row's own; int64 (B, n): n sequences a row.
        temperature: the scores are divided by it: below 1 bolder, above 1 more even; 0: `greedy`.
        top_k: draw among the k most probable tokens.
        top_p: draw among the fewest tokens that together have this probability.
        rules: as for `greedy`.

    Returns:
        n sequences per row in the order of the seeds; scores and log_probs are the model's, at temperature 1.

    Raises:
        InputError: an argument out of its range; NaN among the logits.
        SizeError: shapes that do not fit.
    """
    scorer = Scorer("sample", step, rules, start, end=end, max_length=max_length)
    draw = Draw("sample", temperature, top_k, top_p)
    seeds = _seeds("sample", seed, len(start))
    n = seeds.shape[1]
    uniforms = None if draw.is_greedy else Uniforms(seeds.flatten().tolist(), start.device)
    numbers = torch.arange(len(start) * n).view(-1, n)
    return _collect(_walk(scorer, state, start, draw, uniforms, n), numbers, end)


def stream(
    step: Step,
    state: Any,
    start: Tensor,
    *,
    end: int | None,
    max_length: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rules: Rules | None = None,
) -> Iterator[int]:
    """The tokens of one sampled sequence, each as soon as it is drawn; the end token is not given.

    They are those that `sample` gives; see there for the arguments. B is 1.

    Raises:
        InputError: also where the rules leave no token, which would otherwise look like an end.
    """
    if start.shape != (1,):
        raise SizeError(f"stream: start must have shape (1,), found {tuple(start.shape)}; sample takes more")
    scorer = Scorer("stream", step, rules, start, end=end, max_length=max_length)
    draw = Draw("stream", temperature, top_k, top_p)
    seeds = _seeds("stream", seed, 1).flatten().tolist()
    uniforms = None if draw.is_greedy else Uniforms(seeds, start.device)
    return _one_by_one(_walk(scorer, state, start, draw, uniforms), end)


_SEEDS = 1 << 63


class _Tokens(NamedTuple):
    """One step: the sequences that it was for (None: all of them), and for each of these its token."""

    sequences: Tensor | None
    tokens: Tensor  # (N, 1)
    log_probs: Tensor  # (N, 1)
    attention: Tensor | None


@torch.no_grad()
def _walk(
    scorer: Scorer, state: Any, start: Tensor, draw: Draw, uniforms: Uniforms | None, n: int = 1
) -> Iterator[_Tokens]:
    """One token for every sequence that has not ended; n sequences for each row."""
    state = scorer.initial(state, len(start))
    rows = torch.arange(len(start), device=start.device)
    tokens = start
    if n > 1:
        rows, tokens, state = map_state(lambda leaf: leaf.repeat_interleave(n, 0), (rows, tokens, state))
    prefix = tokens.new_empty(len(tokens), 0) if scorer.needs_prefix else None
    sequences: Tensor | None = None
    for t in range(scorer.longest):
        scores, state, attention = scorer(t, tokens, state, rows, prefix)
        chosen = scores.argmax(1, keepdim=True) if uniforms is None else draw(scores, uniforms.next())
        log_probs = scores.gather(1, chosen)
        if torch.isnan(log_probs.sum()).item():
            scorer.refuse(t, rows[log_probs[:, 0].isnan()])
        yield _Tokens(sequences, chosen, log_probs, attention)
        tokens = chosen[:, 0]
        if prefix is not None:
            prefix = torch.cat([prefix, chosen], 1)
        if not _may_end(scorer, tokens, t):
            continue
        kept = (~_ended(scorer, tokens, log_probs[:, 0], rows, t)).nonzero()[:, 0]
        if not len(kept):
            return
        if len(kept) < len(tokens):
            sequences = kept if sequences is None else sequences[kept]
            rows, tokens, prefix, state = _select(kept, (rows, tokens, prefix, state))
            if uniforms is not None:
                uniforms.keep(kept)


def _select(kept: Tensor, state: Any) -> Any:
    return map_state(lambda leaf: leaf[kept], state)


def _may_end(scorer: Scorer, tokens: Tensor, t: int) -> bool:
    """Whether to look closer at which sequences end: cheaper than looking, and mostly False."""
    if scorer.may_forbid or not scorer.is_even or t + 1 >= scorer.longest:
        return True
    return scorer.end is not None and scorer.end in tokens.tolist()


def _ended(scorer: Scorer, tokens: Tensor, log_probs: Tensor, rows: Tensor, t: int) -> Tensor:
    """Those (N,) with an end token, as many as they may have, or without a token that the rules allow."""
    ended = (log_probs == -torch.inf) | (scorer.max_lengths[rows] <= t + 1)
    return ended if scorer.end is None else ended | (tokens == scorer.end)


def _one_by_one(steps: Iterator[_Tokens], end: int | None) -> Iterator[int]:
    for t, step in enumerate(steps):
        token = int(step.tokens)
        if step.log_probs.item() == -torch.inf:
            raise InputError(f"stream: the rules leave no token after {t} of them; loosen the constraints")
        if token == end:
            return
        yield token


def _seeds(where: str, seed: int | Tensor, B: int) -> Tensor:
    """(B, n)."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() not in (1, 2) or seed.shape[0] != B or not seed.numel():
            raise SizeError(
                f"{where}: seed must be a number or int64 of shape ({B},) or ({B}, n), found {seed.dtype} "
                f"{tuple(seed.shape)}"
            )
        seeds = seed.view(B, -1)
    else:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _SEEDS - B:
            raise InputError(f"{where}: seed must be 0 or more, a whole number below 2**63, found {seed!r}")
        seeds = int(seed) + torch.arange(B).unsqueeze(1)
    if bool((seeds < 0).any()):
        raise InputError(f"{where}: seed must be 0 or more, found {int(seeds.min())}")
    return seeds


def _collect(steps: Iterator[_Tokens], numbers: Tensor, end: int | None) -> Decoded:
    """Put the steps side by side; numbers (B, n) say which sequences are a row's."""
    given = list(steps)
    first = given[0]
    N, T = len(first.tokens), len(given)
    tokens = first.tokens.new_full((N, T), 0 if end is None else end)
    log_probs = first.log_probs.new_zeros(N, T)
    attention = None if first.attention is None else first.attention.new_zeros(N, T, first.attention.shape[1])
    lengths = torch.zeros_like(tokens[:, 0])
    begin = 0
    for t in range(1, T + 1):
        # Steps of the same sequences are put there at once: they share the tensor that says which.
        if t < T and given[t].sequences is given[begin].sequences:
            continue
        part = given[begin:t]
        which = slice(None) if part[0].sequences is None else part[0].sequences
        tokens[which, begin:t] = torch.cat([step.tokens for step in part], 1)
        log_probs[which, begin:t] = torch.cat([step.log_probs for step in part], 1)
        lengths[which] = t
        if attention is not None:
            attention[which, begin:t] = torch.stack([_attention(step) for step in part], 1)
        begin = t
    total = log_probs.sum(1, dtype=torch.float64)
    ended = torch.zeros_like(lengths, dtype=torch.bool)
    if end is not None:
        ended = tokens.gather(1, lengths.unsqueeze(1) - 1)[:, 0] == end
    # Without the end token; and nothing of sequences that could not go on.
    is_dead = total.isneginf()
    lengths = (lengths - ended.long()).masked_fill(is_dead, 0)
    longest = int(lengths.max())
    beyond = torch.arange(T, device=tokens.device) >= lengths.unsqueeze(1)
    tokens = tokens.masked_fill(beyond, 0 if end is None else end)[:, :longest]
    if attention is not None:
        attention = attention.masked_fill(beyond.unsqueeze(2), 0)[:, :longest][numbers]
    scores = total[numbers]
    return Decoded(
        tokens[numbers], lengths[numbers], (ended & ~is_dead)[numbers], scores, scores.clone(), attention
    )


def _attention(step: _Tokens) -> Tensor:
    if step.attention is None:
        raise InputError("step must return attention always or never")
    return step.attention
