"""`Vocabulary`: the ids of words (or letters, tags, shapes), counted in the training part, stored as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError, RunFolderError

PADDING, UNKNOWN = 0, 1
FIRST_ID = 2


class Vocabulary:
    """Ids of entries: 0 is padding, 1 whatever is unknown, then the entries, the most frequent first.

    Neither special id has a text, so that no entry of the data can be mistaken for it.

    Args:
        entries: the texts of the ids 2, 3, …
        counts: how often each occurred in the training part.
        unknown_count: how often others did, which were too rare to be entries.

    Raises:
        InputError: an entry that comes twice, or counts that are not one for each entry.

    Cost: a dictionary look-up for each question.
    """

    def __init__(self, entries: Sequence[str], counts: Sequence[int], unknown_count: int = 0):
        if len(entries) != len(counts):
            raise InputError(
                f"Vocabulary: {len(counts)} counts for {len(entries)} entries; give one for each"
            )
        self.entries = tuple(entries)
        self.counts: NDArray[np.int64] = np.array([0, unknown_count, *counts], np.int64)
        self._ids = {entry: number for number, entry in enumerate(self.entries, FIRST_ID)}
        if len(self._ids) != len(self.entries):
            twice = next(e for i, e in enumerate(self.entries, FIRST_ID) if self._ids[e] != i)
            raise InputError(f"Vocabulary: the entry {twice!r} comes twice; each text has one id")

    @classmethod
    def fit(
        cls, counts: Mapping[str, int], *, minimum_count: int = 1, maximum_size: int | None = None
    ) -> Vocabulary:
        """The vocabulary of what was counted, by falling count, then by code points.

        Args:
            counts: how often each text occurred.
            minimum_count: rarer texts are unknown.
            maximum_size: the most entries to keep; None: all.

        Raises:
            InputError: a limit below 1.
        """
        for name, value in (("minimum_count", minimum_count), ("maximum_size", maximum_size)):
            if value is not None and value < 1:
                raise InputError(f"Vocabulary: {name}={value!r}, expected an integer of at least 1")
        kept = sorted(
            (entry for entry, count in counts.items() if count >= minimum_count),
            key=lambda entry: (-counts[entry], entry),
        )[:maximum_size]
        own = [counts[entry] for entry in kept]
        return cls(kept, own, sum(counts.values()) - sum(own))

    def __len__(self) -> int:
        """V: entries and the two special ids."""
        return len(self.entries) + FIRST_ID

    def __contains__(self, entry: object) -> bool:
        return entry in self._ids

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Vocabulary)
            and self.entries == other.entries
            and bool(np.array_equal(self.counts, other.counts))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids: padding, unknown, {', '.join(map(repr, self.entries[:3]))}, …)"

    def id(self, entry: str) -> int:
        """The id of a text; 1 where it is unknown."""
        return self._ids.get(entry, UNKNOWN)

    def ids(self, entries: Iterable[str]) -> list[int]:
        """The ids of texts; 1 for each that is unknown."""
        get = self._ids.get
        return [get(entry, UNKNOWN) for entry in entries]

    def entry(self, number: int) -> str:
        """The text of an id.

        Raises:
            InputError: an id that has none: padding, unknown, or one that is not given out.
        """
        if not FIRST_ID <= number < len(self):
            raise InputError(
                f"Vocabulary: the id {number} has no text; ids with a text are {FIRST_ID} to {len(self) - 1}"
            )
        return self.entries[number - FIRST_ID]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        _, unknown, *counts = self.counts.tolist()
        return {"entries": list(self.entries), "counts": counts, "unknown_count": unknown}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_json` wrote.

        Raises:
            RunFolderError: the values are not those of a vocabulary.
        """
        try:
            entries, counts = stored["entries"], stored["counts"]
            if not all(isinstance(entry, str) for entry in entries):
                raise TypeError("an entry is not a text")
            return cls(entries, [int(count) for count in counts], int(stored["unknown_count"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"a stored vocabulary is damaged: {error}; restore the run folder"
            ) from error
