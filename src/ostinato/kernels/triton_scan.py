"""The linear recurrences of `scan.py` on an NVIDIA GPU, in Triton kernels that read and write memory once.

Memory is what bounds a scan: three to seven numbers move for one multiply-add. A copy of as many bytes is
the mark, so neither keep and add nor anything else between the gates and y is ever stored, forward or
backward, and backward computes the gates again. Sums are float32, whatever the inputs are.

Which way the states travel is a matter of size (`plan`). A GPU needs some ten thousand numbers in flight on
each of its processors. Where rows × units alone make many programs for each processor, a program walks
along the tiles of its units, and the state stays in registers. Else (8 rows of 256 units are 64 programs)
time is cut too: every tile is a program, and decoupled look-back tells it the state before it. The other
ways to cut time move more: what each chunk does, then the states between chunks, then the chunks once more
are five arrays instead of three for keep and add. Look-back takes 16 bytes for each unit and chunk, below
one part in fifty of what moves, and one launch that clears them; they belong to the call, so streams and
CUDA graphs need no care.

Either way a segment of a tile (`triton_scan_kernels.py`) is a loop of multiply-adds as in the equations;
the state that enters it comes from joined stretches, so outputs differ from a loop's by a few roundings.
They do not depend on timing: the same call gives the same bits. Where the coefficients of a stretch
multiply to more than float32 holds, a state entering it that is not zero becomes infinite, however small it
is.

Importing this file does not import Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ostinato.kernels import gpu_choice
from ostinato.kernels.triton_plan import FUSED

if TYPE_CHECKING:
    from ostinato.kernels.scan import Given, Rule

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Programs for each processor from which on a program walks along time: with fewer, the last ones, which run
# alone, or those that are missing, cost more than look-back does.
_MANY_PROGRAMS = 16
# Of a thread: three programs of four warps on each processor, so that one computes while others load.
MOST_REGISTERS = 168
_BLOCK_OF_SOURCES = 1024


class Tile(NamedTuple):
    """What one program holds in registers: R steps of each of S segments of HB units.

    W: how many chunks a program looks back at once.
    """

    R: int
    S: int
    HB: int
    W: int = 8
    warps: int = 4

    @property
    def steps(self) -> int:
        """Steps of a chunk."""
        return self.R * self.S


class Plan(NamedTuple):
    """How a pass runs: its tile, and whether states travel by look-back."""

    tile: Tile
    looks_back: bool


def obstacle(like: Tensor) -> str | None:
    """What keeps these kernels from tensors like this one; None: nothing."""
    found = gpu_choice.device_obstacle(like)
    if found is None and like.dtype not in _DTYPES:
        return f"the Triton scan computes in float32, not in {str(like.dtype)[6:]}"
    return found


def plan(given: Given, H: int, *, is_backward: bool, n_processors: int | None = None) -> Plan:
    """The tile and the way for this size, from shapes and dtypes alone."""
    B, T = given.inputs[0].shape[:2]
    is_wide = max(value.element_size() for value in given.inputs) == 4
    # A thread loads 16 bytes at once: 4 units, or 8 of 16 bits. R is what `MOST_REGISTERS` can hold.
    R, HB = (8, 32) if is_wide else (4, 64)
    if is_backward or given.inputs[0].shape[2] > 2 * H:
        R //= 2
    S = 16
    while R > 1 and S * R >= 2 * T:
        R //= 2
    n_chains = B * -(-H // HB)
    walks = S * R >= T or n_chains >= _MANY_PROGRAMS * (n_processors or _n_processors(given.start.device))
    if walks and is_backward and given.inputs[0].shape[2] > 2 * H:
        R = max(1, R // 2)
    return Plan(Tile(R, S, HB), not walks)


@lru_cache(maxsize=64)
def _n_processors(device: torch.device) -> int:
    # The CPU interprets the kernels in tests.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class _Shape(NamedTuple):
    """Sizes as the kernels take them."""

    B: int
    T: int
    H: int
    n_chunks: int
    n_blocks: int
    n_chains: int
    n_words: int

    @classmethod
    def of(cls, given: Given, how: Plan) -> _Shape:
        B, T = given.inputs[0].shape[:2]
        H = given.start.shape[1]
        n_blocks = -(-H // how.tile.HB)
        n_chunks = -(-T // how.tile.steps)
        return cls(B, T, H, n_chunks, n_blocks, B * n_blocks, n_chunks * B * n_blocks * how.tile.HB)

    def grid(self, how: Plan) -> tuple[int]:
        return (self.n_chains * self.n_chunks if how.looks_back else self.n_chains,)

    def words(self, how: Plan, like: Tensor) -> Tensor | None:
        """Whose turn it is, then what chunks tell of themselves and of the state after them; all empty."""
        if not how.looks_back:
            return None
        return torch.full((1 + 2 * self.n_words,), -1, dtype=torch.int64, device=like.device)


def forward(rule: Rule, given: Given, how: Plan | None = None) -> tuple[Tensor, Tensor]:
    """y (B, T, H) in the dtype of the inputs and the final state (B, H) in that of the start.

    `given` holds at least one number; `how` overrides the choice of `plan`.
    """
    from ostinato.kernels.triton_scan_kernels import forward_kernel

    how = how or plan(given, given.start.shape[1], is_backward=False)
    shape = _Shape.of(given, how)
    inputs, start, initial, mask, resets = _readable(given)
    y = inputs[0].new_empty(shape.B, shape.T, shape.H)
    final = torch.empty_like(start, memory_format=torch.contiguous_format)
    forward_kernel[shape.grid(how)](
        inputs[0], inputs[-1], given.decay, start, initial, mask, resets, y, final, shape.words(how, start),
        *shape[1:], *inputs[0].stride(), *inputs[-1].stride(), *_row_strides(start, initial),
        **constants(rule, how), num_warps=how.tile.warps, maxnreg=MOST_REGISTERS, **FUSED,
    )  # fmt: skip
    return y, final


def backward(
    rule: Rule,
    given: Given,
    wanted: Sequence[bool],
    y: Tensor,
    grads: Sequence[Tensor | None],
    how: Plan | None = None,
) -> list[Tensor | None]:
    """Gradients of what is differentiable, in that order, from those of y and of the final state."""
    from ostinato.kernels.triton_scan_kernels import backward_kernel

    how = how or plan(given, given.start.shape[1], is_backward=True)
    shape = _Shape.of(given, how)
    inputs, start, initial, mask, resets = _readable(given)
    d_y = None if grads[0] is None else _with_readable_units(grads[0])
    d_final = grads[1]
    d_inputs = [
        value.new_empty(value.shape) if is_wanted else None
        for value, is_wanted in zip(inputs, wanted, strict=False)
    ]
    d_start = torch.empty_like(start, memory_format=torch.contiguous_format)
    n_sums = shape.n_chunks if how.looks_back else 1
    d_initial, d_rate = (
        None if value is None else start.new_empty((n_sums, shape.B, shape.H), dtype=torch.float32)
        for value in (None if resets is None else initial, given.decay)
    )
    # The kernel's second gradient is that of add; of a cell all gates are in one array.
    d_add = d_inputs[1] if rule.gates == "linear" else None
    backward_kernel[shape.grid(how)](
        inputs[0], given.decay, start, initial, mask, resets, _sources(rule, mask, resets), y.contiguous(),
        d_y, d_final, shape.words(how, start), d_inputs[0], d_add, d_start, d_initial, d_rate,
        *shape[1:], *inputs[0].stride(), *_row_strides(start, initial),
        *((0, 0, 0) if d_y is None else d_y.stride()), *((0, 0) if d_final is None else d_final.stride()),
        **constants(rule, how), num_warps=how.tile.warps, maxnreg=MOST_REGISTERS, **FUSED,
    )  # fmt: skip
    d_decay = None
    if given.decay is not None and d_rate is not None:
        d_decay = (-8 * torch.sigmoid(-given.decay.float()) * d_rate.sum((0, 1))).to(given.decay.dtype)
    return [*d_inputs, d_start, d_decay, _summed(d_initial, given.initial)]


def constants(rule: Rule, how: Plan) -> dict[str, Any]:
    """What the kernels are compiled for."""
    tile = how.tile
    n_gates = 1 if rule.gates == "linear" else rule.cell[0].gates
    return {
        "GATES": rule.gates, "N_GATES": n_gates, "IS_REVERSE": rule.is_reverse, "CARRIES": rule.carries,
        "R": tile.R, "S": tile.S, "HB": tile.HB, "WINDOW": tile.W,
    }  # fmt: skip


def _summed(parts: Tensor | None, like: Tensor | None) -> Tensor | None:
    if like is None:
        return None
    return torch.zeros_like(like) if parts is None else parts.sum(0).to(like.dtype)


def _readable(
    given: Given,
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """inputs, start, initial, mask and resets as the kernels read them."""
    inputs = [_with_readable_units(value) for value in given.inputs]
    start = _with_contiguous_units(given.start)
    initial = None if given.initial is None or given.resets is None else _with_contiguous_units(given.initial)
    mask, resets = (
        None if value is None else value.contiguous().view(torch.uint8)
        for value in (given.mask, given.resets)
    )
    return inputs, start, initial, mask, None if initial is None else resets


def _with_readable_units(value: Tensor) -> Tensor:
    # Units apart in memory cost a sector each; a copy is cheaper. One number for all of them is not.
    return value if value.stride(-1) in (0, 1) or value.shape[-1] == 1 else value.contiguous()


def _with_contiguous_units(value: Tensor) -> Tensor:
    return value if value.stride(-1) == 1 or value.shape[-1] == 1 else value.contiguous()


def _row_strides(start: Tensor, initial: Tensor | None) -> tuple[int, int]:
    return start.stride(0), 0 if initial is None else initial.stride(0)


def _sources(rule: Rule, mask: Tensor | None, resets: Tensor | None) -> Tensor | None:
    """Where in y the state before each step stands (`sources_kernel`); None: at the step before."""
    if mask is None or rule.carries:
        return None
    from ostinato.kernels.triton_scan_kernels import sources_kernel

    B, T = mask.shape
    sources = torch.empty((B, T), dtype=torch.int64, device=mask.device)
    sources_kernel[(B,)](
        mask,
        resets,
        sources,
        T,
        IS_REVERSE=rule.is_reverse,
        BLOCK=_BLOCK_OF_SOURCES,
        num_warps=4,
        **FUSED,
    )
    return sources
