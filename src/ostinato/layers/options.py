"""What a layer can be told beyond its sizes: names, defaults and checks, in one place."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ostinato.errors import InputError
from ostinato.kernels.backends import BACKENDS
from ostinato.kernels.reference import CellOptions, CellSpec
from ostinato.layers.dropout import check_probability

# Option -> the field of `CellOptions` that a cell must take for it.
_OF_SOME_CELLS = {
    "nonlinearity": "nonlinearity",
    "reset_after": "reset_after",
    "peephole": "peephole",
    "coupled_gates": "coupled_gates",
    "proj_size": "projection",
    "candidate": "candidate",
    "zoneout_h": "zoneout",
    "zoneout_c": "zoneout",
}
# Options about the recurrent product, which linear recurrences have not.
_OF_RECURRENT_PRODUCTS = ("dropout_recurrent", "weight_drop", "recompute")
_DROPOUTS = ("dropout_in", "dropout_between", "dropout_out", "dropout_recurrent")
_PROBABILITIES = (*_DROPOUTS, "zoneout_h", "zoneout_c", "weight_drop")
# What a single cell can be told; the rest is about stacks and about time.
CELL_OPTIONS = frozenset({*_OF_SOME_CELLS, "norm", "init", "backend"} - {"zoneout_h", "zoneout_c"})
# What torch.nn calls differently, and what to write instead.
_CURES = {
    "dropout": "dropout_between=… drops between layers, dropout_in and dropout_out around them",
    "batch_first": "layers are batch-first; torch_compatible=True takes torch's other layout",
}


@dataclass(frozen=True)
class LayerOptions:
    """Options of the built-in layers; each takes those that its cell has a use for.

    Attributes:
        norm: `layer` for layer normalisation inside the cell, None for none.
        peephole: gates see the cell state (LSTM).
        coupled_gates: f = 1 - i (LSTM).
        proj_size: width of h after a projection, 0 for none (LSTM).
        reset_after: reset gate after the recurrent product, as `torch.nn.GRU` (GRU).
        nonlinearity: `tanh` or `relu` (RNN).
        candidate: `positive` for g(v), as the paper's log-space form, or `linear` for v (MinGRU, MinLSTM).
        zoneout_h, zoneout_c: probability that a unit keeps its old value.
        dropout_in, dropout_between, dropout_out: on the input, between layers, on the output.
        dropout_recurrent: variational, on h before the recurrent product (arXiv:1512.05287).
        weight_drop: DropConnect on `weight_hh` (arXiv:1708.02182).
        residual: from the second layer on, a layer's input is added to its output.
        learn_initial_state: `initial_h` … are parameters rather than zeros.
        init: a preset or a mapping; see `initialisation.py`.
        recompute: less memory in training: what is kept for backward are outputs and cell states (on the path
            `torch steps`: inputs only), and the gates are computed again. Changes no result.
        strict: raise rather than take a path slower than the fastest there is.
        backend: `auto`, or the name of a path that must be taken.
        torch_compatible: arguments and results of `forward` as `torch.nn` has them.
        batch_first, dropout: torch's own, with `torch_compatible` only.
    """

    norm: str | None = None
    peephole: bool = False
    coupled_gates: bool = False
    proj_size: int = 0
    reset_after: bool = True
    nonlinearity: str = "tanh"
    candidate: str = "positive"
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    dropout_in: float = 0.0
    dropout_between: float = 0.0
    dropout_out: float = 0.0
    dropout_recurrent: float = 0.0
    weight_drop: float = 0.0
    residual: bool = False
    learn_initial_state: bool = False
    init: str | Mapping[str, Any] = "torch"
    recompute: bool = False
    strict: bool = False
    backend: str = "auto"
    torch_compatible: bool = False
    batch_first: bool = False
    dropout: float = 0.0

    def for_cell(self) -> CellOptions:
        """The part that the kernels see, in evaluation mode."""
        zoneout = {"h": self.zoneout_h, "c": self.zoneout_c}
        return CellOptions(
            nonlinearity=self.nonlinearity,
            reset_after=self.reset_after,
            norm=self.norm is not None,
            peephole=self.peephole,
            coupled_gates=self.coupled_gates,
            projection=self.proj_size,
            candidate=self.candidate,
            zoneout={name: probability for name, probability in zoneout.items() if probability},
        )

    def has_cell_masks(self) -> bool:
        """Whether training draws masks inside the cell."""
        return any((self.zoneout_h, self.zoneout_c, self.dropout_recurrent, self.weight_drop))

    def changed(self) -> dict[str, Any]:
        """Options that are not at their defaults."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(LayerOptions, name)}


def read_options(
    where: str,
    spec: CellSpec,
    hidden_size: int,
    given: Mapping[str, Any],
    *,
    among: Collection[str] | None = None,
) -> LayerOptions:
    """Check what a layer or a cell was given; `among` limits the options to some.

    Raises:
        InputError: an unknown name or value, with the known ones; or an option that this cell does not have.
    """
    known = [
        option.name
        for option in fields(LayerOptions)
        if _OF_SOME_CELLS.get(option.name, "norm") in spec.options
        and (option.name != "zoneout_c" or "c" in spec.leaves)
        and not (spec.is_linear and option.name in _OF_RECURRENT_PRODUCTS)
        and (among is None or option.name in among)
        and (option.name not in _CURES or given.get("torch_compatible"))
    ]
    check_known(where, given, known)
    options = LayerOptions(**given)
    for name in (*_PROBABILITIES, "dropout"):
        check_probability(f"{where}: {name}", getattr(options, name))
    check_choice(where, "norm", options.norm, (None, "layer"))
    check_choice(where, "nonlinearity", options.nonlinearity, ("tanh", "relu"))
    check_choice(where, "candidate", options.candidate, ("positive", "linear"))
    check_choice(where, "backend", options.backend, BACKENDS)
    if options.recompute and options.backend in ("torch", "reference"):
        raise InputError(
            f"{where}: backend={options.backend!r} keeps everything that backward needs; for recompute=True "
            "use 'auto', 'native' or 'torch steps'"
        )
    if not 0 <= options.proj_size < hidden_size:
        raise InputError(
            f"{where}: proj_size={options.proj_size}, expected at least 0 and below hidden_size={hidden_size}"
        )
    if options.dropout and options.dropout_between:
        raise InputError(f"{where}: dropout and dropout_between are the same thing; pass one of them")
    return options


def check_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Every given name is known.

    Raises:
        InputError: names the nearest known one, and all.
    """
    names = sorted(known)
    for name in given:
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, n=1)
        cure = _CURES.get(name) or (f"did you mean {near[0]!r}?" if near else "")
        raise InputError(f"{where}: unknown option {name!r}; {cure} known: {', '.join(names)}")


def check_choice(where: str, name: str, value: object, known: Iterable[object]) -> None:
    """The value is one of the known ones.

    Raises:
        InputError: lists them.
    """
    choices = tuple(known)
    if value not in choices:
        raise InputError(f"{where}: {name}={value!r} is unknown; known: {', '.join(map(repr, choices))}")
