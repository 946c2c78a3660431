"""Trees in brackets: random trees survive being written and read; wrong brackets have their place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.data.brackets import read_trees
from ostinato.data.examples import Examples, Tree
from ostinato.data.labelled import read_labelled
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.errors import DataError, InputError, SizeError


def read(folder: Path, text: str, **options: object) -> Examples:
    path = folder / "a.mrg"
    path.write_text(text, encoding="utf-8")
    return read_labelled(path, **options)


def test_trees_may_share_a_line_or_span_several(tmp_path: Path) -> None:
    text = "( (S (NP (DT The) (NN cat\\/dog)) \n  (VP (V sat) on (. .))))\n(A -LRB-)(B c)\n\n (2 a b (3 d) e)"
    found = read(tmp_path, text)
    assert found.inputs[0] == Tree(
        ("The", "cat\\/dog", "sat", "on", "."),
        ((), (), (0, 1), (), (), (), (3, 4, 5), (2, 6)),
        ("DT", "NN", "NP", "V", None, ".", "VP", "S"),
    )
    assert [tree.tokens for tree in found.inputs[1:]] == [("-LRB-",), ("c",), ("a", "b", "d", "e")]
    assert found.labels == ["S", "A", "B", "2"]
    assert list(found.places) == [1, 3, 3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "(a b)\n(a (b c)\n",
            r"a\.mrg, line 2: column 1: the tree that starts here is not closed: 1 '\)' missing",
        ),
        ("(a b))", r"line 1: column 6: expected '\(' of a tree, found '\)'"),
        ("(a b)\n\n é x", r"line 3: column 2: expected '\(' of a tree, found 'é'"),
        ("(a b)\n(a\n (b))", r"line 3: column 4: a node has no word and no child"),
        ("()", r"line 1: column 2: a node has no word and no child"),
        ("", r"expected one example or more, found none"),
    ],
)
@pytest.mark.parametrize("large_bytes", [0, 1 << 20])
def test_wrong_brackets_have_their_place(tmp_path: Path, text: str, message: str, large_bytes: int) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text, large_bytes=large_bytes)


def test_a_tree_in_a_table_has_the_label_of_its_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("tree,y\n(a (b c) (d e)),u\n(a (b c,v\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"line 3: column 'tree': line 1, column 4: the '\(' here is not closed"
    ):
        read_labelled(path, tree=True, text="tree")
    path.write_text("tree,y\n(a (b c) (d e)),u\n", encoding="utf-8")
    found = read_labelled(path, tree=True)
    assert (found.labels, found.inputs[0].labels) == (["u"], ("b", "d", "a"))


def test_a_deep_tree_needs_no_deep_stack(tmp_path: Path) -> None:
    depth = 20_000
    tree = read(tmp_path, "(a b " * depth + "(c d)" + ")" * depth).inputs[0]
    assert (len(tree.tokens), len(tree)) == (depth + 1, 2 * depth + 1)


def test_a_tree_must_be_one() -> None:
    with pytest.raises(SizeError, match=r"2 labels for 1 nodes"):
        Tree(("a",), ((),), ("x", "y"))
    with pytest.raises(SizeError, match=r"1 tokens for 2 leaves"):
        Tree(("a",), ((), (), (0, 1)), ("x", "y", "z"))
    with pytest.raises(InputError, match=r"a child that comes after it"):
        Tree(("a", "b"), ((), (2,), ()), ("x", "y", "z"))
    with pytest.raises(InputError, match=r"the child of exactly one node"):
        Tree(("a", "b"), ((), (), (0, 0)), ("x", "y", "z"))


WORD = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="()\\\x00"), min_size=1, max_size=5
)
WORD = WORD.filter(lambda word: not any(sign in word for sign in " \t\n\r\x0b\x0c") and word != "\ufeff")


def _written(node: object) -> str:
    label, below = node
    inner = below if isinstance(below, str) else " ".join(map(_written, below))
    return f"({label} {inner})"


def _nodes(node: object) -> list[tuple[str, str | None]]:
    label, below = node
    if isinstance(below, str):
        return [(label, below)]
    return [inner for child in below for inner in _nodes(child)] + [(label, None)]


TREES = st.recursive(
    st.tuples(WORD, WORD),
    lambda below: st.tuples(WORD, st.lists(below, min_size=1, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TREES, min_size=1, max_size=4), st.sampled_from(["\n", " ", ""]), st.sampled_from([0, 1 << 20])
)
def test_random_trees_are_read(trees: list[object], between: str, large_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(between.join(map(_written, trees)).encode())
        found = read_trees(path, LabelledSpec(large_bytes=large_bytes))
        assert len(found) == len(trees)
        for tree, node in zip(found.inputs, trees, strict=True):
            nodes = _nodes(node)
            assert list(tree.labels) == [label for label, _ in nodes]
            assert list(tree.tokens) == [word for _, word in nodes if word is not None]
