"""Running a compiled step over a stretch, and its place in autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostinato.kernels.program_compile import Backward, Compiled, Program
from ostinato.kernels.program_constants import ConstantCache, constants_of, packed_constants, plain
from ostinato.kernels.reference import Leaves

# Bytes of what lies between the phases of a chunk: half of a second-level cache.
_CHUNK_BYTES = 1 << 20
_MOST_CHUNK_ROWS, _LEAST_CHUNK_ROWS = 512, 64
_SEVERAL_STEPS = 8
# Rows of a tile: more of them read the weights less often, fewer leave more tiles to share among threads.
_MOST_TILE_ROWS, _LEAST_TILE_ROWS = 32, 16
# Sums over rows are added up in so many parts, whatever the number of threads.
_N_GROUPS = 8
_ALIGNMENT = 16


@dataclass
class Call:
    """What one run takes beside tensors that have gradients.

    Attributes:
        compiled: the step.
        steps: the same with torch operators, for second derivatives: as `_NativeSteps.apply`'s tensors.
        names: of the fixed tensors, in order.
        mask, resets: (B, T) in the order of work; None for none.
        is_reverse: x and y run from the end to the start.
        return_states: also give the leaves after every step.
        has_dt: whether dt is among the tensors.
        cache: the constants of an earlier run, reused while no parameter has changed.
    """

    compiled: Compiled
    steps: Callable[..., tuple[Tensor, ...]]
    names: list[str]
    mask: Tensor | None
    resets: Tensor | None
    is_reverse: bool
    return_states: bool
    has_dt: bool
    keeps: bool
    cache: ConstantCache

    def split(
        self, tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], dict[str, Tensor]]:
        """The series (x, dt), the leaves, those after a reset, and the fixed tensors by name."""
        n_series, n_leaves = 1 + self.has_dt, len(self.compiled.leaf_names)
        values = list(tensors)
        series, values = values[:n_series], values[n_series:]
        leaves, values = values[:n_leaves], values[n_leaves:]
        n_initial = n_leaves if self.resets is not None else 0
        initial, values = values[:n_initial], values[n_initial:]
        return series, leaves, initial, dict(zip(self.names, values, strict=True))


def run(
    call: Call,
    x: Tensor,
    dt: Tensor | None,
    state: Leaves,
    initial: Leaves | None,
    fixed: Mapping[str, Tensor],
) -> tuple[Tensor, Leaves, Leaves | None]:
    """(y (B, T, ·), the final leaves, the leaves after every step (B, T, *s) where asked for)."""
    names = call.compiled.leaf_names
    tensors = [x, *([] if dt is None else [dt]), *(state[name] for name in names)]
    if call.resets is not None:
        assert initial is not None
        tensors += [initial[name] for name in names]
    tensors += fixed.values()
    y, *rest = _NativeSteps.apply(call, *tensors)
    final = dict(zip(names, rest, strict=False))
    every = dict(zip(names, rest[len(names) :], strict=True)) if call.return_states else None
    return y, final, every


class _NativeSteps(torch.autograd.Function):
    """All steps natively, forward and backward; a derivative of the derivative by way of torch operators."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.kept = None
        series, leaves, initial, fixed = call.split(tensors)
        program, plan = call.compiled.forward, None
        if call.keeps:
            plan = _plan(call, ctx.needs_input_grad[1:])
            program = plan.forward
        # Beside several steps packing costs nothing, and what is written through `.data` counts no version.
        is_short = series[0].shape[0] * series[0].shape[1] < _SEVERAL_STEPS
        constants, packed = constants_of(
            call.compiled, call.cache, program, fixed, is_cached=plan is None and is_short
        )
        outputs, ctx.kept = _forward(call, program, series, leaves, initial, constants, packed, plan)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_through_steps(call, tensors, gradients, needs)
        return None, *_backward(call, ctx.kept, tensors, gradients, needs)


def _through_steps(
    call: Call, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    outputs = call.steps(*tensors)
    wanted = [i for i, is_needed in enumerate(needs) if is_needed]
    pairs = [
        (output, gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if gradient is not None and output.requires_grad
    ]
    result: list[Tensor | None] = [None] * len(tensors)
    if pairs:
        found = torch.autograd.grad(
            [output for output, _ in pairs], [tensors[i] for i in wanted], [gradient for _, gradient in
            pairs], create_graph=True, allow_unused=True,
        )  # fmt: skip
        for i, gradient in zip(wanted, found, strict=True):
            result[i] = gradient
    return result


# Sizes and addresses ----------------------------------------------------------------------------------


def _rounded(n: int) -> int:
    return -(-max(n, 1) // _ALIGNMENT) * _ALIGNMENT


def _tile_rows(B: int, keeps: bool) -> int:
    if keeps:
        # Fixed by B alone, because the sums over rows follow the tiles.
        rows = -(-B // _N_GROUPS)
        least = _LEAST_TILE_ROWS if B >= 2 * _LEAST_TILE_ROWS else _LEAST_TILE_ROWS // 2
        return max(1, min(_MOST_TILE_ROWS, max(-(-rows // 8) * 8, least), B))
    return max(1, min(_MOST_TILE_ROWS, -(-B // torch.get_num_threads())))


def _sizes(program: Program, B: int, T: int, tile_rows: int, item: int) -> list[int]:
    width = max(program.layout.widths[2], 1)
    chunk = max(_LEAST_CHUNK_ROWS, min(_MOST_CHUNK_ROWS, _CHUNK_BYTES // (item * width)))
    chunk = max(tile_rows, min(chunk, tile_rows * T))
    n_tiles = -(-B // tile_rows)
    return [B, T, tile_rows, chunk, max(1, -(-n_tiles // _N_GROUPS))]


def _pairs(sizes: Sequence[int]) -> int:
    """Rows of an array that keeps a value of every pair."""
    B, T, tile_rows = sizes[:3]
    return -(-B // tile_rows) * tile_rows * (T + 1)


def _strided(tensor: Tensor | None, is_reverse: bool) -> list[int]:
    """Address of the first step in the order of work, strides of rows and of steps."""
    if tensor is None:
        return [0, 0, 0]
    row, step = tensor.stride(0), tensor.stride(1)
    if is_reverse:
        return [tensor.data_ptr() + (tensor.shape[1] - 1) * step * tensor.element_size(), row, -step]
    return [tensor.data_ptr(), row, step]


def _in_lines(tensor: Tensor) -> Tensor:
    """(B, T, …) with the rest of the axes contiguous."""
    flat = tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(2)
    return flat if flat.stride(2) == 1 or flat.shape[2] == 1 else flat.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


# Constants --------------------------------------------------------------------------------------------


# Forward ----------------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """What forward leaves for backward; rows by (tile, pair), as `native/program.h` orders them."""

    values: list[Tensor]
    states: list[Tensor]


def _plan(call: Call, needs: Sequence[bool]) -> Backward:
    """The backward program for the tensors that want gradients."""
    n_series = 1 + call.has_dt
    inputs = [name for name, is_needed in zip(("x", "dt"), needs[:n_series], strict=False) if is_needed]
    fixed_needs = needs[len(needs) - len(call.names) :]
    wanted = {name for name, is_needed in zip(call.names, fixed_needs, strict=True) if is_needed}
    return call.compiled.backward(inputs, call.compiled.consts_from(wanted))


def _forward(
    call: Call, program: Program, series: Sequence[Tensor], leaves: Sequence[Tensor], initial:
    Sequence[Tensor], constants: Sequence[Tensor], packed: Tensor, plan: Backward | None,
) -> tuple[tuple[Tensor, ...], _Kept | None]:  # fmt: skip
    x = series[0]
    B, T = x.shape[:2]
    layout = program.layout
    sizes = _sizes(program, B, T, _tile_rows(B, plan is not None), x.element_size())
    lines = dict(zip(("x", "dt"), map(_in_lines, series), strict=False))
    make = x.new_zeros if call.mask is not None else x.new_empty
    y = make(B, T, layout.outputs[0][1])
    starts = [leaf.contiguous() for leaf in leaves]
    resets_to = [leaf.contiguous() for leaf in initial]
    finals = [torch.empty_like(leaf) for leaf in starts]
    every = [leaf.new_empty(B, T, *leaf.shape[1:]) for leaf in starts] if call.return_states else []
    kept = None
    if plan is not None:
        n = _pairs(sizes)
        kept = _Kept(
            [x.new_empty(n, _rounded(width)) for width in layout.saved_widths],
            [x.new_empty(n, _rounded(width)) for width in layout.leaf_widths],
        )
    numbers = []
    for i, start in enumerate(starts):
        numbers += [
            start.data_ptr(), _address(resets_to[i] if resets_to else None), finals[i].data_ptr(),
            _address(kept.states[i] if kept else None),
            *_strided(every[i].flatten(2) if every else None, call.is_reverse),
        ]  # fmt: skip
    program.native.run(
        x.dtype == torch.float64, False, sizes, _address(call.mask), _address(call.resets),
        [c.data_ptr() for c in constants], packed.data_ptr(),
        [n for name, _, _ in layout.inputs for n in _strided(lines[name], call.is_reverse)],
        _strided(y, call.is_reverse), numbers, [v.data_ptr() for v in kept.values] if kept else [], 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return (y, *finals, *every), kept


# Backward ---------------------------------------------------------------------------------------------


def _backward(
    call: Call,
    kept: _Kept,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    plan = _plan(call, needs)
    program, compiled = plan.program, call.compiled
    series, leaves, initial, fixed = call.split(tensors)
    layout, n_leaves = program.layout, len(leaves)
    B, T = series[0].shape[:2]
    x = series[0]
    with torch.enable_grad():
        sources = {
            name: tensor.detach().requires_grad_(tensor.requires_grad and tensor.is_floating_point())
            for name, tensor in fixed.items()
        }
        graph_constants = compiled.constants(sources)
    constants = [plain(value, call.compiled) for value in graph_constants]
    packed = packed_constants(program, constants, call.compiled)
    sizes = _sizes(program, B, T, _tile_rows(B, True), x.element_size())
    # The gradient of each output: y, the final leaves, the leaves after every step.
    lines: dict[str, Tensor | None] = dict(zip(("x", "dt"), map(_in_lines, series), strict=False))
    lines["d_y"] = None if gradients[0] is None else _in_lines(gradients[0])
    starts = [
        torch.zeros_like(leaf) if gradient is None else gradient.contiguous()
        for leaf, gradient in zip(leaves, gradients[1 : 1 + n_leaves], strict=True)
    ]
    every = [None if g is None else _in_lines(g) for g in gradients[1 + n_leaves :]] or [None] * n_leaves
    d_leaves = [torch.empty_like(leaf, memory_format=torch.contiguous_format) for leaf in leaves]
    d_initial = [torch.zeros_like(leaf, memory_format=torch.contiguous_format) for leaf in initial]
    make = x.new_zeros if call.mask is not None else x.new_empty
    outputs = {name: make(B, T, width) for name, width, _ in layout.outputs}
    numbers = []
    for i in range(n_leaves):
        numbers += [
            starts[i].data_ptr(), _address(d_initial[i] if d_initial else None), d_leaves[i].data_ptr(), 0,
            *_strided(every[i], call.is_reverse),
        ]  # fmt: skip
    states = dict(zip(compiled.leaf_names, kept.states, strict=True))
    saved = [*kept.values, *(states[name] for name in plan.leaves)]
    n_tiles = -(-B // sizes[2])
    sums = x.new_empty(-(-n_tiles // sizes[4]), max(layout.widths[3], 1))
    program.native.run(
        x.dtype == torch.float64, True, sizes, _address(call.mask), _address(call.resets),
        [c.data_ptr() for c in constants], packed.data_ptr(),
        [n for name, _, _ in layout.inputs for n in _strided(lines[name], call.is_reverse)],
        [n for name, _, _ in layout.outputs for n in _strided(outputs[name], call.is_reverse)], numbers,
        [v.data_ptr() for v in saved], sums.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    d_series = [outputs.get(name) for name in ("x", "dt")[: len(series)]]
    if call.has_dt and d_series[1] is not None:
        d_series[1] = d_series[1].squeeze(2)
    d_fixed = _fixed_gradients(program, sums[0], graph_constants, sources)
    found: list[Tensor | None] = [
        *d_series,
        *d_leaves,
        *d_initial,
        *(d_fixed.get(name) for name in call.names),
    ]
    return [gradient if is_needed else None for gradient, is_needed in zip(found, needs, strict=True)]


def _fixed_gradients(
    program: Program, sums: Tensor, constants: Sequence[Tensor], sources: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of parameters, from the sums over rows and steps."""
    of_constants: dict[int, Tensor] = {}
    for place, (number, offset, shape, strides), is_outer, sizes in program.layout.sums:
        size = sizes[0] * sizes[1] if is_outer else max(torch.Size(sizes).numel(), 1)
        part = sums[place : place + size].view(sizes)
        value = constants[number]
        if is_outer:
            part = part[:, : shape[0]]
            # The sum is the transposed weight's: (N, K).
            window = (shape[1], shape[0]), (strides[1], strides[0])
        else:
            window = shape, strides
        is_all = part.numel() == value.numel() and offset == 0
        if is_all and number not in of_constants and is_contiguous(*window):
            of_constants[number] = (
                part.contiguous().view(value.shape) if is_outer else part.clone().view(value.shape)
            )
            continue
        whole = of_constants.get(number)
        if whole is None:
            whole = of_constants[number] = torch.zeros(value.shape, dtype=sums.dtype)
        whole.as_strided(*window, offset).add_(part)
    found: dict[str, Tensor] = {}
    pairs = [(constants[n], gradient.to(constants[n].dtype)) for n, gradient in of_constants.items()]
    derived = [(value, gradient) for value, gradient in pairs if value.requires_grad]
    by_identity = {id(tensor): name for name, tensor in sources.items()}
    direct = [(value, gradient) for value, gradient in derived if id(value) in by_identity]
    for value, gradient in direct:
        found[by_identity[id(value)]] = gradient
    computed = [(value, gradient) for value, gradient in derived if id(value) not in by_identity]
    if computed:
        wanted = [name for name, tensor in sources.items() if tensor.requires_grad]
        more = torch.autograd.grad(
            [value for value, _ in computed], [sources[name] for name in wanted], [g for _, g in computed],
            allow_unused=True,
        )  # fmt: skip
        for name, gradient in zip(wanted, more, strict=True):
            if gradient is not None:
                found[name] = found[name] + gradient if name in found else gradient
    return found


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a window's elements follow each other."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
