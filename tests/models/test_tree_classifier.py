"""The classifier of trees: what it answers, what it learns from, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.examples import Tree
from ostinato.data.forests import TreePreparation
from ostinato.errors import InputError
from ostinato.models.tree_classifier import TreeClassifier


def negated(rng, depth):
    """A tree over `plus` and `minus`, where `not` turns around what is on its right: class, tokens, …"""
    tokens, children, labels = [], [], []

    def grow(depth):
        if depth == 0 or rng.random() < 0.3:
            word = ("minus", "plus")[rng.integers(2)]
            tokens.append(word)
            children.append(())
            labels.append("01"[word == "plus"])
        else:
            tokens.append("not")
            children.append(())
            labels.append(None)
            left = len(children) - 1
            grow(depth - 1)
            children.append((left, len(children) - 1))
            labels.append("10"[int(labels[-1])])
        return labels[-1]

    grow(depth)
    return Tree(tuple(tokens), tuple(children), tuple(labels))


def data(n=40, depth=4, seed=0):
    rng = np.random.default_rng(seed)
    return [negated(rng, depth) for _ in range(n)]


def network(preparation, **options):
    tokens = {"word_size": 6, "word_dropout": 0.0}
    return TreeClassifier(preparation.sizes, 2, hidden_size=8, tokens=tokens, **options)


@pytest.mark.parametrize("cell", ["nary", "child_sum"])
def test_answers_of_a_batch_equal_those_one_by_one(cell):
    trees = data()
    preparation = TreePreparation.fit(trees, "01")
    encoded, model = preparation.encode(trees), network(preparation, cell=cell).eval()
    together = model(encoded.batch(range(5)))
    assert together.shape == (5, 2)
    alone = torch.cat([model(encoded.batch([row])) for row in range(5)])
    assert torch.allclose(together, alone, atol=1e-5)
    batch = encoded.batch(range(5))
    nodes = model.node_logits(batch)
    assert torch.allclose(nodes[batch["parents"] < 0], together)


def test_the_loss_covers_all_nodes_with_a_class_and_y_counts_at_roots():
    trees = data()
    preparation = TreePreparation.fit(trees, "01")
    model = network(preparation).eval()
    batch = preparation.encode(trees).batch([3, 4, 5])
    known = batch["node_y"] >= 0
    output = model.loss(batch)
    expected = torch.nn.functional.cross_entropy(
        model.node_logits(batch)[known], batch["node_y"][known], reduction="sum"
    )
    assert output.count == known.sum()
    assert torch.allclose(output.total, expected)
    turned = ot.Batch(batch)
    turned["y"] = 1 - batch["node_y"][batch["parents"] < 0]
    assert model.loss(turned).count == output.count
    assert not torch.allclose(model.loss(turned).total, expected)
    del turned["node_y"]
    roots = torch.nn.functional.cross_entropy(model(batch), turned["y"], reduction="sum")
    assert model.loss(turned).count == 3
    assert torch.allclose(model.loss(turned).total, roots)
    weighted = network(preparation, class_weights=[0.0, 2.0], label_smoothing=0.1).eval()
    assert not torch.allclose(weighted.loss(turned).total, model.loss(turned).total)
    with pytest.raises(InputError, match="whole"):
        model.loss(turned, state=())
    del turned["y"]
    with pytest.raises(InputError, match="neither node_y"):
        model.loss(turned)


def test_it_learns_what_depends_on_the_order_and_the_depth():
    trees, others = data(200), data(100, depth=7, seed=1)
    preparation = TreePreparation.fit(trees, "01", characters=False, shapes=False)
    encoded = preparation.encode(trees)
    torch.manual_seed(0)
    model = network(preparation, dropout_in=0.0, dropout_out=0.0)
    source = RowSource(RowSampler(len(encoded), 20), encoded.batch)
    ot.train(model, source, ot.TrainingSettings(epochs=8, learning_rate=0.03), progress="quiet")
    batch = preparation.encode(others).batch(range(100))
    right = model(batch).argmax(1) == batch["node_y"][batch["parents"] < 0]
    # Half of them would be chance; these trees are deeper than those it has learned from.
    assert right.double().mean() > 0.95


def test_every_parameter_learns_and_every_option_has_an_effect():
    trees = data()
    preparation = TreePreparation.fit(trees, "01")
    batch = preparation.encode(trees).batch(range(20))
    for options in ({}, {"cell": "child_sum"}, {"init": "orthogonal"}, {"max_children": 3}):
        model = network(preparation, **options)
        model.loss(batch).total.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    for name in ("dropout_in", "dropout_candidate", "dropout_out"):
        off = {"dropout_in": 0.0, "dropout_candidate": 0.0, "dropout_out": 0.0}
        model = network(preparation, **{**off, name: 0.5})
        ot.set_mask_key(model, 0, 0)
        first = model(batch)
        ot.set_mask_key(model, 0, 1)
        assert not torch.equal(model(batch), first)


def test_wrong_names_and_sizes_are_refused():
    sizes = TreePreparation.fit(data(3), "01").sizes
    with pytest.raises(InputError, match="cell='gru' is unknown; known: 'nary', 'child_sum'"):
        TreeClassifier(sizes, 2, cell="gru")
    with pytest.raises(InputError, match=r"unknown option 'max_children'.*known: bias, dropout_candidate"):
        TreeClassifier(sizes, 2, cell="child_sum", max_children=2)
    with pytest.raises(InputError, match="output_size=0"):
        TreeClassifier(sizes, 0)
