"""`recompute=True`: less is kept for backward, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

import ostinato as ot
from ostinato.errors import InputError

D, H = 5, 7


def kept_bytes(layer, x):
    """What autograd keeps from a forward pass, beside inputs and parameters."""
    given = {value.untyped_storage().data_ptr() for value in (x, *layer.parameters())}
    kept = {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = layer(x)
    return sum(kept.values()), output


def twins(kind, **options):
    plain = kind(D, H, 2, **options)
    small = kind(D, H, 2, recompute=True, **options)
    small.load_state_dict(plain.state_dict())
    return plain, small


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"norm": "layer", "zoneout_h": 0.2}], ids=str
)
@pytest.mark.parametrize("kind", [ot.RNN, ot.LSTM, ot.GRU])
def test_results_are_the_same_and_less_is_kept(kind, options, tolerance):
    plain, small = twins(kind, **options)
    x = torch.randn(3, 12, D)
    lengths = torch.tensor([12, 0, 7])
    results = []
    for layer in (plain, small):
        ot.set_mask_key(layer, 1, 1)
        output = layer(x, lengths=lengths)
        total = output.y.square().sum() + output.state.h.sum()
        results.append([output.y, *torch.autograd.grad(total, list(layer.parameters()))])
    for found, expected in zip(*reversed(results), strict=True):
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        assert error < tolerance[torch.float32], f"differs by {error} on {small.path}"
    more, less = kept_bytes(plain, x)[0], kept_bytes(small, x)[0]
    assert less < more or (kind is ot.RNN and not options.get("norm")), (
        f"{less} of {more} bytes on {small.path}"
    )


@pytest.mark.parametrize("kind", [ot.LSTM, ot.GRU])
def test_backward_can_be_differentiated_again(kind):
    layer = kind(3, 4, recompute=True, dtype=torch.float64)
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda value: layer(value).y, (x,), fast_mode=True)


def test_steps_that_run_again_keep_their_inputs_only():
    layer = ot.GRU(D, H, recompute=True, backend="torch steps")
    x = torch.randn(3, 12, D)
    size, output = kept_bytes(layer, x)
    assert size <= output.y.nbytes + output.state.h.nbytes
    assert layer.path == "torch steps"


def test_a_path_that_keeps_everything_is_refused_or_named():
    for backend in ("torch", "reference"):
        with pytest.raises(InputError, match="recompute=True use"):
            ot.GRU(D, H, recompute=True, backend=backend)
    with pytest.raises(InputError, match="unknown option 'recompute'"):
        ot.MinGRU(D, H, recompute=True)
    layer = ot.GRU(D, H, recompute=True, norm="layer")
    path = layer.explain(torch.randn(2, 3, D))
    assert path.path == "torch steps"
    assert "recompute" in path.reason
    reasons = []

    def trace(x):
        reasons.append(layer.explain(x).reason)
        return layer(x).y

    torch.func.vmap(trace)(torch.randn(2, 3, 4, D))
    assert "recompute=True has no effect" in reasons[0]
