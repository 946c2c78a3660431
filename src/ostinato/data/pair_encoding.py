"""`PairPreparation`: pairs of texts to numbers and back; `EncodedPairs`: batches of an encoder–decoder."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.pair_units import PairUnits, fit_units
from ostinato.data.ragged import RaggedRows
from ostinato.data.vocabulary import PADDING, UNKNOWN, Vocabulary
from ostinato.errors import InputError, RunFolderError
from ostinato.types import Batch

START = PADDING  # what the decoder reads first: an id that no unit has
FIRST_PART = UNKNOWN + 1

Part = tuple[int, ...]
"""Ids of a target's vocabulary that one unit of a source stands for: none, one or two."""


@dataclass(frozen=True)
class PairPreparation:
    """Units and vocabularies of both sides.

    A target is written with the ids of its vocabulary, `end` after the last. Where words are copied, the
    units of a source that the target vocabulary lacks have the ids from `target_size` on, in the order in
    which they first occur in that source.

    A network that reads monotonically says a part of the target for each unit of the source instead, the
    number `FIRST_PART + i` for the part i, and knows by the source where the end is.

    Attributes:
        source_units, target_units: how texts are cut.
        source_vocabulary, target_vocabulary: one object where both sides share it.
        copies: whether sources are numbered for copying, too.
        parts: what a unit of a source may stand for; None where targets are said unit by unit.
    """

    source_units: PairUnits
    target_units: PairUnits
    source_vocabulary: Vocabulary
    target_vocabulary: Vocabulary
    copies: bool = False
    parts: tuple[Part, ...] | None = None

    @classmethod
    def fit(
        cls,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        units: tuple[str, str],
        shared: bool,
        size: int,
        minimum_count: int = 1,
        copies: bool = False,
    ) -> Self:
        """From the training part.

        Args:
            sources, targets: texts.
            units: kinds of the two sides.
            shared: one vocabulary (and one set of byte pairs) for both.
            size: most entries of a vocabulary, and how many byte pairs are learned.
            minimum_count: rarer units are unknown; of words and symbols.
            copies: whether words will be copied.

        Raises:
            InputError: a shared vocabulary of different units, or copying between them.
        """
        for wish, name in ((shared, "a shared vocabulary"), (copies, "copying")):
            if wish and units[0] != units[1]:
                raise InputError(
                    f"unit: {name} needs the same units on both sides, found {units[0]} and {units[1]}; pass "
                    "one unit for both, or leave it out"
                )
        if shared:
            both = fit_units(units[0], chain(sources, targets), size)
            sides = (both, both)
        else:
            sides = (fit_units(units[0], sources, size), fit_units(units[1], targets, size))
        counts = [_count(one, texts) for one, texts in zip(sides, (sources, targets), strict=True)]
        if shared:
            counts = [counts[0] + counts[1]] * 2
        least = [minimum_count if kind in ("word", "symbol") else 1 for kind in units]
        vocabularies = [
            Vocabulary.fit(count, minimum_count=few, maximum_size=size)
            for count, few in zip(counts[: 2 - shared], least, strict=False)
        ]
        return cls(sides[0], sides[1], vocabularies[0], vocabularies[-1], copies)

    @property
    def shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source_vocabulary is self.target_vocabulary

    @property
    def source_size(self) -> int:
        """Ids of sources."""
        return len(self.source_vocabulary) + 1 if self.shared else len(self.source_vocabulary)

    @property
    def end(self) -> int:
        """The id that ends a target."""
        return len(self.target_vocabulary)

    @property
    def target_size(self) -> int:
        """V: ids of targets, `end` among them; copied words come above."""
        return len(self.target_vocabulary) + 1

    @property
    def output_size(self) -> int:
        """How many numbers the network says: V, or where it says parts their number and two."""
        return self.target_size if self.parts is None else FIRST_PART + len(self.parts)

    def encode(
        self,
        sources: Iterable[str],
        targets: Iterable[str] | None = None,
        *,
        most_source: int | None = None,
    ) -> EncodedPairs:
        """Texts as numbers, in one pass.

        Args:
            sources: N texts.
            targets: as many, or None.
            most_source: units of a longer source beyond these are not read.
        """
        encoded = EncodedPairs(
            self.end, self.target_size, copies=self.copies, has_targets=targets is not None
        )
        for source, target in zip(sources, _endless(targets), strict=False):
            units = self.source_units.split(source)
            if most_source is not None and len(units) > most_source:
                encoded.shortened += 1
                units = units[:most_source]
            encoded.append(*self._numbers(units, target))
        return encoded

    def encode_units(self, rows: Iterable[Sequence[str]]) -> EncodedPairs:
        """Sources that are cut into units already, for a network to answer."""
        end = self.end if self.parts is None else self.output_size
        encoded = EncodedPairs(
            end, self.output_size, copies=self.copies, has_targets=False, is_aligned=self.parts is not None
        )
        for units in rows:
            encoded.append(*self._numbers(units, None))
        return encoded

    def _numbers(
        self, units: Sequence[str], target: str | None
    ) -> tuple[list[int], list[int] | None, list[int] | None, list[int] | None, list[str]]:
        ids = self.source_vocabulary.ids(units)
        words = None if target is None else self.target_units.split(target)
        told = None if words is None else self.target_vocabulary.ids(words)
        if not self.copies:
            return ids, None, told, told, []
        extra: dict[str, int] = {}
        extended = self.target_vocabulary.ids(units)
        for place, number in enumerate(extended):
            if number == UNKNOWN:
                extended[place] = extra.setdefault(units[place], self.target_size + len(extra))
        answers = None
        if words is not None and told is not None:
            answers = [
                extra.get(word, UNKNOWN) if number == UNKNOWN else number
                for word, number in zip(words, told, strict=True)
            ]
        return ids, extended, told, answers, list(extra)

    def in_parts(self, inputs: EncodedPairs, rows: Iterable[Sequence[Part] | None]) -> EncodedPairs:
        """Pairs with the parts of their targets in place of the units.

        Args:
            inputs: what `encode` gave.
            rows: for each pair a part for each unit of its source; None: the pair is left out.

        Returns:
            Those pairs of which `parts` has every part.
        """
        size = self.output_size
        found = EncodedPairs(size, size, copies=False, has_targets=True, is_aligned=True)
        for row, parts in enumerate(rows):
            if parts is not None and (told := self.said_for(parts)) is not None:
                found.append(inputs.source(row).tolist(), None, told, told, [])
        return found

    def said_for(self, parts: Iterable[Part]) -> tuple[int, ...] | None:
        """The numbers that a network says for parts; None where it does not know one of them."""
        told = tuple(self._numbers_of_parts.get(part, UNKNOWN) for part in parts)
        return None if UNKNOWN in told else told

    @cached_property
    def _numbers_of_parts(self) -> dict[Part, int]:
        return {part: FIRST_PART + i for i, part in enumerate(self.parts or ())}

    def ids_of(self, said: Iterable[int]) -> tuple[int, ...]:
        """The ids of a target's vocabulary that a network said, which are those unless it says parts."""
        if self.parts is None:
            return tuple(said)
        return tuple(i for one in said if one >= FIRST_PART for i in self.parts[one - FIRST_PART])

    def units_of(self, ids: Iterable[int], extra: Sequence[str] = ()) -> list[str]:
        """The units of what a decoder said; padding, the unknown and the end are left out."""
        vocabulary, size = self.target_vocabulary, self.target_size
        return [
            vocabulary.entry(i) if i < self.end else extra[i - size]
            for i in ids
            if i > UNKNOWN and i != self.end
        ]

    def text_of(self, ids: Iterable[int], extra: Sequence[str] = ()) -> str:
        """The text of what a decoder said."""
        return self.target_units.join(self.units_of(ids, extra))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        stored: dict[str, Any] = {
            "source": {"units": self.source_units.to_json(), "vocabulary": self.source_vocabulary.to_json()},
            "target": None,
            "copies": self.copies,
            "parts": None if self.parts is None else [list(part) for part in self.parts],
        }
        if not self.shared:
            stored["target"] = {
                "units": self.target_units.to_json(),
                "vocabulary": self.target_vocabulary.to_json(),
            }
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            RunFolderError: the values are not those of a preparation.
        """
        try:
            sides = [
                (PairUnits.from_json(side["units"]), Vocabulary.from_json(side["vocabulary"]))
                for side in (stored["source"], stored["target"])
                if side is not None
            ]
            (source_units, source), (target_units, target) = sides[0], sides[-1]
            parts = stored.get("parts")  # of earlier versions there are none
            read = None if parts is None else tuple(tuple(map(int, part)) for part in parts)
            return cls(source_units, target_units, source, target, bool(stored["copies"]), read)
        except (KeyError, TypeError, IndexError) as error:
            raise RunFolderError(f"stored units are damaged: {error}; restore the run folder") from error


class EncodedPairs:
    """N pairs as numbers.

    Args:
        end: the id after the last of a target.
        target_size: V.
        copies: whether sources have numbers for copying.
        has_targets: whether there are targets.
        is_aligned: whether targets are parts, as many as the source has units, and without an end.

    Attributes:
        extra: where words are copied, for each source those that the target vocabulary lacks.
        shortened: how many sources were cut.
        unknown, unknown_told: for each pair how many units of its source, and of its target as the decoder
            reads it, are unknown.
    """

    def __init__(
        self, end: int, target_size: int, *, copies: bool, has_targets: bool, is_aligned: bool = False
    ):
        self.end, self.target_size, self.copies, self.has_targets = end, target_size, copies, has_targets
        self.is_aligned = is_aligned
        self.extra: list[list[str]] = []
        self.shortened = 0
        self.unknown, self.unknown_told = array("q"), array("q")
        self._sources, self._extended = RaggedRows(), RaggedRows()
        self._told, self._answers = RaggedRows(), RaggedRows()

    def append(
        self,
        source: Sequence[int],
        extended: Sequence[int] | None,
        told: Sequence[int] | None,
        answers: Sequence[int] | None,
        extra: list[str],
    ) -> None:
        """Add a pair: its source, that in the numbers of copying, the target as the decoder reads it and as
        it has to be said, and the words that only the source has."""
        self._sources.append(source)
        self.unknown.append(source.count(UNKNOWN))
        if extended is not None:
            self._extended.append(extended)
            self.extra.append(extra)
        if told is not None and answers is not None:
            self._told.append(told)
            self.unknown_told.append(told.count(UNKNOWN))
            if self.copies:
                self._answers.append(answers)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        """(N,) units."""
        return self._sources.lengths

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """(N,) units, without the end."""
        return self._told.lengths

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) units of both sides, to batch by."""
        return self.source_lengths + self.target_lengths if self.has_targets else self.source_lengths

    def source(self, row: int) -> NDArray[np.int32]:
        """The ids of one source."""
        return self._sources.row(row)

    def target(self, row: int) -> NDArray[np.int32]:
        """The ids of one target as the decoder reads it, without the end."""
        return self._told.row(row)

    def batch(self, rows: Any) -> Batch:
        """Chosen pairs, padded.

        Returns:
            `source` (B, S), `source_lengths` (B,); where there are targets `target_in` (B, T), which begins
            with `START`, `target_out` (B, T), which ends with `end` (parts: without), and `target_lengths`
            (B,); for copying `source_extended` (B, S) and `extra` (B,), how many words of a source the
            vocabulary lacks, and `target_out` in the same numbers. All int64.
        """
        chosen = np.asarray(rows, np.int64).reshape(-1)
        fields = {
            "source": self._sources.padded(chosen, least=1),
            "source_lengths": self.source_lengths[chosen],
        }
        if self.has_targets:
            told = self._told.padded(chosen)
            answers = self._answers.padded(chosen) if self.copies else told
            lengths = self.target_lengths[chosen]
            column = np.full((len(chosen), 1), START, np.int64)
            before = np.concatenate([column, told], axis=1)
            if self.is_aligned:
                fields["target_in"], fields["target_out"] = before[:, :-1], answers
                fields["target_lengths"] = lengths
            else:
                fields["target_in"], fields["target_out"] = before, np.concatenate([answers, column], axis=1)
                fields["target_out"][np.arange(len(chosen)), lengths] = self.end
                fields["target_lengths"] = lengths + 1
        if self.copies:
            fields["source_extended"] = self._extended.padded(chosen, least=1)
            fields["extra"] = np.array([len(self.extra[row]) for row in chosen.tolist()], np.int64)
        return Batch({name: torch.from_numpy(value) for name, value in fields.items()})


def _count(units: PairUnits, texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(units.split(text))
    return counts


def _endless(targets: Iterable[str] | None) -> Iterable[str | None]:
    if targets is None:
        while True:
            yield None
    yield from targets
