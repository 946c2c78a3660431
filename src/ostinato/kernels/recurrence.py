"""One direction of one layer as a call: its arguments, and its plain path.

Everything faster must equal `run_steps`: the reference's equations with `F.linear`, the input product outside
the loop. It is differentiable any number of times; `steps_gradients` gives gradients by running it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import reference
from ostinato.kernels.reference import Leaves, Noise
from ostinato.kernels.task import Arguments, Task

MaybeTensors = Sequence[Tensor | None]


def tensors_of(given: Arguments) -> list[Tensor]:
    """What can have a gradient: x, state, initial, weights."""
    return [given.x, *given.state, *given.initial, *given.weights]


def with_tensors(given: Arguments, tensors: Sequence[Tensor]) -> Arguments:
    """The same call on other tensors, in the order of `tensors_of`."""
    rest = iter(tensors)
    return given._replace(
        x=next(rest), state=[next(rest) for _ in given.state], initial=[next(rest) for _ in given.initial],
        weights=list(rest),
    )  # fmt: skip


def directions_of(task: Task, given: Arguments) -> list[tuple[Task, Arguments]]:
    """What each direction of a call of both computes."""

    def halves(values: list[Any]) -> tuple[list[Any], list[Any]]:
        n = len(values) // 2
        return values[:n], values[n:]

    lists: list[list[Any]] = [given.state, given.initial, given.weights, given.noise]
    return [
        (
            task._replace(is_reverse=is_reverse, is_both=False),
            Arguments(given.x, state, initial, weights, given.mask, given.resets, noise),
        )
        for is_reverse, (state, initial, weights, noise) in zip(
            (False, True), zip(*map(halves, lists), strict=True), strict=True
        )
    ]


def run_steps(task: Task, given: Arguments) -> list[Tensor]:
    """The same outputs as `run`, by a composition of differentiable operators."""
    if task.is_both:
        one, other = (run_steps(*direction) for direction in directions_of(task, given))
        n = 1 + len(given.state) // 2
        joined = [torch.cat(pair, 2) for pair in zip((one[0], *one[n:]), (other[0], *other[n:]), strict=True)]
        return [joined[0], *one[1:n], *other[1:n], *joined[1:]]
    if given.x.dtype != given.state[0].dtype:
        return _run_wider_steps(task, given)
    spec, is_reverse = reference.CELLS[task.cell], task.is_reverse
    x, mask, resets = given.x, given.mask, given.resets
    if x.shape[1] == 0:
        return _outputs_of_no_step(task, given)
    if mask is not None:
        # What stands in the padding may be NaN; 0·NaN in a backward product would spread it.
        x = x.masked_fill(~mask.unsqueeze(2), 0.0)
    if is_reverse:
        x, mask = x.flip(1), None if mask is None else mask.flip(1)
        # The reverse direction resets after step t, which is before its next step.
        resets = None if resets is None else F.pad(resets.flip(1), (1, -1))
    H = hidden_size(task, given)
    has_bias = len(given.weights) > len(spec.parameter_shapes(1, H, task.options, bias=False))
    names = spec.parameter_shapes(x.shape[2], H, task.options, has_bias)
    initial: Leaves | None = dict(zip(spec.leaves, given.initial, strict=True)) if given.initial else None
    state = [leaf.flatten(1) for leaf in given.state]
    ys, final, kept = reference.run(
        spec, x.transpose(0, 1), dict(zip(spec.leaves, state, strict=True)),
        dict(zip(names, given.weights, strict=True)), task.options,
        noise=_noise(given.noise), product=F.linear, hoisted=True,
        mask=None if mask is None else mask.t(), resets=None if resets is None else resets.t(),
        initial=initial, return_states=task.returns_cells,
    )  # fmt: skip
    if is_reverse and given.resets is not None and initial is not None:
        final = reference.choose(given.resets[:, 0], initial, final)
    outputs = [torch.stack(ys, 1)]
    outputs += [final[name].reshape(now.shape) for name, now in zip(spec.leaves, given.state, strict=True)]
    if task.returns_cells:
        outputs.append(torch.stack([leaves["c"] for leaves in kept], 1))
    for index in (0, -1) if task.returns_cells else (0,):
        outputs[index] = outputs[index].flip(1) if is_reverse else outputs[index]
    if task.returns_cells and given.mask is not None:
        outputs[-1] = outputs[-1].masked_fill(~given.mask.unsqueeze(2), 0.0)
    return outputs


def _run_wider_steps(task: Task, given: Arguments) -> list[Tensor]:
    """Where the state is kept in another dtype than x and the weights have: all in the state's."""
    dtype = given.state[0].dtype
    outputs = run_steps(task, with_tensors(given, [value.to(dtype) for value in tensors_of(given)]))
    return [outputs[0].to(given.x.dtype), *outputs[1:]]


def _outputs_of_no_step(task: Task, given: Arguments) -> list[Tensor]:

    def none_of(leaf: Tensor) -> Tensor:
        return leaf.unsqueeze(1)[:, :0].clone()

    cells = [none_of(given.state[1])] if task.returns_cells else []
    return [none_of(given.state[0]), *(leaf.clone() for leaf in given.state), *cells]


def hidden_size(task: Task, given: Arguments) -> int:
    """H, from the rows of `weight_ih`."""
    gates = reference.CELLS[task.cell].gates - task.options.coupled_gates
    return given.weights[0].shape[0] // gates


def _noise(noise: MaybeTensors) -> Noise:
    recurrent, *zoneout = noise
    return Noise(recurrent, {k: v for k, v in zip("hc", zoneout, strict=False) if v is not None})


def steps_gradients(task: Task, given: Arguments, wanted: Sequence[bool], grads: MaybeTensors) -> list[Any]:
    """Gradients of the wanted ones of x, state, initial and weights, by running the steps again.

    Differentiable themselves where gradients are enabled.
    """
    keeps_graph = torch.is_grad_enabled()
    tensors = tensors_of(given)
    if not keeps_graph:
        tensors = [
            value.detach().requires_grad_(is_wanted) for value, is_wanted in zip(tensors, wanted, strict=True)
        ]
    with torch.enable_grad(), torch.autocast(given.x.device.type, enabled=False):
        outputs = run_steps(task, with_tensors(given, tensors))
    pairs = [
        (output, d_output)
        for output, d_output in zip(outputs, grads, strict=True)
        if d_output is not None and output.requires_grad
    ]
    chosen = [value for value, is_wanted in zip(tensors, wanted, strict=True) if is_wanted]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs], chosen, [d_output for _, d_output in pairs],
            create_graph=keeps_graph, allow_unused=True,
        )
    )  # fmt: skip
    return [next(found) if is_wanted else None for is_wanted in wanted]
