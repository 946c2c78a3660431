"""Sequences of letters, such as DNA and proteins, in FASTA files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ostinato.data.examples import Examples
from ostinato.data.labelled_spec import Column, LabelledSpec
from ostinato.data.lines import Collector, Findings, Row, Span, TextFile, collect_file

_FIELDS = re.compile(r"[|\s]+")


def read_fasta(path: str | Path, spec: LabelledSpec) -> Examples:
    """Each header (`>` or `;`) with the lines of letters below it; white space goes, letters become capitals.

    The class is in the header, whose fields are separated by white space or `|`:

    - `spec.label` a name: the field `name=CLASS`; a number: the field at that place, negative from the end.
    - None: `label=CLASS` if the first header has it, else the last of several fields.

    Where the first fields of the headers differ they are the `ids`.

    Raises:
        DataError: letters before the first header, digits or signs among the letters, a header without the
            field that the others have.
    """
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    findings = Findings()
    collector = Collector("letters", str(path), spec, findings, has_labels=False)
    spans = _records(file)
    first = next(_records(file), None)
    if first is None:
        return collector.finish()
    label = spec.label if spec.label is not None else _usual_label(_header(file, first)[0])

    names: dict[int, str] = {}

    def parse(span: Span, found: Findings) -> Row:
        header, letters = _header(file, span)
        names[span.line] = (_fields(header) or [""])[0]
        written = "".join(letters.split())
        sequence = written.upper().rstrip("*")
        wrong = re.search(r"[^A-Z*.\-]", sequence)
        if wrong:
            raise file.error(
                f"expected letters, found {wrong.group()!r} in the sequence of this header", span.line
            )
        found.add("sequences with small letters, read as capitals", span.line, int(not written.isupper()))
        return Row(sequence, None if label is None else _class(file, header, label, span, spec.needs_labels))

    collector.has_labels = label is not None
    if label is None and spec.needs_labels:
        raise file.error(
            "the header has no class; write it as label=CLASS or as the last field, or name its field "
            "(--label)",
            first.line,
        )
    reading: dict[str, Column] = {"kind": "letters"} if label is None else {"kind": "letters", "label": label}
    examples = collect_file(file, spans, parse, collector, reading)
    ids = [names[line] for line in examples.places]
    return examples if "" in ids or len(set(ids)) < len(ids) else replace(examples, ids=ids)


def _records(file: TextFile) -> Iterator[Span]:
    """From each header to the line before the next."""
    start: Span | None = None
    stop = 0
    for span in file.lines():
        mark = file.data[span.start : span.start + 1]
        if mark in (b">", b";"):
            if start is not None:
                yield Span(start.start, stop, start.line)
            start = span
        elif start is None and file.data[span.start : span.stop].strip():
            raise file.error("expected a header that starts with '>', found something else", span.line)
        stop = span.stop
    if start is not None:
        yield Span(start.start, stop, start.line)


def _header(file: TextFile, span: Span) -> tuple[str, str]:
    header, _, letters = file.text(span).partition("\n")
    return header[1:].strip(), letters


def _usual_label(header: str) -> Column | None:
    fields = _fields(header)
    if any(field.startswith("label=") for field in fields):
        return "label"
    return -1 if len(fields) > 1 else None


def _fields(header: str) -> list[str]:
    return [field for field in _FIELDS.split(header) if field]


def _class(file: TextFile, header: str, label: Column, span: Span, is_required: bool) -> str | None:
    fields = _fields(header)
    if isinstance(label, str) and not label.lstrip("-").isdigit():
        found = [field.partition("=")[2] for field in fields if field.startswith(f"{label}=")]
        if not found and is_required:
            raise file.error(
                f"the header has no {label}=CLASS; its fields are: {', '.join(fields)}", span.line
            )
        return found[0] or None if found else None
    index = int(label)
    if -len(fields) <= index < len(fields):
        return fields[index].removeprefix("label=")
    if is_required:
        raise file.error(f"the header has no field {index}; its fields are: {', '.join(fields)}", span.line)
    return None
