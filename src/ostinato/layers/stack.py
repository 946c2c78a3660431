"""The machinery of every recurrent layer: stack, directions, lengths, mask, resets, state, step.

`Stack` implements the contract once; a subclass says how one direction of one layer runs: `Recurrent` for any
`Cell`, and `RNN`, `LSTM` and `GRU` in `gated.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError, SizeError
from ostinato.kernels.backends import Path, Request, products_under_autocast
from ostinato.kernels.ops import Result
from ostinato.kernels.reference import Leaves
from ostinato.kernels.stretch import Stretch
from ostinato.layers import arguments
from ostinato.layers.cells import named_tensor
from ostinato.layers.dropout import CLOCK_LEAVES, Clock, Kind, MaskKey
from ostinato.types import Output, State

Shapes = dict[str, tuple[int, ...]]


class Stack(nn.Module):
    """L layers of one or two directions under the contract of `docs/contract.md`.

    A subclass calls `_set_up` at the end of its `__init__`, and defines `_run_direction` and `_choose`.

    Attributes:
        input_size: D.
        output_size: width of y, over both directions.
        num_layers: L.
        bidirectional: whether each layer also runs from the end to the start.
        path: the backend that the last call took; `explain(x)` says beforehand, and why.
    """

    input_size: int
    output_size: int
    num_layers: int
    bidirectional: bool
    takes_dt = False
    # Their own name, which errors begin with.
    _name = "Stack"

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._name = cls.__name__

    def _set_up(
        self,
        shapes: Sequence[Shapes],
        *,
        dropout: Mapping[Kind, float],
        residual: bool,
        learn_initial_state: bool,
        has_cell_masks: bool = False,
        strict: bool = False,
    ) -> None:
        """Store what the machinery needs: each layer's leaf shapes (without B) and the options it applies."""
        self.path = "none yet"
        self._shapes = list(shapes)
        # Layers of one shape share leaves (B, L, dirs, *s); others nest.
        self._is_uniform = all(shape == shapes[0] for shape in shapes)
        grid = (self.num_layers, self.num_directions)
        self._stacked_shapes = {name: (*grid, *shape) for name, shape in shapes[0].items()}
        self._is_single = grid == (1, 1)
        self._dropout = {kind: probability for kind, probability in dropout.items() if probability}
        self._draws_masks = bool(self._dropout) or has_cell_masks
        self._residual = residual
        self._strict = strict
        self.mask_key = MaskKey()
        self._learns_initial_state = learn_initial_state
        if residual and self.num_layers == 1:
            raise InputError(
                f"{self._name}: residual=True adds from the second layer on; pass num_layers=2 or more"
            )
        if Kind.BETWEEN in self._dropout and self.num_layers == 1:
            raise InputError(
                f"{self._name}: dropout_between acts between layers and num_layers is 1; use dropout_out"
            )

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    # What a subclass defines -------------------------------------------------------------------------

    def _run_direction(
        self, layer: int, direction: int, x: Tensor, state: Leaves, stretch: Stretch, **call: Any
    ) -> Result:
        raise NotImplementedError

    def _choose(self, request: Request) -> Path:
        raise NotImplementedError

    def _skips_padding(self, path: str) -> bool:
        """Whether this path never reads x at masked steps, so that anything may stand there."""
        return False

    def _like(self) -> Tensor:
        """A tensor whose dtype and device the layer computes in."""
        for parameter in self.parameters():
            return parameter
        return torch.empty(0)

    # The contract ------------------------------------------------------------------------------------

    def initial_state(
        self, batch_size: int, *, rows: Tensor | Sequence[int] | None = None, training: bool | None = None
    ) -> State:
        """The state before the first step: zeros, or the learned one.

        Args:
            batch_size: B.
            rows: ids of the rows, which random masks depend on; 0 … B-1 by default.
            training: whether to add the leaves that random masks need; by default the module's own mode.
        """
        like = self._like()
        state = self._plain_initial_state(batch_size, like)
        is_training = self.training if training is None else training
        if not (is_training and self._draws_masks):
            return state
        return state.replace(**self._clock_leaves(batch_size, like.device, rows))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        dt: Tensor | None = None,
        return_states: bool = False,
    ) -> Output:
        """Run over one stretch.

        Args:
            x: (B, T, D).
            state: from `initial_state` or an earlier call; None starts afresh.
            lengths: (B,) integers, 0 … T: how many steps of each row are real, from the first on.
            mask: (B, T) bool, True at real steps, anywhere; not together with `lengths`.
            resets: (B, T) bool: the row starts from its initial state at this step.
            dt: (B, T), the time before each step, for cells that take it.
            return_states: also return the state after every step.

        Raises:
            InputError: arguments that exclude each other, or, under `strict`, a path that is not the fastest.
            SizeError: a shape, dtype or device that does not fit.
        """
        like = self._like()
        x = arguments.check_input(self._name, x, self.input_size, 3, like)
        stretch = arguments.make_stretch(
            self._name, x, lengths=lengths, mask=mask, resets=resets, dt=dt, takes_dt=self.takes_dt
        )
        return self._run(x, state, stretch, return_states, like)

    def step(
        self, x_t: Tensor, state: State | None = None, *, dt: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One tick: x_t (B, D), and dt (B,) for cells that take it; returns y_t (B, H) and the state.

        Raises:
            InputError: the layer is bidirectional, and would need the future.
            SizeError: a shape, dtype or device that does not fit.
        """
        if self.bidirectional:
            raise InputError(
                f"{self._name}.step: a bidirectional layer needs the whole sequence; call it on (B, T, D)"
            )
        like = self._like()
        x = arguments.check_input(f"{self._name}.step", x_t, self.input_size, 2, like).unsqueeze(1)
        stretch = arguments.make_stretch(
            f"{self._name}.step", x, lengths=None, mask=None, resets=None,
            dt=None if dt is None else dt.unsqueeze(1), takes_dt=self.takes_dt,
        )  # fmt: skip
        output = self._run(x, state, stretch, False, like)
        return output.y[:, 0], output.state

    def explain(self, x: Tensor, state: State | None = None, **arguments_of_forward: Any) -> Path:
        """What `forward` would take for these arguments, and why not a faster path; runs nothing."""
        resets = arguments_of_forward.get("resets")
        is_masked = any(arguments_of_forward.get(name) is not None for name in ("lengths", "mask"))
        request = Request(
            has_resets=resets is not None and bool(resets.any()),
            returns_states=bool(arguments_of_forward.get("return_states", False)),
            has_recurrent_dropout=self.training,
        )
        request = request.with_call(x, is_masked=is_masked)
        return self._choose(request._replace(products=products_under_autocast(x)))

    # Inside ------------------------------------------------------------------------------------------

    def _run(
        self, x: Tensor, state: State | None, stretch: Stretch, return_states: bool, like: Tensor
    ) -> Output:
        device_type = x.device.type
        if not torch.is_autocast_enabled(device_type):
            return self._run_stretch(x, state, stretch, return_states, like)
        products = products_under_autocast(x)
        with torch.autocast(device_type, enabled=False):
            output = self._run_stretch(x, state, stretch, return_states, like, products)
        y = output.y.to(torch.get_autocast_dtype(device_type))
        return Output(y, output.state, output.states, output.mask, output.directions)

    def _run_stretch(
        self,
        x: Tensor,
        state: State | None,
        stretch: Stretch,
        return_states: bool,
        like: Tensor,
        products: torch.dtype | None = None,
    ) -> Output:
        B, mask = x.shape[0], stretch.mask
        draws_masks = self._draws_masks and self.training
        if state is None:
            leaves = self._all_initial_leaves(B, like)
            place = State(self._clock_leaves(B, like.device) if draws_masks else {})
        else:
            place = state = arguments.check_state(self._name, state)
            if draws_masks:
                place = state = self._with_clock(state, B, like.device)
            leaves = self._unstack_leaves(state, B, like)
        clocks = self._clocks(place, stretch) if "row" in place else []
        request = Request(stretch.resets is not None, return_states, self.training)
        path = self._choose(request.with_call(x, is_masked=mask is not None)._replace(products=products))
        if self._strict and path.is_fallback:
            raise InputError(f"{self._name}: strict=True, and this call would take {path}")
        # Under torch.compile a comparison would tie the graph to the call before; an export is no call.
        if torch.compiler.is_compiling():
            if not torch.compiler.is_exporting():
                self.path = path.path
        elif self.path != path.path:
            self.path = path.path
        if mask is not None and not self._skips_padding(path.path):
            # What stands in the padding may be NaN; 0·NaN in a backward product would spread it.
            x = x.masked_fill(~mask.unsqueeze(2), 0.0)
        if stretch.n_steps == 0:
            now = self._stack_leaves(leaves).replace(**place) if state is None else state
            kept = None
            if return_states:
                kept = self._stack_leaves(leaves).map(lambda leaf: leaf.unsqueeze(1)[:, :0])
            return Output(x.new_zeros(B, 0, self.output_size), now, kept, mask, self.num_directions)
        y, final, states = self._run_layers(x, leaves, stretch, clocks, path, return_states)
        new_state = self._stack_leaves(final)
        if clocks:
            new_state = new_state.replace(**clocks[0].end(place, mask, stretch.resets))
        kept = self._stack_leaves(states, axis=2) if return_states else None
        return Output(y, new_state, kept, mask, self.num_directions)

    def _clocks(self, state: State, stretch: Stretch) -> list[Clock]:
        """Where the steps stand, for each direction."""
        clock = Clock.start(state, stretch.mask, stretch.resets, stretch.n_steps)
        return [clock, clock.flipped(state, stretch.reversed_resets)] if self.bidirectional else [clock]

    def _run_layers(
        self,
        x: Tensor,
        leaves: list[list[Leaves]],
        stretch: Stretch,
        clocks: list[Clock],
        path: Path,
        return_states: bool,
    ) -> tuple[Tensor, list[list[Leaves]], list[list[Leaves]]]:
        final: list[list[Leaves]] = []
        states: list[list[Leaves]] = []
        for layer, now in enumerate(leaves):
            if clocks:
                x = self._drop(x, Kind.BETWEEN if layer else Kind.INPUT, layer, clocks)
            initials: list[Leaves | None] = [None] * len(now)
            if stretch.resets is not None:
                initials = [self._initial_leaves(layer, d, x.shape[0], self._like()) for d in range(len(now))]
            y, results = self._run_layer(
                layer, x, now, stretch, path=path, initials=initials, clocks=clocks or [None] * len(now),
                return_states=return_states,
            )  # fmt: skip
            x = y + x if self._residual and layer else y
            final.append([result.state for result in results])
            states.append([result.states or {} for result in results])
        return self._drop(x, Kind.OUTPUT, self.num_layers, clocks) if clocks else x, final, states

    def _run_layer(
        self, layer: int, x: Tensor, state: list[Leaves], stretch: Stretch, **call: Any
    ) -> tuple[Tensor, list[Result]]:
        clocks, initials = call.pop("clocks"), call.pop("initials")
        results = [
            self._run_direction(layer, d, x, leaf, stretch, clock=clocks[d], initial=initials[d], **call)
            for d, leaf in enumerate(state)
        ]
        y = results[0].y if len(results) == 1 else torch.cat([result.y for result in results], dim=2)
        return y, results

    def _drop(self, x: Tensor, kind: Kind, layer: int, clocks: list[Clock]) -> Tensor:
        probability = self._dropout.get(kind, 0.0)
        if not self.training or not probability:
            return x
        return x * clocks[0].factors(kind, layer, 0, x.shape[2], probability, x.dtype)

    def _clock_leaves(
        self, B: int, device: torch.device, rows: Tensor | Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        row = torch.arange(B, device=device) if rows is None else torch.as_tensor(rows, device=device).long()
        if row.shape != (B,):
            raise SizeError(f"{self._name}.initial_state: rows has shape {tuple(row.shape)}, expected ({B},)")
        zeros = torch.zeros(B, dtype=torch.int64, device=device)
        return {"row": row, "t": zeros, "episode": zeros, "key": self.mask_key.draw(B, device)}

    def _with_clock(self, state: State, B: int, device: torch.device) -> State:
        """The state with the leaves that masks need, and with the key that is set now."""
        if not all(name in state for name in CLOCK_LEAVES):
            return state.replace(
                **{**self._clock_leaves(B, device), **{n: state[n] for n in CLOCK_LEAVES if n in state}}
            )
        if self.mask_key.is_set:
            return state.replace(key=self.mask_key.draw(B, device))
        return state

    def _plain_initial_state(self, B: int, like: Tensor) -> State:
        """`initial_state` without the leaves that random masks need."""
        return self._stack_leaves(self._all_initial_leaves(B, like))

    def _all_initial_leaves(self, B: int, like: Tensor) -> list[list[Leaves]]:
        return [
            [self._initial_leaves(layer, direction, B, like) for direction in range(self.num_directions)]
            for layer in range(self.num_layers)
        ]

    def _initial_leaves(self, layer: int, direction: int, B: int, like: Tensor) -> Leaves:
        leaves = {}
        for name, shape in self._shapes[layer].items():
            if self._learns_initial_state:
                leaves[name] = self._initial_parameter(layer, direction, name).expand(B, *shape)
            else:
                leaves[name] = like.new_zeros(B, *shape)
        return leaves

    def _initial_parameter(self, layer: int, direction: int, name: str) -> Tensor:
        if self._is_uniform:
            return named_tensor(self, f"initial_{name}")[layer, direction]
        return named_tensor(self, f"initial_{name}_layer{layer}")[direction]

    def _add_initial_parameters(self, **factory: Any) -> None:
        """Learned initial states: `initial_h` (L, dirs, *s); `initial_h_layer0` (dirs, *s), … if unequal."""
        if not self._learns_initial_state:
            return
        dirs = self.num_directions
        if self._is_uniform:
            for name, shape in self._shapes[0].items():
                value = torch.zeros(self.num_layers, dirs, *shape, **factory)
                self.register_parameter(f"initial_{name}", nn.Parameter(value))
            return
        for layer, shapes in enumerate(self._shapes):
            for name, shape in shapes.items():
                value = torch.zeros(dirs, *shape, **factory)
                self.register_parameter(f"initial_{name}_layer{layer}", nn.Parameter(value))

    def _stack_leaves(self, leaves: list[list[Leaves]], axis: int = 1) -> State:
        """Leaves of each layer and direction as one state; the axes L and dirs come in at `axis`."""
        if self._is_single:
            parts = leaves[0][0]
            return State({name: leaf.unsqueeze(axis).unsqueeze(axis) for name, leaf in parts.items()})

        def stacked(parts: list[Leaves]) -> Leaves:
            return {name: torch.stack([part[name] for part in parts], axis) for name in parts[0]}

        if self._is_uniform:
            grid = (self.num_layers, self.num_directions)
            flat = stacked([part for directions in leaves for part in directions])
            return State({name: leaf.unflatten(axis, grid) for name, leaf in flat.items()})
        return State({f"layer{layer}": State(stacked(parts)) for layer, parts in enumerate(leaves)})

    def _unstack_leaves(self, state: State, B: int, like: Tensor) -> list[list[Leaves]]:
        """The leaves of each layer and direction, checked."""
        L, dirs = self.num_layers, self.num_directions
        if self._is_uniform:
            stacked = arguments.check_leaves(self._name, state, self._stacked_shapes, B, like)
            if self._is_single:
                shapes = self._shapes[0]
                return [[{name: leaf.reshape(B, *shapes[name]) for name, leaf in stacked.items()}]]
            flat = {name: leaf.flatten(1, 2).unbind(1) for name, leaf in stacked.items()}
            return [
                [{name: parts[layer * dirs + d] for name, parts in flat.items()} for d in range(dirs)]
                for layer in range(L)
            ]
        layers = []
        for layer, own in enumerate(self._shapes):
            where = f"{self._name} layer{layer}"
            branch = arguments.check_state(where, state.get(f"layer{layer}"))
            shapes = {name: (dirs, *shape) for name, shape in own.items()}
            stacked = arguments.check_leaves(where, branch, shapes, B, like)
            layers.append(
                [{name: leaf[:, direction] for name, leaf in stacked.items()} for direction in range(dirs)]
            )
        return layers
