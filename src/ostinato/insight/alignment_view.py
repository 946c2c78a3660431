"""Where a translator looked: the attention of each word of an answer over those of its source, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ostinato.errors import InputError, SizeError
from ostinato.insight.plots import FAINT, INK, blank_figure
from ostinato.insight.report import Report, report_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_UNITS, MOST_DRAWN = 60, 50
_CELL_IN, _LETTER_IN = 0.24, 0.085


@dataclass(frozen=True)
class Alignment:
    """The attention of one answer, or of one piece of it.

    Attributes:
        source, target: S and T units as people read them.
        weights: (T, S), 0 … 1.
        title: a heading.
    """

    source: Sequence[str]
    target: Sequence[str]
    weights: ArrayLike
    title: str = ""

    def __post_init__(self) -> None:
        expected, found = (len(self.target), len(self.source)), np.shape(self.weights)
        if found != expected:
            raise SizeError(
                f"Alignment {self.title!r}: weights have shape {found}, expected {expected}: a row for each "
                "unit of the target, a column for each of the source"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values; weights to six digits."""
        rows = np.asarray(self.weights, float).round(6).tolist()
        return {"title": self.title, "source": [*self.source], "target": [*self.target], "weights": rows}


def alignment_figure(alignment: Alignment) -> Figure:
    """A square for each unit of the answer (rows, top to bottom) and of the source (columns): the darker, the
    more of the row's attention is there.

    Of more than 60 units of the source those with the most attention are drawn, of more than 60 of the answer
    the first; the title says so.

    Raises:
        InputError: nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    weights = np.asarray(alignment.weights, float)
    if not weights.size:
        raise InputError(f"alignment_figure: {alignment.title or 'the alignment'} has no unit on one side")
    columns, rows = _most_seen(weights), min(len(weights), MOST_UNITS)
    source = [alignment.source[i] for i in columns.tolist()]
    target, shown = [*alignment.target][:rows], weights[:rows, columns]
    left, top = (max(map(len, side)) * _LETTER_IN + 0.2 for side in (target, source))
    width = max(left + len(source) * _CELL_IN, 3.0) + 0.2
    figure = blank_figure(width, top + rows * _CELL_IN + (0.4 if alignment.title else 0.1))
    ax = figure.subplots()
    ax.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal", interpolation="nearest")
    ax.set_xticks(range(len(source)), source, rotation=90, color=INK, fontsize=8, parse_math=False)
    ax.set_yticks(range(rows), target, color=INK, fontsize=8, parse_math=False)
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    # Lines between the squares, so that a row can be followed with the eye.
    ax.set_xticks(np.arange(-0.5, len(source)), minor=True)
    ax.set_yticks(np.arange(-0.5, rows), minor=True)
    ax.grid(visible=True, which="minor", color=FAINT, alpha=0.35, linewidth=0.5)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    title = alignment.title + _left_out(alignment, len(source), rows)
    if title:
        figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=9, parse_math=False)
    return figure


def alignments_html(alignments: Sequence[Alignment], title: str = "Where the network looked") -> str:
    """A page with a picture of each alignment, of the first 50; complete in one file.

    Raises:
        InputError: nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    drawn = [one for one in alignments if np.size(one.weights)][:MOST_DRAWN]
    if not drawn:
        raise InputError("alignments_html: no alignment to draw; pass at least one with units on both sides")
    figures = [
        (one.title or f"Answer {number}", alignment_figure(Alignment(one.source, one.target, one.weights)))
        for number, one in enumerate(drawn, 1)
    ]
    summary = (
        "Rows are the answer from top to bottom, columns its source; the darker a square, the more of the "
        "row's attention is there."
    )
    if len(drawn) < len(alignments):
        summary += f" The first {len(drawn):,} of {len(alignments):,} are drawn."
    return report_html(Report(title=title, summary=summary, figures=figures))


def _most_seen(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The columns to draw, in their order."""
    order = np.argsort(-weights.sum(axis=0), kind="stable")[:MOST_UNITS]
    return np.sort(order)


def _left_out(alignment: Alignment, columns: int, rows: int) -> str:
    S, T = len(alignment.source), len(alignment.target)
    parts = [f"{columns} of {S} source units with most attention"] if columns < S else []
    parts += [f"first {rows} of {T} target units"] if rows < T else []
    return f" ({', '.join(parts)})" if parts else ""
