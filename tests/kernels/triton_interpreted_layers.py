"""Whole layers by Triton's interpreter, on a CPU: what `test_triton_layers.py` runs in a process of its own.

`TRITON_INTERPRET` must be set before Triton is imported, and stays: so pytest does not collect this file.
"""

from __future__ import annotations

import pytest
import torch

import ostinato as ot
from ostinato.kernels import gpu_choice, triton_scan

D, H, B, T = 5, 19, 3, 6
TOLERANCE = 2e-5
LAYERS = {
    "rnn": (ot.RNN, {"nonlinearity": "relu"}),
    "lstm": (ot.LSTM, {}),
    "gru": (ot.GRU, {}),
    "bidirectional": (ot.LSTM, {"num_layers": 2, "bidirectional": True}),
    "bidirectional gru": (ot.GRU, {"bidirectional": True, "num_layers": 2, "residual": True}),
    "learned": (ot.LSTM, {"learn_initial_state": True, "bidirectional": True}),
    "options": (ot.LSTM, {"peephole": True, "zoneout_h": 0.2, "zoneout_c": 0.1, "dropout_recurrent": 0.3}),
    "both with masks": (
        ot.GRU,
        {"bidirectional": True, "zoneout_h": 0.2, "dropout_recurrent": 0.3, "dropout_in": 0.2},
    ),
    "coupled": (ot.LSTM, {"coupled_gates": True, "weight_drop": 0.2}),
    "recomputing": (ot.LSTM, {"recompute": True}),
    "norm": (ot.LSTM, {"norm": "layer"}),
    "resetting first": (ot.GRU, {"reset_after": False, "bidirectional": True}),
    "projection": (ot.LSTM, {"proj_size": 7, "bidirectional": True}),
    "mingru": (ot.MinGRU, {"bidirectional": True}),
    "minlstm": (ot.MinLSTM, {"candidate": "linear"}),
    "rglru": (ot.RGLRU, {}),
}
# Kernels that there are not.
NOT_YET = ("projection",)
CALLS = [(name, "everything") for name in LAYERS]
CALLS += [(name, call) for name in ("lstm", "bidirectional") for call in ("plain", "lengths")]


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """The CPU is a device of Triton's; scans take small tiles, since each element costs Python's time."""
    torch.manual_seed(20261122)
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_choice, "DEVICES", {"cuda", "cpu"})
    small = triton_scan.Plan(triton_scan.Tile(2, 2, 16, W=2, warps=1), False)
    monkeypatch.setattr(triton_scan, "plan", lambda *_, **__: small)


def arguments(layer, call):
    """Of `forward`, beside x."""
    if call == "plain":
        return {}
    if call == "lengths":
        return {"lengths": torch.tensor([T, 2, 0])}
    state = layer.initial_state(B).map(
        lambda leaf: torch.randn_like(leaf) if leaf.is_floating_point() else leaf
    )
    mask, resets = torch.rand(B, T) < 0.7, torch.rand(B, T) < 0.3
    return {"state": state, "mask": mask, "resets": resets, "return_states": True}


def run(layer, x, call):
    """Everything that a call gives, and the gradients of x and all parameters."""
    ot.set_mask_key(layer, 3, 4)
    output = layer(x, **call)
    states = [] if output.states is None else list(output.states.values())
    leaves = [output.y, *(leaf for leaf in (*output.state.values(), *states) if leaf.is_floating_point())]
    loss = sum((leaf * torch.linspace(-1, 1, leaf.numel()).view_as(leaf)).sum() for leaf in leaves)
    return [*leaves, *torch.autograd.grad(loss, [x, *layer.parameters()])]


def twin(layer, backend):
    """The same layer on another path."""
    import copy
    from dataclasses import replace

    other = copy.deepcopy(layer)
    other.options = replace(other.options, backend=backend)
    other._paths = {}
    return other


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_a_layer_equals_the_reference(name, call):
    kind, options = LAYERS[name]
    layer = kind(D, H, **options)
    x, more = torch.randn(B, T, D, requires_grad=True), arguments(layer, call)
    found = run(layer, x, more)
    assert layer.path == ("torch steps" if name in NOT_YET else "triton"), layer.explain(x)
    expected = run(twin(layer, "torch steps" if "recompute" in options else "reference"), x, more)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        error = (one - other).abs().max() / other.abs().max().clamp(min=1e-6)
        assert error <= TOLERANCE, error


@pytest.mark.parametrize("name", ["bidirectional", "rglru"])
def test_a_compiled_layer_equals_the_eager_one(name):
    kind, options = LAYERS[name]
    layer = kind(D, H, **options)
    x, more = torch.randn(B, T, D, requires_grad=True), arguments(layer, "everything")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = run(layer, x, more)
    ot.set_mask_key(layer, 3, 4)
    output = compiled(x, **more)
    assert layer.path == "triton"
    for one, other in zip([output.y, *output.state.values()], expected, strict=False):
        assert torch.equal(one, other)
    # A program that was traced holds the operator with both directions, forward and backward.
    found = torch.autograd.grad(output.y.square().sum(), [x, *layer.parameters()])
    again = torch.autograd.grad(layer(x, **more).y.square().sum(), [x, *layer.parameters()])
    for one, other in zip(found, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "bidirectional gru", "norm", "rglru"])
def test_autocast_keeps_the_state_in_float32(name):
    kind, options = LAYERS[name]
    layer = kind(D, H, **options)
    x = torch.randn(B, T, D, requires_grad=True)
    # Not bfloat16, of which the interpreter makes other numbers.
    with torch.autocast("cpu", torch.float16):
        output = layer(x, return_states=True)
        path = layer.explain(x)
    assert (path.path, path.products) == ("triton", torch.float16)
    assert output.y.dtype == torch.float16
    assert all(leaf.dtype == torch.float32 for leaf in (*output.state.values(), *output.states.values()))
    grads = torch.autograd.grad(output.y.float().square().sum(), [x, *layer.parameters()])
    expected = twin(layer, "reference")
    plain = expected(x)
    exact = torch.autograd.grad(plain.y.square().sum(), [x, *expected.parameters()])
    for one, other in zip([output.y.float(), *grads], [plain.y, *exact], strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= 0.01 * other.abs().max()


def test_a_second_derivative_and_a_second_backward():
    layer = ot.LSTM(D, H, bidirectional=True)
    x = torch.randn(B, T, D, requires_grad=True)
    y = layer(x).y.square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x, retain_graph=True)[0])
    (d_x,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(d_x.square().sum(), x)
    other = twin(layer, "reference")
    (expected,) = torch.autograd.grad(other(x).y.square().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(expected.square().sum(), x)
    assert (second - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_empty_calls_run_the_steps():
    layer = ot.GRU(D, H, bidirectional=True)
    for shape in ((0, T, D), (B, 0, D)):
        assert layer(torch.randn(*shape)).y.shape == (*shape[:2], 2 * H)


def test_one_tick_equals_a_step_of_the_reference():
    layer = ot.LSTM(D, H)
    x = torch.randn(B, D)
    y, state = layer.step(x)
    expected, after = twin(layer, "reference").step(x)
    assert layer.path == "triton"
    assert torch.allclose(y, expected, atol=1e-6)
    assert torch.allclose(state.c, after.c, atol=1e-6)


def test_cells_and_scans_take_the_path_too():
    cells = ot.Recurrent([ot.LSTMCell(D, H), ot.GRUCell(H, 7)])
    x = torch.randn(B, T, D)
    cells(x)
    assert cells.path == "triton"
    keep, add = torch.rand(B, T, H), torch.randn(B, T, H)
    _, state = ot.linear_scan(keep, add, lengths=torch.tensor([T, 2, 4]))
    h = torch.zeros(B, H)
    for t in range(T):
        h = torch.where((torch.tensor([T, 2, 4]) > t).unsqueeze(1), keep[:, t] * h + add[:, t], h)
    assert torch.allclose(state, h, atol=1e-5)


def test_a_layer_that_is_asked_to_take_the_path_and_cannot():
    with pytest.raises(ot.InputError, match="backend='triton' cannot run this"):
        ot.LSTM(D, H, dtype=torch.float64, backend="triton")(torch.randn(B, T, D, dtype=torch.float64))
