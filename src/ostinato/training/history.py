"""The record of a run: rows in memory (compact) and in history.csv."""

from __future__ import annotations

import csv
import io
import math
import os
from array import array
from collections.abc import Mapping
from pathlib import Path

from ostinato.errors import InputError, RunFolderError

COLUMNS = ("step", "epoch", "elapsed_s", "train_loss", "learning_rate", "grad_norm")
_WHOLE = ("step", "epoch")


class History:
    """What happened in a run: one row per log interval and per validation.

    `history["train_loss"]` is a column (NaN where a row has no value), `history.rows()` the rows as
    dictionaries. Columns are `step, epoch, elapsed_s, train_loss` (mean per target since the row before),
    `learning_rate, grad_norm` (of that step, before clipping), then the validation metrics.

    Attributes:
        stopped: why the run ended: epochs, steps, time, patience; "" while it runs.
        steps, epochs: optimizer steps and whole epochs done.
        elapsed_s: wall time of training, over all resumed parts.
        best: the best value of the monitored metric, NaN without validation.
        best_step: the step that gave it, None without validation.
        skipped_steps: how many bad steps were skipped.
        notes: what the run had to say, such as checkpoints that could not be read.
    """

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {name: array("d") for name in COLUMNS}
        self.stopped = ""
        self.steps = self.epochs = self.skipped_steps = 0
        self.elapsed_s = 0.0
        self.best, self.best_step = math.nan, None  # type: float, int | None
        self.notes: list[str] = []

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the order of history.csv."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __getitem__(self, name: str) -> list[float]:
        if name not in self._columns:
            raise InputError(f"history has no column {name!r}; it has: {', '.join(self._columns)}")
        return list(self._columns[name])

    def row(self, index: int) -> dict[str, float]:
        """One row without its missing values; `step` and `epoch` are whole numbers."""
        values = {name: column[index] for name, column in self._columns.items()}
        return {
            name: int(value) if name in _WHOLE else value
            for name, value in values.items()
            if not math.isnan(value)
        }

    def rows(self) -> list[dict[str, float]]:
        """All rows as dictionaries."""
        return [self.row(index) for index in range(len(self))]

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row, or complete the last one where it is of the same step."""
        for name in row:
            if name not in self._columns:
                self._columns[name] = array("d", [math.nan] * len(self))
        if len(self) and self._columns["step"][-1] == row["step"]:
            for name, value in row.items():
                if not math.isnan(value):
                    self._columns[name][-1] = value
            return
        for name, column in self._columns.items():
            column.append(row.get(name, math.nan))

    def truncate(self, rows: int) -> None:
        """Forget all rows after the first `rows`."""
        for column in self._columns.values():
            del column[rows:]

    def __repr__(self) -> str:
        return (
            f"History({len(self)} rows, {self.steps} steps, {self.epochs} epochs, stopped={self.stopped!r})"
        )


class HistoryFile:
    """history.csv: appended row by row; rewritten aside and renamed when a column joins.

    The last row of the history stays out of the file until the next begins, because a validation may still
    complete it; `close` writes it.
    """

    def __init__(self, path: Path, history: History):
        self.path, self.history = path, history
        self._columns: tuple[str, ...] = ()
        self._written = 0

    def write(self, *, all_rows: bool = False) -> None:
        """Bring the file up to the last complete row (or the last row)."""
        upto = len(self.history) - (0 if all_rows else 1)
        if upto <= self._written and self._columns == self.history.columns:
            return
        if self._columns != self.history.columns:
            self._rewrite(max(upto, 0))
            return
        with self.path.open("ab") as file:
            file.write(self._lines(self._written, upto))
        self._written = upto

    def sync(self) -> None:
        """Force the written rows to the disk."""
        self.write()
        with self.path.open("ab") as file:
            os.fsync(file.fileno())

    def _rewrite(self, upto: int) -> None:
        self._columns = self.history.columns
        aside = self.path.with_name(f".{self.path.name}.tmp")
        aside.write_bytes((",".join(self._columns) + "\n").encode() + self._lines(0, upto))
        aside.replace(self.path)
        self._written = upto

    def _lines(self, first: int, last: int) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        for index in range(first, last):
            writer.writerow({name: repr(value) for name, value in self.history.row(index).items()})
        return text.getvalue().encode()


def read_history(path: str | os.PathLike[str], columns: tuple[str, ...] | None = None) -> History:
    """The rows of a history.csv; `columns` keeps only those.

    Raises:
        RunFolderError: the file is missing or is not a history.
    """
    path = Path(path)
    history = History()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise RunFolderError(f"{path}: not a training history: column {missing[0]!r} is missing")
            kept = tuple(name for name in reader.fieldnames or () if columns is None or name in columns)
            for name in kept:
                history._columns.setdefault(name, array("d"))
            for row in reader:
                values = {name: float(row[name]) for name in kept if row[name]}
                if "step" not in values:
                    break
                history.add(values)
    except FileNotFoundError:
        raise RunFolderError(f"{path}: the training history is missing") from None
    except (ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise RunFolderError(f"{path}: not a training history: {error}") from error
    return history
