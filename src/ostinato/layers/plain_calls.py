"""The short way of the most common call through RNN, LSTM and GRU.

`Stack.forward` is written for every call: masks, resets, random masks, any backend. Deciding all that takes
longer than a small network runs. An eager call of our own kernels over whole rows needs none of it, and goes
here; results are the same to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ostinato.kernels import ops
from ostinato.kernels.backends import KERNELS, Request
from ostinato.kernels.task import Task
from ostinato.layers import arguments
from ostinato.types import Output, State

if TYPE_CHECKING:
    from ostinato.layers.gated import GatedStack

_REQUESTS = {is_training: Request(False, False, is_training) for is_training in (False, True)}


def tasks_of(stack: GatedStack) -> tuple[Task, ...] | None:
    """What each direction computes in such a call; None for a stack that always needs the long way."""
    if stack.spec.is_linear or stack._residual or stack._learns_initial_state:
        return None
    return tuple(
        Task(stack.spec.name, stack._cell_options, direction == 1, False, stack._keeps)
        for direction in range(stack.num_directions)
    )


def run(stack: GatedStack, x: Any, state: State | None) -> Output | None:
    """`forward` of x (B, T, D) in a plain call; None where the long way must decide, or refuse."""
    tasks = stack._tasks
    if tasks is None or (stack._draws_masks and stack.training):
        return None
    like = stack._parameters.get("weight_ih_l0")
    if like is None or type(x) is not Tensor or x.dtype != like.dtype or not _are_together(x, like):
        return None
    shape = x.shape
    if len(shape) != 3 or shape[2] != stack.input_size or not shape[0] or not shape[1]:
        return None
    if not ops.is_eager(x, like):
        return None
    # A state that knows its place among random masks passes it on.
    if state is not None and "row" in arguments.check_state(stack._name, state):
        return None
    request = _REQUESTS[stack.training]
    path = stack._choose(request if x.is_cpu else request.with_call(x, is_masked=False))
    if path.path not in KERNELS or path.is_fallback or (stack.bidirectional and path.path == "triton"):
        return None
    if stack.path != path.path:
        stack.path = path.path
    if stack._is_single:
        return _run_single(stack, path.path, x, state, like)
    if state is None:
        leaves = stack._all_initial_leaves(shape[0], like)
    else:
        leaves = stack._unstack_leaves(state, shape[0], like)
    final = []
    for layer, now in enumerate(leaves):
        results = [
            ops.run_plain(
                path.path, tasks[direction], x, list(leaf.values()), _weights(stack, layer, direction)
            )
            for direction, leaf in enumerate(now)
        ]
        x = results[0][0] if len(results) == 1 else torch.cat([result[0] for result in results], dim=2)
        final.append([dict(zip(now[0], result[1:], strict=True)) for result in results])
    return Output(x, stack._stack_leaves(final), directions=stack.num_directions)


def _are_together(one: Tensor, other: Tensor) -> bool:
    # Two truth values cost less than two devices.
    return (one.is_cpu and other.is_cpu) or one.device == other.device


def _run_single(stack: GatedStack, path: str, x: Tensor, state: State | None, like: Tensor) -> Output:
    """One layer and one direction: leaves stay (B, 1, 1, H) all the way."""
    B, shapes = x.shape[0], stack._stacked_shapes
    if state is None:
        leaves = [torch.zeros(B, *shape, dtype=like.dtype, device=like.device) for shape in shapes.values()]
    else:
        leaves = list(arguments.check_leaves(stack._name, state, shapes, B, like).values())
    assert stack._tasks is not None
    y, *final = ops.run_plain(path, stack._tasks[0], x, leaves, _weights(stack, 0, 0))
    return Output(y, State(dict(zip(shapes, final, strict=True))))


def _weights(stack: GatedStack, layer: int, direction: int) -> list[Tensor]:
    return list(stack._tensors(layer, direction).values())
