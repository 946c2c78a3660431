"""What every reader of labelled sequences gives: inputs, their classes or tags, and where each came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError, SizeError

KINDS = ("text", "letters", "arrays", "tokens", "trees")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Sentence:
    """One row of tokens.

    Args:
        tokens: the words (or units) in order.
        columns: further columns by name ("0", "1", … or "upos", "lemma", …), each as long as `tokens`.

    Raises:
        SizeError: a column that is not as long as the tokens.
    """

    tokens: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.columns.items():
            if len(values) != len(self.tokens):
                raise SizeError(
                    f"Sentence: column {name!r} has {len(values)} values for {len(self.tokens)} tokens; "
                    "give one for each token"
                )

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Tree:
    """A constituency tree in post order: the children of a node come before it, the root is the last node.

    Args:
        tokens: the leaves' words in order.
        children: for each node the indices of its children in order; () is a leaf.
        labels: for each node its label; None where it has none (a leaf, unless the file labels words).

    The i-th node without children, counted in post order, carries `tokens[i]`.

    Raises:
        SizeError: labels that are not one a node, or leaves that are not one a token.
        InputError: a child that comes after its node, or belongs to two nodes or to none.
    """

    tokens: tuple[str, ...]
    children: tuple[tuple[int, ...], ...]
    labels: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.children):
            raise SizeError(
                f"Tree: {len(self.labels)} labels for {len(self.children)} nodes; give one (or None) for each"
            )
        n_leaves = sum(not below for below in self.children)
        if n_leaves != len(self.tokens):
            raise SizeError(
                f"Tree: {len(self.tokens)} tokens for {n_leaves} leaves; give one token for each leaf"
            )
        if any(child >= node or child < 0 for node, below in enumerate(self.children) for child in below):
            raise InputError("Tree: a node has a child that comes after it; give the nodes in post order")
        below_others = sorted(child for below in self.children for child in below)
        if below_others != list(range(len(self.children) - 1)):
            raise InputError("Tree: every node but the last must be the child of exactly one node")

    def __len__(self) -> int:
        return len(self.children)


class Selection(Sequence[Item], Generic[Item]):
    """Chosen rows of a sequence, looked up when asked for: a lazy sequence stays lazy."""

    def __init__(self, items: Sequence[Item], rows: Sequence[int] | NDArray[np.int64]):
        self._items, self._rows = items, np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return Selection(self._items, self._rows[index])
        return self._items[int(self._rows[index])]

    def __iter__(self) -> Iterator[Item]:
        return (self._items[row] for row in self._rows.tolist())


@dataclass(frozen=True)
class Examples:
    """Labelled (or unlabelled) sequences of one kind, read from one source.

    Args:
        kind: what an input is: "text" (str), "letters" (str), "arrays" (float32 (T, D)), "tokens" (Sentence)
            or "trees" (Tree).
        inputs: N inputs; a lazy sequence where the file is larger than memory.
        labels: N classes as text; None where the source has none.
        tags: for each input a tag for each token; None where the source has none.
        ids: for each input what its source calls it; None where it has no name.
        places: for each input its line (file) or its row (frame, list, arrays), counted from 1.
        source: the file, or what kind of object the examples came from.
        notes: what was skipped, repaired or is worth knowing, counted.
        reading: plain JSON values with which `read_labelled` reads further files the same way: columns by
            name or by number from 0, and so on.

    Raises:
        InputError: an unknown kind.
        SizeError: labels, tags, ids or places that are not one for each input.
    """

    kind: str
    inputs: Sequence[Any]
    labels: Sequence[str] | None = None
    tags: Sequence[Sequence[str]] | None = None
    ids: Sequence[str] | None = None
    places: Sequence[int] = ()
    source: str = ""
    notes: tuple[str, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Examples: kind {self.kind!r} is not known; the kinds are: {', '.join(KINDS)}")
        if not len(self.places):
            object.__setattr__(self, "places", range(1, len(self.inputs) + 1))
        for name in ("labels", "tags", "ids", "places"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.inputs):
                raise SizeError(f"Examples: {len(values)} {name} for {len(self.inputs)} inputs")

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The examples at `rows` (indices from 0, in this order, repeats allowed); the inputs are not copied.

        Raises IndexError for a row that there is not.
        """
        chosen = np.asarray(rows, np.int64).reshape(-1)
        if len(chosen) and not (-len(self) <= chosen.min() and chosen.max() < len(self)):
            raise IndexError(
                f"rows: expected indices below {len(self)}, found {chosen.min()} to {chosen.max()}"
            )
        return replace(
            self,
            inputs=Selection(self.inputs, chosen),
            labels=None if self.labels is None else [self.labels[row] for row in chosen.tolist()],
            tags=None if self.tags is None else Selection(self.tags, chosen),
            ids=None if self.ids is None else [self.ids[row] for row in chosen.tolist()],
            places=[self.places[row] for row in chosen.tolist()],
        )
