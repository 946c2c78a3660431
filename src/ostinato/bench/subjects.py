"""Our own layers as contestants; only public calls are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ostinato
from ostinato.bench.cases import Array, Case, Problem
from ostinato.bench.timing import Contestant
from ostinato.layers.gated import GatedStack
from ostinato.types import State

NAME = "ostinato"
STEPS_CHECKED = 10
# With the key fixed, a call's random masks are the same every time and in every contestant.
MASK_SEED, MASK_STEP = 7, 0


class Operands(NamedTuple):
    """A layer and what goes in, on our side batch-first."""

    layer: GatedStack
    x: Tensor
    state: State
    wanted: list[Tensor]
    d_outputs: list[Tensor]
    lengths: Tensor | None


def operands(problem: Problem, dtype: torch.dtype = torch.float32, **options: Any) -> Operands:
    """Our layer with the problem's parameters, and its inputs; `options` come on top of the case's."""
    case = problem.case
    layer = _layer(case, dtype, options)
    layer.load_state_dict(
        {name: torch.tensor(value, dtype=dtype) for name, value in problem.parameters.items()}
    )
    layer.mask_key.set_mask_key(MASK_SEED, MASK_STEP)
    is_training = case.mode == "training"

    def leaf(value: Array) -> Tensor:
        return torch.tensor(value, dtype=dtype).requires_grad_(is_training)

    x = leaf(problem.x)
    leaves = {name: leaf(_batch_first(value, case)) for name, value in problem.state.items()}
    state = layer.initial_state(case.B).replace(**leaves)
    d_state = [torch.tensor(_batch_first(value, case), dtype=dtype) for value in problem.d_state.values()]
    return Operands(
        layer,
        x,
        state,
        [x, *leaves.values(), *layer.parameters()],
        [torch.tensor(problem.d_y, dtype=dtype), *d_state],
        None if problem.lengths is None else torch.from_numpy(problem.lengths),
    )


def _layer(case: Case, dtype: torch.dtype, options: dict[str, Any]) -> GatedStack:
    more = tuple((name, value) for name, value in options.items())
    return Case(**{**vars(case), "options": case.options + more}).make_layer(dtype)


def _batch_first(leaf: Array, case: Case) -> Array:
    """(L·dirs, B, ·) -> (B, L, dirs, ·)."""
    stacked = leaf.reshape(case.layers, case.directions, *leaf.shape[1:])
    return np.ascontiguousarray(np.moveaxis(stacked, 2, 0))


def named_gradients(problem: Problem, found: Iterable[Tensor | None]) -> dict[str, Any]:
    """`d_x`, `d_h`, `d_c`, `d_weight_ih_l0`, … for gradients in the order of `Operands.wanted`."""
    names = ["x", *problem.state, *problem.parameters]
    return {f"d_{name}": value for name, value in zip(names, found, strict=True)}


def ours(
    problem: Problem, threads: int, *, name: str = NAME, dtype: torch.dtype = torch.float32, **options: Any
) -> Contestant:
    """Our layer over whole sequences; `threads` is torch's number, which the layer follows by itself."""
    del threads
    given = operands(problem, dtype, **options)
    run = training_call(given) if problem.case.mode == "training" else inference_call(given)

    def results() -> dict[str, Array]:
        return sequence_results(problem, *run())

    results()
    return Contestant(name, run, results, given.layer.path)


def inference_call(given: Operands) -> Callable[[], Any]:
    """Forward without a graph: (y, state leaves, no gradients)."""
    layer, x, state, lengths = given.layer, given.x, given.state, given.lengths
    keywords = {} if lengths is None else {"lengths": lengths}

    def run() -> Any:
        with torch.inference_mode():
            y, after = layer(x, state, **keywords)
        return y, after, ()

    return run


def training_call(given: Operands) -> Callable[[], Any]:
    """Forward and backward: (y, state leaves, gradients of `given.wanted`)."""
    layer, x, state, wanted, d_outputs, lengths = given
    names = [name for name in ("h", "c") if name in layer.spec.leaves]
    keywords = {} if lengths is None else {"lengths": lengths}

    def run() -> Any:
        y, after = layer(x, state, **keywords)
        outputs = [y, *(after[name] for name in names)]
        return y, after, torch.autograd.grad(outputs, wanted, d_outputs)

    return run


def sequence_results(
    problem: Problem, y: Tensor, after: State, gradients: Iterable[Tensor]
) -> dict[str, Array]:
    """In the forms of `Problem`."""

    def rows_second(leaf: Tensor) -> Array:
        return leaf.detach().permute(1, 2, 0, 3).flatten(0, 1).numpy()

    found: dict[str, Array] = {"y": y.detach().numpy()}
    found |= {name: rows_second(after[name]) for name in problem.state}  # type: ignore[arg-type]
    gradients = list(gradients)
    if gradients:
        for name, value in named_gradients(problem, gradients).items():
            is_state = name.removeprefix("d_") in problem.state
            found[name] = rows_second(value) if is_state else value.numpy()
    return found


def steppers(problem: Problem, threads: int) -> list[Contestant]:
    """Single ticks: `Session.push` with a buffer for y, as the best form of the peers has; and `layer.step`.

    `threads` is torch's number, which both follow by themselves.
    """
    del threads
    return [_session(problem), _layer_step(problem)]


def _layer_step(problem: Problem) -> Contestant:
    given = operands(problem)
    layer, frame = given.layer, given.x[:, 0].contiguous()
    now = [given.state]
    step = layer.step

    def call() -> None:
        with torch.inference_mode():
            now[0] = step(frame, now[0])[1]

    def results() -> dict[str, Array]:
        now[0] = given.state
        return after_steps(call, lambda: {name: now[0][name] for name in problem.state}, problem)

    results()
    return Contestant("layer.step", call, results, layer.path)


def _session(problem: Problem) -> Contestant:
    given = operands(problem)
    frame = given.x[:, 0].contiguous()
    session = ostinato.Session(given.layer, problem.case.B, state=given.state)
    call = partial(session.push, frame, torch.empty(problem.case.B, given.layer.output_size))

    def results() -> dict[str, Array]:
        session.state = given.state
        return after_steps(call, lambda: {name: session.state[name] for name in problem.state}, problem)

    said = session.path + (f" ({session.reason})" if session.reason else "")
    return Contestant(NAME, call, results, f"session: {said}")


def after_steps(
    call: Callable[[], Any], leaves: Callable[[], dict[str, Any]], problem: Problem
) -> dict[str, Array]:
    """The state after `STEPS_CHECKED` ticks with the same frame, leaf -> (1, B, ·)."""
    for _ in range(STEPS_CHECKED):
        call()
    shape = {name: value.shape for name, value in problem.state.items()}
    # a copy: the next tick may write where the leaf lies
    return {name: np.asarray(leaf).astype(np.float64).reshape(shape[name]) for name, leaf in leaves().items()}
