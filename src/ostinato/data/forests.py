"""`TreePreparation`: from trees of words to flat arrays, and batches of whole forests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.encoded_tokens import EncodedTokens
from ostinato.data.examples import Tree
from ostinato.data.ragged import DEFAULT_BUDGET_BYTES, RaggedRows
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError, RunFolderError
from ostinato.types import Batch

FORMAT = 1


class EncodedForests:
    """Trees as numbers. Made by `TreePreparation.encode`.

    Attributes:
        tokens: the leaves, one row for each tree.
        unknown_labels: labels of nodes that are none of the classes; such a node counts as unlabelled.
    """

    def __init__(
        self,
        tokens: EncodedTokens,
        parents: RaggedRows,
        heights: RaggedRows,
        classes: RaggedRows,
        unknown: int,
    ):
        self.tokens, self.unknown_labels = tokens, unknown
        self._parents, self._heights, self._classes = parents, heights, classes

    def __len__(self) -> int:
        return len(self._parents)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): nodes of each tree."""
        return self._parents.lengths

    def batch(self, rows: Any) -> Batch:
        """A batch of chosen trees, with M nodes in all: tree after tree, each in post order.

        Args:
            rows: (B,) indices.

        Returns:
            What `EncodedTokens.batch` gives for the leaves (`words` (B, T), `lengths` (B,), …), and `parents`
            (M,), the number of each node's parent in the batch, -1 for a root; `heights` (M,), 0 for a leaf;
            `node_y` (M,), each node's class, -1 where it has none. All int64.
        """
        chosen = np.asarray(rows, np.int64).reshape(-1)
        offsets = self._parents.offsets
        sizes = offsets[chosen + 1] - offsets[chosen]
        firsts = np.cumsum(sizes) - sizes
        where = np.repeat(offsets[chosen] - firsts, sizes) + np.arange(int(sizes.sum()))
        parents = self._parents.flat[where].astype(np.int64)
        fields = {
            "parents": np.where(parents < 0, -1, parents + np.repeat(firsts, sizes)),
            "heights": self._heights.flat[where].astype(np.int64),
            "node_y": self._classes.flat[where].astype(np.int64),
        }
        batch = self.tokens.batch(chosen)
        batch.update({name: torch.from_numpy(value) for name, value in fields.items()})
        return batch


class TreePreparation:
    """How trees become numbers: the words of the leaves, the shape of the trees, the classes of the nodes.

    A node of more than `max_children` children is split: neighbouring children are put under new nodes, in
    runs as equal as can be, until no node has too many. The order of the leaves stays, the depth grows by the
    logarithm of the number of children only, and the new nodes have no class. Nodes of a single child stay as
    they are.

    Attributes:
        tokens: the preparation of the leaves.
        classes: texts of the classes 0, 1, …
        max_children: the most children of a node; None: any number.
        sizes: what `TokenEncoder` is built from.
    """

    def __init__(self, tokens: TokenPreparation, classes: Sequence[str], max_children: int | None = 2):
        if max_children is not None and max_children < 2:
            raise InputError(
                f"TreePreparation: max_children={max_children!r}, expected at least 2, or None for any number"
            )
        self.tokens, self.classes, self.max_children = tokens, tuple(classes), max_children
        self._class_numbers = {name: number for number, name in enumerate(self.classes)}

    @classmethod
    def fit(
        cls,
        trees: Iterable[Tree],
        classes: Sequence[str],
        *,
        max_children: int | None = 2,
        **options: Any,
    ) -> TreePreparation:
        """Count the words of the training part.

        Args:
            trees: the training part; one pass.
            classes: the classes, as texts. A node whose label is another text counts as unlabelled.
            max_children: of `NaryTreeLSTM`; None for `ChildSumTreeLSTM`, which takes any number.
            **options: of `TokenPreparation.fit`.

        Raises:
            InputError: an option that cannot be used; no tree.
        """
        return cls(TokenPreparation.fit(trees, **options), classes, max_children)

    @property
    def sizes(self) -> dict[str, Any]:
        """As `TokenPreparation.sizes`."""
        return self.tokens.sizes

    @property
    def word_counts(self) -> NDArray[np.int64]:
        """As `TokenPreparation.word_counts`."""
        return self.tokens.word_counts

    def encode(self, trees: Sequence[Tree], *, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> EncodedForests:
        """Numbers of trees.

        Args:
            trees: N of them; gone through twice.
            budget_bytes: as for `TokenPreparation.encode`, for each array.

        Raises:
            InputError: a tree that is not in post order.

        Cost: about 1 µs a node; 12 bytes a node, and what the leaves take.
        """
        parents, heights, classes = (RaggedRows(budget_bytes) for _ in range(3))
        unknown = 0
        for number, tree in enumerate(trees):
            children: Sequence[Sequence[int]] = tree.children
            labels: Sequence[str | None] = tree.labels
            if any(list(below) != sorted(below) for below in children if len(below) > 1):
                raise InputError(
                    f"tree {number}: its nodes are not in post order; number children from the left"
                )
            if self.max_children is not None and any(len(below) > self.max_children for below in children):
                children, labels = _split(children, labels, self.max_children)
            up, high = [-1] * len(children), [0] * len(children)
            for node, below in enumerate(children):
                for child in below:
                    up[child] = node
                    if high[child] >= high[node]:
                        high[node] = high[child] + 1
            own = [-1 if label is None else self._class_numbers.get(label, -2) for label in labels]
            if -2 in own:
                unknown += own.count(-2)
                own = [max(one, -1) for one in own]
            parents.append(up)
            heights.append(high)
            classes.append(own)
        return EncodedForests(
            self.tokens.encode(trees, budget_bytes=budget_bytes), parents, heights, classes, unknown
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        return {
            "format": FORMAT,
            "tokens": self.tokens.to_json(),
            "classes": list(self.classes),
            "max_children": self.max_children,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TreePreparation:
        """The preparation that `to_json` wrote: it gives the same numbers.

        Raises:
            RunFolderError: values that are damaged or of a newer version.
        """
        if not isinstance(stored, Mapping) or not isinstance(stored.get("format"), int):
            raise RunFolderError("a stored preparation of trees has no format; restore the run folder")
        if stored["format"] > FORMAT:
            raise RunFolderError(
                f"the preparation of trees has format {stored['format']}, newer than {FORMAT}, the newest "
                "known here; upgrade"
            )
        try:
            most = stored["max_children"]
            classes = [str(name) for name in stored["classes"]]
            return cls(
                TokenPreparation.from_json(stored["tokens"]), classes, None if most is None else int(most)
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise RunFolderError(
                f"a stored preparation of trees is damaged: {error!r}; restore the run folder"
            ) from error


def _split(
    children: Sequence[Sequence[int]], labels: Sequence[str | None], most: int
) -> tuple[list[Sequence[int]], list[str | None]]:
    """The same tree in post order, with new nodes where one has more than `most` children."""
    new_children: list[Sequence[int]] = []
    new_labels: list[str | None] = []
    # Open nodes from the root down: what comes under each, the new numbers of those that are done, its label.
    stack: list[tuple[list[Any], list[int], str | None]] = []

    def open_node(below: Sequence[Any], label: str | None) -> None:
        stack.append(([_Run(run) if len(run) > 1 else run[0] for run in _runs(below, most)], [], label))

    open_node(children[-1], labels[-1])
    while stack:
        waiting, done, label = stack[-1]
        if len(done) < len(waiting):
            child = waiting[len(done)]
            if isinstance(child, _Run):
                open_node(child.nodes, None)
            else:
                open_node(children[child], labels[child])
            continue
        stack.pop()
        if stack:
            stack[-1][1].append(len(new_children))
        new_children.append(tuple(done))
        new_labels.append(label)
    return new_children, new_labels


class _Run:
    """Neighbours that come under a node of their own."""

    def __init__(self, nodes: Sequence[int]):
        self.nodes = nodes


def _runs(below: Sequence[int], most: int) -> list[Sequence[int]]:
    """At most `most` runs, as equal in length as can be; single nodes where they are few enough."""
    n = min(most, len(below))
    ends = [len(below) * (run + 1) // n for run in range(n)] if n else []
    return [below[first:last] for first, last in zip([0, *ends[:-1]], ends, strict=True)] if n else []
