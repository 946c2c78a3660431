"""Steps whose products torch computes: for cells that need all units of a row within a step, and more weights
than a thread block holds.

One product, one launch over whole rows, and so on; a reset gate before its product makes it two of each. What
one step leaves for the next lies in a few buffers, which every step writes anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostinato.kernels import triton_call
from ostinato.kernels.triton_call import Call
from ostinato.kernels.triton_plan import FUSED, Plan, padded, tiles_of


class Products:
    """The products of a call's steps, forward or backward.

    Attributes:
        given: (ND, B, G·HS) forward, (ND, B, HS) backward: what the next launch reads; None where launches
            multiply themselves.
        given_n: (ND, B, HS): the candidate's product; None where there is no second product.
        seen: (ND, B, 1, HS) forward: what the next product sees.
        sent: (ND, B, G·HS) backward: the gradients of the products of a step, but for those of the candidate,
            `sent_n` (ND, B, HS).
    """

    given: Tensor | None = None
    given_n: Tensor | None = None
    seen: Tensor | None = None
    sent: Tensor | None = None
    sent_n: Tensor | None = None

    def __init__(self, call: Call, plan: Plan, *, is_forward: bool) -> None:
        if not plan.is_by_rows:
            return
        self.call, self.plan = call, plan
        HS, before = padded(call.H), not call.task.options.reset_after
        weights = triton_call.whole_weights(call)
        self._first = weights[:, : 2 * HS].contiguous() if before else weights
        self._second = weights[:, 2 * HS :].contiguous() if before else None
        width = self._first.shape[1]
        if is_forward:
            self.seen, self.given = self._buffer(1, HS), self._buffer(width)
        else:
            self.sent, self.given = self._buffer(width), self._buffer(HS)
        if before:
            self.given_n, self._inner = self._buffer(HS), self._buffer(HS)
            self.sent_n = None if is_forward else self._inner

    def _buffer(self, *shape: int) -> Tensor:
        return self.call.x.new_empty(len(self.call.tasks), self.call.x.shape[0], *shape)

    def before_step(self, s: int, given: dict[str, Any]) -> None:
        """The products of step s forward; `given`: what its launch is given."""
        if self.given is None or self.seen is None:
            return
        seen = self.seen.flatten(1, 2)
        torch.bmm(seen, self._first.transpose(1, 2), out=self.given)
        if self._second is None or self.given_n is None:
            return
        from ostinato.kernels.triton_reset import reset_kernel

        reset_kernel[self._grid()](
            given["x_gates"], self.given, seen, self._inner, given["scales"], s=s, **self._sizes(),
            **self._options(0),
        )  # fmt: skip
        torch.bmm(self._inner, self._second.transpose(1, 2), out=self.given_n)

    def after_step(self, s: int, given: dict[str, Any], d_h: Tensor) -> None:
        """What the product of step s passes back; `given`: what its launch was given."""
        if self.given is None or self.sent is None:
            return
        if self._second is not None and self.given_n is not None:
            from ostinato.kernels.triton_reset import reset_backward_kernel

            torch.bmm(self._inner, self._second, out=self.given_n)
            names = ("noise", "noise_step", "noise_direction")
            reset_backward_kernel[self._grid()](
                given["gates"], given["h_in"], *(given[name] for name in names), self.given_n, self.sent, d_h,
                *(given[name] for name in ("scales", "even", "deviations", "d_products")), s=s,
                **self._sizes(), **self._options(1),
            )  # fmt: skip
        torch.bmm(self.sent, self._first, out=self.given)

    def _grid(self) -> tuple[int, int]:
        return tiles_of(self.call.x.shape[0], self.plan.N), len(self.call.tasks)

    def _sizes(self) -> dict[str, Any]:
        call, plan = self.call, self.plan
        B, T, _ = call.x.shape
        return {
            "B": B, "T": T, "H": call.H, "HS": padded(call.H), "reverse_bits": call.reverse_bits,
            "ND": len(call.tasks), "U": plan.U, "N": plan.N, "NORM": call.task.options.norm,
        }  # fmt: skip

    def _options(self, part: int) -> dict[str, Any]:
        return {"num_warps": self.plan.num_warps[part], "num_stages": 1, **FUSED}
