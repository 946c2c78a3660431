"""The figure of the sequences' grid: torch's time over ours, by size, cell, mode and threads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.bench.cases import CELLS
from ostinato.errors import InputError, MissingExtraError
from ostinato.training.atomic import write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#30363d", "#8c959f"
# Told apart by colour (Okabe and Ito's), by brightness and by shape.
_MARKS = (("#0072B2", "o"), ("#E69F00", "D"), ("#009E73", "s"))
_TICKS = tuple(digit * 10.0**power for power in range(-2, 3) for digit in (1, 2, 5))
_MODES = ("inference", "training")
_TITLES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN (tanh)"}


def check_plots() -> None:
    """That figures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("the figure of the benchmark", "matplotlib", "plots") from None


def speed_figure(report: Mapping[str, Any], peer: str = "torch") -> Figure:
    """Ratios of `peer` over ours: modes in rows, cells in columns, one mark for each number of threads.

    Raises:
        InputError: the report has no ratio to that peer in the grid `sequences`.
        MissingExtraError: matplotlib is not installed.
    """
    check_plots()
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row["grid"] == "sequences" and peer in row["ratios"]]
    if not rows:
        raise InputError(f"speed_figure: the report has no ratio to {peer} in the grid 'sequences'; run it")
    modes = [mode for mode in _MODES if any(row["mode"] == mode for row in rows)]
    cells = [cell for cell in CELLS if any(row["cell"] == cell for row in rows)]
    sizes = list(dict.fromkeys((row["H"], row["B"]) for row in rows))
    figure = Figure(
        figsize=(1.2 + 0.22 * max(len(sizes), 9) * len(cells), 0.9 + 2.5 * len(modes)), layout="constrained"
    )
    grid = figure.subplots(len(modes), len(cells), squeeze=False, sharey="row", sharex=True)
    threads = sorted({row["threads"] for row in rows})
    for axes, mode in zip(grid, modes, strict=True):
        for ax, cell in zip(axes, cells, strict=True):
            own = [row for row in rows if row["mode"] == mode and row["cell"] == cell]
            _draw(ax, own, sizes, threads, peer)
            if mode == modes[0]:
                ax.set_title(_TITLES[cell], color=INK, fontsize=11)
        _scale(axes[0], [row["ratios"][peer]["ratio"] for row in rows if row["mode"] == mode])
        axes[0].set_ylabel(f"{mode}\n{peer}'s time / ours", color=INK, fontsize=9)
    for ax in grid[-1]:
        _size_labels(ax, sizes)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper right",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.suptitle(
        f"Times faster than {peer}: {report['machine']['cpu']}, T = 100, D = H",
        x=0.01, ha="left", color=INK, fontsize=11,
    )  # fmt: skip
    return figure


def _draw(
    ax: Axes,
    rows: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    threads: Sequence[int],
    peer: str,
) -> None:
    ax.axhline(1.0, color=INK, linewidth=1.0, zorder=1)
    shift = 0.3 / max(1, len(threads))
    for index, number in enumerate(threads):
        colour, marker = _MARKS[index % len(_MARKS)]
        offset = (index - (len(threads) - 1) / 2) * shift
        own = [row for row in rows if row["threads"] == number]
        xs = [sizes.index((row["H"], row["B"])) + offset for row in own]
        ys = [row["ratios"][peer]["ratio"] for row in own]
        label = f"{number} thread{'s' * (number > 1)}"
        ax.vlines(xs, 1.0, ys, color=colour, linewidth=1.4, alpha=0.6, zorder=2)
        ax.plot(xs, ys, linestyle="none", marker=marker, markersize=4.5, color=colour, label=label, zorder=3)
    ax.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
    ax.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    # a line between hidden sizes
    for i in range(1, len(sizes)):
        if sizes[i][0] != sizes[i - 1][0]:
            ax.axvline(i - 0.5, color=FAINT, alpha=0.35, linewidth=0.6)


def _scale(ax: Axes, ratios: Sequence[float]) -> None:
    """The logarithmic axis of a row of panels, wide enough for all of them."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low, high = min(0.8, 0.85 * min(ratios)), max(3.0, 1.2 * max(ratios))
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.set_yticks([tick for tick in _TICKS if low <= tick <= high])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _size_labels(ax: Axes, sizes: Sequence[tuple[int, int]]) -> None:
    """B under each mark, H under each group."""
    ax.set_xticks(range(len(sizes)), [str(B) for _, B in sizes])
    ax.set_xlim(-0.6, len(sizes) - 0.4)
    start = 0
    for i in range(1, len(sizes) + 1):
        if i == len(sizes) or sizes[i][0] != sizes[start][0]:
            ax.annotate(
                f"H={sizes[start][0]}", ((start + i - 1) / 2, 0), xycoords=("data", "axes fraction"),
                xytext=(0, -22), textcoords="offset points", ha="center", va="top", color=INK, fontsize=8,
            )  # fmt: skip
            start = i
    ax.set_xlabel("B, and below it H", color=FAINT, fontsize=8, labelpad=16)


def save_figure(figure: Figure, folder: Path, name: str = "speed") -> list[Path]:
    """Write `name`.png and `name`.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata, facecolor="white")
        paths.append(folder / f"{name}.{kind}")
        write_bytes_atomically(paths[-1], buffer.getvalue())
    return paths
