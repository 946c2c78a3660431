from itertools import chain

import numpy as np
import pytest

import ostinato as ot
from ostinato.data.examples import Examples, Sentence
from ostinato.errors import InputError, SizeError
from ostinato.tasks.labels.tagger_inputs import LONGEST
from ostinato.training.loop import _Run

SMALL = {"hidden_size": 12, "word_size": 10, "progress": "quiet", "max_time_s": None, "batch_size": 8}
COLOURS, THINGS = ["red", "green", "old"], ["door", "lamp", "hat", "Boat"]
PLACES, VERBS = ["paris", "oslo", "new york", "lima"], ["went to", "left", "saw"]


def sentences_of(n, seed):
    """Sentences with spans (THING, PLACE), a class for each, and a column that says which words are verbs."""
    rng = np.random.default_rng(seed)
    words, tags, labels = [], [], []
    for _ in range(n):
        row = [("she", "O"), *((word, "O") for word in rng.choice(VERBS).split())]
        is_place = rng.random() < 0.5
        name = rng.choice(PLACES).split() if is_place else [rng.choice(COLOURS), rng.choice(THINGS)]
        kind = "PLACE" if is_place else "THING"
        row += [(word, f"{'I' if i else 'B'}-{kind}") for i, word in enumerate(name)]
        row += [("today", "O")] * int(rng.integers(0, 4))
        words.append([word for word, _ in row])
        tags.append([tag for _, tag in row])
        labels.append("place" if is_place else "thing")
    return words, tags, labels


WORDS, TAGS, LABELS = sentences_of(120, 1)
NEW_WORDS, NEW_TAGS, NEW_LABELS = sentences_of(30, 2)


def examples(words, tags, labels=None, column=False):
    columns = [{"1": [str(len(word)) for word in row]} if column else {} for row in words]
    inputs = [Sentence(row, more) for row, more in zip(words, columns, strict=True)]
    return Examples("tokens", inputs, labels=labels, tags=tags, source="tests")


@pytest.fixture(scope="module")
def tagger():
    return ot.Tagger(epochs=12, learning_rate=0.02, **SMALL).fit(WORDS, TAGS)


@pytest.fixture(scope="module")
def joint():
    data = examples(WORDS, TAGS, LABELS)
    return ot.Tagger(epochs=12, learning_rate=0.02, **SMALL).fit(
        data, test=examples(NEW_WORDS, NEW_TAGS, NEW_LABELS)
    )


def test_it_learns_spans_and_scores_them_beside_the_most_frequent_tag(tagger):
    scores = tagger.evaluate(NEW_WORDS, NEW_TAGS)
    assert list(scores["model"]) == ["lstm"]
    assert scores["model"]["lstm"]["span_f1"] > 0.95
    assert scores["model"]["lstm"]["accuracy"] >= scores["baselines"]["most_frequent_tag"]["accuracy"]
    assert set(scores["baselines"]["most_frequent_tag"]) == {
        "accuracy",
        "span_f1",
        "span_precision",
        "span_recall",
    }
    assert tagger.metrics_["part"] == "validation"


def test_probabilities_are_of_the_tags_of_the_data(tagger):
    shares = tagger.predict_proba(NEW_WORDS)
    assert tagger.classes_ == ["B-PLACE", "B-THING", "I-PLACE", "I-THING", "O"]
    assert [len(row) for row in shares] == [len(row) for row in NEW_WORDS]
    for row, words in zip(shares, NEW_WORDS, strict=True):
        assert row.shape == (len(words), 5)
        np.testing.assert_allclose(row.sum(axis=1), 1.0)
    said = [[tagger.classes_[i] for i in row.argmax(axis=1)] for row in shares]
    same = sum(a == b for a, b in zip(said, tagger.predict(NEW_WORDS), strict=True))
    assert same >= len(NEW_WORDS) - 2


def test_one_by_one_says_what_a_batch_says(tagger):
    batch = tagger.predict_proba(NEW_WORDS)
    for words, row in zip(NEW_WORDS, batch, strict=True):
        np.testing.assert_allclose(tagger.predict_proba([words])[0], row, atol=1e-5)


def test_words_never_seen_and_empty_sentences_have_answers(tagger):
    assert [len(row) for row in tagger.predict([["Ωmega", "@"], [], ["she"]])] == [2, 0, 1]
    assert tagger.predict(["she left paris"]) == [["O", "O", "B-PLACE"]]
    assert tagger.predict([]) == []
    with pytest.raises(InputError, match="says tags alone"):
        tagger.predict_labels([["she"]])


def test_a_sentence_longer_than_a_stretch_is_one_sentence(tagger):
    words = [word for row in (NEW_WORDS * 30)[:400] for word in row]
    expected = [tag for row in (NEW_TAGS * 30)[:400] for tag in row]
    assert len(words) > 4 * LONGEST
    (tags,) = tagger.predict([words])
    assert len(tags) == len(words)
    assert np.mean([a == b for a, b in zip(tags, expected, strict=True)]) > 0.9
    (shares,) = tagger.predict_proba([words])
    assert shares.shape == (len(words), 5)


def test_it_learns_from_one_long_sentence():
    words, tags = [list(chain.from_iterable(rows)) for rows in (WORDS, TAGS)]
    one = ot.Tagger(epochs=4, learning_rate=0.02, **SMALL).fit(
        [words, words[::-1]], [tags, tags[::-1]], valid=(NEW_WORDS, NEW_TAGS)
    )
    assert one.metrics_["model"]["lstm"]["accuracy"] > 0.5


def test_labels_and_tags_are_learned_together(joint):
    scores = joint.metrics_
    assert scores["part"] == "test"
    assert scores["model"]["lstm"]["label_accuracy"] == 1.0
    assert scores["model"]["lstm"]["exact_match"] > 0.9
    assert scores["baselines"]["majority"]["label_accuracy"] < 0.9
    assert joint.labels_ == ["place", "thing"]
    assert joint.predict_labels(NEW_WORDS) == NEW_LABELS
    shares = joint.predict_label_proba(NEW_WORDS)
    assert shares.shape == (30, 2)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    long = joint.predict_label_proba([list(chain.from_iterable(NEW_WORDS * 20))])
    np.testing.assert_allclose(long.sum(), 1.0)


def test_a_run_folder_answers_like_the_tagger_it_holds(joint, tmp_path):
    joint.save(tmp_path / "run")
    again = ot.load(tmp_path / "run")
    assert again.predict(NEW_WORDS) == joint.predict(NEW_WORDS)
    for a, b in zip(again.predict_proba(NEW_WORDS), joint.predict_proba(NEW_WORDS), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.predict_label_proba(NEW_WORDS), joint.predict_label_proba(NEW_WORDS))
    new = examples(NEW_WORDS, NEW_TAGS, NEW_LABELS)
    assert again.evaluate(new) == joint.evaluate(new)


def test_joint_false_leaves_the_labels_alone():
    data = examples(WORDS[:40], TAGS[:40], LABELS[:40])
    assert ot.Tagger(joint=False, epochs=1, **SMALL).fit(data).labels_ == []
    with pytest.raises(InputError, match="0 different labels"):
        ot.Tagger(joint=True, epochs=1, **SMALL).fit(WORDS, TAGS)


def test_tags_that_are_no_spans_are_read_one_by_one():
    tags = [[tag[-5:] for tag in row] for row in TAGS]
    plain = ot.Tagger(epochs=4, learning_rate=0.02, **SMALL).fit(WORDS, tags)
    assert plain.settings_.decoder == "softmax"
    assert set(plain.metrics_["model"]["lstm"]) == {"accuracy"}
    assert plain.classes_ == ["O", "PLACE", "THING"]
    chained = ot.Tagger(decoder="crf", epochs=1, **SMALL).fit(WORDS[:40], tags[:40])
    assert chained.network_.crf is not None


def test_columns_are_learned_from_and_missed():
    data = examples(WORDS, TAGS, column=True)
    wide = ot.Tagger(features=["1"], epochs=1, **SMALL).fit(data)
    assert wide.columns_ == ["1"]
    with pytest.raises(InputError, match="no column '1'"):
        wide.predict(NEW_WORDS)
    other = examples([["she", "left"]], [["O", "O"]], column=True).inputs
    assert len(wide.predict(other)[0]) == 2
    with pytest.raises(InputError, match=r"features: no column 'pos'; further columns of the sentences: 1"):
        ot.Tagger(features="pos", epochs=1, **SMALL).fit(data)
    assert ot.Tagger(features="none", epochs=1, **SMALL).fit(data).columns_ == []


def test_answers_that_training_did_not_have_are_counted(tagger):
    tags = [["B-NEW" if tag == "B-PLACE" else tag for tag in row] for row in NEW_TAGS]
    before = tagger.evaluate(NEW_WORDS, NEW_TAGS)["model"]["lstm"]["accuracy"]
    n = sum(tag == "B-NEW" for row in tags for tag in row)
    after = tagger.evaluate(NEW_WORDS, tags)["model"]["lstm"]["accuracy"]
    assert tagger.notes_ == [f"{n} tags are none that training had and count as wrong answers: 'B-NEW' ({n})"]
    assert after == pytest.approx(before - n / sum(map(len, NEW_TAGS)), abs=0.02)


@pytest.mark.parametrize(
    ("words", "tags", "error", "message"),
    [
        ([["a", "b"]] * 9, [["X", "X"]] * 9, InputError, "one tag alone, 'X'"),
        ([["a", "b"]] * 9, [["X"]] * 9, InputError, "sentence 1 has 2 tokens and 1 tags"),
        ([["a", "b"]] * 9, [["X", "Y"]] * 8, SizeError, "tags of 8 sentences for 9"),
        ([["a", "b"]] * 9, ["XY"] * 9, InputError, r"y\[0\] is 'XY'; expected a list of tags"),
        ([["a", 3]] * 9, [["X", "Y"]] * 9, InputError, "sentence 0 is"),
        ([["a", "b"]], [["X", "Y"]], InputError, "too few to hold out"),
        ([[]] * 9, [[]] * 9, InputError, "every sentence of the data is empty"),
        ([], [], InputError, "no example"),
        ([["a", "b"]] * 9, None, InputError, "y is missing"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(words, tags, error, message):
    with pytest.raises(error, match=message):
        ot.Tagger(epochs=1, **SMALL).fit(words, tags)


def test_empty_sentences_are_neither_validated_nor_scored_on(tagger):
    words, tags = [*WORDS[:20], *[[]] * 60], [*TAGS[:20], *[[]] * 60]
    made = ot.Tagger(epochs=1, **SMALL).fit(words, tags)
    assert np.isfinite(made.metrics_["model"]["lstm"]["accuracy"])
    for name in ("valid", "test"):
        with pytest.raises(InputError, match=f"{name}: every sentence of the data is empty"):
            ot.Tagger(epochs=1, **SMALL).fit(WORDS, TAGS, **{name: ([[], []], [[], []])})
    with pytest.raises(InputError, match="data: every sentence of the data is empty"):
        tagger.evaluate([[]], [[]])


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="decoder='viterbi' is unknown; known: 'crf', 'softmax'"):
        ot.Tagger(decoder="viterbi").fit(WORDS, TAGS)
    with pytest.raises(InputError, match="has no parameter"):
        ot.Tagger().set_params(hiden=3)


class PowerCutError(Exception):
    """The end, without a word."""


def test_resumed_equals_never_interrupted(tmp_path, monkeypatch):
    data = examples(WORDS[:40], TAGS[:40], LABELS[:40])
    small = SMALL | {"epochs": 3, "hidden_size": 5}
    whole = ot.Tagger(**small).fit(data)
    ordinary, count = _Run._step, [0]

    def cut(run):
        count[0] += 1
        if count[0] == 8:
            run.store.write(run, "")
            raise PowerCutError
        return ordinary(run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", cut)
        with pytest.raises(PowerCutError):
            ot.Tagger(**small).fit(data, out=tmp_path / "run")
    resumed = ot.Tagger(**small).fit(data, out=tmp_path / "run", resume=True)
    assert resumed.metrics_ == whole.metrics_
    for a, b in zip(resumed.predict_proba(NEW_WORDS), whole.predict_proba(NEW_WORDS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_word_vectors_are_read_and_needed_no_more_afterwards(tmp_path):
    path = tmp_path / "vectors.txt"
    rng = np.random.default_rng(0)
    names = ["she", "paris", "oslo", "rome", "door"]
    path.write_text("".join(f"{name} {' '.join(f'{x:.3f}' for x in rng.normal(size=6))}\n" for name in names))
    with_vectors = ot.Tagger(vectors=str(path), epochs=1, **SMALL).fit(WORDS, TAGS, out=tmp_path / "run")
    path.unlink()
    again = ot.load(tmp_path / "run")
    for a, b in zip(again.predict_proba([["rome"]]), with_vectors.predict_proba([["rome"]]), strict=True):
        np.testing.assert_array_equal(a, b)
