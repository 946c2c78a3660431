"""A loop of torch operators, as one writes a cell that `torch.nn` does not have; also the float64 oracle.

Written from the equations, apart from our kernels. The input product stands outside the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.bench.cases import Array, Problem
from ostinato.bench.subjects import Operands, operands, sequence_results
from ostinato.bench.timing import Contestant
from ostinato.layers.dropout import Clock, Kind, drop_weight
from ostinato.types import State


class Masks(NamedTuple):
    """Random masks of a training run, drawn beforehand.

    Attributes:
        recurrent: (B, P), what h is multiplied by on its way into the product; None: nothing.
        keep_h, keep_c: (T, B, ·), True where the old value stays.
        weight_hh: the recurrent weights' factor; None: 1.
    """

    recurrent: Tensor | None = None
    keep_h: Tensor | None = None
    keep_c: Tensor | None = None
    weight_hh: Tensor | None = None


def draw_masks(given: Operands, problem: Problem) -> Masks:
    """The masks that our layer uses with the same key."""
    options = given.layer.options
    if problem.case.mode != "training" or not options.has_cell_masks():
        return Masks()
    clock = Clock.start(given.state, None, None, problem.case.T)
    dtype = given.x.dtype
    H, P = problem.case.H, options.proj_size or problem.case.H
    recurrent = weight = None
    if p := options.dropout_recurrent:
        recurrent = clock.keep(Kind.RECURRENT, 0, 0, P, p, is_variational=True)[:, 0].to(dtype) / (1 - p)
    if p := options.weight_drop:
        ones = torch.ones(problem.parameters["weight_hh_l0"].shape, dtype=dtype)
        weight = drop_weight(ones, clock.key, 0, 0, p)

    def stays(kind: Kind, width: int, p: float) -> Tensor | None:
        return ~clock.keep(kind, 0, 0, width, p, is_variational=False).transpose(0, 1) if p else None

    return Masks(
        recurrent,
        stays(Kind.ZONEOUT_H, P, options.zoneout_h),
        stays(Kind.ZONEOUT_C, H, options.zoneout_c),
        weight,
    )


def run_loop(
    cell: str,
    x: Tensor,
    state: Mapping[str, Tensor],
    p: Mapping[str, Tensor],
    options: Mapping[str, Any],
    masks: Masks,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One layer over x (T, B, D) from leaves (B, ·), p without `_l0`: (y (T, B, ·), leaves)."""
    w_hh = p["weight_hh"] if masks.weight_hh is None else p["weight_hh"] * masks.weight_hh
    inputs = _affine(x, p["weight_ih"], p["bias_ih"], p.get("norm_ih.weight")).unbind(0)
    now = dict(state)
    ys = []
    for t, a in enumerate(inputs):
        h = now["h"] if masks.recurrent is None else now["h"] * masks.recurrent
        if cell == "gru":
            new = {"h": _gru(a, h, now["h"], w_hh, p, options)}
        elif cell == "lstm":
            new = _lstm(a + _affine(h, w_hh, p["bias_hh"], p.get("norm_hh.weight")), now["c"], p, options)
        else:
            new = {"h": torch.tanh(a + _affine(h, w_hh, p["bias_hh"], p.get("norm_hh.weight")))}
        for name, stays in (("h", masks.keep_h), ("c", masks.keep_c)):
            if stays is not None:
                new[name] = torch.where(stays[t], now[name], new[name])
        now = new
        ys.append(now["h"])
    return torch.stack(ys), now


def _affine(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return F.linear(x, weight, bias)
    return F.layer_norm(F.linear(x, weight), (weight.shape[0],), scale, bias)


def _lstm(gates: Tensor, c: Tensor, p: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    if options.get("coupled_gates"):
        i, g, o = gates.chunk(3, 1)
        i = torch.sigmoid(i)
        new_c = c + i * (torch.tanh(g) - c)
    else:
        i, f, g, o = gates.chunk(4, 1)
        if "peephole" in p:
            i, f = i + p["peephole"][0] * c, f + p["peephole"][1] * c
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if "peephole" in p:
        o = o + p["peephole"][2] * new_c
    seen = new_c
    if "norm_c.weight" in p:
        seen = F.layer_norm(new_c, new_c.shape[1:], p["norm_c.weight"], p["norm_c.bias"])
    h = torch.sigmoid(o) * torch.tanh(seen)
    return {"h": F.linear(h, p["weight_hr"]) if "weight_hr" in p else h, "c": new_c}


def _gru(
    a: Tensor, h: Tensor, old: Tensor, w_hh: Tensor, p: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Tensor:
    H = old.shape[1]
    a_r, a_z, a_n = a.chunk(3, 1)
    if options.get("reset_after", True):
        u_r, u_z, u_n = _affine(h, w_hh, p["bias_hh"], p.get("norm_hh.weight")).chunk(3, 1)
        n = torch.tanh(a_n + torch.sigmoid(a_r + u_r) * u_n)
    else:
        u_r, u_z = F.linear(h, w_hh[: 2 * H], p["bias_hh"][: 2 * H]).chunk(2, 1)
        n = torch.tanh(a_n + F.linear(torch.sigmoid(a_r + u_r) * h, w_hh[2 * H :], p["bias_hh"][2 * H :]))
    return torch.lerp(n, old, torch.sigmoid(a_z + u_z))


def loop(problem: Problem, threads: int, dtype: torch.dtype = torch.float32) -> Contestant:
    """The loop as a contestant; its random masks are drawn beforehand, outside the clock."""
    del threads
    given = operands(problem, dtype)
    masks = draw_masks(given, problem)
    options = dict(problem.case.options)
    p = {name.replace("_l0", ""): value for name, value in given.layer.named_parameters()}
    x = given.x.detach().transpose(0, 1).contiguous().requires_grad_(given.x.requires_grad)
    d_y = given.d_outputs[0].transpose(0, 1).contiguous()
    leaves: dict[str, Tensor] = {name: given.state[name] for name in problem.state}  # type: ignore[misc]
    wanted = [x, *given.wanted[1:]]

    def forward() -> tuple[Tensor, dict[str, Tensor]]:
        first = {name: leaf[:, 0, 0] for name, leaf in leaves.items()}
        return run_loop(problem.case.cell, x, first, p, options, masks)

    def inference() -> Any:
        with torch.inference_mode():
            return *forward(), ()

    def training() -> Any:
        y, after = forward()
        d_after = [d[:, 0, 0] for d in given.d_outputs[1:]]
        outputs = [y, *(after[name] for name in problem.state)]
        return y, after, torch.autograd.grad(outputs, wanted, [d_y, *d_after])

    run = training if problem.case.mode == "training" else inference

    def results() -> dict[str, Array]:
        y, after, gradients = run()
        state = State({name: leaf[:, None, None] for name, leaf in after.items()})
        gradients = [gradients[0].transpose(0, 1), *gradients[1:]] if gradients else ()
        return sequence_results(problem, y.transpose(0, 1), state, gradients)

    return Contestant("torch loop", run, results, "operators one by one, masks given")
