"""The path `native`: one direction of one layer of RNN, LSTM or GRU in our own C++ kernels, on a CPU.

This file turns tensors into addresses. What the kernels compute, and every buffer's shape, is in
`native/recurrence.h`; how a call is differentiated and traced, in `operators.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.kernels.native_module import MISSING as _MISSING
from ostinato.kernels.native_module import extension as _native
from ostinato.kernels.reference import CELLS, CellOptions
from ostinato.kernels.task import Arguments, Task, Upstream

_CELLS = {"rnn": 0, "lstm": 1, "gru": 2}
_DTYPES = (torch.float32, torch.float64)
_NAMES = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "peephole",
    "norm_ih.weight", "norm_hh.weight", "norm_c.weight", "norm_c.bias",
)  # fmt: skip


def _task_obstacle(task: Task) -> str | None:
    if task.cell not in _CELLS:
        return f"there is no native kernel of the cell {task.cell!r}"
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


@lru_cache(maxsize=1024)
def _layer(task: Task, D: int, H: int, dtype: torch.dtype) -> Any:
    """The kernels' description of a layer."""
    o = task.options
    flags = "".join(
        letter
        for letter, is_set in (
            ("r", o.nonlinearity == "relu"), ("b", task.cell == "gru" and not o.reset_after), ("n", o.norm),
            ("p", o.peephole), ("c", o.coupled_gates), ("j", o.projection > 0), ("z", o.training),
        )
        if is_set
    )  # fmt: skip
    zoneout = (o.zoneout.get("h", 0.0), o.zoneout.get("c", 0.0))
    width = o.projection or H
    return _native.Layer(_CELLS[task.cell], D, H, width, flags, *zoneout, dtype == torch.float64)


@lru_cache(maxsize=64)
def _slots(cell: str, options: CellOptions, has_bias: bool) -> tuple[int, ...]:
    """Where each of the given weights stands among `_NAMES`."""
    names = CELLS[cell].parameter_shapes(1, 2, options, has_bias)
    return tuple(_NAMES.index(name) for name in names)


def _weight_slots(task: Task, n_weights: int) -> tuple[int, ...]:
    slots = _slots(task.cell, task.options, True)
    return slots if len(slots) == n_weights else _slots(task.cell, task.options, False)


def _addresses(slots: Sequence[int], tensors: Sequence[Tensor | None]) -> list[int]:
    found = [0] * len(_NAMES)
    for slot, tensor in zip(slots, tensors, strict=True):
        if tensor is not None:
            found[slot] = tensor.data_ptr()
    return found


class _Entry:
    """Packed weights, and what they were packed from."""

    __slots__ = ("backward", "digests", "forward", "key")

    def __init__(self, key: tuple[Any, ...]):
        self.key = key
        self.digests = (0, 0)
        self.forward: Any = None
        self.backward: Any = None


# Packed copies by the tensor weight_hh. They live here and not in the layers, so that modules copy, pickle
# and distribute as any other.
_packed: dict[int, tuple[weakref.ref[Tensor], _Entry]] = {}


# Reading all weights again is nothing beside several steps on them. Beside few, so much of them takes 3 µs.
_SEVERAL_STEPS = 8
_SAMPLED_BYTES = 1 << 17
_ALL_BYTES = 1 << 62


def _entry(layer: Any, weights: Sequence[Tensor], addresses: list[int], n_steps: int) -> _Entry:
    """The cached copies if these weights have not changed since.

    A weight's version counts what is written through it or its views. Writing through `.data` or NumPy is not
    counted, so contents are compared too: all of them, or samples where large weights meet a few steps only.
    """
    owner = weights[1]
    versions = None
    # Tensors made in inference mode have no version.
    is_uncounted = any([weight.is_inference() for weight in weights])
    if not is_uncounted:
        versions = [weight._version for weight in weights]
    key = (layer, _native.isa(), addresses, versions)
    found = _packed.get(id(owner))
    if found is not None and found[0]() is owner and found[1].key == key:
        is_sampled = n_steps < _SEVERAL_STEPS and not is_uncounted
        most_bytes = _SAMPLED_BYTES if is_sampled else _ALL_BYTES
        if found[1].digests[is_sampled] == layer.digest(addresses, most_bytes):
            return found[1]
    entry = _Entry(key)
    entry.digests = layer.digest(addresses, _ALL_BYTES), layer.digest(addresses, _SAMPLED_BYTES)
    number = id(owner)

    def forget(_: object) -> None:
        _packed.pop(number, None)

    _packed[number] = (weakref.ref(owner, forget), entry)
    return entry


def _check_weights(task: Task, x: Tensor, weights: Sequence[Tensor], slots: Sequence[int]) -> None:
    """The kernels read as much as the sizes say, whatever there is."""
    names = [_NAMES[slot] for slot in slots]
    H = _sizes(task, x, weights)[-1]
    shapes = CELLS[task.cell].parameter_shapes(x.shape[2], H, task.options, "bias_ih" in names)
    for name, weight in zip(names, weights, strict=True):
        if weight.shape != shapes[name] or weight.dtype != x.dtype or weight.device != x.device:
            raise SizeError(
                f"{name} is {tuple(weight.shape)}, {weight.dtype} on {weight.device}; "
                f"expected {shapes[name]}, {x.dtype} on {x.device}"
            )


def _pack(
    task: Task, layer: Any, x: Tensor, weights: Sequence[Tensor], slots: Sequence[int], *, backward: bool
) -> tuple[Any, Any]:
    """(packed for forward, packed for backward or None)."""
    held = _contiguous(weights)
    addresses = _addresses(slots, held)
    for one, other in zip(held, weights, strict=True):
        if one is not other:
            # A copy has no identity to be remembered by.
            entry = _Entry(())
            break
    else:
        entry = _entry(layer, weights, addresses, x.shape[0] * x.shape[1])
    if entry.forward is None:
        _check_weights(task, x, weights, slots)
        entry.forward = layer.pack(addresses, False)
    if backward and entry.backward is None:
        entry.backward = layer.pack(addresses, True)
    return entry.forward, entry.backward


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


class _Inputs(NamedTuple):
    """Tensors in the form that the kernels take; holding them keeps their memory alive during a call."""

    x: Tensor
    state: list[Tensor | None]
    initial: list[Tensor | None]
    noise: list[Tensor | None]

    def addresses(self) -> list[int]:
        h, c = _two(self.state)
        initial_h, initial_c = _two(self.initial)
        recurrent, zoneout_h, zoneout_c = self.noise
        step = 0 if recurrent is None or len(recurrent) == 1 else recurrent.stride(0)
        return [
            self.x.data_ptr(), self.x.stride(0), self.x.stride(1), _address(h), _address(c),
            _address(initial_h), _address(initial_c), _address(recurrent), step,
            _address(zoneout_h), _address(zoneout_c),
        ]  # fmt: skip


def _inputs(
    x: Tensor, state: Sequence[Tensor], initial: Sequence[Tensor], noise: Sequence[Tensor | None]
) -> _Inputs:
    # One column may have any stride.
    x = x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
    return _Inputs(x, _contiguous(state), _contiguous(initial), _contiguous(noise))


def saved_shapes(
    task: Task, B: int, T: int, D: int, H: int, dtype: torch.dtype
) -> list[tuple[tuple[int, int], torch.dtype]]:
    """Shapes and dtypes of what forward saves, for B·T steps whether or not all are real."""
    if task.keeps == "nothing":
        return []
    layer = _layer(task, D, H, dtype)
    shapes = [((B * T, layer.saved_width), dtype)] if task.keeps == "gates" else []
    if layer.saved_cells:
        shapes.append(((B * T, layer.saved_cells), dtype))
    return shapes


def _saved_pair(task: Task, saved: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(gates, c before each step)."""
    if task.keeps == "gates":
        return saved[0], (saved[1] if len(saved) > 1 else None)
    return None, (saved[0] if saved else None)


def _sizes(task: Task, x: Tensor, weights: Sequence[Tensor]) -> tuple[int, int, int, int]:
    gates = CELLS[task.cell].gates - task.options.coupled_gates
    B, T, D = x.shape
    return B, T, D, weights[1].shape[0] // gates


def forward(task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """Run over x (B, T, D).

    Returns:
        y (B, T, P), the final leaves (B, ·) and the cell states (B, T, H) where the task returns them; and
        what backward needs, in the shapes of `saved_shapes`.
    """
    x, state, initial, weights, mask, resets, noise = given
    B, T, D, H = _sizes(task, x, weights)
    layer = _layer(task, D, H, x.dtype)
    packed, _ = _pack(task, layer, x, weights, _weight_slots(task, len(weights)), backward=False)
    if resets is not None and not initial:
        raise InputError("resets: expected the state after a reset in `initial`, found none")
    inputs = _inputs(x, state, initial, noise)
    P = task.options.projection or H
    # Steps that are not real are not written.
    y = (torch.empty if mask is None else torch.zeros)(B, T, P, dtype=x.dtype)
    final = [torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in state]
    outputs = [y, *final]
    if task.returns_cells:
        outputs.append(x.new_empty(B, T, H) if mask is None else x.new_zeros(B, T, H))
    saved: list[Tensor] = []
    if task.keeps != "nothing":
        saved = [torch.empty(shape, dtype=dtype) for shape, dtype in saved_shapes(task, B, T, D, H, x.dtype)]
    gates, c_before = _saved_pair(task, saved)
    h, c = _two(final)
    layer.forward(
        packed, _schedule(task, B, T, mask, resets), inputs.addresses(),
        [y.data_ptr(), _address(h), _address(c), outputs[-1].data_ptr() if task.returns_cells else 0,
         _address(gates), _address(c_before)],
        torch.get_num_threads(),
    )  # fmt: skip
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
    x, state, initial, weights, mask, resets, noise = given
    B, T, D, H = _sizes(task, x, weights)
    layer = _layer(task, D, H, x.dtype)
    slots = _weight_slots(task, len(weights))
    packed, packed_back = _pack(task, layer, x, weights, slots, backward=True)
    inputs = _inputs(x, state, initial, noise)
    schedule = _schedule(task, B, T, mask, resets)
    d_y, d_cells = _contiguous([upstream.y, upstream.cells])
    d_final = _two(_contiguous(upstream.final))
    gates, c_before = _saved_pair(task, saved)
    if [tuple(one.shape) for one in saved] != [shape for shape, _ in saved_shapes(task, B, T, D, H, x.dtype)]:
        raise InputError("backward: the instruction set is another one than in forward; switch between calls")
    is_empty = schedule.n_packed == 0
    d_x = None
    if wants_x:
        d_x = x.new_empty(B, T, D) if mask is None else x.new_zeros(B, T, D)
    d_state = [x.new_empty(leaf.shape) for leaf in state]
    d_initial = [x.new_empty(leaf.shape) for leaf in initial]
    d_weights: list[Tensor | None] = [None] * len(weights)
    if wants_weights:
        d_weights = [(torch.zeros if is_empty else torch.empty)(w.shape, dtype=w.dtype) for w in weights]
    d_h0, d_c0 = _two(d_state)
    d_initial_h, d_initial_c = _two(d_initial)
    layer.backward(
        packed_back, packed, schedule, inputs.addresses(),
        [y.data_ptr(), 0, 0, 0, _address(gates), _address(c_before)],
        [_address(one) for one in (d_y, d_cells, *d_final, d_x, d_h0, d_c0, d_initial_h, d_initial_c)],
        _addresses(slots, d_weights if not is_empty else [None] * len(weights)),
        task.keeps == "outputs", torch.get_num_threads(),
    )  # fmt: skip
    return d_x, d_state, d_initial, d_weights
