"""Decoding is compared with plain loops over single sequences: over every one there is, where feasible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.models.decoding import (
    CoveragePenalty,
    Decoded,
    Fusion,
    LengthPenalty,
    Rules,
    beam_search,
    greedy,
    sample,
    stream,
)
from ostinato.models.decoding_rules import without_repeats
from ostinato.types import State


class Model:
    """A small random network with a state, in float64; it counts the sequences of each step."""

    def __init__(self, V: int, seed: int, *, S: int = 3, sharpness: float = 2.0, looks: bool = True):
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        self.V, self.S, self.looks = V, S, looks
        self.recurrent, self.embedding = draw(4, 4), draw(V, 4)
        self.output, self.attention, self._begin = sharpness * draw(4, V), 3 * draw(4, S), draw(64, 4)
        self.asked: list[int] = []

    def state(self, *rows: int) -> State:
        h = self._begin[list(rows)]
        return State(h=h, nested=State(t=torch.zeros(len(h), 1, dtype=torch.int64)))

    def step(self, tokens: Tensor, state: State) -> tuple[Any, ...]:
        self.asked.append(len(tokens))
        h = torch.tanh(state.h @ self.recurrent + self.embedding[tokens])
        state = State(h=h, nested=State(t=state.nested.t + 1))
        logits = h @ self.output + 0.1 * state.nested.t
        if self.looks:
            return logits, state, torch.softmax(h @ self.attention, 1)
        return logits, state


END = 1
Scores = Callable[[list[int], bool, float, Tensor], float]


def allowed_next(t: int, V: int, row: int, prefix: list[int], rules: Rules) -> set[int]:
    """What the rules allow, token by token."""
    forced = [] if rules.prefix is None else rules.prefix[row]
    if t < len(forced):
        return {forced[t]}
    allowed = set(range(V))
    if t < int(torch.as_tensor(rules.min_length).expand(3)[row]):
        allowed.discard(END)
    allowed -= set(rules.forbidden)
    n = rules.no_repeat_ngram
    if n:
        seen = {tuple(prefix[i : i + n]) for i in range(len(prefix) - n + 1)}
        allowed = {
            v for v in allowed if len(prefix) < n - 1 or (*prefix[len(prefix) - n + 1 :], v) not in seen
        }
    for constraint in rules.constraints:
        mask = constraint(torch.tensor([prefix], dtype=torch.int64).view(1, -1), torch.tensor([row]))
        allowed &= set(mask[0].nonzero()[:, 0].tolist())
    return allowed


def every_sequence(
    model: Model, row: int, rules: Rules, max_length: int, end: int | None
) -> Iterator[tuple[list[int], bool, float, Tensor]]:
    """All sequences of a row: tokens, whether ended, log-probability, attention at each step (n, S)."""
    fusion = rules.fusion

    def walk(
        token: int, state: Any, other: Any, prefix: list[int], total: float, looked: list[Tensor]
    ) -> Any:
        logits, state, attention = model.step(torch.tensor([token]), state)
        scores = torch.log_softmax(logits, 1)[0]
        if fusion is not None:
            opinion, other, *_ = fusion.step(torch.tensor([token]), other)
            scores = scores + fusion.weight * torch.log_softmax(opinion, 1)[0]
        looked = [*looked, attention[0]]
        for v in sorted(allowed_next(len(prefix), model.V, row, prefix, rules)):
            sum_ = total + float(scores[v])
            if v == end:
                yield prefix, True, sum_, torch.stack(looked)
            elif len(prefix) + 1 == max_length:
                yield [*prefix, v], False, sum_, torch.stack(looked)
            else:
                yield from walk(v, state, other, [*prefix, v], sum_, looked)

    other = None if fusion is None else fusion.state.select(slice(row, row + 1))
    yield from walk(0, model.state(row), other, [], 0.0, [])


def even_only(prefix: Tensor, rows: Tensor) -> Tensor:
    """After token 2 only even ones and the end; row 1 never says 3."""
    mask = torch.ones(len(prefix), 4, dtype=torch.bool)
    if prefix.shape[1]:
        mask[prefix[:, -1] == 2, 3] = False
    mask[rows == 1, 3] = False
    return mask


def second_model(weight: float) -> Fusion:
    other = Model(4, seed=77, looks=False)
    return Fusion(other.step, other.state(0, 1, 2), weight)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gnmt": {"length_penalty": LengthPenalty(0.8)},
    "mean": {"length_penalty": LengthPenalty(1.0, "plain")},
    "steep": {"length_penalty": LengthPenalty(3.0, "plain")},
    "uncovered": {"coverage": CoveragePenalty(0.7), "length_penalty": LengthPenalty(0.5)},
    "repeated": {"coverage": CoveragePenalty(1.5, "repeated", torch.tensor([3, 1, 2]))},
    "uncovered, lengths": {"coverage": CoveragePenalty(0.7, source_lengths=torch.tensor([2, 3, 1]))},
    "no token twice": {"rules": Rules(no_repeat_ngram=1)},
    "no pair twice": {"rules": Rules(no_repeat_ngram=2), "length_penalty": LengthPenalty(2.0)},
    "constraint": {"rules": Rules(constraints=[even_only])},
    "forbidden": {"rules": Rules(forbidden=[3, 0])},
    "prefix": {"rules": Rules(prefix=[[2, 3], [], [0]]), "length_penalty": LengthPenalty(1.0)},
    "min length": {"rules": Rules(min_length=torch.tensor([0, 2, 4]))},
    "fusion": {"rules": Rules(fusion=second_model(0.6))},
    "against": {"rules": Rules(fusion=second_model(-0.4)), "length_penalty": LengthPenalty(1.0)},
    "max lengths": {"max_length": torch.tensor([4, 1, 2]), "length_penalty": LengthPenalty(1.0)},
    "endless": {"end": None, "rules": Rules(no_repeat_ngram=3)},
    "all": {
        "rules": Rules(
            min_length=1, prefix=[[2], [0, 0], []], constraints=[even_only], no_repeat_ngram=3,
            fusion=second_model(0.3),
        ),
        "length_penalty": LengthPenalty(1.2, "plain"),
        "coverage": CoveragePenalty(0.3, source_lengths=torch.tensor([3, 2, 3])),
        "max_length": torch.tensor([4, 3, 4]),
    },
}  # fmt: skip


def final_score(case: dict[str, Any], row: int, n_steps: int, total: float, looked: Tensor) -> float:
    length, coverage = case.get("length_penalty"), case.get("coverage")
    score = total
    if length is not None:
        score /= ((5 + n_steps) / 6 if length.kind == "gnmt" else n_steps) ** length.alpha
    if coverage is not None:
        S = looked.shape[1] if coverage.source_lengths is None else int(coverage.source_lengths[row])
        for c in looked.sum(0)[:S].tolist():
            cost = math.log(min(c, 1.0)) if coverage.kind == "uncovered" else -max(c - 1.0, 0.0)
            score += coverage.weight * cost
    return score


@pytest.mark.parametrize("name", CASES)
def test_a_wide_beam_is_an_exhaustive_search(name: str) -> None:
    case = {"end": END, "max_length": 4, "rules": Rules(), **CASES[name]}
    # A flat model, so that long sequences compete with short ones.
    model = Model(4, seed=3, sharpness=0.7)
    found = beam_search(
        model.step, model.state(0, 1, 2), torch.zeros(3, dtype=torch.int64), beam=4**4, n_best=12, **case
    )
    _check(found)
    for row in range(3):
        max_length = int(torch.as_tensor(case["max_length"]).expand(3)[row])
        ranked = [
            (not ended, -final_score(case, row, len(looked), total, looked), tokens, looked)
            for tokens, ended, total, looked in every_sequence(
                model, row, case["rules"], max_length, case["end"]
            )
        ]
        ranked.sort(key=lambda entry: entry[:2])
        n = min(len(ranked), 12)
        assert found.sequences()[row] == [entry[2] for entry in ranked[:n]]
        assert found.ended[row, :n].tolist() == [not entry[0] for entry in ranked[:n]]
        torch.testing.assert_close(
            found.scores[row, :n], -torch.tensor([entry[1] for entry in ranked[:n]], dtype=torch.float64)
        )
        assert bool((found.scores[row, n:] == -torch.inf).all())
        assert found.attention is not None
        for i, (*_, tokens, looked) in enumerate(ranked[:n]):
            torch.testing.assert_close(found.attention[row, i, : len(tokens)], looked[: len(tokens)])


def _check(found: Decoded) -> None:
    """What holds for every result."""
    B, n, T = found.tokens.shape
    assert found.lengths.shape == found.scores.shape == found.log_probs.shape == found.ended.shape == (B, n)
    assert int(found.lengths.max()) == T
    for row in range(B):
        keys = [
            (-int(e), -s) for e, s in zip(found.ended[row].tolist(), found.scores[row].tolist(), strict=True)
        ]
        assert keys == sorted(keys)
        sequences = [tuple(tokens) for tokens in found.sequences()[row]]
        assert len(set(zip(sequences, found.ended[row].tolist(), strict=False))) == len(sequences)
    if found.attention is not None:
        beyond = torch.arange(T) >= found.lengths.unsqueeze(2)
        assert bool((found.attention[beyond] == 0).all())


RULES = {
    "none": Rules(),
    "pairs": Rules(no_repeat_ngram=2),
    "prefix and minimum": Rules(prefix=[[3], [], [2, 2], [0], []], min_length=3),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("end", [END, None])
def test_a_beam_of_one_is_greedy(name: str, end: int | None) -> None:
    rules = RULES[name] if end is not None else Rules(no_repeat_ngram=3)
    model = Model(7, seed=1, sharpness=1.0)
    start, state = torch.zeros(5, dtype=torch.int64), model.state(*range(5))
    given = {"end": end, "max_length": torch.tensor([9, 6, 9, 4, 9]), "rules": rules}
    one = greedy(model.step, state, start, **given)
    asked, model.asked = model.asked, []
    for penalty in (None, LengthPenalty(1.0), LengthPenalty(2.0, "plain")):
        model.asked = []
        other = beam_search(model.step, state, start, beam=1, length_penalty=penalty, **given)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.lengths, other.lengths)
        assert torch.equal(one.ended, other.ended)
        torch.testing.assert_close(one.log_probs, other.log_probs)
        torch.testing.assert_close(one.attention, other.attention)
        assert model.asked == asked


def test_ties_are_broken_alike() -> None:
    def step(tokens: Tensor, state: None) -> tuple[Tensor, None]:
        return torch.zeros(len(tokens), 6), None

    start = torch.zeros(2, dtype=torch.int64)
    for end in (0, 3, None):
        one = greedy(step, None, start, end=end, max_length=3)
        assert torch.equal(one.tokens, beam_search(step, None, start, end=end, max_length=3, beam=1).tokens)


@pytest.mark.parametrize("beam", [1, 3, 40])
@pytest.mark.parametrize("rules", [Rules(), Rules(no_repeat_ngram=2)])
def test_a_batch_of_beams_is_one_by_one(beam: int, rules: Rules) -> None:
    model = Model(9, seed=5, sharpness=1.5)
    lengths = torch.tensor([3, 12, 7, 1, 12, 5])
    given = {"end": END, "beam": beam, "n_best": min(beam, 4), "length_penalty": LengthPenalty(0.7)}
    start = torch.tensor([0, 3, 4, 0, 1, 8])
    whole = beam_search(model.step, model.state(*range(6)), start, max_length=lengths, rules=rules, **given)
    _check(whole)
    for row in range(6):
        one = beam_search(
            model.step, model.state(row), start[row : row + 1], max_length=int(lengths[row]), rules=rules,
            **given,
        )  # fmt: skip
        assert one.sequences()[0] == whole.sequences()[row]
        assert torch.equal(one.ended[0], whole.ended[row])
        torch.testing.assert_close(one.scores[0], whole.scores[row], rtol=1e-12, atol=1e-12)


def test_scores_are_those_of_the_sequences() -> None:
    model = Model(30, seed=2)
    start = torch.tensor([0, 5])
    state = model.state(0, 1)
    for found in (
        beam_search(model.step, state, start, end=END, max_length=15, beam=6, n_best=6),
        sample(model.step, state, start, end=END, max_length=15, seed=torch.arange(12).view(2, 6), top_k=9),
    ):
        for row in range(2):
            for i, tokens in enumerate(found.sequences()[row]):
                total, state_i, token = 0.0, model.state(row), int(start[row])
                for after in [*tokens, END] if found.ended[row, i] else tokens:
                    logits, state_i, _ = model.step(torch.tensor([token]), state_i)
                    total += float(torch.log_softmax(logits, 1)[0, after])
                    token = after
                assert total == pytest.approx(float(found.log_probs[row, i]), rel=1e-9)
                assert found.ended[row, i] or len(tokens) == 15


def test_stopping_early_gives_what_going_on_would() -> None:
    model = Model(6, seed=8, sharpness=1.0)

    def even(tokens: Tensor, state: None) -> tuple[Tensor, None]:
        return torch.zeros(len(tokens), 6), None

    steps = []
    for penalty in (None, LengthPenalty(0.6), LengthPenalty(1.0, "plain")):
        given = {
            "end": END, "beam": 4, "n_best": 2, "max_length": 40, "length_penalty": penalty,
            "coverage": CoveragePenalty(0.2),
        }  # fmt: skip
        start = torch.zeros(20, dtype=torch.int64)
        model.asked = []
        early = beam_search(model.step, model.state(*range(20)), start, **given)
        steps.append(sum(model.asked))
        model.asked = []
        # With a second model of negative weight nothing bounds what may come, and no search stops early.
        rules = Rules(fusion=Fusion(even, None, -1e-9))
        full = beam_search(model.step, model.state(*range(20)), start, rules=rules, **given)
        assert len(model.asked) == 40
        assert sum(model.asked) > steps[-1] or penalty == LengthPenalty(1.0, "plain")
        assert early.sequences() == full.sequences()
        torch.testing.assert_close(early.scores, full.scores, rtol=1e-6, atol=1e-6)
    assert steps[0] < steps[1] < steps[2]


def test_a_search_that_looks_ahead_ends_earlier() -> None:
    model = Model(6, seed=8, sharpness=1.0)
    found, asked = [], []
    for lookahead in (0, 3, 40, None):
        model.asked = []
        given = {"end": END, "beam": 4, "n_best": 2, "max_length": 40}
        penalty = LengthPenalty(0.5, "plain", lookahead)
        start = torch.zeros(20, dtype=torch.int64)
        found.append(beam_search(model.step, model.state(*range(20)), start, length_penalty=penalty, **given))
        asked.append(sum(model.asked))
    assert asked[0] < asked[1] < asked[2] == asked[3]
    assert found[2].sequences() == found[3].sequences()
    # What is given up is never better than what going on finds.
    for early in found[:2]:
        assert bool((early.scores[:, 0] <= found[3].scores[:, 0] + 1e-9).all())


def test_rows_that_are_done_are_asked_for_no_more() -> None:
    model = Model(5, seed=4)
    lengths = torch.tensor([2, 9, 5])
    start, state = torch.zeros(3, dtype=torch.int64), model.state(0, 1, 2)
    greedy(model.step, state, start, end=None, max_length=lengths)
    assert model.asked == [3, 3, 2, 2, 2, 1, 1, 1, 1]
    model.asked = []
    beam_search(model.step, state, start, end=None, max_length=lengths, beam=7)
    # One hypothesis a row at first, then as many as the vocabulary and the beam allow.
    assert model.asked == [3, 15, 14, 14, 14, 7, 7, 7, 7]
    model.asked = []
    sample(model.step, state, start, end=None, max_length=lengths, seed=torch.zeros(3, 2, dtype=torch.int64))
    assert model.asked == [6, 6, 4, 4, 4, 2, 2, 2, 2]


def test_a_beam_larger_than_the_vocabulary_gives_what_there_is() -> None:
    model = Model(3, seed=9)
    start = torch.zeros(2, dtype=torch.int64)
    found = beam_search(model.step, model.state(0, 1), start, end=END, max_length=2, beam=50, n_best=20)
    # The end; 2 tokens and the end; 4 pairs of tokens that are cut off.
    assert [len(row) for row in found.sequences()] == [7, 7]
    assert bool((found.scores[:, 7:] == -torch.inf).all())
    assert found.ended[0].tolist() == [True] * 3 + [False] * 17


def test_what_ended_comes_before_what_was_cut_off() -> None:
    def step(tokens: Tensor, state: None) -> tuple[Tensor, None]:
        return torch.tensor([[4.0, 0.0, 0.0]]).expand(len(tokens), 3), None

    found = beam_search(
        step, None, torch.zeros(1, dtype=torch.int64), end=END, max_length=4, beam=30, n_best=30,
        length_penalty=LengthPenalty(1.0, "plain"),
    )  # fmt: skip
    ended = found.ended[0].tolist()
    assert ended == sorted(ended, reverse=True)
    # 1 + 2 + 4 + 8 end, and more were cut off, the best of which has the highest score of all.
    assert sum(ended) == 15
    assert float(found.scores[0, 15]) > float(found.scores[0, 0])


def test_dead_ends_are_never_given() -> None:
    def nothing_after_two(prefix: Tensor, rows: Tensor) -> Tensor:
        mask = torch.ones(len(prefix), 5, dtype=torch.bool)
        mask[rows == 0] = prefix.shape[1] < 2
        return mask

    model = Model(5, seed=6)
    given = {"end": END, "max_length": 6, "rules": Rules(constraints=[nothing_after_two], min_length=2)}
    start, state = torch.zeros(2, dtype=torch.int64), model.state(0, 1)
    for found in (
        beam_search(model.step, state, start, beam=3, n_best=2, **given),
        greedy(model.step, state, start, **given),
        sample(model.step, state, start, seed=1, **given),
        sample(model.step, state, start, seed=1, top_p=0.5, **given),
    ):
        assert found.sequences()[0] == []
        assert found.best()[0] == []
        assert len(found.best()[1]) >= 2
        assert bool((found.scores[0] == -torch.inf).all())
        assert int(found.lengths[0].sum()) == 0
        assert not bool(found.ended[0].any())
    with pytest.raises(InputError, match="no token after 2"):
        list(stream(model.step, model.state(0), start[:1], seed=1, **given))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_repeats_are_those_that_a_loop_finds(n: int) -> None:
    random = torch.Generator().manual_seed(n)
    for t in range(n, 12):
        prefix = torch.randint(0, 3, (6, t), generator=random)
        blocked = without_repeats(torch.zeros(6, 3), prefix, n).isneginf()
        for row, tokens in zip(blocked.tolist(), prefix.tolist(), strict=True):
            seen = {tuple(tokens[i : i + n]) for i in range(t - n + 1)}
            assert row == [(*tokens[t - n + 1 :], v) in seen for v in range(3)]


SCORES = torch.tensor([2.0, 1.5, 1.4, 0.3, -0.5, -1.0, -2.0, -torch.inf, 0.9, 1.45], dtype=torch.float64)
CUTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_k": 100},
    {"top_p": 0.6},
    {"top_p": 0.05},
    {"top_p": 1.0},
    {"temperature": 1.7, "top_k": 6, "top_p": 0.8},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_samples_follow_the_distribution(cut: dict[str, Any]) -> None:
    n = 10_000
    found = sample(
        lambda tokens, state: (SCORES.expand(len(tokens), -1), state), None,
        torch.zeros(1, dtype=torch.int64), end=None, max_length=1, seed=torch.arange(n).view(1, n), **cut,
    )  # fmt: skip
    observed = torch.bincount(found.tokens.flatten(), minlength=10).double()
    shares = expected(SCORES, **cut) * n
    assert bool((observed[shares == 0] == 0).all())
    real = shares > 0
    chi_square = float(((observed - shares)[real].square() / shares[real]).sum())
    freedom = int(real.sum()) - 1
    assert chi_square <= freedom + 3.1 * math.sqrt(2 * freedom)
    torch.testing.assert_close(found.scores[0], torch.log_softmax(SCORES, 0)[found.tokens[0, :, 0]])


def expected(
    scores: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    shares = torch.softmax(scores / temperature, 0).tolist()
    order = sorted(range(len(shares)), key=lambda v: -shares[v])[:top_k]
    total = sum(shares[v] for v in order)
    kept, reached = [], 0.0
    for v in order:
        kept.append(v)
        reached += shares[v] / total
        if top_p is not None and reached >= top_p:
            break
    total = sum(shares[v] for v in kept)
    return torch.tensor([shares[v] / total if v in kept else 0.0 for v in range(len(shares))]).double()


def test_a_nucleus_larger_than_what_is_sorted_first() -> None:
    V, n = 1000, 3000
    scores = torch.linspace(0, -2, V)[torch.randperm(V)]
    cut = {"top_p": 0.9}
    found = sample(
        lambda tokens, state: (scores.expand(len(tokens), -1), state), None,
        torch.zeros(1, dtype=torch.int64), end=None, max_length=1, seed=torch.arange(n).view(1, n), **cut,
    )  # fmt: skip
    allowed = expected(scores.double(), **cut) > 0
    assert bool(allowed[found.tokens.flatten()].all())
    assert len(found.tokens.unique()) > 500


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_row_depends_on_its_seed_alone(cut: dict[str, Any]) -> None:
    model = Model(11, seed=12, sharpness=0.5)
    start, lengths = torch.tensor([0, 4, 2, 0, 9]), torch.tensor([90, 70, 90, 3, 20])
    whole = sample(model.step, model.state(*range(5)), start, end=END, max_length=lengths, seed=7, **cut)
    again = sample(
        model.step, model.state(*range(5)), start, end=END, max_length=lengths,
        seed=torch.tensor([7, 8, 9, 10, 11]), **cut,
    )  # fmt: skip
    assert torch.equal(whole.tokens, again.tokens)
    for row in range(5):
        given = {"end": END, "max_length": int(lengths[row]), "seed": 7 + row, **cut}
        one = sample(model.step, model.state(row), start[row : row + 1], **given)
        assert one.sequences()[0] == whole.sequences()[row]
        streamed = list(stream(model.step, model.state(row), start[row : row + 1], **given))
        assert streamed == whole.best()[row]
    other = sample(model.step, model.state(*range(5)), start, end=END, max_length=lengths, seed=1000, **cut)
    assert cut == {"top_p": 0.05} or other.sequences() != whole.sequences()


def test_temperature_zero_is_greedy_and_several_samples_stand_beside_each_other() -> None:
    model = Model(11, seed=12, sharpness=0.7)
    start, state = torch.zeros(2, dtype=torch.int64), model.state(0, 1)
    given = {"end": END, "max_length": 30}
    best = greedy(model.step, state, start, **given)
    seeds = torch.tensor([[3, 4, 3], [5, 4, 6]])
    for temperature in (0, 1e-6):
        cold = sample(model.step, state, start, seed=seeds, temperature=temperature, **given)
        assert all(torch.equal(cold.tokens[:, i], best.tokens[:, 0]) for i in range(3))
    warm = sample(model.step, state, start, seed=seeds, **given)
    assert warm.tokens.shape[:2] == (2, 3)
    assert warm.sequences()[0][0] == warm.sequences()[0][2] != warm.sequences()[0][1]
    assert warm.attention is not None
    assert warm.attention.shape == (*warm.tokens.shape, 3)


def test_a_stream_gives_tokens_as_they_come_and_leaves_gradients_on() -> None:
    model = Model(11, seed=12, sharpness=0.5)
    tokens = stream(
        model.step, model.state(0), torch.zeros(1, dtype=torch.int64), end=None, max_length=50, seed=1
    )
    for n, _ in enumerate(tokens, start=1):
        assert len(model.asked) == n
        assert torch.is_grad_enabled()
    assert n == 50


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    def step(tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.zeros(len(tokens), 4)
        if int(state[0, 0]) == 2:
            logits[state[:, 1] == 1] = bad
        return logits, state + torch.tensor([1, 0])

    start = torch.zeros(3, dtype=torch.int64)
    state = torch.tensor([[0, 0], [0, 1], [0, 2]])
    given = {"end": None, "max_length": 5}
    for decode in (
        lambda: greedy(step, state, start, **given),
        lambda: beam_search(step, state, start, beam=3, **given),
        lambda: sample(step, state, start, seed=1, **given),
        lambda: sample(step, state, start, seed=1, top_k=2, top_p=0.9, **given),
        lambda: list(stream(step, state[1:2], start[:1], seed=1, **given)),
    ):
        with pytest.raises(InputError, match=r"row [01] at token 3"):
            decode()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_short_numbers_are_summed_as_long_ones(dtype: torch.dtype) -> None:
    scores = torch.randn(1, 20).to(dtype)
    found = beam_search(
        lambda tokens, state: (scores.expand(len(tokens), -1), state), None,
        torch.zeros(1, dtype=torch.int64), end=None, max_length=200, beam=3,
    )  # fmt: skip
    best = float(torch.log_softmax(scores.double(), 1).max()) * 200
    assert float(found.log_probs[0, 0]) == pytest.approx(best, rel=1e-5)


WRONG: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "beam": (beam_search, {"beam": 0}, "beam must be 1"),
    "n_best": (beam_search, {"beam": 3, "n_best": 4}, "n_best must be from 1 to beam"),
    "max_length": (greedy, {"max_length": 0}, "max_length must be at least 1"),
    "max_lengths": (greedy, {"max_length": torch.tensor([1, 2])}, "int64 of shape"),
    "min over max": (greedy, {"max_length": 3, "rules": Rules(min_length=4)}, "above max_length"),
    "min without end": (greedy, {"end": None, "rules": Rules(min_length=1)}, "give end"),
    "end": (greedy, {"end": 4}, "end is 4, but step knows 4"),
    "negative end": (greedy, {"end": -1}, "end must be"),
    "prefix rows": (greedy, {"rules": Rules(prefix=[[1], [2]])}, "a list of tokens for each of 3"),
    "prefix token": (greedy, {"rules": Rules(prefix=[[9], [], []])}, "prefix has token 9"),
    "forbidden token": (greedy, {"rules": Rules(forbidden=[1, 4])}, "forbidden has token 4"),
    "prefix end": (greedy, {"rules": Rules(prefix=[[1], [], []])}, "no end token"),
    "temperature": (sample, {"temperature": -1}, "temperature must be 0"),
    "tiny temperature": (sample, {"temperature": 1e-40}, "at least 1e-06"),
    "nan temperature": (sample, {"temperature": math.nan}, "temperature must be 0"),
    "text as temperature": (sample, {"temperature": "1"}, "temperature must be 0"),
    "top_k": (sample, {"top_k": 0}, "top_k must be 1"),
    "half a top_k": (sample, {"top_k": 2.5}, "top_k must be 1 or more, a whole number, found 2.5"),
    "text as top_p": (sample, {"top_p": "1"}, "top_p must be above 0"),
    "half a seed": (sample, {"seed": 1.5}, "seed must be 0 or more, a whole number"),
    "a seed too large": (sample, {"seed": 10**20}, "seed must be 0 or more, a whole number below"),
    "half a beam": (beam_search, {"beam": 2.5}, "beam must be 1 or more, a whole number"),
    "top_p": (sample, {"top_p": 0}, "top_p must be above 0"),
    "seed": (sample, {"seed": -3}, "seed must be 0"),
    "seeds": (sample, {"seed": torch.tensor([1, 2])}, "seed must be"),
    "stream": (stream, {"seed": 1}, "start must have shape"),
    "constraint": (greedy, {"rules": Rules(constraints=[lambda p, r: p == 0])}, "constraint must return"),
    "vocabularies": (greedy, {"rules": Rules(fusion=Fusion(lambda t, s: (torch.zeros(3, 9), s), None, 1.0))},
                     "one vocabulary"),
    "coverage": (beam_search, {"coverage": CoveragePenalty(1.0)}, "needs attention"),
    "source lengths": (beam_search, {"coverage": CoveragePenalty(1.0, source_lengths=torch.ones(2))},
                       "source_lengths must"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name: str) -> None:
    decode, given, message = WRONG[name]
    model = Model(4, seed=1, looks=False)
    given = {"end": END, "max_length": 5, **({"seed": 1} if decode is sample else {}), **given}
    with pytest.raises(InputError, match=message):
        decode(model.step, model.state(0, 1, 2), torch.zeros(3, dtype=torch.int64), **given)


def test_wrong_shapes_are_refused() -> None:
    model = Model(4, seed=1)
    start = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(SizeError, match="B = 3 rows first"):
        greedy(model.step, model.state(0, 1), start, end=None, max_length=2)
    with pytest.raises(SizeError, match="start must be int64"):
        greedy(model.step, model.state(0, 1), start.float(), end=None, max_length=2)
    with pytest.raises(SizeError, match="must return logits"):
        greedy(lambda t, s: (torch.zeros(4), s), None, start, end=None, max_length=2)
    for make in (
        lambda: LengthPenalty(-1.0),
        lambda: LengthPenalty(1.0, "log"),
        lambda: CoveragePenalty(-1.0),
        lambda: LengthPenalty(1.0, lookahead=-1),
        lambda: CoveragePenalty(1.0, "covered"),
        lambda: Rules(no_repeat_ngram=-1),
        lambda: Rules(forbidden=[-1]),
    ):
        with pytest.raises(InputError):
            make()
