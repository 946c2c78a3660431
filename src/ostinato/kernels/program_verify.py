"""Checking a compiled step against the step itself, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.kernels.program_compile import Compiled
from ostinato.kernels.program_constants import ConstantCache
from ostinato.kernels.program_run import Call, run
from ostinato.kernels.program_watch import Swapped, fixed_tensors

# Rows, steps: few, and another number of rows than the trace had, so that nothing that hangs on it passes.
_B, _T = 5, 2
# Largest difference over largest value. Some of torch's own derivatives hold constants in float32.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}


def difference(
    cell: nn.Module,
    sizes: Any,
    step: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    compiled: Compiled,
    wants_gradients: bool,
) -> str | None:
    """Where the compiled step differs from the step; None where it nowhere does.

    In float64 where the step runs in it, whatever the cell's dtype is.
    """
    try:
        return _difference(cell, sizes, step, compiled, wants_gradients, torch.float64)
    except (RuntimeError, TypeError, ValueError):
        dtype = compiled.lowering.dtype
        return _difference(cell, sizes, step, compiled, wants_gradients, dtype)


def _difference(
    cell: nn.Module,
    sizes: Any,
    step: Callable[..., Any],
    compiled: Compiled,
    wants_gradients: bool,
    dtype: torch.dtype,
) -> str | None:
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    own = {
        name: tensor.detach().to(dtype).requires_grad_(tensor.requires_grad and wants_gradients)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in fixed_tensors(cell).items()
    }
    x = random(_B, _T, sizes.input_size).requires_grad_(wants_gradients)
    elapsed = torch.rand(_B, _T, generator=generator, dtype=dtype).requires_grad_(wants_gradients)
    dt = elapsed if sizes.takes_dt else None
    # Some rows as a run begins, the others anywhere.
    state = {}
    begin = cell.initial_state(_B)  # type: ignore[operator]
    for name, shape in sizes.state_shapes.items():
        leaf = random(_B, *shape)
        leaf[: _B // 2] = begin[name][: _B // 2].detach().to(dtype)
        state[name] = leaf.requires_grad_(wants_gradients)
    call = Call(
        compiled.in_dtype(dtype), _never, list(own), None, None, False, False, dt is not None,
        wants_gradients, ConstantCache(),
    )  # fmt: skip
    with torch.set_grad_enabled(wants_gradients):
        found_y, found, _ = run(call, x, dt, state, None, own)
        with Swapped(cell, own):
            ys, expected = [], dict(state)
            for t in range(_T):
                y, expected = step(x[:, t], expected, None if dt is None else dt[:, t])
                ys.append(y)
        values = [("y", found_y, torch.stack(ys, 1))]
        values += [(f"state.{name}", found[name], expected[name]) for name in found]
        for name, one, other in values:
            if not _agree(one, other, dtype):
                return f"the traced step gives another {name} than the step itself"
        if not wants_gradients:
            return None
        weights = [random(*one.shape) for _, one, _ in values]
        sources = {"x": x, **{f"state.{name}": leaf for name, leaf in state.items()}}
        sources |= {} if dt is None else {"dt": dt}
        sources |= {name: tensor for name, tensor in own.items() if tensor.requires_grad}
        results = []
        for results_of in ([one for _, one, _ in values], [other for _, _, other in values]):
            sums = [(weight * one).sum() for weight, one in zip(weights, results_of, strict=True)]
            total = torch.stack(sums).sum()
            results.append(torch.autograd.grad(total, list(sources.values()), allow_unused=True))
        for source, mine, theirs in zip(sources, *results, strict=True):
            zeros = torch.zeros_like(sources[source])
            if not _agree(zeros if mine is None else mine, zeros if theirs is None else theirs, dtype):
                return f"the traced step gives another gradient of {source} than the step itself"
    return None


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    if found.shape != expected.shape:
        return False
    scale = expected.detach().abs().nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-3).item()
    return torch.allclose(found, expected.to(found), rtol=0, atol=_TOLERANCE[dtype] * scale, equal_nan=True)


def _never(*_: Tensor) -> tuple[Tensor, ...]:
    raise AssertionError("the check takes first derivatives only")
