"""Figures of forecasts and of training, from plain arrays.

Drawn with matplotlib's own canvas, never through pyplot: no window, no global state, nothing to close.
Colours are told apart by readers with colour blindness, in print, and on light and dark pages.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ostinato.errors import InputError, MissingExtraError, SizeError
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.metrics import quantile_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 9
TAIL_HORIZONS, MIN_TAIL = (
    4,
    30,
)  # how much history stands before a forecast, in horizons and at least in steps
INK = "#30363d"  # text and axes; `report` replaces it by the page's own colour
FAINT = "#8c959f"
FORECAST = "#2f7fc1"
BEST = "#c2571a"
# name -> colour and dash; further baselines take the last
_BASELINES = {"naive": ("#d9a400", ":"), "seasonal_naive": ("#2a9d6f", "--"), "ets": ("#b5529a", "-.")}
_FORMATS = {".png": "png", ".svg": "svg"}
_HISTORY_AXES = (
    ("train_loss", "training loss"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)


@dataclass(frozen=True)
class ForecastPanel:
    """One series: what was known, what was forecast, and what came.

    Attributes:
        title: over the panel.
        history_times, history: (T,), NaN where missing; times are datetime64 or numbers.
        times: (H,).
        quantiles: (H, Q) at `levels` (Q,), rising, from at most 0.1 to at least 0.9.
        mean: (H,) or None.
        actual: (H,), NaN where unknown, or None.
        baselines: name -> (H,) point forecasts.
        unit: of the values, at the axis.
    """

    title: str
    history_times: ArrayLike
    history: ArrayLike
    times: ArrayLike
    quantiles: ArrayLike
    levels: ArrayLike
    mean: ArrayLike | None = None
    actual: ArrayLike | None = None
    baselines: Mapping[str, ArrayLike] = field(default_factory=dict)
    unit: str = ""

    def __post_init__(self) -> None:
        H, Q = len(np.asarray(self.times)), len(np.asarray(self.levels))
        T = len(np.asarray(self.history_times))
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            "history": (self.history, (T,)),
            "quantiles": (self.quantiles, (H, Q)),
        }
        expected |= {"mean": (self.mean, (H,)), "actual": (self.actual, (H,))}
        expected |= {f"baseline {name}": (values, (H,)) for name, values in self.baselines.items()}
        for name, (values, shape) in expected.items():
            if values is not None and (found := np.asarray(values).shape) != shape:
                raise SizeError(
                    f"ForecastPanel {self.title!r}: {name} has shape {found}, expected {shape}: as its times"
                )


def forecast_figure(panels: Sequence[ForecastPanel], title: str = "") -> Figure:
    """The end of the history, what came, median, mean, intervals of 50 % and 80 %, and baselines; one panel
    per series, up to nine.

    Raises:
        InputError: no panel.
        MissingExtraError: matplotlib is not installed.
    """
    if not panels:
        raise InputError("forecast_figure: no panel to draw; pass at least one ForecastPanel")
    shown = panels[:MAX_PANELS]
    columns = 1 if len(shown) <= 2 else 2 if len(shown) <= 4 else 3
    rows = math.ceil(len(shown) / columns)
    figure = blank_figure(9.0 if columns == 1 else 5.2 * columns, (4.0 if rows == 1 else 3.0) * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(shown) :]:
        ax.remove()
    handles: dict[str, Any] = {}
    for number, (ax, panel) in enumerate(zip(grid.flat, shown, strict=False)):
        _draw_panel(ax, panel)
        if number % columns == 0 or panel.unit != shown[number - 1].unit:
            ax.set_ylabel(_plain(panel.unit), color=INK, fontsize=9)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if len(panels) > len(shown):
        title += f" (the first {len(shown)} of {len(panels)} series)"
    figure.suptitle(_plain(title.strip()), color=INK, fontsize=12)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=5 if columns == 1 else 9,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    return figure


def training_figure(history: Mapping[str, Sequence[float]], best_step: int | None = None) -> Figure:
    """Training loss, validation metrics, learning rate and gradient norm over the steps; the best step is
    marked.

    Args:
        history: columns of history.csv: `step`, `train_loss`, `learning_rate`, `grad_norm`, then validation
            metrics; NaN where a row has no value.
        best_step: the step whose weights were kept.

    Raises:
        InputError: a column `step` or `train_loss` is missing.
        MissingExtraError: matplotlib is not installed.
    """
    for name in ("step", "train_loss"):
        if name not in history:
            raise InputError(f"training_figure: history has no column {name!r}; it has: {', '.join(history)}")
    known = {"step", "epoch", "elapsed_s", *(name for name, _ in _HISTORY_AXES)}
    validation = [name for name in history if name not in known]
    steps = np.asarray(history["step"], dtype=float)
    figure = blank_figure(9.0, 5.6)
    grid = figure.subplots(2, 2, sharex=True)
    places = [grid[0, 0], grid[1, 0], grid[1, 1]]
    for ax, (name, title) in zip(places, _HISTORY_AXES, strict=True):
        _style(ax, title)
        if name in history:
            _draw_curve(ax, steps, history[name], FORECAST, name)
        if name != "learning_rate":
            _log_if_positive(ax, history.get(name, []))
    ax = grid[0, 1]
    _style(ax, "validation" if validation else "validation: none")
    for name, colour in zip(validation, (BEST, "#2a9d6f", "#b5529a"), strict=False):
        _draw_curve(ax, steps, history[name], colour, name, marker="o")
    if validation:
        ax.legend(frameon=False, labelcolor=INK)
    for ax in grid.flat:
        if best_step is not None:
            ax.axvline(best_step, color=BEST, linewidth=1, linestyle=(0, (4, 3)))
    if best_step is not None:
        grid[0, 1].set_title(f"validation, best at step {best_step}", color=INK, fontsize=10, loc="left")
    for ax in grid[1]:
        ax.set_xlabel("step", color=INK)
    return figure


def figure_bytes(figure: Figure, format: str) -> bytes:  # noqa: A002 - matplotlib's own name for it
    """The figure as "png" (150 dots per inch) or "svg"; the same figure gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "ostinato"}):
        # names of series may be in a script that the font lacks; browsers have one for the SVG
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        metadata = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
        figure.savefig(buffer, format=format, dpi=150, metadata=metadata)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure to a .png or .svg file, all of it or nothing.

    Raises:
        InputError: another ending.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise InputError(f"{path}: expected a name ending in .png or .svg, found {path.suffix!r}")
    write_bytes_atomically(path, figure_bytes(figure, _FORMATS[path.suffix]))


def _draw_panel(ax: Axes, panel: ForecastPanel) -> None:
    _style(ax, panel.title)
    quantiles, levels = np.asarray(panel.quantiles, dtype=float), np.asarray(panel.levels, dtype=float)
    times = np.asarray(panel.times)
    tail = slice(-max(MIN_TAIL, TAIL_HORIZONS * len(times)), None)
    past, history = np.asarray(panel.history_times)[tail], np.asarray(panel.history, dtype=float)[tail]
    for low, high, alpha in ((0.1, 0.9, 0.18), (0.25, 0.75, 0.32)):
        ax.fill_between(
            times, quantile_at(quantiles, levels, low), quantile_at(quantiles, levels, high),
            color=FORECAST, alpha=alpha, linewidth=0, label=f"{100 * (high - low):.0f} % interval",
        )  # fmt: skip
    for name, values in panel.baselines.items():
        colour, dash = _BASELINES.get(name, ("#b5529a", (0, (1, 1, 4, 1))))
        ax.plot(
            times, np.asarray(values, dtype=float), color=colour, linestyle=dash, linewidth=1.3, label=name
        )
    ax.plot(past, history, color=FAINT, linewidth=1.2, label="history")
    if panel.actual is not None:
        # from the last known value on, so that the eye need not jump
        joined_times, joined = (
            np.concatenate((past[-1:], times)),
            np.concatenate((history[-1:], panel.actual)),
        )
        ax.plot(joined_times, joined, color=INK, linewidth=1.4, label="actual", zorder=4)
    if panel.mean is not None:
        ax.plot(
            times,
            np.asarray(panel.mean, dtype=float),
            color=FORECAST,
            linewidth=1,
            linestyle="--",
            label="mean",
        )
    ax.plot(
        times, quantile_at(quantiles, levels, 0.5), color=FORECAST, linewidth=1.8, label="median", zorder=5,
        marker="o" if len(times) == 1 else "",
    )  # fmt: skip
    if len(past):
        ax.axvline(past[-1], color=FAINT, linewidth=0.8, linestyle=":")
    if np.issubdtype(times.dtype, np.datetime64):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=7)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        ax.xaxis.get_offset_text().set_color(INK)


def _draw_curve(
    ax: Axes, steps: NDArray[Any], column: Sequence[float], colour: str, label: str, marker: str = ""
) -> None:
    values = np.asarray(column, dtype=float)
    known = np.isfinite(values)
    marker = marker or ("o" if known.sum() == 1 else "")
    ax.plot(
        steps[known], values[known], color=colour, linewidth=1.4, label=label, marker=marker, markersize=3
    )


def _log_if_positive(ax: Axes, column: Sequence[float]) -> None:
    values = np.asarray(column, dtype=float)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        ax.set_yscale("log")


def blank_figure(width: float, height: float) -> Figure:
    """A figure of so many inches with a canvas of its own.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a plot", "matplotlib", "plots") from None
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(ax: Axes, title: str) -> None:
    ax.set_facecolor("none")
    ax.set_title(_plain(title), color=INK, fontsize=10, loc="left")
    ax.tick_params(colors=INK, labelsize=8)
    ax.grid(visible=True, color=FAINT, alpha=0.25, linewidth=0.6)
    ax.margins(x=0.01)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)


def _plain(text: str) -> str:
    """Text as it is: a dollar sign would start a formula, and a long name would push the panels apart."""
    return (text if len(text) <= 70 else text[:69] + "…").replace("$", r"\$").replace("\n", " ")
