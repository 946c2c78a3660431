import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ostinato.errors import InputError, SizeError
from ostinato.layers.softmax import ClusterTables, SoftmaxHead, choose_cutoffs, linear_cross_entropy


def given(N=70, V=9, E=6, dtype=torch.float64):
    h, weight = torch.randn(N, E, dtype=dtype), torch.randn(V, E, dtype=dtype)
    bias, targets = torch.randn(V, dtype=dtype), torch.randint(V, (N,))
    return [h.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()], targets


@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_the_cross_entropy_of_linear_with_its_gradients(has_bias):
    leaves, y = given(N=150)
    h, weight, bias = leaves
    bias = bias if has_bias else None
    used = leaves if has_bias else leaves[:2]
    expected = F.cross_entropy(F.linear(h, weight, bias), y, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.3, used)
    found = linear_cross_entropy(h, weight, bias, y)
    torch.testing.assert_close(found, expected)
    for mine, other in zip(torch.autograd.grad(found * 0.3, used), wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_numbers_far_apart_overflow_nothing():
    h = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    total = linear_cross_entropy(h, weight, None, torch.tensor([0, 0]))
    assert total.item() == pytest.approx(2000.0)
    total.backward()
    assert torch.isfinite(h.grad).all()


def test_only_the_gradients_that_are_asked_for_are_made():
    (h, weight, bias), y = given()
    linear_cross_entropy(h.detach(), weight, bias.detach(), y).backward()
    assert weight.grad is not None
    assert h.grad is None
    assert bias.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(h, weight, bias, y).requires_grad


def test_under_autocast_products_are_in_its_dtype_and_the_sum_is_near():
    (h, weight, bias), y = given(N=300, V=40, E=16, dtype=torch.float32)
    exact = linear_cross_entropy(h, weight, bias, y)
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(h, weight, bias, y)
    assert rough.dtype == torch.float32
    assert rough.item() != exact.item()
    assert rough.item() == pytest.approx(exact.item(), rel=2e-2)
    (mine,), (other,) = torch.autograd.grad(rough, [weight]), torch.autograd.grad(exact, [weight])
    assert mine.dtype == torch.float32
    assert (mine - other).abs().max() < 0.03 * other.abs().max()


def test_shapes_that_do_not_fit_are_refused():
    (h, weight, bias), y = given()
    with pytest.raises(SizeError, match=r"expected \(N, E\), \(V, E\) and \(N,\)"):
        linear_cross_entropy(h, weight, bias, y[:-1])


def adaptive(V=23, E=16, cutoffs=(5, 11)):
    """Our head, and torch's adaptive softmax with the same weights."""
    tables = ClusterTables(V, E, cutoffs)
    head = SoftmaxHead(tables)
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(E, V, list(cutoffs), div_value=4.0, head_bias=True)
    with torch.no_grad():
        for bias in head.biases:
            bias.uniform_(-1, 1)
        theirs.head.weight.copy_(torch.cat([tables.weights[0], head.clusters]))
        theirs.head.bias.copy_(head.biases[0])
    return tables, head, theirs


def test_the_adaptive_softmax_is_that_of_torch_where_both_can_be_said():
    # torch's tails have no bias, and its projections may be narrower than ours of 8 at the least.
    tables, head, theirs = adaptive(E=64)
    with torch.no_grad():
        for k, (projection, output) in enumerate(theirs.tail, 1):
            head.biases[k].zero_()
            tables.projections[k - 1] = torch.nn.Parameter(projection.weight.t().clone())
            tables.weights[k] = torch.nn.Parameter(output.weight.clone())
    h, y = torch.randn(40, 64), torch.randint(23, (40,))
    torch.testing.assert_close(head.log_probs(h, tables), theirs.log_prob(h), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.loss(h, y, tables) / 40, theirs(h, y).loss)


def test_probabilities_of_all_clusters_sum_to_one_and_are_those_of_the_loss():
    tables, head, _ = adaptive()
    h, y = torch.randn(50, 16), torch.randint(23, (50,))
    log_probs = head.log_probs(h, tables)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(50))
    expected = -log_probs.gather(1, y.unsqueeze(1)).sum()
    torch.testing.assert_close(head.loss(h, y, tables), expected)
    for parameter in (*tables.parameters(), *head.parameters()):
        assert parameter.grad is None
    head.loss(h, y, tables).backward()
    for name, parameter in [*tables.named_parameters(), *head.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


def test_one_cluster_is_a_plain_table_and_a_plain_softmax():
    tables = ClusterTables(7, 5)
    head = SoftmaxHead(tables)
    ids = torch.randint(7, (3, 4))
    assert torch.equal(tables(ids), F.embedding(ids, tables.weights[0]))
    h, y = torch.randn(12, 5), ids.flatten()
    expected = F.cross_entropy(h @ tables.weights[0].t() + head.biases[0], y, reduction="sum")
    torch.testing.assert_close(head.loss(h, y, tables), expected)


def test_embeddings_of_clusters_are_their_projected_vectors():
    tables = ClusterTables(23, 16, (5, 11))
    ids = torch.tensor([[0, 5, 22], [4, 10, 11]])
    found = tables(ids)
    assert found.shape == (2, 3, 16)
    torch.testing.assert_close(found[1, 0], tables.weights[0][4])
    torch.testing.assert_close(found[0, 1], tables.projections[0] @ tables.weights[1][0])
    torch.testing.assert_close(found[0, 2], tables.projections[1] @ tables.weights[2][11])


@pytest.mark.parametrize("cutoffs", [(5, 5), (0, 3), (3, 23), (7, 2)])
def test_cutoffs_must_increase_inside_the_vocabulary(cutoffs):
    with pytest.raises(InputError, match="increasing numbers between 0 and V=23"):
        ClusterTables(23, 8, cutoffs)


def test_cutoffs_are_chosen_inside_any_vocabulary():
    assert choose_cutoffs(60_000) == (3000, 20_000)
    assert choose_cutoffs(2) == ()
    assert all(0 < cut < V for V in range(1, 50) for cut in choose_cutoffs(V))


def test_blocks_of_rows_change_nothing():
    (h, weight, bias), y = given(N=500, V=20_000, E=3, dtype=torch.float32)
    expected = F.cross_entropy(F.linear(h, weight, bias), y, reduction="sum")
    found = linear_cross_entropy(h, weight, bias, y)
    np.testing.assert_allclose(found.item(), expected.item(), rtol=1e-6)
    for mine, other in zip(
        torch.autograd.grad(found, [h, weight, bias]),
        torch.autograd.grad(expected, [h, weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=1e-4)
