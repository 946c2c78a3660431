"""Attention pooling against its equations written out; padding, empty rows, heads; the kinds of pooling."""

import pytest
import torch

from ostinato.errors import InputError, SizeError
from ostinato.layers.attention import AttentionPooling
from ostinato.layers.gated import GRU
from ostinato.layers.pooling import KINDS, SequencePooling

LENGTHS = [6, 1, 0, 4]


def ragged(fill=0.0, extra=0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((len(LENGTHS), max(LENGTHS) + extra, 5), fill, dtype=torch.float64)
    for row, n in enumerate(LENGTHS):
        x[row, :n] = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return x


def make(**options):
    return AttentionPooling(5, **options).double()


def by_equations(layer, x, lengths):
    """Step by step and head by head, in plain Python."""
    vectors = torch.zeros(len(x), layer.heads, x.shape[2], dtype=x.dtype)
    weights = torch.zeros(len(x), layer.heads, x.shape[1], dtype=x.dtype)
    W, b = layer.project.weight.detach(), layer.project.bias.detach()
    for row, n in enumerate(lengths):
        for head in range(layer.heads if n else 0):
            scores = [float(torch.tanh(W @ x[row, t] + b) @ layer.context[head].detach()) for t in range(n)]
            shares = torch.tensor(scores, dtype=x.dtype).exp()
            shares /= shares.sum()
            weights[row, head, :n] = shares
            vectors[row, head] = sum(share * x[row, t] for t, share in enumerate(shares))
    return vectors.flatten(1), weights


@pytest.mark.parametrize("options", [{}, {"heads": 3}, {"attention_size": 2, "heads": 2}], ids=str)
def test_equals_its_equations(options):
    layer, x = make(**options), ragged()
    pooled, weights = layer.attend(x, lengths=LENGTHS)
    expected, shares = by_equations(layer, x, LENGTHS)
    torch.testing.assert_close(pooled, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(weights, shares, atol=1e-12, rtol=0)
    assert torch.equal(layer(x, lengths=LENGTHS), pooled)
    assert pooled.shape == (4, layer.output_size)


def test_padding_has_no_influence_whatever_stands_there():
    layer = make(heads=2)
    clean, spoilt = ragged(), ragged(fill=float("nan"))
    for x in (clean, spoilt):
        x.requires_grad_()
    results = [layer.attend(x, lengths=LENGTHS) for x in (clean, spoilt)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    for (pooled, _), x in zip(results, (clean, spoilt), strict=True):
        (pooled**2).sum().backward()
        assert torch.isfinite(x.grad).all()
    assert torch.equal(clean.grad, spoilt.grad)
    longer, weights = layer.attend(ragged(fill=7.0, extra=5), lengths=LENGTHS)
    torch.testing.assert_close(longer, results[0][0], atol=1e-12, rtol=0)
    assert not weights[:, :, 6:].any()


def test_weights_sum_to_one_and_are_zero_outside_the_mask():
    mask = torch.rand(4, 6) < 0.5
    mask[1] = False
    weights = make(heads=2).attend(ragged(), mask=mask)[1]
    assert not weights.masked_select(~mask.unsqueeze(1)).any()
    total = weights.sum(dim=2)
    torch.testing.assert_close(total, mask.any(dim=1, keepdim=True).double().expand(4, 2))


def test_rows_without_steps_give_zeros_and_finite_gradients():
    layer = make()
    x = ragged().requires_grad_()
    pooled = layer(x, lengths=[0, 0, 0, 0])
    assert not pooled.any()
    (pooled.sum() + layer(x, lengths=LENGTHS).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
    assert layer(x[:, :0]).shape == (4, 5)
    assert layer.attend(x[:, :0])[1].shape == (4, 1, 0)


def test_every_parameter_receives_a_gradient():
    layer = make(heads=2)
    (layer(ragged(), lengths=LENGTHS) ** 2).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("heads", [1, 2])
def test_each_kind_of_pooling_equals_its_rows_one_by_one(kind, heads):
    if heads == 2 and "attention" not in KINDS[kind]:
        with pytest.raises(InputError, match="heads=2 acts on attention"):
            SequencePooling(kind, 8, heads=heads)
        return
    layer = GRU(5, 4, bidirectional=True).double()
    pool = SequencePooling(kind, 8, heads=heads).double()
    x = ragged(fill=float("nan"))
    together, weights = pool.attend(layer(x, lengths=LENGTHS))
    assert together.shape == (4, pool.output_size)
    assert (weights is None) == ("attention" not in KINDS[kind])
    for row, n in enumerate(LENGTHS):
        alone = pool(layer(x[row : row + 1, :n]))
        torch.testing.assert_close(together[row], alone[0], atol=1e-12, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="heads=0"):
        make(heads=0)
    with pytest.raises(InputError, match=r"attention_size=-1"):
        make(attention_size=-1)
    with pytest.raises(SizeError, match="width 4, expected input_size=5"):
        make()(torch.zeros(2, 3, 4, dtype=torch.float64))
    with pytest.raises(SizeError, match=r"expected them within 0 … T=6"):
        make()(ragged(), lengths=[7, 1, 1, 1])
    with pytest.raises(InputError, match="pass one of them"):
        make()(ragged(), lengths=LENGTHS, mask=torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(InputError, match=r"pooling='first' is unknown; known: 'last'"):
        SequencePooling("first", 3)
