"""Weights in the order in which the native kernels read them, kept between calls.

The copies live here and not in the layers, so that modules copy, pickle and distribute as any other.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ostinato.errors import SizeError
from ostinato.kernels.native_module import extension as _native
from ostinato.kernels.reference import CELLS, CellOptions
from ostinato.kernels.task import Task

# Whether the native code can look at tensors by itself; addresses are passed otherwise.
SEES_TENSORS = _native is not None and bool(_native.look_at_tensors(Tensor, torch.nn.Parameter))

CELL_NUMBERS = {"rnn": 0, "lstm": 1, "gru": 2}
_NAMES = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "peephole",
    "norm_ih.weight", "norm_hh.weight", "norm_c.weight", "norm_c.bias",
)  # fmt: skip


@lru_cache(maxsize=1024)
def layer_of(task: Task, D: int, H: int, dtype: torch.dtype) -> Any:
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
    return _native.Layer(CELL_NUMBERS[task.cell], D, H, width, flags, *zoneout, dtype == torch.float64)


@lru_cache(maxsize=64)
def _slots(cell: str, options: CellOptions, has_bias: bool) -> tuple[int, ...]:
    """Where each of the given weights stands among `_NAMES`."""
    names = CELLS[cell].parameter_shapes(1, 2, options, has_bias)
    return tuple(_NAMES.index(name) for name in names)


def weight_slots(task: Task, n_weights: int) -> tuple[int, ...]:
    """Where each of a layer's weights stands in the kernels' list."""
    slots = _slots(task.cell, task.options, True)
    return slots if len(slots) == n_weights else _slots(task.cell, task.options, False)


def addresses_in(slots: Sequence[int], tensors: Sequence[Tensor | None]) -> list[int]:
    """The kernels' list of weights: addresses, 0 where there is none."""
    found = [0] * len(_NAMES)
    for slot, tensor in zip(slots, tensors, strict=True):
        if tensor is not None:
            found[slot] = tensor.data_ptr()
    return found


# Reading all weights again is nothing beside several steps on them. Beside few, so much of them takes 3 µs.
_SEVERAL_STEPS = 8
_SAMPLED_BYTES = 1 << 17
_ALL_BYTES = 1 << 62


class Packed:
    """A layer's weights as the kernels read them, and what they were packed from.

    Attributes:
        layer: the kernels' description.
        D, H, P: widths of x, of the state and of h.
        slots: where each weight stands in the kernels' list.
        forward, backward: the packed copies; `backward` is made when it is first wanted.
    """

    __slots__ = (
        "D", "H", "P", "_addresses", "_cell", "_digests", "_dtype", "_isa", "_list", "_options", "_rows",
        "_versions", "backward", "forward", "held", "layer", "slots",
    )  # fmt: skip

    def __init__(self, task: Task, x: Tensor, weights: Sequence[Tensor]):
        options = self._options = task.options
        self._cell, self._dtype, self._isa = task.cell, x.dtype, _native.isa()
        self._rows, self.D = weights[1].shape[0], x.shape[2]
        self.H = self._rows // (CELLS[task.cell].gates - options.coupled_gates)
        self.P = options.projection or self.H
        # What is kept for backward changes nothing here, and one description serves all.
        self.layer = layer_of(Task(task.cell, options, False, False, "gates"), self.D, self.H, x.dtype)
        self.slots = weight_slots(task, len(weights))
        self._check_weights(task, x, weights)
        self._versions = None if _is_uncounted(weights) else [weight._version for weight in weights]
        self._addresses = [weight.data_ptr() for weight in weights]
        self._list = addresses_in(self.slots, weights)
        digest = self.layer.digest
        self._digests = digest(self._list, _ALL_BYTES), digest(self._list, _SAMPLED_BYTES)
        self.forward = self.layer.pack(self._list, False)
        self.backward: Any = None
        # Copies of weights that are not contiguous; the weights themselves must be free to die.
        self.held: Sequence[Tensor] = ()

    def for_backward(self) -> Any:
        """The copy in the order of backward's products."""
        if self.backward is None:
            self.backward = self.layer.pack(self._list, True)
        return self.backward

    def fits(self, task: Task, x: Tensor, weights: list[Tensor], n_steps: int) -> bool:
        """Whether these weights have not changed since.

        Contents are compared: all, or samples where large weights meet a few steps only. Then versions
        are, too: they count writes through a weight or its views, not those through `.data` or NumPy.
        """
        if (task.options is not self._options and task.options != self._options) or task.cell != self._cell:
            return False
        if x.dtype != self._dtype or x.shape[2] != self.D or self._isa != _native.isa():
            return False
        is_uncounted = _is_uncounted(weights)
        is_sampled = n_steps < _SEVERAL_STEPS and not is_uncounted
        most_bytes = _SAMPLED_BYTES if is_sampled else _ALL_BYTES
        if is_sampled and [weight._version for weight in weights] != self._versions:
            return False
        digest = self._digests[is_sampled]
        if SEES_TENSORS:
            return bool(_native.matches(self.layer, weights, self.slots, self._list, most_bytes, digest))
        if weights[1].shape[0] != self._rows or not all([weight.is_contiguous() for weight in weights]):
            return False
        if [weight.data_ptr() for weight in weights] != self._addresses:
            return False
        return bool(self.layer.digest(self._list, most_bytes) == digest)

    def _check_weights(self, task: Task, x: Tensor, weights: Sequence[Tensor]) -> None:
        """The kernels read as much as the sizes say, whatever there is."""
        names = [_NAMES[slot] for slot in self.slots]
        shapes = CELLS[task.cell].parameter_shapes(self.D, self.H, task.options, "bias_ih" in names)
        for name, weight in zip(names, weights, strict=True):
            if weight.shape != shapes[name] or weight.dtype != x.dtype or weight.device != x.device:
                raise SizeError(
                    f"{name} is {tuple(weight.shape)}, {weight.dtype} on {weight.device}; "
                    f"expected {shapes[name]}, {x.dtype} on {x.device}"
                )


def _is_uncounted(weights: Sequence[Tensor]) -> bool:
    # Tensors made in inference mode have no version.
    return any([weight.is_inference() for weight in weights])


# Packed copies by the tensor weight_hh.
_kept: dict[int, tuple[weakref.ref[Tensor], Packed]] = {}


def packed(task: Task, x: Tensor, weights: list[Tensor]) -> Packed:
    """The packed weights of a call over x (B, T, D): kept ones if these have not changed since.

    Raises:
        SizeError: weights of other shapes, dtypes or devices than the task and x need.

    Cost: a copy of all weights where they have changed, else a reading of them.
    """
    owner = weights[1]
    number = id(owner)
    found = _kept.get(number)
    is_kept = found is not None and found[0]() is owner
    if found is not None and is_kept and found[1].fits(task, x, weights, x.shape[0] * x.shape[1]):
        return found[1]
    held = [one if one.is_contiguous() else one.contiguous() for one in weights]
    fresh = Packed(task, x, held)
    if any([one is not other for one, other in zip(held, weights, strict=True)]):
        # A copy has no identity to be remembered by.
        fresh.held = held
        return fresh

    def forget(_: object) -> None:
        _kept.pop(number, None)

    _kept[number] = (weakref.ref(owner, forget), fresh)
    return fresh
