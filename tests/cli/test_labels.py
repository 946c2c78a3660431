"""The commands of labelled sequences, from files to runs, scores and answers."""

import csv
import json

import numpy as np
import pytest

from ostinato.cli import commands
from ostinato.cli.labels import ANY, fill_columns

SMALL = ("--hidden", "8", "--epochs", "2", "--seed", "1", "--quiet")
RNG = np.random.default_rng(5)
WORDS = {"the": "DT", "a": "DT", "dog": "NN", "cat": "NN", "runs": "VB", "sleeps": "VB"}


def sentence():
    words = [*RNG.choice(["the", "a"], 1), *RNG.choice(["dog", "cat"], 1), *RNG.choice(["runs", "sleeps"], 1)]
    return [(word, WORDS[word], tag) for word, tag in zip(words, ["B-NP", "I-NP", "B-VP"], strict=True)]


SENTENCES = [sentence() for _ in range(60)]
CONLL = "\n\n".join("\n".join(" ".join(row) for row in one) for one in SENTENCES) + "\n"
TSV = "label\ttext\n" + "".join(
    f"{'spam' if i % 3 else 'ham'}\t{'win a prize' if i % 3 else 'see you'} {i}\n" for i in range(60)
)


@pytest.fixture
def call(capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            commands.app([str(argument) for argument in arguments])
        text, errors = capsys.readouterr()
        return ended.value.code, text, errors

    return run


def train(*arguments):
    with pytest.raises(SystemExit, match="0"):
        commands.app(["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder with a file of columns, and the run that was trained on it."""
    folder = tmp_path_factory.mktemp("tag")
    (folder / "chunks.txt").write_text(CONLL)
    train("tag", folder / "chunks.txt", *SMALL, "--out", folder / "run", "--json")
    return folder


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A folder with a table of texts, and the run that was trained on it."""
    folder = tmp_path_factory.mktemp("classify")
    (folder / "mail.tsv").write_text(TSV)
    columns = ("--text", "text", "--label", "label")
    train("classify", folder / "mail.tsv", *columns, *SMALL, "--set", "members=1", "--out", folder / "run")
    return folder


def test_a_tagger_is_scored_and_tags_in_the_form_of_the_file(call, tagged, tmp_path):
    run, data = tagged / "run", tagged / "chunks.txt"
    code, text, errors = call("evaluate", run, data, "--json")
    assert code == 0, errors
    scores = json.loads(text)
    assert set(scores) == {"model", "baselines"}
    assert set(scores["model"]["lstm"]) == {"accuracy", "span_f1", "span_precision", "span_recall"}
    assert scores["baselines"]["most_frequent_tag"]["accuracy"] == 1.0
    code, text, _ = call("predict", run, data)
    assert code == 0
    rows = [line.split(" ") for line in text.split("\n")]
    assert [row[:-1] for row in rows] == [line.split(" ")[:-1] for line in CONLL.split("\n")]
    untagged = tmp_path / "one.txt"
    untagged.write_text("the DT\ncat NN\n")
    code, text, _ = call("predict", run, untagged, "--out", tmp_path / "said.txt")
    assert (code, text) == (0, f"1 rows: {tmp_path / 'said.txt'}\n")
    said = [line.split() for line in (tmp_path / "said.txt").read_text().splitlines()]
    assert [row[:2] for row in said] == [["the", "DT"], ["cat", "NN"]]
    assert [len(row) for row in said] == [3, 3]
    _, text, _ = call("predict", run, untagged, "--json")
    (answer,) = json.loads(text)["sentences"]
    assert answer["tokens"] == ["the", "cat"]
    assert answer["tags"] == [row[2] for row in said]


def test_a_column_that_the_tagger_needs_is_missed(call, tagged, tmp_path):
    (tmp_path / "words.txt").write_text("the\ncat\n\na\ndog\n")
    code, text, errors = call("predict", tagged / "run", tmp_path / "words.txt", "--out", tmp_path / "x")
    assert (code, text) == (2, "")
    assert "column" in errors
    assert not (tmp_path / "x").exists()


def test_json_lines_keep_their_other_values(call, tmp_path):
    rows = [
        {"id": i, "words": words, "ner": tags, "intent": words[0], "from": {"é": i}}
        for i in range(15)
        for words, tags in ((["stop"], ["O"]), (["play", "jazz"], ["O", "B-genre"]))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("--token", "words", "--set", "tags=ner", "--label", "intent")
    code, _, errors = call(
        "train", "tag", tmp_path / "a.jsonl", *columns, *SMALL, "--out", tmp_path / "run", "--json"
    )
    assert code == 0, errors
    bare = [{name: row[name] for name in ("id", "words", "from")} for row in rows]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row) for row in bare) + "\n\n")
    code, text, errors = call("predict", tmp_path / "run", tmp_path / "b.jsonl")
    assert code == 0, errors
    said = [json.loads(line) for line in text.splitlines()]
    assert [list(one) for one in said] == [["id", "words", "from", "probability", "ner", "intent"]] * 30
    assert [{name: one[name] for name in bare[0]} for one in said] == bare
    assert all(len(one["ner"]) == len(one["words"]) for one in said)


def test_tags_are_not_taken_for_the_column_before_them(call, tagged, tmp_path):
    rows = [line.split(" ") for line in CONLL.split("\n")]
    (tmp_path / "two.txt").write_text("\n".join(" ".join(row[::2]) for row in rows))
    code, text, errors = call("predict", tagged / "run", tmp_path / "two.txt")
    assert (code, text) == (2, "")
    assert "column 1" in errors
    assert "are tags; in training it held 'DT', 'NN', 'VB'" in errors
    (tmp_path / "odd.txt").write_text("\n".join(" ".join([row[0], *row]) for row in rows))
    code, _, errors = call("predict", tagged / "run", tmp_path / "odd.txt")
    assert code == 0
    assert "4 columns, the training file had 3" in errors
    assert "all unknown: in training it held 'DT', 'NN', 'VB'" in errors


def test_slots_come_back_as_a_folder(call, tmp_path):
    folder = tmp_path / "slots"
    folder.mkdir()
    rows = [
        ("play jazz", "O B-genre", "Play"),
        ("book a table", "O O O", "Book"),
        ("hear blues", "O B-genre", "Play"),
    ]
    for name, column in (("seq.in", 0), ("seq.out", 1), ("label", 2)):
        (folder / name).write_text("".join(row[column] + "\n" for row in rows * 12))
    code, text, errors = call("train", "tag", folder, *SMALL, "--out", tmp_path / "run", "--json")
    assert code == 0, errors
    assert {"label_accuracy", "span_f1", "exact_match"} <= set(json.loads(text)["model"]["lstm"])
    out = tmp_path / "said"
    assert call("predict", tmp_path / "run", folder, "--out", out)[0] == 0
    assert (out / "seq.in").read_text() == (folder / "seq.in").read_text()
    lines = [(out / name).read_text().splitlines() for name in ("seq.in", "seq.out", "label")]
    assert [len(line.split()) for line in lines[0]] == [len(line.split()) for line in lines[1]]
    assert set(lines[2]) <= {"Play", "Book"}
    code, _, errors = call("predict", tmp_path / "run", folder, "--out", out)
    assert code == 2
    assert "exists already" in errors
    (tmp_path / "lines.txt").write_text("play some blues\n")
    _, text, _ = call("predict", tmp_path / "run", tmp_path / "lines.txt")
    answer = json.loads(text)
    assert answer["tokens"] == ["play", "some", "blues"]
    assert 0 < answer["probability"] <= 1


def test_slots_without_labels_are_tagged_and_without_tags_classified(call, tmp_path):
    for name, files in (("tags", ("seq.in", "seq.out")), ("classes", ("seq.in", "label"))):
        (tmp_path / name).mkdir()
        rows = {"seq.in": "play jazz\nstop now\n", "seq.out": "O B-genre\nO O\n", "label": "Play\nStop\n"}
        for file in files:
            (tmp_path / name / file).write_text(rows[file] * 15)
    code, text, errors = call("train", "tag", tmp_path / "tags", *SMALL, "--out", tmp_path / "a", "--json")
    assert code == 0, errors
    assert set(json.loads(text)["model"]["lstm"]) == {"accuracy", "span_f1", "span_precision", "span_recall"}
    arguments = (*SMALL, "--set", "members=1", "--out", tmp_path / "b", "--json")
    code, text, errors = call("train", "classify", tmp_path / "classes", *arguments)
    assert code == 0, errors
    (tmp_path / "new.txt").write_text("play some jazz\n")
    code, text, _ = call("predict", tmp_path / "b", tmp_path / "new.txt")
    assert (code, text.splitlines()[0]) == (0, "label,probability,Play,Stop")
    assert call("predict", tmp_path / "b", tmp_path / "classes")[0] == 0
    code, _, errors = call("train", "tag", tmp_path / "classes", *SMALL, "--out", tmp_path / "c")
    assert (code, "seq.out" in errors) == (2, True)


def test_a_classifier_is_scored_and_writes_probabilities(call, classified, tmp_path):
    run, data = classified / "run", classified / "mail.tsv"
    code, text, errors = call("evaluate", run, data, "--json")
    assert code == 0, errors
    scores = json.loads(text)
    assert {"accuracy", "macro_f1"} <= set(scores["model"]["lstm"])
    assert "majority" in scores["baselines"]
    code, text, _ = call("predict", run, data)
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 60
    assert list(rows[0]) == ["label", "probability", "ham", "spam"]
    for row in rows:
        assert float(row["ham"]) + float(row["spam"]) == pytest.approx(1.0)
        assert float(row[row["label"]]) == float(row["probability"]) >= 0.5
    assert call("predict", run, data, "--out", tmp_path / "said.jsonl")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [row["label"] for row in rows]
    code, _, errors = call("predict", run, data, "--out", tmp_path / "said.xlsx")
    assert code == 2
    assert ".csv, .parquet or .jsonl" in errors


def test_signals_are_named_in_the_answers(call, tmp_path):
    rows = ["who,at,x,other,kind"]
    for i in range(30):
        rows += [f"s{i},{t},{t * (i % 2)},{RNG.random()},{'up' if i % 2 else 'flat'}" for t in (2, 0, 1)]
    (tmp_path / "steps.csv").write_text("\n".join(rows) + "\n")
    columns = ("--sequence", "who", "--time", "at", "--values", "x", "--label", "kind")
    arguments = (*columns, *SMALL, "--set", "members=1", "--out", tmp_path / "run", "--json")
    code, _, errors = call("train", "classify", tmp_path / "steps.csv", *arguments)
    assert code == 0, errors
    new = "who,at,x\n" + "".join(f"new{i},{t},{t}\n" for i in range(3) for t in range(3))
    (tmp_path / "new.csv").write_text(new)
    code, text, errors = call("predict", tmp_path / "run", tmp_path / "new.csv")
    assert code == 0, errors
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["who", "label", "probability", "flat", "up"]
    assert [row["who"] for row in rows] == ["new0", "new1", "new2"]


def test_a_file_may_have_another_encoding_than_the_training_file(call, classified, tagged, tmp_path):
    (tmp_path / "new.tsv").write_bytes(TSV.replace("prize", "caf\xe9").encode("latin-1"))
    code, _, errors = call("evaluate", classified / "run", tmp_path / "new.tsv")
    assert (code, "--encoding latin-1" in errors) == (2, True)
    for name in ("evaluate", "predict"):
        code, _, errors = call(name, classified / "run", tmp_path / "new.tsv", "--encoding", "latin-1")
        assert code == 0, errors
    (tmp_path / "new.txt").write_bytes(CONLL.replace("cat", "caf\xe9").encode("latin-1"))
    code, text, _ = call("predict", tagged / "run", tmp_path / "new.txt", "--encoding", "latin-1")
    assert (code, "caf\xe9" in text) == (0, True)


@pytest.mark.parametrize("option", [("--windows", "last"), ("--in-sample",), ("--future", "x.csv")])
def test_options_of_forecasts_are_refused(call, tagged, option):
    code, text, errors = call("evaluate", tagged / "run", tagged / "chunks.txt", *option)
    assert (code, text) == (2, "")
    assert f"{option[0]} is about forecasts, and {tagged / 'run'} holds a tagger" in errors


def test_a_folder_for_the_answers_is_missed_before_anything_is_computed(call, classified, tmp_path):
    code, text, errors = call(
        "predict", classified / "run", classified / "mail.tsv", "--out", tmp_path / "no" / "a.csv"
    )
    assert (code, text, errors.count("\n")) == (2, "", 1)
    assert "there is no folder" in errors


@pytest.mark.parametrize(
    ("task", "name", "content", "more", "expected"),
    [
        ("tag", "x.txt", "a X\nb Y Z\n\nc X\n", (), "line 2"),
        ("tag", "x.txt", "a X\nb X\n\nc X\n" * 9, (), "one tag alone, 'X'"),
        ("tag", "x.txt", CONLL, ("--label", "7"), "7"),
        ("tag", "x.txt", CONLL, ("--label", "upos"), "upos"),
        ("tag", "x.txt", CONLL, ("--set", "features=9"), "no column '9'"),
        ("tag", "x.txt", CONLL, ("--set", "hiden_size=3"), "hiden_size"),
        ("tag", "x.txt", CONLL, ("--cell", "lstn"), "lstn"),
        ("tag", "x.txt", "", (), "x.txt"),
        (
            "tag",
            "x.txt",
            CONLL,
            ("--format", "slots"),
            "expected a folder with seq.in, seq.out, label, found a",
        ),
        ("tag", "x.csv", "n,word,tag\n1,a,X\n1,b,Y\n", (), "a blank line after each sentence"),
        ("tag", "x.csv", "n,word,tag\n1,a,X\n1,b,Y\n", ("--token", "word", "--label", "tag"), "a blank line"),
        ("classify", "x.conll", CONLL, (), "found tokens in"),
        ("classify", "x.conll", CONLL, (), "ostinato train tag"),
        ("classify", "x.tsv", TSV, ("--text", "body", "--label", "label"), "body"),
        ("classify", "x.tsv", TSV.replace("ham", "spam"), ("--text", "text", "--label", "label"), "'spam'"),
        ("classify", "x.tsv", TSV, ("--sequence", "--letters", "--label", "label"), "one of them"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(call, tmp_path, task, name, content, more, expected):
    (tmp_path / name).write_text(content)
    code, text, errors = call(
        "train", task, tmp_path / name, *SMALL, *more, "--out", tmp_path / "run", "--json"
    )
    assert (code, text) == (2, ""), errors
    assert expected in errors
    assert errors.startswith("ostinato: ")
    assert errors.count("\n") == 1, errors
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over_and_a_finished_one_is_taken_over(call, tagged):
    arguments = ("train", "tag", tagged / "chunks.txt", *SMALL, "--out", tagged / "run", "--json")
    code, _, errors = call(*arguments)
    assert code == 2
    assert "exists already; continue that run with --resume" in errors
    before = {path: path.stat().st_mtime_ns for path in (tagged / "run").iterdir()}
    code, text, _ = call(*arguments, "--resume")
    assert code == 0
    assert json.loads(text)["part"] == "validation"
    assert before == {path: path.stat().st_mtime_ns for path in (tagged / "run").iterdir()}


@pytest.mark.parametrize("task", ["tag", "classify"])
def test_a_run_begins_with_another(call, tagged, classified, tmp_path, task):
    folder = {"tag": tagged, "classify": classified}[task]
    file = {"tag": "chunks.txt", "classify": "mail.tsv"}[task]
    more = () if task == "tag" else ("--text", "text", "--label", "label")
    given = (folder / file, *more, "--epochs", "1", "--quiet", "--init", folder / "run", "--json")
    code, said, errors = call("train", task, *given, "--out", tmp_path / "run")
    assert code == 0, errors
    notes = json.loads(said)["notes"]
    assert any(note.startswith("begins with the run in") for note in notes)
    assert any("learned from the same data" in note for note in notes)
    code, again, _ = call("train", task, *given, "--out", tmp_path / "run", "--resume")
    assert (code, json.loads(again)["model"]) == (0, json.loads(said)["model"])
    other = {"tag": classified, "classify": tagged}[task] / "run"
    code, _, errors = call("train", task, folder / file, *more, "--init", other, "--out", tmp_path / "other")
    assert code == 2
    assert "begin with a run of ostinato train language or ostinato train" in errors


def test_the_table_shows_accuracy_and_spans(call, tagged):
    code, text, _ = call("evaluate", tagged / "run", tagged / "chunks.txt")
    assert code == 0
    assert "span F1" in text
    assert "100.00 %" in next(line for line in text.splitlines() if "most_frequent_tag" in line)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["x.ts", "--sequence"], ["x.ts", "--sequence", ANY]),
        (["--sequence", "--label", "y"], ["--sequence", ANY, "--label", "y"]),
        (["--letters", "-1", "--label", "0"], ["--letters", "-1", "--label", "0"]),
        (["--letters", "dna"], ["--letters", "dna"]),
    ],
)
def test_a_column_may_follow_or_not(given, expected):
    assert fill_columns(given, ("--sequence", "--letters")) == expected
