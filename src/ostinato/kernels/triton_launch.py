"""Launches of the Triton kernels for one call: their buffers, grids and options.

Triton is imported here, at the first launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostinato.kernels import triton_call
from ostinato.kernels.triton_call import Call, gates_of, slots_of
from ostinato.kernels.triton_normed import Even
from ostinato.kernels.triton_plan import FUSED, STREAMED, Plan, padded, padded_gates, tiles_of
from ostinato.kernels.triton_rows import Products

# Counters of two groups must not share a line of the cache.
_COUNTER_STRIDE = 32


class Kept(NamedTuple):
    """What forward leaves: (ND, B, T, ·) each, None where it is not wanted or there is none."""

    gates: Tensor | None
    h_in: Tensor | None
    c_before: Tensor | None = None
    c_moments: Tensor | None = None


class Ran(NamedTuple):
    """What forward gives: y and cells (B, T, ND, H), final leaves (ND, B, H)."""

    y: Tensor
    final: list[Tensor]
    cells: Tensor | None
    kept: Kept


def constants(call: Call, plan: Plan) -> dict[str, Any]:
    """What both kernels are compiled for."""
    options = call.task.options
    return {
        "ND": len(call.tasks), "CELL": call.task.cell, "GATES": padded_gates(call.task),
        "SLOTS": slots_of(call.task), "RELU": options.nonlinearity == "relu",
        "COUPLED": options.coupled_gates, "ZONE_H": call.zoneout[0][0],
        "ZONE_C": call.zoneout[1][0], "U": plan.U, "N": plan.N,
        "BLOCK": STREAMED, "SOLO": plan.mode == "solo",
        "SYNC": plan.mode == "group" and not plan.is_phased, "PRECISION": plan.precision,
        "REAL": gates_of(call.task), "NORM": options.norm, "BEFORE": not options.reset_after,
        "GIVEN": plan.is_by_rows,
    }  # fmt: skip


def _masks(call: Call) -> dict[str, Any]:
    step, direction = triton_call.noise_strides(call)
    (_, rate_h, zone_h), (_, rate_c, zone_c) = call.zoneout
    return {
        "mask": call.mask, "resets": call.resets, "noise": call.noise, "noise_step": step,
        "noise_direction": direction, "zone_h": zone_h, "zone_c": zone_c, "rate_h": rate_h, "rate_c": rate_c,
    }  # fmt: skip


def _sizes(call: Call, plan: Plan) -> dict[str, int]:
    B, T, _ = call.x.shape
    return {
        "B": B, "T": T, "H": call.H, "HS": padded(call.H), "reverse_bits": call.reverse_bits,
        "n_tiles": tiles_of(B, plan.N), "n_blocks": plan.n_blocks,
    }  # fmt: skip


def _options(plan: Plan, num_warps: int) -> dict[str, Any]:
    """How a kernel is compiled and launched."""
    is_group = plan.mode == "group" and not plan.is_phased
    # The loops have nothing to prefetch: every step needs the one before.
    return {"num_warps": num_warps, "num_stages": 1, "launch_cooperative_grid": is_group, **FUSED}


def _counters(call: Call, plan: Plan) -> Tensor | None:
    if plan.mode != "group" or plan.is_phased:
        return None
    n = len(call.tasks) * tiles_of(call.x.shape[0], plan.N)
    return torch.zeros(n * _COUNTER_STRIDE, dtype=torch.int32, device=call.x.device)


def _waves(call: Call, plan: Plan) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """(first batch tile, grid) of each launch over all rows."""
    n_tiles = tiles_of(call.x.shape[0], plan.N)
    for first in range(0, n_tiles, plan.tiles_at_once):
        yield first, (plan.n_blocks, min(plan.tiles_at_once, n_tiles - first), len(call.tasks))


def _empty(call: Call, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or call.x.dtype, device=call.x.device)


def forward(call: Call, plan: Plan) -> Ran:
    """Run all steps; what `Task.keeps` says is kept."""
    from ostinato.kernels.triton_forward import forward_kernel

    task, (B, T, _), H, ND = call.task, call.x.shape, call.H, len(call.tasks)
    is_lstm, keeps = task.cell == "lstm", task.keeps != "nothing"
    needs_all = plan.mode != "solo" and not plan.is_by_rows
    h_before = _empty(call, ND, B, T, padded(H)) if keeps or needs_all else None
    kept = Kept(
        _empty(call, ND, B, T, slots_of(task) * padded(H)) if task.keeps == "gates" else None,
        h_before if keeps else None,
        _empty(call, ND, B, T, padded(H), dtype=torch.float32) if keeps and is_lstm else None,
        _empty(call, ND, B, T, 2, dtype=torch.float32) if keeps and is_lstm and task.options.norm else None,
    )
    products = Products(call, plan, is_forward=True)
    seen, h_in = (None, h_before) if plan.mode == "solo" else (h_before, None)
    if call.noise is not None and needs_all:
        # What the product sees differs from h then, and both are needed.
        seen, h_in = _empty(call, ND, B, T, padded(H)), kept.h_in
    if plan.is_by_rows:
        seen, h_in = products.seen, kept.h_in
    y = _empty(call, B, T, ND, H)
    # As the state: float32 under autocast.
    cells = _empty(call, B, T, ND, H, dtype=call.state[1].dtype) if task.returns_cells else None
    final = [torch.empty_like(leaf) for leaf in call.state]
    walking = [leaf.float().clone() for leaf in call.state] if plan.is_phased else []
    given = {
        "weights": triton_call.packed_weights(call, plan, plan.K), "x_gates": triton_call.input_product(call),
        "weights_n": triton_call.candidate_weights(call, plan, plan.K), **_norms(call),
        "c_moments": kept.c_moments, "given": products.given, "given_n": products.given_n,
        "bias_n": triton_call.candidate_bias(call), "peephole": triton_call.peepholes(call),
        **_pair("initial_", call.initial), **_masks(call), "seen": seen, "h_in": h_in, "y": y,
        "cells": cells, "gates": kept.gates, "c_before": kept.c_before, "arrived": _counters(call, plan),
        **_sizes(call, plan),
        **constants(call, plan),
        "K": plan.K, "CHUNKS": plan.chunks, "AHEAD": plan.ahead,
    }  # fmt: skip
    options = _options(plan, plan.num_warps[0])
    for first, grid in _waves(call, plan):
        ranges = [(0, 0, 1), *((s, s + 1, 0) for s in range(T))] if plan.is_phased else [(0, T, 1)]
        states = (walking, walking) if plan.is_phased else (call.state, final)
        for s_begin, s_end, prepares in ranges:
            if s_begin < s_end:
                products.before_step(s_begin, given)
            forward_kernel[grid](
                **given, **_pairs(states), tile_begin=first, s_begin=s_begin, s_end=s_end, prepares=prepares,
                **options,
            )  # fmt: skip
    if plan.is_phased:
        for target, source in zip(final, walking, strict=True):
            target.copy_(source)
    return Ran(y, final, cells, kept)


def _norms(call: Call) -> dict[str, Tensor | None]:
    return {"scales": triton_call.scales(call), "norm_c": triton_call.cell_norms(call)}


def _pair(prefix: str, leaves: list[Tensor]) -> dict[str, Tensor | None]:
    """`prefix`h and `prefix`c, None where there is none."""
    return {prefix + "h": leaves[0] if leaves else None, prefix + "c": leaves[1] if len(leaves) > 1 else None}


def _pairs(states: tuple[Sequence[Tensor | None], Sequence[Tensor | None]]) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {}
    for kind, leaves in zip(("from", "to"), states, strict=True):
        found[f"h_{kind}"] = leaves[0]
        found[f"c_{kind}"] = leaves[1] if len(leaves) > 1 else None
    return found


class Returned(NamedTuple):
    """Gradients in float32: of state and initial (ND, B, H), of peepholes (ND, tiles, 3 or 2, H), and of the
    scale and shift of the cell state (ND, tiles, 2, H).
    """

    state: list[Tensor]
    initial: list[Tensor]
    peephole: Tensor | None
    cell_norm: Tensor | None


def backward(
    call: Call,
    plan: Plan,
    kept: Kept,
    d_y: Tensor | None,
    d_final: list[Tensor | None],
    d_cells: Tensor | None,
    even: Even | None,
) -> Returned:
    """Turn the slots `kept.gates` into gradients before the activations, in place; fill `even.gradients`."""
    from ostinato.kernels.triton_backward import backward_kernel

    task, (B, T, _), H, ND = call.task, call.x.shape, call.H, len(call.tasks)
    n_tiles, peephole, norms = tiles_of(B, plan.N), triton_call.peepholes(call), _norms(call)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=call.x.device)

    d_state = [_empty(call, ND, B, H, dtype=torch.float32) for _ in call.state]
    d_first = [zeros(ND, B, H) for _ in call.initial]
    d_peephole = None if peephole is None else zeros(ND, n_tiles, peephole.shape[1], H)
    d_cell_norm = None if norms["norm_c"] is None else zeros(ND, n_tiles, 2, H)
    starts = [None if one is None else one.contiguous() for one in d_final]
    if plan.is_phased:
        for target, source in zip(d_state, starts, strict=True):
            target.zero_() if source is None else target.copy_(source)
    partials = None
    if plan.mode != "solo" and not plan.is_by_rows:
        n_partials = min(n_tiles, plan.tiles_at_once) * ND * plan.n_blocks
        partials = _empty(call, 2 * n_partials * plan.N * padded(H), dtype=torch.float32)
    weights = triton_call.packed_weights(call, plan, plan.back_K)
    weights_n = triton_call.candidate_weights(call, plan, plan.back_K)
    products = Products(call, plan, is_forward=False)
    given = {
        "weights": None if weights is None else weights.mT.contiguous(),
        "weights_n": None if weights_n is None else weights_n.mT.contiguous(),
        **norms, "c_moments": kept.c_moments, "even": None if even is None else even.products,
        "deviations": None if even is None else even.deviations,
        "d_products": None if even is None else even.gradients, "d_norm_c": d_cell_norm,
        "given": products.given, "sent": products.sent, "sent_n": products.sent_n,
        "peephole": peephole,
        **_masks(call), "gates": kept.gates, "c_before": kept.c_before, "h_in": kept.h_in, "d_y": d_y,
        "d_cells": d_cells, **_pair("d_first_", d_first), "d_peephole": d_peephole, "partials": partials,
        "arrived": _counters(call, plan), **_sizes(call, plan), **constants(call, plan),
        "RAW": task.keeps == "outputs", "K": plan.back_K, "CHUNKS": plan.back_chunks, "AT_ONCE": plan.at_once,
    }  # fmt: skip
    options = _options(plan, plan.num_warps[1])
    sources = d_state if plan.is_phased else starts
    leaves = {f"d_{name}": value for name, value in _pairs((sources, d_state)).items()}
    ranges = [(0, T, 1)]
    if plan.is_phased:
        ranges = [*((s, s + 1, 0) for s in reversed(range(T))), (0, 0, 1)]
    for first, grid in _waves(call, plan):
        for s_begin, s_end, finishes in ranges:
            backward_kernel[grid](
                **given,
                **leaves,
                tile_begin=first,
                s_begin=s_begin,
                s_end=s_end,
                finishes=finishes,
                **options,
            )
            if s_begin < s_end:
                products.after_step(s_begin, given, d_state[0])
    return Returned(d_state, d_first, d_peephole, d_cell_norm)
