"""Answers without a network."""

import numpy as np

from ostinato.tasks.translate.baselines import Baselines

SOURCE = ["der Hund", "die Katze", "der Mann", "die Frau", "Hund", "Katze"]
TARGET = ["the dog", "the cat", "the man", "the woman", "dog", "cat"]


def test_the_table_of_words_is_learned_from_pairs_alone():
    baselines = Baselines.fit(SOURCE, TARGET, ("bpe", "bpe"))
    said = baselines.say(["der Hund", "die  Frau", "der Fremde"])
    assert said["copy_source"] == ["der Hund", "die Frau", "der Fremde"]
    assert said["word_table"] == ["the dog", "the woman", "the"]
    assert Baselines.from_json(baselines.to_json()).say(["die Katze"]) == baselines.say(["die Katze"])


def test_letters_have_a_table_of_sounds():
    spelled = ["cat", "cab", "bat", "tab", "act"]
    sounds = {"c": "K", "a": "AE1", "t": "T", "b": "B"}
    baselines = Baselines.fit(
        spelled, [" ".join(sounds[c] for c in word) for word in spelled], ("char", "symbol")
    )
    assert baselines.say(["bac"])["letter_table"] == ["B AE1 K"]


def test_summaries_are_compared_with_first_words():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcdefgh"), 12)) for _ in range(20)]
    baselines = Baselines.fit(texts, [text[:5] for text in texts], ("word", "word"))
    said = baselines.say(texts[:2])
    assert list(said) == ["first_8_words", "copy_source"]
    assert said["first_8_words"][0] == texts[0][:15]


def test_a_very_long_pair_neither_takes_all_memory_nor_the_place_of_others():
    long = " ".join(["Hund"] * 200_000)
    for seed in range(8):
        baselines = Baselines.fit([long, *SOURCE], [long, *TARGET], ("word", "word"), seed)
        assert baselines.say(["der Hund"])["word_table"] == ["the dog"]
