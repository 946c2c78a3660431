"""Linear recurrences h' = keep * h + add, unit by unit: what a scan is, its native and its plain path.

Any coefficients, or those of the cells that have them: then the gate functions run inside the same pass over
memory, and keep and add are never stored. `scan_operators.py` makes it differentiable and visible to torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import gpu_choice, reference
from ostinato.kernels.gpu_choice import on_device_of
from ostinato.kernels.native_module import MISSING as _MISSING
from ostinato.kernels.native_module import extension as _native
from ostinato.kernels.reference import CELLS, CellOptions, CellSpec, Leaves, Weights


class Rule(NamedTuple):
    """How a scan runs.

    Attributes:
        gates: what the inputs are: `linear` for keep and add themselves, else a cell's name, with `_linear`
            behind it for a linear candidate.
        is_reverse: from the last step to the first.
        carries: y is the state at masked steps rather than 0.
    """

    gates: str = "linear"
    is_reverse: bool = False
    carries: bool = False

    @property
    def cell(self) -> tuple[CellSpec, CellOptions]:
        """The cell that the gates are those of."""
        name, _, candidate = self.gates.partition("_")
        return CELLS[name], CellOptions(candidate=candidate or "positive")


class Given(NamedTuple):
    """What a scan runs on.

    Attributes:
        inputs: keep and add, each (B, T, H) of any strides, 0 included; or a cell's input part (B, T, G·H).
        start: (B, H), the state before the first step.
        decay: (H,), the RG-LRU's parameter, else None.
        initial: (B, H), the state after a reset; needed with `resets`, else None.
        mask, resets: (B, T) bool in the order of the inputs, also in reverse; or None.
    """

    inputs: list[Tensor]
    start: Tensor
    decay: Tensor | None = None
    initial: Tensor | None = None
    mask: Tensor | None = None
    resets: Tensor | None = None

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """Inputs, start, decay, initial."""
        return *self.inputs, self.start, self.decay, self.initial

    def with_differentiable(self, tensors: Sequence[Any]) -> Given:
        """The same scan of other tensors."""
        *inputs, start, decay, initial = tensors
        return Given(inputs, start, decay, initial, self.mask, self.resets)


def obstacle(like: Tensor, kernels: str = "native") -> str | None:
    """What keeps the kernels named `native` or `triton` from such tensors; None: nothing."""
    if kernels == "triton":
        return gpu_choice.device_obstacle(like) or _triton().obstacle(like)
    if _native is None:
        return _MISSING
    if like.device.type != "cpu":
        return f"the native kernels run on the CPU, not on {like.device.type}"
    if like.dtype not in (torch.float32, torch.float64):
        return f"the native scan computes in float32 or float64, not in {str(like.dtype)[6:]}"
    return None


def _triton() -> Any:
    """Imported where there is a use for it."""
    from ostinato.kernels import triton_scan

    return triton_scan


# The plain path ------------------------------------------------------------------------------------------


def run_steps(rule: Rule, given: Given) -> tuple[Tensor, Tensor]:
    """As `run`, by differentiable operators, a few for each step."""
    dtype = given.start.dtype
    if given.inputs[0].dtype != dtype:
        wider = given.with_differentiable(
            [value if value is None else value.to(dtype) for value in given.differentiable]
        )
        y, state = run_steps(rule, wider)
        return y.to(given.inputs[0].dtype), state
    keep, add = given.inputs if rule.gates == "linear" else _coefficients(rule, given)
    mask, resets = given.mask, given.resets
    if rule.gates == "linear" and mask is not None:
        # What stands in the padding may be NaN; 0·NaN in a backward product would spread it.
        keep, add = (value.masked_fill(~mask.unsqueeze(2), 0.0) for value in (keep, add))
    if rule.is_reverse:
        keep, add = keep.flip(1), add.flip(1)
        mask = None if mask is None else mask.flip(1)
        # The reverse direction resets after step t, which is before its next step.
        resets = None if resets is None else F.pad(resets.flip(1), (1, -1))
    parts = list(zip(keep.unbind(1), add.unbind(1), strict=True))

    def step(t: int, state: Leaves) -> tuple[Tensor, Leaves]:
        h = parts[t][0] * state["h"] + parts[t][1]
        return h, {"h": h}

    initial = None if given.initial is None else {"h": given.initial}
    ys, final, states = reference.scan(
        step, len(parts), {"h": given.start}, mask=None if mask is None else mask.t(),
        resets=None if resets is None else resets.t(), initial=initial, return_states=rule.carries,
    )  # fmt: skip
    if rule.carries:
        ys = [state["h"] for state in states]
    if rule.is_reverse and given.resets is not None and initial is not None and parts:
        final = reference.choose(given.resets[:, 0], initial, final)
    y = torch.stack(ys[::-1] if rule.is_reverse else ys, 1) if ys else add.clone()
    # An operator's outputs are its own: without a step the state would be its input.
    return y, final["h"] if parts else final["h"].clone()


def _coefficients(rule: Rule, given: Given) -> tuple[Tensor, Tensor]:
    spec, options = rule.cell
    assert spec.coefficients is not None
    tensors = {} if given.decay is None else {"decay": given.decay}
    return spec.coefficients(given.inputs[0], Weights(tensors, F.linear), options)


def steps_gradients(
    rule: Rule, given: Given, wanted: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of what is differentiable, by running the steps again.

    Differentiable themselves where gradients are enabled.
    """
    keeps_graph = torch.is_grad_enabled()
    tensors = list(given.differentiable)
    if not keeps_graph:
        tensors = [value if value is None else value.detach() for value in tensors]
        for value, is_wanted in zip(tensors, wanted, strict=True):
            if value is not None and is_wanted:
                value.requires_grad_()
    with torch.enable_grad():
        outputs = run_steps(rule, given.with_differentiable(tensors))
    pairs = [
        pair for pair in zip(outputs, grads, strict=True) if pair[1] is not None and pair[0].requires_grad
    ]
    chosen = [
        value for value, is_wanted in zip(tensors, wanted, strict=True) if is_wanted and value is not None
    ]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs], chosen, [d_output for _, d_output in pairs],
            create_graph=keeps_graph, allow_unused=True,
        )
    )  # fmt: skip
    return [next(found) if is_wanted else None for is_wanted in wanted]


# The kernels ---------------------------------------------------------------------------------------------


def _engine(given: Given) -> str | None:
    """Whose kernels take it: those of its device, if anybody's."""
    name = "triton" if gpu_choice.is_for_triton(given.start) else "native"
    # Empty tensors have no address.
    if given.inputs[0].numel() == 0:
        return None
    # Autocast makes inputs narrower than the state; native code reads one type, Triton's those that it knows.
    same = name == "triton" or given.inputs[0].dtype == given.start.dtype
    like = (given.start, given.inputs[0])
    return name if same and all([obstacle(value, name) is None for value in like]) else None


def forward(rule: Rule, given: Given) -> tuple[Tensor, Tensor]:
    """y and the final state, by kernels where nothing keeps them from it."""
    engine = _engine(given)
    if engine is None:
        with torch.no_grad():
            return run_steps(rule, given)
    if engine == "triton":
        with on_device_of(given.start):
            return _triton().forward(rule, given)
    B, T, H = sizes(given)
    y, state = given.start.new_empty(B, T, H), given.start.new_empty(B, H)
    arguments, held = _common(rule, given)
    _native.scan_forward(*arguments, _series(y), _rows(state))
    del held
    return y, state


def backward(
    rule: Rule, given: Given, wanted: Sequence[bool], y: Tensor, grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of what is differentiable, in that order, from those of y and of the final state."""
    engine = _engine(given)
    if engine is None:
        return steps_gradients(rule, given, wanted, grads)
    if engine == "triton":
        with on_device_of(given.start):
            return _triton().backward(rule, given, wanted, y, grads)
    B, _, H = sizes(given)
    arguments, held = _common(rule, given)
    d_y, d_state = (None if grad is None else _with_contiguous_units(grad) for grad in grads)
    d_inputs: list[Tensor | None] = [
        value.new_empty(value.shape) if is_wanted else None
        for value, is_wanted in zip(given.inputs, wanted, strict=False)
    ]
    d_start = given.start.new_empty(B, H)
    d_initial = None if given.initial is None else given.start.new_empty(B, H)
    d_rates = d_rate = d_decay = None
    if given.decay is not None:
        d_rates, d_rate = given.start.new_empty(B, H), given.start.new_empty(H)
    _native.scan_backward(
        *arguments, _series(y), _series(d_y), _rows(d_state), _gate_series(rule, d_inputs, H), _rows(d_start),
        _rows(d_initial), [*_rows(d_rates), 0 if d_rate is None else d_rate.data_ptr()],
    )  # fmt: skip
    del held
    if given.decay is not None and d_rate is not None:
        d_decay = -8 * torch.sigmoid(-given.decay) * d_rate
    return [*d_inputs, d_start, d_decay, d_initial]


def sizes(given: Given) -> tuple[int, int, int]:
    """B, T and H."""
    return *given.inputs[0].shape[:2], given.start.shape[1]


def _common(rule: Rule, given: Given) -> tuple[list[Any], list[Tensor]]:
    """The arguments that both passes share, and the tensors that must outlive the call."""
    inputs = [_with_contiguous_units(value) for value in given.inputs]
    start = _with_contiguous_units(given.start)
    initial = None if given.initial is None else _with_contiguous_units(given.initial)
    flags = [None if value is None else value.contiguous() for value in (given.mask, given.resets)]
    # -log of what an open gate keeps.
    rate = None if given.decay is None else -8 * F.logsigmoid(given.decay.detach()).contiguous()
    B, T, H = sizes(given)
    pointers = [0 if value is None else value.data_ptr() for value in (rate, *flags)]
    arguments = [
        start.dtype == torch.float64, rule.gates, [B, T, H], _gate_series(rule, inputs, H), _rows(start),
        _rows(initial), pointers, rule.is_reverse, rule.carries, torch.get_num_threads(),
    ]  # fmt: skip
    return arguments, [value for value in (*inputs, start, initial, rate, *flags) if value is not None]


def _with_contiguous_units(value: Tensor) -> Tensor:
    return value if value.stride(-1) == 1 or value.shape[-1] <= 1 else value.contiguous()


def _series(value: Tensor | None) -> list[int]:
    return [0, 0, 0] if value is None else [value.data_ptr(), value.stride(0), value.stride(1)]


def _rows(value: Tensor | None) -> list[int]:
    return [0, 0] if value is None else [value.data_ptr(), value.stride(0)]


def _gate_series(rule: Rule, values: Sequence[Tensor | None], H: int) -> list[int]:
    """Of keep and add, or of the blocks of H in one input part."""
    if rule.gates == "linear":
        return [number for value in values for number in _series(value)]
    (part,) = values
    address, *strides = _series(part)
    size = 0 if part is None else H * part.element_size()
    return [number for g in range(rule.cell[0].gates) for number in (address + g * size, *strides)]
