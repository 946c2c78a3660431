"""How each backend runs a layer. Only this file and `backends.py`, which chooses, know of several.

A backend joins by a row there and a branch in `run`. Layers are batch-first and the steps of PyTorch's
operators time-major; the transposition happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.kernels import operators, program, reference, scan, scan_operators, torch_fused
from ostinato.kernels.backends import KERNELS, Path, is_transformed
from ostinato.kernels.reference import CellOptions, CellSpec, Leaves, Noise
from ostinato.kernels.stretch import Stretch
from ostinato.kernels.task import NO_NOISE, Arguments, Task
from ostinato.kernels.tracing import is_traced


class Result(NamedTuple):
    """y (B, T, ·), the final state's leaves (B, *s), and the states' leaves (B, T, *s) where asked for."""

    y: Tensor
    state: Leaves
    states: Leaves | None


def run(
    way: Path,
    spec: CellSpec,
    x: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    stretch: Stretch,
    *,
    is_reverse: bool = False,
    noise: Noise = Noise(),  # noqa: B008 - immutable
    keeps: str = "gates",
    **rules: Any,
) -> Result:
    """One direction of one layer of a built-in cell over x (B, T, D).

    `rules` are `initial` (leaves of the state after a reset) and `return_states`; `keeps` as in `task.Task`.
    """
    path = way.path
    if way.products is not None:
        x, tensors = _with_products(way.products, x, tensors)
    runs_again = path == "torch steps" and keeps == "outputs" and not is_transformed()
    if runs_again or (path in KERNELS and not spec.is_linear):
        task = Task(spec.name, options, is_reverse, False, "inputs" if runs_again else keeps)
        given = _arguments(x, state, tensors, stretch, noise, rules.get("initial"))
        return _run_task(task, given, rules.get("return_states", False))
    if stretch.is_one_plain_step and not is_reverse and not rules.get("return_states"):
        y, leaves = step(path, spec, x[:, 0], state, tensors, options, noise)
        return Result(y.unsqueeze(1), leaves, None)
    if path in KERNELS:
        rules |= {"is_reverse": is_reverse, "mask": stretch.mask, "resets": stretch.resets}
        return Result(*scan_operators.run_layer(spec, x, state, tensors, options, **rules))
    if path == "torch":
        return _run_fused(spec, x, state, tensors, options, stretch, is_reverse)
    is_reference = path == "reference"

    def over_time(xs: Tensor, _: Tensor | None, leaves: Leaves, **more: Any) -> Any:
        return reference.run(
            spec, xs, leaves, tensors, options,
            noise=noise, product=reference.exact_product if is_reference else F.linear,
            hoisted=not is_reference, **more,
        )  # fmt: skip

    return _run_scan(over_time, x, state, stretch, is_reverse, **rules)


def _with_products(
    dtype: torch.dtype, x: Tensor, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """x and the weights in autocast's dtype, but for the rate of decay, which no product takes."""
    return x.to(dtype), {
        name: value if name == "decay" else value.to(dtype) for name, value in tensors.items()
    }


def _arguments(
    x: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    stretch: Stretch,
    noise: Noise,
    initial: Leaves | None,
) -> Arguments:
    zoneout = noise.zoneout
    return Arguments(
        x, list(state.values()), [] if stretch.resets is None or initial is None else list(initial.values()),
        list(tensors.values()), stretch.mask, stretch.resets,
        [noise.recurrent, zoneout.get("h"), zoneout.get("c")],
    )  # fmt: skip


def run_both(
    way: Path,
    spec: CellSpec,
    x: Tensor,
    states: Sequence[Leaves],
    tensors: Sequence[Mapping[str, Tensor]],
    options: CellOptions,
    stretch: Stretch,
    *,
    noises: Sequence[Noise],
    keeps: str = "gates",
    **rules: Any,
) -> tuple[Tensor, list[Result]]:
    """Both directions of one layer at once, on the path `triton`: y (B, T, 2·P), and `run`'s results of each.

    `rules` are `initials` and `return_states`.
    """
    if way.products is not None:
        x, tensors = x.to(way.products), [_with_products(way.products, x, one)[1] for one in tensors]
    returns_cells = rules["return_states"] and "c" in spec.leaves
    task = Task(spec.name, options, False, returns_cells, keeps, is_both=True)
    initials = rules["initials"] or [None, None]
    parts = [
        _arguments(x, state, weights, stretch, noise, initial)
        for state, weights, noise, initial in zip(states, tensors, noises, initials, strict=True)
    ]
    one, other = parts
    given = one._replace(
        state=one.state + other.state, initial=one.initial + other.initial,
        weights=one.weights + other.weights, noise=one.noise + other.noise,
    )  # fmt: skip
    y, *rest = operators.run(task, given)
    cells = rest.pop().chunk(2, 2) if returns_cells else (None, None)
    n, results = len(spec.leaves), []
    for d, (half, part) in enumerate(zip(y.chunk(2, 2), parts, strict=True)):
        final = dict(zip(spec.leaves, rest[d * n : (d + 1) * n], strict=True))
        kept = None
        if rules["return_states"]:
            kept = _states(spec.leaves, part, half, cells[d], is_reverse=d == 1)
        results.append(Result(half, final, kept))
    return y, results


def _run_task(task: Task, given: Arguments, return_states: bool) -> Result:
    names = reference.CELLS[task.cell].leaves
    task = task._replace(returns_cells=return_states and "c" in names)
    y, *rest = operators.run(task, given)
    final = dict(zip(names, rest, strict=False))
    if not return_states:
        return Result(y, final, None)
    cells = rest[-1] if task.returns_cells else None
    return Result(y, final, _states(names, given, y, cells, is_reverse=task.is_reverse))


def _states(
    names: Sequence[str], given: Arguments, y: Tensor, cells: Tensor | None, *, is_reverse: bool
) -> Leaves:
    """The states after every step of one direction."""
    # Under autocast y is narrower than the state.
    leaves = {"h": y.to(given.state[0].dtype), **({} if cells is None else {"c": cells})}
    initial: list[Tensor] | list[None] = given.initial or [None] * len(names)
    return {
        name: operators.states_after_steps(
            leaves[name], now, start, given.mask, given.resets, is_reverse=is_reverse
        )
        for name, now, start in zip(names, given.state, initial, strict=True)
    }


def is_eager(x: Tensor, like: Tensor) -> bool:
    """Whether nothing stands between a call and its kernels: no trace, transform or autocast."""
    return not (
        is_traced(x, like)
        or is_transformed()
        or torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type)
    )


def run_plain(path: str, task: Task, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """`run` of a path of `KERNELS` without mask, resets and noise, in an eager call: [y, *final leaves].

    The leaves of the state may have axes of size 1 between B and their width; the final ones have them too.
    """
    given = Arguments(x, state, [], weights, None, None, NO_NOISE)
    return operators.run_eager(task, given) if path == "native" else operators.run(task, given)


def run_cell(
    step: Callable[..., tuple[Tensor, Leaves]],
    x: Tensor,
    state: Leaves,
    stretch: Stretch,
    *,
    is_reverse: bool = False,
    **rules: Any,
) -> Result:
    """Any cell, given as `step(x_t, leaves, dt_t) -> (y_t, leaves)`, over x (B, T, D)."""

    def over_time(xs: Tensor, dts: Tensor | None, leaves: Leaves, **more: Any) -> Any:
        return reference.scan(
            lambda t, now: step(xs[t], now, None if dts is None else dts[t]), len(xs), leaves, **more
        )

    return _run_scan(over_time, x, state, stretch, is_reverse, **rules)


def prepare_program(
    cell: nn.Module, sizes: program.CellSizes, step: Callable[..., tuple[Tensor, Leaves]], like: Tensor
) -> program.Prepared | str:
    """A cell known by its step only, ready for the path `native program`, or why it cannot take it."""
    if is_transformed():
        return "a functorch transform or forward-mode differentiation is active"
    return program.prepare(cell, sizes, step, like)


def run_program(
    prepared: program.Prepared,
    x: Tensor,
    state: Leaves,
    stretch: Stretch,
    *,
    is_reverse: bool = False,
    initial: Leaves | None = None,
    return_states: bool = False,
) -> Result:
    """As `run_cell`, for what `prepare_program` gave."""
    mask, resets, dt = stretch.flipped() if is_reverse else (stretch.mask, stretch.resets, stretch.dt)
    resets = None if initial is None else resets

    def in_order(value: Tensor) -> Tensor:
        return value.flip(1) if is_reverse else value

    def steps(x: Tensor, leaves: Leaves, dt: Tensor | None, initial: Leaves | None) -> Any:
        xs = in_order(x).unbind(1)
        dts = None if dt is None else in_order(dt).unbind(1)
        ys, final, kept = reference.scan(
            lambda t, now: prepared.step(xs[t], now, None if dts is None else dts[t]), len(xs), leaves,
            mask=None if mask is None else mask.t(), resets=None if resets is None else resets.t(),
            initial=initial, return_states=return_states,
        )  # fmt: skip
        every = (
            {name: in_order(torch.stack([one[name] for one in kept], 1)) for name in final} if kept else None
        )
        return in_order(torch.stack(ys, 1)), final, every

    y, final, every = program.run_cell(
        prepared, x, state, steps=steps, mask=mask, resets=resets, dt=dt, is_reverse=is_reverse,
        initial=initial if resets is not None else None, return_states=return_states,
    )  # fmt: skip
    if is_reverse and stretch.resets is not None and initial is not None:
        final = reference.choose(stretch.resets[:, 0], initial, final)
    return Result(y, final, every)


def step(
    path: str,
    spec: CellSpec,
    x: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    noise: Noise,
) -> tuple[Tensor, Leaves]:
    """One tick of x (B, D) of a built-in cell: (y, leaves)."""
    if path in KERNELS and spec.is_linear:
        y, leaves, _ = scan_operators.run_layer(spec, x.unsqueeze(1), state, tensors, options)
        return y[:, 0], leaves
    if path in KERNELS:
        given = _arguments(x.unsqueeze(1), state, tensors, Stretch(1), noise, None)
        result = _run_task(Task(spec.name, options, False, False, "gates"), given, False)
        return result.y[:, 0], result.state
    if path == "torch":
        return torch_fused.step(spec, x, state, tensors, options)
    w = reference.Weights(tensors, reference.exact_product if path == "reference" else F.linear)
    return reference.cell_step(spec, w.input_part(x, options), state, w, options, noise.at(0))


def run_linear_scan(
    inputs: tuple[Tensor, Tensor],
    state: Tensor,
    stretch: Stretch,
    *,
    initial: Tensor | None = None,
    is_reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h' = keep * h + add from `inputs` (keep, add), each (B, T, H): y, and the final state (B, H)."""
    given = scan.Given(list(inputs), state, None, initial, stretch.mask, stretch.resets)
    runs = scan.run_steps if is_transformed() else scan_operators.run
    return runs(scan.Rule("linear", is_reverse), given)


def _run_scan(
    over_time: Callable[..., Any],
    x: Tensor,
    state: Leaves,
    stretch: Stretch,
    is_reverse: bool,
    *,
    initial: Leaves | None = None,
    return_states: bool = False,
) -> Result:
    mask, resets, dt = stretch.flipped() if is_reverse else (stretch.mask, stretch.resets, stretch.dt)
    xs = (x.flip(1) if is_reverse else x).transpose(0, 1)
    ys, final, kept = over_time(
        xs,
        None if dt is None else dt.t(),
        state,
        mask=None if mask is None else mask.t(),
        resets=None if resets is None else resets.t(),
        initial=initial,
        return_states=return_states,
    )
    if is_reverse and stretch.resets is not None and initial is not None:
        final = reference.choose(stretch.resets[:, 0], initial, final)
    y = torch.stack(ys).transpose(0, 1)
    states = None
    if return_states:
        states = {name: torch.stack([leaves[name] for leaves in kept], dim=1) for name in final}
    if is_reverse:
        y = y.flip(1)
        states = None if states is None else {name: leaf.flip(1) for name, leaf in states.items()}
    return Result(y, final, states)


def _run_fused(
    spec: CellSpec,
    x: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    stretch: Stretch,
    is_reverse: bool,
) -> Result:
    order = stretch.reverse_order if is_reverse else stretch.forward_order
    is_flipped = is_reverse and stretch.mask is None
    xs = x.transpose(0, 1)
    rows = torch.arange(x.shape[0], device=x.device)
    if order is not None:
        xs = xs[order.t(), rows]
    elif is_flipped:
        xs = xs.flip(0)
    ys, final = torch_fused.run(spec, xs.contiguous(), state, tensors, options, stretch.lengths)
    if order is not None:
        ys = ys[order.argsort(dim=1).t(), rows]
    elif is_flipped:
        ys = ys.flip(0)
    y = ys.transpose(0, 1)
    if stretch.mask is not None:
        y = y.masked_fill(~stretch.mask.unsqueeze(2), 0.0)
    return Result(y, final, None)
