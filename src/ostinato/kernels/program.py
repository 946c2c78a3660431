"""The path `native program`: the step of a cell that somebody wrote, traced once and run over time natively.

A cell's step is traced when it is first needed, and again whenever something changed that it may depend on
(`_fingerprint` says what). What the trace gave is checked against the step itself, values and gradients, before it is
used; whatever cannot be traced, run or confirmed takes the path `torch steps`, with a reason.
"""

from __future__ import annotations

import atexit
import enum
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.kernels.program_compile import MISSING, Compiled, Unsupported
from ostinato.kernels.program_run import Call, ConstantCache, run
from ostinato.kernels.program_trace import record
from ostinato.kernels.program_verify import difference
from ostinato.kernels.reference import Leaves

# `step(x_t, leaves, dt_t or None) -> (y_t, leaves)` of a cell.
Step = Callable[[Tensor, Leaves, Tensor | None], tuple[Tensor, Leaves]]

_DTYPES = (torch.float32, torch.float64)
_MOST_VARIANTS = 8
# The batch of a trace: the first of these that no size of the cell is a multiple of tells its axis from the others.
_PRIMES = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)
_MODULE_FIELDS = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class _Variant:
    """A compiled step, or why there is none; checked for values, and for gradients once they are wanted."""

    compiled: Compiled | None
    reason: str | None
    is_checked: dict[bool, str | None] = field(default_factory=dict)
    cache: ConstantCache = field(default_factory=ConstantCache)


_variants: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Variant]] = weakref.WeakKeyDictionary()
# Native objects should be gone before their module is.
atexit.register(_variants.clear)


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


def obstacle(cell: nn.Module, sizes: CellSizes, step: Step, like: Tensor) -> str | None:
    """Why the cell's step cannot run natively now; None where it can.

    Traces the step on first use: some milliseconds, whatever T is.
    """
    if MISSING:
        return MISSING
    if like.device.type != "cpu" or like.dtype not in _DTYPES:
        return f"there is no native kernel for {like.dtype} on {like.device.type}"
    if torch.compiler.is_compiling():
        return "torch.compile sees the steps themselves"
    return _checked(cell, sizes, step, like.dtype)[1]


def run_cell(
    cell: nn.Module,
    sizes: CellSizes,
    step: Step,
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
    """One direction of a cell over x (B, T, D); `obstacle` has said that it can.

    Args:
        cell, sizes, step: as `obstacle` takes them.
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
    variant, _ = _checked(cell, sizes, step, x.dtype)
    assert variant.compiled is not None
    if is_reverse and dt is not None:
        dt = dt.flip(1)  # lies in the order of x from here on
    fixed = dict(_fixed(cell))
    names = variant.compiled.leaf_names

    def through_steps(*tensors: Tensor) -> tuple[Tensor, ...]:
        series, leaves, initials, own = call.split(tensors)
        with _swapped(cell, own):
            y, final, every = steps(
                series[0], dict(zip(names, leaves, strict=True)), series[1] if call.has_dt else None,
                dict(zip(names, initials, strict=True)) if initials else None,
            )  # fmt: skip
        return y, *(final[name] for name in names), *((every or {}).get(name) for name in names if every)

    tensors = [x, *state.values(), *(initial or {}).values(), *fixed.values(), *([] if dt is None else [dt])]
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    call = Call(
        variant.compiled, through_steps, list(fixed), None if mask is None else mask.contiguous(),
        None if resets is None else resets.contiguous(), is_reverse, return_states, dt is not None, keeps,
        variant.cache,
    )  # fmt: skip
    return run(call, x, dt, state, initial, fixed)


# Variants ---------------------------------------------------------------------------------------------


def _checked(
    cell: nn.Module, sizes: CellSizes, step: Step, dtype: torch.dtype
) -> tuple[_Variant, str | None]:
    known = _variants.setdefault(cell, {})
    key = (dtype, _fingerprint(cell))
    variant = known.get(key)
    if variant is None:
        while len(known) >= _MOST_VARIANTS:
            known.pop(next(iter(known)))
        variant = known[key] = _make(cell, sizes, step, dtype)
    if variant.compiled is None:
        return variant, variant.reason
    wants_gradients = torch.is_grad_enabled()
    if wants_gradients not in variant.is_checked:
        variant.is_checked[wants_gradients] = _verified(cell, sizes, step, variant, wants_gradients)
    return variant, variant.is_checked[wants_gradients]


def _make(cell: nn.Module, sizes: CellSizes, step: Step, dtype: torch.dtype) -> _Variant:
    before = _fingerprint(cell)
    fixed = dict(_fixed(cell))
    numbers = {sizes.input_size, sizes.output_size}
    numbers.update(n for shape in sizes.state_shapes.values() for n in shape)
    numbers.update(n for tensor in fixed.values() for n in tensor.shape)
    n_rows = next((p for p in _PRIMES if all(n == 0 or n % p for n in numbers)), None)
    try:
        if n_rows is None:
            raise Unsupported("the cell's sizes are multiples of too many primes")
        for module in cell.modules():
            if any(getattr(module, name, None) for name in _HOOKS):
                raise Unsupported(f"a {type(module).__name__} of the cell has hooks")
        inputs, leaves = _example(sizes, n_rows, dtype)
        trace = record(lambda: step(inputs["x"], leaves, inputs.get("dt")), inputs, fixed, n_rows)
        if _fingerprint(cell) != before:
            raise Unsupported("the step changes attributes of the cell")
        return _Variant(Compiled.of(trace, dtype), None)
    except Unsupported as error:
        return _Variant(None, str(error))
    except Exception as error:  # noqa: BLE001 - the step is anybody's code; the slower path will show its error
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
    cell: nn.Module, sizes: CellSizes, step: Step, variant: _Variant, wants_gradients: bool
) -> str | None:
    compiled = variant.compiled
    assert compiled is not None
    try:
        return difference(cell, sizes, step, compiled, dict(_fixed(cell)), _swapped, wants_gradients)
    except Unsupported as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - as in `_make`
        return f"checking the step failed ({type(error).__name__}: {error})"


# What a trace depends on ------------------------------------------------------------------------------


def _fixed(cell: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensor attributes, each tensor once."""
    seen: set[int] = set()
    for prefix, module in cell.named_modules():
        for values in (module._parameters, module._buffers, module.__dict__):
            for name, value in values.items():
                if isinstance(value, Tensor) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value


class _swapped:  # noqa: N801 - a context manager
    """The cell with other tensors in place of its parameters, buffers and tensor attributes."""

    def __init__(self, cell: nn.Module, tensors: Mapping[str, Tensor]):
        self._places = []
        replacement = {id(old): tensors[name] for name, old in _fixed(cell)}
        for module in cell.modules():
            for values in (module._parameters, module._buffers, module.__dict__):
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        self._places.append((values, name, value, replacement[id(value)]))

    def __enter__(self) -> None:
        for values, name, _, new in self._places:
            values[name] = new

    def __exit__(self, *_: object) -> None:
        for values, name, old, _ in self._places:
            values[name] = old


def _fingerprint(cell: nn.Module) -> Any:
    """What a step may depend on beside tensor values.

    Of the cell and every module in it: its class, mode, plain attributes (numbers, strings, and collections of them), the
    identity of other attributes, and of tensors their shapes and dtypes. Global variables, closures and the
    insides of other objects count as constant.
    """
    parts: list[Any] = []
    for module in cell.modules():
        parts.append(id(type(module)))
        for name, value in module.__dict__.items():
            if name not in _MODULE_FIELDS:
                parts.append((name, _plain(value)))
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                parts.append((name, _plain(value)))
        parts.append(tuple(bool(getattr(module, name, None)) for name in _HOOKS))
    return tuple(parts)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes, complex, enum.Enum, torch.dtype)):
        return type(value), value
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype, value.requires_grad
    if isinstance(value, (tuple, list, set, frozenset)):
        return type(value), tuple(_plain(one) for one in value)
    if isinstance(value, dict):
        return "dict", tuple((_plain(key), _plain(one)) for key, one in value.items())
    return id(value)
