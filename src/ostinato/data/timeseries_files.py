"""Signals with a class each: .ts files, arrays of numpy in .npz, and tables in long format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ostinato.data.cells import quoted
from ostinato.data.examples import Examples
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.lines import Collector, Findings, Row, Span, TextFile, collect_file
from ostinato.data.record_values import check_finite

_STAMPED = re.compile(r"\(([^()]*),([^(),]*)\)")
_MISSING = ("?", "nan", "")


class _TsHeader:
    """What the lines before @data say.

    Attributes:
        classes: those that @classLabel lists, None without it; has_label: whether cases end with a label.
        dimensions, length: of every case, None where the file does not say.
        is_stamped: whether values are (time, value).
        data_line: the line of @data.
    """

    def __init__(self, file: TextFile):
        self.classes: set[str] | None = None
        self.has_label = self.is_stamped = False
        self.dimensions: int | None = None
        self.length: int | None = None
        self.data_line: int | None = None
        is_equal = True
        for span in file.lines():
            text = file.text(span).strip()
            if not text or text.startswith(("#", "%")):
                continue
            words = text.split()
            key, values = words[0].lower(), words[1:]
            if not key.startswith("@"):
                raise file.error(
                    f"expected a line such as @problemName or @data, found {quoted(text)}", span.line
                )
            if key == "@data":
                self.data_line = span.line
                break
            if key == "@classlabel" and values and values[0].lower() == "true":
                self.has_label, self.classes = True, set(values[1:]) or None
            elif key == "@targetlabel":
                self.has_label |= bool(values) and values[0].lower() == "true"
            elif key == "@timestamps":
                self.is_stamped = bool(values) and values[0].lower() == "true"
            elif key == "@equallength":
                is_equal = bool(values) and values[0].lower() == "true"
            elif key in ("@dimensions", "@dimension", "@serieslength"):
                number = _whole_number(file, span, key, values)
                if key == "@serieslength":
                    self.length = number
                else:
                    self.dimensions = number
        if not is_equal:
            self.length = None
        if self.data_line is None:
            raise file.error("expected a line @data and cases below it, found none; is it a .ts file?")


def _whole_number(file: TextFile, span: Span, key: str, values: list[str]) -> int:
    if not values or not values[0].isdecimal():
        raise file.error(f"expected a whole number after {key}, found {quoted(' '.join(values))}", span.line)
    return int(values[0])


def read_ts(path: str | Path, spec: LabelledSpec) -> Examples:
    """A .ts file: each case a line of dimensions separated by `:`, values by `,`, the class at the end.

    Lengths may differ from case to case, not between the dimensions of one. With time stamps, (time, value),
    the values are taken in their order.

    Raises:
        DataError: missing values (`?`, NaN), text among the numbers, dimensions of other number or length, a
            class that the header does not list; with line, dimension and step.
    """
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
    findings = Findings()
    collector = Collector("arrays", str(path), spec, findings, has_labels=False)
    if file.first == len(file.data):
        return collector.finish()
    header = _TsHeader(file)
    if not header.has_label and spec.needs_labels:
        raise file.error("the file says that it has no labels (@classLabel); take one that has")

    def parse(span: Span, found: Findings) -> Row:
        return _case(file, header, span, found)

    def cases() -> Iterator[Span]:
        for span in file.lines():
            if span.line <= (header.data_line or 0):
                continue
            piece = file.data[span.start : span.stop].strip()
            if piece and not piece.startswith((b"#", b"%")):
                yield span

    collector.has_labels = header.has_label
    return collect_file(file, cases(), parse, collector, {"kind": "arrays"})


def _case(file: TextFile, header: _TsHeader, span: Span, findings: Findings) -> Row:
    text = file.text(span).strip()
    label = None
    if header.has_label:
        text, colon, label = text.rpartition(":")
        label = label.strip()
        if not colon:
            raise file.error("expected values, ':' and a class, found no ':'", span.line)
        if header.classes is not None and label not in header.classes and label not in _MISSING:
            known = ", ".join(sorted(header.classes)[:20])
            raise file.error(
                f"class {quoted(label)} is not in @classLabel; the classes are: {known}", span.line
            )
    parts = _dimensions(text, header)
    if header.dimensions is not None and len(parts) != header.dimensions:
        raise file.error(
            f"expected {header.dimensions} dimensions (@dimensions), found {len(parts)}", span.line
        )
    rows = [_values(file, span, number, part, header) for number, part in enumerate(parts, 1)]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        odd = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        raise file.error(
            f"dimension {odd + 1} has {len(rows[odd])} steps, dimension 1 has {len(rows[0])}; "
            "all dimensions of a case need the same",
            span.line,
        )
    if header.length is not None and lengths != {header.length}:
        findings.add("cases of another length than @seriesLength says", span.line)
    with np.errstate(over="ignore"):  # reported below, with its place
        array = np.asarray(rows, np.float64).T.astype(np.float32)
    check_finite(array, lambda message: file.error(message, span.line))
    return Row(np.ascontiguousarray(array), label if label not in _MISSING else None)


def _dimensions(text: str, header: _TsHeader) -> list[str]:
    if not header.is_stamped:
        return text.split(":")
    # A time such as 12:30:00 has the sign that separates dimensions: cut only outside of brackets.
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if sign == ":" and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _values(file: TextFile, span: Span, dimension: int, part: str, header: _TsHeader) -> list[float]:
    if not part.strip():
        return []
    if header.is_stamped:
        cells = [match.group(2).strip() for match in _STAMPED.finditer(part)]
        rest = _STAMPED.sub("", part).replace(",", "").strip()
        if rest:
            raise file.error(
                f"dimension {dimension}: expected (time, value), found {quoted(rest)}", span.line
            )
    else:
        cells = part.split(",")
    try:
        values = list(map(float, cells))
    except ValueError:
        values = []
    if len(values) == len(cells) and all(map(math.isfinite, values)):
        return values
    for step, cell in enumerate(cells):
        _check_cell(file, span, dimension, step, cell.strip())
    return values


def _check_cell(file: TextFile, span: Span, dimension: int, step: int, cell: str) -> None:
    if cell.lower() in _MISSING:
        raise file.error(
            f"dimension {dimension}, step {step}: the value is missing ({cell or 'empty'}); fill gaps first "
            "(such as with ostinato.Imputer), or leave the case out",
            span.line,
        )
    try:
        is_finite = math.isfinite(float(cell))
    except ValueError:
        is_finite = False
    if not is_finite:
        raise file.error(
            f"dimension {dimension}, step {step}: expected a finite number, found {quoted(cell)}", span.line
        )
