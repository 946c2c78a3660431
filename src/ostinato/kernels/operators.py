"""A recurrence as a torch operator: differentiable, traceable, and cheap to call.

`run` is the entrance. In eager mode it calls the kernels of the tensors' device (`engines.py`: native code on
a CPU, Triton on a GPU), through one `torch.autograd.Function` where a gradient is wanted. Where PyTorch looks
on (`torch.compile`, `torch.export`, dispatch modes) the call is one opaque node for any B and T, the
registered operator `ostinato::recurrence`. Three operators:

* `recurrence`: what programs hold; its autograd kernel decides what is to be kept.
* `recurrence_saving`: the same outputs followed by what backward needs; its fake kernel knows their shapes.
* `recurrence_backward`: gradients of x, state, initial and weights, in this order.

Where no kernels can take a task, the operators run `recurrence.run_steps`, which keeps nothing and runs again
in backward. The second derivative goes the same way: gradients are enabled in backward exactly under
`create_graph=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import native, reference
from ostinato.kernels.engines import Engine, engine_of
from ostinato.kernels.gpu_choice import on_device_of
from ostinato.kernels.recurrence import (
    MaybeTensors,
    hidden_size,
    run_steps,
    steps_gradients,
    tensors_of,
)
from ostinato.kernels.reference import CellOptions
from ostinato.kernels.task import Arguments, Task, Upstream
from ostinato.kernels.tracing import is_traced

Forward = Callable[[Task, Arguments], tuple[list[Tensor], list[Tensor]]]
Backward = Callable[..., list[Tensor]]


def run(task: Task, given: Arguments) -> list[Tensor]:
    """y (B, T, P), the final leaves (B, ·), and the cell states (B, T, H) where the task returns them.

    Of a task of both directions, as `Task.is_both` says.
    At masked steps y and the cell states are 0. `task.keeps` says what is kept for backward should a gradient
    be wanted; without one nothing is kept.
    """
    if is_traced(given.x, given.weights[0]):
        return list(torch.ops.ostinato.recurrence(*given, encode(task)))
    if torch.is_grad_enabled() and _wants_gradient(given):
        return list(_Recurrence.apply(_Call(task, given, _forward, _backward), *tensors_of(given)))
    return _forward(_keeping_nothing(task), given)[0]


def run_eager(task: Task, given: Arguments) -> list[Tensor]:
    """`run` for callers who know that PyTorch does not look on and that the native code takes the task."""
    if torch.is_grad_enabled() and _wants_gradient(given):
        return list(
            _Recurrence.apply(_Call(task, given, native.forward, _native_backward), *tensors_of(given))
        )
    return native.forward(_keeping_nothing(task), given)[0]


def states_after_steps(
    leaf: Tensor,
    incoming: Tensor,
    initial: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    *,
    is_reverse: bool = False,
) -> Tensor:
    """The contract's `states`, (B, T, ·), from a leaf that is right at real steps only.

    At a masked step the state is the last real step's, or `initial` (B, ·) where a reset lies between, or
    `incoming` (B, ·) where neither came before. All tensors are in the order of x.
    """
    if mask is None:
        return leaf
    T = leaf.shape[1]
    times = torch.arange(1, T + 1, device=leaf.device)
    # Row 0 of the candidates is the incoming state, rows 1 … T the steps, the last one the initial state.
    real = torch.where(mask, times, 0)
    candidates = [incoming.unsqueeze(1), leaf]
    if is_reverse:
        real = torch.where(mask, times.flip(0), 0)
        index = real.flip(1).cummax(1).values.flip(1)
        index = torch.where(index > 0, T + 1 - index, 0)
    else:
        index = real.cummax(1).values
    if resets is not None and initial is not None:
        candidates.append(initial.unsqueeze(1))
        index = torch.where(_is_reset_since(mask, resets, is_reverse), T + 1, index)
    return torch.cat(candidates, 1).gather(1, index.unsqueeze(2).expand(-1, -1, leaf.shape[2]))


def _is_reset_since(mask: Tensor, resets: Tensor, is_reverse: bool) -> Tensor:
    """(B, T): whether the row was reset after its last real step, as the direction goes."""
    if is_reverse:
        mask, resets = mask.flip(1), F.pad(resets.flip(1), (1, -1))
    times = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last_real = torch.where(mask, times, 0).cummax(1).values
    last_reset = torch.where(resets, times, 0).cummax(1).values
    since = last_reset > last_real
    return since.flip(1) if is_reverse else since


# Differentiation -----------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """What `_Recurrence` needs beside the tensors that it differentiates."""

    task: Task
    given: Arguments
    forward: Forward
    backward: Backward


class _Recurrence(torch.autograd.Function):
    """The differentiable call; `tensors` are those of `call.given`, for autograd to see."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = call.given
        outputs, saved = call.forward(call.task, given)
        ctx.save_for_backward(*tensors, outputs[0], *saved)
        # Inputs must not be kept outside save_for_backward, where hooks and version counters miss them.
        ctx.call = (call.task, given.mask, given.resets, given.noise, call.backward)
        ctx.sizes = (len(given.state), len(given.initial), len(given.weights))
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        task, mask, resets, noise, backward = ctx.call
        n_state, n_initial, n_weights = ctx.sizes
        x, *rest = ctx.saved_tensors
        state, rest = rest[:n_state], rest[n_state:]
        initial, rest = rest[:n_initial], rest[n_initial:]
        given = Arguments(x, state, initial, rest[:n_weights], mask, resets, noise)
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *steps_gradients(task, given, wanted, grads)
        y, *saved = rest[n_weights:]
        if torch._C._autograd._get_current_graph_task_keep_graph():
            # Backward writes over what was saved, and here it may come again.
            saved = [value.clone() for value in saved]
        found = backward(task, given, wanted, y, saved, grads)
        return None, *(value if is_wanted else None for value, is_wanted in zip(found, wanted, strict=True))


def _wants_gradient(given: Arguments) -> bool:
    if given.x.requires_grad:
        return True
    for values in (given.weights, given.state, given.initial):
        for value in values:
            if value.requires_grad:
                return True
    return False


def _keeping_nothing(task: Task) -> Task:
    if task.keeps in ("nothing", "inputs"):
        return task
    return Task(task.cell, task.options, task.is_reverse, task.returns_cells, "nothing", task.is_both)


# What a call comes to ------------------------------------------------------------------------------------


def _forward(task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    engine = engine_of(task, given.x)
    if engine is None:
        with torch.no_grad():
            return run_steps(task, given), []
    with on_device_of(given.x):
        return engine.forward(task, given)


def _backward(
    task: Task,
    given: Arguments,
    wanted: Sequence[bool],
    y: Tensor,
    saved: list[Tensor],
    grads: MaybeTensors,
) -> list[Any]:
    engine = engine_of(task, given.x)
    if engine is None:
        return steps_gradients(task, given, wanted, grads)
    with on_device_of(given.x):
        return _engine_backward(engine, task, given, wanted, y, saved, grads)


def _native_backward(*call: Any) -> list[Any]:
    return _engine_backward(native, *call)


def _engine_backward(
    engine: Engine,
    task: Task,
    given: Arguments,
    wanted: Sequence[bool],
    y: Tensor,
    saved: list[Tensor],
    grads: MaybeTensors,
) -> list[Any]:
    d_y, *d_final = grads
    d_cells = d_final.pop() if task.returns_cells else None
    d_x, d_state, d_initial, d_weights = engine.backward(
        task, given, saved, y, Upstream(d_y, d_final, d_cells), wants_x=wanted[0],
        wants_weights=any(wanted[-len(given.weights) :]),
    )  # fmt: skip
    return [d_x, *d_state, *d_initial, *d_weights]


# Registration --------------------------------------------------------------------------------------------


def decompositions() -> dict[Any, Callable[..., list[Tensor]]]:
    """For `ExportedProgram.run_decompositions`: the recurrence in PyTorch's own operators, for any runtime.

    The steps are unrolled, so time must not be dynamic: meant for exported single steps.
    """
    return {_OPERATORS.recurrence.default: _recurrence_by_steps}


def _recurrence_by_steps(*flat: Any) -> list[Tensor]:
    return run_steps(decode(flat[-1]), Arguments(*flat[:-1]))


def encode(task: Task) -> str:
    """The task as the operators take it: words, then after a bar the options of the cell."""
    words = f"{task.cell} keeps={task.keeps}"
    words += " is_reverse" if task.is_reverse else ""
    words += " returns_cells" if task.returns_cells else ""
    words += " is_both" if task.is_both else ""
    return f"{words} | {task.options.text}"


@lru_cache(maxsize=1024)
def decode(text: str) -> Task:
    """What `encode` wrote."""
    words, _, options = text.partition("|")
    cell, keeps, *flags = words.split()
    return Task(
        cell, CellOptions.from_text(options), "is_reverse" in flags, "returns_cells" in flags,
        keeps.removeprefix("keeps="), "is_both" in flags,
    )  # fmt: skip


_GIVEN = (
    "Tensor x, Tensor[] state, Tensor[] initial, Tensor[] weights, Tensor? mask, Tensor? resets, "
    "Tensor?[] noise"
)
_GRADIENTS = "bool[] wanted, Tensor y, Tensor[] saved, Tensor?[] grads"
_LIBRARY = torch.library.Library("ostinato", "FRAGMENT")
_LIBRARY.define(f"recurrence({_GIVEN}, str task) -> Tensor[]")
_LIBRARY.define(f"recurrence_saving({_GIVEN}, str task) -> Tensor[]")
_LIBRARY.define(f"recurrence_backward({_GIVEN}, {_GRADIENTS}, str task) -> Tensor[]")
_OPERATORS = torch.ops.ostinato
_AUTOGRAD_KEYS = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)


def _register() -> None:
    for name, kernel in (
        ("recurrence", _recurrence),
        ("recurrence_saving", _recurrence_saving),
        ("recurrence_backward", _recurrence_backward),
    ):
        # Whatever the device: where its kernels cannot run, the steps do.
        _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl("recurrence", _recurrence_autograd, "Autograd")
    for name, fake in (
        ("recurrence", _fake_recurrence),
        ("recurrence_saving", _fake_recurrence_saving),
        ("recurrence_backward", _fake_recurrence_backward),
    ):
        torch.library.register_fake(f"ostinato::{name}", fake, lib=_LIBRARY)


def _recurrence(*flat: Any) -> list[Tensor]:
    return _apart(_forward(_keeping_nothing(decode(flat[-1])), Arguments(*flat[:-1]))[0])


def _recurrence_saving(*flat: Any) -> list[Tensor]:
    outputs, saved = _forward(decode(flat[-1]), Arguments(*flat[:-1]))
    return _apart([*outputs, *saved])


def _apart(outputs: list[Tensor]) -> list[Tensor]:
    """The same, where two lie in one storage copied: an operator's outputs must not alias each other."""
    seen: set[int] = set()
    found = []
    for value in outputs:
        at = value.untyped_storage().data_ptr()
        found.append(value.clone() if at in seen else value)
        seen.add(at)
    return found


def _recurrence_backward(*flat: Any) -> list[Tensor]:
    *parts, wanted, y, saved, grads, text = flat
    given = Arguments(*parts)
    # Operators run below autograd, where nothing is recorded; running the steps again needs it.
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in _AUTOGRAD_KEYS:
        excluded = excluded.remove(key)
    with (
        torch.no_grad(),
        torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded),
    ):
        # An operator leaves its arguments as they are.
        found = _backward(decode(text), given, wanted, y, [value.clone() for value in saved], grads)
    return [
        torch.zeros_like(value) if d_value is None else d_value.contiguous()
        for value, d_value, is_wanted in zip(tensors_of(given), found, wanted, strict=True)
        if is_wanted
    ]


def _recurrence_autograd(*flat: Any) -> list[Tensor]:
    given, task = Arguments(*flat[:-1]), decode(flat[-1])
    if torch.is_grad_enabled() and _wants_gradient(given):
        return list(
            _Recurrence.apply(_Call(task, given, _saving_operator, _backward_operator), *tensors_of(given))
        )
    with torch._C._AutoDispatchBelowAutograd():
        return list(_OPERATORS.recurrence(*flat))


def _saving_operator(task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    with torch._C._AutoDispatchBelowAutograd():
        flat = _OPERATORS.recurrence_saving(*given, encode(task))
    n_outputs = _n_outputs(task)
    return flat[:n_outputs], flat[n_outputs:]


def _backward_operator(
    task: Task, given: Arguments, wanted: Sequence[bool], y: Tensor, saved: list[Tensor], grads: MaybeTensors
) -> list[Any]:
    found = iter(_OPERATORS.recurrence_backward(*given, wanted, y, saved, grads, encode(task)))
    return [next(found) if is_wanted else None for is_wanted in wanted]


def _n_outputs(task: Task) -> int:
    return 1 + len(reference.CELLS[task.cell].leaves) * (1 + task.is_both) + task.returns_cells


def _fake_recurrence(*flat: Any) -> list[Tensor]:
    return _empty_outputs(decode(flat[-1]), Arguments(*flat[:-1]))


def _fake_recurrence_saving(*flat: Any) -> list[Tensor]:
    given, task = Arguments(*flat[:-1]), decode(flat[-1])
    outputs = _empty_outputs(task, given)
    engine = engine_of(task, given.x)
    if engine is None:
        return outputs
    B, T, _ = given.x.shape
    # Whatever is dynamic, the widths are not: a task is compiled into kernels by them.
    widths = int(given.weights[0].shape[1]), int(hidden_size(task, given))
    shapes = engine.saved_shapes(task, B, T, *widths, given.x.dtype)
    return [*outputs, *(given.x.new_empty(shape, dtype=dtype) for shape, dtype in shapes)]


def _fake_recurrence_backward(*flat: Any) -> list[Tensor]:
    *parts, wanted, _, _, _, _ = flat
    tensors = tensors_of(Arguments(*parts))
    return [
        value.new_empty(value.shape) for value, is_wanted in zip(tensors, wanted, strict=True) if is_wanted
    ]


def _empty_outputs(task: Task, given: Arguments) -> list[Tensor]:
    B, T, _ = given.x.shape
    H = hidden_size(task, given)
    sizes, n = reference.CELLS[task.cell].state_sizes(H, task.options), 1 + task.is_both
    outputs = [given.x.new_empty(B, T, n * sizes["h"][0])]
    # Under autocast the state is wider than x.
    widths = [*sizes.values()] * n
    outputs += [leaf.new_empty(B, *size) for leaf, size in zip(given.state, widths, strict=True)]
    if task.returns_cells:
        outputs.append(given.state[1].new_empty(B, T, n * H))
    return outputs


_register()
