"""Which tags and labels a tagger knows, and between them and the numbers that its network says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.data.examples import Examples
from ostinato.errors import InputError
from ostinato.tasks.labels.spans import TagSpelling
from ostinato.tasks.labels.tagger_decoding import Said
from ostinato.tasks.labels.tagger_inputs import cut
from ostinato.tasks.labels.tagger_scores import unknown_note


@dataclass(frozen=True)
class Answers:
    """The answers of a tagger.

    Attributes:
        spelling: between the tags of the data and those that are learned.
        known: the tags of the training data.
        learned: the tags that the network says, in the order of their numbers.
        labels: of sentences; empty where none are learned.
    """

    spelling: TagSpelling
    known: tuple[str, ...]
    learned: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        names, merged = self.spelling.merged(self.learned)
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_merged", np.array(merged, np.int64))
        object.__setattr__(self, "_numbers", {tag: number for number, tag in enumerate(self.learned)})

    @classmethod
    def fit(cls, data: Examples, *, joint: bool | None, learn_ends: bool) -> Self:
        """From the training data.

        Args:
            data: examples with tags.
            joint: whether labels are learned; None: where there are two or more.
            learn_ends: as for `TagSpelling.infer`.

        Raises:
            InputError: fewer than two different tags, or labels where they are wanted.
        """
        where = data.source or "the data"
        counts = Counter(chain.from_iterable(data.tags or ()))
        if len(counts) < 2:
            found = f"one tag alone, {next(iter(counts))!r}" if counts else "no tag at all"
            raise InputError(f"label: {where} has {found}; a tagger needs two or more, name another column")
        labels = sorted(set(data.labels or ()))
        if joint and len(labels) < 2:
            raise InputError(
                f"joint=True: {where} has {len(labels)} different labels of sentences, expected two or more; "
                "name their column, or leave joint out"
            )
        rows = data.tags or ()
        spelling = TagSpelling.infer(rows, counts, learn_ends=learn_ends)
        # A span that is cut between two stretches of a long sentence has other ends there.
        stretches = (row[one.first : one.stop] for row in rows for one in cut(0, len(row)))
        learned = {tag for row in stretches for tag in spelling.to_learned(row)}
        kept = labels if joint is not False and len(labels) > 1 else []
        return cls(spelling, tuple(sorted(counts)), tuple(sorted(learned)), tuple(kept))

    @property
    def tags(self) -> list[str]:
        """The tags of `merge`, sorted."""
        return self._names  # type: ignore[attr-defined]

    def are_among(self, others: Answers) -> bool:
        """Whether a network that says the others says all of these."""
        return {*self.learned} <= {*others.learned} and {*self.labels} <= {*others.labels}

    def tag_numbers(self, tags: Sequence[str]) -> list[int]:
        """Learned tags by number; 0 for those that training did not have, which nothing is learned from."""
        numbers: dict[str, int] = self._numbers  # type: ignore[attr-defined]
        return [numbers.get(tag, 0) for tag in self.spelling.to_learned(tags)]

    def label_numbers(self, labels: Sequence[str]) -> list[int]:
        """Labels by number; 0 for those that training did not have."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [numbers.get(label, 0) for label in labels]

    def tags_of(self, said: Said) -> list[list[str]]:
        """What was said as tags of the data."""
        return [self.spelling.from_learned([self.learned[i] for i in row.tolist()]) for row in said.tags]

    def labels_of(self, said: Said) -> list[str] | None:
        """The most probable labels; None from a network of tags alone."""
        if said.label_probabilities is None:
            return None
        return [self.labels[i] for i in said.label_probabilities.argmax(axis=1).tolist()]

    def merge(self, shares: NDArray[np.float32]) -> NDArray[np.float64]:
        """(T, learned tags) to (T, K): probabilities of tags that are one in the data, added."""
        merged = np.zeros((len(self.tags), len(shares)))
        np.add.at(merged, self._merged, shares.T)  # type: ignore[attr-defined]
        return merged.T

    def unknown(self, examples: Examples) -> list[str]:
        """Notes on answers that training did not have."""
        notes = [unknown_note("tags", chain.from_iterable(examples.tags or ()), self.known)]
        if self.labels and examples.labels is not None:
            notes.append(unknown_note("labels", examples.labels, self.labels))
        return [note for note in notes if note]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        lists = {name: tuple(stored[name]) for name in ("known", "learned", "labels")}
        return cls(TagSpelling(**stored["spelling"]), **lists)
