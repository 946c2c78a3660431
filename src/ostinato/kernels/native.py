"""The path `native`: one direction of one layer of RNN, LSTM or GRU in our own C++ kernels, on a CPU.

This file turns tensors into addresses. What the kernels compute, and every buffer's shape, is in
`native/recurrence.h`; how a call is differentiated and traced, in `operators.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.kernels import packed_weights
from ostinato.kernels.native_module import MISSING as _MISSING
from ostinato.kernels.native_module import extension as _native
from ostinato.kernels.reference import CellOptions
from ostinato.kernels.task import Arguments, Task, Upstream

_DTYPES = (torch.float32, torch.float64)


def _task_obstacle(task: Task) -> str | None:
    if task.cell not in packed_weights.CELL_NUMBERS:
        return f"there is no native kernel of the cell {task.cell!r}"
    if task.is_both:
        return "the native kernels run one direction at a time"
    if task.keeps == "outputs" and not _is_plain(task.options):
        return "gates are recomputed for cells without options only"
    return None


def _is_plain(options: CellOptions) -> bool:
    changed = (options.norm, options.peephole, options.coupled_gates, options.projection, options.zoneout)
    return options.reset_after and not any(changed)


def obstacle(task: Task, like: Tensor) -> str | None:
    """What keeps the kernels from this task on tensors like this one; None: nothing."""
    if _native is None:
        return _MISSING
    if like.device.type != "cpu":
        return f"the native kernels run on the CPU, not on {like.device.type}"
    if like.dtype not in _DTYPES:
        return f"the native kernels compute in float32 and float64, not in {like.dtype}"
    return _task_obstacle(task)


@lru_cache(maxsize=256)
def _dense_schedule(B: int, T: int, is_reverse: bool) -> Any:
    return _native.Schedule(B, T, 0, 0, is_reverse)


def _schedule(task: Task, B: int, T: int, mask: Tensor | None, resets: Tensor | None) -> Any:
    if mask is None and resets is None:
        return _dense_schedule(B, T, task.is_reverse)
    mask = None if mask is None else mask.contiguous()
    resets = None if resets is None else resets.contiguous()
    return _native.Schedule(B, T, _address(mask), _address(resets), task.is_reverse)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [one if one is None or one.is_contiguous() else one.contiguous() for one in tensors]


def _two(leaves: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """(h, c), None where there is none."""
    return (leaves[0] if leaves else None), (leaves[1] if len(leaves) > 1 else None)


def _inputs(given: Arguments) -> tuple[list[int], list[Any]]:
    """What the kernels read, as addresses and strides; and the tensors that must live as long as the call."""
    x = given.x
    strides = x.stride()
    # One column may have any stride.
    if strides[2] != 1 and x.shape[2] != 1:
        x = x.contiguous()
        strides = x.stride()
    state = _contiguous(given.state)
    found = [x.data_ptr(), strides[0], strides[1], *_two_addresses(state)]
    if given.resets is None and all([one is None for one in given.noise]):
        return [*found, 0, 0, 0, 0, 0, 0], [x, state]
    initial, noise = _contiguous(given.initial), _contiguous(given.noise)
    recurrent, zoneout_h, zoneout_c = noise
    step = 0 if recurrent is None or len(recurrent) == 1 else recurrent.stride(0)
    found += [*_two_addresses(initial), _address(recurrent), step, _address(zoneout_h), _address(zoneout_c)]
    return found, [x, state, initial, noise]


def _two_addresses(leaves: Sequence[Tensor | None]) -> tuple[int, int]:
    h, c = _two(leaves)
    return _address(h), _address(c)


def saved_shapes(
    task: Task, B: int, T: int, D: int, H: int, dtype: torch.dtype
) -> list[tuple[tuple[int, int], torch.dtype]]:
    """Shapes and dtypes of what forward saves, for B·T steps whether or not all are real."""
    if task.keeps == "nothing":
        return []
    layer = packed_weights.layer_of(task, D, H, dtype)
    shapes = [((B * T, layer.saved_width), dtype)] if task.keeps == "gates" else []
    if layer.saved_cells:
        shapes.append(((B * T, layer.saved_cells), dtype))
    return shapes


def _saved_pair(task: Task, saved: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(gates, c before each step)."""
    if task.keeps == "gates":
        return saved[0], (saved[1] if len(saved) > 1 else None)
    return None, (saved[0] if saved else None)


def _is_plain_call(task: Task, given: Arguments) -> bool:
    """Whether the native code can take tensors as they are: nothing masked, reset or random."""
    if given.mask is not None or given.resets is not None or given.x.numel() == 0:
        return False
    if task.returns_cells or task.keeps == "outputs" or not packed_weights.SEES_TENSORS:
        return False
    return all([one is None for one in given.noise])


def forward(task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """Run over x (B, T, D).

    Returns:
        y (B, T, P), the final leaves as the given ones, and the cell states (B, T, H) where the task returns
        them; and what backward needs, in the shapes of `saved_shapes`.
    """
    x, state, initial, weights, mask, resets, _ = given
    B, T, D = x.shape
    packed = packed_weights.packed(task, x, weights)
    if _is_plain_call(task, given):
        found = _native.forward_tensors(
            packed.layer, packed.forward, _dense_schedule(B, T, task.is_reverse), x, *_two(state),
            task.keeps == "gates", torch.get_num_threads(),
        )  # fmt: skip
        if found is not None:
            return found[0], found[1]
    if resets is not None and not initial:
        raise InputError("resets: expected the state after a reset in `initial`, found none")
    addresses, held = _inputs(given)
    # Steps that are not real are not written.
    y = (torch.empty if mask is None else torch.zeros)(B, T, packed.P, dtype=x.dtype)
    final = [torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in state]
    outputs = [y, *final]
    if task.returns_cells:
        outputs.append(x.new_empty(B, T, packed.H) if mask is None else x.new_zeros(B, T, packed.H))
    saved: list[Tensor] = []
    if task.keeps != "nothing":
        shapes = saved_shapes(task, B, T, D, packed.H, x.dtype)
        saved = [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]
    gates, c_before = _saved_pair(task, saved)
    packed.layer.forward(
        packed.forward, _schedule(task, B, T, mask, resets), addresses,
        [y.data_ptr(), *_two_addresses(final), outputs[-1].data_ptr() if task.returns_cells else 0,
         _address(gates), _address(c_before)],
        torch.get_num_threads(),
    )  # fmt: skip
    del held
    return outputs, saved


def backward(
    task: Task,
    given: Arguments,
    saved: Sequence[Tensor],
    y: Tensor,
    upstream: Upstream,
    *,
    wants_x: bool = True,
    wants_weights: bool = True,
) -> tuple[Tensor | None, list[Tensor], list[Tensor], list[Tensor | None]]:
    """Gradients of x, state, initial and weights from those of the outputs. Writes over `saved`."""
    x, state, initial, weights, mask, resets, _ = given
    B, T, D = x.shape
    packed = packed_weights.packed(task, x, weights)
    if _is_plain_call(task, given):
        d_h, d_c = _two(upstream.final)
        pair = _saved_pair(task, saved)
        d_y = None if upstream.y is None else upstream.y.contiguous()
        found = _native.backward_tensors(
            packed.layer, packed.for_backward(), packed.forward, _dense_schedule(B, T, task.is_reverse),
            [x, *_two(state), y, *pair, d_y, d_h, d_c], list(weights), packed.slots, wants_x, wants_weights,
            torch.get_num_threads(),
        )  # fmt: skip
        if found is not None:
            n = 1 + len(state)
            return found[0], found[1:n], [], found[n:]
    addresses, held = _inputs(given)
    schedule = _schedule(task, B, T, mask, resets)
    d_y, d_cells = _contiguous([upstream.y, upstream.cells])
    d_final = _two(_contiguous(upstream.final))
    gates, c_before = _saved_pair(task, saved)
    expected = saved_shapes(task, B, T, D, packed.H, x.dtype)
    if [tuple(one.shape) for one in saved] != [shape for shape, _ in expected]:
        raise InputError("backward: the instruction set is another one than in forward; switch between calls")
    is_empty = schedule.n_packed == 0
    d_x = None
    if wants_x:
        d_x = x.new_empty(B, T, D) if mask is None else x.new_zeros(B, T, D)
    d_state = [torch.empty(leaf.shape, dtype=x.dtype) for leaf in state]
    d_initial = [torch.empty(leaf.shape, dtype=x.dtype) for leaf in initial]
    d_weights: list[Tensor | None] = [None] * len(weights)
    if wants_weights:
        d_weights = [(torch.zeros if is_empty else torch.empty)(w.shape, dtype=w.dtype) for w in weights]
    packed.layer.backward(
        packed.for_backward(), packed.forward, schedule, addresses,
        [y.data_ptr(), 0, 0, 0, _address(gates), _address(c_before)],
        [_address(d_y), _address(d_cells), *_two_addresses(d_final), _address(d_x), *_two_addresses(d_state),
         *_two_addresses(d_initial)],
        packed_weights.addresses_in(packed.slots, d_weights if not is_empty else [None] * len(weights)),
        task.keeps == "outputs", torch.get_num_threads(),
    )  # fmt: skip
    del held
    return d_x, d_state, d_initial, d_weights
