"""What one direction of one layer is asked to compute, of operators, native kernels and plain steps alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ostinato.kernels.cell_options import CellOptions


class Task(NamedTuple):
    """What one call computes: one direction of one layer, or both directions of one.

    Attributes:
        cell: its row of `reference.CELLS`.
        options: of the cell; `training` makes zoneout random.
        is_reverse: from the last real step to the first.
        returns_cells: also give the cell state after every step (LSTM).
        keeps: what forward saves for backward: `nothing`, `gates`, or `outputs`, from which backward computes
            the gates again: a third of the memory and a third more work; or `inputs`, which is not for these
            kernels: the plain steps run again in backward.
        is_both: both directions over the same x, mask and resets; y and the cell states are then side by
            side, (B, T, 2·P) and (B, T, 2·H), and the final leaves one direction after the other.
    """

    cell: str
    options: CellOptions
    is_reverse: bool
    returns_cells: bool
    keeps: str
    is_both: bool = False


class Arguments(NamedTuple):
    """What one direction of one layer runs on; of both, each list has the forward direction's first.

    Attributes:
        x: (B, T, D), any strides.
        state: leaves (B, …) in the order of the cell's `leaves`; final ones have the same shapes.
        initial: leaves of the state after a reset, needed with `resets`, else empty.
        weights: in the order of `parameter_shapes`, those that there are.
        mask, resets: (B, T) bool in the order of x, also where the direction is reverse; or None.
        noise: recurrent, zoneout of h, zoneout of c; each None or (T or 1, B, ·), in the order in which the
            direction meets the steps.
    """

    x: Tensor
    state: list[Tensor]
    initial: list[Tensor]
    weights: list[Tensor]
    mask: Tensor | None
    resets: Tensor | None
    noise: list[Tensor | None]


NO_NOISE: list[Tensor | None] = [None, None, None]


class Upstream(NamedTuple):
    """Gradients of what a call returned; None stands for zeros.

    Attributes:
        y: (B, T, P).
        final: one for each leaf of the state, (B, ·).
        cells: (B, T, H), of the cell state after every step.
    """

    y: Tensor | None
    final: Sequence[Tensor | None]
    cells: Tensor | None
