"""`torch.export` of a layer: batch and time stay dynamic, the state goes in and out, files are read back."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.export import Dim, default_decompositions, export
from torch.utils import _pytree as pytree

import ostinato as ot
from ostinato.kernels import operators

D, H = 5, 7
B, T = Dim("B", min=1), Dim("T", min=1)
SHAPES = ((3, 8), (1, 5), (6, 1))
LAYERS = {
    "rnn": (ot.RNN, {}),
    "lstm": (ot.LSTM, {"num_layers": 2, "bidirectional": True, "peephole": True}),
    "gru": (ot.GRU, {"num_layers": 2, "reset_after": False, "learn_initial_state": True}),
}
strictness = pytest.mark.parametrize("strict", [False, True], ids=["loose", "strict"])

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


class Step(nn.Module):
    """One tick as a module, which is what an exported stream runs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, state):
        return self.layer.step(x, state)


def assert_equal(found, expected, tolerance):
    """Every tensor in any pytree."""
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        error = ((one - other).abs().max() / other.abs().max()).item()
        assert error <= tolerance[other.dtype], f"differs by {error}"


def random_state(layer, rows):
    return layer.initial_state(rows).map(torch.randn_like)


@strictness
@pytest.mark.parametrize("name", LAYERS)
def test_batch_and_time_stay_dynamic_and_the_state_goes_in_and_out(name, strict, tolerance):
    kind, options = LAYERS[name]
    layer = kind(D, H, **options).eval()
    state = random_state(layer, 3)
    sizes = {"x": {0: B, 1: T}, "state": [{0: B}] * len(state)}
    program = export(layer, (torch.randn(3, 8, D), state), dynamic_shapes=sizes, strict=strict)
    module = program.module()
    for rows, steps in SHAPES:
        x, state = torch.randn(rows, steps, D), random_state(layer, rows)
        assert_equal(tuple(module(x, state)), tuple(layer(x, state)), tolerance)


@strictness
def test_lengths_are_an_input_like_any_other(strict, tolerance):
    layer = ot.GRU(D, H, bidirectional=True).eval()
    more = {"lengths": torch.tensor([8, 0, 3])}
    sizes = {"x": {0: B, 1: T}, "lengths": {0: B}}
    program = export(layer, (torch.randn(3, 8, D),), more, dynamic_shapes=sizes, strict=strict)
    module = program.module()
    for rows, steps in SHAPES:
        x, lengths = torch.randn(rows, steps, D), torch.randint(0, steps + 1, (rows,))
        lengths[0] = steps
        assert_equal(tuple(module(x, lengths=lengths)), tuple(layer(x, lengths=lengths)), tolerance)


def test_one_step_is_exported_for_streams(tolerance):
    layer = ot.LSTM(D, H, 2).eval()
    example = (torch.randn(3, D), random_state(layer, 3))
    module = export(Step(layer), example, dynamic_shapes=({0: B}, [{0: B}] * 2)).module()
    for rows in (1, 3, 6):
        now = expected = random_state(layer, rows)
        for _ in range(3):
            x = torch.randn(rows, D)
            (y, now), (eager, expected) = module(x, now), layer.step(x, expected)
            assert_equal((y, now), (eager, expected), tolerance)


def test_a_step_for_other_runtimes_holds_torchs_own_operators_only(tolerance):
    layer = ot.LSTM(D, H, 2, norm="layer").eval()
    example = (torch.randn(3, D), random_state(layer, 3))
    program = export(Step(layer), example, dynamic_shapes=({0: B}, [{0: B}] * 2))
    plain = program.run_decompositions(default_decompositions() | operators.decompositions())
    names = {str(node.target) for node in plain.graph.nodes if node.op == "call_function"}
    assert not any("ostinato" in name for name in names), names
    for rows in (1, 6):
        x, state = torch.randn(rows, D), random_state(layer, rows)
        assert_equal(plain.module()(x, state), layer.step(x, state), tolerance)


def test_an_exported_program_is_written_read_lowered_and_trained(tolerance):
    layer = ot.GRU(D, H)
    state = random_state(layer, 3)
    sizes = ({0: B, 1: T}, [{0: B}])
    program = export(layer, (torch.randn(3, 8, D), state), dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(4, 2, D)
    state = random_state(layer, 4)
    expected = tuple(layer(x, state))
    for again in (torch.export.load(file), program.run_decompositions()):
        assert_equal(tuple(again.module()(x, state)), expected, tolerance)
    module = program.module()
    module(x, state).y.square().sum().backward()
    expected[0].square().sum().backward()
    for (name, ours), theirs in zip(module.named_parameters(), layer.parameters(), strict=True):
        error = ((ours.grad - theirs.grad).abs().max() / theirs.grad.abs().max()).item()
        assert error <= tolerance[theirs.dtype], f"{name}: {error}"
