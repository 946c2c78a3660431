"""Which columns of records hold the input, the class and the tags; and records to rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ostinato.data.cells import is_missing, is_number, quoted
from ostinato.data.columns import Named, resolve
from ostinato.data.examples import Sentence
from ostinato.data.labelled_spec import Column, LabelledSpec
from ostinato.data.lines import Row
from ostinato.data.record_values import as_array, as_input, as_label, as_tags
from ostinato.errors import DataError

INPUT_NAMES = {
    "text": ("text", "sentence", "document", "content", "message", "review", "tokens", "words"),
    "letters": ("sequence", "letters", "seq", "dna", "protein", "text"),
    "tokens": ("tokens", "words", "text", "sentence"),
    "trees": ("tree", "trees", "parse", "text", "sentence"),
    "arrays": ("x", "values", "signal", "sequence", "array"),
}
NUMBERS = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?(?=[\s,;|\])]|$)")
LABEL_NAMES = ("label", "class", "target", "category", "intent", "y", "labels")
_ONE_TOKEN = " (where a row is one token, write columns without names, and a blank line after each sentence)"
TAG_NAMES = ("tags", "slots", "labels", "ner_tags", "pos_tags", "chunk_tags")


@dataclass(frozen=True)
class Roles:
    """Indices of columns, and how to make an example of a record's values.

    Attributes:
        input: the column of the input, or the columns whose numbers are the steps of a signal.
        label, tags: None where there are none.
        columns: further columns of tokens.
    """

    names: Sequence[str]
    kind: str
    input: int | tuple[int, ...]
    label: int | None
    tags: int | None
    columns: tuple[int, ...] = ()

    def row(self, values: Sequence[Any], fail: Callable[[str], DataError]) -> Row:
        """One record as an example. Raises DataError, naming the column, for values that do not fit."""

        def of(index: int) -> Callable[[str], DataError]:
            return lambda message: fail(f"column {self.names[index]!r}: {message}")

        label = None if self.label is None else as_label(values[self.label], of(self.label))
        if isinstance(self.input, tuple):
            signal = _without_padding([values[i] for i in self.input])
            names = [self.names[i] for i in self.input]
            return Row(as_array(signal, lambda message: fail(_about_row(signal, names, message))), label)
        found = as_input(values[self.input], self.kind, of(self.input))
        if self.kind != "tokens":
            return Row(found, label)
        tags = None if self.tags is None else as_tags(values[self.tags], len(found), of(self.tags))
        if self.columns:
            further = {
                self.names[i]: tuple(as_tags(values[i], len(found), of(i)) or ("",) * len(found))
                for i in self.columns
            }
            found = Sentence(found.tokens, further)
        return Row(found, label, tags)

    def reading(self, spec: LabelledSpec) -> dict[str, Any]:
        """The columns as options of `LabelledSpec`: by name, unless `spec` gave a number."""

        def column(index: int, wanted: Column | None = None) -> Column:
            is_name = self.names.count(self.names[index]) == 1 and wanted in (None, self.names[index])
            return self.names[index] if spec.header and is_name else index

        found: dict[str, Any] = {"kind": self.kind}
        if isinstance(self.input, tuple):
            found["values"] = [column(i) for i in self.input]
        else:
            found["text"] = column(self.input, spec.text)
        if self.label is not None:
            found["label"] = column(self.label, spec.label)
        if self.tags is not None:
            found["tags"] = column(self.tags, spec.label if spec.tags is None else spec.tags)
        if self.columns:
            found["columns"] = [column(i) for i in self.columns]
        return found


def find_roles(spec: LabelledSpec, source: Named, kind: str, first: Sequence[Any]) -> Roles:
    """The columns that `spec` names, or that bear a usual name.

    Args:
        spec: the options.
        source: the names of the columns.
        kind: of the inputs.
        first: values of the first record, which show whether a column holds a list.

    Raises:
        DataError: a column that there is not, or that has to be named; lists the columns.
    """
    if len(source.names) == 1 and not (spec.header or spec.needs_labels):
        spec = replace(spec, text=0, label=None, tags=None)  # bare inputs: training had other columns beside
    label = _given(source, spec.label, "label", spec.needs_labels)
    tags = _given(source, spec.tags, "tags", spec.needs_labels)
    if kind == "arrays" and spec.text is None:
        if label is None and spec.label is None:
            label = usual(source, LABEL_NAMES)
        if spec.values is not None or not any(holds_many(value) for value in first):
            return _wide(spec, source, label)
    taken = {index for index in (label, tags) if index is not None}
    wanted = spec.text
    text = _input_column(source, kind, taken) if wanted is None else resolve(source, wanted, "text")
    if text in taken:
        raise source.error(f"text: column {source.names[text]!r} is also the label; name another one")
    if kind == "tokens":
        label, tags = _of_tokens(spec, source, first, text, label, tags)
    elif label is None and spec.label is None:
        label = usual(source, LABEL_NAMES, but={text})
    if kind == "tokens" and label is None and tags is None and spec.needs_labels:
        raise source.error(
            f"tags: say which column holds a tag for each token; the columns are: {shown(source)}{_ONE_TOKEN}"
        )
    if label is None and tags is None and spec.needs_labels:
        raise source.error(f"label: say which column holds the labels; the columns are: {shown(source)}")
    columns = tuple(resolve(source, wanted, "columns") for wanted in spec.columns or ())
    if kind == "tokens" and spec.columns is None:
        columns = tuple(
            i
            for i, value in enumerate(first)
            if i not in (text, label, tags) and _is_word_list(value, _length(first[text]))
        )
    return Roles(source.names, kind, text, label, tags, columns)


def shown(source: Named) -> str:
    """The names of the columns for a message."""
    return ", ".join(quoted(name) for name in source.names[:30]) + (", …" if len(source.names) > 30 else "")


def _given(source: Named, wanted: Column | None, option: str, is_required: bool) -> int | None:
    if wanted is None:
        return None
    try:
        return resolve(source, wanted, option)
    except DataError:
        if is_required:
            raise
        return None


def usual(source: Named, names: Sequence[str], but: set[int] | None = None) -> int | None:
    """The first column with one of the names, in any case."""
    lowered = [name.lower() for name in source.names]
    for name in names:
        if name in lowered and lowered.index(name) not in (but or ()):
            return lowered.index(name)
    return None


def _input_column(source: Named, kind: str, taken: set[int]) -> int:
    found = usual(source, INPUT_NAMES[kind], taken)
    left = [i for i in range(len(source.names)) if i not in taken]
    if found is None and len(left) == 1:
        found = left[0]
    if found is None:
        hint = _ONE_TOKEN if kind == "tokens" else ""
        raise source.error(f"text: say which column holds the input; the columns are: {shown(source)}{hint}")
    return found


def _of_tokens(
    spec: LabelledSpec,
    source: Named,
    first: Sequence[Any],
    text: int,
    label: int | None,
    tags: int | None,
) -> tuple[int | None, int | None]:
    """A column called the label holds tags where its first value is one for each token."""
    n_tokens = _length(first[text])
    if tags is None and label is not None and spec.tags is None:
        value = first[label]
        is_words = isinstance(value, str) and n_tokens > 1 and len(value.split()) == n_tokens
        if is_words or not isinstance(value, str | int | float | None):
            return None, label
    if tags is None and spec.tags is None:
        tags = usual(source, TAG_NAMES, {text} | ({label} if label is not None else set()))
        if tags is not None and not _is_word_list(first[tags], n_tokens):
            tags = None
    if label is None and spec.label is None and tags is not None:
        label = usual(source, ("intent", "label"), {text, tags})
        label = None if label is None or not isinstance(first[label], str | int) else label
    return label, tags


def _wide(spec: LabelledSpec, source: Named, label: int | None) -> Roles:
    if spec.values is not None:
        values = tuple(resolve(source, wanted, "values") for wanted in spec.values)
    else:
        values = tuple(i for i in range(len(source.names)) if i != label)
    if label is None and spec.needs_labels:
        raise source.error(f"label: say which column holds the labels; the columns are: {shown(source)}")
    return Roles(source.names, "arrays", values, label, None)


def _about_row(values: Sequence[Any], names: Sequence[str], message: str) -> str:
    """Why a row is no signal: the first of its values that is text, else the message."""
    for name, value in zip(names, values, strict=False):
        if isinstance(value, str) and not is_missing(value) and not is_number(value):
            return (
                f"column {name!r}: expected a number of a signal that fills the row, found {quoted(value)}; "
                "where a row is one step, name the column that says which signal it is of (--sequence COL)"
            )
    return message


def _without_padding(values: list[Any]) -> list[Any]:
    """Cut the missing values at the end: signals in a table of fixed width may be shorter than it."""
    end = len(values)
    while end and (values[end - 1] is None or str(values[end - 1]).strip().lower() in ("", "nan", "na")):
        end -= 1
    return values[:end]


def holds_many(value: Any) -> bool:
    """Whether one value holds a whole signal."""
    return len(NUMBERS.findall(value)) > 1 if isinstance(value, str) else hasattr(value, "__len__")


def _length(value: Any) -> int:
    return len(value.split()) if isinstance(value, str) else len(value) if hasattr(value, "__len__") else 0


def _is_word_list(value: Any, n_tokens: int) -> bool:
    return not isinstance(value, str | Mapping) and _length(value) == n_tokens > 0
