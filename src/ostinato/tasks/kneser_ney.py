"""N-grams of any units: interpolated Kneser–Ney, over whole texts or step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.corpus import Corpus

MOST_UNITS = 5_000_000
"""The units of the training text that the n-grams are counted over: its last ones, where it has more."""
_PIECE = 1 << 20

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length, sorted by (number of their first n-1 units, last unit).

    Attributes:
        keys: that pair as one number.
        counts: how often each occurred; of those shorter than the longest, after how many different units.
        totals, weights: for each context (n-gram of length n-1): the sum of the counts of what follows, and
            the share of the probability that goes to the shorter context.
        discounts: of counts of 1, 2, and 3 or more.
    """

    keys: Integers
    counts: Integers
    totals: Floats
    weights: Floats
    discounts: Floats

    @classmethod
    def of(cls, keys: Integers, counts: Integers, n_contexts: int, V: int) -> _Level:
        discounts = _discounts(counts)
        contexts = keys // V
        totals: Floats = np.bincount(contexts, counts.astype(np.float64), n_contexts).astype(np.float64)
        kept = np.bincount(contexts, counts - discounts[np.minimum(counts, 3) - 1], n_contexts)
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = np.where(totals > 0, 1 - kept / totals, 1.0)
        return cls(keys, counts, totals, weights, discounts)

    def tell(self, contexts: Integers, units: Integers, p: Floats, V: int) -> tuple[Floats, Integers]:
        """The probability of n units after n contexts that are known, where it is `p` after the shorter
        ones; and the numbers of the n-grams that both make, -1 where there is none."""
        keys = contexts * V + units
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        hit = self.keys[place] == keys
        counts = np.where(hit, self.counts[place], 0)
        totals = self.totals[contexts]
        with np.errstate(invalid="ignore", divide="ignore"):
            own = np.where(
                totals > 0,
                (counts - np.where(counts > 0, self.discounts[np.clip(counts, 1, 3) - 1], 0.0)) / totals,
                0.0,
            )
        return own + self.weights[contexts] * p, np.where(hit, place, -1)


def _discounts(counts: Integers) -> Floats:
    """Chen and Goodman's three discounts, at least 0.1 so that what was never seen keeps a probability; 0.75
    where the text is too short, or too regular, to tell."""
    n1, n2, n3, n4 = (float((counts == n).sum()) for n in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(found, 0.1, [1.0, 2.0, 3.0])


class KneserNey:
    """Interpolated Kneser–Ney with three discounts (Kneser and Ney 1995; Chen and Goodman 1999).

        p(w | u) = (c(u w) - D(c(u w))) / Σ c(u ·) + γ(u) p(w | u without its first unit)

    c counts occurrences of the longest n-grams, and for shorter ones different units before them; below the
    single units stands the uniform distribution. Contexts do not reach across the beginning of a document,
    before which stands its start unit; of n-grams that begin there, which have nothing before them, each
    occurrence counts.

    Cost of fitting: a sort of the text for each order; of a query: a binary search for each unit and order.
    """

    def __init__(self, order: int, vocabulary_size: int, levels: list[_Level]):
        self.order, self.vocabulary_size, self._levels = order, vocabulary_size, levels

    @classmethod
    def fit(
        cls, corpus: Corpus, vocabulary_size: int, order: int, *, most_units: int = MOST_UNITS
    ) -> KneserNey:
        """Count the n-grams of a text.

        Args:
            corpus: the training text.
            vocabulary_size: V.
            order: of the longest n-grams.
            most_units: of a longer text its last so many units count.
        """
        first = max(0, len(corpus) - most_units)
        V = vocabulary_size
        units, places = _with_starts(corpus, first, len(corpus))
        before = np.zeros(len(units), np.int64)
        found: list[tuple[Integers, Integers, Integers]] = []
        suffixes: list[Integers] = []
        shorter: Integers = np.zeros(len(units), np.int64)
        for n in range(1, order + 1):
            at = np.flatnonzero((before >= 0) & (places >= n - 1))
            if not len(at):
                break
            keys, firsts, numbers = np.unique(
                before[at] * V + units[at], return_index=True, return_inverse=True
            )
            # The start unit is a context; it is never told, so that it takes no count of its own.
            own = np.bincount(numbers, places[at] > 0, len(keys)).astype(np.int64)
            heads = np.bincount(numbers, (places[at] == n - 1) & (n > 1), len(keys)).astype(np.int64)
            found.append((keys, own, heads))
            suffixes.append(shorter[at][firsts])
            now = np.full(len(units), -1, np.int64)
            now[at] = numbers
            shorter = now
            before = np.concatenate([[-1], now[:-1]])
            before[places == 0] = -1
        levels = []
        for n, (keys, occurred, heads) in enumerate(found):
            own = occurred
            if n + 1 < len(found):
                told = found[n + 1][1] > 0
                own = np.bincount(suffixes[n + 1][told], minlength=len(keys)).astype(np.int64) + heads
            n_contexts = 1 if n == 0 else len(found[n - 1][0])
            levels.append(_Level.of(keys, own, n_contexts, V))
        return cls(len(levels), V, levels)

    def log_probs(self, corpus: Corpus) -> Floats:
        """(N,) log P(unit | the units before it) of each unit of a text."""
        pieces = []
        for first in range(0, len(corpus), _PIECE):
            units, places = _with_starts(corpus, first, min(first + _PIECE, len(corpus)), self.order)
            said = np.log(self._probabilities(units, places))
            # What was read before the piece, for its contexts alone, and the start units.
            behind = len(said) - _told_from(corpus, first, min(first + _PIECE, len(corpus)))
            told = np.arange(len(said)) >= behind
            pieces.append(said[told & (places > 0)])
        return np.concatenate(pieces)

    def _probabilities(self, units: Integers, places: Integers) -> Floats:
        V = self.vocabulary_size
        p = np.full(len(units), 1.0 / V)
        context = np.zeros(len(units), np.int64)
        for n, level in enumerate(self._levels):
            at = np.flatnonzero((context >= 0) & (places >= n))
            now = np.full(len(units), -1, np.int64)
            p[at], now[at] = level.tell(context[at], units[at], p[at], V)
            context = np.concatenate([[-1], now[:-1]])
        return p

    # ------------------------------------------------------------------------------------ step by step

    def after_start(self, n: int, start: int) -> Integers:
        """The contexts (n, order) of n sequences of which nothing but the start unit is there.

        In column k of contexts stands the number of the n-gram that the last k units are, -1 where the
        training text has none such.
        """
        empty = np.full((n, self.order), -1, np.int64)
        empty[:, 0] = 0
        return self.extend(empty, np.full(n, start, np.int64))[1]

    def extend(self, contexts: Integers, units: Integers) -> tuple[Floats, Integers]:
        """One more unit of each of n sequences: its log-probability, and the contexts after it.

        Args:
            contexts: (n, order), from `after_start` or from here.
            units: (n,).

        Returns:
            (n,) and (n, order).

        Cost: a binary search for each unit and each length of a context that is known.
        """
        p = np.full(len(units), 1.0 / self.vocabulary_size)
        after = np.full_like(contexts, -1)
        after[:, 0] = 0
        at = np.arange(len(units))
        for n, level in enumerate(self._levels):
            at = at[contexts[at, n] >= 0]  # whose longer contexts are not known either
            p[at], numbers = level.tell(contexts[at, n], units[at], p[at], self.vocabulary_size)
            if n + 1 < self.order:
                after[at, n + 1] = numbers
        return np.log(p), after

    # ---------------------------------------------------------------------------------------- storage

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {
            "order": self.order, "vocabulary_size": self.vocabulary_size,
            "contexts": [len(level.totals) for level in self._levels],
        }  # fmt: skip

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays by name."""
        made = {}
        for n, level in enumerate(self._levels):
            made[f"ngrams/{n}/keys"] = torch.from_numpy(level.keys)
            made[f"ngrams/{n}/counts"] = torch.from_numpy(level.counts.astype(np.int32))
        return made

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> KneserNey:
        """The inverse of `to_json` and `tensors`."""
        V, levels = int(stored["vocabulary_size"]), []
        for n, n_contexts in enumerate(stored["contexts"]):
            keys = tensors[f"ngrams/{n}/keys"].numpy()
            counts = tensors[f"ngrams/{n}/counts"].numpy().astype(np.int64)
            levels.append(_Level.of(keys, counts, int(n_contexts), V))
        return cls(int(stored["order"]), V, levels)


def _with_starts(corpus: Corpus, first: int, last: int, context: int = 0) -> tuple[Integers, Integers]:
    """Units `first` to `last`, with up to `context` units before them and the start unit at the head of each
    document; and how many units of its document stand before each, the start unit among them."""
    begin = max(0, first - context)
    ids = np.asarray(corpus.ids[begin:last]).astype(np.int64)
    heads = corpus.starts[(corpus.starts >= begin) & (corpus.starts < last)] - begin
    units = np.insert(ids, heads, corpus.start)
    at = heads + np.arange(len(heads))
    places = np.arange(len(units), dtype=np.int64)
    if not len(at):
        return units, places + 1
    latest = np.zeros(len(units), np.int64)
    latest[at] = at
    latest = np.maximum.accumulate(latest)
    # Before the first head of the piece a document goes on.
    going_on = np.arange(len(units)) < at[0]
    return units, np.where(going_on, places + 1, places - latest)


def _told_from(corpus: Corpus, first: int, last: int) -> int:
    """How many of the units with starts belong to the piece itself."""
    heads = int(((corpus.starts >= first) & (corpus.starts < last)).sum())
    return last - first + heads
