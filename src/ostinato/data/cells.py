"""Text to numbers: what counts as missing, which decimal sign, and which text is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import DataError

MISSING = frozenset(("", "na", "nan", "null", "none", "n/a", "#n/a", "<na>", "-nan"))
_MISSING_AS_WRITTEN = frozenset(("", "NA", "NaN", "nan", "null", "NULL", "None", "N/A"))
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:[,. '\u00a0\u202f]\d{3})+(?:[.,]\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE | re.ASCII)


class DecimalComma(Exception):  # noqa: N818 - a signal between two passes, never shown
    """The file writes 1,5 for one and a half: read it again with that decimal sign."""


def is_missing(text: str) -> bool:
    """Whether a cell says that there is no value: empty, NA, NaN, null and their like, in any case."""
    return text.strip().lower() in MISSING


def quoted(text: str) -> str:
    """A text for a message, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:59] + "…")


def is_number(text: str) -> bool:
    """Whether a cell is a number with a decimal point."""
    return _NUMBER.fullmatch(text.strip()) is not None


def is_text(cell: str) -> bool:
    """Whether a cell is a word, and not a number written in a way that is refused."""
    text = cell.strip()
    refused = (_NUMBER, _COMMA_NUMBER, _GROUPED, _INFINITE)
    return not is_missing(text) and not any(pattern.fullmatch(text) for pattern in refused)


def numbers(
    column: list[str], error: Callable[[str, int], DataError], *, decimal: str | None = None
) -> NDArray[np.float64]:
    """Cells to float64 (n,), NaN where missing.

    Args:
        column: the cells.
        error: makes the error for a message and a position in the column.
        decimal: "." or ","; None reads points, and raises `DecimalComma` when a cell proves the comma.

    Raises:
        DataError: text, an infinity, or digits grouped in thousands.
    """
    quick = _quick(column, decimal)
    if quick is not None:
        return quick
    values = np.empty(len(column))
    for position, cell in enumerate(column):
        text = cell.strip()
        if decimal == "," and _NUMBER.fullmatch(text.replace(",", ".", 1)) and "." not in text:
            text = text.replace(",", ".", 1)
        elif text.lower() in MISSING:
            values[position] = math.nan
            continue
        elif decimal == "," or not _NUMBER.fullmatch(text):
            if decimal is None and _COMMA_NUMBER.fullmatch(text):
                _settle_comma(column, position, error)
            raise error(_why(text, decimal), position)
        values[position] = float(text)
        if math.isinf(values[position]):
            raise error(_why(text, decimal), position)
    return values


def _quick(column: list[str], decimal: str | None) -> NDArray[np.float64] | None:
    """The common case, without a loop in Python: None where any cell needs a closer look."""
    joined = "\0".join(column)
    if not joined.isascii() or "_" in joined:  # float() also reads 1_000 and digits of other scripts
        return None
    if decimal == ",":
        if "." in joined or joined.count("\0") != len(column) - 1:
            return None
        column = joined.replace(",", ".").split("\0")
    try:
        values = np.fromiter(map(float, column), np.float64, len(column))
    except ValueError:
        try:
            filled = ("nan" if cell in _MISSING_AS_WRITTEN else cell for cell in column)
            values = np.fromiter(map(float, filled), np.float64, len(column))
        except ValueError:
            return None
    return None if np.isinf(values).any() else values


def _settle_comma(column: list[str], position: int, error: Callable[[str, int], DataError]) -> None:
    """1,5 is a decimal comma; 1,500 could be fifteen hundred: only another value of the column can tell."""
    commas = [cell.strip() for cell in column if "," in cell]
    if all(_GROUPED.fullmatch(text) for text in commas):
        raise error(
            f"{quoted(commas[0])} could be a decimal comma or a separator of thousands; give --decimal , "
            "if it is a decimal, else write numbers without separators of thousands",
            position,
        )
    raise DecimalComma


def _why(text: str, decimal: str | None) -> str:
    is_overflow = decimal is None and _NUMBER.fullmatch(text) is not None
    if _INFINITE.fullmatch(text) or is_overflow:
        return f"{quoted(text)} is infinite or beyond the range of a float; write a finite number"
    if _GROUPED.fullmatch(text):
        return f"{quoted(text)} has separators of thousands; write the number without them"
    if decimal == "," and _NUMBER.fullmatch(text):
        return f"expected a number with a decimal comma, found {quoted(text)}; use one sign, or set --decimal"
    return f"expected a number, found the text {quoted(text)}; correct it, or leave the cell empty"
