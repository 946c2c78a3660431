"""Random masks from a counter-based generator: every bit is a function of what it is for.

A mask is a hash of (key, kind and layer and direction, row id, episode, absolute t, unit). It does not
depend on the batch's split or order, the chunking, the device or the backend. `t` counts a row's real steps
and `episode` its resets; variational masks leave `t` out, so they change at a reset only.

The key is (seed, optimizer step) once a training loop has called `set_mask_key`. Without that a layer draws
it from torch's generator when it makes an initial state, and the state carries it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.kernels.masks import Places, Rate
from ostinato.types import State

# Leaves that a state carries beside the cell's own while random masks are active.
CLOCK_LEAVES = ("row", "t", "episode", "key")


class Kind(IntEnum):
    """What a mask is for."""

    INPUT = 0
    BETWEEN = 1
    OUTPUT = 2
    RECURRENT = 3
    ZONEOUT_H = 4
    ZONEOUT_C = 5
    WEIGHT = 6


class MaskKey(nn.Module):
    """The part of a layer that remembers the key; without parameters or buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.value: int | None = None
        # The same value as torch.compile should see it: a number would be a part of the graph.
        self._tensor: Tensor | None = None

    def set_mask_key(self, seed: int, step: int) -> None:
        """Take the key of this seed and optimizer step; the training loop calls it before each step."""
        # splitmix64's finaliser over both numbers, in Python's exact integers.
        value = (seed * 0x9E3779B97F4A7C15 + step + 1) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ (value >> shift)) * factor % 2**64
        self._set((value ^ (value >> 31)) % 2**62)

    def reset(self) -> None:
        """Draw keys from torch's generator again."""
        self._set(None)

    def _set(self, value: int | None) -> None:
        self.value, self._tensor = value, None if value is None else torch.tensor(value)

    @property
    def is_set(self) -> bool:
        """Whether there is a key, so that none is drawn."""
        return self._tensor is not None

    def draw(self, batch_size: int, device: torch.device) -> Tensor:
        """(B,) int64: the key that was set, or a fresh one from torch's default generator."""
        # No number on the way, which would end a traced graph; nor a wait for the GPU: the key never changes.
        key = torch.randint(0, 2**62, ()) if self._tensor is None else self._tensor
        return key.to(device, non_blocking=True).expand(batch_size).clone()


def set_mask_key(module: nn.Module, seed: int, step: int) -> None:
    """Make all random masks in `module` a function of this seed and optimizer step.

    Call it before each optimizer step's forward passes; the same pair gives the same masks again, in
    any process. `reset_mask_key` returns to drawing keys from torch's generator.
    """
    for part in _keys(module):
        part.set_mask_key(seed, step)


def reset_mask_key(module: nn.Module) -> None:
    """Draw keys from torch's generator again."""
    for part in _keys(module):
        part.reset()


def _keys(module: nn.Module) -> list[MaskKey]:
    return [part for part in module.modules() if isinstance(part, MaskKey)]


@dataclass(frozen=True)
class Clock:
    """Where each step of a stretch stands: key, row (B,), t (B, T), episode (B, T or 1)."""

    key: Tensor
    row: Tensor
    t: Tensor
    episode: Tensor
    _known: dict[bool, Places] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def start(cls, state: State, mask: Tensor | None, resets: Tensor | None, n_steps: int) -> Clock:
        """Count on from the leaves that `state` carries."""
        t = state.t.unsqueeze(1)
        if mask is None:
            t = t + torch.arange(n_steps, device=t.device)
        else:
            real = mask.long()
            t = t + real.cumsum(1) - real
        episode = state.episode.unsqueeze(1)
        if resets is not None:
            episode = episode + resets.long().cumsum(1)
        return cls(state.key, state.row, t, episode)

    def end(self, state: State, mask: Tensor | None, resets: Tensor | None) -> dict[str, Tensor]:
        """The leaves after the stretch."""
        t = state.t + (self.t.shape[1] if mask is None else mask.sum(1))
        episode = state.episode if resets is None else state.episode + resets.sum(1)
        return {"row": self.row, "t": t, "episode": episode, "key": self.key}

    def flipped(self, state: State, resets: Tensor | None) -> Clock:
        """In the order in which the reverse direction works; `resets` (B, T) as it meets them."""
        episode = state.episode.unsqueeze(1)
        if resets is not None:
            episode = episode + resets.long().cumsum(1)
        return Clock(self.key, self.row, self.t.flip(1), episode)

    def keep(
        self, kind: Kind, layer: int, direction: int, width: int, probability: float, *, is_variational: bool
    ) -> Tensor:
        """(B, T, width) bool, False with `probability`; variational without resets: (B, 1, width)."""
        return self._places(is_variational).kept(_rate(kind, layer, direction, width, probability))

    def factors(
        self, kind: Kind, layer: int, direction: int, width: int, probability: float, dtype: torch.dtype
    ) -> Tensor:
        """(B, T, width): 0 with `probability`, the rest scaled to the same expectation."""
        return self._places(False).factors(_rate(kind, layer, direction, width, probability), dtype)

    def recurrent_factors(
        self, layer: int, direction: int, width: int, probability: float, dtype: torch.dtype
    ) -> Tensor:
        """Variational factors of h, (T, B, width); without resets (1, B, width)."""
        rate = _rate(Kind.RECURRENT, layer, direction, width, probability)
        return self._places(True).factors(rate, dtype, is_time_major=True)

    def stays(self, kind: Kind, layer: int, direction: int, width: int, probability: float) -> Tensor:
        """Zoneout, (T, B, width) bool: whether the old value stays, which it does with `probability`."""
        return self._places(False).dropped(_rate(kind, layer, direction, width, probability))

    def _places(self, is_variational: bool) -> Places:
        if is_variational not in self._known:
            t = torch.full_like(self.t[:, :1], -1) if is_variational else self.t
            self._known[is_variational] = Places(self.key, self.row, t, self.episode)
        return self._known[is_variational]


def _rate(kind: Kind, layer: int, direction: int, width: int, probability: float) -> Rate:
    return Rate((int(kind) * 4096 + layer) * 2 + direction, width, probability)


def drop_weight(weight: Tensor, key: Tensor, layer: int, direction: int, probability: float) -> Tensor:
    """DropConnect on a weight matrix (arXiv:1708.02182): one mask for all rows and times of a key."""
    zero = torch.zeros(1, dtype=torch.int64, device=weight.device)
    places = Places(key[:1], zero, zero.unsqueeze(1) - 1, zero.unsqueeze(1))
    rate = _rate(Kind.WEIGHT, layer, direction, weight.numel(), probability)
    return weight * places.factors(rate, weight.dtype).view_as(weight)


def check_probability(name: str, value: object) -> float:
    """A probability in [0, 1).

    Raises:
        InputError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{name}: expected a probability at least 0 and below 1, found {value!r}")
    return float(value)
