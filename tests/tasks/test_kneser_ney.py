from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from ostinato.data.corpus import Corpus
from ostinato.tasks.kneser_ney import KneserNey

V, START = 7, 2


def corpus(ids, starts=(0,)):
    return Corpus(np.array(ids, np.uint8), np.array(starts), START, len(ids), 0, "tests")


@pytest.fixture
def text():
    rng = np.random.default_rng(0)
    ids = [int(rng.integers(V))]
    for _ in range(499):
        ids.append(int(rng.integers(V)) if rng.random() < 0.4 else (ids[-1] * 3 + 1) % V)
    return corpus(ids, (0, 180))


class Plain:
    """The same in dictionaries, from the equations."""

    def __init__(self, text, order):
        self.order, self.counts = order, [Counter() for _ in range(order)]
        bounds = [*text.starts.tolist(), len(text)]
        grams = [set() for _ in range(order + 1)]
        occurrences = Counter()
        for first, last in pairwise(bounds):
            row = (START, *text.ids[first:last].tolist())
            for n in range(1, order + 1):
                for at in range(1, len(row)):
                    if at - n + 1 >= 0:
                        gram = row[at - n + 1 : at + 1]
                        grams[n].add(gram)
                        occurrences[gram] += n == order
        self.counts = [Counter() for _ in range(order + 1)]
        self.counts[order] = occurrences
        for n in range(1, order):
            for gram in grams[n + 1]:
                self.counts[n][gram[1:]] += 1
        for first, last in pairwise(bounds):
            row = (START, *text.ids[first:last].tolist())
            for n in range(2, order):
                self.counts[n][row[:n]] += 1
        self.discounts = [None, *(self._discounts(c) for c in self.counts[1:])]
        self.following = [None, *(defaultdict(list) for _ in range(order))]
        for n in range(1, order + 1):
            for gram, count in self.counts[n].items():
                if count:
                    self.following[n][gram[:-1]].append(count)

    @staticmethod
    def _discounts(counts):
        n1, n2, n3, n4 = (sum(c == n for c in counts.values()) for n in (1, 2, 3, 4))
        if not (n1 and n2 and n3 and n4):
            return [0.75] * 3
        y = n1 / (n1 + 2 * n2)
        raw = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        return [min(max(d, 0.1), top) for d, top in zip(raw, (1, 2, 3), strict=True)]

    def p(self, context, word):
        p = 1 / V
        for n in range(1, self.order + 1):
            if n - 1 > len(context):
                break
            own = tuple(context[len(context) - n + 1 :]) if n > 1 else ()
            counts = self.following[n].get(own, [])
            if not counts:
                continue
            d = self.discounts[n]
            total = sum(counts)
            back = sum(d[min(c, 3) - 1] for c in counts) / total
            count = self.counts[n][(*own, word)]
            p = (count - (d[min(count, 3) - 1] if count else 0)) / total + back * p
        return p


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_what_the_equations_say(text, order):
    found, plain = KneserNey.fit(text, V, order), Plain(text, order)
    other = corpus([3, 1, 4, 1, 5, 2, 6, 5, 3, 5], (0, 6))
    said = found.log_probs(other)
    for first, last in ((0, 6), (6, 10)):
        row = [START, *other.ids[first:last].tolist()]
        for at in range(1, len(row)):
            assert np.exp(said[first + at - 1]) == pytest.approx(plain.p(row[:at], row[at]))


def test_probabilities_sum_to_one_after_any_context(text):
    ngrams = KneserNey.fit(text, V, 4)
    for context in ([], [3], [6, 6, 6], [0, 1, 2, 3, 4]):
        total = sum(np.exp(ngrams.log_probs(corpus([*context, word]))[-1]) for word in range(V))
        assert total == pytest.approx(1.0)


def test_long_texts_are_read_in_pieces_that_change_nothing(text, monkeypatch):
    ngrams = KneserNey.fit(text, V, 5)
    whole = ngrams.log_probs(text)
    monkeypatch.setattr("ostinato.tasks.kneser_ney._PIECE", 37)
    np.testing.assert_allclose(ngrams.log_probs(text), whole)
    assert len(whole) == len(text)


def test_only_the_end_of_a_long_text_is_counted(text):
    end = corpus(text.ids[400:].tolist())
    few, alone = KneserNey.fit(text, V, 3, most_units=100), KneserNey.fit(end, V, 3)
    inside = corpus([0, 1, 4, 6, 2, 0])
    # The end begins inside a document: no start unit stands before it.
    assert few.log_probs(inside)[3:] == pytest.approx(alone.log_probs(inside)[3:], abs=0.2)


def test_stored_ngrams_say_the_same(text):
    ngrams = KneserNey.fit(text, V, 4)
    other = KneserNey.from_json(ngrams.to_json(), ngrams.tensors())
    np.testing.assert_array_equal(other.log_probs(text), ngrams.log_probs(text))


def test_step_by_step_is_the_same(text):
    ngrams = KneserNey.fit(text, V, 4)
    rows = np.array([[3, 1, 4, 6, 0, 1], [0, 1, 4, 6, 5, 2], [6, 6, 6, 6, 6, 6]])
    contexts = ngrams.after_start(3, START)
    assert contexts.shape == (3, 4)
    for at in range(rows.shape[1]):
        said, contexts = ngrams.extend(contexts, rows[:, at])
        wanted = [ngrams.log_probs(corpus(row[: at + 1].tolist()))[-1] for row in rows]
        np.testing.assert_allclose(said, wanted)
    assert (contexts == -1).any()
    assert len(ngrams.extend(contexts[:0], rows[:0, 0])[0]) == 0
