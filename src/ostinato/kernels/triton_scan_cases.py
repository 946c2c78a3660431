"""Scans to compile without a GPU, as `triton_cases.py` has the recurrences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ostinato.kernels.scan import Given, Rule
from ostinato.kernels.triton_cases import CompileCase, Facts
from ostinato.kernels.triton_scan import MOST_REGISTERS, constants, plan

_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# What a launch finds to be a multiple of 16 where the units are one.
_ALIGNED = ("H", "a_b", "a_t", "b_b", "b_t", "d_y_b", "d_y_t")


def compile_cases() -> list[CompileCase]:
    """Every kind of gates in three types, both ways of handing on states, and masks with resets."""
    return list(_cases())


def _cases() -> Iterator[CompileCase]:
    for capability in ((8, 0), (9, 0)):
        for gates in ("linear", "mingru", "minlstm", "rglru"):
            yield from _both(gates, torch.float32, capability)
        for gates in ("linear", "minlstm"):
            yield from _both(gates, torch.bfloat16, capability)
    yield from _both("mingru_linear", torch.float16, (9, 0), looks_back=False)
    yield from _both("minlstm_linear", torch.float32, (9, 0), looks_back=False)
    yield from _both("rglru", torch.float32, (9, 0), is_masked=True)


def _both(
    gates: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    *,
    looks_back: bool = True,
    is_masked: bool = False,
) -> Iterator[CompileCase]:
    """Forward and backward of 8 rows of 256 units and 4096 steps; `is_masked`: with resets too."""
    H, rule = 256, Rule(gates)
    n_inputs = 2 if gates == "linear" else rule.cell[0].gates
    width = H if gates == "linear" else n_inputs * H
    like = torch.empty((), dtype=dtype).expand(8, 4096, width)
    given = Given([like] * (2 if gates == "linear" else 1), torch.empty((), dtype=dtype).expand(8, H))
    for part in ("forward", "backward"):
        how = plan(given, H, is_backward=part == "backward", n_processors=108 if looks_back else 1)
        tile = how.tile
        signature = _signature(rule, _POINTERS[dtype], part, looks_back=looks_back, is_masked=is_masked)
        values: dict[str, Any] = {name: None for name, kind in signature.items() if kind is None}
        values |= dict.fromkeys(
            ("a_h", "b_h", "d_y_h", "d_final_h") if part == "backward" else ("a_h", "b_h"), 1
        )
        if part == "backward":
            del values["b_h"]
        types = {name: kind for name, kind in signature.items() if kind is not None}
        aligned = [name for name, kind in types.items() if kind.startswith("*") or name in _ALIGNED]
        way = "look-back" if looks_back else "walk"
        name = f"{gates} {part} {str(dtype).removeprefix('torch.')} {way}{' masked' * is_masked}"
        yield CompileCase(
            f"{name} sm_{capability[0]}{capability[1]}",
            (f"{__package__}.triton_scan_kernels", f"{part}_kernel"), types, values | constants(rule, how),
            tuple(aligned), tile.warps, 3, capability,
            Facts(products=False, wide=False, hot=True, shared_bytes=48 * 1024), MOST_REGISTERS,
        )  # fmt: skip


def _signature(
    rule: Rule, real: str, part: str, *, looks_back: bool, is_masked: bool
) -> dict[str, str | None]:
    """Types of the arguments, None for tensors that there are not."""
    has_decay = rule.gates == "rglru"
    masks = "*u8" if is_masked else None
    given: dict[str, str | None] = {
        "a": real, "decay": "*fp32" if has_decay else None, "start": real,
        "initial": real if is_masked else None, "mask": masks, "resets": masks, "y": real,
        "words": "*i64" if looks_back else None,
    }  # fmt: skip
    sizes = ["T", "H", "n_chunks", "n_blocks", "n_chains", "n_words", "a_b", "a_t", "start_b", "initial_b"]
    if part == "forward":
        given |= {"b": real, "final": real}
        sizes += ["b_b", "b_t"]
    else:
        given |= {
            "sources": "*i64" if is_masked else None, "d_y": real, "d_final": real, "d_a": real,
            "d_b": real if rule.gates == "linear" else None, "d_start": real,
            "d_initial": "*fp32" if is_masked else None, "d_rate": "*fp32" if has_decay else None,
        }  # fmt: skip
        sizes += ["d_y_b", "d_y_t", "d_final_b"]
    return given | dict.fromkeys(sizes, "i32")
