"""Ragged rows: in memory and on disk alike."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato.data import ragged
from ostinato.data.ragged import RaggedRows

ROWS = [[3, 1, 2], [], [7], [2**31 - 1, 5], []]


@pytest.mark.parametrize("budget_bytes", [1 << 20, 0])
def test_rows_come_back_and_are_padded(budget_bytes, monkeypatch):
    monkeypatch.setattr(ragged, "_CHUNK", 2)
    rows = RaggedRows(budget_bytes)
    for row in ROWS:
        rows.append(row)
    assert len(rows) == 5
    assert rows.lengths.tolist() == [3, 0, 1, 2, 0]
    assert rows.is_on_disk == (budget_bytes == 0)
    assert [rows.row(i).tolist() for i in range(5)] == ROWS
    padded = rows.padded(np.array([2, 0, 0, 1]), fill=-1)
    assert padded.dtype == np.int64
    assert padded.tolist() == [[7, -1, -1], [3, 1, 2], [3, 1, 2], [-1, -1, -1]]


def test_empty_rows_have_the_least_width():
    rows = RaggedRows()
    rows.append([])
    assert rows.padded(np.array([0]), least=1).tolist() == [[0]]
    assert rows.padded(np.array([0])).shape == (1, 0)


def test_the_file_disappears_with_the_rows(monkeypatch):
    monkeypatch.setattr(ragged, "_CHUNK", 1)
    rows = RaggedRows(0)
    rows.append([1, 2])
    assert rows.flat.tolist() == [1, 2]
    path = rows._path
    assert path.exists()
    del rows
    assert not path.exists()
