"""Validation of a forecaster: loss on held-out windows, how much of the network is kept, intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.preparation import Indices, Preparation
from ostinato.data.smoothing import Floats
from ostinato.models.forecaster import DirectForecaster
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.engine import LEVELS, Engine
from ostinato.tasks.forecast.rows import PreparedRows
from ostinato.tasks.forecast.settings import ForecastSettings
from ostinato.tasks.forecast.windows import WindowShape, WindowSource, window_batch


@dataclass(frozen=True)
class Check:
    """Validation origins in one group of prepared rows."""

    prepared: PreparedRows
    preparation: Preparation
    rows: Indices
    at: Indices
    limits: Indices


def check_origins(source: WindowSource, settings: ForecastSettings) -> Check:
    """Origins spread over the validation part of up to 256 rows of the first group."""
    prepared = source.shard(0)
    train, end = source.limits[0], prepared.lengths
    rng = np.random.default_rng(settings.seed)
    chosen = np.sort(rng.permutation(len(train))[:256])
    per_row = max(1, min(120, 400 // len(chosen)))
    rows, at = [], []
    for r in chosen:
        last = max(int(end[r]) - settings.horizon, int(train[r]))
        places = np.unique(np.linspace(train[r], last, per_row).astype(np.int64)) - 1
        rows.append(np.full(len(places), r))
        at.append(places)
    row, place = np.concatenate(rows), np.concatenate(at)
    return Check(prepared, source.preparation, row, place, end[row])


def validation_loss(engine: Engine, check: Check, shape: WindowShape) -> float:
    """The training loss on the validation part, in the same unit."""
    if engine.is_autoregressive:
        wanted = np.unique(check.rows)
        first = np.array([check.at[check.rows == r].min() for r in wanted])
        starts = np.maximum(first - shape.context // 2, 0)
        # Long validation parts are judged by their beginning, which bounds the memory.
        longest = min(int((check.prepared.lengths[wanted] - starts).max()), 4 * shape.context + 2000)
        batch = window_batch(
            check.prepared,
            check.preparation,
            replace(shape, context=longest),
            wanted,
            starts,
            np.zeros((len(wanted), 1), dtype=np.int64),
            check.prepared.lengths[wanted],
        )
        steps = torch.arange(batch.x.shape[1])
        batch["mask"] = batch.mask & (steps >= torch.from_numpy(first - starts)[:, None])
        with torch.no_grad():
            output = engine.model.loss(batch.to(engine.device))
        return float(output.total / output.count.clamp(min=1))
    device = next(engine.model.parameters()).device
    engine.device = str(device)
    quantiles = engine.relative_quantiles(check.prepared, check.rows, check.at, warm=4 * shape.context)
    y, mask = check.prepared.targets(check.preparation, check.rows, check.at, shape.horizon, check.limits)
    return float(_losses(check, quantiles, y, mask).mean())


def witnesses(check: Check, horizon: int) -> float:
    """How many independent windows validation has: as many as fit into it without overlap, over all rows."""
    wanted = np.unique(check.rows)
    first = np.array([check.at[check.rows == r].min() for r in wanted])
    return float(np.maximum((check.prepared.lengths[wanted] - first) / horizon, 1.0).sum())


def blend(engine: Engine, check: Check, witnesses: float, shape: WindowShape) -> Floats | None:
    """Give the network the smallest share that is within one standard error of the best one.

    What early stopping found on a handful of windows can be luck; on a random walk it always is. The rule is
    that of Breiman et al. (1984, "Classification and Regression Trees") for pruning; the rest
    of the share is the untrained mixture's. Returns what the blend says at the origins of `check`.
    """
    if not isinstance(engine.model, DirectForecaster):
        return None
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    mixture, network = engine.ends_of_blend(check.prepared, check.rows, check.at, warm=4 * shape.context)
    y, mask = check.prepared.targets(check.preparation, check.rows, check.at, engine.horizon, check.limits)
    losses = np.stack([_losses(check, mixture + s * (network - mixture), y, mask) for s in shares])
    best = losses.mean(axis=1).argmin()
    excess = losses - losses[best]
    tolerated = excess.std(axis=1) / np.sqrt(witnesses)
    chosen = int(np.flatnonzero(excess.mean(axis=1) <= tolerated)[0])
    engine.model.blend.fill_(shares[chosen])
    return mixture + shares[chosen] * (network - mixture)


def _losses(check: Check, quantiles: Floats, y: NDArray[Any], mask: NDArray[np.bool_]) -> Floats:
    """Weighted pinball loss of every origin: (n,)."""
    unit = check.prepared.units[check.rows]
    weight = np.clip(check.prepared.history.scale[check.rows, check.at] / unit, 0.0, 10.0)
    error = y[..., None] - quantiles
    levels = np.array(LEVELS)
    loss = np.maximum(levels * error, (levels - 1) * error).mean(-1)
    return (loss * mask).sum(axis=1) * weight / max(mask.sum(), 1) * len(y)


def calibrate(engine: Engine, check: Check, witnesses: float, quantiles: Floats | None) -> Calibration:
    """Conformal factors from the validation windows; `quantiles` is what `blend` returned."""
    rows, at, limits = check.rows, check.at, check.limits
    if quantiles is None:
        few = np.linspace(0, len(check.rows) - 1, min(len(check.rows), 100)).astype(np.int64)
        paths = engine.preparation.forward(
            engine.sample_paths(check.prepared, check.rows[few], check.at[few])
        )
        rows, at, limits = check.rows[few], check.at[few], check.limits[few]
        last = check.prepared.history.filled[rows, at][:, None, None]
        scale = check.prepared.history.scale[rows, at][:, None, None]
        quantiles = np.moveaxis(np.quantile((paths - last) / scale, LEVELS, axis=1), 0, -1)
    y, mask = check.prepared.targets(check.preparation, rows, at, engine.horizon, limits)
    # Errors within a window go together, but are not the same: a window counts for two.
    return Calibration.fit(quantiles, y.astype(np.float64), mask, np.array(LEVELS), 2.0 * witnesses)
