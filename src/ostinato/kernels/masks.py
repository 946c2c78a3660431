"""Random masks: a hash of what an element is for, natively on a CPU and by torch's operators elsewhere.

An element is dropped where the hash of (key, row, episode, t, stream, unit) is below a threshold. It depends
on nothing else, so that every split, order, device and path draws the same masks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ostinato.kernels.native_module import extension as _native
from ostinato.kernels.tracing import is_traced

_WORD = 0xFFFFFFFF
_ELEMENT_BYTES = {torch.bool: 1, torch.float32: 4, torch.float64: 8}


class Rate(NamedTuple):
    """A mask's `stream` (what it is for, below 2^31), `width` in units, `probability` of being dropped."""

    stream: int
    width: int
    probability: float


class Places:
    """What has masks, in int64: key and row (B,), t and episode (B, T), or (B, 1) for one of all times."""

    def __init__(self, key: Tensor, row: Tensor, t: Tensor, episode: Tensor):
        self.key, self.row, self.t, self.episode = key, row, t, episode
        self._words: tuple[Tensor, Tensor] | None = None

    def kept(self, rate: Rate) -> Tensor:
        """(B, T, width) bool, False with the probability."""
        if self._is_native(torch.bool):
            return self._draw(rate, torch.bool, 0, 1, is_time_major=False)
        return self._kept_by_operators(rate)

    def dropped(self, rate: Rate) -> Tensor:
        """(T, B, width) bool, True with the probability."""
        if self._is_native(torch.bool):
            return self._draw(rate, torch.bool, 1, 0, is_time_major=True).transpose(0, 1)
        return ~self._kept_by_operators(rate).transpose(0, 1)

    def factors(self, rate: Rate, dtype: torch.dtype, *, is_time_major: bool = False) -> Tensor:
        """(B, T, width), or (T, B, width): 0 with the probability, else what keeps the expectation."""
        if self._is_native(dtype):
            kept = _kept_factor(rate.probability, dtype)
            mask = self._draw(rate, dtype, 0, kept, is_time_major=is_time_major)
        else:
            mask = self._kept_by_operators(rate).to(dtype) / (1 - rate.probability)
        return mask.transpose(0, 1) if is_time_major else mask

    def _is_native(self, dtype: torch.dtype) -> bool:
        return (
            _native is not None
            and dtype in _ELEMENT_BYTES
            and self.key.device.type == "cpu"
            and not is_traced(self.key, self.t)
            and not torch._C._are_functorch_transforms_active()
        )

    def _draw(
        self, rate: Rate, dtype: torch.dtype, dropped: float, kept: float, *, is_time_major: bool
    ) -> Tensor:
        """(B, T, width), in memory (T, B, width) where it is time-major."""
        B, T = self.key.shape[0], self.t.shape[1]
        T = self.episode.shape[1] if T == 1 else T
        if is_time_major:
            mask = torch.empty(T, B, rate.width, dtype=dtype).transpose(0, 1)
        else:
            mask = torch.empty(B, T, rate.width, dtype=dtype)
        _native.draw_masks(
            (B, T, rate.width),
            (_column(self.key), _column(self.row), _numbers(self.t), _numbers(self.episode)),
            rate.stream, round(rate.probability * 2**32),
            (mask.data_ptr(), mask.stride(0), mask.stride(1)), _ELEMENT_BYTES[dtype], dropped, kept,
        )  # fmt: skip
        return mask

    def _kept_by_operators(self, rate: Rate) -> Tensor:
        one, other = self._two_words()
        units = torch.arange(rate.width, dtype=torch.int64, device=self.key.device)
        units = _absorb(torch.full_like(units, 0x632BE5AB ^ rate.stream), units)
        return _mix(_mix(one ^ units) ^ other) >= round(rate.probability * 2**32)

    def _two_words(self) -> tuple[Tensor, Tensor]:
        """Two words for each place, (B, T, 1): with one, 2^16 pairs would begin to share masks."""
        if self._words is None:
            self._words = self._hash(0x2545F491), self._hash(0x6C8E9CF5)
        return self._words

    def _hash(self, salt: int) -> Tensor:
        seed = _absorb(torch.full_like(self.key, salt), self.key)
        seed = _absorb(seed, self.row).unsqueeze(1)
        return _absorb(_absorb(seed, self.episode), self.t).unsqueeze(2)


def _column(numbers: Tensor) -> tuple[int, int, int]:
    """Of (B,): address and strides of rows and times, as the native module takes them."""
    return numbers.data_ptr(), numbers.stride(0), 0


def _numbers(numbers: Tensor) -> tuple[int, int, int]:
    """The same of (B, T), or of (B, 1) for all times."""
    return numbers.data_ptr(), numbers.stride(0), numbers.stride(1) if numbers.shape[1] > 1 else 0


@lru_cache(maxsize=64)
def _kept_factor(probability: float, dtype: torch.dtype) -> float:
    """1 / (1 - probability), rounded as torch's division does."""
    return float(torch.ones((), dtype=dtype) / (1 - probability))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words with good avalanche (T. Wang and C. Wellons' family of integer hashes).

    Words sit in int64: both factors are below 2^31, so that no product overflows on any device.
    """
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)


def _absorb(seed: Tensor, value: Tensor) -> Tensor:
    """Hash both words of int64 `value` into the words `seed`."""
    low = _mix((seed ^ (value & _WORD)) + 0x9E3779B9 & _WORD)
    return _mix(low ^ ((value >> 32) & _WORD))
