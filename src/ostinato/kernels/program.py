"""The path `native program`: the step of a cell that somebody wrote, traced once and run over time natively.

A cell's step is traced when it is first needed, and again whenever something changed that it may depend on
(`program_watch` says what). What the trace gave is checked against the step itself, values and gradients,
before it is used; whatever cannot be traced, run or confirmed takes the path `torch steps`, with a reason.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ostinato.kernels.program_compile import MISSING, Compiled, Unsupported
from ostinato.kernels.program_constants import ConstantCache
from ostinato.kernels.program_run import Call, run
from ostinato.kernels.program_trace import record
from ostinato.kernels.program_verify import difference
from ostinato.kernels.program_watch import Swapped, Watch, fingerprint, fixed_tensors, hooked
from ostinato.kernels.reference import Leaves

# `step(x_t, leaves, dt_t or None) -> (y_t, leaves)` of a cell.
Step = Callable[[Tensor, Leaves, Tensor | None], tuple[Tensor, Leaves]]

_DTYPES = (torch.float32, torch.float64)
_MOST_VARIANTS = 8
# The batch of a trace: the first of these that no size of the cell is a multiple of tells its axis from the
# others.
_PRIMES = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)


@dataclass
class _Variant:
    """A compiled step, or why there is none; checked for values, and for gradients once they are wanted."""

    compiled: Compiled | None
    reason: str | None
    is_checked: dict[bool, str | None] = field(default_factory=dict)
    cache: ConstantCache = field(default_factory=ConstantCache)


@dataclass
class _Known:
    """The variants of a cell by what they depend on, and the one that was used last."""

    variants: dict[Any, _Variant] = field(default_factory=dict)
    last: tuple[torch.dtype, Watch, _Variant] | None = None


_cells: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()
# Native objects should be gone before their module is.
atexit.register(_cells.clear)


@dataclass(frozen=True)
class CellSizes:
    """What a trace needs to know of a cell.

    Attributes:
        input_size: D.
        output_size: width of y.
        state_shapes: leaf -> shape without B.
        takes_dt: whether the step takes dt.
    """

    input_size: int
    output_size: int
    state_shapes: Mapping[str, tuple[int, ...]]
    takes_dt: bool


class Prepared(NamedTuple):
    """A cell whose step can run natively, as it is now."""

    cell: nn.Module
    step: Step
    watch: Watch
    compiled: Compiled
    cache: ConstantCache


def prepare(cell: nn.Module, sizes: CellSizes, step: Step, like: Tensor) -> Prepared | str:
    """The cell ready to run natively, or why it cannot.

    Traces the step on first use: some milliseconds, whatever T is.
    """
    if MISSING:
        return MISSING
    if like.device.type != "cpu" or like.dtype not in _DTYPES:
        return f"there is no native kernel for {like.dtype} on {like.device.type}"
    if torch.compiler.is_compiling():
        return "torch.compile sees the steps themselves"
    watch, variant, reason = _checked(cell, sizes, step, like.dtype)
    if reason is not None or variant.compiled is None:
        return reason or "the step was not traced"
    return Prepared(cell, step, watch, variant.compiled, variant.cache)


def run_cell(
    prepared: Prepared,
    x: Tensor,
    state: Leaves,
    *,
    steps: Callable[..., Any],
    mask: Tensor | None,
    resets: Tensor | None,
    dt: Tensor | None,
    is_reverse: bool,
    initial: Leaves | None,
    return_states: bool,
) -> tuple[Tensor, Leaves, Leaves | None]:
    """One direction of a cell over x (B, T, D).

    Args:
        prepared: from `prepare`, with nothing of the cell changed since.
        x: (B, T, D), as the caller has it.
        state: leaves (B, *s) before the first step in the order of work.
        steps: the same run with torch operators, `(x, state, dt, initial) -> (y, leaves, states or None)`.
        mask, resets, dt: (B, T) in the order of work; None for none.
        is_reverse: the order of work is from the end to the start.
        initial: leaves after a reset; needed with `resets`.
        return_states: also give the leaves after every step, in the order of x.

    Returns:
        y (B, T, output_size) in the order of x, the final leaves, the leaves (B, T, *s) after every step.
    """
    cell, _, watch, compiled, cache = prepared
    if is_reverse and dt is not None:
        dt = dt.flip(1)  # lies in the order of x from here on
    fixed = watch.fixed_tensors()
    names = compiled.leaf_names

    def through_steps(*tensors: Tensor) -> tuple[Tensor, ...]:
        series, leaves, initials, own = call.split(tensors)
        with Swapped(cell, own):
            y, final, every = steps(
                series[0], dict(zip(names, leaves, strict=True)), series[1] if call.has_dt else None,
                dict(zip(names, initials, strict=True)) if initials else None,
            )  # fmt: skip
        return y, *(final[name] for name in names), *((every or {}).get(name) for name in names if every)

    tensors = [x, *state.values(), *(initial or {}).values(), *fixed.values(), *([] if dt is None else [dt])]
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    call = Call(
        compiled, through_steps, list(fixed), None if mask is None else mask.contiguous(),
        None if resets is None else resets.contiguous(), is_reverse, return_states, dt is not None, keeps,
        cache,
    )  # fmt: skip
    return run(call, x, dt, state, initial, fixed)


# Variants ---------------------------------------------------------------------------------------------


def _checked(
    cell: nn.Module, sizes: CellSizes, step: Step, dtype: torch.dtype
) -> tuple[Watch, _Variant, str | None]:
    known = _cells.get(cell)
    if known is None:
        known = _cells[cell] = _Known()
    if known.last is not None and known.last[0] == dtype and known.last[1].holds():
        _, watch, variant = known.last
    else:
        watch = Watch(cell)
        key = (dtype, watch.fingerprint)
        if key not in known.variants:
            while len(known.variants) >= _MOST_VARIANTS:
                known.variants.pop(next(iter(known.variants)))
            known.variants[key] = _make(cell, sizes, step, dtype)
        variant = known.variants[key]
        known.last = dtype, watch, variant
    if variant.compiled is None:
        return watch, variant, variant.reason
    wants_gradients = torch.is_grad_enabled()
    if wants_gradients not in variant.is_checked:
        variant.is_checked[wants_gradients] = _verified(cell, sizes, step, variant.compiled, wants_gradients)
    return watch, variant, variant.is_checked[wants_gradients]


def _make(cell: nn.Module, sizes: CellSizes, step: Step, dtype: torch.dtype) -> _Variant:
    before = fingerprint(cell)
    fixed = fixed_tensors(cell)
    numbers = {sizes.input_size, sizes.output_size}
    numbers.update(n for shape in sizes.state_shapes.values() for n in shape)
    numbers.update(n for tensor in fixed.values() for n in tensor.shape)
    n_rows = next((p for p in _PRIMES if all(n == 0 or n % p for n in numbers)), None)
    try:
        if n_rows is None:
            raise Unsupported("the cell's sizes are multiples of too many primes")
        if (name := hooked(cell)) is not None:
            raise Unsupported(f"a {name} of the cell has hooks")
        inputs, leaves = _example(sizes, n_rows, dtype)
        trace = record(lambda: step(inputs["x"], leaves, inputs.get("dt")), inputs, fixed, n_rows)
        if fingerprint(cell) != before:
            raise Unsupported("the step changes attributes of the cell")
        return _Variant(Compiled.of(trace, dtype), None)
    except Unsupported as error:
        return _Variant(None, str(error))
    except Exception as error:  # noqa: BLE001 - the step is anybody's code; the slower path will show it
        return _Variant(None, f"tracing the step failed ({type(error).__name__}: {error})")


def _example(sizes: CellSizes, n_rows: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Leaves]:
    # Not from the global generator: tracing may not change what a program draws.
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(n_rows, sizes.input_size, generator=generator, dtype=dtype)}
    if sizes.takes_dt:
        inputs["dt"] = torch.rand(n_rows, generator=generator, dtype=dtype)
    leaves = {
        name: torch.randn(n_rows, *shape, generator=generator, dtype=dtype)
        for name, shape in sizes.state_shapes.items()
    }
    inputs.update({f"leaf {name}": leaf for name, leaf in leaves.items()})
    return inputs, leaves


def _verified(
    cell: nn.Module, sizes: CellSizes, step: Step, compiled: Compiled, wants_gradients: bool
) -> str | None:
    try:
        return difference(cell, sizes, step, compiled, wants_gradients)
    except Unsupported as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - as in `_make`
        return f"checking the step failed ({type(error).__name__}: {error})"
