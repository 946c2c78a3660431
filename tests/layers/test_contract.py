"""The contract's edges: arguments that are refused, `last` and `pooled`, autocast, path, explain, step."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import ostinato as ot
from ostinato.errors import InputError, SizeError
from ostinato.kernels import native

B, T, D, H = 3, 6, 5, 7
LAYERS = ("RNN", "LSTM", "GRU")


@pytest.fixture
def layer():
    return ot.LSTM(D, H, 2, bidirectional=True)


@pytest.mark.parametrize(("call", "expected"), [
    ({"lengths": [1, 2, 3], "mask": torch.ones(B, T).bool()}, "pass one of them"),
    ({"lengths": [1, 2]}, r"expected 3 integers \(B,\)"),
    ({"lengths": [1, 2, 7]}, r"within 0 … T=6"),
    ({"lengths": [1, -2, 3]}, r"within 0 … T=6"),
    ({"lengths": [1.0, 2.0, 3.0]}, "expected 3 integers"),
    ({"mask": torch.ones(B, T)}, "expected a boolean tensor"),
    ({"mask": torch.ones(T, B).bool()}, r"expected a boolean tensor \(B, T\) = \(3, 6\)"),
    ({"resets": torch.zeros(B).bool()}, "expected a boolean tensor"),
    ({"dt": torch.ones(B, T)}, "takes no dt"),
    ({"state": (torch.zeros(4, B, H), torch.zeros(4, B, H))}, "torch_compatible=True"),
    ({"state": ot.State(h=torch.zeros(B, 2, 2, H))}, "no leaf 'c'"),
    ({"state": ot.State(h=torch.zeros(1, 2, 2, H), c=torch.zeros(1, 2, 2, H))}, r"expected \(3, 2, 2, 7\)"),
    ({"state": ot.State(h=torch.zeros(B, 2, 2, H).double(), c=torch.zeros(B, 2, 2, H))}, "torch.float64"),
])  # fmt: skip
def test_wrong_arguments_are_refused(layer, call, expected):
    with pytest.raises(InputError, match=expected):
        layer(torch.randn(B, T, D), **call)


@pytest.mark.parametrize(("x", "expected"), [
    (torch.zeros(T, D), "unsqueeze"), (torch.zeros(B, T, 4), "input_size=5; pass input_size=4"),
    (torch.zeros(B, T, D).double(), "x is torch.float64, the weights are torch.float32"),
    (torch.zeros(B, T, D).long(), "torch.int64"), ([[0.0]], "expected a tensor"),
])  # fmt: skip
def test_a_wrong_input_is_refused(layer, x, expected):
    with pytest.raises(SizeError, match=expected):
        layer(x)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (3, 3, 0), (3.0, 3), (True, 3)])
def test_wrong_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="at least 1"):
        ot.GRU(*sizes)


def test_step_needs_no_future(layer):
    with pytest.raises(InputError, match="bidirectional"):
        layer.step(torch.zeros(B, D))
    with pytest.raises(SizeError, match=r"expected \(B, D\)"):
        ot.GRU(D, H).step(torch.zeros(B, T, D))
    with pytest.raises(InputError, match="takes no dt"):
        ot.GRU(D, H).step(torch.zeros(B, D), dt=torch.ones(B))


def test_step_starts_from_the_initial_state():
    layer = ot.GRU(D, H, learn_initial_state=True)
    torch.nn.init.normal_(layer.initial_h)
    x = torch.randn(B, D)
    y, state = layer.step(x)
    expected = layer(x.unsqueeze(1))
    assert torch.equal(y, expected.y[:, 0])
    assert torch.equal(state.h, expected.state.h)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_and_pooled_of_ragged_batches(name, bidirectional):
    layer = getattr(ot, name)(D, H, bidirectional=bidirectional)
    x = torch.randn(4, T, D)
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [1] * 6, [0] * 6, [0, 0, 0, 0, 0, 1]]).bool()
    out = layer(x, mask=mask)
    for b in range(4):
        real = out.y[b, mask[b]]
        if not len(real):
            for kind in ("last", "max", "mean", "sum"):
                assert (out.pooled(kind)[b] == 0).all()
            continue
        last = torch.cat([real[-1, :H], real[0, H:]])
        assert torch.equal(out.last[b], last)
        # The last output of each direction is its final state.
        assert torch.equal(out.last[b], out.state.h[b, 0].flatten())
        expected = {"last": last, "max": real.amax(0), "mean": real.mean(0), "sum": real.sum(0)}
        for kind, value in expected.items():
            error = (out.pooled(kind)[b] - value).abs().max().item()
            assert error <= 1e-6, f"{kind}: {error:.3g}"
    full = layer(x)
    assert torch.equal(full.last, torch.cat([full.y[:, -1, :H], full.y[:, 0, H:]], 1))
    with pytest.raises(InputError, match="'median'; known: last, max, mean, sum"):
        out.pooled("median")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_return_states_gives_every_leaf_after_every_step(name, bidirectional):
    layer = getattr(ot, name)(D, H, 2, bidirectional=bidirectional, backend="reference")
    x, lengths = torch.randn(B, T, D), [6, 0, 4]
    assert layer(x).states is None
    out = layer(x, lengths=lengths, return_states=True)
    assert set(out.states) == set(out.state)
    for key, leaf in out.states.items():
        assert leaf.shape == (B, T, 2, 1 + bidirectional, H)
        assert torch.equal(leaf[:, -1, :, 0], out.state[key][:, :, 0]), "final forward state"
        if bidirectional:
            assert torch.equal(leaf[:, 0, :, 1], out.state[key][:, :, 1]), "final reverse state"
    tops = out.states.h[:, :, 1].flatten(2)
    mask = torch.arange(T) < torch.tensor(lengths).unsqueeze(1)
    assert torch.equal(tops[mask], out.y[mask])
    assert torch.equal(
        layer(x[:, :0], return_states=True).states.h, torch.zeros(B, 0, 2, 1 + bidirectional, H)
    )


def test_resets_start_from_the_learned_state_in_both_directions():
    layer = ot.GRU(D, H, bidirectional=True, learn_initial_state=True)
    torch.nn.init.normal_(layer.initial_h)
    x = torch.randn(1, T, D)
    resets = torch.zeros(1, T, dtype=torch.bool)
    resets[0, 4] = resets[0, 0] = True
    state = layer.initial_state(1).map(torch.randn_like)
    out = layer(x, state, resets=resets)
    parts = [layer(x[:, :4]), layer(x[:, 4:])]
    assert (out.y[:, :4] - parts[0].y).abs().max() <= 1e-6
    assert (out.y[:, 4:, :H] - parts[1].y[..., :H]).abs().max() <= 1e-6
    given = layer(x[:, 4:], state)
    assert (out.y[:, 4:, H:] - given.y[..., H:]).abs().max() <= 1e-6, (
        "the reverse direction starts from the state"
    )
    # A reset before step 0 is after step 0 for the reverse direction: its final state is the initial one.
    assert torch.equal(out.state.h[:, 0, 1], layer.initial_h[:, 1])


def test_the_layer_says_which_path_it_took_and_why(fastest):
    x = torch.randn(B, T, D)
    layer = ot.LSTM(D, H)
    assert layer.explain(x).path == fastest
    layer(x, mask=torch.rand(B, T) < 0.5)
    assert layer.path == fastest
    with pytest.raises(InputError, match=r"cannot run this .*peephole"):
        ot.LSTM(D, H, peephole=True, backend="torch")(x)
    half = ot.LSTM(D, H, strict=True, peephole=True, dtype=torch.bfloat16)
    assert half.explain(x).path == "torch steps"
    with pytest.raises(InputError, match=r"strict=True.*peephole"):
        half(x.bfloat16())


def test_without_the_native_kernels_the_layer_says_so(monkeypatch):
    monkeypatch.setattr(native, "obstacle", lambda *_: "the native kernels are not built")
    x = torch.randn(B, T, D)
    layer = ot.LSTM(D, H)
    assert str(layer.explain(x)) == "torch: not 'native': the native kernels are not built"
    layer(x, mask=torch.rand(B, T) < 0.5)
    assert layer.path == "torch"
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[0, 2] = True
    explained = layer.explain(x, resets=resets)
    assert explained.path == "torch steps"
    assert "resets" in str(explained)
    layer(x, resets=resets)
    assert layer.path == "torch steps"
    layer(x, resets=torch.zeros(B, T, dtype=torch.bool))
    assert layer.path == "torch"
    assert "peephole" in str(ot.LSTM(D, H, peephole=True).explain(x))
    with pytest.raises(InputError, match=r"strict=True.*not built"):
        ot.LSTM(D, H, strict=True)(x)
    dropped = ot.GRU(D, H, dropout_recurrent=0.2)
    assert "dropout_recurrent" in dropped.explain(x).reason
    assert dropped.eval().explain(x).path == "torch"


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", ["torch", "torch steps", "reference"])
def test_autocast_keeps_the_state_in_float32(name, backend):
    layer = getattr(ot, name)(D, H, 2, backend=backend)
    x = torch.randn(B, T, D)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x.bfloat16())
        y, state = layer.step(x[:, 0].bfloat16(), out.state)
        halves = layer(x[:, 3:].bfloat16(), layer(x[:, :3].bfloat16()).state)
    assert out.y.dtype == y.dtype == torch.bfloat16
    assert all(leaf.dtype == torch.float32 for leaf in (*out.state.values(), *state.values()))
    assert torch.allclose(halves.state.h, out.state.h, atol=1e-6)
    assert (out.y.float() - expected.y).abs().max() < 2e-2
    out.y.float().sum().backward()
    assert layer.weight_hh_l1.grad.dtype == torch.float32


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_layers_run(name, tolerance):
    layer = getattr(ot, name)(D, H, dtype=torch.bfloat16)
    x = torch.randn(B, T, D)
    exact = getattr(ot, name)(D, H)
    exact.load_state_dict(layer.state_dict())
    out = layer(x.bfloat16(), lengths=[6, 0, 3])
    assert out.y.dtype == out.state.h.dtype == torch.bfloat16
    error = (out.y.float() - exact(x.bfloat16().float(), lengths=[6, 0, 3]).y).abs().max().item()
    assert error <= tolerance[torch.bfloat16], error


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_copied_and_pickled_with_their_path_and_options(name):
    layer = getattr(ot, name)(D, H, 2, norm="layer", zoneout_h=0.1, init="orthogonal")
    x = torch.randn(B, T, D)
    layer.eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301 - our own bytes
        assert torch.equal(other(x).y, layer(x).y)
        assert "zoneout_h=0.1" in repr(other)


def test_output_is_a_pair_and_a_pytree(layer):
    out = layer(torch.randn(B, T, D), lengths=[1, 2, 6], return_states=True)
    y, state = out
    assert y is out.y
    assert state is out.state
    assert len(out) == 2
    halved = torch.utils._pytree.tree_map(lambda leaf: leaf[:1], out)
    assert halved.y.shape == (1, T, 2 * H)
    assert halved.states.c.shape[0] == 1
    assert torch.equal(halved.last, out.last[:1])


def test_an_empty_batch_runs(layer):
    out = layer(torch.zeros(0, T, D), lengths=torch.zeros(0, dtype=torch.long))
    assert out.y.shape == (0, T, 2 * H)
    assert out.last.shape == (0, 2 * H)
