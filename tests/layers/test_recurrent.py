"""`Recurrent` and the cells: any cell under the contract; shapes driven by hypothesis."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ostinato as ot
from ostinato.errors import InputError, SizeError

B, T, D, H = 3, 6, 5, 7


class CounterCell(ot.Cell):
    """Counts its steps and adds up its input: every rule can be checked by hand."""

    def __init__(self, input_size: int, start: float = 0.0):
        super().__init__()
        self.input_size = self.output_size = input_size
        self.state_shapes = {"total": (input_size,), "n": (1,)}
        self.start = start

    def initial_state(self, batch_size):
        return ot.State(
            total=torch.full((batch_size, self.input_size), self.start), n=torch.zeros(batch_size, 1)
        )

    def step(self, x_t, state):
        total = state.total + x_t
        return total, ot.State(total=total, n=state.n + 1)


def test_rules_by_hand():
    layer = ot.Recurrent(CounterCell(1), bidirectional=True)
    x = torch.arange(1.0, 6.0).reshape(1, 5, 1)
    mask = torch.tensor([[True, True, False, True, True]])
    resets = torch.tensor([[False, False, False, True, False]])
    out = layer(x, mask=mask, resets=resets, return_states=True)
    assert out.y[0, :, 0].tolist() == [1, 3, 0, 4, 9]
    assert out.y[0, :, 1].tolist() == [3, 2, 0, 9, 5]
    assert out.state.n[0, 0, :, 0].tolist() == [2, 2]
    assert out.states.total[0, :, 0, 0, 0].tolist() == [1, 3, 3, 4, 9]
    assert out.last.tolist() == [[9, 3]]
    masked_reset = layer(x, mask=mask, resets=torch.tensor([[False, False, True, False, False]]))
    assert masked_reset.y[0, :, 0].tolist() == [1, 3, 0, 4, 9]
    assert masked_reset.y[0, :, 1].tolist() == [3, 2, 0, 9, 5]


def test_a_cells_own_initial_state_is_used_at_the_start_and_at_resets():
    layer = ot.Recurrent(CounterCell(2, start=10.0))
    x = torch.ones(1, 4, 2)
    resets = torch.tensor([[False, False, True, False]])
    assert layer(x, resets=resets).y[0, :, 0].tolist() == [11, 12, 11, 12]
    other = copy.deepcopy(layer)
    assert other.cells[0][0].with_input_size(3).start == 10.0


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_of_built_in_cells_equals_the_layer(name, bidirectional, fastest):
    layer = getattr(ot, name)(D, H, 2, bidirectional=bidirectional)
    stack = ot.Recurrent(getattr(ot, f"{name}Cell")(D, H), 2, bidirectional=bidirectional)
    for i in range(2):
        for direction in range(1 + bidirectional):
            for key, value in stack.cells[i][direction].named_parameters():
                suffix = f"_l{i}" + ("_reverse" if direction else "")
                value.data.copy_(layer.get_parameter(key + suffix).data)
    x, state = torch.randn(B, T, D), layer.initial_state(B).map(torch.randn_like)
    one, other = layer(x, state, lengths=[6, 0, 3]), stack(x, state, lengths=[6, 0, 3])
    assert stack.path == fastest
    assert torch.equal(one.y, other.y)
    assert torch.equal(one.state.h, other.state.h)


@pytest.mark.parametrize(("name", "options"), [
    ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("GRU", {"bias": False}),
])  # fmt: skip
def test_a_cell_equals_torchs_cell(name, options, tolerance):
    ours, theirs = getattr(ot, f"{name}Cell")(D, H, **options), getattr(nn, f"{name}Cell")(D, H, **options)
    ours.load_state_dict(theirs.state_dict())
    x, h, c = torch.randn(B, D), torch.randn(B, H), torch.randn(B, H)
    y, state = ours(x, ot.State(h=h, c=c) if name == "LSTM" else ot.State(h=h))
    expected = theirs(x, (h, c) if name == "LSTM" else h)
    error = (y - (expected[0] if name == "LSTM" else expected)).abs().max().item()
    assert error <= tolerance[torch.float32], f"differs by {error}"
    assert torch.equal(state.h, y)
    assert torch.allclose(ours(x)[0], (theirs(x)[0] if name == "LSTM" else theirs(x)), atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ours(x.bfloat16())
    assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.float32)


def test_unequal_layers_nest():
    layer = ot.Recurrent([ot.LSTMCell(D, H), ot.GRUCell(H, 4)], learn_initial_state=True)
    out = layer(torch.randn(B, T, D))
    assert out.state.layer0.c.shape == (B, 1, H)
    assert out.state.layer1.h.shape == (B, 1, 4)
    assert {name for name, _ in layer.named_parameters() if name.startswith("initial")} == {
        "initial_h_layer0", "initial_c_layer0", "initial_h_layer1",
    }  # fmt: skip
    with pytest.raises(SizeError, match=r"layer1.*expected \(3, 1, 4\)"):
        layer(torch.randn(B, T, D), out.state.replace(layer1=ot.State(h=torch.zeros(B, 1, 5))))


def test_cells_that_do_not_fit_are_refused():
    class Silent(ot.Cell):
        def __init__(self, width):
            super().__init__()
            self.input_size, self.output_size, self.state_shapes = width, width, {"h": (width,)}

    class Wrong(CounterCell):
        def step(self, x_t, state):
            return x_t[:, :1], state

    class Drawing(CounterCell):
        def step(self, x_t, state):
            return super().step(x_t + torch.rand(1), state)

    with pytest.raises(InputError, match="cannot be stacked"):
        ot.Recurrent(Silent(3), 2)
    with pytest.raises(NotImplementedError, match="Silent defines no step"):
        ot.Recurrent(Silent(3))(torch.zeros(1, 1, 3))
    with pytest.raises(SizeError, match=r"Wrong.step returned y \(2, 1\).*expected \(2, 3\)"):
        ot.Recurrent(Wrong(3))(torch.zeros(2, 1, 3))
    with pytest.raises(InputError, match=r"layer 1 has input_size=4.*expected 7"):
        ot.Recurrent([ot.GRUCell(D, H), ot.GRUCell(4, 4)])
    with pytest.raises(InputError, match=r"2 Cell\(s\)"):
        ot.Recurrent([ot.GRUCell(D, H)], bidirectional=True)
    with pytest.raises(InputError, match="num_layers=3"):
        ot.Recurrent([ot.GRUCell(D, H)], 3)
    with pytest.raises(InputError, match=r"'weight_drop'.*known: dropout_between"):
        ot.Recurrent(ot.GRUCell(D, H), weight_drop=0.1)
    with pytest.raises(InputError, match="dropout_in"):
        ot.Recurrent(ot.GRUCell(D, H), dropout_in=1.5)
    cell = CounterCell(2)
    cell.takes_dt = True
    with pytest.raises(InputError, match="needs dt"):
        ot.Recurrent(cell)(torch.zeros(1, 1, 2))
    with pytest.raises(InputError, match="unknown option 'zoneout_h'"):
        ot.GRUCell(D, H, zoneout_h=0.1)
    with pytest.raises(InputError, match=r"strict=True.*Drawing is known by its step"):
        ot.Recurrent(Drawing(2), strict=True)(torch.zeros(1, 1, 2))


def test_the_reverse_direction_sees_the_time_to_the_next_real_step():
    class Elapsed(ot.Cell):
        takes_dt = True

        def __init__(self, input_size):
            super().__init__()
            self.input_size = self.output_size = input_size
            self.state_shapes = {"h": (input_size,)}

        def step(self, x_t, state, dt):
            return dt.unsqueeze(1) + 0 * x_t, state

    layer = ot.Recurrent(Elapsed(1), bidirectional=True)
    dt = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    x = torch.zeros(1, 4, 1)
    assert layer(x, dt=dt).y[0].T.tolist() == [[1, 2, 3, 4], [2, 3, 4, 0]]
    mask = torch.tensor([[True, True, False, True]])
    assert layer(x, dt=dt, mask=mask).y[0].T.tolist() == [[1, 2, 0, 4], [2, 4, 0, 0]]
    with pytest.raises(SizeError, match=r"dt has shape \(1, 3\)"):
        layer(x, dt=dt[:, :3])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shapes_lengths_and_masks(data):
    torch.set_num_threads(1)
    draw = data.draw
    B, T, D, H = (
        draw(st.integers(low, 6), label=name) for name, low in (("B", 0), ("T", 0), ("D", 1), ("H", 1))
    )
    L, both = draw(st.integers(1, 3), label="L"), draw(st.booleans(), label="bidirectional")
    name = draw(st.sampled_from(["RNN", "LSTM", "GRU"]))
    flags = st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B)
    mask = torch.tensor(draw(flags, label="mask"), dtype=torch.bool).reshape(B, T)
    reset = torch.tensor(draw(flags, label="resets"), dtype=torch.bool).reshape(B, T)
    lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B), label="lengths")
    rules = draw(st.sampled_from([{}, {"mask": mask}, {"lengths": lengths}, {"mask": mask, "resets": reset}]))
    torch.manual_seed(0)
    layer = getattr(ot, name)(D, H, L, bidirectional=both)
    oracle = getattr(ot, name)(D, H, L, bidirectional=both, backend="reference", dtype=torch.float64)
    oracle.load_state_dict(layer.state_dict())
    x, state = torch.randn(B, T, D), layer.initial_state(B).map(torch.randn_like)
    out, expected = layer(x, state, **rules), oracle(x.double(), state.to(torch.float64), **rules)
    assert out.y.shape == (B, T, H * (1 + both))
    real = torch.ones(B, T, dtype=torch.bool)
    if "mask" in rules:
        real = mask
    elif "lengths" in rules:
        real = torch.arange(T) < torch.tensor(lengths, dtype=torch.long).unsqueeze(1)
    assert (out.y[~real] == 0).all()
    for one, other in ((out.y, expected.y), (out.state.h, expected.state.h), (out.last, expected.last)):
        assert one.shape == other.shape
        if one.numel():
            error = (one.double() - other).abs().max().item()
            assert error <= 2e-5, f"{name} on {layer.path}: {error:.3g}"
