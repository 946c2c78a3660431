"""N-gram features against strings counted in Python; chunks, limits, storage, odd texts."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest

from ostinato.data import ngrams
from ostinato.data.ngrams import NgramFeatures
from ostinato.errors import InputError

TEXTS = [
    "What is the  capital of Kenya ?",
    "what IS a capital-letter, and what is not",
    "é a",
    "",
    "a\nb\tc  aa aa aa",
    "Straße 日本語 don't_do it!!",
    "x",
]


def word_ngrams(text, shortest, longest):
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    marked = ["<s>", *words, "</s>"] if words else []
    for n in range(shortest, longest + 1):
        row = words if n == 1 else marked
        yield from (("word", *row[i : i + n]) for i in range(len(row) - n + 1))


def char_ngrams(text, shortest, longest):
    for word in text.lower().split():
        padded = f" {word} "
        for n in range(shortest, longest + 1):
            for i in range(len(padded) - n + 1):
                piece = padded[i : i + n]
                if piece != " ":
                    yield "char", piece


def placed_ngrams(text, shortest, longest):
    whole = "".join(text.lower().split())
    for n in range(shortest, longest + 1):
        yield from (("place", i, whole[i : i + n]) for i in range(len(whole) - n + 1))


BY_HAND = {"word": word_ngrams, "char": char_ngrams, "place": placed_ngrams}
SPANS = [
    {"word": (1, 2), "char": (1, 5)},
    {"word": (2, 3), "char": None},
    {"word": (1, 1), "char": None},
    {"word": None, "char": (2, 3), "place": (1, 2)},
]


def weights_by_hand(texts, spans):
    counts = [
        {kind: Counter(BY_HAND[kind](text, *span)) if span else Counter() for kind, span in spans.items()}
        for text in texts
    ]
    frequency = Counter(gram for row in counts for kind in row.values() for gram in kind)
    rows = []
    for row in counts:
        weights = []
        for kind in row.values():
            values = [
                (1 + math.log(n)) * (1 + math.log((1 + len(texts)) / (1 + frequency[gram])))
                for gram, n in kind.items()
            ]
            length = math.sqrt(sum(value**2 for value in values))
            weights += [value / length for value in values]
        rows.append(sorted(weights))
    return rows, frequency


@pytest.mark.parametrize("spans", SPANS, ids=str)
def test_equals_strings_counted_in_python(spans):
    features = NgramFeatures.fit(TEXTS, **spans, min_documents=1)
    rows = features.encode(TEXTS)
    expected, frequency = weights_by_hand(TEXTS, spans)
    assert len(features) == len(frequency)
    assert sorted(features.frequencies) == sorted(frequency.values())
    for i, weights in enumerate(expected):
        own = np.sort(rows.weights[rows.starts[i] : rows.starts[i + 1]])
        np.testing.assert_allclose(own, weights, rtol=1e-6)


def test_chunks_change_nothing(monkeypatch):
    whole = NgramFeatures.fit(TEXTS * 3)
    rows = whole.encode(TEXTS)
    monkeypatch.setattr(ngrams, "_CHUNK", 20)
    parts = NgramFeatures.fit(iter(TEXTS * 3))
    assert np.array_equal(whole.hashes, parts.hashes)
    assert np.array_equal(whole.frequencies, parts.frequencies)
    again = parts.encode(iter(TEXTS))
    assert np.array_equal(rows.ids, again.ids)
    assert np.array_equal(rows.weights, again.weights)
    assert np.array_equal(rows.starts, again.starts)


def test_a_batch_holds_its_rows():
    features = NgramFeatures.fit(TEXTS, min_documents=1)
    rows = features.encode(TEXTS)
    chosen = np.array([4, 3, 0, 4])
    batch = rows.batch(chosen)
    begins = 0
    for row, count in zip(chosen, batch.ngram_counts.tolist(), strict=True):
        own = slice(rows.starts[row], rows.starts[row + 1])
        assert np.array_equal(batch.ngrams[begins : begins + count], rows.ids[own])
        assert np.array_equal(batch.ngram_weights[begins : begins + count], rows.weights[own])
        begins += count
    assert begins == len(batch.ngrams)
    assert batch.ngram_counts[1] == 0


def test_rare_ngrams_are_left_out_and_the_most_frequent_stay():
    everything = NgramFeatures.fit(TEXTS, min_documents=1)
    twice = NgramFeatures.fit(TEXTS, min_documents=2)
    assert len(twice) == (everything.frequencies >= 2).sum()
    few = NgramFeatures.fit(TEXTS, min_documents=1, max_features=10)
    assert len(few) == 10
    assert few.frequencies.min() >= np.sort(everything.frequencies)[-10]
    assert set(few.hashes) <= set(everything.hashes)


def test_case_counts_where_it_should():
    assert len(NgramFeatures.fit(["Ab", "ab"], word=(1, 1), char=None, min_documents=1)) == 1
    both = NgramFeatures.fit(["Ab", "ab"], word=(1, 1), char=None, min_documents=1, is_lowercased=False)
    assert len(both) == 2


def test_what_was_never_seen_is_an_empty_row():
    features = NgramFeatures.fit(["abc abc", "abc"])
    rows = features.encode(["日本", "", "abc"])
    assert np.diff(rows.starts).tolist()[:2] == [0, 0]
    nothing = NgramFeatures.fit(["", " "])
    assert len(nothing) == 0
    assert nothing.encode(["abc"]).starts.tolist() == [0, 0]
    assert len(features.encode([])) == 0


def test_storage_gives_the_same_rows():
    features = NgramFeatures.fit(TEXTS, word=(1, 2), place=(1, 2))
    stored = NgramFeatures.from_json(json.loads(json.dumps(features.to_json())))
    a, b = features.encode(TEXTS), stored.encode(TEXTS)
    assert np.array_equal(a.ids, b.ids)
    assert np.array_equal(a.weights, b.weights)
    assert stored.word == (1, 2)


def test_lone_surrogates_and_long_words_are_taken_as_they_are():
    odd = ["\ud800 a", "z" * 5000, "\U0001f600" * 3]
    features = NgramFeatures.fit(odd, min_documents=1)
    rows = features.encode(odd)
    assert (np.diff(rows.starts) > 0).all()
    assert np.isfinite(rows.weights).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word": (2, 1)}, r"word=\(2, 1\), expected \(shortest, longest\)"),
        ({"char": 3}, "char=3"),
        ({"place": (0, 2)}, r"place=\(0, 2\)"),
        ({"word": None, "char": None}, "nothing to count"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        NgramFeatures.fit(TEXTS, **options)


def test_no_text_is_refused():
    with pytest.raises(InputError, match="there is no text"):
        NgramFeatures.fit([])
