"""Laws of tree LSTMs, with a user's reference of one node at a time as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

import ostinato as ot
from ostinato.errors import InputError, SizeError
from ostinato.layers.dropout import set_mask_key
from ostinato.layers.forest import Forest
from ostinato.layers.tree import ChildSumTreeLSTM, NaryTreeLSTM

D, H, N = 4, 5, 3
KINDS = ("child_sum", "nary")


def layer_of(kind, dtype=torch.float64, **options):
    if kind == "nary":
        return NaryTreeLSTM(D, H, N, dtype=dtype, **options)
    return ChildSumTreeLSTM(D, H, dtype=dtype, **options)


def random_tree(rng, n_leaves, most=N):
    """Nested lists, unary nodes among them."""
    if n_leaves == 1:
        return [0] if rng.random() < 0.2 else 0
    n = int(rng.integers(1, min(n_leaves, most) + 1))
    if n == 1:
        return [random_tree(rng, n_leaves, most)]
    cuts = np.sort(rng.choice(np.arange(1, n_leaves), n - 1, replace=False))
    return [random_tree(rng, int(part), most) for part in np.diff([0, *cuts, n_leaves])]


def forest_of(sizes=(1, 7, 2, 9, 5), seed=3, most=N):
    rng = np.random.default_rng(seed)
    return Forest.from_nested([random_tree(rng, size, most) for size in sizes])[0]


def inputs_for(forest, inputs, dtype=torch.float64):
    return torch.randn(forest.n_leaves if inputs == "leaves" else forest.n_nodes, D, dtype=dtype)


def oracle(layer, x, forest):
    """The equations, node by node, children first."""
    n_forget = layer.max_children if isinstance(layer, NaryTreeLSTM) else 1
    U, b = layer.weight_hh, layer.bias_ih
    b = torch.zeros(len(U), dtype=x.dtype) if b is None else b
    parents = forest.parents.tolist()
    row_of = {leaf: row for row, leaf in enumerate(forest.leaves.tolist())}
    h, c = [None] * len(parents), [None] * len(parents)
    for node in sorted(range(len(parents)), key=lambda node: forest.heights[node].item()):
        children = [other for other, parent in enumerate(parents) if parent == node]
        if layer.inputs == "nodes":
            Wx = layer.weight_ih @ x[node]
        elif children:
            Wx = torch.zeros_like(b)
        else:
            leaf = layer.weight_ih @ x[row_of[node]]
            Wx = torch.cat([leaf[:H], leaf.new_zeros(n_forget * H), leaf[H:]])
        gates = Wx + b
        if isinstance(layer, NaryTreeLSTM):
            seen = torch.cat([h[child] for child in children] + [x.new_zeros((n_forget - len(children)) * H)])
            i, *f, g, o = (gates + U @ seen).split(H)
        else:
            total = sum((h[child] for child in children), x.new_zeros(H))
            i, _, g, o = (gates + U @ total).split(H)
            f = [gates[H : 2 * H] + U[H : 2 * H] @ h[child] for child in children]
        c[node] = torch.sigmoid(i) * torch.tanh(g)
        for gate, child in zip(f, children, strict=False):
            c[node] = c[node] + torch.sigmoid(gate) * c[child]
        h[node] = torch.sigmoid(o) * torch.tanh(c[node])
    return torch.stack(h), torch.stack(c)


def close(found, expected, tolerance=1e-10):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", ["leaves", "nodes"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_all_gradients_equal_those_of_the_equations(kind, inputs, bias):
    layer, forest = layer_of(kind, inputs=inputs, bias=bias), forest_of()
    x = inputs_for(forest, inputs).requires_grad_()
    weights_h, weights_c = torch.randn(2, forest.n_nodes, H, dtype=x.dtype)
    wanted = [x, *layer.parameters()]
    results = []
    for h, c in (layer(x, forest), oracle(layer, x, forest)):
        results.append((h, c, *torch.autograd.grad((h * weights_h + c * weights_c).sum(), wanted)))
    for found, expected in zip(*results, strict=True):
        assert close(found, expected)


@pytest.mark.parametrize("inputs", ["leaves", "nodes"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_differences(kind, inputs):
    layer, forest = layer_of(kind, inputs=inputs), forest_of((1, 3))
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        output = functional_call(layer, dict(zip(names, values, strict=True)), (x, forest))
        return output.h, output.c, output.roots

    x = inputs_for(forest, inputs).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_candidates_has_the_right_gradients(kind):
    layer, forest = layer_of(kind, dropout_candidate=0.4, dropout_in=0.2, dropout_out=0.3), forest_of((4, 3))
    set_mask_key(layer, 5, 0)
    x = inputs_for(forest, "leaves").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, forest).h, (x,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_trees_together_equal_trees_alone(kind, dtype, tolerance):
    layer, rng = layer_of(kind, dtype), np.random.default_rng(1)
    trees = [random_tree(rng, size) for size in (6, 1, 3, 11, 2)]
    forest, _ = Forest.from_nested(trees)
    x = inputs_for(forest, "leaves", dtype)
    together = layer(x, forest).roots
    first = 0
    for number, tree in enumerate(trees):
        alone, leaves = Forest.from_nested([tree])
        roots = layer(x[first : first + len(leaves)], alone).roots
        first += len(leaves)
        assert close(roots[0], together[number], tolerance[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_trees_and_of_nodes_does_not_matter(kind):
    layer, forest = layer_of(kind, inputs="nodes"), forest_of()
    x = inputs_for(forest, "nodes")
    # New numbers that keep siblings in their order: by tree backwards, then as before.
    order = np.lexsort((np.arange(forest.n_nodes), -forest.trees.numpy()))
    number = np.argsort(order)
    parents = forest.parents.numpy()[order]
    shuffled = Forest(torch.from_numpy(np.where(parents < 0, -1, number[parents])))
    h, c = layer(x, forest)
    again = layer(x[torch.from_numpy(order)], shuffled)
    assert close(again.h, h[order])
    assert close(again.c, c[order])
    assert close(again.roots, h[forest.roots].flip(0))


def test_children_summed_have_no_order_and_those_of_n_ary_trees_have_one():
    # The root's children are 0, 1, 2 and come in another order where their numbers are exchanged.
    forest, x = Forest(torch.tensor([3, 3, 3, -1])), torch.randn(3, D, dtype=torch.float64)
    exchanged = x[[2, 0, 1]]
    layer = layer_of("child_sum")
    assert close(layer(exchanged, forest).roots, layer(x, forest).roots)
    layer = layer_of("nary")
    assert not close(layer(exchanged, forest).roots, layer(x, forest).roots, 1e-3)


@pytest.mark.parametrize("kind", ["child_sum", "nary"])
def test_a_chain_is_an_lstm_from_the_leaf_to_the_root(kind):
    T = 11
    layer = layer_of("child_sum", inputs="nodes")
    if kind == "nary":
        layer = NaryTreeLSTM(D, H, 1, inputs="nodes", dtype=torch.float64)
    sequential = ot.LSTM(D, H, dtype=torch.float64)
    with torch.no_grad():
        sequential.weight_ih_l0.copy_(layer.weight_ih)
        sequential.weight_hh_l0.copy_(layer.weight_hh)
        sequential.bias_ih_l0.copy_(layer.bias_ih)
        sequential.bias_hh_l0.zero_()
    x = torch.randn(2, T, D, dtype=torch.float64)
    chain = [*range(1, T), -1]
    forest = Forest(torch.tensor(chain + [parent + T if parent >= 0 else -1 for parent in chain]))
    y, state = sequential(x)
    output = layer(x.flatten(0, 1), forest)
    assert close(output.h.view(2, T, H), y)
    assert close(output.c.view(2, T, H)[:, -1], state.c[:, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_single_leaves_depth_one_and_unary_nodes(kind):
    layer = layer_of(kind)
    forest, _ = Forest.from_nested([0, [0], [[0]], [0, 0], 0])
    x = inputs_for(forest, "leaves")
    h, c = layer(x, forest)
    expected_h, expected_c = oracle(layer, x, forest)
    assert close(h, expected_h)
    assert close(c, expected_c)
    only, _ = Forest.from_nested([0, 0])
    assert close(layer(x[:2], only).roots, oracle(layer, x[:2], only)[0])
    layer(x[:2], only).roots.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_deep_tree_and_a_very_wide_one(kind):
    depth, layer = 3000, layer_of(kind, torch.float32)
    deep, _ = Forest.from_nested([_chain(depth)])
    x = torch.randn(depth, D, requires_grad=True)
    layer(x, deep).roots.sum().backward()
    # The first leaf is 3000 steps away from the root, the last one step.
    assert x.grad.isfinite().all()
    assert x.grad[-1].abs().sum() > 0
    balanced = 0
    for _ in range(13):
        balanced = [balanced, balanced]
    wide, leaves = Forest.from_nested([balanced, [0] * N])
    assert len(leaves) == 2**13 + N
    assert layer(torch.randn(len(leaves), D), wide).roots.isfinite().all()


def _chain(depth):
    tree = 0
    for _ in range(depth - 1):
        tree = [tree, 0]
    return tree


def test_ten_thousand_children_of_one_node():
    layer, forest = layer_of("child_sum"), Forest.from_nested([[0] * 10_000])[0]
    x = torch.randn(10_000, D, dtype=torch.float64, requires_grad=True)
    layer(x, forest).roots.sum().backward()
    assert x.grad.isfinite().all()
    with pytest.raises(InputError, match="has 10000 children, and the layer takes at most max_children=3"):
        layer_of("nary")(x, forest)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_functions_of_the_key_and_the_place_alone(kind):
    layer = layer_of(kind, dropout_in=0.3, dropout_out=0.3, dropout_candidate=0.3)
    forest, alone = forest_of((4, 6)), forest_of((4,))
    x = inputs_for(forest, "leaves")
    set_mask_key(layer, 1, 7)
    first = layer(x, forest).h
    assert torch.equal(layer(x, forest).h, first)
    assert close(layer(x[:4], alone).h, first[: alone.n_nodes])
    set_mask_key(layer, 1, 8)
    assert not close(layer(x, forest).h, first, 1e-2)
    layer.eval()
    assert close(layer(x, forest).h, oracle(layer, x, forest)[0])


@pytest.mark.parametrize("option", ["dropout_in", "dropout_out", "dropout_candidate"])
def test_every_dropout_drops_its_share_and_keeps_the_expectation(option):
    forest = Forest.from_nested([[0, 0]] * 40)[0]
    layer = NaryTreeLSTM(D, 50, **{option: 0.5})
    x = torch.ones(forest.n_leaves, D)
    with torch.no_grad():
        layer.bias_ih.fill_(1.0)
        dropped = layer(x, forest).h
        whole = layer.eval()(x, forest).h
    assert not torch.equal(dropped, whole)
    if option == "dropout_out":
        share = float((dropped == 0).double().mean())
        assert 0.45 < share < 0.55
        assert close(dropped[dropped != 0], 2 * whole[dropped != 0], 1e-5)
    if option == "dropout_candidate":
        share = float((layer.train()(x, forest).c[forest.leaves] == 0).double().mean())
        assert 0.45 < share < 0.55


def test_forget_biases_start_where_init_says():
    layer = NaryTreeLSTM(D, H, 2, init={"forget_bias": 2.0, "bias": "zeros"})
    assert layer.bias_ih.tolist() == [0.0] * H + [2.0] * (2 * H) + [0.0] * (2 * H)
    orthogonal = ChildSumTreeLSTM(D, H, init="orthogonal").weight_hh.split(H)[2]
    assert close(orthogonal @ orthogonal.T, torch.eye(H), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_the_layer_in_its_dtype(kind):
    layer, forest = layer_of(kind, torch.float32), forest_of((3, 2))
    x = inputs_for(forest, "leaves", torch.float32)
    expected = layer(x, forest).h
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x, forest).h, expected)


def test_wrong_arguments_are_named():
    forest, layer = forest_of((3, 2)), layer_of("nary")
    for make, message in (
        (lambda: NaryTreeLSTM(D, 0), "hidden_size=0"),
        (lambda: NaryTreeLSTM(D, H, 0), "max_children=0"),
        (
            lambda: ChildSumTreeLSTM(D, H, inputs="roots"),
            "inputs='roots' is unknown; known: 'leaves', 'nodes'",
        ),
        (lambda: ChildSumTreeLSTM(D, H, dropout_in=1.0), "dropout_in"),
        (lambda: ChildSumTreeLSTM(D, H, bias=False, init={"forget_bias": 1.0}), "bias=False"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(SizeError, match="x has 4 rows for 5 leaves and 12 nodes; inputs='leaves' takes 5"):
        layer(torch.zeros(4, D, dtype=torch.float64), forest)
    with pytest.raises(SizeError, match="expected input_size=4"):
        layer(torch.zeros(5, D + 1, dtype=torch.float64), forest)
    with pytest.raises(SizeError, match=r"x is torch\.float32"):
        layer(torch.zeros(5, D), forest)
