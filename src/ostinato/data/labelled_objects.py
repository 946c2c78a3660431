"""Labelled sequences that are in memory already: lists of inputs or of pairs, and data frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ostinato.data.columns import ParquetSource
from ostinato.data.examples import Examples, Sentence, Tree
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.lines import Collector, Findings, Row
from ostinato.data.record_roles import find_roles
from ostinato.data.record_values import as_array, as_input, as_label, as_tags
from ostinato.errors import DataError, InputError

FORMS = (
    "a path, a table (pandas, polars, pyarrow, a dict of columns), or a list of texts, arrays, Sentence, "
    "Tree, lists of words, dicts, or of pairs (input, label)"
)


def read_list(items: Sequence[Any] | Iterable[Any], spec: LabelledSpec) -> Examples:
    """A list of inputs, or of tuples with them.

    An input is text, an array (T, D) or (T,), a `Sentence`, a list of words, or a `Tree` (whose class is the
    label of its root). A tuple is (input, label), or for words (words, tags) or (words, tags, label). Dicts
    are records, as in JSON lines.

    Raises:
        InputError: something else, or different kinds of input.
        DataError: labels, tags or arrays that do not fit, with the place counted from 1.
    """
    items = list(items)
    if items and all(isinstance(item, Mapping) for item in items):
        return _records([dict(item) for item in items], spec)
    findings = Findings(unit="element")
    first = items[0][0] if items and isinstance(items[0], tuple) else items[0] if items else ""
    kind = spec.kind if isinstance(first, str) and spec.kind else _kind_of(first)
    collector = Collector(kind, "the list", spec, findings, has_labels=False)
    rows = []
    for place, item in enumerate(items, 1):

        def fail(message: str, place: int = place) -> DataError:
            return DataError(f"element {place}: {message}")

        rows.append(_row(item, kind, fail))
    collector.has_labels = any(row.label is not None for row in rows)
    collector.has_tags = any(row.tags is not None for row in rows)
    if spec.needs_labels and not (collector.has_labels or collector.has_tags):
        raise InputError("expected labels; give a list of pairs (input, label)")
    for place, row in enumerate(rows, 1):
        collector.add(row, place)
    return collector.finish({"kind": kind})


def read_frame(frame: Any, spec: LabelledSpec) -> Examples:
    """A pandas, polars or pyarrow table, or a dict of columns of equal length: one example a row.

    Raises:
        DataError: columns that there are not, values that do not fit.
        InputError: another kind of object.
    """
    return _from_columns(frame_columns(frame), spec, "the table")


def frame_columns(frame: Any) -> dict[str, list[Any]]:
    """The columns of a table as lists of Python's values."""
    if isinstance(frame, Mapping):
        columns = {str(name): list(values) for name, values in frame.items()}
        if len({len(values) for values in columns.values()}) > 1:
            sizes = {name: len(values) for name, values in columns.items()}
            raise DataError(f"the table: expected columns of equal length, found {sizes}")
        return columns
    import narwhals.stable.v2 as nw
    from narwhals.exceptions import NarwhalsError

    try:
        table = nw.from_native(frame, eager_only=True)
        return {str(name): table[name].to_list() for name in table.columns}
    except TypeError:
        raise InputError(f"expected {FORMS}; found {type(frame).__name__}") from None
    except NarwhalsError as error:
        raise DataError(f"the table cannot be read: {error}; rename its columns") from None


def read_parquet(path: Any, spec: LabelledSpec) -> Examples:
    """A Parquet file, held in memory."""
    source = ParquetSource(path)
    with source.opened() as file:
        columns = {name: file.read(columns=[name]).column(0).to_pylist() for name in source.names}
    return _from_columns(columns, spec, str(path))


class TableHeader:
    """The names of a table's columns, for messages."""

    def __init__(self, names: list[str], source: str):
        self.names, self._source = names, source

    def error(self, message: str, line: int | None = None, column: str | None = None) -> DataError:
        """An error that says where."""
        where = self._source + ("" if line is None else f", row {line}")
        return DataError(f"{where}: {message}")


def _from_columns(columns: Mapping[str, Sequence[Any]], spec: LabelledSpec, source: str) -> Examples:
    names = list(columns)
    return _from_rows(zip(*columns.values(), strict=True), names, spec, source)


def _records(records: Sequence[Mapping[str, Any]], spec: LabelledSpec) -> Examples:
    names = list(records[0])
    return _from_rows(([record.get(name) for name in names] for record in records), names, spec, "the list")


def _from_rows(rows: Iterable[Sequence[Any]], names: list[str], spec: LabelledSpec, source: str) -> Examples:
    kind, findings = spec.kind or "text", Findings(unit="row")
    header = TableHeader(names, source)
    collector = Collector(kind, source, spec, findings, has_labels=False)
    roles = None
    for place, values in enumerate(rows, 1):
        if roles is None:
            roles = find_roles(spec, header, kind, values)
            collector.has_labels, collector.has_tags = roles.label is not None, roles.tags is not None

        def fail(message: str, place: int = place) -> DataError:
            return header.error(message, place)

        collector.add(roles.row(values, fail), place)
    return collector.finish(None if roles is None else roles.reading(spec))


def _kind_of(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    if isinstance(item, Sentence):
        return "tokens"
    if isinstance(item, Tree):
        return "trees"
    if isinstance(item, list) and item and all(isinstance(piece, str) for piece in item):
        return "tokens"
    if isinstance(item, np.ndarray | list) or hasattr(item, "__array__"):
        return "arrays"
    raise InputError(f"expected {FORMS}; found a list of {type(item).__name__}")


def _row(item: Any, kind: str, fail: Callable[[str], DataError]) -> Row:
    parts = item if isinstance(item, tuple) else (item,)
    found, answers = parts[0], list(parts[1:])
    if isinstance(found, Sentence | Tree):
        value: Any = found
        if _kind_of(found) != kind:
            raise fail(f"expected {kind} as in the first element, found {_kind_of(found)}")
    elif kind == "arrays":
        value = as_array(found, fail)
    else:
        value = as_input(found, kind, fail)
    if len(answers) > (2 if kind == "tokens" else 1):
        raise fail(f"expected (input, label), found a tuple of {len(parts)}")
    tags = None
    if kind == "tokens" and answers and not isinstance(answers[0], str | int | float | None):
        tags = as_tags(answers.pop(0), len(value), fail)
    label = as_label(answers[0], fail) if answers else None
    return Row(value, value.labels[-1] if kind == "trees" and label is None else label, tags)
