"""From the training part to what a network is trained on: units, numbers, limits, and baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostinato.data.pair_encoding import EncodedPairs, PairPreparation
from ostinato.data.pair_files import Pairs
from ostinato.data.pairs import read_pairs
from ostinato.errors import InputError
from ostinato.models.seq2seq import EncoderDecoder
from ostinato.tasks.same_data import joined_bytes
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


def read_parts(
    data: Any, targets: Any, valid: Any, test: Any, reading: Mapping[str, Any]
) -> dict[str, Pairs]:
    """The pairs of `data`, and of `valid` and `test` where they are given, as of `Translator.fit`.

    Raises:
        InputError: forms that do not go together, or a part without a pair that has text on both sides.
        DataError: a file that cannot be used.
    """
    parts = {"data": complete(read_pairs(data, targets, **reading), "data")}
    for name, part in (("valid", valid), ("test", test)):
        if part is not None:
            # Configurations have lists where Python has tuples. Two files have no columns.
            is_two = isinstance(part, list | tuple) and len(part) == 2 and all(map(_is_path, part))
            pairs = read_pairs(*part, encoding=reading["encoding"]) if is_two else read_pairs(part, **reading)
            parts[name] = complete(pairs, name)
    return parts


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path)


def complete(pairs: Pairs, name: str) -> Pairs:
    """Pairs with text on both sides; the others are counted among the notes.

    Raises:
        InputError: there is none; `name` is the argument that they came by.
    """
    found, note = pairs.complete()
    if not len(found):
        raise InputError(
            f"{name}: no pair of {pairs.origin} has text on both sides; give one or more that have"
        )
    return replace(found, notes=(*found.notes, note)) if note else found


def fingerprint(pairs: Pairs) -> dict[str, Any]:
    """How many pairs there are, and a digest of their texts, whatever file they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in zip(pairs.sources, pairs.targets or (), strict=True):
        digest.update(joined_bytes(pair))
    return {"examples": len(pairs), "digest": digest.hexdigest()}


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
    lost = sum(inputs.unknown), sum(inputs.unknown_told)
    if first is not None and any(lost):
        notes.append(
            f"{lost[0]:,} of {inputs.source_lengths.sum():,} units of the sources and {lost[1]:,} of "
            f"{inputs.target_lengths.sum():,} of the targets are unknown to the run that init names"
        )
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


def build_network(settings: Translator, preparation: PairPreparation) -> EncoderDecoder:
    """An untrained network for what `preparation` makes of texts, every choice made."""
    s, p = settings, preparation
    return EncoderDecoder(
        p.source_size, p.output_size, cell=s.cell, embedding_size=s.embedding_size,
        hidden_size=s.hidden_size, encoder_layers=s.num_layers, decoder_layers=s.num_layers,
        attention=s.attention, feeding=s.feeding, copying=bool(s.copying), coverage=s.coverage,
        tie="all" if p.shared and p.parts is None else "output", dropout_embedding=s.dropout,
        dropout_between=s.dropout, dropout_output=s.dropout, word_dropout=s.word_dropout,
        label_smoothing=s.label_smoothing,
    )  # fmt: skip
