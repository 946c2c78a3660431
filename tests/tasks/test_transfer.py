import io

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.errors import InputError
from ostinato.tasks.transfer import LanguageSource

rng = np.random.default_rng(0)
TEXT = "".join(
    f"{rng.choice(['who', 'what', 'where'])} {rng.choice(['is', 'was'])} the {rng.choice(['dog', 'cat'])} of "
    f"{rng.choice(['rome', 'paris'])} ?\n"
    for _ in range(300)
)
LINES = TEXT.split("\n")[:90]
LABELS = [line.split()[0] for line in LINES]
QUICK = {"progress": "quiet", "epochs": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("language") / "run"
    model = ot.LanguageModel(hidden_size=20, embedding_size=8, num_layers=2, unit="word", **QUICK)
    model.fit(io.StringIO(TEXT)).save(path)
    return path


def test_a_classifier_begins_with_a_language_model(run, tmp_path):
    fitted = ot.Classifier(init=str(run), members=1, **QUICK).fit(LINES, LABELS)
    assert (fitted.settings_.hidden_size, fitted.settings_.num_layers) == (20, 2)
    source, found = LanguageSource.read(run), fitted.network_.members[0].network.language
    assert torch.equal(source.tensors["embedding.weights.0"], found.state_dict()["embedding.weights.0"])
    fitted.save(tmp_path / "classifier")
    loaded = ot.load(tmp_path / "classifier")
    np.testing.assert_array_equal(loaded.predict_proba(LINES), fitted.predict_proba(LINES))
    assert loaded.predict(["", "who is the cow ?"]).shape == (2,)
    assert any("unknown to the language model" in note for note in loaded.notes_)


def test_fine_tuning_learns_what_a_linear_model_cannot(run):
    """Either of two words, but not both, from outputs that hardly vary: they must not be blown up."""
    labels = [str((line.split()[1] == "is") != ("dog" in line)) for line in LINES]
    given = {**QUICK, "epochs": 25, "learning_rate": 5e-3, "members": 1}
    fitted = ot.Classifier(init=str(run), **given).fit(LINES, labels, valid=(LINES, labels))
    losses = [loss for loss in fitted.history_["log_loss"] if np.isfinite(loss)]
    assert losses[-1] < 0.5 * losses[0]
    before, after = LanguageSource.read(run).tensors, fitted.network_.members[0].network.language.state_dict()
    layers = [name for name in after if name.startswith("layers.")]
    assert layers
    assert all(0 < (before[name] - after[name]).abs().max() < 0.1 for name in layers)


def test_a_language_model_begins_with_another_that_knows_other_words(run):
    other = TEXT.replace("rome", "london")
    fresh = ot.LanguageModel(init=str(run), unit="word", **{**QUICK, "epochs": 1}).fit(io.StringIO(other))
    scratch = ot.LanguageModel(
        hidden_size=20, embedding_size=8, num_layers=2, unit="word", **{**QUICK, "epochs": 1}
    ).fit(io.StringIO(other))
    assert any("of 13 units begin with the vectors" in note for note in fresh.notes_)
    own, plain = (m.metrics_["model"]["lstm"]["nats"] for m in (fresh, scratch))
    assert own < plain


def test_what_the_run_decides_cannot_be_asked_for(run, tmp_path):
    with pytest.raises(InputError, match=r"hidden_size=7: the run in init=.* has 20; leave it out"):
        ot.LanguageModel(init=str(run), hidden_size=7, **QUICK).fit(io.StringIO(TEXT))
    with pytest.raises(InputError, match="unit='char': the language model of init decides it"):
        ot.Classifier(init=str(run), unit="char", **QUICK).fit(LINES, LABELS)
    with pytest.raises(InputError, match="init: a language model reads texts, found arrays"):
        ot.Classifier(init=str(run), **QUICK).fit(np.zeros((20, 5, 2), np.float32), [0, 1] * 10)
    ot.Classifier(hidden_size=8, members=1, **QUICK).fit(LINES, LABELS).save(tmp_path / "other")
    with pytest.raises(InputError, match="holds a 'classifier'"):
        ot.LanguageModel(init=str(tmp_path / "other"), **QUICK).fit(io.StringIO(TEXT))


@pytest.mark.parametrize("unit", ["word", "char"])
def test_a_tagger_reads_words_by_a_language_model_too(tmp_path, unit):
    splitting = "blanks" if unit == "word" else None
    model = ot.LanguageModel(
        hidden_size=16, embedding_size=8, num_layers=1, unit=unit, splitting=splitting, epochs=1,
        progress="quiet",
    ).fit(io.StringIO(TEXT))  # fmt: skip
    model.save(tmp_path / "language")
    words = [line.split() for line in LINES]
    tags = [["W" if w.startswith("w") else "N" if w in ("dog", "cat") else "O" for w in row] for row in words]
    given = {"hidden_size": 10, "word_size": 8, "batch_size": 16, **QUICK}
    fitted = ot.Tagger(init=str(tmp_path / "language"), **given).fit(words, tags)
    network = fitted.network_
    assert network.language is not None
    assert network.encoder.input_size == network.tokens.output_size + 16
    before = LanguageSource.read(tmp_path / "language").tensors["layers.0.weight_hh_l0"]
    assert not torch.equal(network.language.layers[0].weight_hh_l0, before)
    fitted.save(tmp_path / "tagger")
    loaded = ot.load(tmp_path / "tagger")
    assert loaded.predict(words[:5]) == fitted.predict(words[:5])
    whole = np.concatenate(fitted.predict_proba(words[:6]))
    alone = np.concatenate([fitted.predict_proba([row])[0] for row in words[:6]])
    np.testing.assert_allclose(whole, alone, atol=1e-5)
