"""Classifiers and taggers that begin with the run of another."""

import shutil

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.examples import Examples, Sentence
from ostinato.errors import InputError
from ostinato.types import State

rng = np.random.default_rng(0)
WORDS = {"good": ["fine", "great", "superb", "lovely"], "bad": ["poor", "awful", "dull", "dreary"]}
THINGS = ["film", "book", "song", "play", "story"]
QUICK = {"progress": "quiet", "epochs": 3, "hidden_size": 8, "batch_size": 16}
# Nothing is learned: the network says what it said at first.
STILL = {"progress": "quiet", "epochs": 1, "learning_rate": 1e-12}


def reviews(n, things=THINGS, names=("good", "bad")):
    kinds = rng.permutation(np.arange(n) % 2)
    texts = [f"a {rng.choice(WORDS[['good', 'bad'][k]])} {rng.choice(things)}, really" for k in kinds]
    return texts, [names[k] for k in kinds]


def deep_logits(classifier, inputs):
    """What the network of the first member says, without the linear model beside it."""
    encoded = classifier.preparation_.encode(inputs)
    member = classifier.network_.members[0].eval()
    network = getattr(member, "network", member)
    with torch.no_grad():
        return network(encoded.batch(np.arange(len(inputs)))).numpy()


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "run"
    texts, labels = reviews(160)
    return ot.Classifier(members=1, **{**QUICK, "epochs": 6}).fit(texts, labels).save(path), str(path)


def test_a_classifier_says_at_first_what_the_other_said(texts_run, tmp_path):
    first, path = texts_run
    texts, labels = reviews(40, [*THINGS, "opera", "ballet"])
    begun = ot.Classifier(init=path, members=2, **STILL).fit(texts, labels)
    assert begun.settings_.hidden_size == 8
    words = begun.preparation_.tokens.words
    assert words.entries[: len(first.preparation_.tokens.words.entries)] == (
        first.preparation_.tokens.words.entries
    )
    assert "opera" in words
    assert "opera" not in first.preparation_.tokens.words
    asked = [*texts, "a fine opera", "Ω superb!", ""]
    np.testing.assert_allclose(deep_logits(begun, asked), deep_logits(first, asked), atol=1e-6)
    assert any("2 of 2 classes are known" in note for note in begun.notes_)
    begun.save(tmp_path / "begun")
    loaded = ot.load(tmp_path / "begun")
    np.testing.assert_array_equal(loaded.predict_proba(asked), begun.predict_proba(asked))
    # A second generation.
    again = ot.Classifier(init=tmp_path / "begun", members=1, **STILL).fit(texts, labels)
    np.testing.assert_allclose(deep_logits(again, asked), deep_logits(first, asked), atol=1e-6)


def test_classes_in_another_order_or_of_other_names(texts_run):
    first, path = texts_run
    texts, labels = reviews(40, names=("good", "awful"))
    begun = ot.Classifier(init=path, members=1, **STILL).fit(texts, labels)
    assert any("1 of 2 classes are known" in note for note in begun.notes_)
    # good is the second there and here; the other one is new.
    said, had = deep_logits(begun, texts), deep_logits(first, texts)
    np.testing.assert_allclose(said[:, 1], had[:, 1], atol=1e-6)
    assert np.abs(said[:, 0] - had[:, 0]).max() > 1e-2
    network, old = begun.network_.members[0].network, first.network_.members[0].network
    for new, taken in zip(network.encoder.parameters(), old.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, taken)


def test_few_labels_go_further_with_a_run_to_begin_with(texts_run):
    _, path = texts_run
    texts, labels = reviews(24)
    tests = reviews(100)
    few = {"progress": "quiet", "epochs": 1, "members": 1, "hidden_size": 8}
    losses = []
    for init in (None, path):
        fitted = ot.Classifier(init=init, **few).fit(texts, labels)
        logits = torch.as_tensor(deep_logits(fitted, tests[0]))
        y = torch.as_tensor([list(fitted.classes_).index(label) for label in tests[1]])
        losses.append(float(torch.nn.functional.cross_entropy(logits, y)))
    assert losses[1] < 0.8 * losses[0]


def _letters(n, alphabet="ACGT", length=40):
    rows = ["".join(rng.choice(list(alphabet), length)) for _ in range(n)]
    return rows, ["yes" if row.count("A") > length / 4 else "no" for row in rows]


def _signals(n, width=3):
    y = rng.integers(0, 2, n)
    return [rng.normal(size=(rng.integers(5, 12), width)) * (1 + k) for k in y], y


def _trees(n, things):
    kinds = rng.integers(0, 2, n)
    return [f"({k} (2 {rng.choice(things)}) ({k} {['poor', 'fine'][k]}))" for k in kinds]


@pytest.mark.parametrize("kind", ["letters", "arrays", "documents", "char", "bpe", "vectors"])
def test_inputs_of_every_kind(kind, tmp_path):
    given = {"members": 1, **QUICK}
    if kind == "letters":
        options, data, other = {"letters": True}, _letters(60), _letters(30, "ACGTN", 30)
    elif kind == "arrays":
        options, data, other = {}, _signals(40), _signals(30)
    else:
        options, data, other = {}, reviews(60), reviews(30, ["öpera", "novel"])
        given |= {"hierarchy": True} if kind == "documents" else {"unit": kind}
    if kind == "vectors":
        # Of the words that only the other reviews have, the vectors know one.
        rows = [
            f"{word} " + " ".join(map(str, rng.normal(size=3))) for word in ["film", "novel", "fine", "x"]
        ]
        (tmp_path / "vectors.txt").write_text("\n".join(rows) + "\n")
        given |= {"vectors": tmp_path / "vectors.txt", "unit": "word"}
    first = ot.Classifier(**given).fit(*data, **options).save(tmp_path / "run")
    own = {"hierarchy": True} if kind == "documents" else {}
    begun = ot.Classifier(init=tmp_path / "run", members=1, **own, **STILL).fit(*other, **options)
    np.testing.assert_allclose(deep_logits(begun, other[0]), deep_logits(first, other[0]), atol=1e-5)
    if kind == "letters":
        assert begun.preparation_.alphabet == "ACGNT"
    if kind == "vectors":
        assert "novel" in begun.preparation_.tokens.words
        assert begun.preparation_.tokens.vector_words == ("x",)


def test_trees_begin_with_trees(tmp_path):
    (tmp_path / "some.txt").write_text("\n".join(_trees(60, THINGS)))
    (tmp_path / "others.txt").write_text("\n".join(_trees(30, ["opera", *THINGS])))
    given = {"tree": True, "members": 1}
    first = ot.Classifier(**given, **QUICK).fit(tmp_path / "some.txt").save(tmp_path / "run")
    begun = ot.Classifier(init=tmp_path / "run", **given, **STILL).fit(tmp_path / "others.txt")
    from ostinato.data.labelled import read_labelled

    asked = read_labelled(tmp_path / "others.txt", kind="trees").inputs
    np.testing.assert_allclose(deep_logits(begun, asked), deep_logits(first, asked), atol=1e-6)


def test_a_classifier_begins_with_one_that_began_with_a_language_model(tmp_path):
    import io

    texts, labels = reviews(60)
    model = ot.LanguageModel(hidden_size=8, embedding_size=6, num_layers=1, unit="word", epochs=1)
    model.set_params(progress="quiet").fit(io.StringIO("\n".join(texts))).save(tmp_path / "language")
    given = {"progress": "quiet", "epochs": 2, "members": 1}
    first = ot.Classifier(init=tmp_path / "language", **given).fit(texts, labels).save(tmp_path / "run")
    begun = ot.Classifier(init=tmp_path / "run", members=1, **STILL).fit(*reviews(30))
    np.testing.assert_allclose(deep_logits(begun, texts), deep_logits(first, texts), atol=1e-6)
    words = [text.split() for text in texts]
    tags = [["T" if word[:-1] in THINGS else "O" for word in row] for row in words]
    given = {"init": tmp_path / "language", "hidden_size": 8, "word_size": 6, "progress": "quiet"}
    tagger = ot.Tagger(epochs=2, **given).fit(words, tags).save(tmp_path / "tagger")
    again = ot.Tagger(init=tmp_path / "tagger", **STILL).fit(words[:20], tags[:20])
    assert again.network_.language is not None
    np.testing.assert_allclose(
        np.concatenate(emissions(again, words[:7])), np.concatenate(emissions(tagger, words[:7])), atol=1e-6
    )


# ------------------------------------------------------------------------------------------------ tagger


def emissions(tagger, sentences):
    """(T, K) of each sentence, before the chain; a sentence may be words, or have further columns."""
    said = []
    for one in sentences:
        tokens = one if isinstance(one, Sentence) else Sentence(one)
        encoded = tagger.preparation_.encode([tokens])
        with torch.no_grad():
            out = tagger.network_.eval()(encoded.batch([0]))
        said.append((out[0] if isinstance(out, tuple) else out)[0, : len(tokens)].numpy())
    return said


PLACES = ["rome", "paris", "oslo", "lima"]


def trips(n, places=PLACES, tag="B-CITY", columns=False, labels=False):
    rows, tags, said = [], [], []
    for _ in range(n):
        k = int(rng.integers(0, 2))
        words = [["go", "fly"][k], "to", str(rng.choice(places)), "now"][: int(rng.integers(3, 5))]
        rows.append(
            Sentence(words, {"1": [["V", "P", "N", "A"][i] for i in range(len(words))]} if columns else {})
        )
        tags.append([tag if word in places else "O" for word in words])
        said.append(["walk", "plane"][k])
    return Examples("tokens", rows, tags=tags, labels=said if labels else None, source="trips")


TAGGER = {"word_size": 8, **QUICK}


@pytest.fixture(scope="module")
def tags_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("tags") / "run"
    first = ot.Tagger(features=["1"], **{**TAGGER, "epochs": 8}).fit(trips(80, columns=True))
    return first.save(path), str(path)


def test_a_tagger_says_at_first_what_the_other_said(tags_run, tmp_path):
    first, path = tags_run
    more = trips(30, [*PLACES, "cairo"], columns=True)
    begun = ot.Tagger(init=path, **STILL).fit(more)
    assert begun.columns_ == ["1"]
    assert begun.settings_.hidden_size == 8
    assert "cairo" in begun.preparation_.words
    for own, had in zip(emissions(begun, more.inputs), emissions(first, more.inputs), strict=True):
        np.testing.assert_allclose(own, had, atol=1e-5)
    torch.testing.assert_close(begun.network_.crf.transitions, first.network_.crf.transitions)
    assert begun.predict(list(more.inputs)) == first.predict(list(more.inputs))
    begun.save(tmp_path / "begun")
    assert ot.load(tmp_path / "begun").predict(list(more.inputs)) == begun.predict(list(more.inputs))


def test_tags_and_labels_that_are_new_begin_afresh(tags_run):
    first, path = tags_run
    both = trips(30, tag="B-PLACE", columns=True, labels=True)
    begun = ot.Tagger(init=path, **STILL).fit(both)
    assert begun.labels_ == ["plane", "walk"]
    note = next(note for note in begun.notes_ if "begins with the run" in note)
    assert "1 of 2 tags and 0 of 2 labels are known" in note
    o, had = begun.answers_.learned.index("O"), first.answers_.learned.index("O")
    torch.testing.assert_close(begun.network_.head.weight[o], first.network_.head.weight[had])
    softmax = ot.Tagger(init=path, decoder="softmax", **STILL).fit(trips(30, columns=True))
    assert softmax.network_.crf is None
    torch.testing.assert_close(
        emissions(softmax, both.inputs[:1])[0], emissions(first, both.inputs[:1])[0], atol=1e-5, rtol=0
    )


# ----------------------------------------------------------------------------------------------- refused


def test_what_does_not_fit_is_refused(texts_run, tags_run, tmp_path):
    (_, texts), (_, tags) = texts_run, tags_run
    x, y = reviews(30)
    quiet = {"progress": "quiet"}
    with pytest.raises(InputError, match=r"hidden_size=9: the run in init='.*' has 8; leave it out"):
        ot.Classifier(init=texts, hidden_size=9, **quiet).fit(x, y)
    with pytest.raises(InputError, match=r"unit='char': the run in init='.*' has 'word'"):
        ot.Classifier(init=texts, unit="char", **quiet).fit(x, y)
    with pytest.raises(InputError, match="the run there reads text, found documents; leave hierarchy out"):
        ot.Classifier(init=texts, hierarchy=True, **quiet).fit(x, y)
    with pytest.raises(InputError, match="the run there reads text, found arrays; give text"):
        ot.Classifier(init=texts, **quiet).fit(*_signals(30))
    with pytest.raises(InputError, match=r"vectors='v\.txt': words begin as the run in init"):
        ot.Classifier(init=texts, vectors="v.txt", **quiet).fit(x, y)
    with pytest.raises(InputError, match="holds a 'tagger'; begin with a run of ostinato train language or"):
        ot.Classifier(init=tags, **quiet).fit(x, y)
    with pytest.raises(InputError, match="sees the column '1'; further columns of the sentences: none"):
        ot.Tagger(init=tags, **quiet).fit(trips(30))
    with pytest.raises(InputError, match=r"features='none': the run in init='.*' sees 1"):
        ot.Tagger(init=tags, features="none", **quiet).fit(trips(30, columns=True))
    ot.Classifier(members=1, **QUICK).fit(*_signals(30)).save(tmp_path / "signals")
    with pytest.raises(InputError, match="the run reads arrays of 3 columns, found 2"):
        ot.Classifier(init=tmp_path / "signals", **quiet).fit(*_signals(30, 2))


def test_signals_need_the_same_columns(tmp_path):
    def write(path, names):
        lines = ["id,step,label," + ",".join(names)]
        for i in range(24):
            values = rng.normal(size=(5, 2)) * (1 + i % 2)
            lines += [f"{i},{t},{'ab'[i % 2]},{values[t, 0]:.3f},{values[t, 1]:.3f}" for t in range(5)]
        path.write_text("\n".join(lines) + "\n")
        return path

    given = {"sequence": "id", "label": "label", "time": "step"}
    first = ot.Classifier(members=1, **QUICK).fit(write(tmp_path / "a.csv", ["x", "y"]), **given)
    first.save(tmp_path / "run")
    other = write(tmp_path / "b.csv", ["y", "x"])
    with pytest.raises(InputError, match=r"values: the run in init=.* reads the columns x, y, found y, x"):
        ot.Classifier(init=tmp_path / "run", **STILL).fit(other, **given)
    ot.Classifier(init=tmp_path / "run", members=1, **STILL).fit(other, values=["x", "y"], **given)


def test_a_run_that_was_begun_is_gone_on_with(texts_run, tmp_path):
    path = texts_run[1]
    data = reviews(30)
    given = {"init": path, "members": 1, "epochs": 2, "progress": "quiet"}
    whole = ot.Classifier(**given).fit(*data, out=tmp_path / "run")
    again = ot.Classifier(**given).fit(*data, out=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(again.predict_proba(data[0]), whole.predict_proba(data[0]))
    with pytest.raises(InputError, match="made with other parameters"):
        ot.Classifier(**{**given, "init": None}).fit(*data, out=tmp_path / "run", resume=True)
    # Cut off after its first checkpoint.
    for name in ("manifest.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    resumed = ot.Classifier(**given).fit(*data, out=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(resumed.predict_proba(data[0]), whole.predict_proba(data[0]))


def test_a_run_is_gone_on_with_from_the_same_beginning_only(texts_run, tmp_path):
    first = texts_run[0]
    data = reviews(30)
    first.save(tmp_path / "first")
    given = {"init": tmp_path / "first", "members": 1, "epochs": 2, "progress": "quiet"}
    ot.Classifier(**given).fit(*data, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "first")
    # A finished run needs it no more.
    ot.Classifier(**given).fit(*data, out=tmp_path / "run", resume=True)
    ot.Classifier(members=1, **QUICK).fit(*reviews(40)).save(tmp_path / "first")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"other data .the run to begin with: another one.; resume"):
        ot.Classifier(**given).fit(*data, out=tmp_path / "run", resume=True)


class Leaky(ot.Cell):
    """A cell that is none of ours."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size = input_size
        self.output_size = hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.weight = torch.nn.Linear(input_size + hidden_size, hidden_size)

    def step(self, x, state):
        h = 0.5 * state["h"] + torch.tanh(self.weight(torch.cat([x, state["h"]], 1)))
        return h, State({"h": h})


def test_a_cell_of_the_users_own_is_passed_again(tmp_path):
    data = _signals(30)
    first = ot.Classifier(cell=Leaky, members=1, **{**QUICK, "epochs": 1}).fit(*data).save(tmp_path / "run")
    with pytest.raises(
        InputError, match="the cell 'Leaky' of the run is not part of ostinato; pass its class"
    ):
        ot.Classifier(init=tmp_path / "run", **STILL).fit(*data)
    begun = ot.Classifier(init=tmp_path / "run", cell=Leaky, members=1, **STILL).fit(*data)
    np.testing.assert_allclose(deep_logits(begun, data[0]), deep_logits(first, data[0]), atol=1e-6)


def test_the_same_data_twice_is_said(texts_run, tmp_path):
    data = reviews(30)
    ot.Classifier(members=1, **QUICK).fit(*data).save(tmp_path / "run")
    begun = ot.Classifier(init=tmp_path / "run", members=1, **STILL).fit(*data)
    assert any("learned from the same data" in note for note in begun.notes_)
