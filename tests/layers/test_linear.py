"""Linear recurrences beyond the laws: the papers' equations, how they start, stacks, and `linear_scan`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import ostinato as ot
from ostinato.errors import InputError, SizeError
from ostinato.models.encoder import CELLS, build_encoder

B, T, D, H = 3, 9, 5, 7
NAMES = ("MinGRU", "MinLSTM", "RGLRU")


def _gates(layer, x):
    return F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).split(H, dim=2)


def _log_g(v):
    """log g(v), as appendix B of arXiv:2410.01201 has it."""
    return torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v))


def _parallel_scan_log(log_coefficients, log_values):
    """The paper's scan in log space: what it computes in parallel, the layer computes in order."""
    a_star = F.pad(torch.cumsum(log_coefficients, dim=1), (0, 0, 1, 0))
    return torch.exp(a_star + torch.logcumsumexp(log_values - a_star, dim=1))[:, 1:]


def test_mingru_is_the_papers_log_space_form():
    layer = ot.MinGRU(D, H, dtype=torch.float64)
    x, start = torch.randn(B, T, D).double(), torch.rand(B, H).double()
    k, v = _gates(layer, x)
    log_values = torch.cat([start.log().unsqueeze(1), -F.softplus(-k) + _log_g(v)], 1)
    expected = _parallel_scan_log(-F.softplus(k), log_values)
    found = layer(x, ot.State(h=start[:, None, None])).y
    assert (found - expected).abs().max() <= 1e-12


def test_minlstm_is_the_papers_log_space_form():
    layer = ot.MinLSTM(D, H, dtype=torch.float64)
    x, start = torch.randn(B, T, D).double(), torch.rand(B, H).double()
    i, f, v = _gates(layer, x)
    difference = F.softplus(-f) - F.softplus(-i)
    log_values = torch.cat([start.log().unsqueeze(1), -F.softplus(-difference) + _log_g(v)], 1)
    expected = _parallel_scan_log(-F.softplus(difference), log_values)
    found = layer(x, ot.State(h=start[:, None, None])).y
    assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["MinGRU", "MinLSTM"])
def test_a_linear_candidate_is_the_plain_form(name):
    layer = getattr(ot, name)(D, H, candidate="linear", dtype=torch.float64)
    x = torch.randn(B, T, D).double()
    *gates, v = _gates(layer, x)
    if name == "MinGRU":
        write = torch.sigmoid(gates[0])
        keep = 1 - write
    else:
        i, f = (torch.sigmoid(gate) for gate in gates)
        keep, write = f / (f + i), i / (f + i)
    h, ys = torch.zeros(B, H).double(), []
    for t in range(T):
        h = keep[:, t] * h + write[:, t] * v[:, t]
        ys.append(h)
    assert (layer(x).y - torch.stack(ys, 1)).abs().max() <= 1e-12


def test_rglru_is_the_papers_equation_and_stays_stable():
    layer = ot.RGLRU(D, H, dtype=torch.float64)
    x = torch.randn(B, T, D).double()
    r, i, v = _gates(layer, x)
    d = torch.sigmoid(layer.decay_l0) ** (8 * torch.sigmoid(r))
    h, ys = torch.zeros(B, H).double(), []
    for t in range(T):
        h = d[:, t] * h + torch.sqrt(1 - d[:, t] ** 2) * (torch.sigmoid(i[:, t]) * v[:, t])
        ys.append(h)
    assert (layer(x).y - torch.stack(ys, 1)).abs().max() <= 1e-12
    for value in (-100.0, 100.0):
        torch.nn.init.constant_(layer.decay_l0, value)
        y = layer(100 * torch.randn(1, 2000, D).double()).y
        y.sum().backward()
        assert y.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_decay_starts_where_the_paper_says():
    kept = torch.sigmoid(ot.RGLRU(D, 500).decay_l0) ** 8
    assert 0.9 <= kept.min() < 0.91
    assert 0.98 < kept.max() <= 0.999


def test_chrono_and_forget_bias_set_how_long_gates_remember():
    chrono = ot.MinLSTM(D, 500, init={"chrono": 100})
    i, f, _ = chrono.bias_ih_l0.split(500)
    assert torch.equal(i, -f)
    assert 0 <= f.min() < 1 < torch.log(torch.tensor(50.0)) < f.max()
    z, _ = ot.MinGRU(D, 500, init={"chrono": 100}).bias_ih_l0.split(500)
    assert -torch.log(torch.tensor(99.0)) <= z.min() < z.max() <= 0
    _, f, _ = ot.MinLSTM(D, H, init="orthogonal").bias_ih_l0.split(H)
    assert (f == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_inputs_alone(name):
    names = {key for key, _ in getattr(ot, name)(D, H).named_parameters()}
    assert names == {"weight_ih_l0", "bias_ih_l0"} | ({"decay_l0"} if name == "RGLRU" else set())


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_says_its_path(name, monkeypatch):
    from ostinato.kernels import scan

    layer, x = getattr(ot, name)(D, H), torch.randn(B, T, D)
    y = layer(x, resets=torch.rand(B, T) < 0.5, return_states=True).y
    assert layer.path == ("torch steps" if scan.obstacle(x) else "native")
    monkeypatch.setattr(scan, "_native", None)
    monkeypatch.setattr(scan, "_MISSING", "the native kernels are not built")
    plain = getattr(ot, name)(D, H)
    explained = plain.explain(x)
    assert explained.path == "torch steps"
    assert explained.is_fallback
    assert "not built" in explained.reason
    with pytest.raises(InputError, match="not built"):
        getattr(ot, name)(D, H, strict=True)(x)
    assert y.shape == (B, T, H)


@pytest.mark.parametrize("name", NAMES)
def test_lower_precision_takes_the_steps(name):
    layer = getattr(ot, name)(D, H)
    x = torch.randn(B, T, D)
    expected = layer(x).y
    half = layer.to(torch.bfloat16)
    found = half(x.bfloat16()).y
    assert half.path == "torch steps"
    assert (found.float() - expected).abs().max() <= 0.1


@pytest.mark.parametrize("name", NAMES)
def test_cells_run_in_unequal_stacks_too(name):
    cell = getattr(ot, f"{name}Cell")
    mixed = ot.Recurrent([cell(D, H), ot.LSTMCell(H, 4), cell(4, 6)]).double()
    x = torch.randn(B, T, D).double()
    out = mixed(x, lengths=[9, 0, 4])
    state, ys = None, []
    for t in range(4):
        y, state = mixed.step(x[2:, t], state)
        ys.append(y)
    assert (torch.cat(ys) - out.y[2, :4]).abs().max() <= 1e-12
    plain = getattr(ot, name)(D, H).double()
    plain.load_state_dict({f"{key}_l0": value for key, value in mixed.cells[0][0].state_dict().items()})
    whole = ot.Recurrent(mixed.cells[0][0])
    assert (whole(x).y - plain(x).y).abs().max() <= 1e-12


def test_encoders_take_them_by_name():
    for name in ("mingru", "minlstm", "rglru"):
        assert isinstance(build_encoder(name, D, H, 2), CELLS[name])


def test_an_exported_layer_keeps_the_scan_in_one_node():
    layer = ot.MinLSTM(D, H)
    x = torch.randn(B, T, D)
    dims = {"x": {0: torch.export.Dim("B"), 1: torch.export.Dim("T", min=2)}}
    program = torch.export.export(layer, (x,), dynamic_shapes=dims)
    targets = [str(node.target) for node in program.graph.nodes]
    expected = 1 if layer.explain(x).path == "native" else 0
    assert targets.count("ostinato.linear_scan.default") == expected
    longer = torch.randn(B + 1, T + 5, D)
    assert (program.module()(longer).y - layer(longer).y).abs().max() <= 1e-6


# linear_scan -----------------------------------------------------------------------------------------------


def test_a_scan_equals_the_loop_under_every_rule(tolerance):
    keep, add = torch.rand(B, T, H), torch.randn(B, T, H)
    state, initial = torch.randn(B, H), torch.randn(B, H)
    mask, resets = torch.rand(B, T) < 0.7, torch.rand(B, T) < 0.3
    for reverse in (False, True):
        y, final = ot.linear_scan(
            keep, add, state, mask=mask, resets=resets, initial=initial, reverse=reverse
        )
        h, ys = state, [torch.zeros(0)] * T
        for t in reversed(range(T)) if reverse else range(T):
            if not reverse:
                h = torch.where(resets[:, t : t + 1], initial, h)
            new = keep[:, t] * h + add[:, t]
            ys[t] = torch.where(mask[:, t : t + 1], new, 0.0)
            h = torch.where(mask[:, t : t + 1], new, h)
            if reverse:
                h = torch.where(resets[:, t : t + 1], initial, h)
        for one, other in ((y, torch.stack(ys, 1)), (final, h)):
            error = ((one - other).abs().max() / other.abs().max()).item()
            assert error <= tolerance[torch.float32], f"reverse={reverse}: relative error {error:.3g}"


def test_a_scan_broadcasts_what_it_keeps_and_has_defaults():
    keep, add = torch.rand(H), torch.randn(B, T, H)
    y, final = ot.linear_scan(keep, add, lengths=[T, 0, 2], resets=torch.ones(B, T, dtype=torch.bool))
    assert torch.equal(y[0], add[0])
    assert (y[1] == 0).all()
    assert (final[2] == 0).all(), "a reset acts at a masked step too"
    y, final = ot.linear_scan(keep, add[:, :0])
    assert y.shape == (B, 0, H)
    assert (final == 0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scan_runs_under_functorch():
    keep, add = torch.rand(B, T, H).double(), torch.randn(B, T, H).double()
    expected, _ = ot.linear_scan(keep, add)
    found = torch.func.vmap(lambda a, b: ot.linear_scan(a[None], b[None])[0][0])(keep, add)
    assert (found - expected).abs().max() <= 1e-12
    _, tangent = torch.func.jvp(lambda b: ot.linear_scan(keep, b)[0], (add,), (torch.ones_like(add),))
    assert (tangent - ot.linear_scan(keep, torch.ones_like(add))[0]).abs().max() <= 1e-12


@pytest.mark.parametrize(("change", "error", "says"), [
    ({"keep": torch.rand(4)}, SizeError, "keep is"),
    ({"keep": 0.5}, SizeError, "a float"),
    ({"keep": torch.rand(H).double()}, SizeError, "float64"),
    ({"add": torch.rand(T, H)}, SizeError, "add is"),
    ({"add": torch.randn(B, T, H, dtype=torch.cfloat)}, InputError, "real"),
    ({"state": torch.rand(H)}, SizeError, "state is"),
    ({"initial": torch.rand(B, H)}, InputError, "leave it out"),
    ({"lengths": [1] * B, "mask": torch.ones(B, T, dtype=torch.bool)}, InputError, "pass one of them"),
    ({"lengths": [T + 1] * B}, SizeError, "within"),
])  # fmt: skip
def test_a_scan_refuses_what_does_not_fit(change, error, says):
    given = {"keep": torch.rand(B, T, H), "add": torch.randn(B, T, H), **change}
    with pytest.raises(error, match=says):
        ot.linear_scan(**given)
