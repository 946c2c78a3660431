"""What a forecaster was made from, as a few digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ostinato.data.table import Series, SeriesTable
from ostinato.tasks.same_data import Digest


def fingerprints(table: SeriesTable, test: int) -> dict[str, dict[str, Any]]:
    """How many series and rows the training data and the test part have, and a digest of each, whatever file
    they came from: frequency, columns, names, times and values, in their order.

    Args:
        table: what is learned from, and what is not.
        test: rows at the end of every series that are not learned from. Their known columns count as
            training data, because these are no secret.

    Cost: one pass over the values, 1 ns for each byte.
    """
    parts = {"data": _fingerprint(table, [series.until(series.length - test) for series in table.series])}
    if test:
        parts["test"] = _fingerprint(table, [_last(series, test) for series in table.series])
    return parts


def _last(series: Series, n: int) -> Series:
    """The last `n` rows with their targets and what was observed, and nothing else."""
    return Series(
        series.id,
        series.start,
        series.values[-n:],
        series.known[:0],
        series.observed[-n:],
        series.static[:0],
    )


def _fingerprint(table: SeriesTable, rows: Sequence[Series]) -> dict[str, Any]:
    digest = Digest()
    digest.texts([table.fingerprint()])
    for series in rows:
        digest.texts([series.id, str(series.start)])
        for array in (series.values, series.known, series.observed, series.static):
            digest.array(array)
    return {"series": len(rows), "rows": sum(series.length for series in rows), "digest": digest.digits()}
