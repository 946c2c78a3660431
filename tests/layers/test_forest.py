"""Forests: levels, slots, heights, numbers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.errors import InputError, SizeError
from ostinato.layers.forest import Forest


def test_a_small_forest_by_hand():
    # Tree 0: ((a b) c), tree 1: d, tree 2: (e) above a unary node.
    forest, leaves = Forest.from_nested([[["a", "b"], "c"], "d", [["e"]]])
    assert leaves == ["a", "b", "c", "d", "e"]
    assert forest.parents.tolist() == [2, 2, 4, 4, -1, -1, 7, 8, -1]
    assert forest.heights.tolist() == [0, 0, 1, 0, 2, 0, 0, 1, 2]
    assert forest.leaves.tolist() == [0, 1, 3, 5, 6]
    assert forest.inner.tolist() == [2, 7, 4, 8]
    assert forest.roots.tolist() == [4, 5, 8]
    assert forest.trees.tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 2]
    assert forest.numbers.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2]
    assert [tuple(level) for level in forest.levels] == [(0, 2, 0, 3), (2, 4, 3, 6)]
    assert (forest.n_trees, forest.n_nodes, forest.max_children, len(forest)) == (3, 9, 2, 3)
    assert forest.edge_slots().of_nodes.tolist() == [0, 1, 3, 4, 6, 7, 2, 5, 8]
    pairs = forest.child_slots(2)
    assert pairs.of_nodes.tolist() == [0, 1, 4, 5, 8, 9, 2, 6, 10]
    assert pairs.empty.tolist() == [3, 7]
    assert repr(forest) == "Forest(3 trees, 9 nodes, 2 levels of inner nodes)"


def test_every_node_has_a_slot_of_its_own_and_siblings_follow_each_other():
    rng = np.random.default_rng(0)
    # A random parent before the node: any shape and any number of children; then any numbering.
    parents = np.array([-1 if rng.random() < 0.1 or not node else rng.integers(node) for node in range(200)])
    number = rng.permutation(200)
    shuffled = np.empty(200, np.int64)
    shuffled[number] = np.where(parents < 0, -1, number[parents])
    forest = Forest(torch.from_numpy(shuffled))
    slots = forest.edge_slots()
    assert sorted(slots.of_nodes.tolist()) == list(range(slots.total))
    wide = forest.child_slots(forest.max_children)
    assert len(set(wide.of_nodes.tolist()) | set(wide.empty.tolist())) == wide.total
    for level in forest.levels:
        children = (forest.edge_parents >= level.first) & (forest.edge_parents < level.last)
        assert children.nonzero().flatten().tolist() == list(range(level.first_edge, level.last_edge))
    again = Forest(forest.parents, forest.heights)
    assert torch.equal(again.edge_slots().of_nodes, slots.of_nodes)


def test_only_single_leaves():
    forest = Forest(torch.tensor([-1, -1]))
    assert forest.levels == []
    assert forest.edge_slots().of_nodes.tolist() == [0, 1]
    assert forest.child_slots(2).total == 2


def test_ten_thousand_levels_need_no_recursion():
    tree = "leaf"
    for _ in range(10_000):
        tree = [tree]
    forest, leaves = Forest.from_nested([tree])
    assert leaves == ["leaf"]
    assert len(forest.levels) == 10_000
    assert not forest.trees.any()


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([], "no node"),
        ([1, 2, 0], "is its own ancestor"),
        ([-1, 2, 1, 1], "node 1 is its own ancestor"),
        ([0], "is 0, expected another node"),
        ([-1, 5], r"parents\[1\] is 5"),
        ([-2], r"parents\[0\] is -2"),
    ],
)
def test_what_is_no_forest_is_refused(parents, message):
    with pytest.raises(InputError, match=message):
        Forest(torch.tensor(parents, dtype=torch.int64))


def test_wrong_shapes_and_heights_are_refused():
    with pytest.raises(SizeError, match="expected integers"):
        Forest(torch.zeros(3))
    with pytest.raises(SizeError, match="heights has shape"):
        Forest([-1, 0], heights=[1])
    with pytest.raises(InputError, match=r"heights\[0\] is 2, but its 1 children make it 1"):
        Forest([-1, 0], heights=[2, 0])
    with pytest.raises(InputError, match="tree 1 holds an empty list"):
        Forest.from_nested(["a", ["b", []]])
