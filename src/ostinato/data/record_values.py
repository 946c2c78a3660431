"""Single values of records, as JSON, CSV fields and frames have them, to inputs, classes and tags."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.brackets import parse_tree
from ostinato.data.cells import is_missing, quoted
from ostinato.data.examples import Sentence
from ostinato.errors import DataError

Fail = Callable[[str], DataError]
_BETWEEN_NUMBERS = re.compile(r"[\s,;|]+")


def as_label(value: Any, fail: Fail) -> str | None:
    """A class as text, stripped; whole numbers without a point; None where the value is missing.

    Raises DataError for a list or an object.
    """
    value = _plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, str | int | float):  # a truth value is True or False, as tables write it
        return str(value).strip() or None
    raise fail(f"expected one class as text or number, found {quoted(repr(value))}; name another column")


def as_tags(value: Any, n_tokens: int, fail: Fail) -> list[str] | None:
    """A tag for each token, from a list, or from text split at blanks; None where the value is missing.

    Raises DataError for another number of tags than tokens.
    """
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list | tuple):
        raise fail(f"expected a list of tags, found {quoted(repr(value))}; name another column")
    tags = [as_label(tag, fail) for tag in value]
    if len(tags) != n_tokens:
        raise fail(f"{len(tags)} tags for {n_tokens} tokens; give one for each")
    if None in tags:
        raise fail("a tag is missing; give one for each token")
    return [tag for tag in tags if tag is not None]


def as_input(value: Any, kind: str, fail: Fail) -> Any:
    """A value as an input of the kind.

    text: as it is; numbers as written; a list of words joined by blanks, one of longer pieces by line ends.
    letters: text without white space, in capitals. tokens: a list of words, or text split at white space.
    trees: text in brackets. arrays: a list of numbers (T,), of lists (T, D), or text with numbers.

    Raises:
        DataError: another type of value; brackets, numbers or widths that do not fit.
    """
    value = _plain(value)
    if isinstance(value, float) and math.isnan(value):
        value = None
    if kind == "arrays":
        return as_array(value, fail)
    if value is None:
        value = ""
    if isinstance(value, list | tuple):
        if not all(isinstance(piece, str) for piece in value):
            raise fail(
                f"expected text, found a list of other things: {quoted(repr(value))}; arrays of numbers are "
                "read with sequence= (--sequence)"
            )
        if kind == "tokens":
            return Sentence(tuple(value))
        value = ("\n" if any(" " in piece for piece in value) else " ").join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise fail(f"expected text, found {quoted(repr(value))}; name another column")
    text = str(value)
    if kind == "letters":
        return "".join(text.split()).upper()
    if kind == "tokens":
        return Sentence(tuple(text.split()))
    if kind == "trees":
        return parse_tree(
            text, lambda message, line, column: fail(f"line {line}, column {column}: {message}")
        )
    return text


def as_array(value: Any, fail: Fail) -> NDArray[np.float32]:
    """Numbers as float32 (T, D); one axis means D = 1.

    Raises DataError, with the step, for text, missing or infinite values and rows of unequal width.
    """
    if value is None:
        return np.zeros((0, 1), np.float32)
    if isinstance(value, str):
        value = [piece for piece in _BETWEEN_NUMBERS.split(value.strip(" \t\r\n[]()")) if piece]
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(value, dtype=np.float64).astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        raise fail(_why_not_numbers(value)) from None
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise fail(f"expected numbers of shape (T,) or (T, D), found shape {array.shape}")
    check_finite(array, fail)
    return array


def check_finite(array: NDArray[Any], fail: Fail) -> None:
    """Raises DataError with the step and the column of the first value that is NaN or infinite."""
    wrong = ~np.isfinite(array)
    if wrong.any():
        step, column = (int(i) for i in np.argwhere(wrong)[0][:2])
        is_nan = bool(np.isnan(array[step, column]))
        cure = "fill gaps first, such as with ostinato.Imputer," if is_nan else "write a finite number,"
        what = "missing (NaN)" if is_nan else "infinite or beyond float32"
        raise fail(f"the value at step {step}, dimension {column} is {what}; {cure} or leave the example out")


def _why_not_numbers(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        widths = {len(row) for row in value if isinstance(row, list | tuple)}
        if len(widths) > 1:
            return f"steps of different widths, {min(widths)} and {max(widths)}; give every step the same"
        flat = [cell for row in value for cell in (row if isinstance(row, list | tuple) else [row])]
        for place, cell in enumerate(flat):
            if cell is None or (isinstance(cell, str) and is_missing(cell)):
                return f"value {place} is missing; fill gaps first, or leave the example out"
            try:
                float(cell)
            except (ValueError, TypeError, OverflowError):
                return f"expected numbers, found {quoted(str(cell))}"
    return f"expected numbers, found {quoted(repr(value))}"


def _plain(value: Any) -> Any:
    """Numpy's and data frames' own values as Python's."""
    if isinstance(value, str | list | tuple | int | float | None):
        return value
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "tolist"):
        value = value.tolist()
    elif hasattr(value, "to_list"):
        value = value.to_list()
    if isinstance(value, Mapping):
        return dict(value)
    return None if str(value) in ("<NA>", "NaT") else value
