"""`torch.compile` takes a layer whole: one graph for any batch and time, the same results and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import ostinato as ot

D, H = 5, 7
LAYERS = {
    "rnn": (ot.RNN, {"nonlinearity": "relu"}),
    "lstm": (ot.LSTM, {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}),
    "gru": (ot.GRU, {"num_layers": 2, "residual": True, "norm": "layer"}),
    "mingru": (ot.MinGRU, {"num_layers": 2}),
    "cells": (lambda D, H: ot.Recurrent([ot.LSTMCell(D, H), ot.GRUCell(H, 3)]), {}),
}
MASKS = {"dropout_in": 0.2, "dropout_recurrent": 0.2, "zoneout_c": 0.3, "weight_drop": 0.2}


class Leaky(ot.Cell):
    """A user's cell."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.weight = torch.nn.Parameter(torch.randn(hidden_size, input_size + hidden_size) * 0.4)

    def step(self, x_t, state):
        h = torch.tanh(torch.cat([x_t, state.h], 1) @ self.weight.T) + 0.5 * state.h
        return h, ot.State(h=h)


@pytest.fixture(autouse=True)
def _fresh():
    """No graph of an earlier test, and an error where a graph is not used again."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def compiled(function, **how):
    """The function as one graph, run by PyTorch's own operators: the default back end takes long to build."""
    return torch.compile(function, fullgraph=True, backend="aot_eager", **how)


def assert_equal(found, expected, tolerance):
    """Every tensor in any pytree."""
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(other, torch.Tensor) or not other.numel():
            continue
        assert one.dtype == other.dtype
        if not other.is_floating_point():
            assert torch.equal(one, other)
            continue
        error = ((one - other).abs().max() / other.abs().max().clamp(min=1e-6)).item()
        assert error <= tolerance[other.dtype], f"differs by {error}"


def squares(output):
    """The sum of the squares of every floating point tensor of an `Output`."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return sum(leaf.square().sum() for leaf in leaves if leaf.is_floating_point())


def calls(B, T):
    """Keyword arguments of `forward`, by name."""
    some = torch.rand(B, T) < 0.7
    return {
        "plain": {},
        "lengths": {"lengths": torch.randint(0, T + 1, (B,))},
        "everything": {"mask": some, "resets": torch.rand(B, T) < 0.2, "return_states": True},
    }


@pytest.mark.parametrize(("name", "call"), [
    ("rnn", "plain"), ("lstm", "plain"), ("lstm", "lengths"), ("lstm", "everything"), ("gru", "everything"),
    ("mingru", "lengths"), ("cells", "everything"),
])  # fmt: skip
def test_outputs_and_gradients_equal_the_eager_ones(name, call, tolerance):
    kind, options = LAYERS[name]
    layer = kind(D, H, **options)
    x, more = torch.randn(4, 6, D, requires_grad=True), calls(4, 6)[call]
    function = compiled(layer)
    inputs = [x, *layer.parameters()]
    results = []
    for run in (function, layer):
        output = run(x, **more)
        results.append((output, torch.autograd.grad(squares(output), inputs)))
    (output, grads), (expected, expected_grads) = results
    assert_equal(output, expected, tolerance)
    assert_equal(grads, expected_grads, tolerance)
    function(x, **more)


@pytest.mark.parametrize("name", ["lstm", "gru", "mingru"])
def test_one_graph_serves_any_batch_and_time(name, tolerance):
    kind, options = LAYERS[name]
    layer = kind(D, H, **options).eval()
    function = compiled(layer, dynamic=True)
    for B, T in ((3, 8), (4, 2), (2, 30), (9, 11)):
        x = torch.randn(B, T, D)
        assert_equal(function(x), layer(x), tolerance)


def test_a_users_cell_is_traced_step_by_step_for_any_batch(tolerance):
    layer = ot.Recurrent(Leaky(D, H))
    function = compiled(layer)
    for rows in (3, 6):
        x = torch.randn(rows, 4, D)
        torch._dynamo.mark_dynamic(x, 0)
        assert_equal(function(x), layer(x), tolerance)


def test_one_graph_serves_ragged_chunks_with_the_state_passed_on(tolerance):
    layer = ot.LSTM(D, H)
    function = compiled(layer)
    now = expected = layer.initial_state(3)
    for T in (9, 4, 12):
        x = torch.randn(3, T, D)
        torch._dynamo.mark_dynamic(x, 1)
        lengths = torch.randint(0, T + 1, (3,))
        output, eager = function(x, now, lengths=lengths), layer(x, expected, lengths=lengths)
        assert_equal(output, eager, tolerance)
        now, expected = output.state.detach(), eager.state.detach()


def test_a_compiled_step_equals_the_eager_one(tolerance):
    layer = ot.GRU(D, H, 2)
    step = compiled(layer.step)
    now = expected = layer.initial_state(3)
    for _ in range(3):
        x = torch.randn(3, D)
        (y, now), (eager, expected) = step(x, now), layer.step(x, expected)
        now, expected = now.detach(), expected.detach()
        assert_equal((y, now), (eager, expected), tolerance)


def test_random_masks_have_the_same_bits_and_new_keys_need_no_new_graph(tolerance):
    layer = ot.LSTM(D, H, **MASKS)
    function = compiled(layer)
    x, resets = torch.randn(3, 6, D), torch.rand(3, 6) < 0.2
    seen = []
    for step in range(3):
        ot.set_mask_key(layer, seed=1, step=step)
        output = function(x, resets=resets)
        assert_equal(output, layer(x, resets=resets), tolerance)
        seen.append(output.y)
    assert not torch.equal(seen[0], seen[1])


def test_drawn_mask_keys_follow_torchs_seed(tolerance):
    layer = ot.GRU(D, H, dropout_in=0.5)
    function = compiled(layer)
    x = torch.randn(3, 6, D)
    torch.manual_seed(3)
    output = function(x)
    torch.manual_seed(3)
    assert_equal(output, layer(x), tolerance)
    assert not torch.equal(function(x).y, output.y)


def test_the_path_is_told_after_a_compiled_call():
    layer = ot.GRU(D, H)
    x = torch.randn(2, 3, D)
    compiled(layer)(x)
    assert layer.path == layer.explain(x).path


def test_autocast_keeps_the_state_in_float32(tolerance):
    layer = ot.LSTM(D, H)
    function = compiled(layer)
    x = torch.randn(2, 3, D)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = function(x), layer(x)
    assert (output.y.dtype, output.state.c.dtype) == (torch.bfloat16, torch.float32)
    assert_equal(output, expected, tolerance)
    output.y.float().sum().backward()
    assert layer.weight_hh_l0.grad.dtype == torch.float32


def test_functorch_transforms_inside_a_graph(tolerance):
    layer = ot.GRU(D, H)
    x = torch.randn(2, 1, 2, D)
    expected = torch.stack([layer(row).y for row in x])
    assert_equal(compiled(torch.func.vmap(lambda row: layer(row).y))(x), expected, tolerance)

    def total(row):
        return layer(row).y.square().sum()

    assert_equal(compiled(torch.func.grad(total))(x[0]), torch.func.grad(total)(x[0]), tolerance)


def test_a_parametrised_weight_is_a_part_of_the_graph(tolerance):
    layer = parametrizations.weight_norm(ot.GRU(D, H), "weight_hh_l0")
    x = torch.randn(2, 3, D)
    output, expected = compiled(layer)(x), layer(x)
    assert_equal(output, expected, tolerance)
    parameters = list(layer.parameters())
    gradients = [torch.autograd.grad(squares(result), parameters) for result in (output, expected)]
    assert_equal(*gradients, tolerance)


def test_torchs_own_form(tolerance):
    layer = ot.LSTM(D, H, 2, torch_compatible=True, batch_first=True, dropout=0.5)
    function = compiled(layer.eval())
    x, hx = torch.randn(3, 4, D), (torch.randn(2, 3, H), torch.randn(2, 3, H))
    assert_equal(function(x, hx), layer(x, hx), tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_default_back_end(tolerance):
    layer = ot.GRU(D, H)
    x = torch.randn(2, 3, D)
    function = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        assert_equal(function(x), layer(x), tolerance)
