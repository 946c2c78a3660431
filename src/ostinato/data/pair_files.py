"""`Pairs`, and their files: two aligned files, `source TAB target`, tables with two columns; and lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from ostinato.data.columns import resolve
from ostinato.data.labelled_spec import LARGE_BYTES
from ostinato.data.lines import FileRows, Findings, Span, Spans, TextFile, full_lines
from ostinato.data.records import Header, SeparatedFile, json_object
from ostinato.errors import DataError, InputError, SizeError

Parse = Callable[[Span], tuple[str, str | None]]


@dataclass(frozen=True)
class Pairs:
    """N sources and, where they are known, as many targets.

    Attributes:
        sources: texts.
        targets: as many texts, or None.
        places: the line (in memory: the number from 1) of each.
        origin: where they come from, for messages.
        notes: what was found on the way, counted.
        reading: options with which further data are read in the same way.
    """

    sources: Sequence[str]
    targets: Sequence[str] | None = None
    places: Sequence[int] = ()
    origin: str = "the data"
    notes: tuple[str, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.targets is not None and len(self.targets) != len(self.sources):
            raise SizeError(
                f"pairs: {len(self.sources):,} sources and {len(self.targets):,} targets; give one target "
                "for each source"
            )
        if not len(self.places):
            object.__setattr__(self, "places", range(1, len(self.sources) + 1))

    def __len__(self) -> int:
        return len(self.sources)

    def select(self, rows: Any) -> Self:
        """Some of the pairs, by their numbers, without the notes about all of them."""
        chosen = np.asarray(rows, np.int64).tolist()
        return type(self)(
            [self.sources[i] for i in chosen],
            None if self.targets is None else [self.targets[i] for i in chosen],
            [self.places[i] for i in chosen],
            self.origin,
            (),
            self.reading,
        )

    def complete(self) -> tuple[Self, str]:
        """The pairs that have text on both sides, and a note about the others, empty where there are none."""
        assert self.targets is not None
        kept = [i for i in range(len(self)) if self.sources[i].strip() and self.targets[i].strip()]
        if len(kept) == len(self):
            return self, ""
        missing = set(range(len(self))).difference(kept)
        found = type(self)(
            [self.sources[i] for i in kept],
            [self.targets[i] for i in kept],
            [self.places[i] for i in kept],
            self.origin,
            self.notes,
            self.reading,
        )
        first = self.places[min(missing)]
        return found, (
            f"{self.origin}: pairs with an empty side, left out: {len(missing):,} (the first in line "
            f"{first:,})"
        )


def read_aligned(source: Path, target: Path, encoding: str | None) -> Pairs:
    """Line i of one file belongs to line i of the other; lines end at a line feed only.

    Raises:
        DataError: a file that is missing, binary or in another encoding; files of unequal length.
    """
    files = [_open(path, encoding) for path in (source, target)]
    sides, counts = [], []
    for file in files:
        spans = Spans()
        for span in file.lines():
            spans.append(span)
        counts.append(len(spans))
        sides.append(_texts(file, spans))
    has_tabs = _count_tabs(files[0]) >= counts[0] > 0
    if counts[0] != counts[1] and has_tabs:
        raise DataError(
            f"{source} has a tab for each of its {counts[0]:,} lines, and {target} has {counts[1]:,}; a "
            "file of pairs is given alone, and two files of another part each with its option (--valid SRC "
            "--valid TGT)"
        )
    if counts[0] != counts[1]:
        raise DataError(
            f"{source} has {counts[0]:,} lines, {target} has {counts[1]:,}; line i of one has to be the pair "
            "of line i of the other: give files of equal length"
        )
    _require_some(files[0], counts[0])
    notes: tuple[str, ...] = ()
    if has_tabs:
        notes = (f"{source}: there is a tab for each line; a file of pairs is given alone, without {target}",)
    return Pairs(
        sides[0], sides[1], range(1, counts[0] + 1), f"{source} and {target}", notes,
        reading={"lines": True, "encoding": encoding},
    )  # fmt: skip


def read_lines(path: Path, encoding: str | None) -> Pairs:
    """Each line a source, blank ones and tabs too, so that answers can be put beside the lines.

    Raises:
        DataError: a file that is missing, binary or in another encoding.
    """
    file, findings = _open(path, encoding), Findings()
    spans = Spans()
    for span in file.lines():
        spans.append(span)
        if file.data.find(b"\t", span.start, span.stop) >= 0:
            findings.add("lines with a tab, each read as one source", span.line)
    return Pairs(_texts(file, spans), None, range(1, len(spans) + 1), str(path), findings.notes())


def read_pairs_tsv(path: Path, encoding: str | None, *, needs_targets: bool = True) -> Pairs:
    """`source TAB target` on each line; nothing is quoted, and lines end at a line feed only.

    Where targets are not needed, a line without a tab is a source alone, and what follows a tab is passed
    over, counted.

    Raises:
        DataError: a line with no tab, or with two; a file that is missing, binary or in another encoding.
    """
    file, findings = _open(path, encoding), Findings()

    def parse(span: Span) -> tuple[str, str | None]:
        fields = file.text(span).split("\t")
        if len(fields) == 2:
            return fields[0], fields[1]
        if len(fields) == 1 and (not needs_targets or not fields[0].strip()):
            return fields[0], "" if needs_targets else None
        if len(fields) == 1:
            raise file.error(
                "expected source, a tab and target, found no tab; two aligned files are given as SRC TGT, "
                "a table with --source COL --target COL",
                span.line,
            )
        raise file.error(
            f"expected source, a tab and target, found {len(fields)} fields; of a table with more columns "
            "name the two with --source COL --target COL",
            span.line,
        )

    def note(span: Span, has_target: bool) -> None:
        if has_target and not needs_targets:
            findings.add("targets after a tab, not looked at", span.line)

    return _collect(file, file.lines(), parse, note, findings, needs_targets, {"encoding": encoding})


def read_table(
    path: Path,
    source: str | int,
    target: str | int | None,
    encoding: str | None,
    *,
    needs_targets: bool = True,
) -> Pairs:
    """Two columns of JSON lines (one object a line) or of a text with separators and names in its first line.

    A value that is missing or null is an empty text.

    Raises:
        DataError: a column that there is not, with those that there are; values that are no text.
    """
    file = _open(path, encoding)
    sign = file.data[file.first : file.first + 4096].lstrip()[:1]
    is_json = sign == b"{"
    if sign == b"[" and ".json" in map(str.lower, path.suffixes):
        raise file.error("a JSON array; write JSON lines: one object a line, without brackets and commas", 1)
    read = _read_json if is_json else _read_separated
    return read(file, source, target, encoding, needs_targets)


def _read_json(
    file: TextFile, source: str | int, target: str | int | None, encoding: str | None, needs_targets: bool
) -> Pairs:
    findings, seen = Findings(), set[str]()
    names: list[str] = []
    for name in (source, target):
        if isinstance(name, int):
            raise InputError(f"columns of JSON lines have names, found the number {name}; give a name")

    def value(record: Mapping[str, Any], name: str, line: int) -> str:
        found = record.get(name)
        if found is not None and not isinstance(found, str):
            raise file.error(f"expected a text, found {found!r:.60}", line, name)
        return found or ""

    def parse(span: Span) -> tuple[str, str | None]:
        record = json_object(file, span, findings)
        if not names:
            names.extend(record)
        seen.update(name for name in (source, target) if name in record)
        answer = None if target is None else value(record, str(target), span.line)
        return value(record, str(source), span.line), answer

    reading = {"source": source, "target": target, "encoding": encoding}
    found = _collect(file, full_lines(file, findings), parse, None, findings, needs_targets, reading)
    for name in (source, *((target,) if needs_targets else ())):
        if name not in seen:
            raise file.error(f"no object has a {name!r}; the names of the first are: {', '.join(names)}")
    return found


def _read_separated(
    file: TextFile, source: str | int, target: str | int | None, encoding: str | None, needs_targets: bool
) -> Pairs:
    table, findings = SeparatedFile(file, None), Findings()
    head = next(table.spans(), None)
    if head is None:
        raise file.error("expected names of columns and rows below them, found an empty file")
    names = [name.strip() for name in table.fields(head)]
    table.width = len(names)
    header = Header(file, names)
    first = resolve(header, source, "--source")
    second: int | None = None
    if target is not None and (needs_targets or target in names):
        second = resolve(header, target, "--target")

    def parse(span: Span) -> tuple[str, str | None]:
        fields = table.fields(span)
        return fields[first], None if second is None else fields[second]

    reading = {"source": source, "target": target, "encoding": encoding}
    spans = islice(table.spans(findings), 1, None)
    return _collect(file, spans, parse, None, findings, needs_targets, reading)


def _collect(
    file: TextFile,
    spans: Iterator[Span],
    parse: Parse,
    note: Callable[[Span, bool], None] | None,
    findings: Findings,
    needs_targets: bool,
    reading: Mapping[str, Any],
) -> Pairs:
    """Parse every record once; of a large file keep only where the records are."""
    kept, sources, targets = Spans(), [], []  # type: Spans, list[str], list[str]
    for span in spans:
        source, target = parse(span)
        if note is not None:
            note(span, target is not None)
        kept.append(span)
        if not file.is_large:
            sources.append(source)
            targets.append(target or "")
    if needs_targets:
        _require_some(file, len(kept))
    found: tuple[Sequence[str], Sequence[str]] = (sources, targets)
    if file.is_large:
        found = (
            FileRows(kept, lambda span: parse(span)[0]),
            FileRows(kept, lambda span: parse(span)[1] or ""),
        )
    answers = found[1] if needs_targets else None
    return Pairs(found[0], answers, kept.lines, str(file.path), findings.notes(), reading)


def _texts(file: TextFile, spans: Spans) -> Sequence[str]:
    rows: FileRows[str] = FileRows(spans, file.text)
    return rows if file.is_large else [*rows]


def _open(path: Path, encoding: str | None) -> TextFile:
    file = TextFile(path, encoding=encoding, large_bytes=LARGE_BYTES)
    at = file.data.find(b"\0")
    if at >= 0:
        line = file.data[:at].count(b"\n") + 1
        raise file.error("a null byte: this is a binary file, or text in UTF-16 (--encoding utf-16)", line)
    return file


def _count_tabs(file: TextFile) -> int:
    data = file.data
    return data.count(b"\t") if isinstance(data, bytes) else 0


def _require_some(file: TextFile, count: int) -> None:
    if not count:
        raise file.error("expected one pair or more, found none; the file is empty")
