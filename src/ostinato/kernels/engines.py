"""Whose kernels compute a recurrence: those of the device that its tensors are on.

An operator is asked for the same thing on every device, in programs too that were traced on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ostinato.kernels import gpu_choice, native
from ostinato.kernels.recurrence import directions_of
from ostinato.kernels.task import Arguments, Task, Upstream

Gradients = tuple[Tensor | None, list[Tensor], list[Tensor], list[Tensor | None]]


class Engine(Protocol):
    """Kernels of one kind of device: what `native.py` and `triton_recurrent.py` have in common."""

    def obstacle(self, task: Task, like: Tensor) -> str | None:
        """What keeps the kernels from this task on tensors like this one; None: nothing."""

    def forward(self, task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs, and what backward needs."""

    def backward(
        self,
        task: Task,
        given: Arguments,
        saved: Sequence[Tensor],
        y: Tensor,
        upstream: Upstream,
        *,
        wants_x: bool = True,
        wants_weights: bool = True,
    ) -> Gradients:
        """Gradients of x, state, initial and weights; may write over `saved`."""

    def saved_shapes(
        self, task: Task, B: int, T: int, D: int, H: int, dtype: torch.dtype
    ) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of what forward saves."""


def obstacle(name: str, task: Task, like: Tensor) -> str | None:
    """What keeps the kernels named `native` or `triton` from a task on such tensors; None: nothing."""
    if name == "native":
        return native.obstacle(task, like)
    return gpu_choice.device_obstacle(like) or _TRITON.obstacle(task, like)


def engine_of(task: Task, x: Tensor) -> Engine | None:
    """The kernels that take this task on x (B, T, D); None where the plain steps must."""
    if task.keeps == "inputs":
        return None
    if not gpu_choice.is_for_triton(x):
        return None if native.obstacle(task, x) else native
    if x.numel() == 0 or obstacle("triton", task, x):
        return None
    return _TRITON


class _Triton:
    """`triton_recurrent.py`, imported where there is a use for it; it takes two directions as two tasks."""

    def obstacle(self, task: Task, like: Tensor) -> str | None:
        from ostinato.kernels import triton_recurrent

        return triton_recurrent.obstacle(task, like)

    def saved_shapes(
        self, task: Task, B: int, T: int, D: int, H: int, dtype: torch.dtype
    ) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
        from ostinato.kernels import triton_recurrent

        shapes = triton_recurrent.saved_shapes(task, B, T, D, H, dtype)
        return [((2, *shape), dtype) for shape, dtype in shapes] if task.is_both else shapes

    def forward(self, task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor]]:
        from ostinato.kernels import triton_recurrent

        if not task.is_both:
            return triton_recurrent.forward(task, given)
        tasks, givens = zip(*directions_of(task, given), strict=True)
        (one, other), saved = triton_recurrent.forward_directions(tasks, givens)
        n = 1 + len(given.state) // 2
        joined = [
            side_by_side(*pair) for pair in zip((one[0], *one[n:]), (other[0], *other[n:]), strict=True)
        ]
        return [joined[0], *one[1:n], *other[1:n], *joined[1:]], saved

    def backward(
        self,
        task: Task,
        given: Arguments,
        saved: Sequence[Tensor],
        y: Tensor,
        upstream: Upstream,
        *,
        wants_x: bool = True,
        wants_weights: bool = True,
    ) -> Gradients:
        from ostinato.kernels import triton_recurrent

        wants: dict[str, Any] = {"wants_x": wants_x, "wants_weights": wants_weights}
        if not task.is_both:
            return triton_recurrent.backward(task, given, saved, y, upstream, **wants)
        tasks, givens = zip(*directions_of(task, given), strict=True)
        d_y, d_cells = (
            (None, None) if value is None else value.chunk(2, 2) for value in (upstream.y, upstream.cells)
        )
        n = len(upstream.final) // 2
        upstreams = [Upstream(d_y[d], upstream.final[d * n : (d + 1) * n], d_cells[d]) for d in (0, 1)]
        d_x, (one, other) = triton_recurrent.backward_directions(tasks, givens, saved, upstreams, **wants)
        return d_x, one[0] + other[0], one[1] + other[1], one[2] + other[2]


def side_by_side(one: Tensor, other: Tensor) -> Tensor:
    """(B, T, P) and (B, T, P) as (B, T, 2·P), without a copy where they lie so already."""
    B, T, P = one.shape
    strides = (T * 2 * P, 2 * P, 1)
    # Strides of axes of size 1 say nothing.
    steps = [stride for size, stride in zip(one.shape, one.stride(), strict=True) if size > 1]
    wanted = [stride for size, stride in zip(one.shape, strides, strict=True) if size > 1]
    is_there = steps == wanted and one.stride() == other.stride()
    if is_there and other.data_ptr() - one.data_ptr() == P * one.element_size():
        return one.as_strided((B, T, 2 * P), strides)
    return torch.cat([one, other], 2)


_TRITON = _Triton()
