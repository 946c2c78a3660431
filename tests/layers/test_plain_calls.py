"""The short way of a plain call gives the bits of the long way, and steps aside for everything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ostinato as ot
from ostinato.errors import SizeError
from ostinato.layers import plain_calls
from ostinato.layers.stack import Stack

pytest.importorskip("ostinato._native", reason="the native kernels are not built")

KINDS = ("RNN", "LSTM", "GRU")
GRIDS = [(1, False), (2, False), (1, True), (3, True)]


@pytest.fixture
def long_way(monkeypatch):
    """Call to send every call the long way."""

    def switch():
        monkeypatch.setattr(plain_calls, "run", lambda stack, x, state: None)

    return switch


def results(layer, x, state=None):
    x = x.clone().requires_grad_(True)
    output = layer(x, state)
    leaves = list(output.state.values())
    weights = [torch.randn(leaf.shape, generator=torch.Generator().manual_seed(7)) for leaf in leaves]
    total = output.y.sin().sum() + sum((w * leaf).sum() for w, leaf in zip(weights, leaves, strict=True))
    grads = torch.autograd.grad(total, [x, *layer.parameters()])
    return [output.y, *leaves, *grads]


def refuse_long_way(monkeypatch):
    def refuse(self, *arguments):
        raise AssertionError("this call took the long way")

    monkeypatch.setattr(Stack, "_run", refuse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_layers", "bidirectional"), GRIDS)
def test_the_short_way_is_the_long_way_to_the_bit(kind, num_layers, bidirectional, monkeypatch, long_way):
    torch.manual_seed(0)
    layer = getattr(ot, kind)(5, 7, num_layers, bidirectional=bidirectional)
    x, state = torch.randn(3, 11, 5), layer.initial_state(3).map(torch.randn_like)
    with monkeypatch.context() as patch:
        refuse_long_way(patch)
        short = [results(layer, x), results(layer, x, state)]
        with torch.no_grad():
            still = layer(x, state)
    long_way()
    for found, expected in zip(short, [results(layer, x), results(layer, x, state)], strict=True):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), f"{(one - other).abs().max()}"
    assert torch.equal(still.y, short[1][0])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_the_short_way_are_the_stretch(kind, monkeypatch):
    torch.manual_seed(1)
    layer, x = getattr(ot, kind)(4, 9, 2), torch.randn(2, 13, 4)
    refuse_long_way(monkeypatch)
    with torch.no_grad():
        whole, final = layer(x)
        state, ys = None, []
        for t in range(13):
            y, state = layer.step(x[:, t], state)
            ys.append(y)
    assert torch.equal(torch.stack(ys, 1), whole)
    for name, leaf in final.items():
        assert torch.equal(state[name], leaf), name


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_of_the_short_way(kind):
    torch.manual_seed(2)
    layer = getattr(ot, kind)(2, 3, dtype=torch.float64)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    state = layer.initial_state(2).map(lambda leaf: torch.randn_like(leaf).requires_grad_(True))

    def run(x, *leaves):
        output = layer(x, ot.State(dict(zip(state, leaves, strict=True))))
        return output.y, *output.state.values()

    assert torch.autograd.gradcheck(run, (x, *state.values()))
    assert torch.autograd.gradgradcheck(run, (x, *state.values()))


def test_strided_inputs_and_a_frozen_layer(long_way):
    torch.manual_seed(3)
    layer = ot.GRU(6, 5).requires_grad_(False)
    inputs = [
        torch.randn(9, 4, 6).transpose(0, 1),
        torch.randn(4, 9, 12)[:, :, ::2],
        torch.randn(1, 9, 6).expand(4, 9, 6),
    ]
    found = [layer(x).y for x in inputs]
    long_way()
    for x, y in zip(inputs, found, strict=True):
        assert torch.equal(layer(x).y, y)


def test_weights_written_in_any_way_are_seen():
    torch.manual_seed(4)
    layer, x = ot.LSTM(3, 4), torch.randn(2, 20, 3)
    before = layer(x).y
    layer.weight_hh_l0.data.mul_(2)
    after = layer(x).y
    assert not torch.equal(before, after)
    assert torch.allclose(after, layer.run_contract(x, return_states=True).y)
    layer.weight_ih_l0 = nn.Parameter(layer.weight_ih_l0.detach().t().contiguous().t())
    assert torch.equal(layer(x).y, after), "the same numbers with other strides"


def test_what_is_wrong_is_still_said():
    layer = ot.RNN(3, 4)
    with pytest.raises(SizeError, match="width 5, expected input_size=3"):
        layer(torch.randn(2, 6, 5))
    with pytest.raises(SizeError, match="float64"):
        layer(torch.randn(2, 6, 3, dtype=torch.float64))
    with pytest.raises(SizeError, match="state is a tuple"):
        layer(torch.randn(2, 6, 3), (torch.zeros(1, 2, 4),))
    with pytest.raises(SizeError, match=r"state.h has shape"):
        layer(torch.randn(2, 6, 3), layer.initial_state(3))
    assert layer(torch.randn(2, 0, 3)).y.shape == (2, 0, 4)
    assert layer(torch.randn(0, 6, 3)).y.shape == (0, 6, 4)


def test_autocast_transforms_and_hooks_work_as_before():
    torch.manual_seed(5)
    layer, x = ot.GRU(3, 4), torch.randn(2, 6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).y.dtype == torch.bfloat16
    many = torch.func.vmap(lambda one: layer(one.unsqueeze(0)).y[0])(x)
    torch.testing.assert_close(many, layer(x).y)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.y.shape))
    layer(x)
    assert seen == [(2, 6, 4)]
