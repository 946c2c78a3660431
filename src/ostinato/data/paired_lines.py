"""Lines that belong together: a label and a text, words and tags in parallel files; and plain lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from ostinato.data.examples import Examples, Sentence
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.lines import Collector, Findings, Row, Span, Spans, TextFile, collect_file, full_lines
from ostinato.data.record_values import as_input
from ostinato.errors import DataError

SLOT_FILES = ("seq.in", "seq.out", "label")
_LABEL_THEN_TEXT = re.compile(r"\s*(\S+)\s(.*)", re.DOTALL)


def read_lines(path: str | Path, spec: LabelledSpec) -> Examples:
    """One example a line, without labels: text, letters, tokens between white space, or trees.

    A blank line is an empty example, so that answers can be put beside the lines.

    Raises DataError where labels are required.
    """
    kind = spec.kind or "text"
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    if spec.needs_labels:
        is_blank = not any(file.data[span.start : span.stop].strip() for span in file.lines())
        raise file.error(
            "expected one example or more, found none; the file is empty"
            if is_blank
            else "plain lines have no labels; name the columns (--text, --label), or the format (--format)"
        )

    def parse(span: Span, _: Findings) -> Row:
        return Row(as_input(file.text(span), kind, lambda message: file.error(message, span.line)))

    findings = Findings()
    if spec.text is not None and kind != "tokens":
        findings.add("file without the column of a table, each line read as an input", 1)
    collector = Collector(kind, str(path), spec, findings, has_labels=False)
    return collect_file(file, file.lines(), parse, collector, {"kind": kind})


def read_trec(path: str | Path, spec: LabelledSpec) -> Examples:
    """A label, a blank and a text on each line; of a label COARSE:fine the coarse part is kept.

    Where labels are not needed, a file with a line that does not start with one of `spec.classes` is read as
    texts without labels (noted). Without `spec.encoding` the file is read as UTF-8 if all of it is, else as
    latin-1 (noted).

    Raises DataError for a line that holds only a label.
    """
    findings = Findings()
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    wrong = None if spec.encoding is not None else _first_not_utf8(file)
    if wrong is not None:
        findings.add("bytes that are not UTF-8, file read as latin-1", wrong)
        file = TextFile(path, encoding="latin-1", large_bytes=spec.large_bytes)
    kind = spec.kind or "text"
    bare = None if spec.needs_labels else _first_without(file, spec.classes)
    if bare is not None:
        findings.add("lines without a known label, all lines read as texts", bare)

    def parse(span: Span, _: Findings) -> Row:
        label, text = (None, file.text(span)) if bare is not None else _label_and_text(file, span)
        return Row(as_input(text, kind, lambda message: file.error(message, span.line)), label)

    collector = Collector(kind, str(path), spec, findings, has_labels=bare is None)
    examples = collect_file(
        file, full_lines(file, findings), parse, collector, {"kind": kind, "format": "trec"}
    )
    classes = spec.classes if spec.classes is not None else sorted(set(examples.labels or ()))
    return replace(examples, reading={**examples.reading, "classes": list(classes)})


def _label_and_text(file: TextFile, span: Span) -> tuple[str, str]:
    found = _LABEL_THEN_TEXT.match(file.text(span))
    if found is None:
        raise file.error("expected a label, a blank and a text, found one word", span.line)
    label, text = found.groups()
    return label.partition(":")[0] or label, text


def _first_without(file: TextFile, classes: Sequence[str] | None) -> int | None:
    """The first line that starts with none of the classes."""
    known = None if classes is None else set(classes)
    for span in file.lines():
        first = file.text(span).split(maxsplit=1)[:1]
        if known is not None and first and (first[0].partition(":")[0] or first[0]) not in known:
            return span.line
    return None


def _first_not_utf8(file: TextFile) -> int | None:
    """The first line that is not UTF-8."""
    for span in file.lines():
        try:
            file.text(span)
        except DataError:
            return span.line
    return None


def read_slots(folder: str | Path, spec: LabelledSpec) -> Examples:
    """A folder with `seq.in` (words), `seq.out` (a tag for each word) and `label` (one class a line).

    `label` may be absent, and where labels are not required `seq.out` too. As texts (`spec.kind`) the lines
    of `seq.in` stay as they are, `label` is needed and `seq.out` is not looked at.

    Raises:
        DataError: a file that is missing, files of unequal length, a line with more words than tags or fewer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        there = "a file; pass the folder that it is in, or leave out --format slots"
        raise DataError(
            f"expected a folder with {', '.join(SLOT_FILES)}, found "
            + (there if folder.exists() else "nothing; check the path"),
            path=folder,
        )
    if not (folder / SLOT_FILES[0]).exists():
        raise DataError(
            f"expected a file, or a folder with {', '.join(SLOT_FILES)}, found a folder without seq.in; name "
            "the file in it",
            path=folder,
        )
    is_text = spec.kind == "text"
    words_file = _slot_file(folder, SLOT_FILES[0], spec)
    tags_file = None if is_text else _slot_file(folder, SLOT_FILES[1], spec, is_needed=spec.needs_labels)
    labels_file = _slot_file(folder, SLOT_FILES[2], spec, is_needed=spec.needs_labels and is_text)
    assert words_file is not None
    findings = Findings()
    collector = Collector(
        "text" if is_text else "tokens", str(folder), spec, findings, labels_file is not None,
        tags_file is not None,
    )  # fmt: skip
    tag_spans, label_spans = Spans(), Spans()  # by line: the three files go side by side

    def parse(span: Span) -> Row:
        text = words_file.text(span)
        words = text.split()
        tags = label = None
        if tags_file is not None:
            tags = tuple(tags_file.text(tag_spans[span.line - 1]).split())
            if len(tags) != len(words):
                raise tags_file.error(
                    f"{len(tags)} tags for {len(words)} words in the same line of seq.in; give one for each",
                    span.line,
                )
        if labels_file is not None:
            label = labels_file.text(label_spans[span.line - 1]).strip() or None
        return Row(text if is_text else Sentence(tuple(words)), label, tags)

    if words_file.is_large:
        collector.lazy = parse
    for span, tag_span, label_span in _parallel(words_file, tags_file, labels_file):
        tag_spans.append(tag_span)
        label_spans.append(label_span)
        collector.add(parse(span), span.line, span)
    return collector.finish({"kind": collector.kind})


def is_slots(source: Any, file_format: str | None = None) -> bool:
    """Whether `read_slots` reads it: a folder with seq.in, or what the format says."""
    if file_format is not None or not isinstance(source, str | Path):
        return file_format == "slots"
    return (Path(source) / SLOT_FILES[0]).is_file()


def _slot_file(folder: Path, name: str, spec: LabelledSpec, *, is_needed: bool = True) -> TextFile | None:
    if not is_needed and not (folder / name).exists():
        return None
    return TextFile(folder / name, encoding=spec.encoding, large_bytes=spec.large_bytes)


def _parallel(*files: TextFile | None) -> Iterator[tuple[Span, Span, Span]]:
    """The lines of the files side by side; DataError where one has more than another."""
    nothing = Span(0, 0, 0)
    readers = [repeat(nothing) if file is None else file.lines() for file in files]
    number = 0
    while True:
        number += 1
        spans = [next(reader, None) for reader in readers]
        ended = [file for file, span in zip(files, spans, strict=True) if file is not None and span is None]
        if len(ended) == sum(file is not None for file in files):
            return
        if ended and ended[0] is not None:
            raise ended[0].error(
                f"the file ends before line {number}, which another file of the folder has; "
                "seq.in, seq.out and label need a line for each example"
            )
        words, tags, label = (span or nothing for span in spans)
        yield words, tags, label
