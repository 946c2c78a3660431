"""The backward kernel of RNN, LSTM and GRU: the steps from the last to the first, in the modes of
`triton_forward.py`.

It turns what forward kept of the gates into gradients before the activations, in place; the products with
them that give the gradients of weights and x come after the loop, one large product each. A thread block has
the gates of its own units, so its recurrent weights are those of the forward pass, transposed; their product
with its gradients is a part of the gradient of *every* unit of the h before. The parts go through the L2
cache, in float32, and each thread block sums those of its units in the order of the blocks: the same bits at
every run.

Arrays as in `triton_forward.py`; partials (2, tiles, ND, n_blocks, N, HS) float32 in two alternating halves,
d_peephole (ND, tiles, 3 or 2, H), d_first (ND, B, H).

With NORM: the recurrent products normalised, `even` (ND, B, T, G·HS), and 1 over their standard deviations,
`deviations` (ND, B, T, groups) float32; the gradients of the products go to `d_products` (ND, B, T, G·HS),
those of the scale and shift of c, summed over rows, to d_norm_c (ND, tiles, 2, H). GIVEN: the part of step
s + 1 comes from torch, in `given` (ND, B, HS), and what makes that of step s goes to `sent` (ND, B, G·HS);
BEFORE, the gradient of the candidate's product goes to `sent_n` (ND, B, HS), and `triton_reset.py` does the
rest of the step. Needs Triton when it is imported.
"""

# Triton's language needs `else` after `return`, tuples that grow by `+`, and many arguments.
# A kernel is one function, however long.
# mypy: ignore-errors
# ruff: noqa: RET505, PLR0913, PLR0917, PLR0912, PLR0915, C901
import triton
import triton.language as tl

from ostinato.kernels.triton_cells import activations, as_loaded, join_gates, step_backward
from ostinato.kernels.triton_forward import (
    RUNTIME,
    load_vectors,
    mask_at,
    noise_at,
    reset_before,
    store_slots,
)
from ostinato.kernels.triton_norm import load_scales, through_norm
from ostinato.kernels.triton_reset import through_reset_gate
from ostinato.kernels.triton_tiles import arrive, load_columns, store_partials, sum_partials, wait


@triton.jit
def load_slots(gates, rows, u, width, is_tile, SLOTS: tl.constexpr):
    """What `store_slots` wrote, in float32; slots that there are not repeat the first."""
    here = gates + rows[None, :] * (SLOTS * width) + u[:, None]
    s0 = tl.load(here, mask=is_tile, other=0.0).to(tl.float32)
    s1, s2, s3 = s0, s0, s0
    if SLOTS > 1:
        s1 = tl.load(here + width, mask=is_tile, other=0.0).to(tl.float32)
        s2 = tl.load(here + 2 * width, mask=is_tile, other=0.0).to(tl.float32)
    if SLOTS > 3:
        s3 = tl.load(here + 3 * width, mask=is_tile, other=0.0).to(tl.float32)
    return s0, s1, s2, s3


@triton.jit
def load_or_zero(source, here, is_tile, U: tl.constexpr, N: tl.constexpr):
    """(U, N) float32; zeros without a source."""
    if source is None:
        return tl.zeros((U, N), tl.float32)
    else:
        return tl.load(source + here, mask=is_tile, other=0.0).to(tl.float32)


@triton.jit
def through_noise(part, noise, s, n, u, is_tile, noise_step, T, H):
    """The gradient of h from that of what the product of step s saw."""
    if noise is None:
        return part
    else:
        return part * noise_at(noise, s, n, u, is_tile & (s < T), noise_step, H)


@triton.jit
def through_reset(d_leaf, d_first, flags):
    """The gradients of the leaf before a reset, and of what resets put in its place."""
    return tl.where(flags[None, :], 0.0, d_leaf), d_first + tl.where(flags[None, :], d_leaf, 0.0)


@triton.jit
def through_zoneout(d_leaf, zone, rate, s, n, u, is_tile, B, H, KIND: tl.constexpr):
    """The gradients of the new and of the old value of a leaf. KIND: 0 none, 1 its expectation, 2 masks."""
    if KIND == 2:
        stays = mask_at(zone, s, n, u, is_tile, B, H)
        return tl.where(stays, 0.0, d_leaf), tl.where(stays, d_leaf, 0.0)
    elif KIND == 1:
        return (1.0 - rate) * d_leaf, rate * d_leaf
    else:
        return d_leaf, tl.zeros_like(d_leaf)


@triton.jit
def add_sums(target, tile, n_tiles, d, u, H, sum_i, sum_f, sum_o, COUNT: tl.constexpr):
    """Add the sums over this tile's rows to its part of the peepholes' gradients."""
    here = target + ((d * n_tiles + tile) * COUNT) * H + u
    known = u < H
    tl.store(here, tl.load(here, mask=known, other=0.0) + tl.sum(sum_i, axis=1), mask=known)
    if COUNT == 3:
        tl.store(here + H, tl.load(here + H, mask=known, other=0.0) + tl.sum(sum_f, axis=1), mask=known)
    last = here + (COUNT - 1) * H
    tl.store(last, tl.load(last, mask=known, other=0.0) + tl.sum(sum_o, axis=1), mask=known)


@triton.jit(do_not_specialize=RUNTIME)
def backward_kernel(
    weights, peephole, mask, resets, noise, noise_step, noise_direction, zone_h, zone_c, rate_h, rate_c,
    gates, c_before, h_in, d_y, d_cells, d_h_from, d_c_from, d_h_to, d_c_to, d_first_h, d_first_c, d_peephole,
    partials, arrived, weights_n, scales, norm_c, c_moments, even, deviations, d_products, d_norm_c, given,
    sent, sent_n,
    B, T, H, HS, reverse_bits, tile_begin, n_tiles, n_blocks, s_begin, s_end, finishes,
    ND: tl.constexpr, CELL: tl.constexpr, GATES: tl.constexpr, SLOTS: tl.constexpr,
    RELU: tl.constexpr, COUPLED: tl.constexpr, ZONE_H: tl.constexpr, ZONE_C: tl.constexpr, RAW: tl.constexpr,
    U: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr, SOLO: tl.constexpr, SYNC: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, NORM: tl.constexpr, BEFORE: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Steps s_end - 1 down to s_begin of one batch tile, direction and slice of units.

    `finishes`: also add the parts of step s_begin and undo the reset before it. RAW: the slots are what
    stands before the activations. Grid: (n_blocks, batch tiles, ND).
    """
    R: tl.constexpr = GATES * U
    block, tile, d = tl.program_id(0), tile_begin + tl.program_id(1), tl.program_id(2)
    is_reverse = ((reverse_bits >> d) & 1) != 0
    u = block * U + tl.arange(0, U)
    n = tile * N + tl.arange(0, N)
    is_row = n < B
    is_tile = (u[:, None] < H) & is_row[None, :]
    is_wide = (u[:, None] < HS) & is_row[None, :]
    rows = d.to(tl.int64) * B + n
    x_rows = n.to(tl.int64) * T * ND + d
    if weights is not None:
        weights += (d * n_blocks + block).to(tl.int64) * (R * K)
    counter = arrived
    if SYNC:
        counter += (d * n_tiles + tile) * 32
    if noise is not None:
        noise += noise_direction.to(tl.int64) * d
    if ZONE_H == 2:
        zone_h += B.to(tl.int64) * T * H * d
    if ZONE_C == 2:
        zone_c += B.to(tl.int64) * T * H * d
    # The halves alternate, so that a fast block cannot overwrite what a slow one still sums.
    local_n = tl.arange(0, N)
    stride = N * HS
    group = ((tl.program_id(1) * ND + d) * n_blocks).to(tl.int64) * stride
    half = (tl.num_programs(1) * ND * n_blocks).to(tl.int64) * stride
    tiles = load_columns(weights, R, CHUNKS)
    p_i, p_f, p_o = 0.0, 0.0, 0.0
    if peephole is not None:
        p_i, p_f, p_o = load_vectors(peephole, d, u, H, u < H, 3 - COUPLED)
    is_unit = (u < H)[:, None]
    k0, k1, k2, k3, w_c, b_c = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if NORM:
        k0, k1, k2, k3 = load_scales(scales, d, u, H, u < H, REAL)
        if CELL == "lstm":
            w_c, _, b_c = load_vectors(norm_c, d, u, H, u < H, 2)
    if BEFORE and SOLO:
        tile_n = load_columns(weights_n + d.to(tl.int64) * (U * K), U, CHUNKS)[0]
    last = rows[None, :] * H + u[:, None]
    zero = tl.zeros((U, N), tl.float32)
    d_h = load_or_zero(d_h_from, last, is_tile, U, N)
    d_c, first_h, first_c, sum_i, sum_f, sum_o = zero, zero, zero, zero, zero, zero
    sum_w, sum_b = zero, zero
    if CELL == "lstm":
        d_c = load_or_zero(d_c_from, last, is_tile, U, N)
    for back in range(s_end - s_begin):
        s = s_end - 1 - back
        t = tl.where(is_reverse, T - 1 - s, s)
        here = rows * T + t
        outward = (x_rows + t * ND)[None, :] * H + u[:, None]
        s0, s1, s2, s3 = load_slots(gates, here, u, HS, is_wide, SLOTS)
        c, h = zero, zero
        if CELL == "lstm":
            c = tl.load(c_before + here[None, :] * HS + u[:, None], mask=is_wide, other=0.0)
        if CELL == "gru":
            h = tl.load(h_in + here[None, :] * HS + u[:, None], mask=is_wide, other=0.0).to(tl.float32)
        from_y = load_or_zero(d_y, outward, is_tile, U, N)
        from_cells = load_or_zero(d_cells, outward, is_tile, U, N)
        is_real = is_row
        if mask is not None:
            is_real = tl.load(mask + n.to(tl.int64) * T + t, mask=is_row, other=0) != 0
        if GIVEN:
            part = load_or_zero(given, rows[None, :] * HS + u[:, None], is_wide & (s + 1 < T), U, N)
            d_h += through_noise(part, noise, s + 1, n, u, is_tile, noise_step, T, H)
        elif not SOLO:
            if SYNC:
                wait(counter, n_blocks * back)
            there = tl.where(s + 1 < T, n_blocks, 0)
            part = sum_partials(
                partials + group + ((s + 1) % 2) * half, there, stride, u, local_n, is_tile, HS, U, N, AT_ONCE
            )
            d_h += through_noise(part, noise, s + 1, n, u, is_tile, noise_step, T, H)
        if resets is not None:
            flags = reset_before(resets, n, is_row, s + 1, T, is_reverse)
            d_h, first_h = through_reset(d_h, first_h, flags)
            d_c, first_c = through_reset(d_c, first_c, flags)
        if RAW:
            s0, s1, s2, s3 = activations(s0, s1, s2, s3, CELL, RELU)
        is_new = is_real[None, :]
        new_h = tl.where(is_new, d_h + from_y, 0.0)
        new_c = tl.where(is_new, d_c + from_cells, 0.0)
        new_h, old_h = through_zoneout(new_h, zone_h, rate_h, s, n, u, is_tile, B, H, ZONE_H)
        new_c, old_c = through_zoneout(new_c, zone_c, rate_c, s, n, u, is_tile, B, H, ZONE_C)
        mean, scale = 0.0, 0.0
        if c_moments is not None:
            mean = tl.load(c_moments + here * 2, mask=is_row, other=0.0)
            scale = tl.load(c_moments + here * 2 + 1, mask=is_row, other=0.0)
        to_h, to_c, g0, g1, g2, g3, seen_c, even_c, d_even = step_backward(
            s0, s1, s2, s3, h, c, new_h, new_c, p_i, p_f, p_o, w_c, b_c, mean, scale, is_unit, H, CELL, RELU,
            COUPLED, peephole is not None, NORM, BEFORE,
        )  # fmt: skip
        # What stands at steps that are not real may be NaN.
        d_h = tl.where(is_new, old_h + to_h, d_h)
        d_c = tl.where(is_new, old_c + to_c, d_c)
        g0, g1 = tl.where(is_new, g0, 0.0), tl.where(is_new, g1, 0.0)
        g2, g3 = tl.where(is_new, g2, 0.0), tl.where(is_new, g3, 0.0)
        e0, e1, e2, e3 = zero, zero, zero, zero
        if NORM:
            e0, e1, e2, e3 = load_slots(even, here, u, HS, is_wide, REAL)
            if CELL == "lstm":
                sum_w += tl.where(is_new, d_even * even_c, 0.0)
                sum_b += tl.where(is_new, d_even, 0.0)
        if BEFORE:
            # As the products have the gates: r, z, n.
            r2, r3 = g0, zero
            if NORM:
                scale = tl.load(deviations + here * 2 + 1, mask=is_row, other=0.0)
                r2, _, _, _ = through_norm(
                    g0, g0, g0, g0, e2, e2, e2, e2, k2, k2, k2, k2, scale, H, 1
                )  # fmt: skip
            if GIVEN:
                mine = sent_n + rows[None, :] * HS + u[:, None]
                tl.store(mine, r2.to(sent_n.dtype.element_ty), mask=is_wide)
                if NORM:
                    mine = d_products + (here[None, :] * 3 + 2) * HS + u[:, None]
                    tl.store(mine, r2.to(d_products.dtype.element_ty), mask=is_wide)
            else:
                d_inner = as_loaded(
                    tl.dot(tile_n, r2.to(weights.dtype.element_ty), input_precision=PRECISION), U, N
                )
                factor = zero + 1.0
                if noise is not None:
                    factor = noise_at(noise, s, n, u, is_tile, noise_step, H)
                g1, r0, r1, to_h = through_reset_gate(
                    d_inner, g1, g2, h * factor, is_new, e0, e1, k0, k1, deviations, here, is_row, H, NORM
                )
                d_h += to_h * factor
                if NORM:
                    store_slots(d_products, here, u, HS, is_wide, r0, r1, r2, r3, 3)
        store_slots(gates, here, u, HS, is_wide, g0, g1, g2, g3, SLOTS)
        if peephole is not None:
            sum_i += g0 * c
            if COUPLED:
                sum_o += g2 * tl.where(is_new, seen_c, 0.0)
            else:
                sum_f += g1 * c
                sum_o += g3 * tl.where(is_new, seen_c, 0.0)
        if not BEFORE:
            r0, r1, r2, r3 = g0, g1, g2, g3
            if CELL == "gru":
                r0, r1, r2, r3 = g1, g2, g3, zero
            if NORM:
                scale = tl.load(deviations + here, mask=is_row, other=0.0)
                r0, r1, r2, r3 = through_norm(
                    r0, r1, r2, r3, e0, e1, e2, e3, k0, k1, k2, k3, scale, H, REAL
                )  # fmt: skip
                store_slots(d_products, here, u, HS, is_wide, r0, r1, r2, r3, REAL)
                if REAL == 3:
                    r3 = zero
        if GIVEN:
            if not BEFORE:
                store_slots(sent, rows, u, HS, is_wide, r0, r1, r2, r3, REAL)
        else:
            d_gates = join_gates(r0, r1, r2, r3, U, N, GATES).to(weights.dtype.element_ty)
        if SOLO:
            part = as_loaded(tl.dot(tiles[0], d_gates, input_precision=PRECISION), U, N)
            d_h += through_noise(part, noise, s, n, u, is_tile, noise_step, T, H)
        elif not GIVEN:
            mine = partials + group + (s % 2) * half + block * stride + local_n * HS
            store_partials(tiles, weights, d_gates, mine, is_row, HS, R, K, CHUNKS, BLOCK, PRECISION)
            if SYNC:
                arrive(counter)
    if finishes:
        if GIVEN:
            part = load_or_zero(given, rows[None, :] * HS + u[:, None], is_wide, U, N)
            d_h += through_noise(part, noise, s_begin, n, u, is_tile, noise_step, T, H)
        elif not SOLO:
            if SYNC:
                wait(counter, n_blocks * (s_end - s_begin))
            part = sum_partials(
                partials + group + (s_begin % 2) * half,
                n_blocks,
                stride,
                u,
                local_n,
                is_tile,
                HS,
                U,
                N,
                AT_ONCE,
            )
            d_h += through_noise(part, noise, s_begin, n, u, is_tile, noise_step, T, H)
        if resets is not None:
            flags = reset_before(resets, n, is_row, s_begin, T, is_reverse)
            d_h, first_h = through_reset(d_h, first_h, flags)
            d_c, first_c = through_reset(d_c, first_c, flags)
    tl.store(d_h_to + last, d_h, mask=is_tile)
    if CELL == "lstm":
        tl.store(d_c_to + last, d_c, mask=is_tile)
    if resets is not None:
        first_h += tl.load(d_first_h + last, mask=is_tile, other=0.0)
        tl.store(d_first_h + last, first_h, mask=is_tile)
        if CELL == "lstm":
            first_c += tl.load(d_first_c + last, mask=is_tile, other=0.0)
            tl.store(d_first_c + last, first_c, mask=is_tile)
    if peephole is not None:
        add_sums(d_peephole, tile, n_tiles, d, u, H, sum_i, sum_f, sum_o, 3 - COUPLED)
    if d_norm_c is not None:
        add_sums(d_norm_c, tile, n_tiles, d, u, H, sum_w, sum_w, sum_b, 2)
