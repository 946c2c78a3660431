"""Back-tests: which windows are scored, and the scores of the network and the baselines on the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ostinato.data.preparation import Indices
from ostinato.data.smoothing import Floats
from ostinato.data.table import SeriesTable
from ostinato.errors import InputError, MissingExtraError
from ostinato.tasks.forecast.baselines import BASELINES, SeriesWindows, forecast_baseline
from ostinato.tasks.forecast.engine import LEVELS, Engine
from ostinato.tasks.forecast.rows import prepare_rows
from ostinato.training.metrics import score_forecasts

WINDOWS = ("last", "rolling")


@dataclass(frozen=True)
class Windows:
    """Scored windows: for every series its origins (an origin o is forecast from the o values before it), and
    how many steps the baselines may learn from."""

    origins: list[np.ndarray]
    trained: list[int]


def steps_trained(table: SeriesTable, ends: Mapping[str, str]) -> list[int]:
    """How many steps of each series training has seen, from its last training times: 0 for a new series."""
    seen = []
    for series in table.series:
        if series.id not in ends:
            seen.append(0)
            continue
        end = np.array([ends[series.id]], dtype="datetime64[s]")
        seen.append(max(int(table.frequency.index(series.start, end)[0]) + 1, 0))
    return seen


def choose_windows(
    table: SeriesTable, trained: Sequence[int], horizon: int, *, windows: str, in_sample: bool
) -> Windows:
    """The windows of an evaluation.

    Args:
        table: the data.
        trained: steps of each series that training saw; 0 for a new series.
        horizon: H.
        windows: `last` or `rolling`.
        in_sample: whether windows may overlap the training data.
    """
    if windows not in WINDOWS:
        raise InputError(f"windows is {windows!r}; known: {', '.join(WINDOWS)}")
    chosen: list[np.ndarray] = []
    for series, seen in zip(table.series, trained, strict=True):
        T = series.length
        # Something must precede a window; of a new series, half.
        earliest = max(seen if not in_sample else 0, 2 if seen else T // 2, 1)
        if windows == "last":
            origins = np.array([T - horizon])
        elif in_sample:
            origins = np.arange(T - horizon, max(earliest, T // 3) - 1, -horizon)[::-1]
        else:
            origins = np.arange(earliest, T - horizon + 1, horizon)
        first = np.flatnonzero(~np.isnan(series.values).all(axis=1))[0]
        chosen.append(origins[(origins >= earliest) & (origins > first)])
    if not any(len(origins) for origins in chosen):
        raise InputError(
            f"no window of {horizon} steps lies after the training data; give a file that reaches beyond it, "
            "train with --test N to hold points out, or allow seen windows with --in-sample (in_sample=True)"
        )
    learn = [
        min(seen, int(origins[0]))
        if seen and len(origins)
        else (int(origins[0]) if len(origins) else series.length)
        for series, seen, origins in zip(table.series, trained, chosen, strict=True)
    ]
    return Windows(chosen, learn)


def score_model(
    engine: Engine,
    table: SeriesTable,
    windows: Windows,
    scales: Sequence[float],
    groups: Iterable[Sequence[tuple[int, int]]],
) -> dict[str, float]:
    """Pooled scores of the network over all windows of all rows; `scales` has one number a row."""
    actual, mean, quantiles, scale = [], [], [], []
    H, C = engine.horizon, len(table.targets)
    for members in groups:
        prepared = prepare_rows(table, members, engine.columns, engine.preparation, H)
        chosen = [_with_history(prepared.values[r], windows.origins[i]) for r, (i, _) in enumerate(members)]
        rows = np.repeat(np.arange(len(members)), [len(origins) for origins in chosen])
        origins = np.concatenate(chosen)
        if not len(rows):
            continue
        said = engine.forecast(prepared, rows, origins - 1)
        actual.append(prepared.values[rows[:, None], origins[:, None] + np.arange(H)])
        mean.append(said.mean)
        quantiles.append(said.quantiles)
        scale.append(np.array([scales[members[r][0] * C + members[r][1]] for r in rows.tolist()]))
    if not actual:
        raise InputError("no scored window has a value before it; give a file with more history")
    return score_forecasts(
        np.concatenate(actual),
        np.concatenate(mean),
        np.concatenate(quantiles),
        np.array(LEVELS),
        np.concatenate(scale),
    )


def _with_history(values: Floats, origins: np.ndarray) -> Indices:
    """The origins that at least one known value precedes; nobody can forecast from nothing."""
    known = np.flatnonzero(~np.isnan(values))
    return origins[origins > known[0]].astype(np.int64) if len(known) else np.zeros(0, dtype=np.int64)


def score_baselines(
    table: SeriesTable, windows: Windows, scales: Sequence[float], horizon: int, *, budget_s: float
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Scores of every baseline on the same windows, and what is to be said about them.

    A baseline that ran out of time is scored on the windows that it covers, and a note says so.
    """
    rows: list[SeriesWindows] = []
    actual: list[Floats] = []
    scale: list[float] = []
    C = len(table.targets)
    for i, series in enumerate(table.series):
        for c in range(C):
            values = series.values[:, c]
            origins = _with_history(values, windows.origins[i])
            if not len(origins):
                continue
            trained = windows.trained[i]
            # A target that begins later than the others is learned from what precedes its own first window.
            trained = trained if (~np.isnan(values[:trained])).any() else int(origins[0])
            rows.append(SeriesWindows(values, trained, origins, table.frequency.season))
            actual.append(values[origins[:, None] + np.arange(horizon)])
            scale += [scales[i * C + c]] * len(origins)
    scores, notes = {}, []
    for name in BASELINES:
        try:
            said = forecast_baseline(name, rows, horizon, LEVELS, budget_s=budget_s)
        except MissingExtraError as error:
            notes.append(f"{name}: left out. {error}")
            continue
        keep = said.covered
        notes += said.notes
        if keep.any():
            scores[name] = score_forecasts(
                np.concatenate(actual)[keep],
                said.mean[keep],
                said.quantiles[keep],
                LEVELS,
                np.array(scale)[keep],
            )
    return scores, notes
