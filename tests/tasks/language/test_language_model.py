import io
import json
import math

import numpy as np
import pytest

import ostinato as ot
from ostinato.errors import DataError, InputError, RunFolderError
from ostinato.tasks.language import plan
from ostinato.tasks.language.generation import until
from ostinato.tasks.language.scoring import fit_share, mixed_nats, text_nats, unit_nats

SMALL = {
    "hidden_size": 24, "embedding_size": 8, "num_layers": 1, "epochs": 4, "batch_size": 4, "chunk": 20,
    "learning_rate": 0.02, "dropout": 0.1, "progress": "quiet",
}  # fmt: skip


def lines(n=120, seed=0):
    rng = np.random.default_rng(seed)
    who, what = ["the cat", "a dog", "my friend"], ["sat on the mat", "ran away", "said so"]
    return "".join(f"{rng.choice(who)} {rng.choice(what)}, and {rng.choice(what)}.\n" for _ in range(n))


TEXT, OTHER = lines(), lines(20, 1)


def model(**given):
    return ot.LanguageModel(**{**SMALL, **given})


@pytest.fixture(scope="module")
def fitted():
    return model().fit(io.StringIO(TEXT), test=io.StringIO(OTHER))


def test_it_learns_characters_beside_its_baselines(fitted):
    scores = fitted.metrics_
    assert scores["part"] == "test"
    assert scores["validation"]["part"] == "validation"
    own = scores["model"]["lstm"]
    assert own["nats"] < scores["baselines"]["unigram"]["nats"] - 0.5
    assert own["perplexity"] == pytest.approx(math.exp(own["nats"]))
    # Of characters, line feeds counted, bits per character are the nats of a unit in another base.
    assert own["bits_per_char"] == pytest.approx(own["nats"] / math.log(2))
    assert "characters" in fitted.notes_[0]
    assert fitted.evaluate(io.StringIO(OTHER))["model"]["lstm"] == own
    assert fitted.score(io.StringIO(OTHER)) == -own["nats"]


def test_units_are_learned_from_the_training_part_only():
    fitted = model(epochs=1).fit(io.StringIO(TEXT), valid=io.StringIO("☃ a\n"), test=io.StringIO("♥ b\n"))
    assert "☃" not in fitted.units_.vocabulary.entries
    assert any("1 of 4 units of the validation part are unknown (25.00%)" in n for n in fitted.notes_)
    held = model(epochs=1, held_out=0.3).fit(io.StringIO("a b c\n" * 60 + "☃☃☃\n" * 5))
    assert "☃" not in held.units_.vocabulary.entries


def test_words_of_split_text_are_told_with_the_ends_of_their_lines():
    text = TEXT.replace(",", " ,").replace(".", " .")
    fitted = model(epochs=1).fit(io.StringIO(text))
    assert (fitted.settings_.unit, fitted.settings_.splitting, fitted.settings_.tied) == (
        "word",
        "blanks",
        False,
    )
    corpus = fitted._encoded(ot.tasks.language.estimator.open_texts(io.StringIO("a dog ran away\n")))
    assert len(corpus) == 5
    assert fitted.generate("a dog", length=5, seed=1).startswith(" ")


def test_the_mixture_with_ngrams_is_weighed_on_the_validation_part(fitted):
    assert 0 <= fitted.share_ < 1
    of_validation = {**fitted.metrics_["validation"]["model"], **fitted.metrics_["validation"]["baselines"]}
    nats = {name: scores["nats"] for name, scores in of_validation.items()}
    assert nats["lstm+kneser_ney_6"] <= min(nats.values()) + 1e-6
    network, ngrams = np.array([1.0, 3.0, 0.5]), np.array([2.0, 0.1, 4.0])
    share = fit_share(network, ngrams)
    at = [mixed_nats(network, ngrams, s) for s in (share - 0.05, share, share + 0.05)]
    assert at[1] < min(at[0], at[2])
    assert mixed_nats(network, ngrams, 1.0) == pytest.approx(4.5)
    assert fit_share(network, network + 30) == pytest.approx(1.0)


def test_the_score_of_a_text_does_not_depend_on_how_it_is_cut(fitted):
    corpus = fitted._encoded(ot.tasks.language.estimator.open_texts(io.StringIO(TEXT)))
    whole = text_nats(fitted.network_, corpus, streams=1)
    assert text_nats(fitted.network_, corpus, streams=7) == pytest.approx(whole, rel=1e-3)
    assert unit_nats(fitted.network_, corpus, streams=1).sum() == pytest.approx(whole, rel=1e-5)


def test_documents_are_told_without_what_came_before(tmp_path):
    fitted = model(epochs=1, documents="line").fit(io.StringIO(TEXT))
    line = "a dog ran away, and said so.\n"
    alone = fitted.evaluate(io.StringIO(line))["model"]["lstm"]["nats"]
    again = fitted.evaluate(io.StringIO(line * 3))["model"]["lstm"]["nats"]
    assert again == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"top_p": 0.7, "temperature": 0.5}, {"temperature": 0}]
)
def test_text_is_the_same_for_the_same_seed_and_whole_or_in_pieces(fitted, options):
    said = fitted.generate("a dog", length=40, seed=3, **options)
    assert said == "".join(fitted.stream("a dog", length=40, seed=3, **options))
    assert len(said) == 40
    assert "<unk>" not in said
    assert fitted.generate("a dog", length=10, seed=3, **options) == said[:10]
    if options.get("temperature") != 0:
        assert fitted.generate("a dog", length=40, seed=4, **options) != said


def test_the_quick_way_of_generating_says_what_the_network_says(fitted, monkeypatch):
    quick = fitted.generate("my fr", length=60, seed=5)
    monkeypatch.setattr("ostinato.tasks.language.generation.parts_of", lambda layer: ([], "not today"))
    assert fitted.generate("my fr", length=60, seed=5) == quick


def test_text_ends_before_the_stop_text(fitted):
    said = fitted.generate("", length=200, seed=1)
    assert fitted.generate("", length=200, seed=1, stop="\n") == said[: said.index("\n")]
    pieces = until(iter(["ab", "cx", "xd", "xxe"]), "xx")
    assert "".join(pieces) == "abc"
    assert list(until(iter(["aX", "b"]), "XY")) == ["a", "Xb", ""]


def test_unknown_characters_of_a_prompt_are_read_as_unknown_and_counted(fitted):
    assert len(fitted.generate("a ☃♥", length=5)) == 5
    assert fitted.notes_ == ["2 of 4 units of the prompt are unknown to the model, and read as such"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0"), ({"temperature": -1}, "temperature"), ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"), ({"seed": -1}, "seed"), ({"seed": 10**20}, "seed"),
        ({"temperature": "hot"}, "temperature"), ({"top_k": 2.5}, "top_k"), ({"stop": ["."]}, "stop"),
        ({"prompt": None}, "prompt=None: expected a text"),
    ],
)  # fmt: skip
def test_wrong_options_of_generating_are_refused_before_a_word_is_said(fitted, options, message):
    with pytest.raises(InputError, match=message):
        fitted.generate(**{"prompt": "a", **options})
    with pytest.raises(InputError, match=message):
        fitted.stream(**{"prompt": "a", **options})


def test_a_run_says_the_same_when_it_is_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    loaded = ot.load(tmp_path / "run")
    assert loaded.generate("my", length=30, seed=2) == fitted.generate("my", length=30, seed=2)
    assert loaded.evaluate(io.StringIO(OTHER)) == fitted.evaluate(io.StringIO(OTHER))
    assert loaded.metrics_ == json.loads(json.dumps(fitted.metrics_))


def test_a_killed_run_goes_on_to_what_it_would_have_been(tmp_path, monkeypatch):
    whole = model(weight_drop=0.2).fit(io.StringIO(TEXT), out=tmp_path / "whole")
    calls = {"n": 0}
    from ostinato.tasks.language import fitting

    real = fitting.text_nats

    def dying(*args, **more):
        calls["n"] += 1
        if calls["n"] == 8:  # in the second of four epochs
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(fitting, "text_nats", dying)
    monkeypatch.setattr(fitting.TrainingSettings, "__init__", _every_epoch(fitting.TrainingSettings.__init__))
    with pytest.raises(KeyboardInterrupt):
        model(weight_drop=0.2).fit(io.StringIO(TEXT), out=tmp_path / "killed")
    plan_file = tmp_path / "killed/checkpoints/plan.json"
    kept = plan_file.read_text()
    for damage in ("{", "[]", "{}", kept.replace('"hidden_size": 24', '"hidden_size": "q"')):
        plan_file.write_text(damage)
        with pytest.raises(RunFolderError, match=r"plan.json: is not what training wrote"):
            model(weight_drop=0.2).fit(io.StringIO(TEXT), out=tmp_path / "killed", resume=True)
    plan_file.write_text(kept)
    with pytest.raises(
        InputError, match=r"begun with other parameters \(hidden_size 24 → 25, epochs 4 → 5\)"
    ):
        model(weight_drop=0.2, epochs=5, hidden_size=25).fit(
            io.StringIO(TEXT), out=tmp_path / "killed", resume=True
        )
    resumed = model(weight_drop=0.2).fit(io.StringIO(TEXT), out=tmp_path / "killed", resume=True)
    assert resumed.metrics_ == whole.metrics_
    with pytest.raises(InputError, match="other parameters"):
        model(weight_drop=0.3).fit(io.StringIO(TEXT), out=tmp_path / "killed", resume=True)
    with pytest.raises(InputError, match="made from other data"):
        model(weight_drop=0.2).fit(io.StringIO(OTHER), out=tmp_path / "killed", resume=True)
    again = model(weight_drop=0.2).fit(io.StringIO(TEXT), out=tmp_path / "killed", resume=True)
    assert again.metrics_ == whole.metrics_


def _every_epoch(init):
    def changed(self, **given):
        init(self, **{**given, "checkpoint_every_epochs": 1})

    return changed


def test_a_time_limit_chooses_a_network_that_fits_and_is_kept():
    import time

    started_s = time.monotonic()
    fitted = ot.LanguageModel(max_time_s=3.0, progress="quiet").fit(io.StringIO(TEXT))
    assert time.monotonic() - started_s < 6
    assert fitted.settings_.hidden_size >= 128
    assert fitted.history_.steps >= 1


def test_an_adaptive_softmax_is_a_choice():
    fitted = model(unit="word", adaptive=True, vocabulary_size=20).fit(io.StringIO(TEXT))
    assert len(fitted.network_.embedding.weights) == 2
    assert fitted.generate("a dog", length=6, seed=1)
    assert np.isfinite(fitted.metrics_["model"]["lstm"]["nats"])


def test_a_time_limit_asks_for_larger_networks_of_longer_texts():
    settings = ot.LanguageModel(cell="lstm")
    speed_s = 6 / 240e9  # two cores
    char = plan.choose_size(settings, 1_003_854, 66, speed_s, 850.0)
    assert (char["hidden_size"], char["num_layers"], char["tied"]) == (512, 2, False)
    word = plan.choose_size(settings, 929_589, 10_000, speed_s, 1150.0)
    assert (word["hidden_size"], word["embedding_size"], word["tied"]) == (512, 256, True)
    assert plan.choose_size(settings, 929_589, 10_000, speed_s, 100.0)["hidden_size"] == 128
    assert plan.choose_size(settings, 50_000, 66, None, None)["hidden_size"] == 128
    assert plan.choose_size(settings, 10**8, 50_000, None, None)["adaptive"]


@pytest.mark.parametrize("cell", ["gru", "mingru"])
def test_other_cells_learn_too(cell):
    fitted = model(cell=cell, epochs=1).fit(io.StringIO(TEXT))
    assert list(fitted.metrics_["model"]) == [cell, f"{cell}+kneser_ney_6"]
    assert fitted.generate("a", length=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "letter"}, "unit"), ({"hidden_size": 0}, "hidden_size"), ({"dropout": 1.0}, "dropout"),
        ({"held_out": 0}, "held_out"), ({"documents": "page"}, "documents"),
        ({"averaging": "x"}, "averaging"),
        ({"splitting": "blanks", "unit": "char"}, "splitting"), ({"cell": "transformer"}, "cell"),
        ({"slowness": -1.0}, "slowness"), ({"epochs": 0}, "epochs"), ({"dropout": "a"}, "dropout"),
        ({"activation": "a"}, "activation"), ({"held_out": "a"}, "held_out"),
        ({"unit": "bpe", "vocabulary_size": 100}, "vocabulary_size=100: .* at least 256"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_before_any_file_is_read(options, message):
    with pytest.raises(InputError, match=message):
        ot.LanguageModel(**options).fit("no such file")


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("a", "too short to hold out")])
def test_texts_too_short_to_learn_from_are_refused(text, message):
    with pytest.raises(DataError, match=message):
        model(epochs=1).fit(io.StringIO(text))


def test_a_text_shorter_than_a_chunk_is_learned():
    fitted = model(epochs=1, chunk=500).fit(io.StringIO("a short text\nof two lines\n"))
    assert fitted.history_.steps == 1


def test_a_run_that_begins_with_another_takes_its_kind_of_units(tmp_path):
    words = "a dog , a cat and a hen ran .\n" * 40
    model(epochs=1).fit(io.StringIO(words), out=tmp_path / "words")
    plain = "A dog and a hen, they ran.\n" * 20
    began = ot.LanguageModel(init=tmp_path / "words", epochs=1, progress="quiet").fit(io.StringIO(plain))
    assert (began.settings_.unit, began.settings_.splitting) == ("word", "blanks")
    assert any("units begin with the vectors" in note for note in began.notes_)
    for given in ({"unit": "char"}, {"splitting": "words"}, {"unit": "bpe"}):
        with pytest.raises(InputError, match=r"the run in init=.* has '(word|blanks)'; leave it out"):
            ot.LanguageModel(init=tmp_path / "words", **given).fit(io.StringIO(plain))
    with pytest.raises(InputError, match="init=5: expected the folder"):
        ot.LanguageModel(init=5).fit("no such file")


def test_byte_pairs_are_those_of_the_run_that_init_names(tmp_path):
    first = model(epochs=1, unit="bpe", vocabulary_size=300).fit(io.StringIO(TEXT), out=tmp_path / "run")
    on = ot.LanguageModel(init=tmp_path / "run", epochs=1, progress="quiet").fit(io.StringIO(OTHER * 3))
    V = len(first.units_)
    assert len(on.units_) == V
    assert f"{V - 1} of {V - 1} units begin with the vectors of the run that init names" in on.notes_
    assert not any("unknown" in note for note in on.notes_)
    with pytest.raises(InputError, match="the byte pairs are those of the run"):
        ot.LanguageModel(init=tmp_path / "run", vocabulary_size=400).fit(io.StringIO(OTHER))


def test_blank_lines_among_documents_are_counted():
    fitted = model(epochs=1, documents="line").fit(io.StringIO("anna\n\nbert\n" * 30))
    assert any("blank lines of the training part are no documents" in note for note in fitted.notes_)
    fitted.evaluate(io.StringIO("anna\n \n\n"))
    assert fitted.notes_ == ["2 blank lines of the text are no documents, left out"]


def test_text_in_another_encoding_is_scored(fitted, tmp_path):
    (tmp_path / "other").write_bytes(OTHER.encode("utf-16"))
    loaded = ot.load(fitted.save(tmp_path / "run") and tmp_path / "run").read_with(encoding="utf-16")
    assert loaded.evaluate(tmp_path / "other") == fitted.evaluate(io.StringIO(OTHER))


def test_a_share_that_is_none_is_damage(fitted, tmp_path):
    share, fitted.share_ = fitted.share_, "much"
    fitted.save(tmp_path / "run")
    fitted.share_ = share
    with pytest.raises(RunFolderError, match="do not fit each other"):
        ot.load(tmp_path / "run")


@pytest.mark.parametrize("unit", ["word", "bpe"])
def test_a_blank_at_the_end_of_a_prompt_belongs_to_what_comes(unit):
    given = {"vocabulary_size": 300} if unit == "bpe" else {}
    fitted = model(epochs=1, unit=unit, **given).fit(io.StringIO(TEXT))
    for seed in range(4):
        bare = "the" + fitted.generate("the", length=9, seed=seed)
        spaced = "the " + fitted.generate("the ", length=9, seed=seed)
        assert spaced == bare or not bare.startswith("the ")
    assert fitted.generate("\n  ", length=9) == fitted.generate("\n", length=9)
