"""Scores of forecasts, classes and numbers, in numpy and float64, each with its source.

W counts forecast windows, H the horizon, Q quantile levels, S samples. An actual value that is NaN is missing
and does not count; a *forecast* that is NaN where the actual is known makes the score NaN, so that it is
seen. A score over no value at all is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ostinato.errors import InputError, SizeError

Array = NDArray[np.float64]


def seasonal_naive_scale(train_values: ArrayLike, season: int = 1) -> float:
    """In-sample mean absolute error of the seasonal naive forecast: what MASE divides by.

    Mean of |y_t - y_{t-season}| over the pairs of the training values that are both known; season 1 is the
    naive forecast. A series too short for one such pair, or one that repeats itself exactly (error 0), is
    scaled at lag 1 instead; a constant series and one with fewer than two neighbouring values has no scale:
    NaN, and MASE leaves it out.

    Source: Hyndman & Koehler 2006, "Another look at measures of forecast accuracy", International Journal of
    Forecasting 22(4).

    Args:
        train_values: (T,), NaN where missing; only values before the first forecast.
        season: lag in steps, at least 1.
    """
    values = _array("train_values", train_values)
    if values.ndim != 1:
        raise SizeError(
            f"seasonal_naive_scale: train_values has shape {values.shape}, expected (T,); pass one series"
        )
    if season < 1:
        raise InputError(f"seasonal_naive_scale: season is {season}, expected at least 1 (1: naive)")
    for lag in dict.fromkeys((season, 1)):
        scale = _mean(np.abs(values[lag:] - values[:-lag]))
        if scale > 0:
            return scale
    return float("nan")


def mase(actual: ArrayLike, forecast: ArrayLike, scale: ArrayLike) -> float:
    """Mean absolute scaled error: the mean of |actual - forecast| / scale, pooled over points.

    Source: Hyndman & Koehler 2006 (see `seasonal_naive_scale`).

    Args:
        actual: (..., H).
        forecast: like `actual`.
        scale: a number or one per row (...); rows whose scale is 0 or NaN have no MASE and don't count.
    """
    actual, forecast = _pair("mase", actual, forecast)
    scale = _array("scale", scale)
    if scale.ndim and scale.shape != actual.shape[:-1]:
        raise SizeError(
            f"mase: scale has shape {scale.shape}, expected one number or one per row {actual.shape[:-1]}"
        )
    scale = np.where(scale > 0, scale, np.nan)[..., None]
    counts = np.isfinite(actual) & np.isfinite(scale)
    return _mean(np.abs(actual - forecast) / scale, counts)


def smape(actual: ArrayLike, forecast: ArrayLike) -> float:
    """Symmetric mean absolute percentage error, 0 to 200: the mean of 200·|a - f| / (|a| + |f|), where 0/0 is
    0.

    Source: Makridakis & Hibon 2000, "The M3-Competition", International Journal of Forecasting 16(4), with
    absolute values in the denominator as in the M4 competition.
    """
    actual, forecast = _pair("smape", actual, forecast)
    error, size = np.abs(actual - forecast), np.abs(actual) + np.abs(forecast)
    ratio = np.divide(error, size, out=np.where(size == 0, 0.0, np.nan), where=size > 0)
    return 200.0 * _mean(ratio, np.isfinite(actual))


def rmse(actual: ArrayLike, mean: ArrayLike) -> float:
    """Root mean square error, pooled over points. Its best point forecast is the mean, not the median."""
    actual, mean = _pair("rmse", actual, mean)
    return float(np.sqrt(_mean((actual - mean) ** 2, np.isfinite(actual))))


def pinball(actual: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> Array:
    """Pinball (quantile) loss of each point and level: (..., Q); NaN where the actual is missing.

    (level - [actual < quantile]) · (actual - quantile), which the true quantile minimises in expectation.

    Source: Koenker & Bassett 1978, "Regression quantiles", Econometrica 46(1).

    Args:
        actual: (...).
        quantiles: (..., Q).
        levels: (Q,), rising, each between 0 and 1.
    """
    actual, quantiles, levels = _with_levels("pinball", actual, quantiles, levels)
    error = actual[..., None] - quantiles
    return np.maximum(levels * error, (levels - 1.0) * error)


def wql(actual: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> float:
    """Weighted quantile loss: 2·Σ pinball / Σ |actual|, averaged over the levels; both sums over all points.

    Without a unit. NaN where every actual is 0.

    Source: Salinas, Flunkert, Gasthaus & Januschowski 2020, "DeepAR", International Journal of Forecasting
    36(3), there called ρ-risk.
    """
    actual, quantiles, levels = _with_levels("wql", actual, quantiles, levels)
    counts = np.isfinite(actual)
    size = np.abs(actual[counts]).sum()
    if size == 0:
        return float("nan")
    return float(2.0 * pinball(actual[counts], quantiles[counts], levels).sum(axis=0).mean() / size)


def coverage(actual: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    """Share of the points that lie in [lower, upper], pooled over points; the interval's own share is the
    ideal.

    Source: Gneiting, Balabdaoui & Raftery 2007, "Probabilistic forecasts, calibration and sharpness", Journal
    of the Royal Statistical Society B 69(2).
    """
    actual, lower = _pair("coverage", actual, lower)
    actual, upper = _pair("coverage", actual, upper)
    inside = np.where(np.isnan(lower) | np.isnan(upper), np.nan, (actual >= lower) & (actual <= upper))
    return _mean(inside, np.isfinite(actual))


def crps_from_quantiles(actual: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> float:
    """Continuous ranked probability score of a forecast given by quantiles, averaged over points; data units.

    Exactly the score of the distribution that puts on each quantile the mass between the midpoints to its
    neighbours' levels (to 0 and 1 at the ends). With levels (i - ½)/S it equals `crps_from_samples` of the
    quantiles.

    Source: Matheson & Winkler 1976; as an integral over quantile losses, Gneiting & Ranjan 2011, "Comparing
    density forecasts using threshold- and quantile-weighted scoring rules", Journal of Business & Economic
    Statistics 29(3).
    """
    actual, quantiles, levels = _with_levels("crps_from_quantiles", actual, quantiles, levels)
    edges = np.concatenate(([0.0], (levels[1:] + levels[:-1]) / 2, [1.0]))
    centres = (edges[1:] + edges[:-1]) / 2
    each = 2.0 * pinball(actual, quantiles, centres) @ np.diff(edges)
    return _mean(each, np.isfinite(actual))


def crps_from_samples(actual: ArrayLike, samples: ArrayLike) -> float:
    """Continuous ranked probability score of sampled forecasts, averaged over points; in the unit of the
    data.

    E|X - y| - ½·E|X - X'| of the empirical distribution; one sample gives the absolute error. Cost: one sort
    of S.

    Source: Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", Journal of
    the American Statistical Association 102(477), equation 21.

    Args:
        actual: (...).
        samples: (..., S).
    """
    actual, samples = _array("actual", actual), np.sort(_array("samples", samples), axis=-1)
    if samples.shape[:-1] != actual.shape or not samples.shape[-1:] > (0,):
        raise SizeError(
            f"crps_from_samples: samples has shape {samples.shape}, expected {(*actual.shape, 'S')} "
            "with S of 1 or more"
        )
    S = samples.shape[-1]
    # Σ_ij |x_i - x_j| = 2 Σ_i (2i - S - 1) x_(i): each sorted value counts with those below less those above
    # it
    spread = (samples * (2.0 * np.arange(1, S + 1) - S - 1)).sum(axis=-1) / S**2
    each = np.abs(samples - actual[..., None]).mean(axis=-1) - spread
    return _mean(each, np.isfinite(actual))


def quantile_at(quantiles: ArrayLike, levels: ArrayLike, level: float) -> Array:
    """The quantile at `level` from quantiles (..., Q) at rising `levels` (Q,), linear in between: (...).

    Raises:
        InputError: `level` lies outside the given levels.
    """
    quantiles, levels = _array("quantiles", quantiles), _array("levels", levels)
    if not levels[0] - 1e-9 <= level <= levels[-1] + 1e-9:
        raise InputError(
            f"quantile_at: level {level:g} lies outside the levels {levels[0]:g} to {levels[-1]:g}; "
            f"forecast the levels 0.1 to 0.9"
        )
    nearest = int(np.argmin(np.abs(levels - level)))
    if abs(levels[nearest] - level) < 1e-9:
        return quantiles[..., nearest]
    right = int(np.searchsorted(levels, level))
    share = (level - levels[right - 1]) / (levels[right] - levels[right - 1])
    return (1.0 - share) * quantiles[..., right - 1] + share * quantiles[..., right]


def score_forecasts(
    actual: ArrayLike, mean: ArrayLike, quantiles: ArrayLike, levels: ArrayLike, scale: ArrayLike
) -> dict[str, float]:
    """All forecast scores of W windows: mase, smape, rmse, wql, coverage80, crps.

    MASE and sMAPE score the median, RMSE the mean; everything is pooled over the points that are known.

    Args:
        actual: (W, H), NaN where missing.
        mean: (W, H).
        quantiles: (W, H, Q).
        levels: (Q,), rising, from at most 0.1 to at least 0.9.
        scale: (W,) from `seasonal_naive_scale` of each window's series, or one number.
    """
    actual, mean = _pair("score_forecasts", actual, mean)
    actual, quantiles, levels = _with_levels("score_forecasts", actual, quantiles, levels)
    median = quantile_at(quantiles, levels, 0.5)
    lower, upper = quantile_at(quantiles, levels, 0.1), quantile_at(quantiles, levels, 0.9)
    return {
        "mase": mase(actual, median, scale),
        "smape": smape(actual, median),
        "rmse": rmse(actual, mean),
        "wql": wql(actual, quantiles, levels),
        "coverage80": coverage(actual, lower, upper),
        "crps": crps_from_quantiles(actual, quantiles, levels),
    }


def accuracy(actual: ArrayLike, predicted: ArrayLike) -> float:
    """Share of the labels (N,) that are right."""
    actual, predicted = _labels("accuracy", actual, predicted)
    return float(np.mean(actual == predicted)) if actual.size else float("nan")


def macro_f1(actual: ArrayLike, predicted: ArrayLike) -> float:
    """Mean over the classes of F1 = 2·TP / (2·TP + FP + FN); classes are those of either argument, (N,) each.

    Source: van Rijsbergen 1979, "Information Retrieval"; averaged over classes as in Yang & Liu 1999.
    """
    actual, predicted = _labels("macro_f1", actual, predicted)
    if not actual.size:
        return float("nan")
    classes, codes = np.unique(np.concatenate((actual, predicted)), return_inverse=True)
    true, guess = codes[: actual.size], codes[actual.size :]
    right = np.bincount(true[true == guess], minlength=classes.size)
    seen = np.bincount(true, minlength=classes.size) + np.bincount(guess, minlength=classes.size)
    return float(np.mean(2.0 * right / seen))


def mae(actual: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error, pooled over all known values."""
    actual, predicted = _pair("mae", actual, predicted)
    return _mean(np.abs(actual - predicted), np.isfinite(actual))


def r2(actual: ArrayLike, predicted: ArrayLike) -> float:
    """Coefficient of determination: 1 - Σ (a - p)² / Σ (a - mean a)² of each column, averaged over columns.

    A constant column scores 1 where it is met exactly and 0 otherwise. (N,) or (N, K).

    Source: Draper & Smith 1998, "Applied Regression Analysis".
    """
    actual, predicted = _pair("r2", actual, predicted)
    scores = []
    for a, p in zip(actual.reshape(len(actual), -1).T, predicted.reshape(len(predicted), -1).T, strict=True):
        known = np.isfinite(a)
        if not known.any():
            return float("nan")
        residual = float(((a[known] - p[known]) ** 2).sum())
        total = float(((a[known] - a[known].mean()) ** 2).sum())
        scores.append(1.0 - residual / total if total > 0 else float(residual == 0))
    return float(np.mean(scores)) if scores else float("nan")


def _array(name: str, values: ArrayLike) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers in a rectangular array, found {error}") from None


def _pair(function: str, actual: ArrayLike, forecast: ArrayLike) -> tuple[Array, Array]:
    actual, forecast = _array("actual", actual), _array("forecast", forecast)
    if actual.shape != forecast.shape:
        raise SizeError(
            f"{function}: the forecast has shape {forecast.shape}, the actual values {actual.shape}; "
            "they must agree"
        )
    return actual, forecast


def _labels(function: str, actual: ArrayLike, predicted: ArrayLike) -> tuple[NDArray, NDArray]:
    actual, predicted = np.asarray(actual), np.asarray(predicted)
    if actual.ndim != 1 or actual.shape != predicted.shape:
        raise SizeError(
            f"{function}: labels have shapes {actual.shape} and {predicted.shape}, expected (N,) twice; "
            "flatten labels per step with their mask first"
        )
    return actual, predicted


def _with_levels(
    function: str, actual: ArrayLike, quantiles: ArrayLike, levels: ArrayLike
) -> tuple[Array, Array, Array]:
    actual, quantiles, levels = (
        _array("actual", actual),
        _array("quantiles", quantiles),
        _array("levels", levels),
    )
    if levels.ndim != 1 or not levels.size or not ((levels > 0) & (levels < 1)).all():
        raise InputError(f"{function}: levels must be numbers between 0 and 1, found {levels.tolist()}")
    if (np.diff(levels) <= 0).any():
        raise InputError(f"{function}: levels must rise, found {levels.tolist()}; sort them")
    if quantiles.shape != (*actual.shape, levels.size):
        raise SizeError(
            f"{function}: quantiles has shape {quantiles.shape}, expected {(*actual.shape, levels.size)}: "
            "the shape of the actual values, then one per level"
        )
    return actual, quantiles, levels


def _mean(values: Array, counts: NDArray[np.bool_] | None = None) -> float:
    counted = values[np.isfinite(values) if counts is None else counts]
    return float(counted.mean()) if counted.size else float("nan")
