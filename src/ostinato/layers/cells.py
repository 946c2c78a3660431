"""Cells: what happens in one step. `Cell` is the base of every cell, a user's own included."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.types import State


class Cell(nn.Module):
    """One step of a recurrent network, written by whoever has the idea.

    A subclass sets `input_size`, `output_size` and `state_shapes` in its `__init__` and defines `step`.
    `Recurrent` then runs it over time under the whole contract.

    Attributes:
        input_size: D.
        output_size: width of y.
        state_shapes: leaf -> shape without B, as `{"h": (hidden_size,)}`.
        takes_dt: whether `step` takes a third argument dt (B,), the time before the step.
    """

    input_size: int
    output_size: int
    state_shapes: Mapping[str, tuple[int, ...]]
    takes_dt = False
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102 - remembers them for with_input_size
        cell = super().__new__(cls)
        object.__setattr__(cell, "_arguments", (args, kwargs))
        return cell

    def step(self, x_t: Tensor, state: State, *dt: Tensor) -> tuple[Tensor, State]:
        """One tick: x_t (B, D), leaves (B, *s); returns y_t (B, output_size) and the new state."""
        raise NotImplementedError(f"{type(self).__name__} defines no step(x_t, state)")

    def forward(self, x_t: Tensor, state: State | None = None, *dt: Tensor) -> tuple[Tensor, State]:
        """`step`, from the initial state where none is given."""
        return self.step(x_t, self.initial_state(len(x_t)) if state is None else state, *dt)

    def initial_state(self, batch_size: int) -> State:
        """Zeros in the dtype and on the device of the first parameter."""
        like = next(iter(self.parameters()), torch.empty(0))
        return State({name: like.new_zeros(batch_size, *shape) for name, shape in self.state_shapes.items()})

    def with_input_size(self, input_size: int) -> Self:
        """A fresh cell built with the same arguments but for `input_size`: the next layer of a stack.

        Raises:
            InputError: the constructor takes no `input_size`.
        """
        args, kwargs = self._arguments
        signature = inspect.signature(type(self))
        if "input_size" not in signature.parameters:
            raise InputError(
                f"{type(self).__name__}: its constructor takes no input_size, so it cannot be stacked; "
                "pass Recurrent one cell for each layer and direction"
            )
        bound = signature.bind(*args, **kwargs)
        bound.arguments["input_size"] = input_size
        return type(self)(*bound.args, **bound.kwargs)
