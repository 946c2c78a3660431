"""Recurrent layers one step at a time in training, where a step's input depends on the step before.

A loop over steps would multiply every input by itself, and add up a gradient of each weight as often as
there are steps. Here what is known beforehand is multiplied at once, and each weight's gradient is one
product after all steps have been gone back through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ostinato.kernels.reference import Noise, Weights, cell_step
from ostinato.layers.gated import GatedStack
from ostinato.layers.stack import Stack
from ostinato.types import State


class LoopProducts:
    """Products x Wᵀ of the steps of one loop; differentiable once.

    Calls with the same weight share its gradient: the steps' upstream gradients and inputs are kept, and
    multiplied when the last of them is there.
    """

    def __init__(self) -> None:
        self._slots: dict[int, tuple[_Slot, Tensor]] = {}

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (B, D), weight (G, D) -> (B, G); under autocast plain products, which have its dtype."""
        is_plain = torch.is_autocast_enabled(x.device.type) or not weight.requires_grad
        if is_plain or not torch.is_grad_enabled():
            return F.linear(x, weight)
        if id(weight) not in self._slots:
            slot = _Slot(weight)
            self._slots[id(weight)] = slot, _Token.apply(weight, slot)
        slot, token = self._slots[id(weight)]
        product: Tensor = _Product.apply(x, weight.detach(), token, slot)
        return product


class _Slot:
    """A weight and what its products saw."""

    def __init__(self, weight: Tensor):
        self.weight = weight  # kept, so that no other tensor takes its id
        self.inputs: list[Tensor] = []
        self.upstream: dict[int, Tensor] = {}


class _Token(torch.autograd.Function):
    """Nothing, on which every product of a weight depends: its gradient is asked for after all of theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, slot: _Slot) -> Tensor:
        ctx.slot = slot
        return weight.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        slot: _Slot = ctx.slot
        upstream = torch.cat(list(slot.upstream.values()))
        inputs = torch.cat([slot.inputs[i] for i in slot.upstream])
        slot.upstream = {}
        return upstream.t() @ inputs, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, token: Tensor, slot: _Slot) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.slot, ctx.index = slot, len(slot.inputs)
        slot.inputs.append(x.detach())
        return x @ weight.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        ctx.slot.upstream[ctx.index] = upstream
        d_x = upstream @ weight if ctx.needs_input_grad[0] else None
        return d_x, None, upstream.new_empty(0), None


class LoopedLayer:
    """One recurrent layer whose input at a step is [known_t; more_t], `more_t` given when its turn comes.

    A layer of RNN, LSTM or GRU that draws no masks and is not normalised takes the equations of
    `kernels/reference.py` with `LoopProducts` where gradients are wanted; any other is called step by step.

    Args:
        layer: one layer, one direction.
        state: before the first step.
        known: (B, T, D - M); None: nothing is known.
        products: of this loop.

    Attributes:
        state: after the last step that was taken.
    """

    def __init__(self, layer: Stack, state: State, known: Tensor | None, products: LoopProducts):
        self.layer, self.state = layer, state
        self._known = None if known is None else known.unbind(1)
        self._products = products
        self._is_split = (
            isinstance(layer, GatedStack)
            and not layer.spec.is_linear
            and layer.options.norm is None
            and not (layer.training and layer.options.has_cell_masks())
            and layer.options.backend == "auto"
            and (known is None or known.shape[1] > 1)
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled(next(iter(layer.parameters())).device.type)
        )
        if not self._is_split:
            return
        assert isinstance(layer, GatedStack)
        self._tensors = layer._tensors(0, 0)
        self._leaves = {name: leaf.flatten(1, 3) for name, leaf in state.items() if isinstance(leaf, Tensor)}
        weight = self._tensors["weight_ih"]
        width = 0 if known is None else known.shape[2]
        self._of_more = weight[:, width:]
        bias = self._tensors.get("bias_ih")
        self._bias = bias
        self._inputs = None if known is None else F.linear(known, weight[:, :width], bias).unbind(1)
        self._weights = Weights(self._tensors, products)

    def step(self, t: int, more: Tensor) -> Tensor:
        """y_t (B, H) of step t from more_t (B, M); steps come in their order."""
        if not self._is_split:
            x = more if self._known is None else torch.cat([self._known[t], more], dim=1)
            output = self.layer(x.unsqueeze(1), self.state)
            self.state = output.state
            y: Tensor = output.y[:, 0]
            return y
        assert isinstance(self.layer, GatedStack)
        part = self._products(more, self._of_more)
        if self._inputs is not None:
            part = part + self._inputs[t]
        elif self._bias is not None:
            part = part + self._bias
        y, self._leaves = cell_step(
            self.layer.spec, part, self._leaves, self._weights, self.layer._cell_options, Noise()
        )
        self.state = State({name: leaf[:, None, None] for name, leaf in self._leaves.items()})
        return y
