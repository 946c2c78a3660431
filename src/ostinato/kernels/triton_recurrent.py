"""The path `triton`: RNN, LSTM and GRU on an NVIDIA GPU, forward and backward, in our own Triton kernels.

The products over all steps (of x before the loop; the gradients of weights and of x after it) are single
matrix products of torch; between them runs one kernel that keeps the recurrent weights on the multiprocessors
(`triton_forward.py`, `triton_backward.py`), cut as `triton_plan.py` says. Nothing here waits for the GPU, so
that a call can be captured in a CUDA graph. Triton is imported at the first call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ostinato.kernels import triton_call, triton_launch, triton_normed, triton_plan
from ostinato.kernels.recurrence import hidden_size, run_steps
from ostinato.kernels.task import Arguments, Task, Upstream
from ostinato.kernels.triton_call import call_of, slots_of
from ostinato.kernels.triton_launch import Kept
from ostinato.kernels.triton_plan import CHIPS, Chip, Plan, padded
from ostinato.kernels.triton_plan import mode as mode  # noqa: PLC0414 - part of this interface

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(task: Task, like: Tensor) -> str | None:
    """What keeps the kernels from this task where `gpu_choice.device_obstacle` is None; None: nothing."""
    if like.dtype not in _DTYPES:
        return f"the Triton kernels compute in float32, bfloat16 and float16, not in {like.dtype}"
    return _task_obstacle(task)


def _task_obstacle(task: Task) -> str | None:
    options = task.options
    if task.cell not in ("rnn", "lstm", "gru"):
        return f"there is no Triton kernel of the cell {task.cell!r}"
    if options.projection:
        return "there is no Triton kernel of a projection"
    changed = options.peephole or options.coupled_gates or options.zoneout or options.norm
    if task.keeps == "outputs" and (changed or not options.reset_after):
        return "gates are recomputed for cells without options only"
    return None


def saved_shapes(
    task: Task, B: int, T: int, D: int, H: int, dtype: torch.dtype
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of what forward saves: gates, h before each step, c before each step, and the moments
    of the c after it where that is normalised.
    """
    if task.keeps == "nothing":
        return []
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
    if task.keeps == "gates":
        shapes.append(((B, T, slots_of(task) * padded(H)), dtype))
    shapes.append(((B, T, padded(H)), dtype))
    if task.cell == "lstm":
        shapes.append(((B, T, padded(H)), torch.float32))
        if task.options.norm:
            shapes.append(((B, T, 2), torch.float32))
    return shapes


def plan_of(tasks: Sequence[Task], like: Tensor, H: int, only: str | None = None) -> Plan:
    """How a call on tensors like x (B, T, D) is cut on its device."""
    chip = CHIPS[9, 0]
    if like.device.type == "cuda":
        chip = Chip.of(like.device.index if like.device.index is not None else torch.cuda.current_device())
    precision = triton_plan.precision_of(like.dtype)
    # Keeping is no matter of the cut; without it one plan serves both.
    task = tasks[0]._replace(keeps="nothing", is_reverse=False, returns_cells=False)
    found = triton_plan.plan(
        task, like.shape[0], H, like.dtype, chip, precision=precision, n_directions=len(tasks), only=only
    )
    # The interpreter runs one thread block after the other: none could wait for the next.
    return found._replace(is_phased=found.is_phased or (is_interpreted() and found.mode == "group"))


def forward(task: Task, given: Arguments, *, only: str | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Run over x (B, T, D); `only` asks for one of the modes.

    Returns:
        y (B, T, H), the final leaves as the given ones, and the cell states (B, T, H) where the task returns
        them; and what backward needs, in the shapes of `saved_shapes`.
    """
    outputs, saved = forward_directions([task], [given], only=only)
    return outputs[0], [value[0] for value in saved]


def forward_directions(
    tasks: Sequence[Task], givens: Sequence[Arguments], *, only: str | None = None
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """`forward` of several directions over the same x, mask and resets, in one launch.

    Returns:
        The outputs of each direction, and what backward needs, directions in front.
    """
    x = givens[0].x
    B, T, _ = x.shape
    if B * T == 0:
        outputs = [run_steps(task, given) for task, given in zip(tasks, givens, strict=True)]
        H = hidden_size(tasks[0], givens[0])
        shapes = saved_shapes(tasks[0], B, T, x.shape[2], H, x.dtype)
        return outputs, [x.new_empty((len(tasks), *shape), dtype=dtype) for shape, dtype in shapes]
    call = call_of(tasks, givens)
    ran = triton_launch.forward(call, plan_of(tasks, x, call.H, only))
    outputs = []
    for d, given in enumerate(givens):
        leaves = [one[d].view(leaf.shape) for one, leaf in zip(ran.final, given.state, strict=True)]
        cells = [] if ran.cells is None else [ran.cells[:, :, d]]
        outputs.append([ran.y[:, :, d], *leaves, *cells])
    return outputs, [one for one in ran.kept if one is not None]


Gradients = tuple[Tensor | None, list[Tensor], list[Tensor], list[Tensor | None]]


def backward(
    task: Task,
    given: Arguments,
    saved: Sequence[Tensor],
    y: Tensor,
    upstream: Upstream,
    *,
    wants_x: bool = True,
    wants_weights: bool = True,
    only: str | None = None,
) -> Gradients:
    """Gradients of x, state, initial and weights from those of the outputs. Writes over `saved`."""
    d_x, found = backward_directions(
        [task], [given], [value.unsqueeze(0) for value in saved], [upstream], wants_x=wants_x,
        wants_weights=wants_weights, only=only,
    )  # fmt: skip
    return d_x, *found[0]


def backward_directions(
    tasks: Sequence[Task],
    givens: Sequence[Arguments],
    saved: Sequence[Tensor],
    upstreams: Sequence[Upstream],
    *,
    wants_x: bool = True,
    wants_weights: bool = True,
    only: str | None = None,
) -> tuple[Tensor | None, list[tuple[list[Tensor], list[Tensor], list[Tensor | None]]]]:
    """`backward` of several directions in one launch: the gradient of x, and the other three of each."""
    x = givens[0].x
    if x.shape[0] * x.shape[1] == 0:
        return (torch.zeros_like(x) if wants_x else None), [
            _of_no_step(given, upstream, wants_weights)
            for given, upstream in zip(givens, upstreams, strict=True)
        ]
    task, call = tasks[0], call_of(tasks, givens)
    h_in, *cells = saved[1:] if task.keeps == "gates" else saved
    slots = saved[0] if task.keeps == "gates" else triton_call.gates_again(call, h_in)
    kept = Kept(slots, h_in, *cells)
    even = triton_normed.even_products(call, slots, h_in) if task.options.norm else None
    n_leaves = len(givens[0].state)
    final = [_side_by_side([upstream.final[k] for upstream in upstreams], 0) for k in range(n_leaves)]
    returned = triton_launch.backward(
        call, plan_of(tasks, x, call.H, only), kept,
        _side_by_side([upstream.y for upstream in upstreams], 2),
        [None if one is None else one.flatten(2) for one in final],
        _side_by_side([upstream.cells for upstream in upstreams], 2), even,
    )  # fmt: skip
    of_inputs = [triton_normed.input_gradients(call, slots, d) for d in range(len(tasks)) if even is not None]
    found = []
    for d, given in enumerate(givens):
        d_weights: list[Tensor | None] = [None] * len(given.weights)
        if wants_weights:
            if even is not None:
                sums = triton_normed.weight_gradients(
                    call, slots, h_in, even, of_inputs[d], returned.cell_norm, d
                )
            else:
                sums = triton_call.weight_gradients(call, slots, h_in, d)
            if returned.peephole is not None:
                sums["peephole"] = returned.peephole[d].sum(0)
            d_weights = [
                sums[name].to(like.dtype) for name, like in zip(call.weights[d], given.weights, strict=True)
            ]
        found.append(
            (_as(returned.state, given.state, d), _as(returned.initial, given.initial, d), d_weights)
        )
    if not wants_x:
        return None, found
    if even is not None:
        return triton_normed.input_gradient(call, [d_product for d_product, _ in of_inputs]), found
    return triton_call.input_gradient(call, slots), found


def _as(values: Sequence[Tensor], leaves: Sequence[Tensor], d: int) -> list[Tensor]:
    """Those of direction d, in the shapes and dtypes of the leaves; zeros for leaves that had no part."""
    if not values:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return [one[d].view(leaf.shape).to(leaf.dtype) for one, leaf in zip(values, leaves, strict=True)]


def _side_by_side(values: Sequence[Tensor | None], dim: int) -> Tensor | None:
    """Directions along a new axis, contiguous; None where no direction has one."""
    there = [one for one in values if one is not None]
    if not there:
        return None
    if len(values) == 1:
        return there[0].unsqueeze(dim).contiguous()
    return torch.stack([torch.zeros_like(there[0]) if one is None else one for one in values], dim)


def _of_no_step(
    given: Arguments, upstream: Upstream, wants_weights: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    state = [
        torch.zeros_like(leaf) if grad is None else grad.to(leaf.dtype)
        for leaf, grad in zip(given.state, upstream.final, strict=True)
    ]
    weights = [torch.zeros_like(one) if wants_weights else None for one in given.weights]
    return state, [torch.zeros_like(leaf) for leaf in given.initial], weights
