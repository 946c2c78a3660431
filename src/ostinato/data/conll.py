"""Columns of tokens with a blank line after each sentence (CoNLL, CoNLL-U); and tags written back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ostinato.data.columns import resolve
from ostinato.data.examples import Examples, Sentence
from ostinato.data.labelled_spec import Column, LabelledSpec
from ostinato.data.lines import Collector, Findings, Row, Span, TextFile, collect_file
from ostinato.errors import DataError, SizeError

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_FIELD = re.compile(r"[^ \t]+")
_WORD_ID = re.compile(r"[0-9]+", re.ASCII)
_EXTRA_ID = re.compile(r"[0-9]+-[0-9]+|[0-9]+\.[0-9]+", re.ASCII)
_SAMPLE_LINES = 2000


@dataclass
class ColumnFile:
    """How one file of token columns is written, found from its first lines.

    Attributes:
        names: of the columns: "0", "1", … or those of CoNLL-U (Plus).
        is_conllu: whether ids mark words, ranges (3-4) and empty nodes (3.1), and `#` starts comments.
        separator: a character, or None for blanks and tabs in any number.
    """

    file: TextFile
    names: list[str]
    is_conllu: bool
    separator: str | None
    _known: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, spec: LabelledSpec) -> ColumnFile:
        """Open a file and find its columns. Raises DataError where it has none."""
        file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)
        sample = [file.text(span) for span in islice(file.lines(), _SAMPLE_LINES)]
        is_conllu = spec.format == "conllu" or (spec.format is None and looks_like_conllu(sample))
        tokens = [line for line in sample if line.strip(" \t") and not line.startswith("-DOCSTART-")]
        if is_conllu:
            return cls(file, _conllu_names(sample), True, "\t")
        line = next((line for line in tokens if not line.startswith("#")), tokens[0] if tokens else "")
        separator = spec.separator or ("\t" if "\t" in line else None)
        width = len(_split(line, separator))
        return cls(file, [str(i) for i in range(width)], False, separator)

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        return self.file.error(message, line, column)

    def sentences(self, findings: Findings) -> Iterator[Span]:
        """The lines of each sentence, from its first to its last; counts what is passed over."""
        start: Span | None = None
        last: Span | None = None
        data = self.file.data
        for span in self.file.lines():
            piece = data[span.start : span.stop]
            if piece.strip(b" \t") and not piece.startswith(b"-DOCSTART-"):
                start, last = start or span, span
                continue
            if piece.startswith(b"-DOCSTART-"):
                findings.add("-DOCSTART- lines, passed over", span.line)
            if start is not None and last is not None:
                yield Span(start.start, last.stop, start.line)
            start = None
        if start is not None and last is not None:
            yield Span(start.start, last.stop, start.line)

    def words(self, lines: Iterable[tuple[int, str]], findings: Findings) -> Iterator[tuple[int, list[str]]]:
        """The words among the numbered lines of a sentence: their line, and their fields.

        Raises DataError for a row with another number of columns than the file's first.
        """
        is_first = True
        for line, text in lines:
            if self.is_conllu and text.startswith("#"):
                continue
            fields = _split(text, self.separator)
            if len(fields) != len(self.names):
                if is_first and text.startswith("#"):  # where each row has its columns, # can be a word
                    findings.add("comments, passed over", line)
                    continue
                raise self._uneven(fields, line)
            is_first = False
            if self.is_conllu and not self._is_word(fields[self.names.index("id")], line, findings):
                continue
            yield line, fields

    def _is_word(self, mark: str, line: int, findings: Findings) -> bool:
        if _WORD_ID.fullmatch(mark):
            return True
        if not _EXTRA_ID.fullmatch(mark):
            raise self.error(
                f"expected an id such as 3, 3-4 or 3.1, found {mark!r}; plain columns are --format conll",
                line,
            )
        what = "ranges of words (3-4)" if "-" in mark else "empty nodes (3.1)"
        findings.add(f"{what}, passed over", line)
        return False

    def _uneven(self, fields: Sequence[str], line: int) -> DataError:
        between = {"\t": "tabs", None: "blanks"}.get(self.separator, repr(self.separator))
        n = len(self.names)
        found = f"expected {n} columns between {between}, found {len(fields)}"
        if self.is_conllu:
            return self.error(f"{found}; every row of CoNLL-U has {n}", line)
        return self.error(
            f"{found}; every row needs as many as the first, and sentences are separated by blank lines "
            "(CoNLL-U is --format conllu)",
            line,
        )

    def known(self, cell: str) -> str:
        """The cell, kept once however often it occurs."""
        return self._known.setdefault(cell, cell)


def looks_like_conllu(lines: Sequence[str]) -> bool:
    """Whether the columns are named, or the first row that is no comment is an id and nine columns."""
    if any(line.startswith("# global.columns") for line in lines[:5]):
        return True
    row = next((line for line in lines if line.strip() and not line.startswith("#")), "").split("\t")
    return len(row) == len(CONLLU) and bool(_WORD_ID.fullmatch(row[0]) or _EXTRA_ID.fullmatch(row[0]))


def read_conll(path: str | Path, spec: LabelledSpec) -> Examples:
    """Sentences with a tag for each token.

    Plain columns are named "0", "1", …; the token is in the first and the tag in the last, unless `spec.text`
    and `spec.label` (or `spec.tags`) say otherwise. In CoNLL-U (and CoNLL-U Plus) the columns bear its names
    in small letters, the token is `form` and the tag is `upos`.

    In plain columns every row is a token, also `#` and `1-1`; a line that starts with `#`, at the start of a
    sentence and without the columns of the file, is a comment. An empty token or tag is read as `_`.
    Comments of CoNLL-U, ranges and empty nodes are passed over; `tagged_lines` writes them back.

    Raises:
        DataError: rows of unequal width (line and both counts), columns that there are not, an id of CoNLL-U
            that is none, a byte outside of the encoding.
    """
    source = ColumnFile.open(path, spec)
    findings = Findings()
    collector = Collector("tokens", str(path), spec, findings, has_labels=False)
    if not source.names:
        return collector.finish()
    _check_width(source, spec, findings)
    text, tag = _roles(source, spec)
    further = _further(source, spec, text, tag)

    def parse(span: Span, found: Findings) -> Row:
        numbered = enumerate(_lines_of(source.file.text(span)), span.line)
        words = [fields for _, fields in source.words(numbered, found)]
        tokens = [source.known(fields[text] or "_") for fields in words]
        found.add("empty tokens, read as _", span.line, sum(not fields[text] for fields in words))
        columns = {source.names[i]: tuple(source.known(fields[i]) for fields in words) for i in further}
        tags = None if tag is None else tuple(source.known(fields[tag] or "_") for fields in words)
        if tag is not None:
            found.add("empty tags, read as _", span.line, sum(not fields[tag] for fields in words))
        return Row(Sentence(tuple(tokens), columns), None, tags)

    collector.has_tags = tag is not None
    reading = _reading(source, text, tag, further)
    spans = _with_words(source, findings)
    examples = collect_file(source.file, spans, parse, collector, reading)
    if source.is_conllu and tag is not None and all(_ == "_" for tags in examples.tags or () for _ in tags):
        if spec.needs_labels:
            raise source.error(f"label: every {source.names[tag]!r} is _; name a column with tags")
        examples = replace(examples, tags=None)
    return examples


def _with_words(source: ColumnFile, findings: Findings) -> Iterator[Span]:
    """The sentences that have at least one word: a block of comments alone is none."""
    for span in source.sentences(findings):
        if not source.is_conllu and source.file.data[span.start : span.start + 1] != b"#":
            yield span
            continue
        lines = enumerate(_lines_of(source.file.text(span)), span.line)
        if next(source.words(lines, Findings()), None) is None:
            findings.add("blocks without a word, passed over", span.line)
            continue
        yield span


def tagged_lines(path: str | Path, tags: Sequence[Sequence[str]], spec: LabelledSpec) -> Iterator[str]:
    """The file with other tags, line by line with its line ends; everything else stays as it was.

    Args:
        path: the file that was read, with the same `spec`.
        tags: for each sentence a tag for each word.
        spec: with the columns that `Examples.reading` of the training file holds: says where the tags go;
            where the file lacks that column, it is added as the last one.

    Raises:
        SizeError: tags that are not one for each word.
    """
    source = ColumnFile.open(path, spec)
    _, tag = _roles(source, replace(spec, needs_labels=False))
    findings, file = Findings(), source.file
    spans = iter(_with_words(source, findings))
    span, sentence = next(spans, None), 0
    position = file.first
    if file.first:
        yield "\ufeff"
    while span is not None:
        yield from _kept_lines(file, position, span.start)
        if sentence >= len(tags):
            raise SizeError(
                f"tags: expected one sequence for each sentence, found {len(tags)}; there are more"
            )
        yield from _tagged_sentence(source, span, tags[sentence], tag)
        position, span, sentence = span.stop, next(spans, None), sentence + 1
    yield from _kept_lines(file, position, len(file.data))
    if sentence != len(tags):
        raise SizeError(f"tags: expected {sentence} sequences, one for each sentence, found {len(tags)}")


def _tagged_sentence(source: ColumnFile, span: Span, tags: Sequence[str], tag: int | None) -> Iterator[str]:
    lines = source.file.text(span).split("\n")
    rows = list(source.words(enumerate(map(_without_end, lines), span.line), Findings()))
    if len(rows) != len(tags):
        raise SizeError(f"tags: expected {len(rows)} for the sentence of line {span.line}, found {len(tags)}")
    for (line, _), value in zip(rows, tags, strict=True):
        lines[line - span.line] = _with_tag(lines[line - span.line], value, tag, source.separator)
    yield from (line + "\n" for line in lines[:-1])
    yield lines[-1]


def _with_tag(line: str, value: str, tag: int | None, separator: str | None) -> str:
    if separator is not None:
        body, end = _without_end(line), line[len(_without_end(line)) :]
        fields = body.split(separator)
        fields = [*fields, value] if tag is None else [*fields[:tag], value, *fields[tag + 1 :]]
        return separator.join(fields) + end
    places = [match.span() for match in _FIELD.finditer(_without_end(line))]
    if tag is None:
        return f"{line[: places[-1][1]]} {value}{line[places[-1][1] :]}"
    start, stop = places[tag]
    return line[:start] + value + line[stop:]


def _kept_lines(file: TextFile, start: int, stop: int) -> Iterator[str]:
    while start < stop:
        end = file.data.find(b"\n", start, stop) + 1 or stop
        yield file.text(Span(start, end, 1))
        start = end


def _lines_of(text: str) -> list[str]:
    return [_without_end(line) for line in text.split("\n")]


def _without_end(line: str) -> str:
    return line[:-1] if line.endswith("\r") else line


def _split(line: str, separator: str | None) -> list[str]:
    return _FIELD.findall(line) if separator is None else line.split(separator)


def _conllu_names(sample: Sequence[str]) -> list[str]:
    for line in sample[:5]:
        if line.startswith("# global.columns"):
            return line.partition("=")[2].lower().split()
    return list(CONLLU)


def _roles(source: ColumnFile, spec: LabelledSpec) -> tuple[int, int | None]:
    """The columns of the token and of the tag; None where there is no tag and none is needed."""
    text = resolve(
        source, spec.text if spec.text is not None else ("form" if source.is_conllu else 0), "token"
    )
    wanted: Column | None = spec.tags if spec.tags is not None else spec.label
    if wanted is None:
        wanted = "upos" if source.is_conllu else -1
    try:
        tag = resolve(source, wanted, "label")
    except DataError:
        if spec.needs_labels:
            raise
        return text, None
    if tag == text and spec.needs_labels:
        raise source.error(
            f"label: column {source.names[tag]!r} holds the tokens; "
            + ("name another one" if len(source.names) > 1 else "the file has no other column")
        )
    return text, None if tag == text else tag


def _check_width(source: ColumnFile, spec: LabelledSpec, findings: Findings) -> None:
    """Of a file that is read as another one was: whether the columns can be the same."""
    n, width = len(source.names), spec.width
    if source.is_conllu or width is None or n == width:
        return
    tag = spec.tags if spec.tags is not None else spec.label
    needed = {column for column in (spec.text, *(spec.columns or ())) if isinstance(column, int)}
    if spec.needs_labels and isinstance(tag, int):
        needed.add(tag)
    if any(not -n <= column < n for column in needed):
        roles = {spec.text: "tokens", tag: "tags" if spec.needs_labels else "tags, not needed"}
        shown = ", ".join(
            f"{i}: {roles.get(i, 'learned from')}" for i in range(width) if i in needed or i in roles
        )
        raise source.error(f"expected {width} columns as in the training file ({shown}), found {n}", 1)
    if n > width or (spec.columns and not tag == n == width - 1):
        findings.add(f"file of {n} columns, the training file had {width}, the same numbers are read", 1)


def _further(source: ColumnFile, spec: LabelledSpec, text: int, tag: int | None) -> list[int]:
    if spec.columns is not None:
        return [resolve(source, wanted, "columns") for wanted in spec.columns]
    passed_over = {text, tag} | ({source.names.index("id")} if source.is_conllu else set())
    return [i for i in range(len(source.names)) if i not in passed_over]


def _reading(source: ColumnFile, text: int, tag: int | None, further: Sequence[int]) -> dict[str, object]:
    def column(index: int) -> Column:
        return source.names[index] if source.is_conllu else index

    found: dict[str, object] = {"kind": "tokens", "text": column(text)}
    if tag is not None:
        found["label"] = column(tag)
    width = {} if source.is_conllu else {"width": len(source.names)}
    return found | {"columns": [column(i) for i in further]} | width
