"""What a command prints: a table or one JSON object on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ostinato.errors import InputError, MissingExtraError
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.run_folder import plain_json


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send whatever a library prints to standard error: standard output carries the result and nothing
    else."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    sys.stdout.write(json.dumps(plain_json(value), ensure_ascii=False, allow_nan=False) + "\n")


def print_notes(notes: Sequence[object], quiet: bool) -> None:
    """What the user should know about the data or the run, on standard error."""
    if not quiet:
        for note in notes:
            sys.stderr.write(f"note: {note}\n")


def print_line(text: str) -> None:
    """One line of the result."""
    sys.stdout.write(text + "\n")


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
    # a table that is cut to a pipe's 80 columns would lose numbers
    console = Console(file=sys.stdout)
    console.print(table, soft_wrap=not console.is_terminal)


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
    """Write columns to a .csv or .parquet file, all of it or nothing.

    Raises:
        InputError: another ending.
        MissingExtraError: Parquet without pyarrow.
    """
    if path.suffix == ".csv":
        text = io.StringIO()
        write_csv(columns, text)
        write_bytes_atomically(path, text.getvalue().encode("utf-8"))
    elif path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("writing Parquet", "pyarrow", "parquet") from None
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), buffer)
        write_bytes_atomically(path, buffer.getvalue())
    else:
        raise InputError(f"--out {path}: expected a name ending in .csv or .parquet, found {path.suffix!r}")


def write_csv(columns: Mapping[str, Sequence[Any]], stream: TextIO) -> None:
    """CSV with a heading; numbers in full, missing values empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])  # noqa: PLR0124 - NaN
