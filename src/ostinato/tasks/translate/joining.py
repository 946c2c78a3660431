"""Pairs cut into joint units, for the two models that go along with a source: a network with monotonic
attention, and joint n-grams. Whether pairs are such that both are of use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ostinato.data.joint_units import JointUnits, can_be_joined
from ostinato.data.pair_encoding import EncodedPairs, PairPreparation, Part
from ostinato.errors import InputError
from ostinato.models.seq2seq_options import MONOTONIC

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

KINDS = ("char", "symbol")
AUTO, USUAL = "auto", "general"
"""An attention that is to be chosen, and that of pairs which do not suit."""
LEAST_PAIRS, LEAST_JOINED, MOST_LONG, MOST_MEAN = 2000, 0.9, 60, 25
"""Fewer pairs, or a smaller share of them that can be cut into joint units, or longer sources than most of
these should have and than they have on average, are not cut unless that is asked for."""
OF_TIME, UNITS_PER_S = 0.1, 60_000
"""Of the time that is left, and units of sources that a slow machine cuts and counts in a second of it."""

Cuts = list[NDArray[np.int64] | None]


@dataclass(frozen=True)
class JoinedPairs:
    """What `JointUnits.fit` made of pairs.

    Attributes:
        units: joint.
        cuts: of the training part, pair by pair.
        checked: of what is held out.
        most_units: of sources, that n-grams have time for; None: of all.
    """

    units: JointUnits
    cuts: Cuts
    checked: Cuts
    most_units: int | None = None

    @classmethod
    def of(
        cls,
        inputs: EncodedPairs,
        checks: EncodedPairs | None = None,
        *,
        seed: int,
        most_units: int | None = None,
    ) -> JoinedPairs | None:
        """Cut the pairs without unknown units; None where no pair of the training part can be cut.

        Args:
            inputs: the training part, as units of targets.
            checks: what is held out, of which nothing is learned.
            seed: of `JointUnits.fit`.
            most_units: is kept.
        """
        parts = [inputs] if checks is None else [inputs, checks]
        known = [
            np.flatnonzero((np.array(part.unknown) == 0) & (np.array(part.unknown_told) == 0)).tolist()
            for part in parts
        ]
        told = [(part, row) for part, rows in zip(parts, known, strict=True) for row in rows]
        others = len(told) - len(known[0])
        units, found = JointUnits.fit(
            [part.source(row) for part, row in told], [part.target(row) for part, row in told],
            seed=seed, others=others,
        )  # fmt: skip
        if not len(units.table):
            return None
        cuts: list[Cuts] = [[None] * len(part) for part in parts]
        for (part, row), cut in zip(told, found, strict=True):
            cuts[0 if part is inputs else 1][row] = cut
        return cls(units, cuts[0], [] if checks is None else cuts[1], most_units)

    @property
    def count(self) -> int:
        """How many pairs of the training part are cut."""
        return sum(cut is not None for cut in self.cuts)

    @property
    def notes(self) -> list[str]:
        """How many pairs were not cut."""
        N = len(self.cuts)
        if (left_out := N - self.count) == 0:
            return []
        return [
            f"{left_out:,} of {N:,} pairs cannot be cut into what each unit of the source stands for: "
            "unknown units, or a target of more than twice its source"
        ]

    def align(
        self, preparation: PairPreparation, inputs: EncodedPairs, checks: EncodedPairs
    ) -> tuple[PairPreparation, EncodedPairs, EncodedPairs]:
        """For monotonic attention: a preparation with parts, where it has none yet, and both parts of the
        data with these in place of targets, without the pairs that cannot be said by them."""
        if preparation.parts is None:
            preparation = replace(preparation, parts=tuple(sorted(set(self.units.parts))))
        rows = self._rows_of_parts(self.cuts), self._rows_of_parts(self.checked)
        return preparation, preparation.in_parts(inputs, rows[0]), preparation.in_parts(checks, rows[1])

    def _rows_of_parts(self, cuts: Cuts) -> list[list[Part] | None]:
        """The parts of each pair."""
        part = self.units.parts
        return [None if cut is None else [part[unit] for unit in cut.tolist()] for cut in cuts]


def join_pairs(
    settings: Translator, inputs: EncodedPairs, checks: EncodedPairs, left_s: float | None
) -> JoinedPairs | None:
    """Cut the pairs where a model needs that, and choose which do.

    Args:
        settings: every choice made but `attention` and `joint`, which are set here.
        inputs: the training part.
        checks: what is held out.
        left_s: of the time for everything; None without a limit.

    Raises:
        InputError: such a model is asked for, and the units are others or no pair can be cut.
    """
    s = settings
    asked = [name for name, is_so in (
        ("joint=True", s.joint), (f"attention={MONOTONIC!r}", s.attention == MONOTONIC),
    ) if is_so]  # fmt: skip
    others = [kind for kind in (s.unit or "").split(",") if kind not in KINDS]
    if asked and others:
        raise InputError(
            f"{asked[0]} needs units of {' or '.join(KINDS)} on both sides, found {s.unit}; leave it out, or "
            "name such units (unit='char,symbol')"
        )
    most = None if left_s is None else int(OF_TIME * left_s * UNITS_PER_S)
    suited = not (others or s.copying or s.cuts) and suits(inputs, most)
    joint = s.joint if s.joint is not None else suited and s.beam > 1
    is_monotonic = s.attention == MONOTONIC
    if s.attention == AUTO:
        is_monotonic = suited and s.feeding == "none" and s.no_repeat_ngram == 0
    joined = JoinedPairs.of(inputs, checks, seed=s.seed, most_units=most) if joint or is_monotonic else None
    if asked and joined is None:
        raise InputError(
            f"{asked[0]}: there is no pair of known units whose target is at most twice as long as its "
            "source; leave it out"
        )
    can_be_checked = joined is not None and any(cut is not None for cut in joined.checked)
    if s.attention == MONOTONIC and not can_be_checked:
        raise InputError(
            f"{asked[-1]}: none of the {len(checks):,} held-out pairs can be cut like those of the training "
            "part; give more pairs, or leave it out"
        )
    s.joint = bool(joint and joined is not None)
    if s.attention == AUTO:
        s.attention = MONOTONIC if is_monotonic and can_be_checked else USUAL
    return joined


def suits(inputs: EncodedPairs, most_units: int | None = None) -> bool:
    """Whether there are enough pairs, of sources that are short and targets that may go along with them.

    Args:
        inputs: the training part.
        most_units: of sources that there is time for.
    """
    lengths = inputs.source_lengths
    return (
        len(inputs) >= LEAST_PAIRS
        and (most_units is None or most_units >= LEAST_PAIRS * lengths.mean())
        and float(lengths.mean()) <= MOST_MEAN
        and float(np.mean(lengths <= MOST_LONG)) >= LEAST_JOINED
        and float(can_be_joined(lengths, inputs.target_lengths).mean()) >= LEAST_JOINED
    )
