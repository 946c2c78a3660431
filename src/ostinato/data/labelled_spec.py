"""How a source of labelled sequences is written: which columns play which role, and the form of the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ostinato.data.examples import KINDS
from ostinato.errors import InputError

FORMATS = {
    "jsonl": "JSON lines, one object a line (or one JSON list of objects)",
    "csv": "text with a separator: comma, tab, semicolon, pipe",
    "parquet": "Parquet",
    "conll": "columns of tokens, a blank line after each sentence",
    "conllu": "CoNLL-U, with comments, ranges and empty nodes",
    "trees": "trees in brackets",
    "fasta": "FASTA",
    "ts": "the .ts files of sktime and of the time series archive",
    "npz": "arrays of numpy",
    "trec": "a label, a blank and a text on each line",
    "slots": "a folder with seq.in, seq.out and label",
    "lines": "plain text, one example a line, without labels",
}
LARGE_BYTES = 256 << 20
Column = str | int


@dataclass(frozen=True, kw_only=True)
class LabelledSpec:
    """Which columns play which role in a source of labelled sequences, and how it is written.

    A column is a name, or a number that counts from 0, negative from the end. What is None is found.

    Args:
        format: one of `FORMATS`; None tells from the name of the file, then from its first bytes.
        kind: what an input becomes: text, letters, arrays, tokens or trees; None takes what the format holds.
        text: the column of the input (the token column of CoNLL files, the key of the array in .npz).
        label: the column of the classes; where only tokens have labels (CoNLL), the column of the tags.
        tags: the column of the tags of tokens, where `label` is a class beside them.
        columns: further columns of tokens to keep; None keeps all.
        width: of plain CoNLL files, how many columns there were in the one that this file is read like.
        series: of signals in long format, the column that says which signal a row belongs to.
        time: of signals in long format, the column to sort each signal by; None keeps the order of the rows.
        values: of signals in tables, the columns with the numbers; None takes all that have no other role.
        length: the key of the lengths in .npz.
        classes: of trec files, what a label can be; where labels are not needed and a line starts with
            something else, all lines are texts without labels.
        header: whether the first line of a CSV file holds the names.
        encoding: of the text; None is UTF-8 (trec: UTF-8 where the bytes are, else latin-1).
        separator: of the fields of a CSV or CoNLL file.
        needs_labels: refuse a source without labels, and leave out (counted) examples without one. When
            False, labels are given only where all examples have one.
        large_bytes: a file (unpacked) larger than this is not kept in memory: `inputs` and `tags` are read
            again from disk when they are looked at.

    Raises:
        InputError: an unknown format or kind.
    """

    format: str | None = None
    kind: str | None = None
    text: Column | None = None
    label: Column | None = None
    tags: Column | None = None
    columns: Sequence[Column] | None = None
    width: int | None = None
    series: Column | None = None
    time: Column | None = None
    values: Sequence[Column] | None = None
    length: str | None = None
    classes: Sequence[str] | None = None
    header: bool = True
    encoding: str | None = None
    separator: str | None = None
    needs_labels: bool = True
    large_bytes: int = LARGE_BYTES

    def __post_init__(self) -> None:
        for name, known in (("format", tuple(FORMATS)), ("kind", KINDS)):
            given = getattr(self, name)
            if given is not None and given not in known:
                raise InputError(f"{name}: {given!r} is not known; expected one of {', '.join(known)}")

    def with_options(self, options: Mapping[str, Any]) -> LabelledSpec:
        """A copy with some fields changed; InputError lists the fields where one is unknown."""
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InputError(f"there is no option {name!r}; {hint}the options are: {', '.join(known)}")
        return replace(self, **options)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the options that differ from their defaults, for `with_options`."""
        default = asdict(LabelledSpec())
        stored = {name: value for name, value in asdict(self).items() if value != default[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()}
