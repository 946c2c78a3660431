"""The forecasting networks: shapes at every edge, states that chunk, masks, members and joint paths."""

import pytest
import torch

import ostinato as ot
from ostinato.errors import InputError
from ostinato.layers.heads import DISTRIBUTIONS
from ostinato.models.encoder import build_encoder, check_cell
from ostinato.models.forecaster import AutoregressiveForecaster, DirectForecaster
from ostinato.types import Batch

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
D, P, A, H = 5, 3, 2, 4


def direct(horizon=H, cell="lstm", members=2, **options):
    model = DirectForecaster(D, P, A, horizon, LEVELS, cell=cell, hidden_size=8, members=members, **options)
    return disturbed(model)


def disturbed(model):
    """Away from the zeros that untrained heads begin with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batch(rows=3, steps=11, origins=2, horizon=H):
    return Batch(
        x=torch.randn(rows, steps, D),
        origins=torch.randint(0, steps, (rows, origins)),
        future=torch.randn(rows, origins, horizon, P),
        anchors=torch.randn(rows, origins, horizon, A),
        y=torch.randn(rows, origins, horizon),
        mask=torch.rand(rows, origins, horizon) < 0.7,
        weight=torch.rand(rows, origins, horizon),
    )


def one_step_batch(rows=3, steps=11):
    shape = (rows, steps)
    return Batch(
        x=torch.randn(*shape, D),
        anchors=torch.randn(*shape, A),
        y=torch.randn(shape),
        mask=torch.rand(shape) < 0.7,
        last=torch.rand(shape) * 5,
        scale=torch.rand(shape) + 0.5,
    )


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", ot.GRUCell])
@pytest.mark.parametrize(("horizon", "steps"), [(1, 1), (1, 7), (9, 3), (4, 11)])
def test_loss_is_a_sum_over_known_targets_and_every_parameter_learns(cell, horizon, steps):
    model = direct(horizon, cell)
    data = batch(steps=steps, horizon=horizon)
    out = model.loss(data)
    assert out.count == data.mask.sum()
    out.total.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not silent, silent


def test_masked_targets_change_nothing():
    model, data = direct(), batch()
    before = model.loss(data).total
    data["y"] = torch.where(data.mask, data.y, 1e6)
    torch.testing.assert_close(model.loss(data).total, before)


def test_all_targets_masked_gives_no_loss_and_no_gradient():
    for model, data in ((direct(), batch()), (autoregressive("student_t"), one_step_batch())):
        data["mask"] = torch.zeros_like(data.mask)
        out = model.loss(data)
        assert float(out.count) == 0
        assert float(out.total.detach()) == 0
        out.total.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_chunks_with_carried_state_and_single_steps_equal_the_whole():
    model = direct(num_layers=2)
    x = torch.randn(3, 11, D)
    whole, after = model.encode(x)
    first, state = model.encode(x[:, :4])
    second, last = model.encode(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=2e-5, rtol=0)
    state = model.encoder.initial_state(3)
    for t in range(11):
        hidden, state = model.encoder.step(x[:, t], state)
        torch.testing.assert_close(hidden, whole[:, t], atol=2e-5, rtol=0)
    torch.testing.assert_close(state["member0"]["h"], after["member0"]["h"], atol=2e-5, rtol=0)
    torch.testing.assert_close(last["member1"]["h"], after["member1"]["h"], atol=2e-5, rtol=0)


def test_prediction_is_the_mean_of_the_members_and_never_crosses():
    model = direct(members=3)
    hidden, future, anchors = torch.randn(6, 3, 8), torch.randn(6, H, P), torch.randn(6, H, A)
    each = model.decode(hidden, future, anchors)
    said = model.predict(hidden, future, anchors)
    torch.testing.assert_close(said, each.mean(0))
    assert (said.diff(dim=-1) >= 0).all()
    assert (each[0] - each[1]).abs().max() > 1e-3


def test_far_anchors_leave_everything_finite():
    model = direct()
    said = model.predict(torch.randn(6, 2, 8), torch.randn(6, H, P), torch.full((6, H, A), 1e12))
    assert torch.isfinite(said).all()


def autoregressive(name, members=2):
    return disturbed(AutoregressiveForecaster(D, A, name, hidden_size=8, members=members))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_one_step_loss_ignores_what_is_masked(name):
    model, data = autoregressive(name), one_step_batch()
    before = model.loss(data).total
    data["y"] = torch.where(data.mask, data.y, 1e6)
    torch.testing.assert_close(model.loss(data).total, before)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("paths", [1, 7])
def test_draws_at_an_origin_do_not_depend_on_the_others(name, paths):
    model = autoregressive(name, members=3)
    hidden, anchors = torch.randn(4 * paths, 3, 8), torch.randn(4 * paths, A)
    last, scale = torch.rand(4 * paths), torch.rand(4 * paths) + 0.5

    def draw(origins):
        rows = torch.cat([torch.arange(o * paths, (o + 1) * paths) for o in origins])
        generators = [torch.Generator().manual_seed(o) for o in origins]
        with torch.no_grad():
            return model.sample_next(hidden[rows], anchors[rows], last[rows], scale[rows], generators)

    together = draw([0, 1, 2, 3]).view(4, paths)
    apart = draw([2, 0]).view(2, paths)
    torch.testing.assert_close(apart[0], together[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart[1], together[0], atol=1e-5, rtol=1e-5)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'lstn'.*'rnn', 'lstm', 'gru'"):
        build_encoder("lstn", 1, 1, 1)
    with pytest.raises(InputError, match=r"'quantile'.*known distributions: gaussian"):
        AutoregressiveForecaster(D, A, "quantile")


class NarrowCell(ot.Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size, self.state_shapes = input_size, 2, {"h": (2,)}
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def step(self, x_t, state):
        h = state["h"] + x_t.mean() * self.weight
        return h, type(state)({"h": h})


class NoArgumentsCell(ot.Cell):
    def __init__(self):
        super().__init__()


class NoStepCell(ot.Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size, self.state_shapes = input_size, hidden_size, {"h": (hidden_size,)}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (int, "expected one of: rnn, lstm, gru, mingru, minlstm, rglru, or a Cell class"),
        (ot.GRUCell(3, 4), "not an instance"),
        (NoArgumentsCell, "must be built by NoArgumentsCell"),
        (NoStepCell, "defines no step"),
        (NarrowCell, "width 2, expected hidden_size=8"),
    ],
)
def test_cells_that_cannot_work_are_refused(cell, message):
    with pytest.raises(InputError, match=message):
        check_cell(cell, 8, 1)
