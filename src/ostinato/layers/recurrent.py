"""`Recurrent`: any cell, a user's own included, under the whole contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ostinato.errors import InputError, SizeError
from ostinato.kernels import ops, program
from ostinato.kernels.backends import Path, Request
from ostinato.kernels.ops import Result
from ostinato.kernels.reference import Leaves, Noise
from ostinato.kernels.stretch import Stretch
from ostinato.layers import arguments
from ostinato.layers.cells import Cell, GatedCell
from ostinato.layers.dropout import Kind, check_probability
from ostinato.layers.options import check_known
from ostinato.layers.stack import Stack
from ostinato.types import State

_OPTIONS = ("dropout_in", "dropout_between", "dropout_out", "residual", "learn_initial_state", "strict")


# From the fastest to the slowest: a stack is named after its slowest part.
_PATHS = ("native", "triton", "native program", "torch", "torch steps", "reference")


class Recurrent(Stack):
    """Runs cells over time, stacked and in both directions, with lengths, masks and resets.

    Args:
        cell: the cell of the first layer. Further layers and the reverse direction get fresh cells of the
            same class and arguments with their own `input_size`. Or one cell for each layer and direction:
            `[a, b]` for two layers, `[(a, a_back), (b, b_back)]` for two bidirectional ones; widths and
            kinds may differ.
        num_layers: L; with a sequence of cells it is their number.
        bidirectional: also run from the end to the start.
        **options: `dropout_in`, `dropout_between`, `dropout_out`, `residual`, `learn_initial_state`,
            `strict`, as for `LSTM`.

    Raises:
        InputError: an unknown option, or cells that do not fit together.
    """

    def __init__(
        self,
        cell: Cell | Sequence[Cell | Sequence[Cell]],
        num_layers: int | None = None,
        *,
        bidirectional: bool = False,
        **options: Any,
    ):
        super().__init__()
        check_known(self._name, options, _OPTIONS)
        for name in ("dropout_in", "dropout_between", "dropout_out"):
            check_probability(f"{self._name}: {name}", options.get(name, 0.0))
        self.bidirectional = bidirectional
        grid = self._grid(cell, num_layers)
        first = grid[0][0]
        self.num_layers, self.input_size = len(grid), first.input_size
        self.takes_dt = first.takes_dt
        width = first.input_size
        for layer, cells in enumerate(grid):
            for one in cells:
                if one.input_size != width or one.takes_dt != self.takes_dt:
                    raise InputError(
                        f"{self._name}: layer {layer} has input_size={one.input_size}, "
                        f"takes_dt={one.takes_dt}; expected {width} and {self.takes_dt}"
                    )
                if dict(one.state_shapes) != dict(cells[0].state_shapes):
                    raise InputError(
                        f"{self._name}: the two directions of layer {layer} have different states"
                    )
            width = sum(one.output_size for one in cells)
        self.output_size = width
        self.cells = nn.ModuleList(nn.ModuleList(cells) for cells in grid)
        self._set_up(
            [dict(cells[0].state_shapes) for cells in grid],
            dropout={
                Kind.INPUT: options.get("dropout_in", 0.0),
                Kind.BETWEEN: options.get("dropout_between", 0.0),
                Kind.OUTPUT: options.get("dropout_out", 0.0),
            },
            residual=options.get("residual", False),
            learn_initial_state=options.get("learn_initial_state", False),
            strict=options.get("strict", False),
        )
        like = self._like()
        self._add_initial_parameters(device=like.device, dtype=like.dtype)

    def _grid(self, cell: Cell | Sequence[Cell | Sequence[Cell]], num_layers: int | None) -> list[list[Cell]]:
        dirs = self.num_directions
        if isinstance(cell, Cell):
            n_layers = 1 if num_layers is None else num_layers
            arguments.check_sizes(self._name, num_layers=n_layers)
            grid = []
            width = cell.input_size
            for layer in range(n_layers):
                row = [
                    cell if layer == direction == 0 else cell.with_input_size(width)
                    for direction in range(dirs)
                ]
                grid.append(row)
                width = sum(one.output_size for one in row)
            return grid
        rows = [[entry] if isinstance(entry, Cell) else list(entry) for entry in cell]
        if not rows or any(len(row) != dirs or not all(isinstance(one, Cell) for one in row) for row in rows):
            raise InputError(f"{self._name}: expected for each layer {dirs} Cell(s), found {cell!r}")
        if num_layers not in (None, len(rows)):
            raise InputError(
                f"{self._name}: num_layers={num_layers}, and there are cells for {len(rows)} layers"
            )
        return rows

    def _cell(self, layer: int, direction: int) -> Cell:
        return self.cells[layer][direction]  # type: ignore[index]

    def _choose(self, request: Request) -> Path:
        paths = []
        for layer in range(self.num_layers):
            for direction in range(self.num_directions):
                cell = self._cell(layer, direction)
                if isinstance(cell, GatedCell):
                    paths.append(cell.choose(request._replace(has_recurrent_dropout=False)))
                else:
                    paths.append(self._choose_for_step(cell))
        return max(paths, key=lambda path: _PATHS.index(path.path))

    def _choose_for_step(self, cell: Cell) -> Path:
        prepared = ops.prepare_program(cell, _sizes(cell), _step_of(cell), self._like())
        if not isinstance(prepared, str):
            return Path("native program", "")
        reason = f"{type(cell).__name__} is known by its step only; not 'native program': {prepared}"
        return Path("torch steps", reason, True)

    def _initial_leaves(self, layer: int, direction: int, B: int, like: Tensor) -> Leaves:
        if self._learns_initial_state:
            return super()._initial_leaves(layer, direction, B, like)
        state = self._cell(layer, direction).initial_state(B)
        return arguments.check_leaves(f"{self._name} cell", state, self._shapes[layer], B, like)

    def _run_direction(
        self, layer: int, direction: int, x: Tensor, state: Leaves, stretch: Stretch, **call: Any
    ) -> Result:
        cell = self._cell(layer, direction)
        call.pop("clock")
        whole = call.pop("path")
        is_reverse = direction == 1
        if isinstance(cell, GatedCell):
            tensors, options = cell.tensors(), cell.cell_options
            # Each cell's own: the slowest of all, which `path` reports, another kind of cell may not have.
            request = Request(stretch.resets is not None, call["return_states"], products=whole.products)
            return ops.run(
                cell.choose(request.with_call(x, is_masked=stretch.mask is not None)),
                cell.spec,
                x,
                state,
                tensors,
                options,
                stretch,
                is_reverse=is_reverse,
                noise=Noise(),
                **call,
            )

        step = _step_of(cell)
        prepared = ops.prepare_program(cell, _sizes(cell), step, x)
        if not isinstance(prepared, str):
            return ops.run_program(prepared, x, state, stretch, is_reverse=is_reverse, **call)
        return ops.run_cell(step, x, state, stretch, is_reverse=is_reverse, **call)


def _sizes(cell: Cell) -> program.CellSizes:
    return program.CellSizes(cell.input_size, cell.output_size, cell.state_shapes, cell.takes_dt)


def _step_of(cell: Cell) -> Callable[..., tuple[Tensor, Leaves]]:
    """The cell's step over plain leaves, checked."""

    def step(x_t: Tensor, leaves: Leaves, dt_t: Tensor | None) -> tuple[Tensor, Leaves]:
        y, new = cell.step(x_t, State(leaves), *(() if dt_t is None else (dt_t,)))
        if y.shape != (x_t.shape[0], cell.output_size) or set(new) != set(leaves):
            raise SizeError(
                f"{type(cell).__name__}.step returned y {tuple(y.shape)} and leaves {', '.join(new)}; "
                f"expected {(x_t.shape[0], cell.output_size)} and {', '.join(leaves)}"
            )
        return y, {name: new[name] for name in leaves}  # type: ignore[misc]

    return step
