"""What every way of decoding obeys: the step function, and which tokens may come next.

A *hypothesis* is a sequence in the making. N hypotheses stand side by side, several of them for one row of
the input; `rows` (N,) says whose they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.types import map_state

# step(tokens (N,) int64, state) -> (logits or log-probabilities (N, V), state[, attention (N, S)])
Step = Callable[[Tensor, Any], tuple[Any, ...]]
# constraint(prefix (N, t) int64, rows (N,)) -> (N, V) bool, True where a token may come next
Constraint = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Fusion:
    """A second model's opinion: `weight` times its log-probability is added to each token's (shallow fusion).

    Attributes:
        step: as the first model's, over the same vocabulary.
        state: its state before `start`; leaves (B, ...).
        weight: below 0 for tokens that the second model does *not* expect (arXiv:1510.03055).
    """

    step: Step
    state: Any
    weight: float


@dataclass(frozen=True, eq=False)
class Rules:
    """Which tokens may come next, and a second model beside the first.

    A forced prefix goes before everything else; all others hold together. Forbidding a token changes nothing
    about the others: scores stay those of the model, and sampling draws among what is left.

    Attributes:
        min_length: tokens before `end` may come; a number, or (B,).
        forbidden: tokens that never come, such as the unknown one.
        prefix: for each row the tokens that it must begin with (not the start token); none: [].
        constraints: functions `(prefix (N, t) int64, rows (N,)) -> (N, V) bool`, True where a token may come
            next. `prefix` is what was chosen so far, without the start token.
        no_repeat_ngram: n: no n tokens in a row come twice; 0: they may (arXiv:1705.04304).
        fusion: a second model.

    Cost: constraints and n-grams keep each hypothesis' tokens beside its state, 8·t bytes; n-grams take
    another t·n comparisons per hypothesis and step.
    """

    min_length: int | Tensor = 0
    forbidden: Sequence[int] = ()
    prefix: Sequence[Sequence[int]] | None = None
    constraints: Sequence[Constraint] = ()
    no_repeat_ngram: int = 0
    fusion: Fusion | None = None

    def __post_init__(self) -> None:
        n = self.no_repeat_ngram
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InputError(f"Rules: no_repeat_ngram must be 0 or more, a whole number, found {n!r}")
        if any(token < 0 for token in self.forbidden):
            raise InputError(f"Rules: forbidden must have tokens of the vocabulary, found {self.forbidden}")


class Scored(NamedTuple):
    """What is known of N hypotheses' next tokens: scores (N, V), -inf where forbidden; attention (N, S)."""

    scores: Tensor
    state: Any
    attention: Tensor | None


class Scorer:
    """The step function with the rules around it.

    Args:
        where: who asks, for messages.
        step: the model.
        rules: may be None.
        start: (B,) first tokens.
        end: the end token, or None.
        max_length: a number, or (B,).
    """

    def __init__(
        self,
        where: str,
        step: Step,
        rules: Rules | None,
        start: Tensor,
        *,
        end: int | None,
        max_length: int | Tensor,
    ):
        rules = rules or Rules()
        self._where, self._step, self.end, self._rules = where, step, end, rules
        if start.dim() != 1 or start.dtype != torch.int64 or not len(start):
            raise SizeError(
                f"{where}: start must be int64 of shape (B,), B at least 1, found {start.dtype} "
                f"{tuple(start.shape)}"
            )
        if end is not None and end < 0:
            raise InputError(f"{where}: end must be a token's number or None, found {end}")
        B, device = len(start), start.device
        self.max_lengths = _per_row(where, "max_length", max_length, B, least=1).to(device)
        min_lengths = _per_row(where, "min_length", rules.min_length, B, least=0).to(device)
        if bool((min_lengths > self.max_lengths).any()):
            raise InputError(f"{where}: min_length is above max_length")
        self._longest_minimum = int(min_lengths.max())
        if self._longest_minimum and end is None:
            raise InputError(f"{where}: min_length without an end token has no effect; give end")
        self._min_lengths = min_lengths
        self._forbidden = torch.tensor(rules.forbidden, dtype=torch.int64, device=device)
        self._forced = _forced(where, rules.prefix, B, end, device)
        self.longest = int(self.max_lengths.max())
        self.is_even = bool((self.max_lengths == self.longest).all())
        self.needs_prefix = bool(rules.constraints) or rules.no_repeat_ngram > 0
        self.may_forbid = (
            self.needs_prefix
            or self._longest_minimum > 0
            or self._forced is not None
            or len(self._forbidden) > 0
        )
        self.only_falls = rules.fusion is None or rules.fusion.weight >= 0

    def initial(self, state: Any, B: int) -> Any:
        """The states of all models, looked at."""
        fusion = self._rules.fusion
        states = (state, None if fusion is None else fusion.state)

        def check(leaf: Tensor) -> Tensor:
            if leaf.dim() == 0 or leaf.shape[0] != B:
                raise SizeError(
                    f"{self._where}: every tensor of the state must have B = {B} rows first, as start has, "
                    f"found shape {tuple(leaf.shape)}"
                )
            return leaf

        return map_state(check, states)

    def __call__(self, t: int, tokens: Tensor, state: Any, rows: Tensor, prefix: Tensor | None) -> Scored:
        """The scores of every next token.

        Args:
            t: how many tokens were chosen so far.
            tokens: (N,) the last ones.
            state: of all models.
            rows: (N,) whose hypotheses they are.
            prefix: (N, t) the tokens so far, if `needs_prefix`.
        """
        scores, own, attention = self._ask(self._step, tokens, state[0])
        other, fusion = state[1], self._rules.fusion
        if fusion is not None:
            opinion, other, _ = self._ask(fusion.step, tokens, other)
            if opinion.shape != scores.shape:
                raise SizeError(
                    f"{self._where}: the fused model gives {opinion.shape[1]} tokens, the first one "
                    f"{scores.shape[1]}; they need one vocabulary"
                )
            scores = scores.add(opinion, alpha=fusion.weight)
        if t == 0:
            self._check_tokens(scores.shape[1])
        if self.may_forbid:
            scores = self._restricted(t, scores, rows, prefix)
        return Scored(scores, (own, other), attention)

    def refuse(self, t: int, rows: Tensor) -> None:
        """Raise: NaN among the scores of these rows."""
        raise InputError(
            f"{self._where}: step gave NaN, +inf or nothing but -inf for row {int(rows[0])} at token {t + 1}"
            "; look at the model's parameters and input for values that are not finite"
        )

    def _ask(self, step: Step, tokens: Tensor, state: Any) -> tuple[Tensor, Any, Tensor | None]:
        logits, state, *rest = step(tokens, state)
        if logits.dim() != 2 or logits.shape[0] != tokens.shape[0]:
            raise SizeError(
                f"{self._where}: step must return logits of shape (N, V), N = {len(tokens)}, found "
                f"{tuple(logits.shape)}"
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return torch.log_softmax(logits, 1), state, rest[0] if rest else None

    def _check_tokens(self, V: int) -> None:
        if self.end is not None and self.end >= V:
            raise InputError(f"{self._where}: end is {self.end}, but step knows {V} tokens")
        for name, tokens in (("prefix", self._forced), ("forbidden", self._forbidden)):
            if tokens is not None and tokens.numel() and int(tokens.max()) >= V:
                raise InputError(
                    f"{self._where}: {name} has token {int(tokens.max())}, but step knows {V} tokens"
                )

    def _restricted(self, t: int, scores: Tensor, rows: Tensor, prefix: Tensor | None) -> Tensor:
        free = scores
        if len(self._forbidden):
            scores = scores.index_fill(1, self._forbidden, -torch.inf)
        if self.end is not None and t < self._longest_minimum:
            too_early = self._min_lengths[rows] > t
            scores = scores.clone()
            scores[:, self.end].masked_fill_(too_early, -torch.inf)
        if prefix is not None:
            if 0 < self._rules.no_repeat_ngram <= t:
                scores = without_repeats(scores, prefix, self._rules.no_repeat_ngram)
            for constraint in self._rules.constraints:
                allowed = constraint(prefix, rows)
                if allowed.shape != scores.shape or allowed.dtype != torch.bool:
                    raise SizeError(
                        f"{self._where}: a constraint must return bool of shape {tuple(scores.shape)}, found "
                        f"{allowed.dtype} {tuple(allowed.shape)}"
                    )
                scores = scores.masked_fill(~allowed, -torch.inf)
        if self._forced is not None and t < self._forced.shape[1]:
            forced = self._forced[rows, t].unsqueeze(1)
            token = forced.clamp(min=0)
            only = torch.full_like(scores, -torch.inf).scatter_(1, token, free.gather(1, token))
            scores = torch.where(forced >= 0, only, scores)
        return scores


def without_repeats(scores: Tensor, prefix: Tensor, n: int) -> Tensor:
    """Scores (N, V), -inf for tokens that would repeat n tokens of the prefix (N, t), t at least n.

    Cost: N·t·n comparisons.
    """
    t = prefix.shape[1]
    if n == 1:
        return scores.scatter(1, prefix, -torch.inf)
    # windows[:, i] are the n - 1 tokens from i on; what followed them is forbidden where they come last.
    windows = prefix[:, : t - 1].unfold(1, n - 1, 1)
    seen = (windows == prefix[:, None, t - n + 1 :]).all(2)
    hypothesis, window = seen.nonzero(as_tuple=True)
    if not len(hypothesis):
        return scores
    followers = prefix[hypothesis, window + n - 1]
    return scores.index_put((hypothesis, followers), scores.new_tensor(-torch.inf))


def _per_row(where: str, name: str, given: int | Tensor, B: int, *, least: int) -> Tensor:
    value = torch.as_tensor(given)
    if value.dtype != torch.int64 or value.shape not in ((), (B,)):
        raise InputError(
            f"{where}: {name} must be a whole number or int64 of shape ({B},), found {value.dtype} "
            f"{tuple(value.shape)}"
        )
    if bool((value < least).any()):
        raise InputError(f"{where}: {name} must be at least {least}, found {int(value.min())}")
    return value.expand(B)


def _forced(
    where: str, prefix: Sequence[Sequence[int]] | None, B: int, end: int | None, device: torch.device
) -> Tensor | None:
    """The forced tokens (B, P), -1 beyond a row's own."""
    if prefix is None:
        return None
    rows = [list(map(int, row)) for row in prefix]
    if len(rows) != B:
        raise SizeError(f"{where}: prefix must have a list of tokens for each of {B} rows, found {len(rows)}")
    if any(token < 0 or token == end for row in rows for token in row):
        raise InputError(f"{where}: prefix must have tokens of the vocabulary and no end token")
    width = max(map(len, rows))
    if not width:
        return None
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], device=device)
