"""Law 7: every option changes the output, every parameter receives a gradient, unknown names are refused."""

from __future__ import annotations

import pytest
import torch

import ostinato as ot
from ostinato.errors import InputError
from ostinato.layers.options import LayerOptions

B, T, D, H = 3, 6, 5, 7
# The linear recurrences have no `weight_hh`.
_GATED = ("RNN", "LSTM", "GRU")
_LINEAR = ("MinGRU", "MinLSTM", "RGLRU")
_ALL = (*_GATED, *_LINEAR)
# Option -> a value that must change the output of these layers, in training mode.
ACTS = {
    "norm": ("layer", _ALL),
    "peephole": (True, ("LSTM",)),
    "coupled_gates": (True, ("LSTM",)),
    "proj_size": (3, ("LSTM",)),
    "reset_after": (False, ("GRU",)),
    "nonlinearity": ("relu", ("RNN",)),
    "candidate": ("linear", ("MinGRU", "MinLSTM")),
    "zoneout_h": (0.3, _GATED),
    "zoneout_c": (0.3, ("LSTM",)),
    "dropout_in": (0.3, _ALL),
    "dropout_between": (0.3, _ALL),
    "dropout_out": (0.3, _ALL),
    "dropout_recurrent": (0.3, _GATED),
    "weight_drop": (0.3, _GATED),
    "residual": (True, _ALL),
    "learn_initial_state": (True, _ALL),
    "init": ("orthogonal", _ALL),
    "torch_compatible": (True, _ALL),
    "backend": ("reference", _GATED),
    "strict": (True, _GATED),
}
# Tested where their effect shows: the layout with torch_compatible, and the memory that backward needs.
ELSEWHERE = {"batch_first", "dropout", "recompute"}


def test_every_option_has_an_effect_test():
    assert {*ACTS, *ELSEWHERE} == set(LayerOptions.__dataclass_fields__)


def _layer(name, **options):
    torch.manual_seed(0)
    layer = getattr(ot, name)(D, H, 2, **options)
    ot.set_mask_key(layer, 0, 0)
    return layer


@pytest.mark.parametrize(
    ("option", "name"), [(option, name) for option, (_, names) in ACTS.items() for name in names]
)
def test_an_option_acts(option, name):
    value = ACTS[option][0]
    if option == "strict":
        # No fast path returns the states in this precision.
        layer = _layer(name, strict=True, dtype=torch.bfloat16)
        with pytest.raises(InputError, match="strict=True"):
            layer(torch.randn(B, T, D).bfloat16(), return_states=True)
        return
    plain, changed = _layer(name), _layer(name, **{option: value})
    x = torch.randn(B, T, D)
    if option == "learn_initial_state":
        torch.nn.init.normal_(changed.initial_h)
    one, other = plain(x)[0], changed(x)[0]
    if option == "backend":
        assert plain.path != changed.path == "reference"
        return
    assert one.shape != other.shape or (one - other).abs().max() > 1e-3, f"{option} changes nothing"


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_evaluation_draws_no_masks(name):
    masks = ("dropout_in", "dropout_between", "dropout_out", "dropout_recurrent", "weight_drop")
    x = torch.randn(B, T, D)
    plain = _layer(name).eval()(x)
    dropped = _layer(name, **dict.fromkeys(masks, 0.5)).eval()(x)
    assert (plain.y - dropped.y).abs().max() <= 2e-6
    assert set(dropped.state) == set(plain.state)


def test_every_parameter_receives_a_gradient(case):
    x, more = case.randn(B, T, D), case.dt(B, T)
    out = case.layer(x, **more)
    (out.y * torch.randn_like(out.y)).sum().backward()
    for name, parameter in case.layer.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        share = (parameter.grad != 0).double().mean().item()
        # One relu unit, or one dropped weight, may be silent; whole rows of a gate may not.
        floor = 0.3 if case.row.has_random_masks or "relu" in case.row.name else 0.99
        assert share >= floor, f"only {share:.0%} of {name} receives a gradient"


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(("told", "expected"), [
    ({"peepole": True}, "peepole"), ({"dropout": 0.1}, "dropout_between"),
    ({"batch_first": True}, "batch-first"), ({"norm": "batch"}, "'layer'"),
    ({"backend": "cudnn"}, "'reference'"), ({"init": "kaiming"}, "'orthogonal'"),
    ({"init": {"recurent": "orthogonal"}}, "recurrent"), ({"init": "chrono"}, "chrono"),
    ({"dropout_out": 1.0}, "below 1"), ({"zoneout_h": -0.1}, "at least 0"),
    ({"zoneout_h": True}, "probability"),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_the_known_ones(name, told, expected):
    with pytest.raises(InputError, match=expected):
        getattr(ot, name)(D, H, 2, **told)


@pytest.mark.parametrize(("name", "told"), [
    ("RNN", {"peephole": True}), ("GRU", {"proj_size": 2}), ("GRU", {"zoneout_c": 0.1}),
    ("RNN", {"reset_after": True}), ("LSTM", {"nonlinearity": "relu"}), ("LSTM", {"proj_size": H}),
    ("RNN", {"init": {"chrono": 10}}), ("MinGRU", {"zoneout_h": 0.1}),
    ("MinLSTM", {"dropout_recurrent": 0.1}),
    ("RGLRU", {"weight_drop": 0.1}), ("RGLRU", {"candidate": "linear"}), ("RGLRU", {"init": {"chrono": 10}}),
    ("MinGRU", {"init": {"forget_bias": 1.0}}), ("MinLSTM", {"init": {"recurrent": "orthogonal"}}),
    ("GRU", {"init": {"forget_bias": 1.0}}), ("LSTM", {"bias": False, "init": {"forget_bias": 1.0}}),
    ("LSTM", {"init": {"chrono": 1}}), ("LSTM", {"num_layers": 1, "residual": True}),
    ("LSTM", {"num_layers": 1, "dropout_between": 0.1}),
])  # fmt: skip
def test_an_option_without_effect_is_refused(name, told):
    with pytest.raises(InputError):
        getattr(ot, name)(D, H, **{"num_layers": 2, **told})
