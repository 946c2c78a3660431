"""From the training part to what a network is trained on: units, numbers, limits, and baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ostinato.data.pair_encoding import EncodedPairs, PairPreparation
from ostinato.data.pair_files import Pairs
from ostinato.errors import InputError
from ostinato.tasks.translate.answers import Limits
from ostinato.tasks.translate.baselines import Baselines
from ostinato.tasks.translate.choosing import longest

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

_FEW = 1000  # pairs in which a word that comes once may say something


@dataclass(frozen=True)
class Prepared:
    """What was learned before the network.

    Attributes:
        preparation: texts to numbers.
        inputs: the training part as numbers, without pairs that are too long.
        limits: of lengths.
        baselines: what the network is compared with.
        notes: what was left out or cut.
    """

    preparation: PairPreparation
    inputs: EncodedPairs
    limits: Limits
    baselines: Baselines
    notes: list[str] = field(default_factory=list)


def prepare(settings: Translator, learned: Pairs, first: Translator | None) -> Prepared:
    """Learn units and vocabularies, or take those of the run that is gone on with; encode the pairs.

    Args:
        settings: every choice made but `max_source_length` and `max_target_length`, which are set here.
        learned: the training part.
        first: the run that is gone on with.

    Raises:
        InputError: no pair is short enough.
    """
    s, notes = settings, list[str]()
    assert learned.targets is not None
    assert s.unit is not None
    assert s.vocabulary_size is not None
    source, target = s.unit.split(",")
    baselines = Baselines.fit(learned.sources, learned.targets, (source, target), s.seed)
    if first is not None:
        preparation = first.preparation_
    else:
        preparation = PairPreparation.fit(
            learned.sources, learned.targets, units=(source, target), shared=bool(s.shared),
            size=s.vocabulary_size, minimum_count=1 if len(learned) < _FEW else 2, copies=bool(s.copying),
        )  # fmt: skip
    most = s.max_source_length if s.cuts else None
    inputs = preparation.encode(learned.sources, learned.targets, most_source=most)
    if inputs.shortened:
        notes.append(f"{inputs.shortened:,} sources of more than {most:,} units: the first {most:,} are read")
    lengths = inputs.source_lengths, inputs.target_lengths
    if s.max_source_length is None:
        s.max_source_length = longest(lengths[0])
    if s.max_target_length is None:
        s.max_target_length = longest(lengths[1])
    fits = (lengths[0] <= s.max_source_length) & (lengths[1] <= s.max_target_length)
    if not fits.any():
        raise InputError(
            f"no pair has at most max_source_length={s.max_source_length} and max_target_length="
            f"{s.max_target_length} units; give larger ones"
        )
    limits = Limits.of(lengths[0][fits], lengths[1][fits], s.max_source_length)
    if not fits.all():
        notes.append(
            f"{int((~fits).sum()):,} pairs of the training part with more than {s.max_source_length:,} units "
            f"of the source or {s.max_target_length:,} of the target were left out"
        )
        kept = learned.select(np.flatnonzero(fits))
        assert kept.targets is not None
        inputs = preparation.encode(kept.sources, kept.targets, most_source=most)
    return Prepared(preparation, inputs, limits, baselines, notes)
