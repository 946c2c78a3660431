"""The commands of language models, from files to runs, scores and text."""

import io
import json
import sys

import numpy as np
import pytest

from ostinato.cli import commands

SMALL = ("--hidden", "12", "--epochs", "1", "--seed", "1", "--quiet")
RNG = np.random.default_rng(5)
TEXT = "".join(f"the {RNG.choice(['dog', 'cat'])} {RNG.choice(['ran', 'sat'])}.\n" for _ in range(150))


@pytest.fixture
def call(capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            commands.app([str(argument) for argument in arguments])
        text, errors = capsys.readouterr()
        return ended.value.code, text, errors

    return run


@pytest.fixture
def files(tmp_path):
    for name, text in (("a.txt", TEXT), ("b.txt", TEXT[:600]), ("labels.tsv", "x\ta\ny\tb\n" * 20)):
        (tmp_path / name).write_text(text, newline="")
    return tmp_path


def test_a_text_is_learned_scored_and_continued(call, files):
    code, said, _ = call(
        "train", "language", files / "a.txt", files / "b.txt", "--test", files / "b.txt", "--out",
        files / "run", *SMALL, "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(said)
    assert result["part"] == "test"
    assert list(result["model"]) == ["lstm", "lstm+kneser_ney_6"]
    assert set(result["model"]["lstm"]) == {"perplexity", "nats", "bits_per_char"}
    assert list(result["baselines"]) == ["unigram", "kneser_ney_6"]
    code, said, _ = call("evaluate", files / "run", files / "b.txt", "--json")
    assert code == 0
    assert json.loads(said)["model"] == result["model"]
    code, said, _ = call("evaluate", files / "run", files / "b.txt", "--quiet")
    assert "perplexity" in said
    assert "bits/char" in said
    given = ("generate", files / "run", "--prompt", "the ", "--length", "30", "--seed", "2")
    code, said, _ = call(*given, "--temperature", "0.5", "--top-k", "5", "--top-p", "0.9")
    assert code == 0
    assert said.startswith("the ")
    assert len(said) == 4 + 30 + 1
    code, told, errors = call(*given, "--json", "--prompt", "the ☃")
    assert json.loads(told)["prompt"] == "the ☃"
    assert "1 of 5 units of the prompt are unknown" in errors


def test_an_interrupt_before_the_first_checkpoint_leaves_no_folder(call, files, monkeypatch):
    from ostinato.training.resume import RunStore

    def interrupted(store, *_):
        assert (store.folder / "history.csv").exists()
        assert (store.folder / "checkpoints/plan.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "write", interrupted)
    before = sorted(files.iterdir())
    for more in ((), ("--resume",)):
        given = ("train", "language", files / "a.txt", "--out", files / "run", *SMALL)
        code, said, errors = call(*given, *more)
        assert (code, said) == (130, ""), errors
        assert sorted(files.iterdir()) == before


def test_a_run_begins_with_another(call, files):
    for name, more in (("one", ()), ("two", ("--init", files / "one"))):
        given = SMALL if name == "one" else SMALL[2:]
        code, _, errors = call("train", "language", files / "a.txt", "--out", files / name, *given, *more)
        assert code == 0, errors
    code, said, _ = call("train", "language", files / "a.txt", "--out", files / "two", "--resume", "--json",
                         *SMALL[2:], "--init", files / "one")  # fmt: skip
    assert code == 0
    assert any("begin with the vectors" in note for note in json.loads(said)["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unit", "letter"], "unit='letter' is unknown; known: None, 'char', 'word', 'bpe'"),
        (["--valid", "nothing.txt"], "nothing.txt: the file does not exist"),
        (["--set", "chunks=3"], "did you mean 'chunk'?"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(call, files, arguments, message):
    code, said, errors = call(
        "train", "language", files / "a.txt", "--out", files / "run", *arguments, *SMALL
    )
    assert code == 2
    assert message in errors
    assert not said
    assert "Traceback" not in errors
    assert not (files / "run").exists()


def test_files_that_are_no_text_are_refused(call, files):
    (files / "bin").write_bytes(b"abc\0def" * 50)
    (files / "empty").write_bytes(b"")
    for name, message in (("bin", "a null character"), ("empty", "the file is empty")):
        code, _, errors = call("train", "language", files / name, "--out", files / "run", *SMALL)
        assert code == 2
        assert message in errors
        assert not (files / "run").exists()


def test_a_run_of_another_kind_has_no_text_to_give(call, files):
    code, _, errors = call(
        "train", "classify", files / "labels.tsv", "--no-header", "--text", "0", "--label", "1", "--out",
        files / "labels", *SMALL,
    )  # fmt: skip
    assert code == 0, errors
    code, _, errors = call("generate", files / "labels")
    assert code == 2
    assert "holds a 'classifier'; text comes from a run of `ostinato train language`" in errors


@pytest.fixture
def trained(call, files):
    code, _, errors = call("train", "language", files / "a.txt", "--out", files / "run", *SMALL)
    assert code == 0, errors
    return files / "run"


def test_nothing_is_said_before_all_options_are_looked_at(call, trained):
    for wrong, message in ((("--top-k", "0"), "top_k"), (("--seed", "9" * 20), "below 2**63"),
                           (("--length", "0"), "length=0"), (("--temperature", "nan"), "temperature"),
                           (("--prompt", "a\udcffb"), "--prompt: character 2 is no valid text")):  # fmt: skip
        code, said, errors = call("generate", trained, "--prompt", "the ", *wrong)
        assert (code, said) == (2, "")
        assert message in errors
        assert "Traceback" not in errors


def test_another_encoding_is_read(call, trained, files):
    (files / "wide.txt").write_bytes(TEXT.encode("utf-16"))
    code, said, errors = call("evaluate", trained, files / "wide.txt", "--encoding", "utf-16", "--json")
    assert code == 0, errors
    assert said == call("evaluate", trained, files / "a.txt", "--json")[1]


def test_an_output_that_has_not_all_letters_is_told(call, files, monkeypatch):
    (files / "u.txt").write_text("שלום עולם\n" * 60)
    code, _, errors = call("train", "language", files / "u.txt", "--out", files / "u", *SMALL)
    assert code == 0, errors
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    code, _, errors = call("generate", files / "u", "--prompt", "ש", "--length", "5")
    assert code == 2
    assert "standard output is ascii, which has no '\\u05e9'; set PYTHONIOENCODING=utf-8" in errors
    code, _, _ = call("generate", files / "u", "--prompt", "ש", "--length", "5", "--json")
    assert code == 0
    narrow.flush()
    assert json.loads(narrow.buffer.getvalue())["prompt"] == "ש"
