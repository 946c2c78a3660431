"""Kernels to compile without a GPU: what each is compiled for, and what must be true of the result.

Tests go through `compile_cases()`; on a GPU the same kernels are compiled at their first launch, for the
types and the alignments found there.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

import torch

from ostinato.kernels import triton_plan
from ostinato.kernels.cell_options import CellOptions
from ostinato.kernels.task import Task
from ostinato.kernels.triton_call import gates_of, slots_of
from ostinato.kernels.triton_plan import CHIPS, FUSED, STREAMED, Plan, padded_gates

_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Facts(NamedTuple):
    """What must be true of a compiled kernel.

    Attributes:
        products: tensor cores multiply; with `wide`, those of compute capability 9 (wgmma).
        wide: as above.
        hot: registers suffice: nothing spills.
        shared_bytes: shared memory at most.
        resident_bytes: of weights that are in shared memory before the loop over time; 0 for none.
        cooperative: all thread blocks are on the device at once.
    """

    products: bool
    wide: bool
    hot: bool
    shared_bytes: int
    resident_bytes: int = 0
    cooperative: bool = False


class CompileCase(NamedTuple):
    """One kernel for one kind of call.

    Attributes:
        name: for people.
        function: module and attribute of the kernel.
        signature: argument -> Triton's name of its type, of those that are not constants.
        constants: argument -> value, None for tensors that there are not.
        aligned: arguments that are multiples of 16 (pointers: addresses).
        num_warps, num_stages: options of the launch.
        capability: compute capability of the GPU.
        facts: what must be true.
        max_registers: of a thread, where the launch sets it.
    """

    name: str
    function: tuple[str, str]
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    capability: tuple[int, int]
    facts: Facts
    max_registers: int | None = None


def compiled(case: CompileCase) -> Any:
    """Triton's kernel, with its texts in `asm` and its resources in `metadata`; needs Triton, no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(case.function[0]), case.function[1])
    names = list(function.arg_names)
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(function, signature, constants, attributes)
    target = GPUTarget("cuda", case.capability[0] * 10 + case.capability[1], 32)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **FUSED}
    if case.max_registers is not None:
        options["maxnreg"] = case.max_registers
    return triton.compile(source, target=target, options=options)


# Of the recurrences -----------------------------------------------------------------------------------------

_SIZES = (32, 64, 128, 160, 192, 256, 384, 512, 768, 1000, 1024, 1536)
_PLAIN = CellOptions()


def compile_cases() -> list[CompileCase]:
    """Kernels of `triton_recurrent` over the table of sizes, and one of each option."""
    return list(_cases())


def _cases() -> Iterator[CompileCase]:
    half, single = torch.bfloat16, torch.float32
    everything = CellOptions(peephole=True, zoneout={"h": 0.1, "c": 0.1}, training=True)
    for capability in ((8, 0), (9, 0)):
        for H in _SIZES:
            yield from _both(_task("lstm"), 16, H, half, capability)
        for H in (64, 256, 768):
            yield from _both(_task("lstm"), 16, H, single, capability)
        for H in (64, 256, 1000):
            yield from _both(_task("gru"), 32, H, torch.float16, capability)
            yield from _both(_task("rnn"), 32, H, half, capability)
        for B in (64, 128):
            yield from _both(_task("lstm"), B, 768, half, capability)
        yield from _both(_task("lstm", everything), 32, 256, half, capability, has_all=True)
        yield from _both(
            _task("gru", CellOptions(zoneout={"h": 0.1})), 32, 64, half, capability, has_all=True
        )
        yield from _both(_task("lstm", keeps="outputs"), 32, 512, half, capability)
        yield from _both(_task("gru", keeps="outputs"), 32, 64, half, capability)
        yield from _both(_task("lstm"), 32, 512, half, capability, only="step")
        yield from _both(_task("lstm"), 32, 160, single, capability, precision="tf32x3")
        yield from _whole_rows(capability)


def _whole_rows(capability: tuple[int, int]) -> Iterator[CompileCase]:
    """Layer normalisation, and the reset gate before its product: solo, and by rows where it does not fit."""
    half, single = torch.bfloat16, torch.float32
    norm, before = CellOptions(norm=True), CellOptions(reset_after=False)
    for H in (32, 64, 128, 512, 1000):
        yield from _both(_task("lstm", norm), 16, H, half, capability)
        yield from _both(_task("gru", before), 16, H, half, capability)
    for H in (64, 512):
        yield from _both(_task("lstm", norm), 16, H, single, capability)
        yield from _both(_task("gru", before), 16, H, single, capability)
    both = CellOptions(norm=True, reset_after=False)
    for H in (64, 128, 512):
        yield from _both(_task("gru", norm), 32, H, torch.float16, capability)
        yield from _both(_task("gru", both), 32, H, half, capability, has_all=True)
    for options in (before, both):
        yield from _between_products(options, half, capability)
    yield from _both(_task("rnn", norm), 32, 256, half, capability)
    # More rows than thread blocks that can be at work.
    yield from _both(_task("lstm", norm), 4096, 256, half, capability)
    everything = CellOptions(norm=True, peephole=True, zoneout={"h": 0.1, "c": 0.1}, training=True)
    for H in (64, 512):
        yield from _both(_task("lstm", everything), 32, H, half, capability, has_all=True)


def _between_products(
    options: CellOptions, dtype: torch.dtype, capability: tuple[int, int]
) -> Iterator[CompileCase]:
    """What stands between two products of torch within a step."""
    B, H, real = 32, 512, _POINTERS[dtype]
    task, chip = _task("gru", options), CHIPS[capability]
    plan = triton_plan.plan(task._replace(keeps="nothing"), B, H, dtype, chip)
    sizes = dict.fromkeys(("B", "T", "H", "HS", "reverse_bits", "s"), "i32")
    scales = {"scales": real if options.norm else None}
    forward = dict.fromkeys(("x_gates", "given", "seen", "inner"), real)
    backward = dict.fromkeys(("gates", "h_in", "noise", "d_inner", "sent"), real)
    backward |= {"noise_step": "i32", "noise_direction": "i32", "d_h": "*fp32"}
    of_norm = {"even": real, "deviations": "*fp32", "d_products": real}
    both = {
        "reset": {**forward, **scales},
        "reset_backward": {
            **backward, **scales, **(of_norm if options.norm else dict.fromkeys(of_norm))
        },
    }  # fmt: skip
    for k, (name, given) in enumerate(both.items()):
        signature = {key: kind for key, kind in (given | sizes).items() if kind is not None}
        constants: dict[str, Any] = {key: None for key, kind in given.items() if kind is None}
        constants |= {"ND": 1, "U": plan.U, "N": plan.N, "NORM": options.norm}
        aligned = [key for key, kind in signature.items() if kind.startswith("*")]
        yield CompileCase(
            f"{_name(task)} {name} B={B} H={H} {str(dtype).removeprefix('torch.')} "
            f"sm_{capability[0]}{capability[1]}",
            ("ostinato.kernels.triton_reset", f"{name}_kernel"), signature, constants, (*aligned, "H", "HS"),
            plan.num_warps[k], 1, capability,
            Facts(products=False, wide=False, hot=True, shared_bytes=chip.shared_bytes),
        )  # fmt: skip


def _task(cell: str, options: CellOptions = _PLAIN, keeps: str = "gates") -> Task:
    return Task(cell, options, is_reverse=False, returns_cells=False, keeps=keeps)


def _both(
    task: Task,
    B: int,
    H: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    *,
    has_all: bool = False,
    only: str | None = None,
    precision: str = "tf32",
) -> Iterator[CompileCase]:
    """Forward and backward of a call; `has_all`: with mask, resets, dropout of h and two directions."""
    chip = CHIPS[capability]
    n_directions = 2 if has_all else 1
    plan = triton_plan.plan(
        task._replace(keeps="nothing"),
        B,
        H,
        dtype,
        chip,
        precision=precision,
        n_directions=n_directions,
        only=only,
    )
    for part in ("forward", "backward"):
        signature, constants = _arguments(task, plan, H, dtype, part, has_all)
        aligned = [name for name, kind in signature.items() if kind.startswith("*")]
        aligned += ["HS"] + ["H"] * (H % 16 == 0)
        yield CompileCase(
            f"{_name(task)} {part} {plan.mode} B={B} H={H} {str(dtype).removeprefix('torch.')} {precision}"
            f"{' everything' if has_all else ''} sm_{capability[0]}{capability[1]}",
            (f"ostinato.kernels.triton_{part}", f"{part}_kernel"), signature, constants, tuple(aligned),
            plan.num_warps[part == "backward"], 1, capability,
            Facts(
                products=not plan.is_by_rows, wide=not plan.is_by_rows and _is_wide(plan, part, capability),
                # A launch over whole rows takes one step, without a product: it has no hot loop.
                hot=precision == "tf32" and plan.N < 64 and not plan.is_by_rows,
                shared_bytes=chip.shared_bytes, cooperative=plan.mode == "group",
                resident_bytes=plan.rows * min(plan.K, plan.back_K) * dtype.itemsize if plan.stays else 0,
            ),
        )  # fmt: skip


def _name(task: Task) -> str:
    return task.cell + "-norm" * task.options.norm + "-before" * (not task.options.reset_after)


def _is_wide(plan: Plan, part: str, capability: tuple[int, int]) -> bool:
    """Whether tensor cores of compute capability 9 can take the products: 64 rows for four warps."""
    rows = plan.rows if part == "forward" else max([n for _, n in plan.back_chunks], default=STREAMED)
    return capability[0] == 9 and rows >= 64


def _arguments(
    task: Task, plan: Plan, H: int, dtype: torch.dtype, part: str, has_all: bool
) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of what is given, and constants, as `triton_launch.py` passes them."""
    real, options = _POINTERS[dtype], task.options
    is_lstm, is_solo, keeps = task.cell == "lstm", plan.mode == "solo", task.keeps
    kinds = [(2 if options.training else 1) if leaf in options.zoneout else 0 for leaf in "hc"]
    state = "*fp32" if plan.is_phased else real
    given: dict[str, str | None] = {
        "weights": None if plan.is_by_rows else real,
        "weights_n": real if is_solo and not options.reset_after else None,
        "scales": real if options.norm else None, "norm_c": real if options.norm and is_lstm else None,
        "c_moments": "*fp32" if options.norm and is_lstm else None,
        "given": real if plan.is_by_rows else None, "peephole": real if options.peephole else None,
        "mask": "*u8" if has_all else None, "resets": "*u8" if has_all else None,
        "noise": real if has_all else None,
        "zone_h": "*u8" if kinds[0] == 2 else None, "zone_c": "*u8" if kinds[1] == 2 else None,
        "rate_h": "fp32", "rate_c": "fp32", "arrived": "*i32" if plan.mode == "group" else None,
        "gates": real, "c_before": "*fp32" if is_lstm else None,
    }  # fmt: skip
    given |= dict.fromkeys(
        ("noise_step", "noise_direction", "B", "T", "H", "HS", "reverse_bits", "tile_begin", "n_tiles",
         "n_blocks", "s_begin", "s_end"), "i32",
    )  # fmt: skip
    constants: dict[str, Any] = {
        "ND": 2 if has_all else 1, "CELL": task.cell, "GATES": padded_gates(task), "SLOTS": slots_of(task),
        "RELU": options.nonlinearity == "relu", "COUPLED": options.coupled_gates, "ZONE_H": kinds[0],
        "ZONE_C": kinds[1], "U": plan.U, "N": plan.N, "BLOCK": STREAMED,
        "SOLO": is_solo, "SYNC": plan.mode == "group", "PRECISION": plan.precision, "REAL": gates_of(task),
        "NORM": options.norm, "BEFORE": not options.reset_after, "GIVEN": plan.is_by_rows,
    }  # fmt: skip
    is_second = plan.is_by_rows and not options.reset_after
    if part == "forward":
        given |= {
            "given_n": real if is_second else None, "x_gates": real, "h_from": state, "h_to": state,
            "bias_n": real if task.cell == "gru" and options.reset_after else None,
            "c_from": state if is_lstm else None, "c_to": state if is_lstm else None,
            "initial_h": real if has_all else None, "initial_c": real if has_all and is_lstm else None,
            "seen": None if is_solo else real,
            "h_in": real if is_solo or has_all or plan.is_by_rows else None, "y": real,
            "cells": None, "gates": real if keeps == "gates" else None, "prepares": "i32",
        }  # fmt: skip
        constants |= {"K": plan.K, "CHUNKS": plan.chunks, "AHEAD": plan.ahead}
    else:
        given |= {
            "h_in": real, "d_y": real, "d_cells": None, "d_h_from": "*fp32", "d_h_to": "*fp32",
            "d_c_from": "*fp32" if is_lstm else None, "d_c_to": "*fp32" if is_lstm else None,
            "d_first_h": "*fp32" if has_all else None, "d_first_c": "*fp32" if has_all and is_lstm else None,
            "d_peephole": "*fp32" if options.peephole else None,
            "partials": None if is_solo or plan.is_by_rows else "*fp32",
            "finishes": "i32", "even": real if options.norm else None,
            "deviations": "*fp32" if options.norm else None, "d_products": real if options.norm else None,
            "d_norm_c": "*fp32" if options.norm and is_lstm else None,
            "sent": real if plan.is_by_rows else None, "sent_n": real if is_second else None,
        }  # fmt: skip
        constants |= {
            "RAW": keeps == "outputs",
            "K": plan.back_K,
            "CHUNKS": plan.back_chunks,
            "AT_ONCE": plan.at_once,
        }
    constants |= {name: None for name, kind in given.items() if kind is None}
    return {name: kind for name, kind in given.items() if kind is not None}, constants
