"""Cells: what happens in one step. `Cell` is the base of every cell, a user's own included."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.kernels import backends, ops
from ostinato.kernels.backends import Path, Request
from ostinato.kernels.reference import CELLS, CellSpec, Noise
from ostinato.layers import arguments
from ostinato.layers.initialisation import initialise, read_init
from ostinato.layers.options import CELL_OPTIONS, read_options
from ostinato.types import State


def named_tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter by its dotted name; also where `torch.func.functional_call` has put a plain tensor."""
    owner, _, leaf = name.rpartition(".")
    home = module.get_submodule(owner) if owner else module
    # Attribute look-up costs a step() as much as its arithmetic; a parametrised weight needs it, though.
    value = home._parameters.get(leaf)
    return getattr(home, leaf) if value is None else value


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
        return self.step(x_t, self.initial_state(x_t.shape[0]) if state is None else state, *dt)

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


class GatedCell(Cell):
    """What `RNNCell`, `LSTMCell` and `GRUCell` share; parameters named as in `torch.nn`'s cells."""

    spec: CellSpec

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        where = type(self).__name__
        arguments.check_sizes(where, input_size=input_size, hidden_size=hidden_size)
        self.options = read_options(where, self.spec, hidden_size, options, among=CELL_OPTIONS)
        self.cell_options = self.options.for_cell()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.output_size = self.options.proj_size or hidden_size
        self.state_shapes = self.spec.state_sizes(hidden_size, self.cell_options)
        self._init = read_init(where, self.options.init, self.spec.name, bias=bias)
        self._parameter_names = []
        for name, shape in self.spec.parameter_shapes(
            input_size, hidden_size, self.cell_options, bias
        ).items():
            owner, _, leaf = name.rpartition(".")
            if owner and owner not in self._modules:
                self.add_module(owner, nn.Module())
            value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.get_submodule(owner).register_parameter(leaf, value)
            self._parameter_names.append(name)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the option `init` says."""
        initialise(
            self.tensors(),
            self._init,
            self.spec.name,
            self.hidden_size,
            is_coupled=self.options.coupled_gates,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {name: named_tensor(self, name) for name in self._parameter_names}

    def choose(self, request: Request) -> Path:
        """The backend for a call, as `kernels.backends.choose`."""
        return backends.choose(
            self.spec, self.cell_options, request, self.options.backend, named_tensor(self, "weight_ih")
        )

    def step(self, x_t: Tensor, state: State, *dt: Tensor) -> tuple[Tensor, State]:
        """One tick: x_t (B, D), leaves (B, H); returns y_t (B, H) and the new state.

        Raises:
            SizeError: a shape, dtype or device that does not fit.
        """
        where, weight = f"{type(self).__name__}.step", named_tensor(self, "weight_ih")
        x = arguments.check_input(where, x_t, self.input_size, 2, weight)
        leaves = arguments.check_leaves(where, state, self.state_shapes, x.shape[0], weight)
        path = self.choose(Request()).path
        with torch.autocast(x.device.type, enabled=False):
            y, new = ops.step(path, self.spec, x, leaves, self.tensors(), self.cell_options, Noise())
        if torch.is_autocast_enabled(x.device.type):
            y = y.to(torch.get_autocast_dtype(x.device.type))
        return y, State(new)


class RNNCell(GatedCell):
    """One step of an Elman network (Elman 1990), as `torch.nn.RNNCell`.

        h' = act(W_ih x + b_ih + W_hh h + b_hh)        act = tanh or relu

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        bias: whether there are `bias_ih` and `bias_hh`.
        device, dtype: of the parameters.
        **options: `nonlinearity`, `norm`, `init`, `backend`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["rnn"]


class LSTMCell(GatedCell):
    """One step of an LSTM, as `torch.nn.LSTMCell`; equations at `LSTM`.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        bias: whether there are `bias_ih` and `bias_hh`.
        device, dtype: of the parameters.
        **options: `norm`, `peephole`, `coupled_gates`, `proj_size`, `init`, `backend`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["lstm"]


class GRUCell(GatedCell):
    """One step of a GRU, as `torch.nn.GRUCell`; equations at `GRU`.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        bias: whether there are `bias_ih` and `bias_hh`.
        device, dtype: of the parameters.
        **options: `reset_after`, `norm`, `init`, `backend`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["gru"]
