"""`JointUnits`: units of a source joined with those of the target that they stand for, learned from pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MOST_JOINED = 2
"""Units of a target that one unit of the source may stand for."""
_PASSES, _MOST_PAIRS, _MOST_CELLS = 5, 30_000, 3_000_000  # of EM; cells: places in a source times in a target
_BLOCK_CELLS = 200_000
_LEAST_COUNT = 1e-12
_NONE = 0  # in place of a unit of the target

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Rows = Sequence[NDArray[np.integer]]


@dataclass(frozen=True)
class JointUnits:
    """What each unit of a source may become: 0, 1 or 2 units of the target (Deligne et al. 1995; Bisani and
    Ney 2008, doi:10.1016/j.specom.2008.01.002).

    Attributes:
        table: (U, 3) int64, sorted: a unit of the source and those of the target, 0 where there is none.
    """

    table: Integers

    @cached_property
    def parts(self) -> list[tuple[int, ...]]:
        """For each unit what it has of the target."""
        return [tuple(unit for unit in row if unit != _NONE) for row in self.table[:, 1:].tolist()]

    @classmethod
    def fit(
        cls, sources: Rows, targets: Rows, *, seed: int, others: int = 0
    ) -> tuple[JointUnits, list[Integers | None]]:
        """Learn which units belong together, and cut every pair into joint units.

        Probabilities of joint units are learned by EM over all ways to cut, from equal ones on; then each
        pair is cut in its most probable way. The units that these ways have are the table.

        Args:
            sources, targets: N rows of ids from 1 on. Of many pairs a random part is enough for EM.
            seed: decides which.
            others: how many of the last rows are cut only, and nothing is learned from them.

        Returns:
            The units; and for each pair its numbers in the table, one for each unit of the source, None where
            the target is more than twice as long as the source, or the source is empty; and where one of the
            `others` is cut into units that no pair before has.

        Cost: about 5 µs for each place in a source and a target of a pair that EM reads, memory of 24 bytes.
        """
        size = 1 + max((int(row.max()) for row in targets if len(row)), default=0)
        fits = np.flatnonzero(can_be_joined(_lengths(sources), _lengths(targets)))
        first_other = len(sources) - others
        order = np.random.default_rng([seed, 7]).permutation(fits[fits < first_other])[:_MOST_PAIRS]
        if not len(order):
            return cls(np.zeros((0, 3), np.int64)), [None] * len(sources)
        cells = np.cumsum([len(sources[i]) * (len(targets[i]) + 1) for i in order.tolist()])
        learned = order[: max(1, int(np.searchsorted(cells, _MOST_CELLS)))]
        lattices = list(_lattices(sources, targets, learned, size))
        codes = np.unique(np.concatenate([lattice.different() for lattice in lattices]))
        for lattice in lattices:
            lattice.look_up(codes)
        log_p = np.full(len(codes), -np.log(len(codes)))
        for _ in range(_PASSES):
            counts = np.zeros(len(codes))
            for lattice in lattices:
                lattice.count(log_p, counts)
            log_p = np.log(np.maximum(counts, _LEAST_COUNT) / counts.sum())
        del lattices
        floor = float(np.log(_LEAST_COUNT / counts.sum()))
        rows: list[Integers | None] = [None] * len(sources)
        for lattice in _lattices(sources, targets, fits, size):
            # What EM has not seen is as rare as can be.
            own = lattice.different()
            place = np.minimum(np.searchsorted(codes, own), len(codes) - 1)
            lattice.look_up(own)
            best = own[lattice.best(np.where(codes[place] == own, log_p[place], floor))]
            for row, cut in zip(lattice.rows.tolist(), best, strict=True):
                rows[row] = cut
        used = np.unique(np.concatenate([row for row in rows[:first_other] if row is not None]))
        for number in range(first_other, len(rows)):
            row = rows[number]
            if row is not None and not np.isin(row, used).all():
                rows[number] = None
        table = np.stack([used // size**2, used // size % size, used % size], axis=1)
        return cls(table), [None if row is None else np.searchsorted(used, row) for row in rows]


def can_be_joined(source_lengths: Integers, target_lengths: Integers) -> NDArray[np.bool_]:
    """Which pairs of such lengths can be cut into joint units."""
    return (source_lengths > 0) & (target_lengths <= MOST_JOINED * source_lengths)


def _lengths(rows: Rows) -> Integers:
    return np.array([len(row) for row in rows], np.int64)


def _lattices(sources: Rows, targets: Rows, chosen: Integers, size: int) -> Iterator[_Lattice]:
    """All ways to cut the chosen pairs, in blocks of one length of the source and like ones of the target."""
    lengths = np.array([(len(sources[i]), len(targets[i])) for i in chosen.tolist()], np.int64)
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    chosen, lengths = chosen[order], lengths[order]
    start = 0
    while start < len(chosen):
        alike = int(np.searchsorted(lengths[:, 0], lengths[start, 0], "right"))
        cells = lengths[start, 0] * (lengths[start:alike, 1].max() + 1)
        stop = min(alike, start + max(1, int(_BLOCK_CELLS // cells)))
        yield _Lattice(sources, targets, chosen[start:stop], size)
        start = stop


class _Lattice:
    """The ways to cut n pairs whose sources have I units, and whose targets have up to J.

    A joint unit is written as (source unit · size + target unit) · size + target unit, and after `look_up` as
    its place among some such numbers.

    Args:
        sources, targets: all rows.
        rows: (n,) which of them.
        size: above the largest unit of a target.
    """

    def __init__(self, sources: Rows, targets: Rows, rows: Integers, size: int):
        self.rows = rows
        self.lengths = np.array([len(targets[row]) for row in rows.tolist()], np.int64)
        x = np.stack([sources[row] for row in rows.tolist()]).astype(np.int64)
        self.n, self.I, self.J = len(rows), x.shape[1], int(self.lengths.max())
        y = np.full((self.n, self.J), _NONE, np.int64)
        for place, row in enumerate(rows.tolist()):
            y[place, : len(targets[row])] = targets[row]
        silent = (x * size**2)[:, :, None]
        # (n, I, J + 1 - d): the unit of the source at i with d of the target, of which the first is at j.
        self.units: list[NDArray[np.integer]] = [
            silent,
            silent + (y * size)[:, None],
            silent + (y[:, :-1] * size + y[:, 1:])[:, None],
        ]

    def different(self) -> Integers:
        """The joint units there are, sorted."""
        return np.unique(np.concatenate([np.unique(units) for units in self.units]))

    def look_up(self, codes: Integers) -> None:
        """Write them as places among `codes`, which are sorted and have them all."""
        self.units = [np.searchsorted(codes, units).astype(np.int32) for units in self.units]

    def _ways(self, i: int, log_p: Floats) -> Iterator[tuple[int, NDArray[np.integer], Floats]]:
        """How the unit of the source at i may be joined: with d of the target, (n, J + 1 - d) joint units, or
        (n, 1) where d is 0, and their log-probabilities."""
        for d in range(min(MOST_JOINED, self.J) + 1):
            units = self.units[d][:, i]
            yield d, units, log_p[units]

    def _forward(self, log_p: Floats) -> list[Floats]:
        """I + 1 times (n, J + 1): log-probability of the first i units of the source with j of the target."""
        alpha = np.full((self.n, self.J + 1), -np.inf)
        alpha[:, 0] = 0.0
        found = [alpha]
        for i in range(self.I):
            after = np.full_like(alpha, -np.inf)
            for d, _, p in self._ways(i, log_p):
                after[:, d:] = np.logaddexp(after[:, d:], alpha[:, : self.J + 1 - d] + p)
            found.append(after)
            alpha = after
        return found

    def totals(self, log_p: Floats) -> Floats:
        """(n,) log-probability of each pair, over all ways to cut it."""
        return self._forward(log_p)[-1][np.arange(self.n), self.lengths]

    def count(self, log_p: Floats, counts: Floats) -> None:
        """Add to `counts` how often each joint unit is expected."""
        alpha = self._forward(log_p)
        ends = np.arange(self.n), self.lengths
        total = alpha[-1][ends][:, None]
        beta = np.full((self.n, self.J + 1), -np.inf)
        beta[ends] = 0.0
        for i in range(self.I - 1, -1, -1):
            before = np.full_like(beta, -np.inf)
            for d, units, p in self._ways(i, log_p):
                reach = slice(0, self.J + 1 - d)
                onward = beta[:, d:] + p
                share = np.exp(alpha[i][:, reach] + onward - total)
                if d == 0:
                    share = share.sum(axis=1, keepdims=True)
                counts += np.bincount(units.ravel(), share.ravel(), len(counts))
                before[:, reach] = np.logaddexp(before[:, reach], onward)
            beta = before

    def best(self, log_p: Floats) -> Integers:
        """(n, I) the joint units of the most probable way to cut each pair."""
        alpha = np.full((self.n, self.J + 1), -np.inf)
        alpha[:, 0] = 0.0
        taken = np.zeros((self.I, self.n, self.J + 1), np.int8)
        for i in range(self.I):
            after = np.full_like(alpha, -np.inf)
            for d, _, p in self._ways(i, log_p):
                value = alpha[:, : self.J + 1 - d] + p
                better = value > after[:, d:]
                taken[i, :, d:][better] = d
                after[:, d:][better] = value[better]
            alpha = after
        every, j = np.arange(self.n), self.lengths
        cut = np.zeros((self.n, self.I), np.int64)
        for i in range(self.I - 1, -1, -1):
            d = taken[i, every, j]
            j = j - d
            for many in range(min(MOST_JOINED, self.J) + 1):
                at = np.flatnonzero(d == many)
                cut[at, i] = self.units[many][at, i, j[at] if many else 0]
        return cut
