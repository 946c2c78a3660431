"""The preparation of trees: shapes, splits, classes, batches, storage."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ostinato.data.examples import Tree
from ostinato.data.forests import TreePreparation
from ostinato.errors import InputError, RunFolderError
from ostinato.layers.forest import Forest

GOOD = Tree(("a", "very", "good", "Film"), ((), (), (), (1, 2), (), (3, 4), (0, 5)), (*"0012012",))
WORD = Tree(("bad",), ((),), ("0",))
FLAT = Tree(
    ("so", "it", "is", "and", "was"),
    ((), (), (), (), (), (0, 1, 2, 3, 4)),
    (None, None, None, None, None, "1"),
)
UNARY = Tree(("bad", "film"), ((), (0,), (), (1, 2), (3,)), ("0", "NP", None, "2", "1"))
TREES = [GOOD, WORD, FLAT, UNARY]
CLASSES = ("0", "1", "2")


def prepared(max_children=2, **options):
    return TreePreparation.fit(
        TREES, CLASSES, max_children=max_children, characters=False, shapes=False, **options
    )


def test_a_batch_has_the_nodes_of_tree_after_tree():
    preparation = prepared(max_children=None)
    encoded = preparation.encode(TREES)
    assert len(encoded) == 4
    assert encoded.lengths.tolist() == [7, 1, 6, 5]
    assert encoded.unknown_labels == 1
    batch = encoded.batch([3, 0, 1])
    assert batch["parents"].tolist() == [1, 3, 3, 4, -1, 11, 8, 8, 10, 10, 11, -1, -1]
    assert batch["heights"].tolist() == [0, 1, 0, 2, 3, 0, 0, 0, 1, 0, 2, 3, 0]
    assert batch["node_y"].tolist() == [0, -1, -1, 2, 1, 0, 0, 1, 2, 0, 1, 2, 0]
    assert batch["lengths"].tolist() == [2, 4, 1]
    words = preparation.tokens.words
    assert batch["words"][1].tolist() == words.ids(["a", "very", "good", "film"])
    assert batch.size == 3
    forest = Forest(batch["parents"], batch["heights"])
    assert forest.roots.tolist() == [4, 11, 12]


def test_a_batch_does_not_depend_on_what_else_was_encoded():
    preparation = prepared()
    together, alone = preparation.encode(TREES).batch([2]), preparation.encode([FLAT]).batch([0])
    assert all(torch.equal(together[name], alone[name]) for name in together)


def spelled(batch, leaves):
    """Nested lists of the only tree of a batch."""
    parents = batch["parents"].tolist()
    left = iter(leaves)

    def below(node):
        children = [other for other, parent in enumerate(parents) if parent == node]
        return [below(child) for child in children] if children else next(left)

    return below(parents.index(-1))


@pytest.mark.parametrize(
    ("n", "most", "expected"),
    [
        (3, 2, ["a", ["b", "c"]]),
        (4, 2, [["a", "b"], ["c", "d"]]),
        (5, 2, [["a", "b"], ["c", ["d", "e"]]]),
        (5, 3, ["a", ["b", "c"], ["d", "e"]]),
        (3, 3, ["a", "b", "c"]),
        (2, 2, ["a", "b"]),
    ],
)
def test_nodes_of_too_many_children_are_split_evenly(n, most, expected):
    leaves = tuple("abcde"[:n])
    tree = Tree(leaves, (*[()] * n, tuple(range(n))), (*["0"] * n, "1"))
    preparation = TreePreparation.fit([tree], ("0", "1"), max_children=most)
    batch = preparation.encode([tree]).batch([0])
    assert spelled(batch, leaves) == expected
    y = batch["node_y"]
    is_leaf = batch["heights"] == 0
    assert y[is_leaf].eq(0).all()
    assert y[batch["parents"] < 0].tolist() == [1]
    # The nodes between are new ones.
    assert y[~is_leaf & (batch["parents"] >= 0)].eq(-1).all()


def test_splitting_keeps_all_that_lies_below_and_stays_flat():
    n = 10_000
    children = [()] * n
    tree = Tree(("w",) * n, (*children, tuple(range(n))), (*[None] * n, "1"))
    batch = TreePreparation.fit([tree], ("1",)).encode([tree]).batch([0])
    assert len(batch["parents"]) == 2 * n - 1
    assert batch["heights"].max() == 14
    nested = Tree(
        ("a", "b", "c", "d", "e"),
        ((), (), (), (0, 1, 2), (), (), (3, 4, 5)),
        (None, None, None, "0", None, None, "1"),
    )
    batch = TreePreparation.fit([nested], ("0", "1")).encode([nested]).batch([0])
    assert spelled(batch, "abcde") == [["a", ["b", "c"]], ["d", "e"]]
    assert batch["node_y"].tolist() == [-1, -1, -1, -1, 0, -1, -1, -1, 1]


def test_stored_and_read_back_it_gives_the_same_numbers():
    preparation = prepared(minimum_count=2)
    again = TreePreparation.from_json(json.loads(json.dumps(preparation.to_json())))
    assert again.sizes == preparation.sizes
    assert np.array_equal(again.word_counts, preparation.word_counts)
    new = [Tree(("good", "unheard-of"), ((), (), (0, 1)), ("1", "7", "0"))]
    one, other = preparation.encode(new).batch([0]), again.encode(new).batch([0])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_wrong_arguments_and_damaged_files_are_named():
    with pytest.raises(InputError, match="max_children=1, expected at least 2"):
        prepared(max_children=1)
    with pytest.raises(InputError, match="tree 0: its nodes are not in post order"):
        prepared().encode([Tree(("a", "b"), ((), (), (1, 0)), (None, None, "1"))])
    stored = prepared().to_json()
    for wrong, message in (
        ({}, "has no format"),
        ({**stored, "format": 99}, "format 99, newer than 1"),
        ({**stored, "classes": 3}, "damaged"),
        ({**stored, "tokens": None}, "format"),
    ):
        with pytest.raises(RunFolderError, match=message):
            TreePreparation.from_json(wrong)
