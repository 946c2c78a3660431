"""Attention over a memory against its equations written out; masks, coverage, the local window."""

import math

import pytest
import torch

from ostinato.errors import InputError, SizeError
from ostinato.layers.attention_over import KINDS, AttentionOver, coverage_loss

LENGTHS = [6, 1, 0, 4]
B, T, S, Q, E = 4, 3, 7, 5, 4


def make(kind, **options):
    return AttentionOver(kind, Q, Q if kind == "dot" else E, **options).double()


def given(kind, fill=0.0, steps=S):
    generator = torch.Generator().manual_seed(5)
    width = Q if kind == "dot" else E
    values = torch.full((B, steps, width), fill, dtype=torch.float64)
    for row, n in enumerate(LENGTHS):
        values[row, :n] = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return torch.randn(B, T, Q, generator=generator, dtype=torch.float64), values


def score(layer, q, m, covered):
    if layer.kind == "dot":
        return float(q @ m)
    if layer.kind in ("general", "local"):
        return float(q @ (layer.of_memory.weight @ m))
    inner = layer.of_query.weight @ q + layer.of_memory.weight @ m + layer.of_memory.bias
    if layer.of_coverage is not None:
        inner = inner + layer.of_coverage * covered
    return float(torch.tanh(inner) @ layer.v)


def by_equations(layer, query, values, real, covered=None):
    """One query and one step after the other; `real` are the steps of each row that can be read."""
    weights = torch.zeros(B, T, values.shape[1], dtype=torch.float64)
    for row, steps in enumerate(real):
        for t in range(T):
            q, near = query[row, t], list(enumerate(steps))
            if layer.kind == "local" and steps:
                hidden = torch.tanh(layer.place[0].weight @ q)
                centre = len(steps) / (1 + math.exp(-float(layer.place[2].weight @ hidden)))
                near = [(i, s) for i, s in near if abs(i - centre) <= layer.window]
            scores = [
                score(layer, q, values[row, s], 0 if covered is None else covered[row, t, s]) for _, s in near
            ]
            total = sum(map(math.exp, scores))
            for (i, s), value in zip(near, scores, strict=True):
                weights[row, t, s] = math.exp(value) / total
                if layer.kind == "local":
                    weights[row, t, s] *= math.exp(-((i - centre) ** 2) / (2 * (layer.window / 2) ** 2))
    return torch.einsum("bts,bse->bte", weights, values), weights


CASES = [
    *((kind, {}) for kind in KINDS),
    ("local", {"window": 1}),
    ("local", {"window": 3}),
    ("additive", {"attention_size": 3}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_equals_its_equations(kind, options):
    layer, (query, values) = make(kind, **options), given(kind)
    with torch.no_grad():
        contexts, weights = layer(query, layer.remember(values, lengths=LENGTHS))
        expected, shares = by_equations(layer, query, values, [range(n) for n in LENGTHS])
    torch.testing.assert_close(weights, shares, atol=1e-12, rtol=0)
    torch.testing.assert_close(contexts, expected, atol=1e-12, rtol=0)
    assert contexts.shape == (B, T, layer.memory_size)


@pytest.mark.parametrize("kind", KINDS)
def test_real_steps_may_stand_anywhere(kind):
    layer, (query, values) = make(kind), given(kind)
    values = torch.randn_like(values)
    mask = torch.rand(B, S) < 0.6
    real = [row.nonzero().flatten().tolist() for row in mask]
    with torch.no_grad():
        contexts, weights = layer(query, layer.remember(values, mask=mask))
        expected, shares = by_equations(layer, query, values, real)
    torch.testing.assert_close(weights, shares, atol=1e-12, rtol=0)
    torch.testing.assert_close(contexts, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_influence_whatever_stands_there(kind):
    layer = make(kind)
    results = []
    for fill, steps in ((0.0, S), (float("nan"), S + 2)):
        query, values = given(kind, fill, steps)
        values.requires_grad_()
        contexts, weights = layer(query, layer.remember(values, lengths=LENGTHS))
        contexts.square().sum().backward()
        gradients = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        assert not weights[:, :, max(LENGTHS) :].any()
        results.append([contexts, weights[:, :, : max(LENGTHS)], values.grad[:, : max(LENGTHS)], *gradients])
        for row, n in enumerate(LENGTHS):
            assert not weights[row, :, n:].any()
            assert not values.grad[row, n:].any()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_sum_to_one_and_an_empty_row_reads_zeros(kind):
    layer, (query, values) = make(kind), given(kind)
    contexts, weights = layer(query, layer.remember(values, lengths=LENGTHS))
    sums = weights.sum(2)
    assert not weights[2].any()
    assert not contexts[2].any()
    if kind == "local":
        assert bool((sums <= 1 + 1e-12).all())
        assert bool((sums[[0, 1, 3]] > 0).all())
    else:
        torch.testing.assert_close(sums[[0, 1, 3]], torch.ones(3, T, dtype=torch.float64))
    empty, none = layer(query, layer.remember(values[:, :0]))
    assert not empty.any()
    assert none.shape == (B, T, 0)


def test_local_attention_reads_nothing_beyond_its_window():
    layer = AttentionOver("local", Q, E, window=2).double()
    query = torch.randn(3, 4, Q, dtype=torch.float64)
    values = torch.randn(3, 30, E, dtype=torch.float64)
    with torch.no_grad():
        _, weights = layer(query, layer.remember(values))
    read = (weights > 0).sum(2)
    assert int(read.max()) <= 5
    assert int(read.min()) >= 2
    # About a place that lies within the row, whatever the query.
    centre = 30 * torch.sigmoid(layer.place(query).detach()).squeeze(2)
    reach = (torch.arange(30) - centre.unsqueeze(2)).abs()[weights > 0]
    assert float(reach.max()) <= 2


def test_coverage_enters_the_score():
    layer, (query, values) = make("additive", coverage=True), given("additive")
    covered = torch.rand(B, T, S, dtype=torch.float64)
    memory = layer.remember(values, lengths=LENGTHS)
    with torch.no_grad():
        contexts, weights = layer(query, memory, covered)
        expected, shares = by_equations(layer, query, values, [range(n) for n in LENGTHS], covered)
        assert not torch.equal(layer(query, memory, torch.zeros_like(covered))[1], weights)
    torch.testing.assert_close(weights, shares, atol=1e-12, rtol=0)
    torch.testing.assert_close(contexts, expected, atol=1e-12, rtol=0)


def test_coverage_loss_counts_what_is_read_again():
    weights = torch.rand(2, 4, 5, dtype=torch.float64).softmax(2)
    before = torch.rand(2, 5, dtype=torch.float64)
    for start in (None, before):
        covered = torch.zeros(2, 5, dtype=torch.float64) if start is None else start.clone()
        expected = torch.zeros(2, 4, dtype=torch.float64)
        for t in range(4):
            expected[:, t] = torch.minimum(weights[:, t], covered).sum(1)
            covered = covered + weights[:, t]
        torch.testing.assert_close(coverage_loss(weights, start), expected)
    once = torch.eye(4, dtype=torch.float64).unsqueeze(0)
    assert not coverage_loss(once).any()
    torch.testing.assert_close(coverage_loss(once[:, [0, 0, 1, 0]])[0], torch.tensor([0.0, 1, 0, 1]).double())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    layer, (query, values) = make(kind, coverage=kind == "additive" or False), given(kind)
    covered = torch.rand(B, T, S, dtype=torch.float64, requires_grad=True) if kind == "additive" else None
    query.requires_grad_()
    values.requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True) if kind != "dot" else ((), ())

    def run(query, values, covered, *parameters):
        def call(query, values, covered):
            return layer(query, layer.remember(values, lengths=LENGTHS), covered)

        class Call(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = layer

            def forward(self, *arguments):
                return call(*arguments)

        replaced = {f"layer.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Call(), replaced, (query, values, covered))

    assert torch.autograd.gradcheck(run, (query, values, covered, *parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_memory_can_be_chosen(kind):
    layer, (query, values) = make(kind), given(kind)
    memory = layer.remember(values, lengths=LENGTHS)
    rows = torch.tensor([3, 0, 0, 2])
    chosen = layer(query[rows], memory.select(rows))
    for one, all_of_them in zip(chosen, layer(query, memory), strict=True):
        torch.testing.assert_close(one, all_of_them[rows])


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=r"kind='cosine' is unknown; known: 'additive', 'dot'"):
        AttentionOver("cosine", 3, 3)
    with pytest.raises(InputError, match=r"queries of width 3 with a memory of width 4"):
        AttentionOver("dot", 3, 4)
    with pytest.raises(InputError, match=r"window=3 acts on kind='local'"):
        AttentionOver("general", 3, 4, window=3)
    with pytest.raises(InputError, match=r"coverage=True acts on kind='additive'"):
        AttentionOver("general", 3, 4, coverage=True)
    with pytest.raises(InputError, match=r"window=0, expected an integer of at least 1"):
        AttentionOver("local", 3, 4, window=0)
    layer = AttentionOver("general", 3, 4)
    with pytest.raises(SizeError, match=r"memory has shape \(2, 5, 3\), expected \(B, S, 4\)"):
        layer.remember(torch.zeros(2, 5, 3))
    memory = layer.remember(torch.zeros(2, 5, 4))
    with pytest.raises(SizeError, match=r"queries have shape \(3, 1, 3\), expected \(2, T, 3\)"):
        layer(torch.zeros(3, 1, 3), memory)
    with pytest.raises(InputError, match=r"has no use for coverage"):
        layer(torch.zeros(2, 1, 3), memory, torch.zeros(2, 1, 5))
    covering = AttentionOver("additive", 3, 4, coverage=True)
    with pytest.raises(InputError, match=r"needs coverage"):
        covering(torch.zeros(2, 1, 3), covering.remember(torch.zeros(2, 5, 4)))
