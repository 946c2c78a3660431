"""`sequences_from`: every accepted form gives the same padded array; every other is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ostinato.data.arrays import sequences_from
from ostinato.errors import DataError, SizeError

RNG = np.random.default_rng(7)
RAGGED = [RNG.normal(size=(n, 3)) for n in (4, 0, 7, 1)]


def test_a_ragged_list_is_padded_with_zeros() -> None:
    padded, lengths = sequences_from(RAGGED)
    assert padded.shape == (4, 7, 3)
    assert padded.dtype == np.float32
    assert lengths.tolist() == [4, 0, 7, 1]
    assert lengths.dtype == np.int64
    for row, n, sequence in zip(padded, lengths, RAGGED, strict=True):
        assert (row[:n] == sequence.astype(np.float32)).all()
        assert (row[n:] == 0).all()


def test_an_array_with_lengths_equals_the_list() -> None:
    padded, lengths = sequences_from(RAGGED)
    dirty = np.where(padded == 0, np.nan, padded)
    again, counts = sequences_from(dirty, lengths)
    assert (again == padded).all()
    assert (counts == lengths).all()


@pytest.mark.parametrize(
    ("X", "shape"),
    [
        (np.zeros((2, 5)), (2, 5, 1)),
        (np.zeros((2, 5, 3), np.int8), (2, 5, 3)),
        ([[1, 2, 3], [4, 5, 6]], (2, 3, 1)),
        ([[1, 2, 3], [4]], (2, 3, 1)),
        ([[[1, 2]], [[3, 4], [5, 6]]], (2, 2, 2)),
        ([np.zeros(3), np.zeros(5)], (2, 5, 1)),
        ((np.zeros((3, 2)), np.zeros((3, 2))), (2, 3, 2)),
        (np.array([np.zeros(3), np.zeros(5)], dtype=object), (2, 5, 1)),
        (np.zeros((2, 0, 3)), (2, 0, 3)),
    ],
    ids=repr,
)
def test_accepted_forms(X: Any, shape: tuple[int, ...]) -> None:
    padded, lengths = sequences_from(X)
    assert padded.shape == shape
    assert len(lengths) == shape[0]


@pytest.mark.parametrize(
    ("X", "lengths", "error", "match"),
    [
        (np.zeros(3), None, SizeError, r"found an array of shape \(3,\)"),
        (np.zeros((1, 2, 3, 4)), None, SizeError, r"\(1, 2, 3, 4\)"),
        (np.zeros((0, 2, 3)), None, SizeError, "one sequence or more"),
        ([], None, SizeError, r"found an array of shape \(0,\)"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], None, SizeError, r"X\[1\].*width 4, expected 3"),
        ([np.zeros((2, 3)), np.zeros((2, 3, 1))], None, SizeError, r"X\[1\].*\(2, 3, 1\)"),
        (RAGGED, [4, 0, 7, 1], SizeError, "list has its own"),
        (np.zeros((2, 5)), [3], SizeError, r"2 integers.*\(1,\)"),
        (np.zeros((2, 5)), [3, 6], SizeError, r"lengths\[1\] is 6, expected 0 to T = 5"),
        (np.zeros((2, 5)), [3, -1], SizeError, r"lengths\[1\] is -1"),
        (np.zeros((2, 5)), [3.0, 1.0], SizeError, "integers"),
        ([["a", "b"]], None, DataError, "expected numbers"),
        (np.array([[0.0, np.nan]]), None, DataError, r"X\[0\].*step 1, column 0 is NaN"),
        ([np.zeros((1, 2)), np.array([[0, np.inf]])], None, DataError, r"X\[1\].*step 0, column 1 is inf"),
        (np.array([[0.0, 1e300]]), None, DataError, "too large for float32"),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray | list) else str(value)[:30],
)
def test_refused_forms(X: Any, lengths: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sequences_from(X, lengths)


def test_the_argument_is_named() -> None:
    with pytest.raises(SizeError, match=r"^windows: expected"):
        sequences_from(np.zeros(3), name="windows")
