"""The linear scan as a torch operator: differentiable, traceable, and cheap to call.

`run` is the entrance. In eager mode it calls the kernels of the tensors' device, through one
`torch.autograd.Function` where a gradient is wanted. Where PyTorch looks on (`torch.compile`, `torch.export`,
fake tensors) the call is the operator `ostinato::linear_scan`: one opaque node, with
`ostinato::linear_scan_backward` behind it. What no kernels can take and second derivatives are the plain path
of `scan.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import scan
from ostinato.kernels.reference import CellOptions, CellSpec, Leaves, Weights
from ostinato.kernels.scan import Given, Rule
from ostinato.kernels.tracing import is_traced


def run(rule: Rule, given: Given) -> tuple[Tensor, Tensor]:
    """y (B, T, H), and the final state (B, H)."""
    if is_traced(given.inputs[0], given.start):
        return torch.ops.ostinato.linear_scan(*given, *rule)
    tensors = given.differentiable
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in tensors):
        return _Scan.apply(_Call(rule, given, scan.forward, scan.backward), *tensors)
    return scan.forward(rule, given)


def run_layer(
    spec: CellSpec,
    x: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    *,
    is_reverse: bool = False,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    initial: Leaves | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Leaves, Leaves | None]:
    """One direction of one layer of a linear cell over x (B, T, D): y, the final state, and the states."""
    gates = spec.name + ("_linear" if options.candidate == "linear" else "")
    given = Given(
        [_input_part(x, tensors, options)], state["h"], tensors.get("decay"),
        None if initial is None or resets is None else initial["h"], mask, resets,
    )  # fmt: skip
    y, final = run(Rule(gates, is_reverse, return_states), given)
    # Under autocast y is narrower than the state.
    states = {"h": y.to(final.dtype)} if return_states else None
    if return_states and mask is not None:
        y = y.masked_fill(~mask.unsqueeze(2), 0.0)
    return y, {"h": final}, states


def _input_part(x: Tensor, tensors: Mapping[str, Tensor], options: CellOptions) -> Tensor:
    if options.norm:
        return Weights(tensors, F.linear).input_part(x, options)
    return F.linear(x, tensors["weight_ih"], tensors.get("bias_ih"))


# Differentiation and registration ------------------------------------------------------------------------


class _Call(NamedTuple):
    """What `_Scan` needs beside the tensors that it differentiates."""

    rule: Rule
    given: Given
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., list[Tensor | None]]


class _Scan(torch.autograd.Function):
    """The differentiable call; `tensors` are those of `call.given`, for autograd to see."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        y, state = call.forward(call.rule, call.given)
        ctx.save_for_backward(*tensors, call.given.mask, call.given.resets, y)
        ctx.rule, ctx.backward_of_call = call.rule, call.backward
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, mask, resets, y = ctx.saved_tensors
        given = Given([], y, mask=mask, resets=resets).with_differentiable(tensors)
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *scan.steps_gradients(ctx.rule, given, wanted, grads)
        found = ctx.backward_of_call(ctx.rule, given, wanted, y, grads)
        return None, *(value if is_wanted else None for value, is_wanted in zip(found, wanted, strict=True))


_GIVEN = "Tensor[] inputs, Tensor start, Tensor? decay, Tensor? initial, Tensor? mask, Tensor? resets"
_RULE = "str gates, bool is_reverse, bool carries"
_LIBRARY = torch.library.Library("ostinato", "FRAGMENT")
_LIBRARY.define(f"linear_scan({_GIVEN}, {_RULE}) -> (Tensor, Tensor)")
_GRADS = "bool[] wanted, Tensor y, Tensor? d_y, Tensor? d_state"
_LIBRARY.define(f"linear_scan_backward({_GIVEN}, {_GRADS}, {_RULE}) -> Tensor[]")
_N_GIVEN = len(Given._fields)


def _register() -> None:
    # Whatever the device: where its kernels cannot run, the steps do.
    _LIBRARY.impl("linear_scan", _operator_kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl("linear_scan_backward", _backward_kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl("linear_scan", _autograd_kernel, "Autograd")
    torch.library.register_fake("ostinato::linear_scan", _fake, lib=_LIBRARY)
    torch.library.register_fake("ostinato::linear_scan_backward", _fake_backward, lib=_LIBRARY)


def _operator_kernel(*flat: Any) -> tuple[Tensor, Tensor]:
    return scan.forward(Rule(*flat[_N_GIVEN:]), Given(*flat[:_N_GIVEN]))


def _backward_kernel(*flat: Any) -> list[Tensor]:
    given = Given(*flat[:_N_GIVEN])
    wanted, y, d_y, d_state, *rule = flat[_N_GIVEN:]
    found = scan.backward(Rule(*rule), given, wanted, y, (d_y, d_state))
    return [
        torch.zeros_like(value) if d_value is None else d_value.contiguous()
        for value, d_value, is_wanted in zip(given.differentiable, found, wanted, strict=True)
        if is_wanted and value is not None
    ]


def _autograd_kernel(*flat: Any) -> tuple[Tensor, Tensor]:
    given, rule = Given(*flat[:_N_GIVEN]), Rule(*flat[_N_GIVEN:])
    tensors = given.differentiable
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in tensors):
        return _Scan.apply(_Call(rule, given, _operator, _backward_operator), *tensors)
    return _operator(rule, given)


def _operator(rule: Rule, given: Given) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.ostinato.linear_scan(*given, *rule)


def _backward_operator(
    rule: Rule, given: Given, wanted: Sequence[bool], y: Tensor, grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    found = iter(torch.ops.ostinato.linear_scan_backward(*given, list(wanted), y, *grads, *rule))
    return [next(found) if is_wanted else None for is_wanted in wanted]


def _fake(*flat: Any) -> tuple[Tensor, Tensor]:
    given = Given(*flat[:_N_GIVEN])
    B, T, H = scan.sizes(given)
    return given.inputs[0].new_empty(B, T, H), given.start.new_empty(B, H)


def _fake_backward(*flat: Any) -> list[Tensor]:
    wanted = flat[_N_GIVEN]
    tensors = Given(*flat[:_N_GIVEN]).differentiable
    return [
        value.new_empty(value.shape)
        for value, is_wanted in zip(tensors, wanted, strict=True)
        if is_wanted and value is not None
    ]


_register()
