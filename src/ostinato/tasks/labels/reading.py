"""From what users pass to `fit`, `evaluate` and `predict` to examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ostinato.data.arrays import sequences_from
from ostinato.data.examples import Examples, Sentence
from ostinato.data.tokens import split_words
from ostinato.errors import InputError, SizeError


def read_examples(data: Any, y: Any, options: Mapping[str, Any], *, needs_answers: bool = True) -> Examples:
    """Examples from a file, a table, lists or arrays.

    Args:
        data: `Examples`; texts, trees or arrays with `y`; a pair (inputs, answers); or a source of
            `ostinato.data.labelled.read_labelled`.
        y: the answers, where `data` holds inputs alone.
        options: of `read_labelled`.
        needs_answers: whether inputs alone are an error.

    Raises:
        InputError: numbers of inputs and answers that differ; answers that are missing.
    """
    if isinstance(data, Examples):
        if y is not None:
            raise InputError("y: the examples have their own answers; leave y out")
        return data
    if y is None and isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], str):
        data, y = data
    data = _column_as_list(data)
    if options.get("kind") == "tokens" and isinstance(data, list | tuple):
        return _tokens_in_memory(data, y, needs_answers=needs_answers)
    kind = _kind_in_memory(data)
    if kind is None:
        from ostinato.data.labelled import read_labelled

        if y is not None:
            raise InputError(_why_no_inputs(data))
        return read_labelled(data, **{**options, "needs_labels": needs_answers})
    if y is None and needs_answers:
        raise InputError("y is missing: pass the answers, one for each input")
    return _in_memory(data, y, _asked_kind(kind, options))


def reading_of(examples: Examples, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which further data are read as `examples` were: what was asked for, and what was found."""
    found = {name: value for name, value in options.items() if name not in ("letters", "sequence", "tree")}
    return {"kind": examples.kind, **found, **examples.reading}


def _column_as_list(data: Any) -> Any:
    """A column of a table (of pandas, polars, pyarrow) as a list of inputs; all else as it is."""
    if isinstance(data, np.ndarray) or len(getattr(data, "shape", ())) > 1 or hasattr(data, "columns"):
        return data
    for name in ("to_list", "to_pylist", "tolist"):
        if hasattr(data, name):
            return getattr(data, name)()
    return data


def _why_no_inputs(data: Any) -> str:
    if not isinstance(data, list | tuple):
        return f"y: expected None with {type(data).__name__} as data, which names its own answers"
    names = [type(one).__name__ for one in data]
    odd = next((i for i, name in enumerate(names) if name != names[0]), 0)
    found = f"{names[odd]} at place {odd}, {names[0]} at 0" if odd else names[0] if names else "none at all"
    return f"expected inputs of one kind: texts, arrays or trees; found {found}"


def _asked_kind(kind: str, options: Mapping[str, Any]) -> str:
    """Texts in memory may be meant as letters."""
    asked = options.get("letters") or options.get("kind") == "letters"
    return "letters" if kind == "text" and asked else kind


def label_type(data: Any, y: Any) -> str:
    """int, bool or text: what the classes are given as, and given back as."""
    if y is None and isinstance(data, tuple) and len(data) == 2:
        y = data[1]
    if y is None or isinstance(y, str) or not hasattr(y, "__len__"):
        return "text"
    kinds = np.asarray(y).dtype.kind if np.ndim(y) == 1 and len(y) else "U"
    return {"b": "bool", "i": "int", "u": "int", "f": "int"}.get(kinds, "text")


def _kind_in_memory(data: Any) -> str | None:
    """text, trees or arrays; None where it is a source for the readers."""
    from ostinato.data.examples import Tree

    if isinstance(data, np.ndarray) and data.dtype.kind in "fiub":
        return "arrays"
    if isinstance(data, np.ndarray) and data.dtype.kind in "UO" and data.ndim == 1 and len(data):
        data = list(data)
    if not isinstance(data, list | tuple) or not data:
        return None
    if all(isinstance(one, str) for one in data):
        return "text"
    if all(isinstance(one, Tree) for one in data):
        return "trees"
    if all(hasattr(one, "shape") or isinstance(one, list) for one in data):
        return "arrays"
    return None


def _in_memory(data: Any, y: Any, kind: str) -> Examples:
    if kind == "arrays":
        x, counts = sequences_from(data)
        inputs: list[Any] = [row[:n] for row, n in zip(x, counts.tolist(), strict=True)]
    else:
        inputs = [one if kind == "trees" else str(one) for one in data]
    labels = None if y is None else labels_from(y)
    if labels is not None and len(labels) != len(inputs):
        raise SizeError(f"y: {len(labels)} labels for {len(inputs)} inputs; give one for each")
    return Examples(kind, inputs, labels, source="the data")


def _tokens_in_memory(data: Any, y: Any, *, needs_answers: bool) -> Examples:
    """Sentences: lists of words, `Sentence`, or texts that are split into words; y: tags of each."""
    pairs = y is None and all(isinstance(one, tuple) and len(one) == 2 for one in data)
    if pairs and data and not all(isinstance(part, str) for part in data[0]):
        data, y = zip(*data, strict=True)
    if y is None and needs_answers:
        raise InputError("y is missing: pass the tags, a list of them for each sentence")
    sentences = [_sentence(one, i) for i, one in enumerate(data)]
    if y is None:
        return Examples("tokens", sentences, source="the data")
    tags = []
    for i, row in enumerate(y):
        if isinstance(row, str) or not hasattr(row, "__iter__"):
            raise InputError(f"y[{i}] is {row!r}; expected a list of tags, one for each word")
        tags.append([str(tag) for tag in row])
    if len(tags) != len(sentences):
        raise SizeError(f"y: tags of {len(tags)} sentences for {len(sentences)}; give them for each")
    return Examples("tokens", sentences, tags=tags, source="the data")


def _sentence(one: Any, index: int) -> Sentence:
    if isinstance(one, Sentence):
        return one
    words = split_words(one) if isinstance(one, str) else list(one) if hasattr(one, "__iter__") else None
    if words is None or not all(isinstance(word, str) for word in words):
        raise InputError(f"sentence {index} is {one!r}; expected a list of words, a Sentence or a text")
    return Sentence(words)


def labels_from(y: Any) -> list[str]:
    """Labels as text: whole numbers and truth values are written out.

    Raises:
        InputError: a label that is missing (None, NaN), or fractions of numbers.
    """
    values = np.asarray(y, object).reshape(-1).tolist() if np.ndim(y) <= 1 else None
    if values is None:
        raise SizeError(f"y: expected one label for each input, found an array of shape {np.shape(y)}")
    labels = []
    for i, value in enumerate(values):
        if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
            raise InputError(f"y[{i}] is missing; leave the example out, or give it a label of its own")
        if isinstance(value, float | np.floating) and not float(value).is_integer():
            raise InputError(f"y[{i}] is {value!r}; expected labels: text, whole numbers or truth values")
        labels.append(str(int(value) if isinstance(value, float | np.floating) else value))
    return labels
