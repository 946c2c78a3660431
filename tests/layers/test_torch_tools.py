"""Layers under PyTorch's own tools: functional calls, parametrisations, checkpoints, copies, processes."""

from __future__ import annotations

import copy
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, parametrizations
from torch.utils.checkpoint import checkpoint

import ostinato as ot

D, H = 5, 9
KINDS = pytest.mark.parametrize("kind", [ot.RNN, ot.LSTM, ot.GRU])

_PROCESS = """
import sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
import ostinato as ot

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for finds_unused in (False, True):
    torch.manual_seed(0)
    layer = ot.LSTM(5, 9, 2, learn_initial_state=True)
    x = torch.randn(4, 6, 5)
    both = DistributedDataParallel(layer, find_unused_parameters=finds_unused)
    # A state that is passed leaves the learned one without a gradient.
    state = layer.initial_state(2).detach() if finds_unused else None
    for _ in range(2):
        layer.zero_grad()
        both(x[2 * rank : 2 * rank + 2], state).y.square().sum().backward()
    found = {name: value.grad for name, value in layer.named_parameters()}
    torch.save(found, f"{folder}/{rank}-{finds_unused}.pt")
distributed.destroy_process_group()
"""


def difference(found, expected):
    """Largest error over largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


def gradients(output, inputs):
    return torch.autograd.grad(output.y.square().sum() + output.state.h.sum(), inputs)


@KINDS
def test_a_functional_call_takes_any_weights(kind, tolerance):
    layer, other = kind(D, H), kind(D, H)
    x = torch.randn(3, 4, D)
    weights = {name: value.detach().clone().requires_grad_() for name, value in other.named_parameters()}
    output, expected = torch.func.functional_call(layer, weights, (x,)), other(x)
    assert difference([output.y], [expected.y]) < tolerance[torch.float32]
    found = gradients(output, list(weights.values()))
    assert difference(found, gradients(expected, list(other.parameters()))) < tolerance[torch.float32]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@KINDS
def test_an_ensemble_runs_under_vmap_and_has_a_jacobian(kind, tolerance):
    layers = [kind(D, H) for _ in range(3)]
    x = torch.randn(2, 4, D)
    weights, _ = torch.func.stack_module_state(layers)

    def run(values):
        return torch.func.functional_call(layers[0], values, (x,)).y

    expected = torch.stack([layer(x).y for layer in layers])
    assert difference([torch.func.vmap(run)(weights)], [expected]) < tolerance[torch.float32]
    layer, row = layers[0], x[:1]
    jacobian = torch.func.jacrev(lambda value: layer(value).y.sum(1))(row)
    plain = torch.autograd.functional.jacobian(lambda value: layer(value).y.sum(1), row)
    assert difference([jacobian], [plain]) < tolerance[torch.float32]
    tangent = torch.randn_like(row)
    _, along = torch.func.jvp(lambda value: layer(value).y.sum(1), (row,), (tangent,))
    expected = torch.einsum("bhcte,cte->bh", plain, tangent)
    assert difference([along], [expected]) < tolerance[torch.float32]


@KINDS
def test_a_gradient_penalty_trains(kind, tolerance):
    torch.set_default_dtype(torch.float64)
    try:
        layer = kind(D, H)
        x = torch.randn(2, 4, D, requires_grad=True)
        penalties = []
        for backend in ("auto", "torch steps"):
            same = kind(D, H, backend=backend)
            same.load_state_dict(layer.state_dict())
            (slope,) = torch.autograd.grad(same(x).y.square().sum(), x, create_graph=True)
            penalty = (slope.norm(dim=(1, 2)) - 1).square().sum()
            penalties.append(torch.autograd.grad(penalty, list(same.parameters())))
        assert difference(*penalties) < tolerance[torch.float64]
    finally:
        torch.set_default_dtype(torch.float32)


@KINDS
def test_a_parametrised_weight_is_computed_at_every_call(kind, tolerance):
    layer = parametrizations.weight_norm(kind(D, H), "weight_hh_l0")
    x = torch.randn(2, 4, D)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output = layer(x)
        plain = kind(D, H)
        plain.load_state_dict({name: getattr(layer, name) for name in plain.state_dict()})
        assert difference([output.y], [plain(x).y]) < tolerance[torch.float32]
        output.y.square().sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
        optimizer.step()


@KINDS
def test_every_way_of_writing_a_weight_is_noticed(kind, tolerance):
    layer, x = kind(D, H), torch.randn(2, 4, D)

    def in_place():
        with torch.no_grad():
            layer.weight_hh_l0.mul_(0.5)

    def through_data():
        layer.weight_hh_l0.data[3, 2] += 1.0

    def through_numpy():
        layer.bias_ih_l0.detach().numpy()[:] += 1.0

    def another_tensor():
        layer.weight_ih_l0 = torch.nn.Parameter(torch.randn_like(layer.weight_ih_l0))

    def another_storage():
        layer.weight_hh_l0.data = torch.randn_like(layer.weight_hh_l0)

    def optimizer():
        layer(x).y.sum().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1).step()

    for write in (in_place, through_data, through_numpy, another_tensor, another_storage, optimizer):
        before = layer(x).y
        write()
        fresh = kind(D, H)
        fresh.load_state_dict(layer.state_dict())
        with torch.no_grad():
            found, expected = layer(x).y, fresh(x).y
        assert difference([found], [expected]) < tolerance[torch.float32], write.__name__
        assert not torch.equal(found, before), write.__name__


@KINDS
def test_copies_are_made_after_calls_and_live_their_own_lives(kind):
    layer, x = kind(D, H, 2), torch.randn(2, 4, D)
    expected = layer(x).y
    expected.sum().backward()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x).y, expected)
        with torch.no_grad():
            other.weight_hh_l1.zero_()
        assert not torch.equal(other(x).y, expected)
        assert torch.equal(layer(x).y, expected)


@KINDS
def test_x_may_have_any_strides(kind, tolerance):
    layer = kind(D, H, bidirectional=True)
    wide = torch.randn(4, 6, 2 * D)
    inputs = {
        "transposed": torch.randn(6, 4, D).transpose(0, 1),
        "permuted": torch.randn(D, 4, 6).permute(1, 2, 0),
        "strided": wide[:, ::2, ::2],
        "one row": torch.randn(1, 6, D).expand(4, 6, D),
        "one step": torch.randn(4, 1, D).expand(4, 6, D),
        "one feature": torch.randn(4, 6, 1).expand(4, 6, D),
        "from the end": wide[:, :, D:],
    }
    for name, value in inputs.items():
        x, plain = value.detach().requires_grad_(), value.contiguous().detach().requires_grad_()
        output, expected = layer(x), layer(plain)
        error = difference([output.y], [expected.y])
        assert error < tolerance[torch.float32], f"{name}: {error}"
        error = difference(gradients(output, [x]), gradients(expected, [plain]))
        assert error < tolerance[torch.float32], f"{name}: {error}"


@KINDS
def test_frozen_parameters_receive_no_gradient_and_the_others_theirs(kind, tolerance):
    layer, x = kind(D, H, 2), torch.randn(2, 4, D)
    everything = dict(layer.named_parameters())
    expected = dict(zip(everything, gradients(layer(x), list(everything.values())), strict=True))
    for frozen in (["weight_ih_l0"], ["weight_hh_l0", "bias_hh_l1"], [n for n in everything if "l0" in n]):
        layer.zero_grad()
        for name, parameter in everything.items():
            parameter.requires_grad_(name not in frozen)
        output = layer(x)
        (output.y.square().sum() + output.state.h.sum()).backward()
        assert all(everything[name].grad is None for name in frozen)
        left = [name for name in everything if name not in frozen]
        error = difference([everything[name].grad for name in left], [expected[name] for name in left])
        assert error < tolerance[torch.float32], f"{frozen}: {error}"


@KINDS
def test_a_checkpoint_computes_the_layer_again(kind, tolerance):
    layer, x = kind(D, H), torch.randn(2, 4, D, requires_grad=True)
    inputs = [x, *layer.parameters()]
    again = checkpoint(layer, x, use_reentrant=False)
    error = difference(gradients(again, inputs), gradients(layer(x), inputs))
    assert error < tolerance[torch.float32], error


def test_gradients_are_clipped_together():
    layer = ot.LSTM(D, H, 2)
    (layer(torch.randn(2, 4, D)).y.square().sum() * 100).backward()
    total = clip_grad_norm_(layer.parameters(), 1.0)
    left = torch.stack([parameter.grad.norm() for parameter in layer.parameters()]).norm().item()
    assert total > 1.0
    assert left == pytest.approx(1.0, rel=1e-4)


def test_autocast_around_backward_changes_nothing(tolerance):
    layer, x = ot.GRU(D, H), torch.randn(2, 4, D)
    inputs = list(layer.parameters())
    expected = gradients(layer(x), inputs)
    output = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(output, inputs)
    assert difference(found, expected) < tolerance[torch.float32]


def test_two_processes_average_their_gradients(tmp_path: Path, tolerance):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", _PROCESS, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=100) for process in running] == [0, 0]
    torch.manual_seed(0)
    layer = ot.LSTM(5, 9, 2, learn_initial_state=True)
    (layer(torch.randn(4, 6, 5)).y.square().sum() / 2).backward()
    for rank, finds_unused in itertools.product(range(2), (False, True)):
        found = torch.load(tmp_path / f"{rank}-{finds_unused}.pt")
        for name, parameter in layer.named_parameters():
            if finds_unused and name.startswith("initial"):
                assert found[name] is None or not found[name].any()
                continue
            error = difference([found[name]], [parameter.grad])
            assert error < tolerance[torch.float32], f"process {rank}, {name}: {error}"
