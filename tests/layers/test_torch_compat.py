"""Drop-in for `torch.nn`: names, initial values, arguments and results."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import ostinato as ot
from ostinato.errors import InputError, SizeError

B, T, D, H = 4, 6, 5, 7
KINDS = [
    ("RNN", {"nonlinearity": "relu"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
    ("GRU", {"bias": False}),
]


def _tensors(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _close(one, other):
    for actual, expected in zip(_tensors(one), _tensors(other), strict=True):
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-6, (actual - expected).abs().max().item()


@pytest.mark.parametrize(("name", "options"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_names_shapes_order_and_first_values_are_torchs(name, options, bidirectional):
    torch.manual_seed(4)
    theirs = getattr(nn, name)(D, H, 3, bidirectional=bidirectional, **options)
    torch.manual_seed(4)
    ours = getattr(ot, name)(D, H, 3, bidirectional=bidirectional, **options)
    for (one, value), (other, expected) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert one == other
        assert torch.equal(value, expected), f"{one} starts with other values"
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


# PyTorch says it once a process, of its own layer.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("name", "options"), KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_from_torch_takes_and_gives_what_torch_does(name, options, bidirectional, batch_first):
    theirs = getattr(nn, name)(D, H, 2, bidirectional=bidirectional, batch_first=batch_first, **options)
    ours = ot.from_torch(theirs)
    ours.flatten_parameters()
    x = torch.randn(B, T, D)
    batch = x if batch_first else x.transpose(0, 1)
    _close(ours(batch), theirs(batch))
    _, hx = theirs(batch)
    _close(ours(batch, hx), theirs(batch, hx))
    _close(ours(x[0]), theirs(x[0]))
    one = torch.utils._pytree.tree_map(lambda leaf: leaf[:, 0], hx)
    _close(ours(x[0], one), theirs(x[0], one))
    for is_sorted, lengths in ((True, [6, 4, 4, 1]), (False, [2, 6, 1, 5])):
        packed = pack_padded_sequence(batch, torch.tensor(lengths), batch_first, enforce_sorted=is_sorted)
        result, expected = ours(packed, hx), theirs(packed, hx)
        assert isinstance(result[0], PackedSequence)
        _close(result[0].data, expected[0].data)
        _close(result[1], expected[1])
        assert torch.equal(result[0].batch_sizes, expected[0].batch_sizes)


def test_from_torch_keeps_mode_dtype_and_dropout():
    theirs = nn.LSTM(D, H, 2, dropout=0.25, dtype=torch.float64).eval()
    ours = ot.from_torch(theirs)
    assert not ours.training
    assert ours.weight_ih_l0.dtype == torch.float64
    assert ours.weight_ih_l0 is not theirs.weight_ih_l0
    x = torch.randn(T, B, D, dtype=torch.float64)
    assert not torch.equal(ours.train()(x)[0], ours(x)[0]), "dropout draws anew for each call"
    own = ot.from_torch(nn.GRU(D, H, 2, dropout=0.25), torch_compatible=False)
    assert own(torch.randn(B, T, D)).y.shape == (B, T, H)
    assert own.options.dropout_between == 0.25
    with_peephole = ot.from_torch(nn.LSTM(D, H), torch_compatible=False, peephole=True)
    assert with_peephole.peephole_l0.shape == (3, H)


def test_other_modules_and_arguments_are_refused():
    with pytest.raises(InputError, match="cannot convert a Linear"):
        ot.from_torch(nn.Linear(2, 3))
    layer = ot.LSTM(D, H, torch_compatible=True)
    with pytest.raises(InputError, match="lengths"):
        layer(torch.randn(T, B, D), lengths=[1])
    with pytest.raises(SizeError, match="hx has 1 tensors"):
        layer(torch.randn(T, B, D), torch.zeros(1, B, H))
