"""Arrays and ragged lists of sequences, as estimators take them, to one padded array with lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import DataError, SizeError

FORMS = "an array (N, T, D) or (N, T), or a list of N arrays (T_i, D) or (T_i,)"


def sequences_from(
    X: Any, lengths: Any = None, *, name: str = "X", dtype: Any = np.float32
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """N sequences to a padded array (N, T, D) and their lengths, int64 (N,).

    Args:
        X: an array (N, T, D) or (N, T), or a list of N arrays (T_i, D) or (T_i,); one axis means D = 1.
        lengths: how many steps of each row of an array are real (0 to T); the rest is padding, set to 0.
        name: of the argument, for messages.
        dtype: float32, or float64 where small differences between large numbers matter.

    Raises:
        SizeError: axes, widths or lengths do not fit.
        DataError: a value is not a number, NaN or infinite, or too large for the dtype; names the row and the
            step.

    Cost: one copy.
    """
    if _is_ragged(X):
        if lengths is not None:
            raise SizeError(f"{name}: a list has its own lengths; leave out lengths, or pass one array")
        return _from_list(list(X), name, dtype)
    array = _floats(X, name)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise SizeError(f"{name}: expected {FORMS}; found an array of shape {array.shape}")
    N, T, D = array.shape
    if N == 0 or D == 0:
        raise SizeError(f"{name}: expected one sequence or more of width 1 or more, found {array.shape}")
    counts = _lengths(lengths, N, T)
    with np.errstate(over="ignore"):  # an overflow is reported below, with its place
        padded = array.astype(dtype)
    padded[np.arange(T) >= counts[:, None]] = 0
    _refuse_not_finite(padded, name)
    return padded, counts


def _is_ragged(X: Any) -> bool:
    """Whether X is a list of sequences rather than one array: lists of arrays, or lists of unequal length."""
    if isinstance(X, np.ndarray):
        return X.dtype == object
    if not isinstance(X, list | tuple):
        return False
    if any(hasattr(row, "shape") for row in X):
        return True
    try:
        np.asarray(X)
    except ValueError:
        return True
    return False


def _from_list(rows: list[Any], name: str, dtype: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    arrays = []
    for i, row in enumerate(rows):
        array = _floats(row, f"{name}[{i}]")
        arrays.append(array[:, None] if array.ndim == 1 else array)
        if arrays[-1].ndim != 2:
            raise SizeError(f"{name}[{i}]: expected a sequence (T, D) or (T,), found shape {array.shape}")
    D = next((array.shape[1] for array in arrays if len(array)), arrays[0].shape[1])
    for i, array in enumerate(arrays):
        if len(array) and array.shape[1] != D:
            raise SizeError(
                f"{name}[{i}]: the sequence has width {array.shape[1]}, expected {D} as in the others; "
                "every step of every sequence needs the same number of values"
            )
    counts = np.array([len(array) for array in arrays], np.int64)
    if D == 0:
        raise SizeError(f"{name}: expected sequences of width 1 or more, found width 0")
    padded = np.zeros((len(arrays), int(counts.max()), D), dtype)
    for i, array in enumerate(arrays):
        if len(array):
            with np.errstate(over="ignore"):
                padded[i, : len(array)] = array
    _refuse_not_finite(padded, name)
    return padded, counts


def _floats(X: Any, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(X)
    except (ValueError, TypeError):
        raise SizeError(f"{name}: expected {FORMS}; found nested lists of unequal shape") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected numbers, found {array.dtype}; encode them as numbers")
    return array


def _lengths(lengths: Any, N: int, T: int) -> NDArray[np.int64]:
    if lengths is None:
        return np.full(N, T, np.int64)
    counts = np.asarray(lengths)
    if counts.shape != (N,) or counts.dtype.kind not in "iu":
        raise SizeError(
            f"lengths: expected {N} integers, one for each sequence, found shape {counts.shape} of "
            f"{counts.dtype}"
        )
    wrong = (counts < 0) | (counts > T)
    if wrong.any():
        row = int(wrong.argmax())
        raise SizeError(f"lengths[{row}] is {counts[row]}, expected 0 to T = {T}")
    return counts.astype(np.int64)


def _refuse_not_finite(padded: NDArray[Any], name: str) -> None:
    wrong = ~np.isfinite(padded)
    if wrong.any():
        row, step, column = map(int, np.argwhere(wrong)[0])
        kind = "NaN" if np.isnan(padded[row, step, column]) else f"infinite or too large for {padded.dtype}"
        raise DataError(
            f"{name}[{row}]: the value at step {step}, column {column} is {kind}; replace it, or shorten the "
            "sequence with lengths"
        )
