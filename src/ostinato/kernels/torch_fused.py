"""The path `torch`: PyTorch's own fused recurrences, one call for one direction of one layer.

Any mask reaches them as right padding: `ops` moves the real steps of each row to its front. What is left to
do here is the final state of a row that ends before T. For h it is an output; c is carried through the
padding by one more input column that opens the forget gate and closes the input gate there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import reference
from ostinato.kernels.reference import CellOptions, CellSpec, Leaves, Noise

Call = Callable[..., tuple[Tensor, ...]]


def obstacle(spec: CellSpec, options: CellOptions, like: Tensor) -> str | None:
    """Why PyTorch has no fused form of this cell; None where it has one."""
    if like.device.type not in ("cpu", "cuda"):
        return f"PyTorch's fused layers are not verified on {like.device.type}"
    missing = [name for name in ("norm", "peephole", "coupled_gates", "zoneout") if getattr(options, name)]
    if spec.name == "gru" and not options.reset_after:
        missing.append("reset_after=False")
    if spec.name not in ("rnn", "lstm", "gru"):
        missing.append(f"the cell {spec.name!r}")
    return f"PyTorch has no fused form of {', '.join(missing)}" if missing else None


def run(
    spec: CellSpec,
    xs: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    lengths: Tensor | None,
) -> tuple[Tensor, Leaves]:
    """One direction of one layer over xs (T, B, D), right-padded to `lengths` (B,); (ys (T, B, H), state).

    ys is not masked.
    """
    # On the CPU the fused operators are differentiable twice; cuDNN's are once.
    runs = _run_once_differentiable if xs.is_cuda and torch.is_grad_enabled() else _run
    return runs(spec, xs, state, tensors, options, lengths)


def _run(
    spec: CellSpec,
    xs: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    lengths: Tensor | None,
) -> tuple[Tensor, Leaves]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    flat = [tensors[name] for name in names if name in tensors]
    # train: cuDNN and oneDNN keep what backward needs; there is no dropout here for it to switch on.
    settings = ("bias_ih" in tensors, 1, 0.0, torch.is_grad_enabled(), False, False)
    h = state["h"].unsqueeze(0)
    if spec.name == "lstm":
        if lengths is not None:
            xs, flat[0] = _with_padding_column(xs, flat[0], lengths)
        with warnings.catch_warnings():
            # oneDNN leaves projections to PyTorch's own fused loop, which is this path too.
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            ys, last_h, last_c = torch._VF.lstm(xs, (h, state["c"].unsqueeze(0)), flat, *settings)
        final = {"h": last_h[0], "c": last_c[0]}
    else:
        kind = spec.name if spec.name == "gru" else f"rnn_{options.nonlinearity}"
        ys, last_h = getattr(torch._VF, kind)(xs, h, flat, *settings)
        final = {"h": last_h[0]}
    if lengths is not None:
        rows = torch.arange(len(lengths), device=xs.device)
        last = ys[(lengths - 1).clamp(min=0), rows]
        final["h"] = torch.where((lengths > 0).unsqueeze(1), last, state["h"])
    return ys, final


class _Recomputed(torch.autograd.Function):
    """A call whose first derivative is the fused operator's own, and whose second is that of the steps.

    Whether a second derivative will be wanted is known in backward only: gradients are enabled there
    exactly under `create_graph=True`. Then the steps run from the saved inputs and are differentiated.
    """

    @staticmethod
    def forward(ctx: Any, fused: Call, steps: Call, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_(value.requires_grad) for value in inputs]
        with torch.enable_grad():
            outputs = fused(*leaves)
        ctx.save_for_backward(*inputs)
        ctx.inner, ctx.steps = (leaves, outputs), steps
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs: Sequence[Tensor] = ctx.saved_tensors
        outputs: Sequence[Tensor]
        wanted = [i for i, is_needed in enumerate(ctx.needs_input_grad[2:]) if is_needed]
        if torch.is_grad_enabled():
            outputs, keeps_graph = ctx.steps(*inputs), True
        else:
            inputs, outputs = ctx.inner
            keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph()
        found = torch.autograd.grad(
            outputs, [inputs[i] for i in wanted], grads, retain_graph=keeps_graph,
            create_graph=torch.is_grad_enabled(), allow_unused=True,
        )  # fmt: skip
        result: list[Tensor | None] = [None] * (2 + len(inputs))
        for i, gradient in zip(wanted, found, strict=True):
            result[2 + i] = gradient
        return tuple(result)


def _run_once_differentiable(
    spec: CellSpec,
    xs: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    lengths: Tensor | None,
) -> tuple[Tensor, Leaves]:
    """As `_run`, for a device whose fused operators have no second derivative."""
    n_leaves = len(state)

    def unpack(values: Sequence[Tensor]) -> tuple[Tensor, Leaves, dict[str, Tensor]]:
        x, *rest = values
        leaves = dict(zip(state, rest[:n_leaves], strict=True))
        return x, leaves, dict(zip(tensors, rest[n_leaves:], strict=True))

    def fused(*values: Tensor) -> tuple[Tensor, ...]:
        x, leaves, weights = unpack(values)
        ys, final = _run(spec, x, leaves, weights, options, lengths)
        return ys, *(final[name] for name in state)

    def steps(*values: Tensor) -> tuple[Tensor, ...]:
        x, leaves, weights = unpack(values)
        mask = None
        if lengths is not None:
            mask = torch.arange(len(x), device=x.device).unsqueeze(1) < lengths
        ys, final, _ = reference.run(
            spec, x, leaves, weights, options, noise=Noise(), product=F.linear, hoisted=True, mask=mask
        )
        return torch.stack(ys), *(final[name] for name in state)

    ys, *final = _Recomputed.apply(fused, steps, xs, *state.values(), *tensors.values())
    return ys, dict(zip(state, final, strict=True))


def step(
    spec: CellSpec, x: Tensor, state: Leaves, tensors: Mapping[str, Tensor], options: CellOptions
) -> tuple[Tensor, Leaves]:
    """One tick of x (B, D)."""
    h = state["h"]
    bias = (tensors.get("bias_ih"), tensors.get("bias_hh"))
    if spec.name == "lstm":
        if options.projection:
            ys, final = run(spec, x.unsqueeze(0), state, tensors, options, None)
            return ys[0], final
        new_h, c = torch._VF.lstm_cell(x, (h, state["c"]), tensors["weight_ih"], tensors["weight_hh"], *bias)
        return new_h, {"h": new_h, "c": c}
    kind = "gru_cell" if spec.name == "gru" else f"rnn_{options.nonlinearity}_cell"
    new_h = getattr(torch._VF, kind)(x, h, tensors["weight_ih"], tensors["weight_hh"], *bias)
    return new_h, {"h": new_h}


def _with_padding_column(xs: Tensor, weight: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """xs with a last column that is 1 in the padding, and the weights that make c stand still there."""
    T = xs.shape[0]
    is_padding = torch.arange(T, device=xs.device).unsqueeze(1) >= lengths
    H = weight.shape[0] // 4
    # Saturates a gate whatever the state adds to it, and is still finite in float16.
    saturating = min(1e18, torch.finfo(weight.dtype).max / 2)
    closed, opened = weight.new_full((H, 1), -saturating), weight.new_full((H, 1), saturating)
    column = torch.cat([closed, opened, weight.new_zeros(2 * H, 1)])
    flagged = torch.cat([xs, is_padding.unsqueeze(2).to(xs.dtype)], dim=2)
    return flagged, torch.cat([weight, column], dim=1)
