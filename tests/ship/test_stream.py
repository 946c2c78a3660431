"""`Session`: what it takes and refuses, its state and its storage, layers that have no native session."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.errors import InputError, SizeError


class Leaky(ot.Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size = input_size
        self.output_size = hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.inner = torch.nn.Linear(input_size, hidden_size)

    def step(self, x_t, state):
        h = 0.9 * state.h + torch.tanh(self.inner(x_t))
        return h, ot.State(h=h)


ANY = {
    "lstm": lambda: ot.LSTM(4, 9, 2),
    "float64": lambda: ot.GRU(4, 9, dtype=torch.float64),
    "norm": lambda: ot.GRU(4, 9, norm="layer"),
    "learned": lambda: ot.LSTM(4, 9, 2, learn_initial_state=True),
    "compatible": lambda: ot.LSTM(4, 9, torch_compatible=True),
    "mingru": lambda: ot.MinGRU(4, 9, 2),
    "rglru": lambda: ot.RGLRU(4, 9),
    "reference": lambda: ot.GRU(4, 9, backend="reference"),
    "own cell": lambda: ot.Recurrent(Leaky(4, 9), 2),
    "mixed": lambda: ot.Recurrent([ot.LSTMCell(4, 6), Leaky(6, 5), ot.GRUCell(5, 9)]),
    "cells": lambda: ot.Recurrent([ot.LSTMCell(4, 6), ot.GRUCell(6, 9)]),
}


def whole_run(layer, x):
    run = getattr(layer, "run_contract", layer)
    with torch.no_grad():
        return run(x)


def randomised(layer):
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith("initial"):
                value.normal_()
    return layer.eval()


@pytest.mark.parametrize("name", ANY)
def test_any_layer_streams(name, tolerance):
    layer = randomised(ANY[name]())
    dtype = next(layer.parameters()).dtype
    x = torch.randn(3, 10, 4, dtype=dtype)
    y, final = whole_run(layer, x)
    session = ot.Session(layer, 3)
    found = torch.cat(
        [session.push(x[:, 0]).unsqueeze(1), session.push(x[:, 1:7]), session.push(x[:, 7:])], 1
    )
    if session.path == "native":
        assert torch.equal(found, y)
    assert (found - y).abs().max() < tolerance[dtype]
    with torch.no_grad():
        after, _ = getattr(layer, "run_contract", layer)(x, session.state)
        expected, _ = getattr(layer, "run_contract", layer)(x, final)
    assert (after - expected).abs().max() < 2 * tolerance[dtype]
    if name in ("mingru", "rglru", "reference", "own cell", "mixed"):
        assert session.path == "layer"
        assert session.reason in repr(session)
        assert session.reason
    assert session.weight_bytes > 0


def test_rows_are_reset_to_the_learned_initial_state():
    layer = randomised(ot.LSTM(4, 9, 2, learn_initial_state=True))
    for one in (layer, randomised(ot.Recurrent([Leaky(4, 6), Leaky(6, 5)]))):
        session, x = ot.Session(one, 3), torch.randn(3, 5, 4)
        first = session.push(x).clone()
        session.reset([1])
        second = session.push(x)
        assert torch.equal(second[1], first[1])
        assert not torch.equal(second[0], first[0])
        session.reset()
        assert torch.equal(session.push(x), first)
        with pytest.raises(InputError, match="0 to 2"):
            session.reset([3])


def test_weights_are_taken_at_creation_and_by_refresh():
    layer = ot.GRU(4, 9).eval()
    session, x = ot.Session(layer), torch.randn(1, 4)
    before = session.push(x).clone()
    with torch.no_grad():
        layer.weight_ih_l0.mul_(2)
    session.reset()
    assert torch.equal(session.push(x), before)
    session.reset()
    session.refresh()
    assert torch.equal(session.push(x), whole_run(layer, x[:, None]).y[:, 0])


def test_rows_come_and_go_by_select():
    layer = ot.LSTM(4, 9).eval()
    session, x = ot.Session(layer, 3, row_ids=["a", "b", "c"]), torch.randn(3, 6, 4)
    expected = whole_run(layer, x).y
    session.push(x[:, :3])
    fewer = session.select([2, 0])
    assert fewer.row_ids == ["c", "a"]
    assert torch.equal(fewer.push(x[[2, 0], 3:]), expected[[2, 0], 3:])
    with pytest.raises(InputError, match="rows"):
        session.select([3])


# ---------------------------------------------------------------------------------------------- inputs


def test_out_is_written_and_returned():
    layer = ot.LSTM(4, 9).eval()
    x = torch.randn(2, 6, 4)
    y = whole_run(layer, x).y
    session = ot.Session(layer, 2)
    frame, chunk = torch.empty(2, 9), torch.empty(2, 5, 9)
    assert session.push(x[:, 0], out=frame) is frame
    assert session.push(x[:, 1:], out=chunk) is chunk
    assert torch.equal(frame, y[:, 0])
    assert torch.equal(chunk, y[:, 1:])


def test_arrays_come_back_as_arrays():
    layer = ot.LSTM(4, 9).eval()
    x = torch.randn(2, 6, 4)
    y = whole_run(layer, x).y.numpy()
    session, target = ot.Session(layer, 2), np.empty((2, 2, 9), dtype=np.float32)
    frame = session.push(x[:, 0].numpy())
    assert isinstance(frame, np.ndarray)
    np.testing.assert_array_equal(frame, y[:, 0])
    np.testing.assert_array_equal(session.push(x[:, 1:4].numpy()), y[:, 1:4])
    assert session.push(np.asfortranarray(x[:, 4:].numpy()), out=target) is target
    np.testing.assert_array_equal(target, y[:, 4:])
    with pytest.raises(SizeError, match="float64"):
        session.push(np.zeros((2, 4)))
    with pytest.raises(SizeError, match="out is a list"):
        session.push(np.zeros((2, 4), np.float32), out=[])


def test_arrays_of_any_strides():
    layer = ot.LSTM(4, 9).eval()
    x = torch.randn(2, 6, 4)
    y = whole_run(layer, x).y.numpy()
    backwards = np.ascontiguousarray(x.numpy()[:, :, ::-1])[:, :, ::-1]
    fixed = x.numpy().copy()
    fixed.flags.writeable = False
    raw = bytearray(1 + fixed.nbytes)
    unaligned = np.frombuffer(raw, np.float32, fixed.size, 1).reshape(fixed.shape)
    unaligned[:] = fixed
    for given in (backwards, fixed, unaligned):
        np.testing.assert_array_equal(ot.Session(layer, 2).push(given), y)
    with pytest.raises(SizeError, match="read-only"):
        ot.Session(ot.LSTM(4, 4), 2).push(x.numpy(), out=fixed)
    array = x.numpy().copy()
    with pytest.raises(InputError, match="shares memory"):
        ot.Session(ot.LSTM(4, 4), 2).push(array, out=array)


def test_strided_and_unaligned_inputs():
    layer = ot.GRU(5, 9).eval()
    wide = torch.randn(2, 7, 11)
    for x in (wide[:, :, 1:6], wide[:, :, 1::2], wide[:, ::2, :5], torch.randn(2, 5, 7).transpose(1, 2)):
        assert torch.equal(ot.Session(layer, 2).push(x), whole_run(layer, x).y)


def test_a_parameter_or_a_tensor_with_gradient_is_taken():
    layer = ot.GRU(5, 9)
    x = torch.nn.Parameter(torch.randn(1, 5))
    y = ot.Session(layer.eval()).push(x)
    assert not y.requires_grad
    assert torch.equal(y, ot.Session(layer).push((x * 1).requires_grad_()).detach())


def test_an_empty_chunk_changes_nothing():
    session = ot.Session(ot.GRU(5, 9), 2)
    before = session.state
    assert session.push(torch.empty(2, 0, 5)).shape == (2, 0, 9)
    assert torch.equal(session.state.h, before.h)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4), r"\(2, 4\).*\(B, 5\)"),
        (torch.zeros(3, 5), "B=2"),
        (torch.zeros(5), r"\(5,\)"),
        (torch.zeros(2, 5, dtype=torch.float64), "float64"),
        ([[0.0] * 5] * 2, "list"),
    ],
)
def test_what_does_not_fit_is_refused(x, message):
    session = ot.Session(ot.GRU(5, 9), 2)
    with pytest.raises(SizeError, match=message):
        session.push(x)


def test_bad_outputs_are_refused():
    session, x = ot.Session(ot.GRU(9, 9), 2), torch.zeros(2, 9)
    for out in (
        torch.empty(2, 8),
        torch.empty(2, 1, 9),
        torch.empty(9, 2).T,
        torch.empty(3, 9),
        np.empty((2, 9)),
    ):
        with pytest.raises(SizeError, match="out"):
            session.push(x, out=out)
    with pytest.raises(InputError, match="shares memory"):
        session.push(x, out=x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ot.Session(torch.nn.LSTM(3, 4)), "recurrent layer"),
        (lambda: ot.Session(ot.LSTM(3, 4, bidirectional=True)), "bidirectional"),
        (lambda: ot.Session(ot.LSTM(3, 4, dropout_out=0.5)), "eval"),
        (lambda: ot.Session(ot.LSTM(3, 4), 0), "batch_size"),
        (lambda: ot.Session(ot.LSTM(3, 4), weights="int4"), "float32, bfloat16, int8"),
        (lambda: ot.Session(ot.LSTM(3, 4, peephole=True), weights="int8"), "plain"),
        (lambda: ot.Session(ot.LSTM(3, 4, dtype=torch.float64), weights="bfloat16"), "float64"),
        (lambda: ot.Session(ot.MinGRU(3, 4), weights="bfloat16"), "mingru"),
        (lambda: ot.Session(ot.LSTM(3, 4), 2, row_ids=["a"]), "row_ids"),
        (lambda: ot.Session(ot.LSTM(3, 4), state=ot.GRU(3, 4).initial_state(1)), "no leaf 'c'"),
    ],
)
def test_what_cannot_stream_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("name", ["lstm", "own cell", "cells"])
def test_bytes_hold_the_state_and_know_the_model(name):
    layer = ANY[name]().eval()
    session, x = ot.Session(layer, 2, row_ids=["left", "right"]), torch.randn(2, 8, 4)
    session.push(x[:, :5])
    stored = session.to_bytes()
    again = ot.Session.from_bytes(stored, layer)
    assert again.row_ids == ["left", "right"]
    assert torch.equal(again.push(x[:, 5:]), session.push(x[:, 5:]))
    with pytest.raises(InputError, match="belongs to model"):
        ot.Session.from_bytes(stored, ANY[name]().eval())
    with pytest.raises(InputError):
        ot.Session.from_bytes(stored[:-3], layer)


def test_another_process_goes_on_with_the_same_bits(tmp_path):
    torch.manual_seed(5)
    layer = ot.LSTM(4, 33, 2).eval()
    session, x = ot.Session(layer, 2), torch.randn(2, 9, 4)
    expected = whole_run(layer, x).y
    session.push(x[:, :4])
    (tmp_path / "state").write_bytes(session.to_bytes())
    np.save(tmp_path / "x.npy", x[:, 4:].numpy())
    program = (
        "import pathlib, sys, numpy, torch, ostinato as ot\n"
        "torch.manual_seed(5)\n"
        "where = pathlib.Path(sys.argv[1])\n"
        "session = ot.Session.from_bytes((where / 'state').read_bytes(), ot.LSTM(4, 33, 2).eval())\n"
        "x = numpy.load(where / 'x.npy')\n"
        "numpy.save(where / 'y.npy', numpy.stack([session.push(x[:, t]) for t in range(5)], 1))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected[:, 4:].numpy())


def test_a_hundred_thousand_pushes_take_no_memory():
    session, x = ot.Session(ot.LSTM(8, 16)), torch.randn(1, 8)
    chunk, out = torch.randn(1, 3, 8), torch.empty(1, 16)
    for _ in range(1000):
        session.push(x), session.push(x, out=out), session.push(chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40_000):
        session.push(x), session.push(x, out=out), session.push(chunk)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4096, f"{grown} KiB"


# --------------------------------------------------------------------------------------------- formats


def test_the_error_of_a_format_is_measured():
    pytest.importorskip("ostinato._native", reason="the native kernels are not built")
    layer = ot.LSTM(16, 64).eval()
    x = torch.randn(2, 50, 16)
    exact, half, byte = (
        ot.Session(layer, 2, weights=weights).error_on(x) for weights in ("float32", "bfloat16", "int8")
    )
    assert exact == (0.0, 0.0, 0.0)
    assert 1e-6 < half.mean < half.largest < 2e-2
    assert 1e-6 < byte.mean < byte.largest < 5e-2
    assert half.largest <= half.relative
