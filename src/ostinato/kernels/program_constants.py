"""What a step's program reads and no step changes: parameters, packed copies, values made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ostinato.kernels.program_compile import Compiled, Program


@dataclass
class ConstantCache:
    """Constants and packed weights of the last run without gradients."""

    key: Any = None
    constants: list[Tensor] = field(default_factory=list)
    packed: Tensor | None = None


def constants_of(
    compiled: Compiled,
    cache: ConstantCache,
    program: Program,
    fixed: Mapping[str, Tensor],
    *,
    is_cached: bool,
) -> tuple[list[Tensor], Tensor]:
    """The constants from the fixed tensors, and the packed weights; those of the cache if nothing changed."""
    # Tensors of inference mode count no versions.
    is_cached = is_cached and not any(tensor.is_inference() for tensor in fixed.values())
    key = (program, [(t.data_ptr(), t._version) for t in fixed.values()]) if is_cached else None
    if is_cached and cache.packed is not None and cache.key == key:
        return cache.constants, cache.packed
    with torch.no_grad():
        constants = [plain(value, compiled) for value in compiled.constants(fixed)]
    packed = packed_constants(program, constants, compiled)
    if is_cached:
        cache.key, cache.constants, cache.packed = key, constants, packed
    return constants, packed


def plain(value: Tensor, compiled: Compiled) -> Tensor:
    """The value as the interpreter reads it: contiguous, in the program's dtype, without gradient."""
    return value.detach().to(compiled.dtype).contiguous()


def packed_constants(program: Program, constants: Sequence[Tensor], compiled: Compiled) -> Tensor:
    """Weight matrices in the order of the products."""
    dtype = compiled.dtype
    packed = torch.empty(max(program.n_packed, 1), dtype=dtype)
    if program.n_packed:
        program.native.pack(dtype == torch.float64, [c.data_ptr() for c in constants], packed.data_ptr())
    return packed
