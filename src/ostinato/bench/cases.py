"""What is measured: cases, the grids they form, and the numbers that every contestant of a case is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.errors import InputError
from ostinato.layers.gated import GRU, LSTM, RNN, GatedStack
from ostinato.layers.linear import RGLRU, MinGRU, MinLSTM
from ostinato.layers.options import LayerOptions

Array = NDArray[Any]

CELLS: dict[str, type[GatedStack]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
# The diagonal recurrence by itself, which is no layer, and cells as users write them.
SCAN = "scan"
OWN_CELLS = ("own indrnn", "own lstm")
LINEAR_CELLS: dict[str, type[GatedStack]] = {"mingru": MinGRU, "minlstm": MinLSTM, "rglru": RGLRU}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
MODES = ("inference", "training", "step")
# Heights and batches of the table in docs/speed.md.
SIZES = (
    (32, 1), (32, 8), (32, 32), (64, 1), (64, 8), (64, 32), (64, 128), (128, 1), (128, 32), (128, 128),
    (256, 1), (256, 32), (512, 1), (512, 32), (512, 128),
)  # fmt: skip
QUICK_SIZES = ((32, 1), (64, 8), (128, 32), (512, 1))
SEED = 20261122


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        grid: the table that it stands in.
        cell: `lstm`, `gru`, `rnn` (tanh), one of `LINEAR_CELLS`, `SCAN`, or one of `OWN_CELLS`.
        mode: `inference`; `training`: forward and backward with gradients of x, the initial state and all
            parameters; `step`: one tick of one row.
        H, B, T, D: hidden size, rows, steps, input size.
        layers, is_bidirectional: the stack.
        is_ragged: lengths are drawn evenly from 1 … T.
        options: of our layer, as (name, value).
        tag: what tells the case from others of its grid with the same sizes.
    """

    grid: str
    cell: str
    mode: str
    H: int
    B: int
    T: int
    D: int
    layers: int = 1
    is_bidirectional: bool = False
    is_ragged: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    tag: str = ""

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.is_bidirectional else 1

    @property
    def is_plain(self) -> bool:
        """One layer, one direction, dense, without options."""
        return not (self.layers > 1 or self.is_bidirectional or self.is_ragged or self.options)

    @property
    def label(self) -> str:
        """One line for progress and messages."""
        size = f"H={self.H} B={self.B}" + (f" T={self.T}" if self.mode != "step" else "")
        width = "" if self.D == self.H else f" D={self.D}"
        return f"{self.cell} {self.mode} {size}{width}" + (f" {self.tag}" if self.tag else "")

    def flops(self, n_steps: int | None = None) -> float:
        """Of the products alone, 2·G·H·(D + H) a step and row; backward counts twice the forward.

        Args:
            n_steps: steps over all rows; B·T by default.
        """
        options = dict(self.options)
        gates = GATES[self.cell] - bool(options.get("coupled_gates"))
        P = options.get("proj_size") or self.H
        total = 0.0
        for layer in range(self.layers):
            D = P * self.directions if layer else self.D
            per_step = 2 * gates * self.H * (D + P) + (2 * self.H * P if "proj_size" in options else 0)
            total += per_step * self.directions
        total *= self.B * self.T if n_steps is None else n_steps
        return total * (3 if self.mode == "training" else 1)

    def make_layer(self, dtype: torch.dtype = torch.float32) -> GatedStack:
        """Our layer of this case, with parameters as torch draws them."""
        layer = (CELLS | LINEAR_CELLS)[self.cell](
            self.D,
            self.H,
            self.layers,
            bidirectional=self.is_bidirectional,
            dtype=dtype,
            **dict(self.options),
        )
        return layer.train(self.mode == "training")


@dataclass(frozen=True)
class Problem:
    """A case and its numbers, float32, in torch's forms.

    Attributes:
        case: what is computed.
        parameters: under torch's names.
        x: (B, T, D).
        state: leaf -> (L·dirs, B, ·), not zero.
        d_y: (B, T, ·), the gradient that arrives at y.
        d_state: leaf -> (L·dirs, B, ·), the gradient that arrives at the final state.
        lengths: (B,) int64, or None.
    """

    case: Case
    parameters: dict[str, Array]
    x: Array
    state: dict[str, Array]
    d_y: Array
    d_state: dict[str, Array]
    lengths: Array | None = None

    @classmethod
    def draw(cls, case: Case, seed: int = SEED) -> Problem:
        """Random numbers; the same seed gives the same ones."""
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32)

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            layer = case.make_layer()
        parameters = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        for name, value in parameters.items():
            if "norm" in name:
                # Ones and zeros would hide an error; a recurrent scale near 1 makes an LSTM chaotic, so that
                # no two orders of summation agree after 100 steps.
                scale = np.float32(0.5 if "norm_hh" in name else 1.0)
                parameters[name] = scale * value + 0.1 * normal(*value.shape)
        rows = case.layers * case.directions
        width = {
            name: shape[0] for name, shape in layer.spec.state_sizes(case.H, layer._cell_options).items()
        }
        lengths = rng.integers(1, case.T + 1, size=case.B) if case.is_ragged else None
        return cls(
            case,
            parameters,
            normal(case.B, case.T, case.D),
            {name: 0.5 * normal(rows, case.B, size) for name, size in width.items()},
            normal(case.B, case.T, layer.output_size),
            {name: normal(rows, case.B, size) for name, size in width.items()},
            lengths,
        )

    @property
    def n_steps(self) -> int:
        """Real steps over all rows."""
        return self.case.B * self.case.T if self.lengths is None else int(self.lengths.sum())


@dataclass(frozen=True)
class Grid:
    """A table of cases.

    Attributes:
        name: as `--only` takes it.
        title: of the table.
        cases: all, and
        quick: those of a quick run.
        kind: how it is measured: `peers` against other packages; `options` against our plain cell and a loop
            of operators; `custom`, a user's cells likewise; `scans` of linear recurrences against operators
            and a copy; `recompute`, `load`, `alternating` as `situations.py` says.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    quick: tuple[Case, ...]
    kind: str = "peers"


def _sequences(sizes: Iterable[tuple[int, int]]) -> tuple[Case, ...]:
    return tuple(
        Case("sequences", cell, mode, H, B, 100, H)
        for mode in ("inference", "training")
        for cell in CELLS
        for H, B in sizes
    )


def _steps(sizes: Iterable[int]) -> tuple[Case, ...]:
    return tuple(Case("steps", cell, "step", H, 1, 1, H) for cell in CELLS for H in sizes)


def _odd(sizes: Iterable[tuple[int, int, int]]) -> tuple[Case, ...]:
    return tuple(
        Case("odd", cell, mode, H, B, 100, D)
        for mode in ("inference", "training")
        for cell in CELLS
        for H, B, D in sizes
    )


def _ragged(sizes: Iterable[tuple[int, int, int]]) -> tuple[Case, ...]:
    return tuple(
        Case("ragged", cell, mode, H, B, T, H, is_ragged=True)
        for mode in ("inference", "training")
        for cell in CELLS
        for H, B, T in sizes
    )


def _stacks(sizes: Iterable[tuple[int, int]]) -> tuple[Case, ...]:
    kinds = ((2, False, "2 layers"), (1, True, "both directions"), (2, True, "2 layers, both directions"))
    return tuple(
        Case("stacks", cell, mode, H, B, 100, H, layers, is_bidirectional, tag=tag)
        for mode in ("inference", "training")
        for cell in ("lstm", "gru")
        for H, B in sizes
        for layers, is_bidirectional, tag in kinds
    )


_NOISES: dict[str, dict[str, Any]] = {
    "zoneout": {"zoneout_h": 0.1},
    "variational dropout": {"dropout_recurrent": 0.2},
    "weight drop": {"weight_drop": 0.3},
}
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "lstm": {
        "layer norm": {"norm": "layer"},
        "peephole": {"peephole": True},
        "coupled gates": {"coupled_gates": True},
        "projection": {"proj_size": 0},  # half of H
        **_NOISES,
        "zoneout": {"zoneout_h": 0.1, "zoneout_c": 0.1},
    },
    "gru": {"layer norm": {"norm": "layer"}, "reset before": {"reset_after": False}, **_NOISES},
    "rnn": {"layer norm": {"norm": "layer"}, **_NOISES},
}
_IN_TRAINING_ONLY = frozenset(_NOISES)


def _options(sizes: Iterable[tuple[int, int]], cells: Iterable[str]) -> tuple[Case, ...]:
    cases = []
    for mode in ("training", "inference"):
        for cell in cells:
            for tag, options in _VARIANTS[cell].items():
                if mode == "inference" and tag in _IN_TRAINING_ONLY:
                    continue
                for H, B in sizes:
                    chosen = {"proj_size": H // 2} if "proj_size" in options else options
                    cases.append(
                        Case("options", cell, mode, H, B, 100, H, options=tuple(chosen.items()), tag=tag)
                    )
    return tuple(cases)


def _situation(
    grid: str, sizes: Iterable[tuple[int, int, int]], cells: Iterable[str], modes: Iterable[str]
) -> tuple[Case, ...]:
    return tuple(Case(grid, cell, mode, H, B, T, H) for mode in modes for cell in cells for H, B, T in sizes)


_BOTH = ("inference", "training")
GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("sequences", "Sequences of 100 steps, D = H", _sequences(SIZES), _sequences(QUICK_SIZES)),
        Grid(
            "steps",
            "Single steps from Python, B = 1",
            _steps((32, 64, 128, 256, 512)),
            _steps((32, 128, 512)),
        ),
        Grid(
            "odd",
            "Sizes that are no multiples of anything, T = 100",
            _odd(((33, 5, 33), (100, 1, 7), (130, 32, 40), (250, 3, 1))),
            _odd(((33, 5, 33),)),
        ),
        Grid(
            "ragged",
            "Lengths drawn from 1 … T, D = H; torch packed",
            _ragged(((64, 8, 100), (128, 32, 200), (256, 32, 200))),
            _ragged(((128, 32, 200),)),
        ),
        Grid(
            "stacks",
            "Stacked and bidirectional, T = 100",
            _stacks(((64, 8), (128, 32))),
            _stacks(((64, 8),)),
        ),
        Grid(
            "options",
            "Options inside the cell, T = 100",
            _options(((64, 8), (128, 32)), CELLS),
            _options(((64, 8),), ("lstm",)),
            "options",
        ),
        Grid(
            "custom",
            "Cells as users write them, T = 100",
            _situation("custom", ((64, 8, 100), (128, 32, 100)), OWN_CELLS, _BOTH),
            _situation("custom", ((64, 8, 100),), OWN_CELLS, _BOTH),
            "custom",
        ),
        Grid(
            "scans",
            "Linear recurrences, D = H",
            _situation("scans", ((64, 8, 1000),), (SCAN, *LINEAR_CELLS), _BOTH)
            + _situation("scans", ((256, 8, 4096),), (SCAN, "mingru"), _BOTH),
            _situation("scans", ((64, 8, 1000),), (SCAN, "mingru"), _BOTH),
            "scans",
        ),
        Grid(
            "recompute",
            "Memory mode: gates recomputed in backward",
            _situation("recompute", ((128, 32, 1000), (256, 32, 500)), ("lstm", "gru"), ("training",)),
            _situation("recompute", ((128, 32, 200),), ("lstm",), ("training",)),
            "recompute",
        ),
        Grid(
            "load",
            "One busy foreign process on each core",
            _situation("load", ((64, 8, 100), (128, 32, 100)), ("lstm", "gru"), _BOTH),
            _situation("load", ((64, 8, 100),), ("lstm",), ("training",)),
            "load",
        ),
        Grid(
            "alternating",
            "A torch operator between two calls, whose threads still spin",
            _situation("alternating", ((64, 8, 100), (128, 32, 100), (256, 1, 100)), ("lstm", "gru"), _BOTH),
            _situation("alternating", ((64, 8, 100),), ("lstm",), _BOTH),
            "alternating",
        ),
    )
}


def choose_grids(only: Iterable[str] | None) -> list[Grid]:
    """The grids of these names, in their order; all of them for None.

    Raises:
        InputError: an unknown name.
    """
    wanted = list(GRIDS) if only is None else list(only)
    for name in wanted:
        if name not in GRIDS:
            raise InputError(f"--only {name}: unknown grid; known: {', '.join(GRIDS)}")
    return [grid for name, grid in GRIDS.items() if name in wanted]


def has_option(name: str) -> bool:
    """Whether the layers take an option of this name."""
    return any(option.name == name for option in fields(LayerOptions))
