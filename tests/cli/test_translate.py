"""The commands of translation, from files to runs, scores and answers."""

import csv
import json
import random

import pytest

from ostinato.cli import commands
from ostinato.cli.translate import repeat_parts

SMALL = ("--hidden", "8", "--epochs", "2", "--seed", "1", "--quiet", "--set", "unit=word")
DRAW = random.Random(3)
LETTERS = [" ".join(DRAW.choice("abcdefgh") for _ in range(DRAW.randint(2, 6))) for _ in range(60)]
OTHERS = [line.upper() for line in LETTERS]


@pytest.fixture
def call(capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            commands.app([str(argument) for argument in arguments])
        text, errors = capsys.readouterr()
        return ended.value.code, text, errors

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two aligned files, a file of pairs, and the run that was trained on the files."""
    folder = tmp_path_factory.mktemp("translate")
    (folder / "a").write_text("".join(f"{line}\n" for line in LETTERS))
    (folder / "b").write_text("".join(f"{line}\n" for line in OTHERS))
    rows = zip(LETTERS, OTHERS, strict=True)
    (folder / "p.tsv").write_text("".join(f"{one}\t{other}\n" for one, other in rows))
    valid = ("--valid", folder / "a", folder / "b", "--test", folder / "p.tsv")
    arguments = ["train", "translate", folder / "a", folder / "b", *valid, *SMALL, "--out", folder / "run"]
    with pytest.raises(SystemExit, match="0"):
        commands.app([str(argument) for argument in arguments])
    return folder


def test_two_files_are_scored_and_answered(call, trained, tmp_path):
    run = trained / "run"
    for data in ((trained / "a", trained / "b"), (trained / "p.tsv",)):
        code, text, errors = call("evaluate", run, *data, "--json", "--beam", "2")
        assert code == 0, errors
        scores = json.loads(text)
        assert set(scores) == {"model", "baselines"}
        assert set(scores["model"]["lstm"]) == {"bleu", "chrf", "rouge_l", "exact_match", "token_error_rate"}
        assert {"copy_source", "word_table"} == set(scores["baselines"])
    (tmp_path / "in.txt").write_text("a b\n\nc d e\n")
    code, text, errors = call("predict", run, tmp_path / "in.txt", "--out", tmp_path / "said.txt")
    assert (code, text) == (0, f"3 rows: {tmp_path / 'said.txt'}\n")
    assert "1 empty sources" in errors
    lines = (tmp_path / "said.txt").read_text().split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""
    code, text, _ = call("predict", run, tmp_path / "in.txt", "--json")
    answers = json.loads(text)["translations"]
    assert [answer["source"] for answer in answers] == ["a b", "", "c d e"]
    assert [answer["target"] for answer in answers] == lines[:3]


def test_attention_is_written_and_drawn(call, trained, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "in.txt").write_text("a b c\nd e\n")
    out = tmp_path / "said.jsonl"
    code, _, errors = call(
        "predict", trained / "run", tmp_path / "in.txt", "--out", out, "--attention", "--beam", "3"
    )
    assert code == 0, errors
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["source"] for one in said] == ["a b c", "d e"]
    seen = json.loads((tmp_path / "said.attention.json").read_text())
    for one in seen:
        assert len(one["weights"]) == len(one["target"])
        assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in one["weights"])
    assert (tmp_path / "said.attention.html").exists() == any(one["target"] for one in seen)
    code, _, errors = call("predict", trained / "run", tmp_path / "in.txt", "--attention")
    assert code == 2
    assert "--out FILE" in errors


def test_pairs_and_tables_are_learned_from(call, trained, tmp_path):
    code, text, errors = call(
        "train", "translate", trained / "p.tsv", *SMALL, "--out", tmp_path / "run", "--json"
    )
    assert code == 0, errors
    assert json.loads(text)["part"] == "validation"
    table = tmp_path / "rows.jsonl"
    rows = zip(LETTERS, OTHERS, strict=True)
    table.write_text("".join(json.dumps({"x": one, "y": other}) + "\n" for one, other in rows))
    columns = ("--source", "x", "--target", "y")
    code, _, errors = call("train", "translate", table, *columns, *SMALL, "--copy", "--out", tmp_path / "sum")
    assert code == 0, errors
    code, text, errors = call("predict", tmp_path / "sum", table, "--json")
    assert code == 0, errors
    assert len(json.loads(text)["translations"]) == 60
    code, text, _ = call("evaluate", tmp_path / "sum", table, "--json")
    assert code == 0
    assert "lstm" in json.loads(text)["model"]


def test_answers_go_into_tables_and_never_over_what_is_read(call, trained, tmp_path):
    (tmp_path / "in.txt").write_text("a b\n\nc d e\n")
    said = ("predict", trained / "run", tmp_path / "in.txt", "--out")
    for out, more in (("in.txt", ()), ("in.attention.json", ("--attention",)), ("folder", ())):
        given = tmp_path / ("in.attention.json" if more else "in.txt")
        given.write_text("a b\n\nc d e\n")
        (tmp_path / "folder").mkdir(exist_ok=True)
        place = tmp_path / ("in.txt" if more else out)
        code, text, errors = call("predict", trained / "run", given, "--out", place, *more)
        assert (code, text) == (2, "")
        assert "is a folder" in errors if out == "folder" else "is the file that is read" in errors
        assert given.read_text() == "a b\n\nc d e\n"
    code, _, errors = call(*said, tmp_path / "said.csv")
    assert code == 0, errors
    rows = list(csv.DictReader((tmp_path / "said.csv").read_text().splitlines()))
    assert [row["source"] for row in rows] == ["a b", "", "c d e"]
    assert [bool(row["score"]) for row in rows] == [True, False, True]


def test_coverage_is_an_option(call, trained, tmp_path):
    asked = ("train", "translate", trained / "p.tsv", *SMALL, "--coverage", "--out", tmp_path / "run")
    code, _, errors = call(*asked)
    assert code == 2
    assert "--attention additive" in errors
    code, _, errors = call(*asked, "--attention", "additive", "--epochs", "1")
    assert code == 0, errors
    assert json.loads((tmp_path / "run/preparation/fit.json").read_text())["chosen"]["coverage"] is True


def test_no_attention_is_no_attention(call, trained, tmp_path):
    for option in (("--attention", "none"), ("--set", "attention=none")):
        run = tmp_path / option[0]
        code, _, errors = call("train", "translate", trained / "p.tsv", *SMALL, *option, "--out", run)
        assert code == 0, errors
        said = ("predict", run, trained / "a", "--attention", "--out", tmp_path / "said.txt")
        code, _, errors = call(*said)
        assert code == 2
        assert "this network has none (attention='none')" in errors
    asked = ("--copy", "--attention", "none", "--out", tmp_path / "run")
    code, _, errors = call("train", "translate", trained / "p.tsv", *SMALL, *asked)
    assert code == 2
    assert "copying=True needs an attention" in errors


def test_the_column_of_sources_may_have_another_name(call, trained, tmp_path):
    rows = [{"x": one, "y": other, "other": "z"} for one, other in zip(LETTERS[:4], OTHERS, strict=False)]
    for name in ("rows.jsonl", "rows.txt"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, text, errors = call("predict", trained / "run", tmp_path / name, "--source", "x", "--json")
        assert code == 0, errors
        assert [said["source"] for said in json.loads(text)["translations"]] == LETTERS[:4]
    (tmp_path / "rows.csv").write_text("id,x\n1,a b\n2,c d\n")
    code, text, errors = call("predict", trained / "run", tmp_path / "rows.csv", "--source", "-1", "--json")
    assert [said["source"] for said in json.loads(text)["translations"]] == ["a b", "c d"]
    code, _, errors = call("predict", trained / "run", tmp_path / "rows.csv", "--source", "de")
    assert code == 2
    assert "--source: there is no column 'de'" in errors
    code, _, errors = call("predict", trained / "run", tmp_path / "rows.csv")
    assert code == 0
    assert "name the column: --source COL" in errors
    columns = ("--source", "x", "--target", "y")
    code, text, errors = call("evaluate", trained / "run", tmp_path / "rows.jsonl", *columns, "--json")
    assert code == 0, errors
    assert "lstm" in json.loads(text)["model"]
    code, _, errors = call("evaluate", trained / "run", tmp_path / "rows.jsonl", "--source", "x")
    assert code == 2
    assert "--source COL --target COL" in errors
    code, _, errors = call("evaluate", trained / "run", trained / "a", trained / "b", *columns)
    assert code == 2
    assert "--source, --target: name columns of one table" in errors


def test_a_file_of_pairs_is_validated_on_two_files(call, trained, tmp_path):
    run, parts = tmp_path / "run", ("--valid", trained / "a", trained / "b")
    code, text, errors = call(
        "train", "translate", trained / "p.tsv", *parts, "--test", trained / "a", trained / "b", *SMALL,
        "--out", run, "--json",
    )  # fmt: skip
    assert code == 0, errors
    assert json.loads(text)["part"] == "test"
    rows = [{"x": one, "y": other} for one, other in zip(LETTERS, OTHERS, strict=True)]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("--source", "x", "--target", "y", "--out", tmp_path / "other")
    code, _, errors = call("train", "translate", table, *parts, *columns, *SMALL)
    assert code == 0, errors
    # A name that does not say what the file holds leaves open whose the second file is.
    (tmp_path / "pairs.txt").write_text((trained / "p.tsv").read_text())
    (tmp_path / "c").write_text("A B\n")
    code, _, errors = call(
        "train", "translate", tmp_path / "pairs.txt", "--valid", trained / "a", tmp_path / "c", *SMALL,
        "--out", tmp_path / "third",
    )  # fmt: skip
    assert code == 2
    assert "pairs.txt has a tab for each of its 60 lines" in errors
    assert "--valid SRC --valid TGT" in errors


def test_mistakes_are_told_with_their_place(call, trained, tmp_path):
    (tmp_path / "short").write_text("a\nb\n")
    out = ("--out", tmp_path / "run")
    code, _, errors = call("train", "translate", trained / "a", tmp_path / "short", *SMALL, *out)
    assert code == 2
    assert "has 60 lines" in errors
    assert "has 2" in errors
    code, _, errors = call("train", "translate", trained / "a", *SMALL, *out)
    assert code == 2
    assert "line 1: expected source, a tab and target" in errors
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    code, _, errors = call("train", "translate", tmp_path / "binary", *SMALL, *out)
    assert code == 2
    assert "binary" in errors
    code, _, errors = call("evaluate", trained / "run", trained / "p.tsv", "--windows", "last")
    assert code == 2
    assert "--windows is about forecasts" in errors
    assert not (tmp_path / "run").exists()


def test_parts_take_two_files_where_training_does():
    flags = ("--json", "-q")

    def repeated(text):
        return " ".join(repeat_parts(text.split(), flags))

    assert repeated("A B --valid C D --out R") == "A B --valid C --valid D --out R"
    assert repeated("--test E F --valid C D A B") == "--test E --test F --valid C --valid D A B"
    assert repeated("A --json B --valid C D") == "A --json B --valid C --valid D"
    for same in (
        "P --valid V",
        "--valid V P --out R",
        "A B --valid P",
        "A B --valid C --valid D",
        "A B C",
        "A",
    ):
        assert repeated(same) == same
    for pairs in ("p.tsv", "rows.jsonl", "p.tsv.gz"):
        assert repeated(f"{pairs} --valid C D") == f"{pairs} --valid C --valid D"
        assert repeated(f"--valid C D {pairs}") == f"--valid C --valid D {pairs}"
        assert repeated(f"{pairs} --valid V") == f"{pairs} --valid V"
        assert repeated(f"{pairs} --valid C D --test T") == f"{pairs} --valid C --valid D --test T"
    assert (
        repeated("A B --valid P --hidden 8 --test C D -- ") == "A B --valid P --hidden 8 --test C --test D --"
    )
