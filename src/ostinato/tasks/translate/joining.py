"""Pairs cut into joint units, for the two models that go along with a source: a network with monotonic
attention, and joint n-grams. Whether pairs are such that both are of use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.joint_units import JointUnits, can_be_joined
from ostinato.data.pair_encoding import EncodedPairs, PairPreparation
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
LEAST_TOLD = 0.5
"""Less of `told_by_units` have pairs in other orders (words and these backwards: 0.2; letters and their
phonemes: 0.64), for which a network has to look around."""
OF_TIME, UNITS_PER_S = 0.1, 60_000
"""Of the time for everything, and units of sources that a slow machine cuts and counts in a second of it."""

Cuts = list[NDArray[np.int64] | None]


@dataclass(frozen=True)
class JoinedPairs:
    """What `JointUnits.fit` made of pairs.

    Attributes:
        units: joint.
        cuts: of the training part, pair by pair.
        checked: of what is held out.
    """

    units: JointUnits
    cuts: Cuts
    checked: Cuts

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
            seed: of `JointUnits.fit`, and of which pairs are cut where their sources have more units than
                `most_units`.
            most_units: None: no matter how many; one pair of the training part is always cut.
        """
        parts = [inputs] if checks is None else [inputs, checks]
        known = [
            np.flatnonzero((np.array(part.unknown) == 0) & (np.array(part.unknown_told) == 0)).tolist()
            for part in parts
        ]
        lengths = inputs.source_lengths[known[0]]
        if most_units is not None and lengths.sum() > most_units:
            order = np.random.default_rng([seed, 8]).permutation(len(lengths))
            fits = max(1, int(np.searchsorted(np.cumsum(lengths[order]), most_units, "right")))
            known[0] = [known[0][place] for place in np.sort(order[:fits]).tolist()]
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
        return cls(units, cuts[0], [] if checks is None else cuts[1])

    @property
    def told_by_units(self) -> float:
        """Which share of the entropy of what units stand for is gone where the unit is known, 0 … 1."""
        cuts = [cut for cut in self.cuts if cut is not None]
        share = np.bincount(np.concatenate(cuts), minlength=len(self.units.table)) / sum(map(len, cuts))
        _, part = np.unique(self.units.table[:, 1:], axis=0, return_inverse=True)
        of_parts = _entropy(np.bincount(part.ravel(), share))
        together = _entropy(np.bincount(self.units.table[:, 0], share)) + of_parts - _entropy(share)
        return together / of_parts if of_parts else 1.0

    @property
    def notes(self) -> list[str]:
        """How many pairs were not cut."""
        found = []
        for name, cuts in (("", self.cuts), ("held-out ", self.checked)):
            if left_out := sum(cut is None for cut in cuts):
                found.append(
                    f"{left_out:,} of {len(cuts):,} {name}pairs were not cut into what units of the source "
                    "stand for: unknown units, a target of more than twice its source, or the time"
                )
        return found

    def align(
        self, preparation: PairPreparation, inputs: EncodedPairs, checks: EncodedPairs
    ) -> tuple[PairPreparation, EncodedPairs, EncodedPairs, list[str]]:
        """For monotonic attention: a preparation with parts, where it has none yet; both parts of the data
        with these in place of targets, without the pairs that cannot be said by them; and notes.

        Raises:
            InputError: no pair is left of one of them, as may be where the parts are those of another run.
        """
        if preparation.parts is None:
            preparation = replace(preparation, parts=tuple(sorted(set(self.units.parts))))
        part = self.units.parts
        aligned, notes = [], []
        for name, pairs, cuts in (("training", inputs, self.cuts), ("validation", checks, self.checked)):
            rows = [None if cut is None else [part[unit] for unit in cut.tolist()] for cut in cuts]
            aligned.append(preparation.in_parts(pairs, rows))
            if not len(aligned[-1]):
                raise InputError(
                    f"attention={MONOTONIC!r}: none of the {len(pairs):,} pairs of the {name} part can be "
                    "said by what units of a source stand for; give other pairs, or another attention"
                )
            if left_out := sum(row is not None for row in rows) - len(aligned[-1]):
                notes.append(
                    f"{left_out:,} of {len(pairs):,} pairs of the {name} part need what no unit of a source "
                    "stands for in the run that init names, and are left out"
                )
        return preparation, aligned[0], aligned[1], notes


def join_pairs(settings: Translator, inputs: EncodedPairs, checks: EncodedPairs) -> JoinedPairs | None:
    """Cut the pairs where a model needs that, and choose which do.

    Args:
        settings: every choice made but `attention` and `joint`, which are set here.
        inputs: the training part.
        checks: what is held out.

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
    # By the time for everything, not what is left of it: a run that is resumed cuts the same pairs.
    most = None if s.max_time_s is None else int(OF_TIME * s.max_time_s * UNITS_PER_S)
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
    s.joint = bool(joint and joined is not None)
    if s.attention == AUTO:
        goes_along = joined is not None and joined.told_by_units >= LEAST_TOLD
        can_be_checked = joined is not None and any(cut is not None for cut in joined.checked)
        s.attention = MONOTONIC if is_monotonic and goes_along and can_be_checked else USUAL
    return joined


def _entropy(shares: NDArray[Any]) -> float:
    """In nats."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


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
