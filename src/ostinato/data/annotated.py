"""Predicted tags and classes written back in the form of the file that was read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ostinato.data.conll import tagged_lines
from ostinato.data.examples import Sentence
from ostinato.data.labelled_format import find_format
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.lines import Findings, TextFile
from ostinato.data.records import is_blank, json_object
from ostinato.errors import InputError, SizeError


def annotated_lines(
    source: Any,
    sentences: Sequence[Sentence],
    tags: Sequence[Sequence[str]],
    spec: LabelledSpec,
    labels: Sequence[str] | None = None,
) -> Iterator[str]:
    """The source with predicted tags (and classes), line by line with line ends, in constant memory.

    CoNLL and CoNLL-U keep comments, ranges and all other columns; JSON lines keep their other values; a
    folder with seq.in gives the lines of seq.out, after the class and a tab where there are classes. Anything
    else becomes two columns, token and tag, with a blank line after each sentence.

    Args:
        source: what was read.
        sentences: what was read from it, in order.
        tags: for each sentence a tag for each token.
        spec: with the columns that `Examples.reading` of the training data holds.
        labels: for each sentence its class.

    Raises:
        SizeError: tags or labels that are not one for each.
    """
    if len(tags) != len(sentences) or (labels is not None and len(labels) != len(sentences)):
        found = f"{len(tags)} tags" + ("" if labels is None else f", {len(labels)} labels")
        raise SizeError(f"expected tags (and labels) for {len(sentences)} sentences, found {found}")
    name = ""
    if isinstance(source, str | Path):
        name = spec.format or find_format(Path(source), replace(spec, needs_labels=False))
    if name in ("conll", "conllu"):
        return tagged_lines(source, tags, replace(spec, format=name))
    if name == "jsonl" and not _is_json_list(source, spec):
        return _json_lines(source, tags, labels, spec)
    if name == "slots":
        return _slot_lines(tags, labels)
    return _columns(sentences, tags)


def _is_json_list(path: str | Path, spec: LabelledSpec) -> bool:
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    return file.data[file.first : file.first + 4096].lstrip()[:1] == b"["


def _json_lines(
    path: str | Path, tags: Sequence[Sequence[str]], labels: Sequence[str] | None, spec: LabelledSpec
) -> Iterator[str]:
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    number, findings = 0, Findings()
    for span in file.lines():
        if is_blank(file, span):
            yield "\n"
            continue
        record = json_object(file, span, findings)
        if number >= len(tags):
            raise SizeError(f"{path}: expected {len(tags)} objects, found more; give the file that was read")
        names = list(record)
        record[_name(names, spec.tags if spec.tags is not None else "tags")] = list(tags[number])
        if labels is not None:
            record[_name(names, spec.label if spec.label is not None else "label")] = labels[number]
        number += 1
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _name(names: Sequence[str], column: str | int) -> str:
    if isinstance(column, str):
        return column
    if -len(names) <= column < len(names):
        return names[column]
    raise InputError(f"there is no column {column}; the names are: {', '.join(names)}")


def _slot_lines(tags: Sequence[Sequence[str]], labels: Sequence[str] | None) -> Iterator[str]:
    for number, row in enumerate(tags):
        before = "" if labels is None else f"{labels[number]}\t"
        yield f"{before}{' '.join(row)}\n"


def _columns(sentences: Sequence[Sentence], tags: Sequence[Sequence[str]]) -> Iterator[str]:
    for sentence, row in zip(sentences, tags, strict=True):
        yield from (f"{token}\t{tag}\n" for token, tag in zip(sentence.tokens, row, strict=True))
        yield "\n"
