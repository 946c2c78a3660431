import json

from ostinato.tasks.labels.tagger_baselines import MostFrequentTag

SENTENCES = [
    ["time", "flies", "like", "an", "arrow"],
    ["fruit", "flies", "like", "a", "banana"],
    ["time", "flies"],
]
TAGS = [["N", "V", "P", "D", "N"], ["N", "N", "V", "D", "N"], ["N", "V"]]


def test_every_word_gets_its_own_tag_and_an_unknown_one_the_most_frequent():
    baseline = MostFrequentTag.fit(SENTENCES, TAGS)
    assert baseline.predict([["flies", "like", "an", "elephant"], []]) == [["V", "P", "D", "N"], []]


def test_what_was_stored_says_the_same():
    baseline = MostFrequentTag.fit(SENTENCES, TAGS)
    again = MostFrequentTag.from_json(json.loads(json.dumps(baseline.to_json())))
    assert again.default == baseline.default
    assert again.by_word == baseline.by_word


def test_nothing_to_count_gives_an_empty_tag():
    assert MostFrequentTag.fit([], []).predict([["a"]]) == [[""]]
