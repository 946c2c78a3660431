"""Layer normalisation around the loop: what backward's kernel needs of it, and the gradients after it.

Forward keeps no product: those of all steps are one matrix product of what it kept of h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.triton_call import (
    Call,
    bias_gradients,
    gates_of,
    narrowed,
    narrowed_columns,
    recurrent_gradient,
    seen_by_candidate,
    seen_by_product,
    slots_of,
    widened_columns,
)
from ostinato.kernels.triton_plan import padded

# As `torch.nn.functional.layer_norm` has it.
_EPSILON = 1e-5


class Even(NamedTuple):
    """The recurrent products of all steps, normalised.

    Attributes:
        products: (ND, B, T, G·HS), before they are scaled.
        deviations: (ND, B, T, n) float32: 1 over the standard deviation of each that is normalised by itself:
            one, or that of r and z and that of n.
        gradients: like `products`, for the kernel to fill.
    """

    products: Tensor
    deviations: Tensor
    gradients: Tensor


def even_products(call: Call, slots: Tensor, h_in: Tensor) -> Even:
    """What the kernel of backward reads and writes."""
    (B, T, _), H, ND = call.x.shape, call.H, len(call.tasks)
    shape = ND, B, T, gates_of(call.task) * padded(H)
    found, deviations = call.x.new_empty(shape), []
    for d, weights in enumerate(call.weights):
        weight, seen = weights["weight_hh"], seen_by_product(call, h_in, d)
        if call.task.options.reset_after:
            products = [F.linear(seen, weight)]
        else:
            shown = seen_by_candidate(call, slots, d)
            products = [F.linear(seen, weight[: 2 * H]), F.linear(shown, weight[2 * H :])]
        normalised = [torch.native_layer_norm(one, one.shape[-1:], None, None, _EPSILON) for one in products]
        columns = torch.cat([one for one, _, _ in normalised], 1)
        found[d] = widened_columns(columns, H).view(B, T, -1)
        deviations.append(torch.cat([one.float() for _, _, one in normalised], 1).view(B, T, -1))
    return Even(found, torch.stack(deviations), torch.empty_like(found))


def input_gradients(call: Call, slots: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Of direction d: of W_ih x (B·T, G·H) before it is normalised, and of the scale."""
    weights, H = call.weights[d], call.H
    columns = narrowed_columns(slots[d].flatten(0, 1), H)
    if call.task.cell == "gru":
        # The slots begin with n, r, z.
        columns = torch.cat([columns[:, H : 3 * H], columns[:, :H]], 1)
    product = F.linear(call.x.flatten(0, 1), weights["weight_ih"])
    scale, shape = weights["norm_ih.weight"], list(product.shape[-1:])
    _, mean, deviation = torch.native_layer_norm(product, shape, scale, None, _EPSILON)
    d_product, d_scale, _ = torch.ops.aten.native_layer_norm_backward(
        columns.contiguous(), product, shape, mean, deviation, scale, None, [True, True, False]
    )
    return d_product, d_scale


def input_gradient(call: Call, d_products: list[Tensor]) -> Tensor:
    """(B, T, D), from the gradients of W_ih x of each direction."""
    total = d_products[0] @ call.weights[0]["weight_ih"]
    for d_product, weights in zip(d_products[1:], call.weights[1:], strict=True):
        total.addmm_(d_product, weights["weight_ih"])
    return total.view(call.x.shape)


def weight_gradients(
    call: Call,
    slots: Tensor,
    h_in: Tensor,
    even: Even,
    of_input: tuple[Tensor, Tensor],
    d_cell: Tensor | None,
    d: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Of direction d, by name; `d_cell`: of the cell state's scale and shift, (ND, tiles, 2, H)."""
    H, HS = call.H, padded(call.H)
    d_product, d_scale = of_input
    found = bias_gradients(call, slots, d)
    found["weight_ih"], found["norm_ih.weight"] = d_product.t() @ call.x.flatten(0, 1), d_scale
    columns = even.gradients[d].flatten(0, 1)
    if call.task.cell == "gru":
        found["weight_hh"] = recurrent_gradient(
            call, columns[:, : 2 * HS], columns[:, 2 * HS :], slots, h_in, d
        )
    else:
        found["weight_hh"] = narrowed(columns.t() @ seen_by_product(call, h_in, d), H)
    found["norm_hh.weight"] = narrowed(_scale_gradient(call, slots, even, d), H)
    if d_cell is not None:
        found["norm_c.weight"], found["norm_c.bias"] = d_cell[d].sum(0)
    return found


def _scale_gradient(call: Call, slots: Tensor, even: Even, d: int) -> Tensor:
    """(G·HS) in float32: gradients after the products were scaled, times what was scaled."""
    places = list(range(slots_of(call.task)))
    if call.task.cell == "gru":
        places = [1, 2, 3] if call.task.options.reset_after else [1, 2, 0]
    by_gate = slots[d].flatten(0, 1).unflatten(1, (-1, padded(call.H)))
    products = even.products[d].flatten(0, 1).unflatten(1, (-1, padded(call.H)))
    # Gate by gate, and in float32: half the range of float16 lies below the products' smallest.
    return torch.cat([(by_gate[:, k].float() * products[:, gate]).sum(0) for gate, k in enumerate(places)])
