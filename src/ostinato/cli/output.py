"""What a command prints: a table or one JSON object on standard output, everything else on standard error."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ostinato.errors import InputError, MissingExtraError
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.run_folder import plain_json

WIDE = 1000  # columns of what is no terminal


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send whatever a library prints to standard error: standard output carries the result and nothing
    else."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    is_unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name.startswith("utf")
    text = json.dumps(plain_json(value), ensure_ascii=not is_unicode, allow_nan=False)
    sys.stdout.write(text + "\n")


def print_notes(notes: Sequence[object], quiet: bool) -> None:
    """What the user should know about the data or the run, on standard error."""
    if not quiet:
        for note in notes:
            sys.stderr.write(f"note: {note}\n")


def print_line(text: str) -> None:
    """One line of the result."""
    sys.stdout.write(text + "\n")


def print_training(result: Mapping[str, Any], *, json: bool, quiet: bool) -> None:
    """What a finished training run has to say; nothing where another process speaks."""
    if not result:
        return
    print_notes(result["notes"], quiet)
    if json:
        print_json(result)
        return
    print_scores(result, "Scores on held-out data")
    run = Path(result["run"])
    print_line(f"run: {run}")
    if (run / "report.html").is_file():
        print_line(f"report: {run / 'report.html'}")


def print_scores(scores: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> None:
    """Models above, baselines below; the best value of each column is bold on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ostinato.insight.report import METRICS, best_scores, format_score, is_best, score_rows

    rows = score_rows(scores)
    metrics = [metric for metric in METRICS if any(metric in row for _, row, _ in rows)]
    best = best_scores(row for _, row, _ in rows)
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for metric in metrics:
        table.add_column(METRICS[metric][0], justify="right", no_wrap=True)
    for number, (name, row, kind) in enumerate(rows):
        cells = [
            Text(
                format_score(metric, row.get(metric)),
                "bold not dim" if is_best(best, metric, row.get(metric)) else "",
            )
            for metric in metrics
        ]
        ends = number + 1 < len(rows) and rows[number + 1][2] != kind
        table.add_row(Text(name), *cells, style="dim" if kind == "baseline" else "", end_section=ends)
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # a table that is cut to a pipe's 80 columns would lose numbers
        console.width = WIDE
    console.print(table, soft_wrap=not console.is_terminal)


@dataclass(frozen=True)
class Table:
    """What `predict` says as rows: its name in JSON, and its columns."""

    name: str
    columns: Mapping[str, Sequence[Any]]

    @property
    def rows(self) -> int:
        """How many."""
        return len(next(iter(self.columns.values()), []))

    def json(self) -> Mapping[str, Any]:
        """All of it as plain values."""
        return self.columns

    def print(self, stream: TextIO) -> None:
        """As CSV."""
        write_csv(self.columns, stream)

    def write(self, path: Path) -> None:
        """To a file of the kind that its ending says."""
        write_table(self.columns, path)


@dataclass(frozen=True)
class Lines:
    """What `predict` says in the form of the file that it read: its text, or that of the files of a folder;
    and its rows as plain values."""

    name: str
    text: str
    values: Sequence[Any]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.values)

    def json(self) -> Sequence[Any]:
        """All of it as plain values."""
        return self.values

    def print(self, stream: TextIO) -> None:
        """As it stands."""
        stream.write(self.text)

    def write(self, path: Path) -> None:
        """All of it or nothing, in UTF-8.

        Raises:
            InputError: a folder is to be written where something stands already.
        """
        if not self.files:
            write_bytes_atomically(path, self.text.encode("utf-8"))
            return
        if path.exists():
            raise InputError(
                f"--out {path}: exists already; the result is a folder, choose a new name for it"
            )
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}-") as folder:
            made = Path(folder) / path.name
            made.mkdir()
            for name, text in self.files.items():
                write_bytes_atomically(made / name, text.encode("utf-8"))
            made.rename(path)


TABLES = (".csv", ".parquet", ".jsonl")


def check_table_name(path: Path | None, known: Sequence[str] = TABLES) -> None:
    """A name that `write_table` can do something with, before anything is computed.

    Raises:
        InputError: another ending, or a folder that there is not.
    """
    check_folder_of(path)
    if path is not None and path.suffix not in known:
        names = f"{', '.join(known[:-1])} or {known[-1]}"
        raise InputError(f"--out {path}: expected a name ending in {names}, found {path.suffix!r}")


def check_folder_of(path: Path | None) -> None:
    """Refuse a place for a result whose folder does not exist, before anything is computed.

    Raises:
        InputError: there is no such folder.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {str(path.parent)!r}; make it, or choose another")


def to_columns(frame: Any) -> dict[str, list[Any]]:
    """A pandas or polars frame, an Arrow table, or a mapping of columns, as lists of plain values."""
    if not isinstance(frame, Mapping):
        import narwhals

        frame = narwhals.from_native(frame, eager_only=True).to_dict(as_series=False)
    return {str(name): [_plain_cell(value) for value in column] for name, column in frame.items()}


def _plain_cell(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if hasattr(value, "isoformat"):
        text = value.isoformat(sep=" ")
        return text.removesuffix(" 00:00:00")
    return value


def write_table(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write columns to a .csv, .parquet or .jsonl file (one object a line), all of it or nothing.

    Raises:
        InputError: another ending.
        MissingExtraError: Parquet without pyarrow.
    """
    check_table_name(path)
    if path.suffix == ".parquet":
        write_bytes_atomically(path, _parquet(columns))
        return
    text = io.StringIO()
    if path.suffix == ".csv":
        write_csv(columns, text)
    else:
        for row in zip(*columns.values(), strict=True):
            values = plain_json(dict(zip(columns, row, strict=True)))
            text.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
    write_bytes_atomically(path, text.getvalue().encode("utf-8"))


def _parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("writing Parquet", "pyarrow", "parquet") from None
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), buffer)
    return buffer.getvalue()


def write_csv(columns: Mapping[str, Sequence[Any]], stream: TextIO) -> None:
    """CSV with a heading; numbers in full, missing values empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])  # noqa: PLR0124 - NaN
