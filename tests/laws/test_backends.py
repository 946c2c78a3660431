"""Law 5: every backend equals the reference, and that `torch.nn`, in outputs and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ostinato as ot
from ostinato.errors import InputError

B, T, D, H = 3, 5, 5, 7


def _results(layer, x, state, upstream, **call):
    """y, final state, and the gradients of x, the initial state and every parameter."""
    x = x.detach().clone().requires_grad_()
    start = state.map(
        lambda leaf: leaf.detach().clone().requires_grad_() if leaf.is_floating_point() else leaf
    )
    out = layer(x, start, **call)
    outputs = [out.y, *(leaf for _, leaf in sorted(out.state.items()) if leaf.is_floating_point())]
    value = sum((one * other.to(one.dtype)).sum() for one, other in zip(outputs, upstream, strict=True))
    inputs = [x, *(leaf for leaf in start.values() if leaf.is_floating_point()), *layer.parameters()]
    grads = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return outputs, grads


def _names(layer, state):
    leaves = [f"initial {name}" for name, leaf in state.items() if leaf.is_floating_point()]
    return ["x", *leaves, *(name for name, _ in layer.named_parameters())]


def _skip_unless_taken(layer, backend):
    try:
        assert layer.explain(torch.zeros(1, 1, D)).path == backend
    except InputError as refusal:
        pytest.skip(str(refusal))


def test_a_backend_equals_the_reference(case, build):
    if case.row.cell in ("Recurrent", "Product", "Unequal"):
        return
    oracle = build(case.row.name, "reference", torch.float64, case.bidirectional)
    oracle.train(case.layer.training)
    oracle.load_state_dict(case.layer.state_dict())
    ot.set_mask_key(oracle, seed=3, step=11)
    x, state = case.randn(B, T, D), case.state(B)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    double = state.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
    probe = case.layer(x, state)
    shapes = [
        probe.y.shape,
        *(leaf.shape for _, leaf in sorted(probe.state.items()) if leaf.is_floating_point()),
    ]
    upstream = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for call in ({}, {"mask": mask}):
        outputs, grads = _results(case.layer, x, state, upstream, **call)
        expected, expected_grads = _results(oracle, x.double(), double, upstream, **call)
        for name, one, other in zip(("y", "state", "state"), outputs, expected, strict=False):
            case.close(one.double(), other, f"{name} against the reference in float64")
        for name, one, other in zip(_names(oracle, state), grads, expected_grads, strict=True):
            case.close(one.double(), other, f"gradient of {name} against the reference in float64")


@pytest.mark.parametrize("backend", ["reference", "torch steps", "torch", "native"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "options"), [
    ("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("LSTM", {"proj_size": 3}), ("GRU", {}),
    ("GRU", {"bias": False}),
])  # fmt: skip
def test_a_backend_equals_torch_nn(name, options, bidirectional, backend, tolerance):
    dtype = torch.float64
    theirs = getattr(nn, name)(D, H, 2, batch_first=True, bidirectional=bidirectional, dtype=dtype, **options)
    ours = getattr(ot, name)(D, H, 2, bidirectional=bidirectional, dtype=dtype, backend=backend, **options)
    _skip_unless_taken(ours, backend)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    state = ours.initial_state(B).map(lambda leaf: torch.randn_like(leaf).requires_grad_())
    y, final = ours(x, state)
    y_torch, final_torch = theirs(x, state.to_torch())
    final_torch = ot.State.from_torch(final_torch, ours.num_directions)
    upstream = [torch.randn_like(y), *(torch.randn_like(leaf) for leaf in final.values())]
    grads = []
    for outputs, layer in (([y, *final.values()], ours), ([y_torch, *final_torch.values()], theirs)):
        value = sum((one * other).sum() for one, other in zip(outputs, upstream, strict=True))
        inputs = [x, *state.values(), *layer.parameters()]
        grads.append([*outputs, *torch.autograd.grad(value, inputs)])
    for one, other in zip(*grads, strict=True):
        error = ((one - other).abs().max() / other.abs().max()).item()
        assert error <= tolerance[dtype], f"{name} {tuple(one.shape)}: relative error {error:.3g}"


@pytest.mark.parametrize("backend", ["reference", "torch steps", "torch", "native"])
@pytest.mark.parametrize(
    "name",
    [
        "rnn",
        "lstm",
        "gru",
        "lstm-everything",
        "lstm-norm",
        "lstm-projection",
        "gru-reset-before",
        "gru-norm-before",
    ],
)
def test_first_and_second_derivatives_are_right(build, name, backend):
    options = {} if name != "lstm-everything" else {"weight_drop": 0.2}
    row = "rnn-norm" if name == "rnn" and backend != "torch" else name
    layer = build(row, backend, torch.float64, False, **options)
    _skip_unless_taken(layer, backend)
    ot.set_mask_key(layer, 1, 2)
    names = [key for key, _ in layer.named_parameters()]
    mask = torch.tensor([[True, False, True]])

    def function(x, *values):
        parameters = dict(zip(names, values, strict=True))
        out = torch.func.functional_call(layer, parameters, (x,), {"mask": mask})
        return out.y, *(leaf for leaf in out.state.values() if leaf.is_floating_point())

    inputs = (torch.randn(1, 3, D, dtype=torch.float64), *(p.detach() for p in layer.parameters()))
    inputs = tuple(value.clone().requires_grad_() for value in inputs)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_second_derivatives_of_the_fused_paths_equal_the_reference(build, name, backend, dtype):
    """oneDNN's LSTM in float32 has its own second derivative, which gradgradcheck cannot see."""
    found = []
    x = torch.randn(B, T, D, dtype=dtype)
    for one in (backend, "reference"):
        layer = build(name, one, dtype, False)  # the same seed: the same weights
        _skip_unless_taken(layer, one)
        leaf = x.clone().requires_grad_()
        y = layer(leaf, lengths=[5, 2, 4]).y
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [leaf, *layer.parameters()]))
    for one, other in zip(*found, strict=True):
        error = ((one - other).abs().max() / other.abs().max()).item()
        assert error <= (1e-10 if dtype == torch.float64 else 2e-4), f"{tuple(one.shape)}: {error:.3g}"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_functorch_runs_on_plain_operators(build, name, fastest):
    layer = build(name, "auto", torch.float32, False)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}
    x = torch.randn(B, T, D)

    def loss(values, row):
        return torch.func.functional_call(layer, values, (row.unsqueeze(0),)).y.square().sum()

    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    assert layer.path == "torch steps"
    for b in range(B):
        layer.zero_grad()
        layer(x[b : b + 1]).y.square().sum().backward()
        assert layer.path == fastest
        for key, value in layer.named_parameters():
            error = ((per_row[key][b] - value.grad).abs().max() / value.grad.abs().max()).item()
            assert error <= 2e-5, f"{key}, row {b}: relative error {error:.3g}"
    _, tangent = torch.func.jvp(lambda v: layer(v).y, (x,), (torch.ones_like(x),))
    step = 1e-2
    numeric = (layer(x + step).y - layer(x - step).y) / (2 * step)
    assert (tangent - numeric).abs().max() < 1e-3
