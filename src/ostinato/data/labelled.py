"""`read_labelled`: labelled sequences of any form, from files, folders, tables and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ostinato.data.array_files import read_npz
from ostinato.data.brackets import read_trees
from ostinato.data.columns import FrameSource, open_source, resolve
from ostinato.data.conll import read_conll, tagged_lines
from ostinato.data.examples import Examples
from ostinato.data.labelled_format import find_format
from ostinato.data.labelled_objects import (
    FORMS,
    TableHeader,
    frame_columns,
    read_frame,
    read_list,
    read_parquet,
)
from ostinato.data.labelled_spec import FORMATS, Column, LabelledSpec
from ostinato.data.letters import read_fasta
from ostinato.data.long_signals import read_long_signals
from ostinato.data.paired_lines import read_lines, read_slots, read_trec
from ostinato.data.record_roles import holds_many
from ostinato.data.records import first_values, read_csv, read_json_lines
from ostinato.data.timeseries_files import read_ts
from ostinato.errors import InputError

__all__ = ["FORMATS", "LabelledSpec", "read_labelled", "tagged_lines"]

READERS: dict[str, Callable[[Any, LabelledSpec], Examples]] = {
    "jsonl": read_json_lines,
    "csv": read_csv,
    "parquet": read_parquet,
    "conll": read_conll,
    "conllu": read_conll,
    "trees": read_trees,
    "fasta": read_fasta,
    "ts": read_ts,
    "npz": read_npz,
    "trec": read_trec,
    "slots": read_slots,
    "lines": read_lines,
}
_SAMPLE_ROWS = 1000
_WITHOUT_COLUMNS = ("trees", "ts", "trec", "slots", "fasta")  # the headers of FASTA have fields for the label
_KINDS = {
    "conll": ("tokens",),
    "conllu": ("tokens",),
    "slots": ("tokens", "text"),
    "trees": ("trees",),
    "fasta": ("letters",),
    "ts": ("arrays",),
    "npz": ("arrays",),
}


def read_labelled(
    source: Any,
    spec: LabelledSpec | None = None,
    *,
    letters: Column | bool | None = None,
    sequence: Column | bool | None = None,
    tree: bool = False,
    **options: Any,
) -> Examples:
    """Labelled sequences from a file, a folder, a table or a list.

    Args:
        source: a path (see `ostinato.data.files.open_binary` for archives), a folder with seq.in, a table
            (pandas, polars, pyarrow, a dict of columns), a list (see
            `ostinato.data.labelled_objects.read_list`), or `Examples`, which are given back.
        spec: how it is written.
        letters: the inputs are letters such as DNA; a column says where, as `kind="letters", text=COL`.
        sequence: the inputs are arrays; a column holds them, or says which signal a row is of (long format).
        tree: the inputs are trees in brackets.
        options: single fields of `LabelledSpec`, which win over `spec`.

    Raises:
        DataError: what is wrong in the source, with line or row.
        InputError: options that are not known or exclude each other, or an object that is no source.
    """
    if isinstance(source, Examples):
        return source
    chosen = _with_kind((spec or LabelledSpec()).with_options(options), letters, sequence, tree=tree)
    if isinstance(source, str | Path):
        return _read_path(source, chosen)
    if isinstance(source, Mapping) or hasattr(source, "columns") or hasattr(source, "schema"):
        if _is_long(chosen, lambda: _frame_sample(source, chosen)):
            return read_long_signals(FrameSource(source), _as_long(chosen), "the table")
        return read_frame(source, chosen)
    if isinstance(source, Iterable):
        return read_list(source, chosen)
    raise InputError(f"expected {FORMS}; found {type(source).__name__}")


def _with_kind(
    spec: LabelledSpec, letters: Column | bool | None, sequence: Column | bool | None, *, tree: bool
) -> LabelledSpec:
    given = {
        kind: asked
        for kind, asked in (("letters", letters), ("arrays", sequence), ("trees", tree))
        if asked is not None and asked is not False
    }
    if len(given) > 1:
        raise InputError("letters, sequence, tree: give one of them; an input has one kind")
    for kind, asked in given.items():
        if spec.kind not in (None, kind):
            raise InputError(f"kind: {spec.kind!r} does not go with inputs of {kind}")
        spec = replace(spec, kind=kind)
        if asked is not True:
            if spec.text is not None and spec.text != asked:
                raise InputError(f"text: {spec.text!r} and {asked!r} cannot both be the column of the input")
            spec = replace(spec, text=asked)
    return spec


def _read_path(source: str | Path, spec: LabelledSpec) -> Examples:
    path = Path(source)
    name = spec.format or find_format(path, spec)
    kinds = _KINDS.get(name)
    if kinds is not None and spec.kind not in (None, *kinds):
        raise InputError(
            f"{path}: the format {name} holds {kinds[0]}, not {spec.kind}; ask for {kinds[0]}, or set the "
            "format of the file"
        )
    if name in ("csv", "parquet") and _is_long(spec, lambda: _file_sample(path, name, spec)):
        table = open_source(
            path, separator=spec.separator, encoding=spec.encoding or "utf-8", header=spec.header
        )
        return read_long_signals(table, _as_long(spec), str(path))
    if spec.time is not None and spec.series is None:
        raise InputError(
            f"time: {spec.time!r} is about rows that are steps of signals; say in which column stands which "
            "signal a row is of (sequence=, --sequence COL)"
        )
    examples = READERS[name](path, replace(spec, format=name))
    given = {
        option: getattr(spec, option)
        for option in ("format", "encoding", "separator")
        if getattr(spec, option) is not None
    }
    reading = {**examples.reading, **given} | ({} if spec.header else {"header": False})
    return replace(examples, reading=reading, notes=examples.notes + _without_effect(name, spec))


def _without_effect(name: str, spec: LabelledSpec) -> tuple[str, ...]:
    """Notes about columns that were asked for in a file of examples for learning that has none."""
    if not spec.needs_labels:
        return ()
    return tuple(
        f"a file of format {name} has no columns of {what}, {column!r} was not looked for"
        for what, column, formats in (
            ("inputs", spec.text, _WITHOUT_COLUMNS),
            ("labels", spec.label, _WITHOUT_COLUMNS[:-1]),
        )
        if column is not None and name in formats
    )


def _is_long(spec: LabelledSpec, sample: Callable[[], Sequence[Any]]) -> bool:
    """Whether rows are steps of signals: the column does not hold signals, and its values repeat."""
    if spec.series is not None:
        return True
    if spec.kind != "arrays" or spec.text is None:
        return False
    values = sample()
    if any(holds_many(value) for value in values[:1]):
        return False
    return len(set(map(str, values))) < len(values)


def _as_long(spec: LabelledSpec) -> LabelledSpec:
    return spec if spec.series is not None else replace(spec, series=spec.text, text=None)


def _frame_sample(frame: Any, spec: LabelledSpec) -> Sequence[Any]:
    assert spec.text is not None
    columns = frame_columns(frame)
    index = resolve(TableHeader(list(columns), "the table"), spec.text, "sequence")
    return list(columns.values())[index][:_SAMPLE_ROWS]


def _file_sample(path: Path, name: str, spec: LabelledSpec) -> Sequence[Any]:
    assert spec.text is not None
    if name == "parquet":
        source = open_source(path)
        columns, _ = next(source.chunks([resolve(source, spec.text, "sequence")]), ([[]], None))
        return list(columns[0][:_SAMPLE_ROWS])
    return first_values(path, spec, _SAMPLE_ROWS)
