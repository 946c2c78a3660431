"""`RNN`, `LSTM`, `GRU`: stacked layers with exactly torch's parameters, in names, shapes and gate order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.kernels import backends, ops
from ostinato.kernels.backends import Path, Request
from ostinato.kernels.ops import Result
from ostinato.kernels.reference import CELLS, CellOptions, CellSpec, Leaves, Noise
from ostinato.kernels.stretch import Stretch
from ostinato.layers import arguments, plain_calls, torch_compat
from ostinato.layers.cells import named_tensor
from ostinato.layers.dropout import Clock, Kind, drop_weight
from ostinato.layers.initialisation import initialise, read_init
from ostinato.layers.options import read_options
from ostinato.layers.stack import Stack
from ostinato.types import Output, State

_ZONEOUT = {"h": Kind.ZONEOUT_H, "c": Kind.ZONEOUT_C}


class GatedStack(Stack):
    """What `RNN`, `LSTM` and `GRU` share: everything but the row of the table of cells."""

    spec: CellSpec

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        *,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        arguments.check_sizes(
            self._name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers
        )
        self.options = read_options(self._name, self.spec, hidden_size, options)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.bidirectional, self.proj_size = bias, bidirectional, self.options.proj_size
        self.torch_compatible = self.options.torch_compatible
        self._cell_options = self.options.for_cell()
        self._training_cell_options = self._cell_options.for_training()
        self._keeps = "outputs" if self.options.recompute else "gates"
        width = self.options.proj_size or hidden_size
        self.output_size = width * self.num_directions
        self._init = read_init(self._name, self.options.init, self.spec.name, bias=bias)
        # For each layer and direction: names without and with the suffix.
        self._full_names: list[list[list[tuple[str, str]]]] = [
            [[] for _ in range(self.num_directions)] for _ in range(num_layers)
        ]
        self._paths: dict[Hashable, Path] = {}
        factory = {"device": device, "dtype": dtype}
        for layer in range(num_layers):
            D = self.output_size if layer else input_size
            for direction in range(self.num_directions):
                for name, shape in self.spec.parameter_shapes(
                    D, hidden_size, self._cell_options, bias
                ).items():
                    self._add_parameter(name, layer, direction, torch.empty(shape, **factory))  # type: ignore[arg-type]
        self._set_up(
            [self.spec.state_sizes(hidden_size, self._cell_options)] * num_layers,
            dropout={
                Kind.INPUT: self.options.dropout_in,
                Kind.BETWEEN: self.options.dropout_between or self.options.dropout,
                Kind.OUTPUT: self.options.dropout_out,
            },
            residual=self.options.residual,
            learn_initial_state=self.options.learn_initial_state,
            has_cell_masks=self.options.has_cell_masks(),
            strict=self.options.strict,
        )
        self._add_initial_parameters(**factory)
        self._tasks = plain_calls.tasks_of(self)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes, and the options that are not at their defaults."""
        sizes = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        told = "".join(f", {name}={value!r}" for name, value in self.options.changed().items())
        return sizes + (", bidirectional=True" if self.bidirectional else "") + told

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the option `init` says."""
        for layer in range(self.num_layers):
            for direction in range(self.num_directions):
                initialise(
                    self._tensors(layer, direction), self._init, self.spec.name, self.hidden_size,
                    is_coupled=self.options.coupled_gates,
                )  # fmt: skip

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        dt: Tensor | None = None,
        return_states: bool = False,
    ) -> Any:
        """As `Stack.forward`; with `torch_compatible`, as the layer of `torch.nn` of the same name."""
        if self.torch_compatible:
            return torch_compat.call(
                self, x, state, lengths=lengths, mask=mask, resets=resets, dt=dt, return_states=return_states
            )
        if lengths is None and mask is None and resets is None and dt is None and not return_states:
            output = plain_calls.run(self, x, state)
            if output is not None:
                return output
        return super().forward(
            x, state, lengths=lengths, mask=mask, resets=resets, dt=dt, return_states=return_states
        )

    def step(
        self, x_t: Tensor, state: State | None = None, *, dt: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """As `Stack.step`."""
        if dt is None and not self.bidirectional and type(x_t) is Tensor and x_t.dim() == 2:
            output = plain_calls.run(self, x_t.unsqueeze(1), state)
            if output is not None:
                return output.y[:, 0], output.state
        return super().step(x_t, state, dt=dt)

    def run_contract(self, x: Tensor, state: State | None = None, **call: Any) -> Output:
        """`forward` of this package's contract, whatever `torch_compatible` says."""
        return super().forward(x, state, **call)

    def flatten_parameters(self) -> None:
        """Do nothing: packed copies are caches here. For code that was written for torch.nn."""

    # How one direction of one layer runs -------------------------------------------------------------

    def _choose(self, request: Request) -> Path:
        like = self._like()
        key = (request, like.dtype, like.device, backends.is_transformed())
        path = None if torch.compiler.is_compiling() else self._paths.get(key)
        if path is None:
            dropped = request.has_recurrent_dropout and self.options.dropout_recurrent > 0
            request = request._replace(has_recurrent_dropout=dropped, keeps=self._keeps)
            path = backends.choose(self.spec, self._cell_options, request, self.options.backend, like)
            if not torch.compiler.is_compiling():
                self._paths[key] = path
        return path

    def _skips_padding(self, path: str) -> bool:
        return path == "native" and not self.spec.is_linear

    def _like(self) -> Tensor:
        return named_tensor(self, "weight_ih_l0")

    def _plain_initial_state(self, B: int, like: Tensor) -> State:
        if self._learns_initial_state:
            return super()._plain_initial_state(B, like)
        return State({name: like.new_zeros(B, *shape) for name, shape in self._stacked_shapes.items()})

    def _run_direction(
        self, layer: int, direction: int, x: Tensor, state: Leaves, stretch: Stretch, **call: Any
    ) -> Result:
        tensors = self._tensors(layer, direction)
        options, noise = self._cell_options, Noise()
        clock, path = call.pop("clock"), call.pop("path")
        if self.training and clock is not None:
            tensors, options, noise = self._with_masks(layer, direction, tensors, clock)
        return ops.run(
            path,
            self.spec,
            x,
            state,
            tensors,
            options,
            stretch,
            is_reverse=direction == 1,
            noise=noise,
            keeps=self._keeps,
            **call,
        )

    def _run_layer(
        self, layer: int, x: Tensor, state: list[Leaves], stretch: Stretch, **call: Any
    ) -> tuple[Tensor, list[Result]]:
        path = call["path"]
        if path.path != "triton" or self.spec.is_linear or not self.bidirectional:
            return super()._run_layer(layer, x, state, stretch, **call)
        options, clocks = self._cell_options, call["clocks"]
        tensors, noises = [self._tensors(layer, d) for d in (0, 1)], [Noise(), Noise()]
        for d, clock in enumerate(clocks if self.training else ()):
            if clock is not None:
                tensors[d], options, noises[d] = self._with_masks(layer, d, tensors[d], clock)
        return ops.run_both(
            path, self.spec, x, state, tensors, options, stretch, noises=noises, keeps=self._keeps,
            initials=call["initials"], return_states=call["return_states"],
        )  # fmt: skip

    def _with_masks(
        self, layer: int, direction: int, tensors: dict[str, Tensor], clock: Clock
    ) -> tuple[dict[str, Tensor], CellOptions, Noise]:
        options = self.options
        where = (layer, direction)
        if options.weight_drop:
            dropped = drop_weight(tensors["weight_hh"], clock.key, *where, options.weight_drop)
            tensors = {**tensors, "weight_hh": dropped}
        recurrent = None
        if options.dropout_recurrent:
            width = tensors["weight_hh"].shape[1]
            recurrent = clock.recurrent_factors(
                *where, width, options.dropout_recurrent, tensors["weight_hh"].dtype
            )
        zoneout = {
            name: clock.stays(_ZONEOUT[name], *where, self._shapes[layer][name][0], probability)
            for name, probability in self._cell_options.zoneout.items()
        }
        return tensors, self._training_cell_options, Noise(recurrent, zoneout)

    # Parameters under torch's names ------------------------------------------------------------------

    @staticmethod
    def _suffix(layer: int, direction: int) -> str:
        return f"_l{layer}_reverse" if direction else f"_l{layer}"

    def _add_parameter(self, name: str, layer: int, direction: int, value: Tensor) -> None:
        """`weight_ih` becomes `weight_ih_l0`, and `norm_ih.weight` becomes `norm_ih_l0.weight`."""
        owner, dot, leaf = name.rpartition(".")
        suffix = self._suffix(layer, direction)
        self._full_names[layer][direction].append((name, f"{owner}{suffix}.{leaf}" if dot else name + suffix))
        if not owner:
            self.register_parameter(name + suffix, nn.Parameter(value))
            return
        if owner + suffix not in self._modules:
            self.add_module(owner + suffix, nn.Module())
        self.get_submodule(owner + suffix).register_parameter(leaf, nn.Parameter(value))

    def _tensors(self, layer: int, direction: int) -> dict[str, Tensor]:
        parameters, tensors = self._parameters, {}
        for name, full_name in self._full_names[layer][direction]:
            value = parameters.get(full_name)
            # Neither in a submodule nor where something else has taken the parameter's place.
            tensors[name] = named_tensor(self, full_name) if value is None else value
        return tensors


class RNN(GatedStack):
    """Elman network (Elman 1990), as `torch.nn.RNN`.

        h' = act(W_ih x + b_ih + W_hh h + b_hh)        act = tanh or relu

    Cost per step, layer and sequence: 2·H·(D + H) flops.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        num_layers: L.
        bias: whether there are `bias_ih` and `bias_hh`.
        bidirectional: also run from the end to the start; y is then (B, T, 2·H).
        device, dtype: of the parameters.
        **options: fields of `ostinato.layers.options.LayerOptions`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["rnn"]


class LSTM(GatedStack):
    """Long short-term memory with forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000), as
    `torch.nn.LSTM`.

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      f, o likewise
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        c' = f * c + i * g
        h' = o * tanh(c')

    Cost per step, layer and sequence: 8·H·(D + H) flops.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        num_layers: L.
        bias: whether there are `bias_ih` and `bias_hh`.
        bidirectional: also run from the end to the start; y is then (B, T, 2·H).
        device, dtype: of the parameters.
        **options: fields of `ostinato.layers.options.LayerOptions`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["lstm"]


class GRU(GatedStack):
    """Gated recurrent unit, as `torch.nn.GRU`: reset gate after the recurrent product (arXiv:1406.1078v1).

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))   reset_after=False: W_hn (r * h) + b_hn
        h' = (1 - z) * n + z * h

    Cost per step, layer and sequence: 6·H·(D + H) flops.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        num_layers: L.
        bias: whether there are `bias_ih` and `bias_hh`.
        bidirectional: also run from the end to the start; y is then (B, T, 2·H).
        device, dtype: of the parameters.
        **options: fields of `ostinato.layers.options.LayerOptions`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["gru"]
