"""What the preparation of series remembers between two steps, and what it leaves behind at every step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.smoothing import Floats, SmoothingState

_OWN = ("last", "mean", "spread", "recent", "floor")


@dataclass
class PreparedState:
    """What the preparation remembers of each row between two steps."""

    smoothing: SmoothingState
    last: Floats
    mean: Floats
    spread: Floats
    recent: Floats
    floor: Floats

    @property
    def scale(self) -> Floats:
        """The running one-step error of the smoothing filter: the unit of what the network sees and says."""
        return self.positive(self.smoothing.scale)

    def positive(self, scale: Floats) -> Floats:
        """A scale that can be divided by, also for a constant row: at least the floor of its preparation."""
        return np.maximum(scale, np.maximum(1e-9 * np.abs(self.mean), self.floor))

    def select(self, rows: NDArray[np.intp]) -> PreparedState:
        """A copy of some rows; rows may repeat."""
        return PreparedState(
            smoothing=self.smoothing.select(rows),
            last=self.last[rows],
            mean=self.mean[rows],
            spread=self.spread[rows],
            recent=self.recent[rows],
            floor=self.floor[rows],
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays, for storage."""
        named: dict[str, NDArray[Any]] = {}
        for f in fields(self.smoothing):
            value = getattr(self.smoothing, f.name)
            if isinstance(value, list):
                named |= {f"smoothing.{f.name}{i}": part for i, part in enumerate(value)}
            else:
                named[f"smoothing.{f.name}"] = value
        return named | {name: getattr(self, name) for name in _OWN}

    @staticmethod
    def from_arrays(named: dict[str, NDArray[Any]]) -> PreparedState:
        """The inverse of `arrays`."""
        n = sum(name.startswith("smoothing.season") for name in named)
        single = {
            f.name: named[f"smoothing.{f.name}"]
            for f in fields(SmoothingState)
            if f.name not in ("season", "visits")
        }
        smoothing = SmoothingState(
            **single,
            season=[named[f"smoothing.season{i}"] for i in range(n)],
            visits=[named[f"smoothing.visits{i}"] for i in range(n)],
        )
        return PreparedState(smoothing, *(named[name] for name in _OWN))


@dataclass
class History:
    """The preparation of whole rows: what `advance` left at every step. Arrays are (rows, T)."""

    filled: Floats
    scale: Floats
    level: Floats
    trend: Floats
    residual: Floats
    seasonal: list[Floats]
    features: NDArray[np.float32]
    state: PreparedState
