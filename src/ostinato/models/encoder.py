"""The recurrent part that models share: layers by the name of their cell, or of a user's `Cell` class."""

from __future__ import annotations

from typing import Any

import torch

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.layers.gated import GRU, LSTM, RNN
from ostinato.layers.linear import RGLRU, MinGRU, MinLSTM
from ostinato.layers.options import check_choice
from ostinato.layers.recurrent import Recurrent
from ostinato.layers.stack import Stack

CELLS: dict[str, type[Stack]] = {
    "rnn": RNN, "lstm": LSTM, "gru": GRU, "mingru": MinGRU, "minlstm": MinLSTM, "rglru": RGLRU,
}  # fmt: skip


def build_encoder(
    cell: str | type[Cell],
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    *,
    bidirectional: bool = False,
    **options: Any,
) -> Stack:
    """Recurrent layers.

    Args:
        cell: a name in `CELLS`, or a `Cell` class that is built by (input_size, hidden_size).
        input_size: D.
        hidden_size: H of each direction.
        num_layers: L.
        bidirectional: also from the end to the start.
        **options: of the layer.

    Raises:
        InputError: an unknown cell or option, with the known ones; a size below 1.
    """
    check_sizes("encoder", input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
    if isinstance(cell, str):
        check_choice("encoder", "cell", cell, CELLS)
        return CELLS[cell](input_size, hidden_size, num_layers, bidirectional=bidirectional, **options)
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        raise InputError(
            f"cell is {cell!r}; expected one of: {', '.join(CELLS)}, or a Cell class (not an instance)"
        )
    grid, width = [], input_size
    for _ in range(num_layers):
        grid.append([cell(width, hidden_size) for _ in range(2 if bidirectional else 1)])
        width = sum(one.output_size for one in grid[-1])
    return Recurrent(grid, bidirectional=bidirectional, **options)


def check_cell(cell: str | type[Cell], hidden_size: int, num_layers: int) -> None:
    """Build a small layer and run one step, so that a cell that cannot work is refused before data are read.

    Raises:
        InputError: an unknown name, something that is no `Cell` class, one whose constructor does not take
            (input_size, hidden_size), or whose output is not hidden_size wide.
    """
    if isinstance(cell, str):
        build_encoder(cell, 1, 1)
        return
    try:
        layer = build_encoder(cell, 3, hidden_size, num_layers)
        with torch.no_grad():
            y, _ = layer.step(torch.zeros(2, 3), layer.initial_state(2))
    except (TypeError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"cell {cell.__name__} cannot be used: {error}; it must be built by {cell.__name__}(input_size, "
            "hidden_size), set input_size, output_size and state_shapes, and define step"
        ) from error
    if y.shape != (2, hidden_size):
        raise InputError(
            f"cell {cell.__name__} gives outputs of width {y.shape[-1]}, expected hidden_size={hidden_size}"
        )
