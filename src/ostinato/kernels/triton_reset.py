"""A reset gate before its product: h' = (1 - z) n + z h with n = tanh(a_n + W_n (r h)), arXiv:1406.1078v3.

The candidate's product waits for r, so that a step has two products. A solo block computes both. Where torch
multiplies, `reset_kernel` stands between the two of a forward step, and `reset_backward_kernel` behind the
candidate's of a backward step, before that of r and z. Arrays as in `triton_forward.py` and
`triton_backward.py`. Needs Triton when it is imported.
"""

# Triton's language needs `else` after `return`, and many arguments.
# mypy: ignore-errors
# ruff: noqa: RET505, PLR0913, PLR0917
import triton
import triton.language as tl

from ostinato.kernels.triton_forward import load_x_gates, noise_at
from ostinato.kernels.triton_norm import load_scales, normalised, through_norm

RUNTIME = ("B", "T", "noise_step", "noise_direction", "reverse_bits", "s")


@triton.jit
def through_reset_gate(
    d_inner, r, d_z, shown, is_new, e0, e1, k0, k1, deviations, here, is_row, H, NORM: tl.constexpr
):
    """From the gradient of r · shown, which the candidate's product saw, and that of z before its activation.

    Returns the gradients of r before its activation, of the products of r and z, and of `shown`.
    """
    d_r = tl.where(is_new, d_inner * shown * r * (1.0 - r), 0.0)
    d_shown = tl.where(is_new, d_inner * r, 0.0)
    if NORM:
        scale = tl.load(deviations + here * 2, mask=is_row, other=0.0)
        p_r, p_z, _, _ = through_norm(d_r, d_z, d_r, d_z, e0, e1, e0, e1, k0, k1, k0, k1, scale, H, 2)
        return d_r, p_r, p_z, d_shown
    else:
        return d_r, d_r, d_z, d_shown


@triton.jit(do_not_specialize=RUNTIME)
def reset_kernel(
    x_gates, given, seen, inner, scales, B, T, H, HS, reverse_bits, s,
    ND: tl.constexpr, U: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """What the candidate's product of step s sees, `inner` (ND, B, HS). Grid: (batch tiles, ND)."""
    d = tl.program_id(1)
    u, n = tl.arange(0, U), tl.program_id(0) * N + tl.arange(0, N)
    is_wide = (u[:, None] < HS) & (n < B)[None, :]
    rows = d.to(tl.int64) * B + n
    t = tl.where(((reverse_bits >> d) & 1) != 0, T - 1 - s, s)
    x_rows = (n.to(tl.int64) * T + t) * ND + d
    a_r, _, _, _ = load_x_gates(x_gates, 3 * x_rows, u, HS, is_wide, 1)
    q_r, q_z, _, _ = load_x_gates(given, rows, u, HS, is_wide, 2)
    if NORM:
        g_r, g_z, _, _ = load_scales(scales, d, u, H, u < H, 3)
        q_r, _, _, _ = normalised(q_r, q_z, q_r, q_z, g_r, g_z, g_r, g_z, (u < H)[:, None], H, 2)
    here = rows[None, :] * HS + u[:, None]
    shown = tl.load(seen + here, mask=is_wide, other=0.0).to(tl.float32)
    tl.store(inner + here, (tl.sigmoid(a_r + q_r) * shown).to(inner.dtype.element_ty), mask=is_wide)


@triton.jit(do_not_specialize=RUNTIME)
def reset_backward_kernel(
    gates, h_in, noise, noise_step, noise_direction, d_inner, sent, d_h, scales, even, deviations, d_products,
    B, T, H, HS, reverse_bits, s, ND: tl.constexpr, U: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The rest of step s: the slot of r becomes its gradient, what the product of r and z gets goes to `sent`
    (ND, B, 2·HS), and d_h (ND, B, H) gets what comes by way of r · h. Grid: (batch tiles, ND).
    """
    d = tl.program_id(1)
    u, n = tl.arange(0, U), tl.program_id(0) * N + tl.arange(0, N)
    is_row = n < B
    is_tile = (u[:, None] < H) & is_row[None, :]
    is_wide = (u[:, None] < HS) & is_row[None, :]
    rows = d.to(tl.int64) * B + n
    t = tl.where(((reverse_bits >> d) & 1) != 0, T - 1 - s, s)
    here = rows * T + t
    slots = gates + here[None, :] * (4 * HS) + u[:, None]
    r = tl.load(slots + HS, mask=is_wide, other=0.0).to(tl.float32)
    d_z = tl.load(slots + 2 * HS, mask=is_wide, other=0.0).to(tl.float32)
    shown = tl.load(h_in + here[None, :] * HS + u[:, None], mask=is_wide, other=0.0).to(tl.float32)
    factor = tl.full((U, N), 1.0, tl.float32)
    if noise is not None:
        noise += noise_direction.to(tl.int64) * d
        factor = noise_at(noise, s, n, u, is_tile, noise_step, H)
    e_r, e_z, k_r, k_z = factor, factor, 0.0, 0.0
    products = here[None, :] * (3 * HS) + u[:, None]
    if NORM:
        k_r, k_z, _, _ = load_scales(scales, d, u, H, u < H, 3)
        e_r = tl.load(even + products, mask=is_wide, other=0.0).to(tl.float32)
        e_z = tl.load(even + products + HS, mask=is_wide, other=0.0).to(tl.float32)
    given = tl.load(d_inner + rows[None, :] * HS + u[:, None], mask=is_wide, other=0.0).to(tl.float32)
    # Steps that are not real have zeros in the slot of r.
    d_r, p_r, p_z, d_shown = through_reset_gate(
        given, r, d_z, shown * factor, r > 0.0, e_r, e_z, k_r, k_z, deviations, here, is_row, H, NORM
    )
    kind = gates.dtype.element_ty
    tl.store(slots + HS, d_r.to(kind), mask=is_wide)
    mine = sent + rows[None, :] * (2 * HS) + u[:, None]
    tl.store(mine, p_r.to(kind), mask=is_wide)
    tl.store(mine + HS, p_z.to(kind), mask=is_wide)
    if NORM:
        tl.store(d_products + products, p_r.to(kind), mask=is_wide)
        tl.store(d_products + products + HS, p_z.to(kind), mask=is_wide)
    leaf = d_h + rows[None, :] * H + u[:, None]
    tl.store(leaf, tl.load(leaf, mask=is_tile, other=0.0) + d_shown * factor, mask=is_tile)
