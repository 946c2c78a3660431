"""Whose kernels compute a recurrence: those of the device that its tensors are on.

An operator is asked for the same thing on every device, in programs too that were traced on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels import gpu_choice, native
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
    return gpu_choice.device_obstacle(like) or _triton().obstacle(task, like)


def engine_of(task: Task, x: Tensor) -> Engine | None:
    """The kernels that take this task on x (B, T, D); None where the plain steps must."""
    if task.keeps == "inputs":
        return None
    if not gpu_choice.is_for_triton(x):
        return None if native.obstacle(task, x) else native
    if x.numel() == 0 or obstacle("triton", task, x):
        return None
    return _triton()


def _triton() -> Engine:
    """Imported where there is a use for it."""
    from ostinato.kernels import triton_recurrent

    return triton_recurrent
