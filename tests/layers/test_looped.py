"""Steps of a loop equal the same steps in one call, outputs and gradients, whatever is known beforehand."""

import gc
import weakref

import pytest
import torch

from ostinato.layers.gated import GRU, LSTM, RNN
from ostinato.layers.linear import MinGRU
from ostinato.layers.looped import LoopedLayer, LoopProducts
from ostinato.types import map_state

B, T, D, M, H = 3, 5, 4, 2, 6
LAYERS = [
    (RNN, {"nonlinearity": "relu"}, True),
    (GRU, {}, True),
    (GRU, {"reset_after": False}, True),
    (GRU, {"bias": False}, True),
    (LSTM, {}, True),
    (LSTM, {"peephole": True, "proj_size": 3}, True),
    (LSTM, {"coupled_gates": True}, True),
    (LSTM, {"norm": "layer"}, False),
    (LSTM, {"dropout_recurrent": 0.3}, False),
    (MinGRU, {}, False),
]


def given(layer, seed=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    state = layer.initial_state(B)
    start = {name: draw(*leaf.shape) for name, leaf in state.items() if leaf.is_floating_point()}
    return draw(B, T, D), draw(B, T, M), start, state.replace(**start)


def results(layer, y, state, leaves):
    """Outputs, last state, and the gradients of a function of both."""
    last = [leaf for leaf in state.values() if leaf.is_floating_point()]
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    total = (y * weight).sum() + sum(leaf.square().sum() for leaf in last)
    return [y, *last, *torch.autograd.grad(total, [*leaves, *layer.parameters()])]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("cls", "options", "is_split"), LAYERS, ids=str)
def test_equals_one_call(cls, options, is_split, known):
    layer = cls(D + M, H, **options).double()
    x, more, start, state = given(layer)
    if not known:
        more = torch.cat([x, more], dim=2).detach().requires_grad_()
    looped = LoopedLayer(layer, state, x if known else None, LoopProducts())
    assert looped._is_split == is_split
    y = torch.stack([looped.step(t, more[:, t]) for t in range(T)], dim=1)
    leaves = [x, more, *start.values()] if known else [more, *start.values()]
    output = layer(torch.cat([x, more], dim=2) if known else more, state)
    expected = results(layer, output.y, output.state, leaves)
    for one, other in zip(results(layer, y, looped.state, leaves), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_a_step_is_fed_may_depend_on_the_step_before():
    layer = LSTM(D + H, H).double()
    x, _, _, state = given(layer)

    def run(x, *weights):
        names = [name for name, _ in layer.named_parameters()]

        class Loop(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                looped, fed, said = LoopedLayer(layer, state, x, LoopProducts()), state.h[:, 0, 0], []
                for t in range(T):
                    fed = torch.tanh(2 * looped.step(t, fed))
                    said.append(fed)
                return torch.stack(said)

        replaced = {f"layer.{name}": w for name, w in zip(names, weights, strict=True)}
        return torch.func.functional_call(Loop(), replaced, (x,))

    state = map_state(torch.Tensor.detach, state)
    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_steps_that_no_loss_depends_on_take_no_part():
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    products = LoopProducts()
    said = [products(x[t], weight) for t in range(4)]
    total = said[2].square().sum() + said[0].sum()
    (gradient,) = torch.autograd.grad(total, weight, retain_graph=True)
    plain = (x[2] @ weight.T).square().sum() + (x[0] @ weight.T).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, weight)[0])
    (again,) = torch.autograd.grad(total, weight)
    assert torch.equal(gradient, again)
    with torch.no_grad():
        assert not products(x[0], weight).requires_grad


def test_a_loop_leaves_nothing_behind():
    weight = torch.randn(3, 2, requires_grad=True)
    gc.disable()
    try:
        products = LoopProducts()
        y = products(torch.ones(1, 2), weight)
        (slot, _) = products._slots[id(weight)]
        alive = weakref.ref(slot)
        y.sum().backward()
        del products, slot, y, _
        assert alive() is None
    finally:
        gc.enable()
