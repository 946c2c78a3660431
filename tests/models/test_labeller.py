"""The network of the sequence estimators: padding, losses by hand, streaming, options."""

import pytest
import torch
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.cells import Cell
from ostinato.layers.dropout import set_mask_key
from ostinato.models.labeller import Labeller
from ostinato.types import Batch, State

LENGTHS = [7, 3, 1, 5]


class Leaky(Cell):
    """h' = 0.9 h + W x, a cell of a user."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.weight = torch.nn.Linear(input_size, hidden_size)

    def step(self, x_t, state):
        h = 0.9 * state.h + self.weight(x_t)
        return h, State(h=h)


def make(C=2, **options):
    options = {"objective": "squared", "cell": "gru", "hidden_size": 5} | options
    return Labeller(3, C, **options).double()


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in LENGTHS]


def padded(rows, fill=0.0, extra=2):
    T = max(len(row) for row in rows) + extra
    whole = torch.full((len(rows), T, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole


def gap(a, b):
    return (a - b).abs().max().item()


SHAPES = [
    {"pooling": "last"},
    {"pooling": "mean"},
    {"pooling": "max"},
    {"pooling": "sum"},
    {"pooling": "attention"},
    {"pooling": "mix"},
    {"per_step": True},
]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", Leaky])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_ragged_batch_equals_its_rows_one_by_one(cell, bidirectional, shape):
    """Answers, loss and gradients; what stands in the padding, NaN included, does not matter."""
    model = make(cell=cell, bidirectional=bidirectional, num_layers=2, **shape)
    rows = ragged()
    y = [torch.randn(*((len(row), 2) if model.per_step else (2,)), dtype=torch.float64) for row in rows]
    together = Batch(
        x=padded(rows, fill=float("nan")),
        y=padded(y, fill=float("nan")) if model.per_step else torch.stack(y),
        lengths=torch.tensor(LENGTHS),
    )
    output = model.loss(together)
    output.total.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    singles = [model.loss(Batch(x=x[None], y=t[None])) for x, t in zip(rows, y, strict=True)]
    sum(single.total for single in singles).backward()
    total, count = sum(s.total for s in singles), sum(s.count for s in singles)
    assert gap(output.total, total) < 1e-10 * total.item(), (output.total, total)
    assert int(output.count) == int(count) == (2 * sum(LENGTHS) if model.per_step else 2 * len(rows))
    worst = max(gap(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert worst < 1e-10, f"gradients differ by {worst}"
    answers, _ = model(together.x, lengths=LENGTHS)
    for i, row in enumerate(rows):
        alone, _ = model(row[None])
        said = answers[i, : len(row)] if model.per_step else answers[i]
        assert gap(said, alone[0]) < 1e-12, f"row {i} differs by {gap(said, alone[0])}"


def test_losses_equal_those_worked_by_hand():
    x, lengths = padded(ragged(), extra=0), torch.tensor(LENGTHS)
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    for name, by_hand in {
        "squared": lambda e: (e**2).sum(),
        "absolute": lambda e: e.abs().sum(),
        "huber": lambda e: torch.where(e.abs() < 1, 0.5 * e**2, e.abs() - 0.5).sum(),
    }.items():
        model = make(objective=name)
        output = model.loss(Batch(x=x, y=y, lengths=lengths))
        expected = by_hand(model(x, lengths=lengths)[0] - y)
        assert gap(output.total, expected) < 1e-12, (name, output.total, expected)
        assert int(output.count) == 8
    weights = [0.5, 2.0, 1.0]
    model = make(C=3, objective="cross_entropy", per_step=True, class_weights=weights)
    labels = torch.randint(0, 3, (4, 7), generator=generator)
    output = model.loss(Batch(x=x, y=labels, lengths=lengths))
    log_p = F.log_softmax(model(x, lengths=lengths)[0], dim=-1)
    expected = -sum(
        weights[labels[i, t]] * log_p[i, t, labels[i, t]] for i in range(4) for t in range(LENGTHS[i])
    )
    assert gap(output.total, expected) < 1e-10, (output.total, expected)
    assert int(output.count) == sum(LENGTHS)


@pytest.mark.parametrize("per_step", [False, True])
def test_a_stream_and_two_chunks_equal_the_whole(per_step):
    model = make(per_step=per_step, num_layers=2, cell="lstm")
    x = torch.randn(3, 9, 3, dtype=torch.float64)
    whole, _ = model(x)
    state, ticks = model.initial_state(3), []
    for t in range(9):
        answer, state = model.step(x[:, t], state)
        ticks.append(answer)
    streamed = torch.stack(ticks, dim=1) if per_step else ticks[-1]
    first, state = model(x[:, :4])
    second, _ = model(x[:, 4:], state)
    chunked = torch.cat([first, second], dim=1) if per_step else second
    assert gap(streamed, whole) < 1e-12, gap(streamed, whole)
    assert gap(chunked, whole) < 1e-12, gap(chunked, whole)


def test_one_to_one_has_no_carried_state():
    model = make(per_step=True)
    x = torch.randn(6, 1, 3, dtype=torch.float64)
    single, _ = make().train(False)(x)
    assert model(x)[0].shape == (6, 1, 2)
    assert single.shape == (6, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_receives_a_gradient(shape):
    model = make(num_layers=2, bidirectional=True, learn_initial_state=True, **shape)
    answers, _ = model(padded(ragged()), lengths=LENGTHS)
    (answers**2).sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead, f"no gradient reaches {dead}"


def test_dropout_masks_come_from_the_key():
    model = make(dropout_in=0.5, dropout_recurrent=0.5)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    said = []
    for key in [(0, 1), (0, 2), (0, 1)]:
        set_mask_key(model, *key)
        said.append(model(x)[0].detach())
    assert gap(said[0], said[2]) == 0
    assert gap(said[0], said[1]) > 1e-3
    model.eval()
    assert gap(model(x)[0], model(x)[0]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "gruu"}, r"cell='gruu'.*'rnn', 'lstm', 'gru'"),
        ({"cell": torch.nn.Linear}, "Cell class"),
        ({"objective": "mse"}, r"objective='mse'.*'squared'"),
        ({"pooling": "first"}, r"pooling='first'.*'last'"),
        ({"pooling": "mean", "per_step": True}, "one answer per step"),
        ({"class_weights": [1.0, 2.0]}, "cross_entropy"),
        ({"objective": "cross_entropy", "class_weights": [1.0]}, "1 class_weights for output_size=2"),
        ({"peephol": True}, "peephol"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_layers": 0, "cell": Leaky}, "num_layers=0"),
        ({"C": 0}, "output_size=0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_targets_and_steps_that_do_not_fit_are_refused():
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    with pytest.raises(InputError, match=r"y has shape \(4, 1\), expected \(4, 2\)"):
        make().loss(Batch(x=x, y=torch.zeros(4, 1, dtype=torch.float64)))
    with pytest.raises(InputError, match="pooling='mean' needs the whole sequence"):
        make(pooling="mean").step(x[:, 0])
    with pytest.raises(InputError, match="bidirectional"):
        make(bidirectional=True).step(x[:, 0])
