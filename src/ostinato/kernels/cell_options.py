"""What changes the equations of a cell: the part of a layer's options that the kernels see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class CellOptions:
    """What changes a cell's equations; the rest of a layer's options never reaches the kernels.

    Attributes:
        nonlinearity: `tanh` or `relu` (RNN).
        reset_after: reset gate after the recurrent product, as `torch.nn.GRU`, or before it (GRU).
        norm: layer normalisation of both products and of the LSTM's cell state (arXiv:1607.06450).
        peephole: gates see the cell state (LSTM; Gers and Schmidhuber 2000).
        coupled_gates: f = 1 - i (LSTM; arXiv:1503.04069).
        projection: width of h after `weight_hr`, 0 for none (LSTM; arXiv:1402.1128).
        candidate: `positive` or `linear` (minGRU, minLSTM).
        zoneout: leaf -> probability of keeping the old value (arXiv:1606.01305).
        training: random zoneout masks rather than their expectation.
        text: the same as words, without those at their defaults: `projection=3 zoneout.h=0.1`.
    """

    nonlinearity: str = "tanh"
    reset_after: bool = True
    norm: bool = False
    peephole: bool = False
    coupled_gates: bool = False
    projection: int = 0
    candidate: str = "positive"
    zoneout: Mapping[str, float] = field(default_factory=dict)
    training: bool = False
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Made here and not on demand: torch.compile takes numbers for variables, and makes no text of those.
        object.__setattr__(self, "text", _text(self))

    def __hash__(self) -> int:
        return hash(self.text)

    @staticmethod
    def from_text(text: str) -> CellOptions:
        """The options whose `text` this is."""
        told = dict(word.split("=") for word in text.split())
        # A word's type is its default's; of the truth values only the one that is not the default is written.
        given: dict[str, Any] = {
            name: not default if isinstance(default, bool) else type(default)(told[name])
            for name, default in _DEFAULTS.items()
            if name in told
        }
        prefix = "zoneout."
        zoneout = {name.removeprefix(prefix): float(told[name]) for name in told if name.startswith(prefix)}
        return CellOptions(**given, zoneout=zoneout)

    def for_training(self) -> CellOptions:
        """The same with random masks."""
        return replace(self, training=True)


_DEFAULTS: dict[str, Any] = {
    option.name: option.default for option in fields(CellOptions) if option.name not in ("zoneout", "text")
}


def _text(options: CellOptions) -> str:
    words = [
        f"{name}={getattr(options, name)}"
        for name, default in _DEFAULTS.items()
        if getattr(options, name) != default
    ]
    return " ".join(words + [f"zoneout.{leaf}={value!r}" for leaf, value in options.zoneout.items()])
