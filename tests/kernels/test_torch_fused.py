"""The fused path: its second derivative where the device has none, and its final states."""

from __future__ import annotations

import pytest
import torch

from ostinato.kernels import torch_fused
from ostinato.kernels.reference import CELLS, CellOptions

T, B, D, H = 5, 3, 4, 6


@pytest.fixture(params=["rnn", "lstm", "gru"])
def call(request):
    return _call(request.param, torch.float64)


def _call(name, dtype):
    spec, options = CELLS[name], CellOptions()
    tensors = {
        name: (torch.randn(shape, dtype=dtype) * 0.4).requires_grad_()
        for name, shape in spec.parameter_shapes(D, H, options, bias=True).items()
    }
    state = {name: torch.randn(B, H, dtype=dtype, requires_grad=True) for name in spec.leaves}
    return spec, torch.randn(T, B, D, dtype=dtype, requires_grad=True), state, tensors, options


@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 0, 3])])
def test_recomputed_derivatives_equal_the_operators_own(call, lengths):
    spec, xs, state, tensors, options = call
    real = torch.ones(T, B, 1) if lengths is None else (torch.arange(T).unsqueeze(1) < lengths).unsqueeze(2)
    inputs = [xs, *state.values(), *tensors.values()]
    results = []
    for run in (torch_fused._run, torch_fused._run_once_differentiable):
        ys, final = run(spec, xs, state, tensors, options, lengths)
        value = (ys * real).square().sum() + sum(leaf.square().sum() for leaf in final.values())
        plain = torch.autograd.grad(value, inputs, retain_graph=True)
        again = torch.autograd.grad(value, inputs, retain_graph=True)
        first = torch.autograd.grad(value, inputs, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)
        results.append([value, *plain, *again, *first, *second])
    for one, other in zip(*results, strict=True):
        error = ((one - other).abs().max() / other.abs().max()).item()
        assert error <= 1e-10, f"{tuple(one.shape)}: relative error {error:.3g}"


def test_the_graph_is_freed_as_usual(call):
    spec, xs, state, tensors, options = call
    ys, _ = torch_fused._run_once_differentiable(spec, xs, state, tensors, options, None)
    value = ys.sum()
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_padding_carries_a_cell_state_of_any_size(dtype):
    spec, xs, state, tensors, options = _call("lstm", dtype)
    big = {name: leaf.detach() * 1e4 for name, leaf in state.items()}
    _, final = torch_fused.run(spec, xs * 50, big, tensors, options, torch.tensor([0, 0, 0]))
    for name in ("h", "c"):
        error = (final[name] - big[name]).abs().max().item()
        assert error == 0, f"{name} moved by {error:.3g}"
