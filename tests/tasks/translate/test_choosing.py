"""Parameters by the data and the time."""

import numpy as np
import pytest

from ostinato.errors import InputError
from ostinato.tasks.translate.choosing import (
    batch_size,
    choose_units,
    is_better_shared,
    is_one_language,
    longest,
    network_sizes,
    usual_dropout,
    usual_epochs,
    vocabulary_size,
)

WORDS = ["cat", "house"] * 10
SOUNDS = ["K AE1 T", "HH AW1 S"] * 150


def test_units_are_asked_for_or_chosen_for_each_side():
    assert choose_units("word", WORDS, SOUNDS) == ("word", "word", "")
    assert choose_units("char, symbol", WORDS, SOUNDS) == ("char", "symbol", "")
    first, second, note = choose_units(None, WORDS, SOUNDS)
    assert (first, second) == ("char", "symbol")
    assert note.startswith("units: sources char (")
    first, second, note = choose_units("auto,word", WORDS, SOUNDS)
    assert (first, second) == ("char", "word")
    assert "targets" not in note
    with pytest.raises(InputError, match="has 3 parts"):
        choose_units("word,word,word", WORDS, SOUNDS)


def test_one_language_is_told_by_words_that_come_again():
    texts = ["a small program that plays music", "another one draws pictures"]
    assert is_one_language(texts, ["plays music", "draws pictures"])
    assert not is_one_language(texts, ["spielt Musik", "malt Bilder"])


def test_one_vocabulary_serves_what_is_spelled_alike():
    english, german = ["Peter has 2 hands", "a thin tired bird"], ["Peter hat 2 Hände", "ein Bär ist da"]
    greek = ["Ο Πέτρος έχει 2 σπίτια", "ένα πλοίο"]
    assert is_better_shared(("bpe", "bpe"), english, german)
    assert not is_better_shared(("bpe", "bpe"), english, greek)
    assert not is_better_shared(("word", "word"), english, german)
    assert is_better_shared(("word", "word"), english, english)
    assert not is_better_shared(("char", "bpe"), english, english)


def test_networks_grow_with_the_data_and_shrink_with_the_time():
    long = ("bpe", "bpe")
    assert [network_sizes(long, n, 30, None)["hidden_size"] for n in (100, 5_000, 30_000)] == [128, 256, 512]
    assert network_sizes(long, 30_000, 30, 2700.0)["hidden_size"] == 512
    assert network_sizes(long, 30_000, 30, 100.0)["hidden_size"] == 128
    assert network_sizes(long, 10**6, 30, 1.0) == {"hidden_size": 64, "embedding_size": 64, "num_layers": 1}
    assert network_sizes(("char", "symbol"), 10**5, 15, None)["hidden_size"] == 256


def test_sizes_of_batches_and_vocabularies():
    assert [batch_size(n, 30) for n in (50, 29_000, 10**6)] == [16, 64, 128]
    assert batch_size(10**6, 400) == 16
    assert vocabulary_size(("bpe", "bpe"), 740_000, copies=False) == 4100
    assert vocabulary_size(("word", "word"), 100, copies=True) == 16_000
    assert [usual_dropout(("bpe", "bpe"), n) for n in (500, 29_000)] == [0.3, 0.2]
    assert usual_dropout(("char", "symbol"), 120_000) == 0.1
    assert usual_epochs(30_000, 30, 512, None) == 20
    assert usual_epochs(30_000, 30, 512, 2700.0) == 51
    assert usual_epochs(30_000, 30, 512, 36_000.0) == 60
    assert usual_epochs(30_000, 30, 64, 1.0) == 1
    lengths = np.array([10] * 50 + [100_000])
    assert longest(lengths) == 50
    assert longest(lengths * 10) == 300
