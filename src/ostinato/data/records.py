"""Records in files: JSON lines, and text with a separator; one example a record."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ostinato.data.cells import quoted
from ostinato.data.columns import resolve
from ostinato.data.examples import Examples
from ostinato.data.files import find_separator
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.lines import (
    BLANK_LINES,
    Collector,
    Findings,
    Row,
    Span,
    TextFile,
    collect_file,
    full_lines,
)
from ostinato.data.record_roles import Roles, find_roles, shown
from ostinato.errors import DataError, InputError

_FIELD_LIMIT = 1 << 30
_SAMPLE_LINES, _SAMPLE_BYTES = 200, 1 << 18
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json_lines(path: str | Path, spec: LabelledSpec) -> Examples:
    """One JSON object a line (lines end at a line feed only), or a file with one JSON list of objects.

    Raises:
        DataError: a line that is not a JSON object, a name that an object lacks, values that do not fit.
    """
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    kind, findings = spec.kind or "text", Findings()
    if file.data[file.first : file.first + 4096].lstrip()[:1] == b"[":
        return _json_list(file, spec, kind)
    first = next(full_lines(file, Findings()), None)
    head = {} if first is None else json_object(file, first, findings)
    header = Header(file, list(head))
    collector = Collector(kind, str(path), spec, findings, has_labels=False)
    if first is None:
        return collector.finish()
    roles = find_roles(spec, header, kind, list(head.values()))

    def parse(span: Span, found: Findings) -> Row:
        record, fail = json_object(file, span, found), _failing(file, span.line)
        return roles.row(_values(record, header.names, roles, fail), fail)

    collector.has_labels, collector.has_tags = roles.label is not None, roles.tags is not None
    spans = full_lines(file, findings)
    return collect_file(file, spans, parse, collector, roles.reading(spec))


def json_objects(path: str | Path, spec: LabelledSpec) -> Iterator[dict[str, Any]]:
    """The objects of a file as `read_json_lines` reads it where labels are not needed: one for each example.

    Raises:
        DataError: as `read_json_lines`.
    """
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    if file.data[file.first : file.first + 4096].lstrip()[:1] == b"[":
        yield from _json(file, file.text(Span(file.first, len(file.data), 1)), 1)
        return
    for span in full_lines(file, Findings()):
        yield json_object(file, span, Findings())


class Header:
    """The names of a file's columns, for messages; `hint` is a cure for columns that cannot be found."""

    def __init__(self, file: TextFile, names: list[str], hint: str = ""):
        self._file, self.names, self._hint = file, names, hint

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        return self._file.error(message + self._hint, line, column)


def _failing(file: TextFile, line: int) -> Callable[[str], DataError]:
    return lambda message: file.error(message, line)


def json_object(file: TextFile, span: Span, findings: Findings) -> dict[str, Any]:
    """The JSON object of a line, broken characters replaced and counted. DataError where there is none."""
    text = file.text(span)
    value = _json(file, text, span.line)
    if not isinstance(value, dict):
        raise file.error(
            f'expected a JSON object such as {{"text": …}}, found {quoted(text.strip())}; '
            "write one object a line",
            span.line,
        )
    if "\\ud" in text or "\\uD" in text:
        value = _without_surrogates(value, findings, span.line)
    return value


def _json(file: TextFile, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise file.error(f"{at}: not JSON ({error.msg}); write one JSON object a line", line) from None
    except (RecursionError, ValueError) as error:  # nested thousands deep; a number with thousands of digits
        raise file.error(f"JSON that cannot be read ({error})", line) from None


def _without_surrogates(value: Any, findings: Findings, line: int) -> Any:
    """JSON can hold halves of characters, which no encoding can write: replace them."""
    if isinstance(value, str):
        found, n = _SURROGATE.subn("\ufffd", value)
        findings.add("broken characters in JSON, replaced", line, n)
        return found
    if isinstance(value, list):
        return [_without_surrogates(item, findings, line) for item in value]
    if isinstance(value, dict):
        return {key: _without_surrogates(item, findings, line) for key, item in value.items()}
    return value


def _values(
    record: Mapping[str, Any], names: Sequence[str], roles: Roles, fail: Callable[[str], DataError]
) -> list[Any]:
    """The record's values in the order of the names; those that the roles do not need may be absent."""
    needed = [] if isinstance(roles.input, tuple) else [roles.input]
    for index in needed:
        if names[index] not in record:
            found = ", ".join(map(repr, record)) or "none"
            raise fail(f"the object has no {names[index]!r}; its names are: {found}")
    return [record.get(name) for name in names]


def _json_list(file: TextFile, spec: LabelledSpec, kind: str) -> Examples:
    if file.is_large:
        raise file.error(
            f"one JSON list of more than {spec.large_bytes:,} bytes; write one object a line (JSON lines)"
        )
    records = _json(file, file.text(Span(file.first, len(file.data), 1)), 1)
    findings = Findings(unit="element")
    if not all(isinstance(record, dict) for record in records):
        wrong = next(i for i, record in enumerate(records) if not isinstance(record, dict))
        raise file.error(f"element {wrong + 1} is not an object; expected a list of objects")
    records = [_without_surrogates(record, findings, i + 1) for i, record in enumerate(records)]
    collector = Collector(kind, str(file.path), spec, findings, has_labels=False)
    if not records:
        return collector.finish()
    header = Header(file, list(records[0]))
    roles = find_roles(spec, header, kind, list(records[0].values()))
    collector.has_labels, collector.has_tags = roles.label is not None, roles.tags is not None
    for place, record in enumerate(records, 1):

        def fail(message: str, place: int = place) -> DataError:
            return file.error(f"element {place}: {message}")

        collector.add(roles.row(_values(record, header.names, roles, fail), fail), place)
    return collector.finish(roles.reading(spec))


def read_csv(path: str | Path, spec: LabelledSpec) -> Examples:
    """Text with a separator, one record a line or, inside quotes, over several.

    Fields lose blanks at their start. Between tabs a quote is a quote, unless the file as a whole shows that
    its fields were quoted: a tab or a line end inside quotes, doubled quotes, or every field quoted.

    Raises:
        DataError: rows of unequal width, broken quoting, columns that there are not, values that do not fit.
        InputError: a separator that is not one character.
    """
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    table = SeparatedFile(file, spec.separator)
    kind, findings = spec.kind or "text", Findings()
    head = next(table.spans(), None)
    collector = Collector(kind, str(path), spec, findings, has_labels=False)
    if head is None:
        return collector.finish()
    names = table.fields(head)
    table.width = len(names)
    header = _csv_header(file, names, spec)
    skipped = int(spec.header)
    example = next(islice(table.spans(), skipped, None), None)
    if example is None:
        raise file.error(
            f"expected rows below the names {shown(header)}, found none; if the first line is an example, "
            "say that there is no header (--no-header)",
            1,
        )
    roles = find_roles(spec, header, kind, table.fields(example))
    wanted = [one for one in (spec.text, spec.label if spec.needs_labels else None) if one is not None]
    if spec.header and wanted and not any(one in header.names for one in wanted):
        findings.add(
            f"the first line is taken for names ({shown(header)}), --no-header makes it an example", 1
        )

    def parse(span: Span, _: Findings) -> Row:
        return roles.row(table.fields(span), _failing(file, span.line))

    collector.has_labels = roles.label is not None
    collector.has_tags = roles.tags is not None
    spans = islice(table.spans(findings), skipped, None)
    return collect_file(file, spans, parse, collector, roles.reading(spec))


def first_values(path: str | Path, spec: LabelledSpec, count: int) -> list[str]:
    """The first fields of the column `spec.text` of a CSV file."""
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    table = SeparatedFile(file, spec.separator)
    rows = [table.fields(span) for span in islice(table.spans(), count + 1)]
    names = rows[0] if rows else []
    header = _csv_header(file, names, spec)
    index = 0 if spec.text is None else resolve(header, spec.text, "sequence")
    return [row[index] for row in rows[int(spec.header) :] if index < len(row)]


def _csv_header(file: TextFile, fields: Sequence[str], spec: LabelledSpec) -> Header:
    names = [field.strip() if spec.header else str(i) for i, field in enumerate(fields)]
    wanted = [one for one in (spec.text, spec.label, spec.series) if isinstance(one, str)]
    hint = ""
    if not spec.header:
        hint = " (if the first line holds the names of the columns, leave out --no-header)"
    elif wanted and not any(one in names for one in wanted):
        hint = (
            " (if the first line is an example, put the names above it, or train with --no-header and "
            "columns as numbers from 0)"
        )
    return Header(file, names, hint)


class SeparatedFile:
    """The records of a text file with separators, as spans and as fields.

    Args:
        file: the file.
        separator: one character; None finds comma, tab, semicolon or pipe from the first lines.

    Attributes:
        is_quoted: whether quotes enclose fields, rather than being part of the text.
        width: how many fields every record must have; None as long as it is not known.
    """

    def __init__(self, file: TextFile, separator: str | None):
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise InputError(f"separator: expected one character such as ',' or ';', found {separator!r}")
        self.file = file
        self.width: int | None = None
        self.separator = separator if separator is not None else self._found_separator()
        self.is_quoted = self.separator != "\t" or self._has_quoted_fields()

    def spans(self, findings: Findings | None = None) -> Iterator[Span]:
        """Every record; a blank line is one only where `width` is 1, else `findings` counts it."""
        data, lines = self.file.data, self.file.lines()
        for span in lines:
            if self.is_quoted and data.find(b'"', span.start, span.stop) >= 0:
                yield self._quoted_span(span, lines)
            elif span.start < span.stop or self.width == 1:
                yield span
            elif findings is not None:
                findings.add(BLANK_LINES, span.line)

    def fields(self, span: Span) -> list[str]:
        """The fields of a record; DataError where they are not as many as `width` says."""
        text = self.file.text(span)
        if not self.is_quoted or '"' not in text:
            row = text.split(self.separator)
            if self.is_quoted:
                row = [field.lstrip(" ") for field in row]
        else:
            with _no_field_limit():
                row = next(self._reader(iter(io.StringIO(text, newline=""))))
        if self.width is not None and len(row) != self.width:
            raise self.file.error(
                f"expected {self.width} fields separated by {self.separator!r}, found {len(row)}; "
                "quote fields that contain the separator, or set the separator",
                span.line,
            )
        return row

    def _quoted_span(self, first: Span, lines: Iterator[Span]) -> Span:
        """The record that starts in this line, up to the line where its last quote closes."""
        last = first

        def feed() -> Iterator[str]:
            nonlocal last
            yield self.file.text(first) + "\n"
            for last in lines:
                yield self.file.text(last) + "\n"

        try:
            with _no_field_limit():
                next(self._reader(feed()))
        except csv.Error as error:
            raise self.file.error(
                f"the quoting is broken ({error}); close the quote, and double a quote inside quotes",
                first.line,
            ) from None
        return Span(first.start, last.stop, first.line)

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self.separator, skipinitialspace=True, strict=True)

    def _found_separator(self) -> str:
        sample: list[str] = []
        size = 0
        for span in islice(self.file.lines(), _SAMPLE_LINES):
            sample.append(self.file.text(span) + "\n")
            size += span.stop - span.start
            if size > _SAMPLE_BYTES:
                break
        tabs = {line.count("\t") for line in sample if line.strip()}
        return "\t" if len(tabs) == 1 and tabs != {0} else find_separator([_cut(line) for line in sample])

    def _has_quoted_fields(self) -> bool:
        """Whether quotes between tabs enclose fields: by the whole file, since a single line may mislead."""
        data = self.file.data
        if data.find(b'"') < 0:
            return False
        widths, n_bare, n_doubled, n_open = set(), 0, 0, 0
        for span in self.file.lines():
            if span.start == span.stop:
                continue
            cells = data[span.start : span.stop].split(b"\t")
            widths.add(len(cells))
            for cell in cells:
                is_enclosed = _is_enclosed(cell)
                n_bare += not cell.startswith(b'"')
                n_open += cell.startswith(b'"') and not is_enclosed
                n_doubled += is_enclosed and b'""' in cell[1:-1]
        if len(widths) == 1:
            return not n_open and bool(n_doubled or not n_bare)
        return n_open > 0 and self._is_even_when_quoted()

    def _is_even_when_quoted(self) -> bool:
        self.is_quoted = True
        try:
            widths = {len(self.fields(span)) for span in self.spans()}
        except DataError:
            return False
        return len(widths) == 1


def _is_enclosed(cell: bytes) -> bool:
    return len(cell) > 1 and cell.endswith(b'"') and b'"' not in cell[1:-1].replace(b'""', b"")


def _cut(line: str) -> str:
    """A line short enough for the sniffer's csv reader."""
    return line if len(line) < 1 << 16 else line[: 1 << 16] + "\n"


@contextmanager
def _no_field_limit() -> Iterator[None]:
    """Fields as long as they come: the limit of the csv module belongs to the process, so it is put back."""
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)
