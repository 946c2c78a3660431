"""A stack of RNN, LSTM or GRU as one native object that keeps packed weights, state and scratch.

This file turns tensors into addresses; what is computed, and how it stays equal to a whole run to the last
bit, is in `native/session.h`. `ship/stream.py` is its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.kernels import native, packed_weights
from ostinato.kernels.cell_options import CellOptions
from ostinato.kernels.reference import CellSpec
from ostinato.kernels.task import Task

FORMATS = ("float32", "bfloat16", "int8")
_Leaves = dict[str, Tensor]


class Part(NamedTuple):
    """One layer of the stack.

    Attributes:
        spec, options: its cell, as for evaluation: zoneout by expectation.
        tensors: its parameters, in the order of `CellSpec.parameter_shapes`.
        input_size, hidden_size: D, H.
        adds_input: y = h + x.
    """

    spec: CellSpec
    options: CellOptions
    tensors: list[Tensor]
    input_size: int
    hidden_size: int
    adds_input: bool

    @property
    def task(self) -> Task:
        """The same as a call of the whole recurrence."""
        return Task(self.spec.name, self.options, False, False, "nothing")


def obstacle(parts: Sequence[Part], like: Tensor) -> str | None:
    """What keeps the native session from these layers, with weights as `like`; None: nothing."""
    for part in parts:
        found = native.obstacle(part.task, like)
        if found is not None:
            return found
        if any(tensor.dtype != like.dtype or tensor.device != like.device for tensor in part.tensors):
            return "the layers' weights have several dtypes or devices"
    return None


def format_obstacle(parts: Sequence[Part], like: Tensor, weights: str) -> str | None:
    """What keeps the weights from this format; None: nothing."""
    if weights == FORMATS[0]:
        return None
    if like.dtype != torch.float32:
        return f"the layer computes in {like.dtype}, and reduced weights are for float32"
    for part in parts:
        o = part.options
        if o.norm or o.peephole or o.coupled_gates or o.projection or o.zoneout or not o.reset_after:
            return f"a layer is a {part.spec.name} with options, and reduced weights are for plain layers"
    return None


class NativeStream:
    """The native session of a stack, for B rows.

    Args:
        parts: the layers, which have passed `obstacle` and `format_obstacle`.
        B: rows.
        like: a tensor of their dtype.
        weights: a name of `FORMATS`; `float32` leaves weights as they are, whatever their dtype.
    """

    def __init__(self, parts: Sequence[Part], B: int, like: Tensor, weights: str):
        self._like = torch.empty(0, dtype=like.dtype)
        self._shapes = [_leaf_sizes(part) for part in parts]
        self.B = B
        layers = [
            (
                packed_weights.layer_of(part.task, part.input_size, part.hidden_size, like.dtype),
                FORMATS.index(weights),
                part.adds_input,
            )
            for part in parts
        ]
        held, addresses = _addresses(parts)
        module: Any = native._native  # type: ignore[attr-defined]
        self._native = module.Session(layers, addresses, B)
        del held
        module.ask_for_threads(torch.get_num_threads)
        # Tensors of exactly torch's class are looked at by the native code itself; None: x is something else.
        self.push = self._native.push if packed_weights.SEES_TENSORS else _not_looked_at

    @property
    def packed_bytes(self) -> int:
        """Bytes that the packed weights take, biases and padding included."""
        return int(self._native.packed_bytes)

    def push_checked(self, x: Tensor, y: Tensor) -> None:
        """x (B, T, D) into y (B, T, P): both in the session's dtype, y contiguous and not overlapping x."""
        if x.stride(2) != 1:
            x = x.contiguous()
        self._native.push_at(x.data_ptr(), x.stride(0), x.stride(1), x.shape[1], y.data_ptr())

    def read_state(self) -> list[_Leaves]:
        """Copies of the leaves (B, ·) of every layer."""
        layers = []
        for layer, sizes in enumerate(self._shapes):
            leaves = {name: self._like.new_empty(self.B, size) for name, size in sizes.items()}
            self._native.read_state(layer, 0, self.B, *_pair(leaves))
            layers.append(leaves)
        return layers

    def write_state(self, layers: Sequence[_Leaves], row: int = 0) -> None:
        """Leaves (n, ·) of every layer into rows row … row + n - 1."""
        for layer, given in enumerate(layers):
            leaves = {name: given[name].detach().contiguous() for name in self._shapes[layer]}
            self._native.write_state(layer, row, row + len(leaves["h"]), *_pair(leaves))

    def pack(self, parts: Sequence[Part]) -> None:
        """Take the weights anew."""
        held, addresses = _addresses(parts)
        self._native.pack(addresses)
        del held


def _not_looked_at(x: Any, out: Any = None) -> None:
    """In place of `push` for a PyTorch without the exchange table of DLPack 1.3."""


def _leaf_sizes(part: Part) -> dict[str, int]:
    sizes = part.spec.state_sizes(part.hidden_size, part.options)
    return {name: size for name, (size,) in sizes.items()}


def _pair(leaves: _Leaves) -> tuple[int, int]:
    c = leaves.get("c")
    return leaves["h"].data_ptr(), 0 if c is None else c.data_ptr()


def _addresses(parts: Sequence[Part]) -> tuple[list[list[Tensor]], list[list[int]]]:
    """The weights as contiguous tensors, to be held while the addresses are in use, and these."""
    held = [[tensor.detach().contiguous() for tensor in part.tensors] for part in parts]
    addresses = [
        packed_weights.addresses_in(packed_weights.weight_slots(part.task, len(tensors)), tensors)
        for part, tensors in zip(parts, held, strict=True)
    ]
    return held, addresses
