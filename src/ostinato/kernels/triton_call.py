"""What the Triton kernels run on: a call's tensors in their layouts, and the products before and after the
loop.

One direction of a layer, or both at once; arrays of several directions have them as first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.kernels import reference
from ostinato.kernels.recurrence import hidden_size
from ostinato.kernels.task import Arguments, Task
from ostinato.kernels.triton_plan import Plan, padded, padded_gates


class Call(NamedTuple):
    """One call of ND directions, which share x, mask and resets.

    Attributes:
        tasks: of each direction; they differ in `is_reverse` only.
        x: (B, T, D), finite where steps are not real.
        weights: of each direction, by name, in the dtype of x.
        state: leaves (ND, B, H) in their own dtypes.
        initial: the same of the state after a reset, or empty.
        mask, resets: (B, T) uint8 or None.
        noise: (ND, T or 1, B, H) factors of h, or None.
        zoneout: of h and of c: (kind, rate, mask); kinds 0 none, 1 expectation, 2 by mask (ND, T, B, H)
        uint8.
    """

    tasks: tuple[Task, ...]
    x: Tensor
    weights: list[dict[str, Tensor]]
    state: list[Tensor]
    initial: list[Tensor]
    mask: Tensor | None
    resets: Tensor | None
    noise: Tensor | None
    zoneout: list[tuple[int, float, Tensor | None]]

    @property
    def task(self) -> Task:
        """What the directions have in common."""
        return self.tasks[0]

    @property
    def H(self) -> int:  # noqa: N802 - the alphabet of the project
        """Units."""
        return int(self.weights[0]["weight_hh"].shape[1])

    @property
    def reverse_bits(self) -> int:
        """Bit d: direction d goes from the last step to the first."""
        return sum(task.is_reverse << d for d, task in enumerate(self.tasks))


def slots_of(task: Task) -> int:
    """Columns of H units that forward keeps for a step."""
    return {"rnn": 1, "lstm": 4 - task.options.coupled_gates, "gru": 4}[task.cell]


def gates_of(task: Task) -> int:
    """Blocks of H rows in the weights."""
    return reference.CELLS[task.cell].gates - task.options.coupled_gates


def call_of(tasks: Sequence[Task], givens: Sequence[Arguments]) -> Call:
    """The call on the arguments of each direction."""
    first = givens[0]
    x, task = first.x, tasks[0]
    mask, resets = first.mask, first.resets
    if resets is not None and not first.initial:
        raise InputError("resets: expected the state after a reset in `initial`, found none")
    if mask is not None:
        # What stands in the padding may be NaN; 0·NaN in the gradient of a weight would spread it.
        x = x.masked_fill(~mask.unsqueeze(2), 0.0)
    spec, H = reference.CELLS[task.cell], hidden_size(task, first)
    has_bias = len(first.weights) > len(spec.parameter_shapes(1, H, task.options, bias=False))
    names = list(spec.parameter_shapes(x.shape[2], H, task.options, has_bias))
    weights = [
        dict(zip(names, (one.detach().to(x.dtype) for one in given.weights), strict=True)) for given in givens
    ]
    zoneout = [_zoneout(task, leaf, [given.noise[1 + k] for given in givens]) for k, leaf in enumerate("hc")]
    return Call(
        tuple(tasks), x.detach(), weights, _leaves([given.state for given in givens]),
        _leaves([given.initial for given in givens]) if resets is not None else [],
        _bytes(mask), _bytes(resets), _stacked([given.noise[0] for given in givens]), zoneout,
    )  # fmt: skip


def _leaves(states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    found = [_stacked([leaf.detach().flatten(1) for leaf in leaves]) for leaves in zip(*states, strict=True)]
    return [leaf for leaf in found if leaf is not None]


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [one for one in tensors if one is not None]
    if not there:
        return None
    return there[0].unsqueeze(0).contiguous() if len(there) == 1 else torch.stack(there)


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def _zoneout(task: Task, leaf: str, masks: Sequence[Tensor | None]) -> tuple[int, float, Tensor | None]:
    if leaf not in task.options.zoneout:
        return 0, 0.0, None
    rate, mask = task.options.zoneout[leaf], _stacked(masks)
    if task.options.training and mask is not None:
        return 2, rate, mask.view(torch.uint8)
    return 1, rate, None


# Before the loop -----------------------------------------------------------------------------------------


def input_product(call: Call) -> Tensor:
    """(B, T, ND·G·HS): W_ih x, normalised if asked for, and biases, less what the reset gate multiplies."""
    biases = [_input_bias(call.task, call.H, one) for one in call.weights]
    if call.task.options.norm:
        parts = [
            # Autocast would have it wider.
            F.layer_norm(product, product.shape[-1:], one["norm_ih.weight"], bias).to(call.x.dtype)
            for one, bias in zip(call.weights, biases, strict=True)
            for product in [F.linear(call.x, one["weight_ih"])]
        ]
        return torch.cat([widened_columns(part, call.H) for part in parts], 2).contiguous()
    weight = _concatenated([widened(one["weight_ih"], call.H) for one in call.weights])
    there = [widened(bias, call.H) for bias in biases if bias is not None]
    return F.linear(call.x, weight, _concatenated(there) if there else None).contiguous()


def widened(rows: Tensor, H: int) -> Tensor:
    """H rows of each gate as HS, with zeros."""
    return _resized(rows, H, padded(H))


def narrowed(rows: Tensor, H: int) -> Tensor:
    """What `widened` was given."""
    return _resized(rows, padded(H), H)


def widened_columns(values: Tensor, H: int) -> Tensor:
    """H columns of each gate as HS, with zeros."""
    if padded(H) == H:
        return values
    return F.pad(values.unflatten(-1, (-1, H)), (0, padded(H) - H)).flatten(-2)


def narrowed_columns(values: Tensor, H: int) -> Tensor:
    """What `widened_columns` was given."""
    return values if padded(H) == H else values.unflatten(-1, (-1, padded(H)))[..., :H].flatten(-2)


def _resized(rows: Tensor, old: int, new: int) -> Tensor:
    if old == new:
        return rows
    # F.pad counts axes from the last.
    return F.pad(rows.unflatten(0, (-1, old)), (0, 0) * (rows.dim() - 1) + (0, new - old)).flatten(0, 1)


def _concatenated(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _input_bias(task: Task, H: int, weights: dict[str, Tensor]) -> Tensor | None:
    if "bias_ih" not in weights:
        return None
    if task.cell != "gru" or not task.options.reset_after:
        return weights["bias_ih"] + weights["bias_hh"]
    bias = weights["bias_ih"].clone()
    bias[: 2 * H] += weights["bias_hh"][: 2 * H]
    return bias


def candidate_bias(call: Call) -> Tensor | None:
    """(ND, H): of the GRU, b_hh of n, where r multiplies it."""
    if call.task.cell != "gru" or not call.task.options.reset_after or "bias_hh" not in call.weights[0]:
        return None
    return torch.stack([one["bias_hh"][2 * call.H :] for one in call.weights])


def peepholes(call: Call) -> Tensor | None:
    """(ND, 3 or 2, H)."""
    return _stacked([one.get("peephole") for one in call.weights])


def packed_weights(call: Call, plan: Plan, K: int) -> Tensor | None:
    """(ND, n_blocks, gates·U, K): each thread block's recurrent weights, the gates of a unit side by side.

    Without the candidate's where the reset gate comes before it: those are `candidate_weights`. None where
    torch multiplies.
    """
    if plan.is_by_rows:
        return None
    H, n = call.H, padded_gates(call.task)
    blocks = call.x.new_zeros(len(call.tasks), plan.n_blocks * plan.U, n, K)
    for d, one in enumerate(call.weights):
        weight = one["weight_hh"].unflatten(0, (-1, H)).transpose(0, 1)[:, :n]
        blocks[d, :H, : weight.shape[1], :H] = weight
    return blocks.view(len(call.tasks), plan.n_blocks, plan.rows, K)


def candidate_weights(call: Call, plan: Plan, K: int) -> Tensor | None:
    """(ND, U, K): the GRU's recurrent weights of n where its reset gate comes before them, of one block."""
    if call.task.options.reset_after or plan.is_by_rows:
        return None
    H = call.H
    found = call.x.new_zeros(len(call.tasks), plan.U, K)
    for d, one in enumerate(call.weights):
        found[d, :H, :H] = one["weight_hh"][2 * H :]
    return found


def whole_weights(call: Call) -> Tensor:
    """(ND, G·HS, HS): the recurrent weights as torch multiplies by them."""
    H = call.H
    return torch.stack(
        [F.pad(widened(one["weight_hh"], H), (0, padded(H) - H)).contiguous() for one in call.weights]
    )


def scales(call: Call) -> Tensor | None:
    """(ND, G, H): of the recurrent products normalised."""
    return _stacked([one.get("norm_hh.weight") for one in call.weights])


def cell_norms(call: Call) -> Tensor | None:
    """(ND, 2, H): scale and shift of the LSTM's cell state normalised."""
    if "norm_c.weight" not in call.weights[0]:
        return None
    return torch.stack([torch.stack([one["norm_c.weight"], one["norm_c.bias"]]) for one in call.weights])


def noise_strides(call: Call) -> tuple[int, int]:
    """Elements from one step's noise to the next, 0 where it does not change; and between directions."""
    if call.noise is None:
        return 0, 0
    return (call.noise.stride(1) if call.noise.shape[1] > 1 else 0), call.noise.stride(0)


# After the loop ------------------------------------------------------------------------------------------


def seen_by_product(call: Call, h_in: Tensor, d: int) -> Tensor:
    """(B·T, H): h of direction d before each step, as the recurrent product saw it."""
    h = h_in[d, ..., : call.H]
    if call.noise is not None:
        noise = call.noise[d].to(h.dtype)
        # Noise is in the order in which the direction meets the steps.
        h = h * (noise.flip(0) if call.tasks[d].is_reverse else noise).transpose(0, 1)
    return h.flatten(0, 1)


def gates_again(call: Call, h_in: Tensor) -> Tensor:
    """(ND, B, T, S·HS): what stands before the activations in all slots, from one product for all steps."""
    task, (B, T, _), HS = call.task, call.x.shape, padded(call.H)
    product = input_product(call).view(B * T, len(call.tasks), -1)
    found = call.x.new_empty(len(call.tasks), B * T, slots_of(task) * HS)
    for d, weights in enumerate(call.weights):
        seen, a, weight = (
            seen_by_product(call, h_in, d),
            product[:, d],
            widened(weights["weight_hh"], call.H),
        )
        if task.cell != "gru":
            torch.addmm(a, seen, weight.t(), out=found[d])
            continue
        u = F.linear(seen, weight)
        if "bias_hh" in weights:
            u[:, 2 * HS :] += widened(weights["bias_hh"], call.H)[2 * HS :]
        found[d, :, :HS] = a[:, 2 * HS :]
        torch.add(a[:, : 2 * HS], u[:, : 2 * HS], out=found[d, :, HS : 3 * HS])
        found[d, :, 3 * HS :] = u[:, 2 * HS :]
    return found.view(len(call.tasks), B, T, -1)


def input_gradient(call: Call, d_gates: Tensor) -> Tensor:
    """(B, T, D), from the gradients in the slots (ND, B, T, S·HS)."""
    B, T, D = call.x.shape
    total = call.x.new_empty(B * T, D)
    for d, weights in enumerate(call.weights):
        columns, weight = d_gates[d].flatten(0, 1), weights["weight_ih"]
        if call.task.cell == "gru":
            # The slots begin with n, r, z.
            columns, weight = columns[:, : 3 * padded(call.H)], weight.roll(call.H, 0)
        weight = widened(weight, call.H)
        if d == 0:
            torch.mm(columns, weight, out=total)
        else:
            total.addmm_(columns, weight)
    return total.view(B, T, D)


def weight_gradients(call: Call, d_gates: Tensor, h_in: Tensor, d: int) -> dict[str, Tensor]:
    """Of direction d, by name; float32 for what is summed rather than multiplied."""
    H, HS, x = call.H, padded(call.H), call.x.flatten(0, 1)
    found, columns = bias_gradients(call, d_gates, d), d_gates[d].flatten(0, 1)
    if call.task.cell != "gru":
        found["weight_ih"] = narrowed(columns.t() @ x, H)
        found["weight_hh"] = narrowed(columns.t() @ seen_by_product(call, h_in, d), H)
    else:
        # The slots are n, r, z, and what r multiplies, or has multiplied.
        found["weight_ih"] = narrowed(columns[:, : 3 * HS].t() @ x, H).roll(-H, 0)
        of_n = columns[:, 3 * HS :] if call.task.options.reset_after else columns[:, :HS]
        found["weight_hh"] = recurrent_gradient(call, columns[:, HS : 3 * HS], of_n, d_gates, h_in, d)
    return found


def bias_gradients(call: Call, d_gates: Tensor, d: int) -> dict[str, Tensor]:
    """Of direction d, in float32."""
    H = call.H
    sums = narrowed(d_gates[d].flatten(0, 1).sum(0, dtype=torch.float32), H)
    if call.task.cell != "gru":
        return {"bias_ih": sums, "bias_hh": sums}
    from_x = sums[: 3 * H].roll(-H, 0)
    return {"bias_ih": from_x, "bias_hh": sums[H:] if call.task.options.reset_after else from_x}


def recurrent_gradient(
    call: Call, of_rz: Tensor, of_n: Tensor, slots: Tensor, h_in: Tensor, d: int
) -> Tensor:
    """Of the GRU's `weight_hh`, from the gradients (B·T, ·) of the products of r and z, and of n."""
    H, seen = call.H, seen_by_product(call, h_in, d)
    seen_by_n = seen if call.task.options.reset_after else seen_by_candidate(call, slots, d)
    return narrowed(torch.cat([of_rz.t() @ seen, of_n.t() @ seen_by_n]), H)


def seen_by_candidate(call: Call, slots: Tensor, d: int) -> Tensor:
    """(B·T, H): r h, which the candidate's product saw, from the last slot."""
    return slots[d].flatten(0, 1)[:, 3 * padded(call.H) :][:, : call.H]
