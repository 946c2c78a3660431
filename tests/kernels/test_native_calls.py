"""The native kernels among threads, processes, changing weights and extreme values."""

from __future__ import annotations

import gc
import math
import multiprocessing
import threading
import weakref

import pytest
import torch
from torch import nn

import ostinato as ot
from ostinato.kernels import packed_weights

_native = pytest.importorskip("ostinato._native", reason="the native kernels are not built")

LAYERS = {
    "rnn": (ot.RNN, {}),
    "relu": (ot.RNN, {"nonlinearity": "relu"}),
    "lstm": (ot.LSTM, {}),
    "lstm-options": (ot.LSTM, {"norm": "layer", "peephole": True, "proj_size": 9, "zoneout_h": 0.1}),
    "gru": (ot.GRU, {}),
    "gru-before": (ot.GRU, {"reset_after": False}),
}


def make(name, D=6, H=17, dtype=torch.float32, backend="native"):
    kind, options = LAYERS[name]
    return kind(D, H, dtype=dtype, backend=backend, **options).eval()


@pytest.fixture(params=_native.isas())
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def results(layer, x, **call):
    """y, the final state, and all gradients."""
    x = x.detach().requires_grad_()
    out = layer(x, **call)
    outputs = [out.y, *out.state.values()]
    value = sum(
        (one * torch.linspace(-1, 1, max(1, one.numel()), dtype=one.dtype)[: one.numel()].view_as(one)).sum()
        for one in outputs
    )
    return [*outputs, *torch.autograd.grad(value, [x, *layer.parameters()])]


def assert_equal(found, expected, what):
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), f"{what}: tensor {index} differs by {(one - other).abs().max():.3g}"


# Bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_the_number_of_threads_or_the_run(name, dtype, isa):
    # Enough work for several tasks, chunks and threads, and unequal lengths among them.
    B, T, D, H = 61, 23, 6, 33
    layer, x = make(name, D, H, dtype), torch.randn(B, T, D, dtype=dtype)
    resets = torch.rand(B, T) < 0.1
    for call in ({}, {"lengths": torch.randint(0, T + 1, (B,)), "resets": resets}):
        expected = results(layer, x, **call)
        assert layer.path == "native"
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            assert_equal(results(layer, x, **call), expected, f"{n_threads} threads, {list(call)}")
    # One row, whose units the threads share.
    layer, x = make(name, D, 160, dtype), torch.randn(1, T, D, dtype=dtype)
    torch.set_num_threads(1)
    expected = results(layer, x)
    for n_threads in (2, 3, 2):
        torch.set_num_threads(n_threads)
        assert_equal(results(layer, x), expected, f"{n_threads} threads, one row")


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_has_the_same_bits_in_any_batch(name, isa):
    if not _native.isa_facts()[1]:
        pytest.skip("products and sums are rounded apart, and their order depends on the tile")
    layer, x = make(name), torch.randn(70, 5, 6)
    lengths = torch.randint(0, 6, (70,))
    whole = layer(x, lengths=lengths)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 10), slice(10, 33), slice(33, 70)):
        part = layer(x[rows], lengths=lengths[rows])
        assert_equal([part.y], [whole.y[rows]], f"rows {rows}")
        assert_equal(part.state.values(), whole.state.select(rows).values(), f"state of rows {rows}")


# Weights that change -------------------------------------------------------------------------------------


def _in_place(layer):
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.5)


def _one_number(layer):
    with torch.no_grad():
        layer.weight_ih_l0[3, 4] += 1.0


def _through_data(layer):
    layer.weight_hh_l0.data.mul_(0.5)


def _one_number_through_data(layer):
    layer.weight_ih_l0.data[3, 4] += 1.0


def _clamped_through_data(layer):
    limit = layer.weight_hh_l0.detach().abs().max().item() * 0.99
    layer.weight_hh_l0.data.clamp_(-limit, limit)


def _through_numpy(layer):
    layer.weight_hh_l0.detach().numpy()[5, 2] += 1.0


def _new_data(layer):
    layer.weight_hh_l0.data = layer.weight_hh_l0.data * 0.5


def _new_parameter(layer):
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() * 0.5)


def _loaded(layer):
    layer.load_state_dict({key: value * 0.5 for key, value in layer.state_dict().items()})


def _assigned(layer):
    layer.load_state_dict({key: value * 0.5 for key, value in layer.state_dict().items()}, assign=True)


def _stepped(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 3, 6)).y.sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _swapped(layer):
    """Two rows that change places: sums stay the same."""
    weight = layer.weight_hh_l0.data
    weight[[1, 2]] = weight[[2, 1]]


@pytest.mark.parametrize("change", [
    _in_place, _one_number, _through_data, _one_number_through_data, _clamped_through_data, _through_numpy,
    _new_data, _new_parameter, _loaded, _assigned, _stepped, _swapped,
])  # fmt: skip
def test_weights_that_change_are_seen(change):
    layer, x = make("lstm"), torch.randn(4, 5, 6)
    for _ in range(3):
        before = results(layer, x)
        change(layer)
        found = results(layer, x)
        fresh = make("lstm")
        fresh.load_state_dict(layer.state_dict())
        assert_equal(found, results(fresh, x), f"after {change.__name__}")
        assert not torch.equal(found[0], before[0]), "the change has no effect"


def test_functional_calls_use_the_weights_that_they_are_given():
    layer, x = make("gru"), torch.randn(4, 5, 6)
    plain = layer(x).y
    for scale in (0.5, 2.0, 0.5):
        weights = {name: value.detach() * scale for name, value in layer.named_parameters()}
        found = torch.func.functional_call(layer, weights, (x,)).y
        fresh = make("gru")
        fresh.load_state_dict(weights)
        assert_equal([found], [fresh(x).y], f"scale {scale}")
        assert_equal([layer(x).y], [plain], "the layer's own weights")


def test_weights_changed_between_forward_and_backward_are_refused():
    layer = make("lstm")
    y = layer(torch.randn(2, 3, 6, requires_grad=True)).y
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_packed_copies_die_with_their_weights():
    gc.collect()
    before = len(packed_weights._kept)
    layers = [make("gru") for _ in range(5)]
    for layer in layers:
        results(layer, torch.randn(2, 3, 6))
    assert len(packed_weights._kept) == before + 5
    died = weakref.ref(layers[0].weight_hh_l0)
    del layers, layer
    gc.collect()
    assert died() is None, "a packed copy keeps its weights alive"
    assert len(packed_weights._kept) == before


def test_inference_mode_and_weights_made_in_it():
    with torch.inference_mode():
        layer = make("lstm")
        x = torch.randn(2, 3, 6)
        found = layer(x).y
        layer.weight_hh_l0.mul_(0.5)
        assert not torch.equal(layer(x).y, found)
    plain = make("lstm")
    expected = plain(x.clone()).y.detach()
    with torch.inference_mode():
        assert_equal([plain(x).y], [expected], "inference mode")


@pytest.mark.parametrize("wrong", [
    {"weight_hh_l0": torch.zeros(68, 16)}, {"weight_hh_l0": torch.zeros(64, 16)},
    {"bias_hh_l0": torch.zeros(3)},
    {"weight_hh_l0": torch.zeros(68, 17, dtype=torch.float64)}, {"bias_ih_l0": torch.zeros(68).half()},
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(wrong):
    layer = make("lstm")
    weights = {**{name: value.detach() for name, value in layer.named_parameters()}, **wrong}
    with pytest.raises((RuntimeError, ValueError)):
        torch.func.functional_call(layer, weights, (torch.randn(2, 3, 6),))


def test_another_instruction_set_between_forward_and_backward():
    names = _native.isas()
    if len(names) < 2:
        pytest.skip("this machine has one instruction set")
    layer, before = make("lstm"), _native.isa()
    try:
        for one, other in ((names[0], names[-1]), (names[-1], names[0])):
            _native.set_isa(one)
            y = layer(torch.randn(5, 3, 6, requires_grad=True)).y
            _native.set_isa(other)
            with pytest.raises((RuntimeError, ValueError), match="instruction set"):
                y.sum().backward()
    finally:
        _native.set_isa(before)


# Values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_stays_in_its_row(name, bad, isa):
    layer, x = make(name), torch.randn(13, 4, 6)
    clean = layer(x)
    x[5, 2, 3] = bad
    out = layer(x)
    others = [row for row in range(13) if row != 5]
    assert_equal([out.y[others]], [clean.y[others]], "the other rows")
    assert_equal([out.y[5, :2]], [clean.y[5, :2]], "the steps before")
    if math.isnan(bad):
        assert out.y[5, 2:].isnan().all(), f"{name}: NaN became {out.y[5, 2:]}"
    reference = make(name, backend="reference")
    reference.load_state_dict(layer.state_dict())
    assert torch.equal(out.y.isnan(), reference(x).y.isnan())
    (d_x,) = torch.autograd.grad(layer(x.requires_grad_()).y[others].sum(), x)
    assert d_x[others].isfinite().all(), "a gradient of another row is not finite"


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "relu"])
@pytest.mark.parametrize("scale", [1e4, 1e20, 1e38])
def test_huge_values_saturate(name, scale, isa):
    if "options" in name and scale > 1e30:
        pytest.skip("the sum that normalisation takes overflows, in PyTorch too")
    layer = make(name)
    x = torch.randn(3, 4, 6).sign() * scale
    found = results(layer, x)
    assert all(one.isfinite().all() for one in found[:2]), "an output is not finite"
    if "options" not in name:
        assert found[0].abs().max() <= 1
        assert all(one.isfinite().all() for one in found[3:4])


def test_relu_overflows_to_infinity_as_the_reference_does(isa):
    found = []
    for backend in ("native", "reference"):
        torch.manual_seed(0)
        layer = ot.RNN(3, 5, nonlinearity="relu", backend=backend)
        nn.init.constant_(layer.weight_hh_l0, 1e10)
        found.append(layer(torch.ones(2, 8, 3)).y)
    assert torch.equal(found[0].isinf(), found[1].isinf())
    assert torch.equal(found[0].isnan(), found[1].isnan())


def test_denormal_numbers_are_kept(isa):
    layer = ot.RNN(1, 3, nonlinearity="relu", bias=False, backend="native")
    nn.init.ones_(layer.weight_ih_l0)
    nn.init.zeros_(layer.weight_hh_l0)
    x = torch.tensor([[[1e-40], [3e-42]]])
    assert torch.equal(layer(x).y[0, :, 0], x[0, :, 0])
    tanh = ot.RNN(1, 3, bias=False, backend="native")
    nn.init.ones_(tanh.weight_ih_l0)
    nn.init.zeros_(tanh.weight_hh_l0)
    y = tanh(x).y[0, :, 0]
    assert torch.allclose(y, x[0, :, 0], rtol=1e-3, atol=2e-45), f"{y} for {x}"


# Sizes ---------------------------------------------------------------------------------------------------


def test_very_long_very_many_and_nothing():
    layer = make("lstm", 3, 4)
    x = torch.randn(1, 100_000, 3)
    halves = layer(x[:, :50_000])
    assert torch.equal(layer(x[:, 50_000:], halves.state).y, layer(x).y[:, 50_000:])
    results(layer, x[:, :20_000], mask=torch.rand(1, 20_000) < 0.5)
    many = make("gru", 3, 5)
    x = torch.randn(1000, 7, 3)
    lengths = torch.randint(0, 8, (1000,))
    expected = ot.GRU(3, 5, backend="torch")
    expected.load_state_dict(many.state_dict())
    off = (many(x, lengths=lengths).y - expected(x, lengths=lengths).y).abs().max()
    assert off <= 2e-6, f"off by {off}"
    for shape in ((0, 5, 3), (4, 0, 3), (0, 0, 3)):
        found = results(many, torch.randn(shape)) if shape[1] else [many(torch.randn(shape)).y]
        assert found[0].shape == (*shape[:2], 5)
        assert all((grad == 0).all() for grad in found[3:])


# Threads and processes -----------------------------------------------------------------------------------


def test_several_python_threads_at_once():
    layer = make("lstm-options", 6, 33)
    xs = [torch.randn(24, 9, 6) for _ in range(4)]
    torch.set_num_threads(2)
    expected = [results(layer, x) for x in xs]
    failures = []

    def work(index):
        torch.set_num_threads(2)
        own = make("gru", 6, 20)
        for repeat in range(15):
            with torch.no_grad():
                own.weight_hh_l0.mul_(0.99)
            results(own, xs[index])
            try:
                assert_equal(results(layer, xs[index]), expected[index], f"thread {index}, repeat {repeat}")
            except AssertionError as failure:
                failures.append(failure)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a call hangs"
    assert not failures, failures[0]


def _in_a_child(layer, x, expected, answer):
    torch.set_num_threads(1)
    found = layer(x)
    found.y.sum().backward()
    answer.put(bool(torch.equal(found.y, expected)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
# Libraries of peers, where they are imported, complain of forks in a hook of their own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forked_child_goes_on():
    layer, x = make("lstm", 6, 40), torch.randn(64, 12, 6)
    torch.set_num_threads(2)
    expected = layer(x).y.detach()
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_in_a_child, args=(layer, x, expected, answer))
    child.start()
    assert answer.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert_equal([layer(x).y], [expected], "the parent afterwards")
