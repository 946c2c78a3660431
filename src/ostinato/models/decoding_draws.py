"""Drawing tokens: temperature, top-k, top-p, and random numbers that depend on a row's seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.errors import InputError

_BLOCK = 64
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_SORTED = 256
_ROUNDING = 1e-4
# Scores divided by less could overflow.
_LEAST_TEMPERATURE = 1e-6


def is_number(value: object) -> bool:
    """Whether it is a finite real number, of Python's or numpy's."""
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_real and bool(np.isfinite(value))  # type: ignore[call-overload]


class Uniforms:
    """One random number in [0, 1) for each sequence and step, a function of (seed, step) and nothing else.

    SplitMix64 (Steele et al. 2014, doi:10.1145/2714064.2660195), each sequence from a state that its seed is
    hashed to: seeds that follow each other give independent numbers, on every machine the same.

    Args:
        seeds: N numbers below 2^63.
        device: where the numbers are wanted.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self._states = _mixed(np.array(seeds, dtype=np.uint64) + _GAMMA)
        self._device = device
        self._block: list[Tensor] = []
        self._drawn = 0

    def next(self) -> Tensor:
        """(N, 1) float64, for the next step."""
        if not self._block:
            steps = np.arange(self._drawn + 1, self._drawn + _BLOCK + 1, dtype=np.uint64)
            words = _mixed(self._states + (steps * _GAMMA)[:, None])
            # The upper 53 bits: every float64 of that spacing is equally likely, and 1.0 never comes.
            block = torch.from_numpy((words >> np.uint64(11)) * 2.0**-53).to(self._device)
            self._block = list(block.unsqueeze(2).unbind(0))[::-1]
            self._drawn += _BLOCK
        return self._block.pop()

    def keep(self, kept: Tensor) -> None:
        """Go on with these sequences only (an index over N)."""
        self._states = self._states[kept.cpu().numpy()]
        self._block = [numbers[kept] for numbers in self._block]


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Draw:
    """Chooses one token of each row of scores.

    Args:
        temperature: scores are divided by it; 0: always the best token.
        top_k: draw among the k best tokens only; None: all (arXiv:1805.04833).
        top_p: among the fewest best tokens that together have this probability (arXiv:1904.09751), after
            temperature and top-k.

    Cost: O(V); with top-k and top-p also that of finding the best tokens, with top-p as many as it needs.
    """

    def __init__(self, where: str, temperature: float, top_k: int | None, top_p: float | None):
        is_usual = is_number(temperature) and _LEAST_TEMPERATURE <= temperature < float("inf")
        if not is_usual and temperature != 0:
            raise InputError(
                f"{where}: temperature must be 0, which takes the best token, or at least "
                f"{_LEAST_TEMPERATURE:g}, found {temperature!r}"
            )
        if top_k is not None and not (is_number(top_k) and top_k == int(top_k) >= 1):
            raise InputError(
                f"{where}: top_k must be 1 or more, a whole number, found {top_k!r}; None draws among all "
                "tokens"
            )
        if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
            raise InputError(f"{where}: top_p must be above 0 and at most 1, found {top_p!r}")
        self.temperature, self._top_k = temperature, None if top_k is None else int(top_k)
        self._top_p = None if top_p == 1 else top_p

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is asked for."""
        return self.temperature == 0

    def __call__(self, scores: Tensor, uniforms: Tensor) -> Tensor:
        """Scores (N, V), uniforms (N, 1) -> tokens (N, 1). Where nothing is allowed, any token."""
        if self.temperature != 1:
            scores = scores / self.temperature
        if self._top_k is None and self._top_p is None:
            return _pick(torch.softmax(scores, 1), uniforms)
        V = scores.shape[1]
        k = V if self._top_k is None else min(self._top_k, V)
        if self._top_p is None:
            best, tokens = scores.topk(k, 1)
            return tokens.gather(1, _pick(torch.softmax(best, 1), uniforms))
        return self._from_nucleus(scores, k, self._top_p, uniforms)

    @staticmethod
    def _from_nucleus(scores: Tensor, k: int, top_p: float, uniforms: Tensor) -> Tensor:
        V = scores.shape[1]
        best, tokens = scores.topk(k if k < V else min(V, _FIRST_SORTED), 1)
        if k == V > _FIRST_SORTED:
            total = torch.logsumexp(scores, 1, keepdim=True)
            shares = (best - total).exp()
            if bool((shares.sum(1) < top_p + _ROUNDING).any()):
                best, tokens = scores.sort(1, descending=True)
                shares = (best - total).exp()
        else:
            shares = torch.softmax(best, 1)
        reached = shares.cumsum(1, dtype=torch.float64)
        # The token that reaches the probability still belongs to the set.
        beyond = (reached - shares) >= top_p
        return tokens.gather(1, _pick(shares.masked_fill(beyond, 0.0), uniforms))


def _pick(shares: Tensor, uniforms: Tensor) -> Tensor:
    """Shares (N, V), whatever they sum to, uniforms (N, 1) -> indices (N, 1), by the inverse of their sum."""
    reached = shares.cumsum(1, dtype=torch.float64)
    index = torch.searchsorted(reached, uniforms * reached[:, -1:], right=True)
    return index.clamp_(max=shares.shape[1] - 1)
