"""Tags written in the form of the file that the sentences came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ostinato.data.examples import Sentence
from ostinato.data.files import open_binary
from ostinato.data.labelled import tagged_lines
from ostinato.data.labelled_format import find_format
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.records import json_objects

SAMPLE_LINES = 200


@dataclass(frozen=True)
class Annotation:
    """What a tagger says of a file.

    Attributes:
        text: the file with the tags in the place of its own; CoNLL and CoNLL-U stay as they were otherwise.
            For a folder of slots the label and the tags of each line. JSON lines keep their other values; all
            other forms become JSON lines.
        values: for each sentence its tokens and tags, and where there are labels the label and its
            probability.
        files: the files of a folder of slots by name; empty where the result is one file.
    """

    text: str
    values: Sequence[Mapping[str, Any]]
    files: Mapping[str, str] = field(default_factory=dict)


def annotate(
    data: Any,
    reading: Mapping[str, Any],
    sentences: Sequence[Sentence],
    tags: Sequence[Sequence[str]],
    labels: Sequence[str] | None,
    probabilities: Sequence[float] | None,
) -> Annotation:
    """The annotation of what was read from `data`, a path or an object, with the options `reading`."""
    values: list[dict[str, Any]] = [
        {"tokens": list(one.tokens), "tags": list(row)} for one, row in zip(sentences, tags, strict=True)
    ]
    if labels is not None and probabilities is not None:
        for value, label, share in zip(values, labels, probabilities, strict=True):
            value |= {"label": label, "probability": float(share)}
    form = "" if not isinstance(data, str | Path) else reading.get("format") or _form(Path(data), reading)
    if form in ("conll", "conllu"):
        spec = LabelledSpec().with_options({**reading, "needs_labels": False})
        return Annotation("".join(tagged_lines(data, tags, spec)), values)
    if form == "slots":
        files = {
            "seq.in": "".join(" ".join(one.tokens) + "\n" for one in sentences),
            "seq.out": "".join(" ".join(row) + "\n" for row in tags),
        }
        if labels is None:
            return Annotation(files["seq.out"], values, files)
        files["label"] = "".join(f"{label}\n" for label in labels)
        pairs = zip(labels, tags, strict=True)
        return Annotation("".join(f"{label}\t{' '.join(row)}\n" for label, row in pairs), values, files)
    if form == "jsonl":
        spec = LabelledSpec().with_options({**reading, "needs_labels": False})
        records = zip(json_objects(data, spec), values, strict=True)
        values = [_completed(record, value, reading) for record, value in records]
    lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    return Annotation("".join(lines), values)


def _completed(
    record: Mapping[str, Any], said: Mapping[str, Any], reading: Mapping[str, Any]
) -> dict[str, Any]:
    """An object of the file with what was said of it, under the names that training had for it."""
    text = reading.get("text")
    answers = dict(said)
    if not isinstance(text, str) or isinstance(record.get(text), list):
        del answers["tokens"]  # they stand there already
    for role in ("tags", "label"):
        name = reading.get(role)
        if role in answers and isinstance(name, str):
            answers[name] = answers.pop(role)
    return {**record, **answers}


def _form(path: Path, reading: Mapping[str, Any]) -> str:
    return find_format(path, LabelledSpec().with_options({**reading, "needs_labels": False}))


def reading_for(data: Any, reading: Mapping[str, Any]) -> Mapping[str, Any]:
    """How data without tags are read by a tagger whose training data were read by `reading`."""
    if isinstance(data, str | Path) and _is_columns(Path(data), reading):
        return {**reading, "format": "conll"}
    return reading


def _is_columns(path: Path, reading: Mapping[str, Any]) -> bool:
    """Whether a file that would be read as lines of text holds columns like the training file: a sentence
    alone has no blank line that would tell.

    Every line then has as many fields as the training file had, or only those that tagging needs.
    """
    text, label = reading.get("text"), reading.get("label")
    if not isinstance(text, int) or not isinstance(label, int) or _form(path, reading) != "lines":
        return False
    with open_binary(path) as raw:
        sample = [line.decode("utf-8", "replace").split() for line in islice(raw, SAMPLE_LINES)]
    widths = {len(fields) for fields in sample if fields}
    needed = max([text, *reading.get("columns", ())]) + 1
    return widths in ({label + 1}, {needed})
