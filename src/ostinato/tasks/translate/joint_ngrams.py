"""`JointNgrams`: n-grams of units of a source joined with those of the target that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.corpus import Corpus
from ostinato.data.joint_units import JointUnits
from ostinato.data.pair_encoding import PairPreparation, Part
from ostinato.data.vocabulary import PADDING
from ostinato.tasks.kneser_ney import KneserNey
from ostinato.tasks.translate.joining import JoinedPairs

JOINT = "joint_ngrams"
"""The name of their own answers among baselines."""
ORDER, ORDER_OF_FEW, FEW_UNITS = 7, 5, 50_000
BEAM, N_BEST = 40, 20
UNKNOWN_LOG_P = -10.0
"""Of a unit of a source that no pair had, and which then is silent."""
_BLOCK = 256  # sources at once
_END = 0  # number of what ends a source; then its start, then the joint units
_FIRST = 2

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Ids = Sequence[int] | NDArray[np.integer]
Candidates = list[tuple[tuple[int, ...], float, tuple[int, ...]]]
"""Targets, their log-probabilities, the best first, and for each unit of the source the joint unit of their
most probable reading, -1 where the unit is unknown."""


@dataclass(frozen=True)
class JointNgrams:
    """A pair is a sequence of joint units, and n-grams say how probable it is (Bisani and Ney 2008,
    doi:10.1016/j.specom.2008.01.002), with Kneser–Ney's smoothing.

    They go from the end of a pair to its beginning: beside a network that goes the other way they are of more
    use so (letters to phonemes: an error of 7.16 % instead of 7.33 %).

    Attributes:
        units: joint.
        ngrams: over the end (0), the start (1) and the joint units, the first of which is 2.
        pairs: how many were learned from.
    """

    units: JointUnits
    ngrams: KneserNey
    pairs: int
    _first: Integers = field(init=False, repr=False)
    """Where the joint units of each unit of the source begin; they are sorted by it."""

    def __post_init__(self) -> None:
        letters = self.units.table[:, 0]
        size = int(letters.max(initial=0)) + 2
        object.__setattr__(self, "_first", np.searchsorted(letters, np.arange(size)))

    @classmethod
    def fit(cls, joined: JoinedPairs) -> JointNgrams:
        """Learn from the pairs of the training part that are cut."""
        units, found = joined.units, [cut for cut in joined.cuts if cut is not None]
        ids = np.concatenate([part for cut in found for part in (cut[::-1] + _FIRST, [_END])])
        ends = np.cumsum([len(cut) + 1 for cut in found])
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        corpus = Corpus(ids, starts, 1, len(ids), 0, "pairs")
        order_of = ORDER if len(ids) >= FEW_UNITS else ORDER_OF_FEW
        ngrams = KneserNey.fit(corpus, len(units.table) + _FIRST, order_of, most_units=len(ids))
        return cls(units, ngrams, len(found))

    def candidates(
        self, sources: Sequence[Ids], *, beam: int = BEAM, n_best: int = N_BEST
    ) -> list[Candidates]:
        """The most probable targets of sources.

        A source is read unit by unit from its end on, with the `beam` best joint readings of what was read.
        The probability of a target is the sum over those that have it.

        Args:
            sources: ids of their units; an unknown one is silent.
            beam: readings that are kept.
            n_best: targets that are given, at most.

        Returns:
            For each source one target or more.

        Cost: for each unit of a source `beam` times as many questions to the n-grams as there are joint units
        of it: about 0.7 ms.
        """
        found: list[Candidates] = [[] for _ in sources]
        lengths = np.array([len(source) for source in sources], np.int64)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _BLOCK):
            chosen = order[start : start + _BLOCK]
            block = np.full((len(chosen), int(lengths[chosen].max())), PADDING, np.int64)
            for place, i in enumerate(chosen.tolist()):
                block[place, : lengths[i]] = sources[i][::-1]
            for row, candidates in zip(chosen.tolist(), self._search(block, beam, n_best), strict=True):
                found[row] = candidates
        return found

    def _search(self, block: Integers, beam: int, n_best: int) -> Iterator[Candidates]:
        """Of sources (B, I), their last units first, with padding after their beginnings."""
        B, steps = block.shape
        owners = np.arange(B)
        contexts = self.ngrams.after_start(B, 1)
        scores = np.zeros(B)
        units = np.zeros((B, 0), np.int64)
        for at in range(steps):
            parents, chosen = self._options(block[owners, at])
            scores, contexts = scores[parents], contexts[parents]
            known = np.flatnonzero(chosen >= 0)
            said, after = self.ngrams.extend(contexts[known], chosen[known] + _FIRST)
            gained = np.where(block[owners, at] == PADDING, 0.0, UNKNOWN_LOG_P)[parents]
            gained[known], contexts[known] = said, after
            scores = scores + gained
            kept = _best_of_each(owners[parents], scores, beam)
            owners, scores, contexts = owners[parents[kept]], scores[kept], contexts[kept]
            units = np.concatenate([units[parents[kept]], chosen[kept, None]], axis=1)
        said, _ = self.ngrams.extend(contexts, np.full(len(owners), _END))
        scores, units = scores + said, units[:, ::-1]
        table = np.concatenate([self.units.table, np.zeros((1, 3), np.int64)])  # the last is silent
        told = table[units, 1:].reshape(len(units), -1)
        ends = np.searchsorted(owners, np.arange(B + 1)).tolist()
        values, targets = scores.tolist(), told.tolist()
        sizes = (block != PADDING).sum(axis=1).tolist()
        for b, (first, last) in enumerate(pairwise(ends)):
            sums: dict[tuple[int, ...], float] = {}
            readings: dict[tuple[int, ...], int] = {}
            for place in range(first, last):
                key, value = tuple(unit for unit in targets[place] if unit), values[place]
                sums[key] = float(np.logaddexp(sums[key], value)) if key in sums else value
                best = readings.setdefault(key, place)
                if value > values[best]:
                    readings[key] = place
            ranked = sorted(sums.items(), key=lambda one: -one[1])[:n_best]
            yield [(ids, p, tuple(units[readings[ids], steps - sizes[b] :].tolist())) for ids, p in ranked]

    def _options(self, letters: Integers) -> tuple[Integers, Integers]:
        """The joint units of each of n units of sources, -1 where there are none; and which each is of."""
        known = np.minimum(letters, len(self._first) - 2)
        first = self._first[known]
        counts = np.where(letters == known, self._first[known + 1] - first, 0)
        several = np.maximum(counts, 1)
        parents = np.repeat(np.arange(len(letters)), several)
        within = np.arange(len(parents)) - np.repeat(np.cumsum(several) - several, several)
        return parents, np.where(counts[parents] > 0, first[parents] + within, -1)

    def parts_of(self, reading: Sequence[int]) -> list[Part]:
        """What each unit of a source stands for in a reading; an unknown one for nothing."""
        return [self.units.parts[unit] if unit >= 0 else () for unit in reading]

    def say(self, preparation: PairPreparation, sources: Sequence[str]) -> list[str]:
        """Its own answers to texts."""
        encoded = preparation.encode(sources)
        found = self.candidates([encoded.source(row) for row in range(len(encoded))], n_best=1)
        return [preparation.text_of(one[0][0]) for one in found]

    # ---------------------------------------------------------------------------------------- storage

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {"pairs": self.pairs, **self.ngrams.to_json()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays by name."""
        return {"units": torch.from_numpy(self.units.table), **self.ngrams.tensors()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> JointNgrams:
        """The inverse of `to_json` and `tensors`."""
        ngrams = KneserNey.from_json(stored, tensors)
        return cls(JointUnits(tensors["units"].numpy()), ngrams, int(stored["pairs"]))


def _best_of_each(owners: Integers, scores: Floats, beam: int) -> Integers:
    """Places of the `beam` highest scores of each owner, by owner; these are sorted."""
    order = np.lexsort((-scores, owners))
    rank = np.arange(len(order)) - np.searchsorted(owners, owners[order])
    return order[rank < beam]
