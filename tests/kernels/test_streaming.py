"""The native session: the bits of a whole run on every instruction set, and weights in fewer bits."""

import itertools
import threading

import pytest
import torch
from torch.utils import _pytree as pytree

import ostinato as ot
from ostinato.kernels import streaming
from ostinato.kernels.streaming import NativeStream

_native = pytest.importorskip("ostinato._native", reason="the native kernels are not built")

LAYERS = {"rnn": ot.RNN, "lstm": ot.LSTM, "gru": ot.GRU}
# Every option that acts without random masks.
OPTIONED = {
    "relu": lambda **k: ot.RNN(5, 17, 2, nonlinearity="relu", **k),
    "no bias": lambda **k: ot.GRU(5, 17, bias=False, **k),
    "residual": lambda **k: ot.GRU(5, 33, 3, residual=True, **k),
    "reset before": lambda **k: ot.GRU(5, 17, 2, reset_after=False, residual=True, **k),
    "peephole": lambda **k: ot.LSTM(5, 17, 2, peephole=True, **k),
    "coupled": lambda **k: ot.LSTM(5, 33, coupled_gates=True, peephole=True, **k),
    "projection": lambda **k: ot.LSTM(5, 33, 3, proj_size=9, residual=True, **k),
    "norm rnn": lambda **k: ot.RNN(5, 17, norm="layer", **k),
    "norm lstm": lambda **k: ot.LSTM(5, 17, 2, norm="layer", **k),
    "norm gru": lambda **k: ot.GRU(5, 17, 2, norm="layer", reset_after=False, **k),
    "zoneout": lambda **k: ot.LSTM(5, 17, 2, zoneout_h=0.1, zoneout_c=0.2, **k),
    "unequal": lambda **k: ot.Recurrent(
        [ot.LSTMCell(5, 20, **k), ot.GRUCell(20, 33, **k), ot.RNNCell(33, 7, **k), ot.RNNCell(7, 16, **k)]
    ),
}


@pytest.fixture(params=_native.isas())
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def draw(layer, B, T):
    dtype = next(layer.parameters()).dtype
    state = layer.initial_state(B, training=False).map(torch.randn_like)
    return torch.randn(B, T, layer.input_size, dtype=dtype), state


def assert_same_bits(layer, B, T=11, cuts=(0, 1, 4, 5, 11)):
    """Frames, ragged chunks and one chunk, beside one run of the layer; outputs and state."""
    layer.eval()
    x, state = draw(layer, B, T)
    with torch.no_grad():
        expected, final = layer(x, state)
    assert layer.path == "native"
    for edges in (cuts, range(T + 1), (0, T)):
        session = ot.Session(layer, B, state=state)
        assert (session.path, session.reason) == ("native", "")
        found = torch.cat([session.push(x[:, a:b]) for a, b in itertools.pairwise(edges)], dim=1)
        assert torch.equal(found, expected), f"{tuple(edges)}: {(found - expected).abs().max()}"
        for mine, theirs in zip(pytree.tree_leaves(session.state), pytree.tree_leaves(final), strict=True):
            assert torch.equal(mine, theirs), f"{tuple(edges)}, state: {(mine - theirs).abs().max()}"
    session.state = state
    found = torch.stack([session.push(x[:, t]) for t in range(T)], dim=1)
    assert torch.equal(found, expected), f"frames: {(found - expected).abs().max()}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B", [1, 2, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_plain_layers_have_the_bits_of_a_whole_run(isa, name, B, dtype):
    for D, H in ((1, 1), (3, 7), (17, 16), (5, 33), (40, 65)):
        assert_same_bits(LAYERS[name](D, H, 2, dtype=dtype), B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B", [1, 2, 7])
@pytest.mark.parametrize("name", OPTIONED)
def test_options_have_the_bits_of_a_whole_run(isa, name, B, dtype):
    assert_same_bits(OPTIONED[name](dtype=dtype), B)


@pytest.mark.parametrize("name", LAYERS)
def test_every_size_up_to_forty(name):
    for H in range(1, 41):
        assert_same_bits(LAYERS[name](41 - H, H), 1, T=3, cuts=(0, 2, 3))


@pytest.mark.parametrize("H", [63, 64, 127, 256, 257, 520])
@pytest.mark.parametrize("name", LAYERS)
def test_large_sizes_and_many_rows(name, H):
    assert_same_bits(LAYERS[name](20, H), 1, T=3, cuts=(0, 1, 3))
    if H < 128:
        assert_same_bits(LAYERS[name](20, H), 37, T=70, cuts=(0, 1, 70))


@pytest.mark.parametrize("name", LAYERS)
def test_the_number_of_threads_changes_no_bit(name):
    torch.set_num_threads(2)
    assert_same_bits(LAYERS[name](200, 384), 1, T=6, cuts=(0, 1, 6))
    assert_same_bits(LAYERS[name](20, 65, 2), 64, T=20, cuts=(0, 1, 20))


def test_a_long_chunk_is_taken_in_pieces():
    assert_same_bits(ot.GRU(3, 9, 3, residual=True), 2, T=700, cuts=(0, 1, 300, 700))
    assert_same_bits(ot.LSTM(3, 9, 2, peephole=True), 1, T=200, cuts=(0, 64, 200))


def rounded(weight, weights):
    """The weights that a format stands for, in float64."""
    if weights == "bfloat16":
        return weight.bfloat16().double()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round().clamp(-127, 127).double() * scale.double()


def with_rounded_weights(layer, weights):
    made = type(layer)(layer.input_size, layer.hidden_size, layer.num_layers, dtype=torch.float64)
    values = {
        name: rounded(value, weights) if name.startswith("weight") else value.double()
        for name, value in layer.state_dict().items()
    }
    made.load_state_dict(values)
    return made.eval()


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("B", [1, 3, 9])
@pytest.mark.parametrize("name", LAYERS)
def test_reduced_weights_are_the_rounded_ones(isa, name, B, weights, tolerance):
    for D, H in ((1, 1), (7, 17), (33, 40), (64, 65)):
        layer = LAYERS[name](D, H, 2).eval()
        x, state = draw(layer, B, 9)
        with torch.no_grad():
            expected, _ = with_rounded_weights(layer, weights)(x.double(), state.to(torch.float64))
        session = ot.Session(layer, B, state=state, weights=weights)
        whole = session.push(x)
        error = (whole - expected).abs().max() / expected.abs().max()
        assert error < tolerance[torch.float32], f"{D} → {H}: {error:.2e}"
        session.state = state
        assert torch.equal(torch.stack([session.push(x[:, t]) for t in range(9)], 1), whole)


def test_reduced_weights_do_not_depend_on_the_rows_around():
    layer = ot.LSTM(12, 40)
    x, state = draw(layer, 11, 5)
    for weights in ("bfloat16", "int8"):
        whole = ot.Session(layer, 11, state=state, weights=weights).push(x)
        for b in (0, 4, 10):
            one = ot.Session(layer, state=state.select([b]), weights=weights).push(x[b : b + 1])
            assert torch.equal(one[0], whole[b]), f"{weights}, row {b}"


def test_int8_keeps_rows_of_zeros_and_passes_nan_on():
    layer = ot.RNN(3, 5, bias=False)
    with torch.no_grad():
        layer.weight_ih_l0[2] = 0
        layer.weight_ih_l0[4, 1] = float("nan")
    y = ot.Session(layer, weights="int8").push(torch.ones(1, 3))
    assert y[0, 2] == 0
    assert y[0, 4].isnan()
    assert y[0, :4].isfinite().all()


def test_reduced_weights_are_smaller():
    layer = ot.LSTM(256, 256)
    sizes = [ot.Session(layer, weights=weights).weight_bytes for weights in streaming.FORMATS]
    assert sizes[1] < 0.52 * sizes[0]
    assert sizes[2] < 0.27 * sizes[0]


def test_two_sessions_run_in_two_threads():
    layer = ot.LSTM(64, 128).eval()
    x = torch.randn(1, 300, 64)
    with torch.no_grad():
        expected = layer(x).y
    found = {}

    def stream(number):
        session = ot.Session(layer)
        found[number] = torch.stack([session.push(x[:, t]) for t in range(300)], dim=1)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], expected) for number in range(2))


def test_a_session_stays_on_its_instruction_set():
    layer = ot.GRU(6, 21).eval()
    x = torch.randn(1, 8, 6)
    with torch.no_grad():
        expected = layer(x).y
    session = ot.Session(layer)
    before = _native.isa()
    try:
        _native.set_isa(_native.isas()[0])
        assert torch.equal(session.push(x), expected)
    finally:
        _native.set_isa(before)


def test_without_the_exchange_table_the_checked_way_runs(monkeypatch):
    layer = ot.LSTM(6, 21).eval()
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        expected = layer(x).y
    monkeypatch.setattr(NativeStream, "push", None, raising=False)
    session = ot.Session(layer, 2)
    session._push = lambda x, out=None: None
    assert torch.equal(torch.stack([session.push(x[:, t]) for t in range(5)], 1), expected)


def test_the_joint_checks_what_it_is_given():
    layer = _native.Layer(2, 3, 4, 4, "", 0.0, 0.0, False)
    for layers, weights, B in (
        ([], [], 1),
        ([(layer, 0, False)], [[0] * 10], 0),
        ([(layer, 3, False)], [[0] * 10], 1),
    ):
        with pytest.raises(ValueError, match="Session"):
            _native.Session(layers, weights, B)
