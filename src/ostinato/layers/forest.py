"""`Forest`: a batch of trees as flat index tensors, ordered so that a step does all nodes of a height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError


class Level(NamedTuple):
    """The inner nodes of one height, in all trees: rows `first` to `last` among the inner nodes."""

    first: int
    last: int
    first_edge: int
    last_edge: int


@dataclass(frozen=True)
class Slots:
    """Where each node leaves its state, so that the children of a level are consecutive rows.

    A node has one parent and is therefore read once: what it leaves goes straight to where its parent's step
    will look. No step gathers its children.

    Attributes:
        total: rows of a buffer of states; the last `n_roots` of them are the roots'.
        n_roots: B.
        of_nodes: (M,) row of each node, in the caller's order.
        of_order: (M,) row of each node, in the order of levels.
        empty: rows that no node fills, because their parent has fewer than N children; None where there are
            none.
    """

    total: int
    n_roots: int
    of_nodes: Tensor
    of_order: Tensor
    empty: Tensor | None


class Forest:
    """B trees with M nodes in all, given by the parent of each node.

    Nodes may come in any order, and the trees interleaved. Everything that belongs to nodes (inputs, states,
    labels) keeps the caller's order; levels, slots and edges are this class's own business. Siblings are
    ordered by their node numbers. The height of a leaf is 0, of any other node 1 more than its highest child.

    Args:
        parents: (M,) int64, the number of each node's parent, -1 for a root.
        heights: (M,) int64 where they are known already; they are checked. None: found here.

    Attributes:
        parents: (M,) int64 on `device`.
        heights: (M,) int64.
        leaves: (n_leaves,) int64, numbers of the nodes without children, in rising order.
        roots: (B,) int64, in rising order; trees are numbered in this order.
        inner: (M - n_leaves,) int64, the other nodes, level by level.
        order: (M,) int64, `leaves` and then `inner`.
        edge_parents: (M - B,) int64, for each child, as `edge_slots` has them, its parent's row in `inner`.
        n_nodes, n_leaves, n_trees, max_children: M and so on.
        levels: one `Level` for each height from 1 on.

    Raises:
        SizeError: parents is not a row of integers, or heights has another shape.
        InputError: no node; a parent that is no node; a cycle; heights that are not.

    Cost: a few sorts of M numbers; without `heights` also a pass per height.
    """

    def __init__(self, parents: Tensor | Sequence[int], heights: Tensor | Sequence[int] | None = None):
        given = torch.as_tensor(parents)
        if given.dim() != 1 or given.dtype.is_floating_point or given.dtype == torch.bool:
            raise SizeError(
                f"Forest: parents has shape {tuple(given.shape)} and {given.dtype}, expected integers (M,)"
            )
        self.device = given.device
        up = given.detach().cpu().numpy().astype(np.int64)
        _check_parents(up)
        n_children = np.bincount(up[up >= 0], minlength=len(up))
        high = _heights(up, n_children) if heights is None else _checked_heights(up, n_children, heights)
        order = np.argsort(high, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        sizes = np.bincount(high)
        self._up, self._order, self._rank = up, order, rank
        self.n_nodes, self.n_leaves = len(up), int(sizes[0])
        self.max_children = int(n_children.max())
        roots = np.flatnonzero(up < 0)
        self.n_trees = len(roots)
        # Edges by parent's level, then parent, then child: stable sorting keeps the numbers' order.
        children = np.flatnonzero(up >= 0)
        self._children = children[np.argsort(rank[up[children]], kind="stable")]
        self._edge_parents = rank[up[self._children]] - self.n_leaves
        ends = np.cumsum(sizes[1:])
        edge_ends = np.searchsorted(self._edge_parents, ends)
        self.levels = [
            Level(*found)
            for found in zip(
                [0, *ends[:-1].tolist()], ends.tolist(), [0, *edge_ends[:-1].tolist()], edge_ends.tolist(),
                strict=False,
            )
        ]  # fmt: skip
        self._slots: dict[int, Slots] = {}
        self._tree_of: np.ndarray | None = None
        self.parents, self.heights = self._tensor(up), self._tensor(high)
        self.roots, self.leaves = self._tensor(roots), self._tensor(order[: self.n_leaves])
        self.inner = self._tensor(order[self.n_leaves :])
        self.order = self._tensor(order)
        self.edge_parents = self._tensor(self._edge_parents)

    def __len__(self) -> int:
        return self.n_trees

    def __repr__(self) -> str:
        return f"Forest({self.n_trees} trees, {self.n_nodes} nodes, {len(self.levels)} levels of inner nodes)"

    @classmethod
    def from_nested(cls, trees: Sequence[Any]) -> tuple[Forest, list[Any]]:
        """From nested lists or tuples: `[[a, b], c]` is a tree of three leaves.

        Args:
            trees: B of them; whatever is neither a list nor a tuple is a leaf.

        Returns:
            The forest, its nodes in post order (children before their parent, tree after tree), and the
            leaves from left to right, as `forest.leaves` numbers them.

        Raises:
            InputError: an empty list, which is neither leaf nor inner node.
        """
        parents: list[int] = []
        leaves = []
        for number, tree in enumerate(trees):
            # (what, numbers of its finished children): as deep as it likes, without recursion.
            stack: list[tuple[Any, list[int]]] = [(tree, [])]
            while stack:
                what, done = stack[-1]
                is_inner = isinstance(what, (list, tuple))
                if is_inner and len(done) < len(what):
                    stack.append((what[len(done)], []))
                    continue
                if is_inner and not len(what):
                    raise InputError(
                        f"Forest.from_nested: tree {number} holds an empty {type(what).__name__}; a node is "
                        "a list of at least one child, or a leaf"
                    )
                stack.pop()
                node = len(parents)
                parents.append(-1)
                for child in done:
                    parents[child] = node
                if not is_inner:
                    leaves.append(what)
                if stack:
                    stack[-1][1].append(node)
        return cls(torch.tensor(parents, dtype=torch.int64)), leaves

    def to(self, device: torch.device | str) -> Forest:
        """The same on another device."""
        moved = self.parents.to(device)
        return self if moved.device == self.device else Forest(moved, self.heights.cpu())

    def edge_slots(self) -> Slots:
        """A row for each child, siblings side by side, then the roots."""
        return self._make_slots(0)

    def child_slots(self, n: int) -> Slots:
        """`n` rows for each inner node, then the roots; a node with fewer children leaves rows empty.

        Raises:
            InputError: a node has more than `n` children.
        """
        if self.max_children > n:
            worst = int(np.bincount(self._up[self._up >= 0]).argmax())
            raise InputError(
                f"node {worst} has {self.max_children} children, and the layer takes at most "
                f"max_children={n}; raise that, split the node, or use ChildSumTreeLSTM"
            )
        return self._make_slots(n)

    def _make_slots(self, n: int) -> Slots:
        if n in self._slots:
            return self._slots[n]
        n_inner = self.n_nodes - self.n_leaves
        edges = np.arange(len(self._children))
        if n:
            first = np.searchsorted(self._edge_parents, np.arange(n_inner))
            edges = self._edge_parents * n + (edges - first[self._edge_parents])
        n_rows = n_inner * n if n else len(edges)
        of_nodes = np.empty(self.n_nodes, np.int64)
        of_nodes[self._children] = edges
        of_nodes[self._up < 0] = n_rows + np.arange(self.n_trees)
        empty = None
        if n_rows > len(edges):
            is_empty = np.ones(n_rows, bool)
            is_empty[edges] = False
            empty = self._tensor(np.flatnonzero(is_empty))
        slots = Slots(
            n_rows + self.n_trees,
            self.n_trees,
            self._tensor(of_nodes),
            self._tensor(of_nodes[self._order]),
            empty,
        )
        self._slots[n] = slots
        return slots

    @property
    def trees(self) -> Tensor:
        """(M,) int64: which tree each node belongs to. Cost: log2 of the greatest depth gathers."""
        return self._tensor(self._trees())

    @property
    def numbers(self) -> Tensor:
        """(M,) int64: how many nodes of the same tree have a smaller number."""
        tree = self._trees()
        by_tree = np.argsort(tree, kind="stable")
        starts = np.searchsorted(tree[by_tree], np.arange(self.n_trees))
        numbers = np.empty(self.n_nodes, np.int64)
        numbers[by_tree] = np.arange(self.n_nodes) - starts[tree[by_tree]]
        return self._tensor(numbers)

    def _trees(self) -> np.ndarray:
        if self._tree_of is None:
            above = np.where(self._up < 0, np.arange(self.n_nodes), self._up)
            while True:
                further = above[above]
                if np.array_equal(further, above):
                    break
                above = further
            self._tree_of = np.searchsorted(np.flatnonzero(self._up < 0), above)
        return self._tree_of

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _check_parents(up: np.ndarray) -> None:
    M = len(up)
    if not M:
        raise InputError("Forest: no node; a tree has at least one, its root")
    wrong = np.flatnonzero((up < -1) | (up >= M) | (up == np.arange(M)))
    if len(wrong):
        raise InputError(
            f"Forest: parents[{wrong[0]}] is {up[wrong[0]]}, expected another node, 0 … {M - 1}, or -1 for a "
            "root"
        )


def _heights(up: np.ndarray, n_children: np.ndarray) -> np.ndarray:
    """Level by level from the leaves: a node is next once all its children are known."""
    heights = np.full(len(up), -1, np.int64)
    waiting = n_children.copy()
    known, height = np.flatnonzero(waiting == 0), 0
    while len(known):
        heights[known] = height
        above = up[known]
        above, finished = np.unique(above[above >= 0], return_counts=True)
        waiting[above] -= finished
        known, height = above[waiting[above] == 0], height + 1
    if (heights < 0).any():
        raise InputError(
            f"Forest: node {int((heights < 0).argmax())} is its own ancestor, or below one that is; "
            "following parents must end at -1"
        )
    return heights


def _checked_heights(up: np.ndarray, n_children: np.ndarray, heights: Any) -> np.ndarray:
    known = torch.as_tensor(heights).detach().cpu().numpy().astype(np.int64)
    if known.shape != up.shape:
        raise SizeError(f"Forest: heights has shape {known.shape}, parents {up.shape}; expected the same")
    highest = np.full(len(up), -1, np.int64)
    is_child = up >= 0
    np.maximum.at(highest, up[is_child], known[is_child])
    wrong = np.flatnonzero(known != highest + 1)
    if len(wrong):
        node = int(wrong[0])
        raise InputError(
            f"Forest: heights[{node}] is {known[node]}, but its {n_children[node]} children make it "
            f"{highest[node] + 1}; leave heights out to have them found"
        )
    return known
