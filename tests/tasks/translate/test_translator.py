"""`Translator` and `Summarizer` from pairs to answers, scores and run folders."""

import dataclasses
import io
import random

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.errors import DataError, InputError
from ostinato.training.run_folder import RunFolder

WORDS = {"ein": "a", "der": "the", "Hund": "dog", "Mann": "man", "läuft": "runs", "schläft": "sleeps"}
WORDS |= {"roter": "red", "alter": "old", "kleiner": "small", "Vogel": "bird"}
SMALL = {"hidden_size": 16, "embedding_size": 12, "batch_size": 16, "epochs": 3, "progress": "quiet"}


def pairs(n=80, seed=0):
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        words = [draw.choice(["ein", "der"]), draw.choice(["roter", "alter", "kleiner"])]
        words += [draw.choice(["Hund", "Mann", "Vogel"]), draw.choice(["läuft", "schläft"])]
        rows.append((" ".join(words) + ".", " ".join(WORDS[word] for word in words) + "."))
    return rows


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A translator that has learned, its run, and its training pairs."""
    folder = tmp_path_factory.mktemp("translator")
    rows = pairs(300)
    translator = ot.Translator(
        unit="word", hidden_size=32, embedding_size=24, dropout=0.0, epochs=24, batch_size=16,
        learning_rate=0.01, held_out=0.2, progress="quiet",
    )  # fmt: skip
    translator.fit(rows, test=pairs(20, seed=9), out=folder / "run")
    return translator, folder / "run", rows


def test_a_small_language_is_learned_and_scored_beside_baselines(fitted):
    translator, _, _ = fitted
    metrics = translator.metrics_
    assert metrics["part"] == "test"
    scores = metrics["model"]["lstm"]
    assert set(scores) == {"bleu", "chrf", "rouge_l", "exact_match", "token_error_rate"}
    assert scores["bleu"] > 90
    assert metrics["baselines"]["copy_source"]["exact_match"] == 0
    assert metrics["baselines"]["word_table"]["token_error_rate"] == 0
    assert translator.predict(["der alte Hund schläft.", ""])[1] == ""
    assert translator.notes_ == [
        "1 empty sources, answered with nothing", "1 of 5 units of the sources are unknown to the network"
    ]  # fmt: skip
    assert translator.predict(["ein kleiner Vogel läuft."]) == ["a small bird runs."]


def test_a_run_folder_gives_the_same_answers(fitted):
    translator, run, rows = fitted
    again = ot.load(run)
    sources = [source for source, _ in rows[:30]]
    assert again.predict(sources) == translator.predict(sources)
    assert again.evaluate(rows[:30]) == translator.evaluate(rows[:30])
    assert again.metrics_ == translator.metrics_
    assert repr(again) == repr(translator)
    assert RunFolder.open(run).kind == "translator"


def test_files_may_be_in_another_encoding(fitted, tmp_path):
    _, run, _ = fitted
    (tmp_path / "latin").write_bytes("ein kleiner Vogel läuft.\tx\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        ot.load(run).predict(tmp_path / "latin")
    assert ot.load(run).read_with(encoding="latin-1").predict(tmp_path / "latin") == ["a small bird runs."]
    with pytest.raises(InputError, match="the options are: source, target, encoding"):
        ot.load(run).read_with(separator=",")


def test_each_source_counts_once_and_any_of_its_targets_is_right(fitted):
    translator, _, _ = fitted
    source = "ein kleiner Vogel läuft."
    scores = translator.evaluate([source] * 3, ["something else", "a small bird runs.", "no"])
    assert scores["model"]["lstm"]["exact_match"] == 1
    assert "3 pairs have 1 different sources" in translator.notes_[-1]


def test_attention_and_beams_are_given_on_request(fitted):
    translator, _, _ = fitted
    (one,) = translator.translate(["der rote Mann läuft."], attention=True, beam=2)
    (piece,) = one.pieces
    assert piece.weights.shape == (len(piece.target), len(piece.source))
    for beam in (0, 2.5, "3", True):
        with pytest.raises(InputError, match=r"beam is .* expected a whole number"):
            translator.predict(["x"], beam=beam)
    long = "der rote Mann läuft. " * 60
    (one,) = translator.translate([long])
    assert len(one.pieces) > 1
    assert translator.notes_[0].startswith("1 sources of more than")


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (pairs(), {"unit": "word"}),
        ([(a[0] + b[-4:], f"{a[0]} {b[-4]} {b[-3:]}") for a, b in pairs()],
         {"unit": "char,symbol", "attention": "monotonic", "joint": True}),
    ],
    ids=["general", "monotonic"],
)  # fmt: skip
def test_a_run_that_was_interrupted_goes_on_as_if_it_was_not(rows, options, tmp_path, monkeypatch):
    given = {**SMALL, **options}
    whole = ot.Translator(**given).fit(rows)
    from ostinato.training import loop

    steps = 0
    original = loop._Run._step

    def stopping(run):
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return original(run)

    monkeypatch.setattr(loop._Run, "_step", stopping)
    from ostinato.tasks.translate import estimator as module
    from ostinato.training.settings import TrainingSettings

    settings = module.training_settings

    def often(chosen, count):
        return TrainingSettings(**settings(chosen, count).to_mapping() | {"checkpoint_every_steps": 2})

    monkeypatch.setattr(module, "training_settings", often)
    with pytest.raises(KeyboardInterrupt):
        ot.Translator(**given).fit(rows, out=tmp_path / "run")
    monkeypatch.setattr(loop._Run, "_step", original)
    with pytest.raises(InputError, match=r"begun with other parameters \(dropout None → 0.4"):
        ot.Translator(**{**given, "dropout": 0.4}).fit(rows, out=tmp_path / "run", resume=True)
    resumed = ot.Translator(**given).fit(rows, out=tmp_path / "run", resume=True)
    for mine, theirs in zip(whole.network_.parameters(), resumed.network_.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.metrics_ == whole.metrics_
    finished = ot.Translator(**given).fit(rows, out=tmp_path / "run", resume=True)
    assert finished.metrics_ == whole.metrics_
    with pytest.raises(InputError, match="made with other parameters"):
        ot.Translator(**{**given, "epochs": 2}).fit(rows, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="made from other data"):
        ot.Translator(**given).fit(rows[1:], out=tmp_path / "run", resume=True)


def test_the_same_seed_gives_the_same_network():
    one, same, other = (ot.Translator(**SMALL, seed=seed).fit(pairs(40)) for seed in (1, 1, 2))
    first, second, third = (next(t.network_.parameters()) for t in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert one.settings_.unit == "bpe,bpe"


def test_spelling_to_sounds_has_units_of_its_own():
    sounds = {"a": "AE1", "b": "B", "t": "T", "c": "K"}
    draw = random.Random(0)
    words = ["".join(draw.choice("abtc") for _ in range(draw.randint(2, 5))) for _ in range(120)]
    t = ot.Translator(**SMALL).fit(words, [" ".join(sounds[c] for c in word) for word in words])
    assert t.settings_.unit == "char,symbol"
    assert "sources char" in t.notes_[0]
    assert set(t.metrics_["baselines"]) == {"copy_source", "letter_table"}
    assert t.metrics_["baselines"]["letter_table"]["token_error_rate"] == 0
    assert all(unit in sounds.values() for unit in t.predict(["tab"])[0].split())


def test_a_summarizer_copies_words_that_it_does_not_know(tmp_path):
    draw = random.Random(1)
    names = ["".join(draw.choice("bdgklmnrst") + draw.choice("aeiou") for _ in range(3)) for _ in range(150)]
    filler = [
        "this",
        "is",
        "a",
        "package",
        "that",
        "does",
        "some",
        "good",
        "for",
        "you",
        "on",
        "many",
        "days",
    ]
    rows = [
        {"text": f"{name} {' '.join(draw.sample(filler, 8))}", "title": f"about {name}"} for name in names
    ]
    s = ot.Summarizer(**{**SMALL, "epochs": 40}, learning_rate=0.02, dropout=0.0, vocabulary_size=30)
    s.fit(
        {"text": [r["text"] for r in rows], "title": [r["title"] for r in rows]},
        source="text",
        target="title",
    )
    assert s.settings_.copying
    assert s.settings_.unit == "word,word"
    assert s.preparation_.shared
    assert list(s.metrics_["baselines"]) == ["first_8_words", "copy_source"]
    (said,) = s.predict(["zozaza does this package for you on many days"])
    assert "zozaza" in said
    s.save(tmp_path / "run")
    assert ot.load(tmp_path / "run").predict(["zozaza does this"]) == s.predict(["zozaza does this"])
    long = "word " * 1000
    assert len(s.translate([long])[0].pieces[0].source) == s.settings_.max_source_length == 400


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "none"}, {"attention": "local", "cell": "gru"}, {"copying": True, "shared": True},
        {"attention": "additive", "coverage": True, "feeding": "output"}, {"num_layers": 2, "cell": "mingru"},
    ],
)  # fmt: skip
def test_options_reach_the_network_and_its_folder(options, tmp_path):
    t = ot.Translator(**{**SMALL, "epochs": 1}, unit="word", **options).fit(pairs(30))
    t.save(tmp_path / "run")
    assert ot.load(tmp_path / "run").predict(["der alter Hund"]) == t.predict(["der alter Hund"])
    if options.get("attention") == "none":
        with pytest.raises(InputError, match="this network has none"):
            t.translate(["der"], attention=True)
    for name, value in options.items():
        assert getattr(t.settings_, name) == getattr(ot.load(tmp_path / "run"), name) == value


def test_a_run_can_start_another(fitted, tmp_path):
    translator, run, _ = fitted
    rows = pairs(20, seed=5)
    on = ot.Translator(init=str(run), epochs=1, learning_rate=1e-4, batch_size=16, progress="quiet").fit(rows)
    assert on.metrics_["model"]["lstm"]["bleu"] > 90
    assert on.settings_.hidden_size == 32
    assert on.preparation_.target_vocabulary == translator.preparation_.target_vocabulary
    on.save(tmp_path / "run")
    assert ot.load(tmp_path / "run").predict(["ein roter Hund läuft."]) == ["a red dog runs."]
    with pytest.raises(InputError, match=r"hidden_size=8: the run in init="):
        ot.Translator(init=str(run), hidden_size=8).fit(rows)
    with pytest.raises(InputError, match="nothing"):
        ot.Translator(init=str(tmp_path / "nothing")).fit(rows)


def test_time_is_kept():
    import time

    started_s = time.monotonic()
    t = ot.Translator(**{**SMALL, "epochs": 10_000}, max_time_s=3.0).fit(pairs(200))
    assert time.monotonic() - started_s < 8.0
    assert t.history_.stopped == "time"
    assert t.history_["learning_rate"][-1] < 1e-3


def test_data_that_cannot_be_learned_from_are_refused(tmp_path):
    rows = pairs(10)
    t = ot.Translator(**SMALL)
    with pytest.raises(InputError, match="data: no pair of the data has text on both sides"):
        t.fit([("a", ""), ("", "b")])
    with pytest.raises(InputError, match="valid: no pair"):
        t.fit(rows, valid=[("a", " ")])
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        t.fit(rows, valid=tmp_path / "empty.tsv")
    with pytest.raises(InputError, match="too few to hold out"):
        t.fit([("a", "b"), ("a", "c")])
    with pytest.raises(InputError, match="no pair has at most max_source_length=1"):
        ot.Translator(**SMALL, max_source_length=1).fit(rows)
    with pytest.raises(InputError, match="not fitted"):
        t.predict(["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "letters"}, "word, char, bpe, symbol"), ({"unit": "a,b,c"}, "not known"),
        ({"attention": "soft"}, "'local', 'monotonic', 'none'"), ({"cell": "mamba"}, "mingru"),
        ({"hidden_size": 7}, "even"), ({"dropout": 1.5}, "dropout"), ({"held_out": 0}, "held_out"),
        ({"epochs": 0}, "epochs"), ({"beam": 0}, "beam"), ({"length_penalty": -1}, "length_penalty"),
        ({"attention": "none", "copying": True}, "needs an attention"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"), ({"no_repeat_ngram": 2.5}, "no_repeat_ngram"),
        ({"length_penalty": float("nan")}, "length_penalty"), ({"length_penalty": "x"}, "length_penalty"),
        ({"held_out": "x"}, "held_out"), ({"unit": 5}, "unit=5"), ({"unit": ""}, "word, char, bpe, symbol"),
        ({"unit": "char,bpe", "vocabulary_size": 99}, "vocabulary_size=99: .* at least 256"),
        ({"unit": "char,word", "copying": True}, "same units"),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ot.Translator(**{**SMALL, **options}).fit(pairs(10))


def test_long_pairs_are_left_out_and_counted():
    rows = [*pairs(40), ("Hund " * 100_000, "dog"), ("Hund", "dog " * 300)]
    t = ot.Translator(**{**SMALL, "epochs": 1}, unit="word", seed=1).fit(rows, valid=pairs(5, seed=3))
    assert any(note.startswith("2 pairs of the training part with more than 50") for note in t.notes_)
    assert np.isfinite(t.metrics_["model"]["lstm"]["chrf"])


def test_answers_without_an_end_are_counted(fitted):
    translator, run, rows = fitted
    short = ot.load(run).set_params(beam=1)
    short.limits_ = dataclasses.replace(short.limits_, target=3)
    (one,) = short.translate(["ein kleiner Vogel läuft."])
    assert not one.pieces[0].has_ended
    assert short.notes_ == [
        "1 of 1 answers did not come to an end and were cut off, at 3 units at the latest"
    ]
    short.evaluate(rows[:9])
    assert any("answers did not come to an end" in note for note in short.notes_)
    assert translator.translate(["ein kleiner Vogel läuft."])[0].pieces[0].has_ended
    assert translator.notes_ == []


def test_what_a_run_that_begins_with_another_cannot_be(fitted, tmp_path):
    _, run, rows = fitted
    on = ot.Translator(init=str(run), unit="word", epochs=1, batch_size=16, progress="quiet")
    on.fit([*rows[:20], ("ganz fremde Wörter", "quite strange")])
    assert any("unknown to the run that init names" in note for note in on.notes_)
    with pytest.raises(InputError, match="unit='word,char': the run in init="):
        ot.Translator(init=str(run), unit="word,char").fit(rows)
    with pytest.raises(InputError, match="copying=True: the run in init="):
        ot.Summarizer(init=str(run)).fit(rows)
    with pytest.raises(InputError, match="attention='additive'"):
        ot.Translator(**SMALL, coverage=True).fit("no such file")
    ot.LanguageModel(hidden_size=8, epochs=1, progress="quiet").fit(
        io.StringIO("a dog ran.\n" * 50), out=tmp_path / "language"
    )
    with pytest.raises(InputError, match="holds a 'language'; begin with a run of ostinato train translate"):
        ot.Translator(init=str(tmp_path / "language")).fit(rows)


def test_a_summarizer_counts_what_it_did_not_read_and_takes_two_files_to_be_scored(tmp_path):
    rows = pairs(40)
    table = {"text": [source for source, _ in rows], "title": [target for _, target in rows]}
    s = ot.Summarizer(**{**SMALL, "epochs": 1}, max_source_length=4)
    s.fit(table, source="text", target="title")
    s.translate(["der rote Mann läuft.", "der Hund"])
    assert s.notes_[0] == "1 sources of more than 4 units: the first 4 are read"
    for name, number in (("a", 0), ("b", 1)):
        (tmp_path / name).write_text("".join(f"{row[number]}\n" for row in rows), newline="")
    expected = s.evaluate(table)
    assert s.evaluate(tmp_path / "a", tmp_path / "b") == expected
    assert s.evaluate((tmp_path / "a", tmp_path / "b")) == expected
