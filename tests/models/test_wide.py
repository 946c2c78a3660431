"""The linear model over n-grams against a dense solution; scales of several models; limits."""

import pytest
import torch
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.models.blending import fit_scales
from ostinato.models.wide import PENALTY, WideLinear
from ostinato.types import Batch

N, V, K = 40, 17, 3


def sparse(matrix):
    rows = [torch.nonzero(row).flatten() for row in matrix]
    return Batch(
        ngrams=torch.cat(rows),
        ngram_weights=torch.cat([row[ids] for row, ids in zip(matrix, rows, strict=True)]),
        ngram_counts=torch.tensor([len(ids) for ids in rows]),
    )


def problem(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, V, generator=generator) * (torch.rand(n, V, generator=generator) < 0.3)
    matrix[3] = 0.0
    truth = torch.randn(V, K, generator=torch.Generator().manual_seed(9))
    y = (matrix @ truth + torch.randn(n, K, generator=generator)).argmax(1)
    return matrix, y


def dense_objective(model, matrix, y, penalty, factors=None):
    weight, bias = model.weight.detach().double(), model.bias.detach().double()
    logits = matrix.double() @ weight + bias
    factors = None if factors is None else factors.double()
    return F.cross_entropy(logits, y, factors, reduction="sum") + 0.5 * penalty * (weight**2).sum()


@pytest.mark.parametrize("factors", [None, torch.tensor([1.0, 3.0, 0.5])], ids=["even", "weighted"])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_the_solution_has_no_gradient_left(penalty, factors):
    """The problem is strictly convex in the weights, so that a vanishing gradient is the solution."""
    matrix, y = problem()
    model = WideLinear(V, K)
    found = model.fit(sparse(matrix), y, penalties=(penalty,), class_weights=factors)
    assert found.has_converged
    assert found.penalty == penalty
    model.weight.requires_grad_()
    dense = model.weight.double()
    logits = matrix.double() @ dense + model.bias.double()
    kinds = None if factors is None else factors.double()
    value = F.cross_entropy(logits, y, kinds, reduction="sum") + 0.5 * penalty * (dense**2).sum()
    value.backward()
    assert model.weight.grad.abs().max() < 0.02, model.weight.grad.abs().max()
    start = dense_objective(WideLinear(V, K), matrix, y, penalty, factors)
    assert value < 0.8 * start


def test_logits_equal_the_dense_product_and_rows_one_by_one():
    matrix, y = problem()
    model = WideLinear(V, K)
    model.fit(sparse(matrix), y, penalties=(0.5,))
    said = model(sparse(matrix))
    torch.testing.assert_close(said, matrix @ model.weight + model.bias, atol=1e-5, rtol=1e-5)
    for row in (0, 3, 7):
        alone = model(sparse(matrix[row : row + 1]))
        torch.testing.assert_close(alone[0], said[row], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(said[3], model.bias.data)
    nothing = model(sparse(torch.zeros(2, V)))
    torch.testing.assert_close(nothing, model.bias.data.expand(2, K))


def test_the_penalty_that_does_best_on_the_checks_is_taken():
    matrix, y = problem()
    checks, checks_y = problem(30, seed=1)
    path = (30.0, 3.0, 0.3, 0.0003)
    model = WideLinear(V, K)
    found = model.fit(sparse(matrix), y, checks=sparse(checks), checks_y=checks_y, penalties=path)
    losses = {}
    for penalty in path:
        alone = WideLinear(V, K)
        alone.fit(sparse(matrix), y, penalties=(penalty,))
        losses[penalty] = float(F.cross_entropy(alone(sparse(checks)), checks_y))
    assert found.penalty == min(losses, key=losses.get), (found, losses)
    assert abs(found.loss - losses[found.penalty]) < 0.02
    with pytest.raises(InputError, match="several penalties need checks"):
        model.fit(sparse(matrix), y, penalties=path)
    assert model.fit(sparse(matrix), y).penalty == PENALTY
    nothing = Batch({n: v[:0] for n, v in sparse(checks).items()})
    assert model.fit(sparse(matrix), y, checks=nothing, checks_y=checks_y[:0]).penalty == PENALTY


def test_time_can_run_out():
    matrix, y = problem()
    found = WideLinear(V, K).fit(sparse(matrix), y, penalties=(1e-3,), max_time_s=0.0)
    assert not found.has_converged
    assert found.penalty == 1e-3


def test_the_training_loop_leaves_it_alone():
    assert not any(p.requires_grad for p in WideLinear(V, K).parameters())
    with pytest.raises(InputError, match="features=0"):
        WideLinear(0, K)


def test_scales_prefer_the_model_that_knows():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (4000,), generator=generator)
    truth = F.one_hot(y, K) * 2.0
    good = truth + torch.randn(4000, K, generator=generator)
    noise = torch.randn(4000, K, generator=generator)
    scales = fit_scales([good, noise], y)
    # The noise has variance 1 and the signal is 2: the true posterior is softmax(2·z).
    assert 1.6 < scales[0] < 2.6, scales
    assert scales[1] < 0.2, scales
    twin = fit_scales([good, truth + torch.randn(4000, K, generator=generator)], y)
    assert 0.6 < twin[0] / twin[1] < 1.6, twin


def test_scales_are_a_minimum():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, K, (50,), generator=generator)
    parts = [F.one_hot(y, K) + torch.randn(50, K, generator=generator) for _ in range(3)]
    scales = fit_scales(parts, y, prior=0.5)

    def value(s):
        logits = sum(a * part for a, part in zip(s, parts, strict=True))
        return F.cross_entropy(logits, y, reduction="sum") + 0.5 * ((s - 1 / 3) ** 2).sum()

    best = value(scales)
    for p in range(3):
        for factor in (0.97, 1.03):
            moved = scales.clone()
            moved[p] *= factor
            assert value(moved) > best


def test_few_examples_do_not_make_certain():
    y = torch.tensor([0, 1])
    scales = fit_scales([F.one_hot(y, 2).float() * 5], y)
    assert 0.5 < scales[0] < 3.0
    assert fit_scales([torch.zeros(0, 2), torch.zeros(0, 2)], torch.zeros(0, dtype=torch.int64)).tolist() == [
        0.5,
        0.5,
    ]
    with pytest.raises(InputError, match=r"expected logits \(N, K\) with N=2"):
        fit_scales([torch.zeros(3, 2)], y)
    assert torch.isfinite(fit_scales([torch.full((2, 2), 1e4), torch.zeros(2, 2)], y)).all()


def test_a_model_that_misleads_gets_nothing():
    y = torch.randint(0, K, (300,), generator=torch.Generator().manual_seed(2))
    good = F.one_hot(y, K) * 2.0 + torch.randn(300, K, generator=torch.Generator().manual_seed(3))
    scales = fit_scales([-good, good], y)
    assert scales[0] == 0.0
    assert scales[1] > 1.0


def test_dense_columns_are_columns_like_others():
    """The same problem with its last columns given densely has the same solution."""
    matrix, y = problem()
    checks, checks_y = problem(25, seed=4)
    model, whole = WideLinear(V - 5, K, 5), WideLinear(V, K)

    def split(rows):
        return Batch({**sparse(rows[:, :-5]), "dense": rows[:, -5:]})

    found = model.fit(split(matrix), y, checks=split(checks), checks_y=checks_y)
    expected = whole.fit(sparse(matrix), y, checks=sparse(checks), checks_y=checks_y)
    assert found.penalty == expected.penalty
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    both = torch.cat([model.weight, model.dense])
    torch.testing.assert_close(both, whole.weight, rtol=0.02, atol=0.02)
    torch.testing.assert_close(model(split(checks)), whole(sparse(checks)), rtol=0.02, atol=0.02)
