"""The linear-chain CRF against all paths by hand: sums, best paths, derivatives, padding, limits."""

import itertools
import math

import pytest
import torch

from ostinato.errors import InputError, SizeError
from ostinato.layers import crf_sums
from ostinato.layers.crf import LinearChainCRF
from ostinato.layers.crf_constraints import Constraints, constraints_for
from ostinato.layers.crf_sums import log_partition_by_logsumexp

BIO = ("O", "B-x", "I-x", "B-y")
DTYPES = [torch.float32, torch.float64]


def make(K=3, constraints=None, dtype=torch.float64, spread=1.0, seed=0):
    torch.manual_seed(seed)
    crf = LinearChainCRF(K, constraints=constraints).to(dtype)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return crf


def scores_of_all_paths(crf, emissions):
    """Every allowed path of one row (T, K) and its score, by the definition."""
    T, K = emissions.shape
    found = {}
    for path in itertools.product(range(K), repeat=T):
        if crf.constraints is not None and crf.constraints.violations(path):
            continue
        total = sum(emissions[t, tag] for t, tag in enumerate(path))
        if path:
            total = total + crf.start[path[0]] + crf.end[path[-1]]
        total = total + sum(crf.transitions[a, b] for a, b in itertools.pairwise(path))
        found[path] = torch.as_tensor(total, dtype=emissions.dtype)
    return found


def gap(a, b):
    a, b = (torch.as_tensor(value).detach().double() for value in (a, b))
    return ((a - b).abs().max() / b.abs().max().clamp(min=1.0)).item() if a.numel() else 0.0


CASES = [
    (3, None),
    (4, None),
    (1, None),
    (4, constraints_for(BIO, "bio")),
    (3, constraints_for(("O", "I-x", "B-x"), "iob1")),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_all_sums_and_best_paths_equal_those_over_every_path(case, T, dtype, tolerance):
    K, constraints = CASES[case]
    crf = make(K, constraints, dtype)
    emissions = torch.randn(2, T, K, dtype=dtype) * 2
    partition, probabilities = crf.log_partition(emissions), crf.marginals(emissions)
    tags, best = crf.decode(emissions)
    n = 6
    some, some_scores = crf.n_best(emissions, n)
    for row in range(2):
        paths = scores_of_all_paths(crf, emissions[row])
        values = torch.stack(list(paths.values()))
        total = values.logsumexp(0)
        assert gap(partition[row], total) < tolerance[dtype]
        ranked = sorted(paths, key=lambda path: -paths[path].item())
        assert tuple(tags[row].tolist()) == ranked[0]
        assert gap(best[row], paths[ranked[0]]) < tolerance[dtype]
        kept = min(n, len(ranked))
        their_scores = torch.stack([paths[path] for path in ranked[:kept]])
        assert [tuple(path) for path in some[row, :kept].tolist()] == ranked[:kept]
        assert gap(some_scores[row, :kept], their_scores) < tolerance[dtype]
        assert bool((some_scores[row, kept:] == -math.inf).all())
        expected = torch.zeros(T, K, dtype=dtype)
        for path, value in paths.items():
            for t, tag in enumerate(path):
                expected[t, tag] += (value - total).exp()
        assert gap(probabilities[row], expected) < tolerance[dtype]
        chosen = torch.tensor([ranked[-1]])
        likelihood = crf.log_likelihood(emissions[row : row + 1], chosen)
        assert gap(likelihood, paths[ranked[-1]] - total) < tolerance[dtype]


@pytest.mark.parametrize("constraints", [None, constraints_for(BIO, "bio")])
def test_a_ragged_batch_equals_its_rows_one_by_one(constraints):
    """Values and gradients; NaN in the padding, and any tags there, change nothing; a row may be empty."""
    crf = make(4, constraints)
    lengths = [4, 0, 1, 7, 2]
    rows = [torch.randn(n, 4, dtype=torch.float64) for n in lengths]
    gold = [crf.decode(torch.randn(1, n, 4, dtype=torch.float64))[0][0] for n in lengths]
    emissions = torch.full((5, 9, 4), math.nan, dtype=torch.float64)
    tags = torch.full((5, 9), -7)
    for row, n in enumerate(lengths):
        emissions[row, :n], tags[row, :n] = rows[row], gold[row]
    emissions.requires_grad_()
    together = crf.log_likelihood(emissions, tags, lengths=lengths)
    together.sum().backward()
    gradients = [p.grad.clone() for p in crf.parameters()]
    crf.zero_grad()
    singles = [row[None].clone().requires_grad_() for row in rows]
    alone = [crf.log_likelihood(x, y[None]) for x, y in zip(singles, gold, strict=True)]
    torch.cat(alone).sum().backward()
    assert gap(together, torch.cat(alone)) < 1e-12
    assert together[1] == 0
    for mine, parameter in zip(gradients, crf.parameters(), strict=True):
        assert gap(mine, parameter.grad) < 1e-12
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    assert torch.equal(crf.log_likelihood(emissions, tags, mask=mask), together)
    path, score = crf.decode(emissions, lengths=lengths)
    several, several_scores = crf.n_best(emissions, 3, lengths=lengths)
    probabilities = crf.marginals(emissions, lengths=lengths)
    for row, n in enumerate(lengths):
        assert n == 0 or gap(emissions.grad[row, :n], singles[row].grad[0]) < 1e-12
        for values in (emissions.grad[row, n:], path[row, n:], probabilities[row, n:], several[row, :, n:]):
            assert not values.any()
        own_path, own_score = crf.decode(singles[row])
        assert torch.equal(path[row, :n], own_path[0])
        assert gap(score[row], own_score[0]) < 1e-12
        own_paths, own_scores = crf.n_best(singles[row], 3)
        real = own_scores[0] > -math.inf
        assert torch.equal(several[row, real, :n], own_paths[0, real])
        assert torch.equal(several_scores[row] > -math.inf, real)
        assert gap(several_scores[row, real], own_scores[0, real]) < 1e-12
        assert gap(probabilities[row, :n], crf.marginals(singles[row])[0]) < 1e-12


@pytest.mark.parametrize("is_constrained", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 1, 0]])
def test_derivatives_of_first_and_second_order(lengths, is_constrained):
    constraints = constraints_for(("O", "B-x", "I-x"), "bio") if is_constrained else None
    crf = make(3, constraints)
    tags = torch.tensor([[1, 2, 0, 1], [0, 1, 2, 2], [1, 0, 0, 0]])
    emissions = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in crf.named_parameters()}

    def likelihood(x, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(crf, named, (x, tags), {"lengths": lengths})

    inputs = (emissions, *parameters.values())
    assert torch.autograd.gradcheck(likelihood, inputs)
    assert torch.autograd.gradgradcheck(likelihood, inputs)


def test_gradients_of_one_path_through_the_code_equal_those_of_the_other(monkeypatch):
    """Long rows, so that messages are rescaled several times, with constraints and lengths."""
    crf = make(4, constraints_for(BIO, "bio"), spread=2.0)
    emissions = (torch.randn(3, 300, 4, dtype=torch.float64) * 5).requires_grad_()
    lengths = torch.tensor([300, 1, 144])
    inputs = (emissions, *crf.parameters())
    allowed = crf._allowed()
    fast = crf_sums.log_partition(*inputs, lengths, allowed)
    slow = log_partition_by_logsumexp(*inputs, lengths, allowed)
    assert gap(fast, slow) < 1e-12
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    quick = torch.autograd.grad(fast @ weights, inputs)
    for mine, other in zip(quick, torch.autograd.grad(slow @ weights, inputs), strict=True):
        assert gap(mine, other) < 1e-10
    whole = crf.marginals(emissions, lengths=lengths)
    monkeypatch.setattr(crf_sums, "_LOG_BUDGET", 0.0)
    assert gap(crf.marginals(emissions, lengths=lengths), whole) < 1e-10
    assert gap(crf.log_partition(emissions, lengths=lengths), slow) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_scores_of_any_size_give_finite_likelihoods_and_gradients(size, dtype):
    crf = make(4, constraints_for(BIO, "bio"), dtype, spread=10.0)
    emissions = (torch.randn(2, 6, 4, dtype=dtype) * size).requires_grad_()
    tags, _ = crf.decode(emissions)
    likelihood = crf.log_likelihood(emissions, tags)
    likelihood.sum().backward()
    assert bool(likelihood.isfinite().all())
    assert likelihood.max() <= 1e-6 * size
    assert all(bool(value.grad.isfinite().all()) for value in (emissions, *crf.parameters()))
    probabilities = crf.marginals(emissions)
    assert gap(probabilities.sum(2), torch.ones(2, 6)) < 1e-5


def test_a_long_row_loses_nothing_in_float32():
    """log P of one path over 4,000 steps: the sums are float64 inside."""
    crf = make(3, dtype=torch.float32)
    emissions = torch.randn(1, 4_000, 3)
    tags = torch.randint(3, (1, 4_000))
    exact = crf.double().log_likelihood(emissions.double(), tags)
    assert gap(crf.float().log_likelihood(emissions, tags), exact) < 1e-6
    assert torch.equal(crf.decode(emissions)[0], crf.double().decode(emissions.double())[0])


def test_tags_that_do_not_mix_take_the_safe_way():
    """Left to right only: what is small now may be all that counts in the end."""
    follows = ((True, True, False), (False, True, True), (False, False, True))
    crf = make(3, Constraints(follows, (True, False, False), (False, False, True)))
    emissions = torch.randn(2, 80, 3, dtype=torch.float64) * 3
    emissions[:, :, 0] += 40
    expected = log_partition_by_logsumexp(emissions, *crf.parameters(), None, crf._allowed())
    assert gap(crf.log_partition(emissions), expected) < 1e-12
    assert crf.decode(emissions)[0][:, -1].tolist() == [2, 2]


def test_a_row_without_an_allowed_path_says_so_and_still_gets_tags():
    tags = ("B-x", "I-x", "E-x")
    crf = make(3, constraints_for(tags, "bioes"))
    emissions = torch.randn(2, 1, 3, dtype=torch.float64)
    assert crf.log_partition(emissions).tolist() == [-math.inf] * 2
    assert not crf.marginals(emissions).any()
    path, score = crf.decode(emissions)
    assert path.shape == (2, 1)
    for row in range(2):
        tag = path[row, 0]
        assert gap(score[row], emissions[row, 0, tag] + crf.start[tag] + crf.end[tag]) < 1e-6
    assert crf.n_best(emissions, 2)[1].tolist() == [[-math.inf] * 2] * 2
    assert bool(crf.log_partition(torch.randn(2, 2, 3, dtype=torch.float64)).isfinite().all())


@pytest.mark.parametrize("size", [1e7, 1e10, 1e20, 1e35])
def test_constraints_hold_and_scores_are_right_however_large_the_emissions(size):
    """A path that breaks a constraint would score more than any allowed one."""
    constraints = constraints_for(("O", "B-x", "I-x"), "bio")
    crf = make(3, constraints)
    emissions = torch.zeros(2, 60, 3, dtype=torch.float64)
    emissions[:, 0, 2], emissions[:, 1, 1] = size, size / 2
    emissions[1] -= size
    path, score = crf.decode(emissions, lengths=[4, 60])
    assert constraints.violations(path[0, :4].tolist()) == constraints.violations(path[1].tolist()) == 0
    assert gap(score / size, [0.5, -59.5]) < 1e-6
    assert gap(crf.n_best(emissions, 2, lengths=[4, 60])[1] / size, [[0.5, 0.5], [-59.5, -59.5]]) < 1e-6
    assert gap(crf.marginals(emissions).sum(2), torch.ones(2, 60)) < 1e-6
    free = make(3)
    assert bool(free.n_best(emissions - size, 2)[1].isfinite().all())


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_empty_batches_and_rows(shape):
    crf = make(3)
    emissions = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    tags = torch.zeros(shape[:2], dtype=torch.int64)
    likelihood = crf.log_likelihood(emissions, tags)
    likelihood.sum().backward()
    assert likelihood.tolist() == [0.0] * shape[0]
    assert crf.decode(emissions)[0].shape == shape[:2]
    assert crf.marginals(emissions).shape == shape
    assert crf.n_best(emissions, 2)[0].shape == (shape[0], 2, shape[1])


def test_every_parameter_learns_and_only_what_is_allowed():
    constraints = constraints_for(BIO, "bio")
    crf = make(4, constraints)
    emissions = torch.randn(3, 5, 4, dtype=torch.float64)
    crf.log_likelihood(emissions, crf.decode(emissions.flip(0))[0]).sum().backward()
    assert torch.equal(crf.transitions.grad != 0, torch.tensor(constraints.transitions))
    assert torch.equal(crf.start.grad != 0, torch.tensor(constraints.start))
    assert bool((crf.end.grad != 0).all())


def test_what_is_stored_is_the_parameters_alone():
    crf = make(4, constraints_for(BIO, "bio"))
    assert list(crf.state_dict()) == ["transitions", "start", "end"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, x, y: c.log_likelihood(x[..., :2], y), "width 2, expected num_tags=4"),
        (lambda c, x, y: c.log_likelihood(x.float(), y), "torch.float32"),
        (lambda c, x, y: c.log_likelihood(x, y[:, :2]), r"expected \(B, T\) = \(2, 3\)"),
        (lambda c, x, y: c.log_likelihood(x, y.double()), "expected integers"),
        (lambda c, x, y: c.log_likelihood(x, y + 4), r"tags are 4 … 4, expected 0 … num_tags - 1 = 3"),
        (lambda c, x, y: c.log_likelihood(x, y, lengths=[1, 4]), r"within 0 … T=3"),
        (lambda c, x, y: c.decode(x, mask=torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()), "gap in row 1"),
        (lambda c, x, y: c.log_likelihood(x, y + 2), "row 0 break the constraints"),
        (lambda c, x, y: c.log_likelihood(x, torch.tensor([[0, 1, 1], [1, 0, 2]])), "tag 2 at step 2"),
        (lambda c, x, y: c.n_best(x, 0), "n=0, expected an integer of at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    crf = make(4, constraints_for(BIO, "bio"))
    emissions, tags = torch.zeros(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises((InputError, SizeError), match=message):
        call(crf, emissions, tags)


def test_constraints_of_another_size_are_refused():
    with pytest.raises(InputError, match="constraints are of 4 tags, expected num_tags=3"):
        LinearChainCRF(3, constraints=constraints_for(BIO, "bio"))
