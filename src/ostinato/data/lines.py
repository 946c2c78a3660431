"""Text files by byte ranges: small ones in memory, large ones mapped from disk and parsed when looked at."""

from __future__ import annotations

import codecs
import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar, overload

from numpy.typing import NDArray

from ostinato.data.examples import Examples
from ostinato.data.files import codec, encoding_cure, open_binary
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.large import Scratch
from ostinato.errors import DataError

Item = TypeVar("Item")
_BLOCK = 1 << 20
_WHITE = 256  # bytes; a longer line is not looked through for something else than white space
BLANK_LINES = "blank lines, passed over"


class Span(NamedTuple):
    """A piece of a file: bytes from `start` up to `stop`, on line `line` (from 1)."""

    start: int
    stop: int
    line: int


class TextFile:
    """A text file as UTF-8 bytes, without its byte order mark.

    Args:
        path: the file; see `ostinato.data.files.open_binary` for the forms it may have.
        encoding: a Python codec name. What is not UTF-8 is converted once, when the file is opened.
        large_bytes: a larger file (unpacked) stays on disk: its own bytes where they are plain UTF-8, else a
            temporary copy that lives as long as this object.

    Attributes:
        data: the bytes, or the mapped file.
        is_large: whether it is mapped.

    Raises:
        DataError: the file is missing, damaged, or not in the encoding; names the byte and the line.
        InputError: an unknown encoding.
    """

    def __init__(self, path: str | Path, *, encoding: str | None = None, large_bytes: int):
        self.path = Path(path)
        self.encoding = codec(encoding or "utf-8")
        self._scratch: Scratch | None = None
        self.data: bytes | mmap.mmap
        with open_binary(self.path) as raw:
            plain = self.encoding == "utf-8-sig" and isinstance(raw, BufferedReader)
            if plain and os.fstat(raw.fileno()).st_size > large_bytes:
                self.data = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                self.data = self._converted(raw, large_bytes)
        self.is_large = isinstance(self.data, mmap.mmap)
        if self.data.find(b"\n") < 0 and self.data.find(b"\r") >= 0:
            self.data = self._with_line_feeds()
        self.first = 3 if self.data[:3] == codecs.BOM_UTF8 else 0

    def lines(self) -> Iterator[Span]:
        """Every line, without its end: a line feed, or a carriage return and a line feed."""
        data, start, line, size = self.data, self.first, 1, len(self.data)
        while start < size:
            stop = data.find(b"\n", start)
            after = stop + 1
            if stop < 0:
                stop = after = size
            yield Span(start, stop - 1 if data[stop - 1 : stop] == b"\r" and stop > start else stop, line)
            start, line = after, line + 1

    def text(self, span: Span) -> str:
        """The piece as text. Raises DataError with the place of a byte that is not UTF-8."""
        try:
            return self.data[span.start : span.stop].decode("utf-8")
        except UnicodeDecodeError as error:
            at = span.start + error.start
            line = span.line + self.data[span.start : at].count(b"\n")
            inside = at - max(self.data.rfind(b"\n", 0, at) + 1, self.first)
            found = f"0x{self.data[at]:02X}"
            raise DataError(
                f"byte {inside + 1} of the line ({found}, byte {at} of the file) is not UTF-8; "
                f"{encoding_cure(self.data[:4], 'utf-8')} (--encoding latin-1 reads any byte)",
                path=self.path,
                line=line,
            ) from None

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        return DataError(message, path=self.path, line=line, column=column)

    def _converted(self, raw: BinaryIO, large_bytes: int) -> bytes | mmap.mmap:
        """The rest of the stream as UTF-8: in memory up to `large_bytes`, else in a temporary file."""
        kept = BytesIO()
        target: BinaryIO = kept
        try:
            for block in self._blocks(raw):
                target.write(block)
                if target is kept and kept.tell() > large_bytes:
                    self._scratch = self._scratch or Scratch()
                    target = self._scratch.file().open("w+b")
                    target.write(kept.getbuffer())
            if target is kept:
                return kept.getvalue()
            target.flush()
            return mmap.mmap(target.fileno(), 0, access=mmap.ACCESS_READ)
        finally:
            if target is not kept:
                target.close()

    def _with_line_feeds(self) -> bytes | mmap.mmap:
        """Lines of old, which end with a carriage return alone, get line feeds."""
        data = self.data
        if isinstance(data, bytes):
            return data.replace(b"\r", b"\n")
        self._scratch = self._scratch or Scratch()
        with self._scratch.file().open("w+b") as copy:
            for start in range(0, len(data), _BLOCK):
                copy.write(data[start : start + _BLOCK].replace(b"\r", b"\n"))
            copy.flush()
            return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)

    def _blocks(self, raw: BinaryIO) -> Iterator[bytes]:
        if self.encoding == "utf-8-sig":
            while block := raw.read(_BLOCK):
                yield block
            return
        decoder, line = codecs.getincrementaldecoder(self.encoding)(), 1
        done, head = 0, b""
        while True:
            block = raw.read(_BLOCK)
            head = head or block[:4]
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
                yield text.encode("utf-8")  # a surrogate alone, as UTF-16 can hold it, is refused here
            except UnicodeError as error:
                at = getattr(error, "start", 0) - pending  # counts from the bytes kept of the last block
                raise DataError(
                    f"byte {done + at} is not {self.encoding}; {encoding_cure(head, self.encoding)}",
                    path=self.path,
                    line=line + block[: max(at, 0)].count(b"\n"),
                ) from None
            if not block:
                return
            line, done = line + text.count("\n"), done + len(block)


class FileRows(Sequence[Item], Generic[Item]):
    """Pieces of a large file, parsed each time they are looked at; holds two numbers and a line for each.

    Going through all of them reads the file once from start to end.
    """

    def __init__(self, spans: Spans, parse: Callable[[Span], Item]):
        self._spans, self._parse = spans, parse

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._parse(self._spans[row]) for row in range(*index.indices(len(self)))]
        return self._parse(self._spans[index])


class Spans(Sequence[Span]):
    """Spans as three arrays of numbers."""

    def __init__(self) -> None:
        self.starts, self.stops, self.lines = array("q"), array("q"), array("q")

    def append(self, span: Span) -> None:
        """Add one at the end."""
        self.starts.append(span.start)
        self.stops.append(span.stop)
        self.lines.append(span.line)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        return Span(self.starts[index], self.stops[index], self.lines[index])


class Row(NamedTuple):
    """One example on its way: its input, class and tags, None where it has none."""

    input: Any
    label: str | None = None
    tags: Sequence[str] | None = None


@dataclass
class Findings:
    """What was found on the way, counted, with the first place of each."""

    unit: str = "line"
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, what: str, place: int, count: int = 1) -> None:
        """Count something seen at a place."""
        if count:
            before, first = self.counts.get(what, (0, place))
            self.counts[what] = (before + count, first)

    def notes(self) -> tuple[str, ...]:
        """One line for each thing found."""
        return tuple(
            f"{what}: {n:,} (the first in {self.unit} {first:,})" for what, (n, first) in self.counts.items()
        )


@dataclass
class Collector:
    """Gathers rows to `Examples`, with the same treatment of empty inputs and missing labels for all formats.

    Args:
        kind: of the inputs.
        source: for messages.
        spec: `needs_labels` says what a missing label means.
        findings: gets the counts.
        has_labels: whether the source has classes at all; has_tags: whether it has tags.
    """

    kind: str
    source: str
    spec: LabelledSpec
    findings: Findings
    has_labels: bool
    has_tags: bool = False
    lazy: Callable[[Span], Row] | None = None
    inputs: list[Any] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    tags: list[Sequence[str] | None] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    spans: Spans = field(default_factory=Spans)
    _known: dict[str, str] = field(default_factory=dict)
    _width: tuple[int, int] | None = None

    def add(self, row: Row, place: int, span: Span | None = None) -> None:
        """Take one example, or count why not."""
        missing = self.has_labels and row.label is None, self.has_tags and row.tags is None
        if any(missing):
            if self.spec.needs_labels:
                self.findings.add("examples without a label, left out", place)
                return
            self.findings.add("examples without a label", place)
        if self.kind == "arrays":
            self._check_width(row.input, place)
        if not len(row.input.strip() if isinstance(row.input, str) else row.input):
            self.findings.add(f"examples of {self.kind} that are empty, kept", place)
        if self.lazy is not None and span is not None:
            self.spans.append(span)
        else:
            self.inputs.append(row.input)
            self.tags.append(row.tags)
        self.labels.append(None if row.label is None else self._known.setdefault(row.label, row.label))
        self.places.append(place)

    def _check_width(self, array: NDArray[Any], place: int) -> None:
        if self._width is None and len(array):
            self._width = array.shape[1], place
        if self._width is not None and len(array) and array.shape[1] != self._width[0]:
            width, first = self._width
            unit = self.findings.unit
            raise DataError(
                f"{self.source}, {unit} {place}: the signal has {array.shape[1]} dimensions, expected "
                f"{width} as in {unit} {first}; every step of every signal needs the same"
            )

    def finish(self, reading: dict[str, Any] | None = None) -> Examples:
        """The examples. Raises DataError where there is none."""
        if not self.places:
            found = "; ".join(self.findings.notes())
            raise DataError(
                f"{self.source}: expected one example or more, found none"
                + (f" ({found})" if found else "; it is empty")
            )
        inputs: Sequence[Any] = self.inputs
        tags: Any = self.tags
        if self.lazy is not None:
            lazy = self.lazy
            inputs = FileRows(self.spans, lambda span: lazy(span).input)
            tags = FileRows(self.spans, lambda span: lazy(span).tags)
        complete = "examples without a label" not in self.findings.counts
        labels = [label for label in self.labels if label is not None]
        return Examples(
            kind=self.kind,
            inputs=inputs,
            labels=labels if self.has_labels and len(labels) == len(self.places) else None,
            tags=tags if self.has_tags and complete else None,
            places=self.places,
            source=self.source,
            notes=self.findings.notes(),
            reading={} if reading is None else reading,
        )


def full_lines(file: TextFile, findings: Findings) -> Iterator[Span]:
    """The lines that hold more than white space; the others are counted."""
    for span in file.lines():
        if span.stop - span.start > _WHITE or file.data[span.start : span.stop].strip():
            yield span
        else:
            findings.add(BLANK_LINES, span.line)


def collect_file(
    file: TextFile,
    spans: Iterable[Span],
    parse: Callable[[Span, Findings], Row],
    collector: Collector,
    reading: dict[str, Any],
) -> Examples:
    """Parse every span once; of a large file keep only where the spans are."""
    if file.is_large:
        collector.lazy = lambda span: parse(span, Findings())
    for span in spans:
        collector.add(parse(span, collector.findings), span.line, span)
    return collector.finish(reading)
