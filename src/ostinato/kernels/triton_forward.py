"""The forward kernel of RNN, LSTM and GRU: one thread block takes U units of N sequences through time.

Three ways of running it (`triton_plan.py` chooses):

* *solo*: one thread block has all units, and h never leaves it.
* *group*: the thread blocks of a batch tile exchange h through the L2 cache and meet once a step; all of them
  must be on the device at once (a cooperative launch).
* *step*: one launch a step; the end of a launch is the barrier.

All times are positions t of x; the reverse direction walks them from T - 1 to 0. Step s is the s-th in the
order of work. Arrays (contiguous; S slots, P = H, HS = H rounded up to 16, ND directions):
x_gates (B, T, ND, G·H), y (B, T, ND, H), seen and h_in (ND, B, T, HS), gates (ND, B, T, S·HS), c_before (ND,
B, T, HS), states (ND, B, H), noise (ND, T or 1, B, H).

Layer normalisation (NORM) and a reset gate before its product (BEFORE) need all units of a row within a
step. A solo block has them. Else (GIVEN) every launch of a step finds the products of torch in `given`
(ND, B, G·HS) and `given_n` (ND, B, HS), and leaves in `seen` (ND, B, 1, HS) what the next ones see; blocks
then take whole rows. Of norms: scales (ND, G, H), norm_c (ND, 2, H), c_moments (ND, B, T, 2) float32. Needs
Triton when it is imported.
"""

# Triton's language needs `else` after `return`, tuples that grow by `+`, and many arguments.
# A kernel is one function, however long.
# mypy: ignore-errors
# ruff: noqa: RET505, SIM102, PLR0913, PLR0917, PLR0912, PLR0915, C901
import triton
import triton.language as tl

from ostinato.kernels.triton_cells import as_loaded, split_gates, step_forward
from ostinato.kernels.triton_norm import load_scales, normalised
from ostinato.kernels.triton_tiles import arrive, load_rows, resident_product, streamed_product, wait

# Numbers that the kernels are not compiled anew for.
RUNTIME = (
    "B", "T", "noise_step", "noise_direction", "rate_h", "rate_c", "reverse_bits", "tile_begin", "n_tiles",
    "n_blocks", "s_begin", "s_end", "prepares", "finishes",
)  # fmt: skip


@triton.jit
def load_state(leaf, initial, rows, u, is_tile, H):
    """A leaf (U, N) in float32, and what a reset puts in its place (zeros where there are no resets)."""
    here = rows[None, :] * H + u[:, None]
    value = tl.load(leaf + here, mask=is_tile, other=0.0).to(tl.float32)
    if initial is None:
        return value, tl.zeros_like(value)
    else:
        return value, tl.load(initial + here, mask=is_tile, other=0.0).to(tl.float32)


@triton.jit
def reset_before(resets, n, is_row, s, T, is_reverse):
    """(N,): whether the state is replaced before step s; the reverse direction resets after position t."""
    t = tl.where(is_reverse, T - s, s)
    is_valid = is_row & (t >= 0) & (t < T)
    return tl.load(resets + n.to(tl.int64) * T + t, mask=is_valid, other=0) != 0


@triton.jit
def noise_at(noise, s, n, u, is_tile, noise_step, H):
    """(U, N): the factors of h on its way into the product of step s."""
    here = noise_step.to(tl.int64) * s + n[None, :].to(tl.int64) * H + u[:, None]
    return tl.load(noise + here, mask=is_tile, other=0.0).to(tl.float32)


@triton.jit
def mask_at(mask, s, n, u, is_tile, B, H):
    """(U, N) of a zoneout mask (T, B, H) at step s."""
    here = (B.to(tl.int64) * s + n[None, :]) * H + u[:, None]
    return tl.load(mask + here, mask=is_tile, other=0) != 0


@triton.jit
def publish(seen, noise, h, rows, t, s, n, u, is_row, is_tile, noise_step, T, H, HS):
    """Write this thread block's part of what the product of step s sees."""
    if noise is not None:
        h *= noise_at(noise, s, n, u, is_tile, noise_step, H)
    here = (rows * T + t)[None, :] * HS + u[:, None]
    tl.store(seen + here, h.to(seen.dtype.element_ty), mask=(u[:, None] < HS) & is_row[None, :])


@triton.jit
def store_slots(gates, rows, u, width, is_tile, q0, q1, q2, q3, SLOTS: tl.constexpr):
    """Write up to four slots of `width` columns to the rows of `gates`."""
    here = gates + rows[None, :] * (SLOTS * width) + u[:, None]
    kind = gates.dtype.element_ty
    tl.store(here, q0.to(kind), mask=is_tile)
    if SLOTS > 1:
        tl.store(here + width, q1.to(kind), mask=is_tile)
    if SLOTS > 2:
        tl.store(here + 2 * width, q2.to(kind), mask=is_tile)
    if SLOTS > 3:
        tl.store(here + 3 * width, q3.to(kind), mask=is_tile)


@triton.jit
def load_x_gates(x_gates, rows, u, width, is_tile, REAL: tl.constexpr):
    """Up to four tiles (U, N) of a product; those that there are not repeat the first."""
    here = x_gates + rows[None, :] * (REAL * width) + u[:, None]
    a0 = tl.load(here, mask=is_tile, other=0.0).to(tl.float32)
    a1, a2, a3 = a0, a0, a0
    if REAL > 1:
        a1 = tl.load(here + width, mask=is_tile, other=0.0).to(tl.float32)
    if REAL > 2:
        a2 = tl.load(here + 2 * width, mask=is_tile, other=0.0).to(tl.float32)
    if REAL > 3:
        a3 = tl.load(here + 3 * width, mask=is_tile, other=0.0).to(tl.float32)
    return a0, a1, a2, a3


@triton.jit
def load_vectors(vectors, d, u, H, is_unit, COUNT: tl.constexpr):
    """Three columns (U, 1) of `vectors` (ND, COUNT, H); of two the first stands for the second."""
    here = vectors + d * COUNT * H + u
    first = tl.load(here, mask=is_unit, other=0.0).to(tl.float32)[:, None]
    last = tl.load(here + (COUNT - 1) * H, mask=is_unit, other=0.0).to(tl.float32)[:, None]
    if COUNT == 3:
        return first, tl.load(here + H, mask=is_unit, other=0.0).to(tl.float32)[:, None], last
    else:
        return first, first, last


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    weights, x_gates, bias_n, peephole, h_from, c_from, h_to, c_to, initial_h, initial_c, mask, resets,
    noise, noise_step, noise_direction, zone_h, zone_c, rate_h, rate_c,
    seen, h_in, y, cells, gates, c_before, arrived, weights_n, scales, norm_c, c_moments, given, given_n,
    B, T, H, HS, reverse_bits, tile_begin, n_tiles, n_blocks, s_begin, s_end, prepares,
    ND: tl.constexpr, CELL: tl.constexpr, GATES: tl.constexpr, REAL: tl.constexpr, SLOTS: tl.constexpr,
    RELU: tl.constexpr, COUPLED: tl.constexpr, ZONE_H: tl.constexpr, ZONE_C: tl.constexpr,
    U: tl.constexpr, N: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
    AHEAD: tl.constexpr, SOLO: tl.constexpr, SYNC: tl.constexpr, PRECISION: tl.constexpr,
    NORM: tl.constexpr, BEFORE: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Steps [s_begin, s_end) of one batch tile, direction and slice of units.

    `prepares`: also apply the reset before step s_begin and publish h; a launch of one step leaves that to
    the one
    before. Grid: (n_blocks, batch tiles, ND).
    """
    R: tl.constexpr = GATES * U
    block, tile, d = tl.program_id(0), tile_begin + tl.program_id(1), tl.program_id(2)
    is_reverse = ((reverse_bits >> d) & 1) != 0
    u = block * U + tl.arange(0, U)
    n = tile * N + tl.arange(0, N)
    is_row = n < B
    is_tile = (u[:, None] < H) & is_row[None, :]
    # Padded columns are zeros, so that wide loads can take them.
    is_wide = (u[:, None] < HS) & is_row[None, :]
    # Rows of arrays with the direction in front, and of arrays with it behind the time.
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
    tiles = load_rows(weights, R, K, CHUNKS)
    p_i, p_f, p_o = 0.0, 0.0, 0.0
    if peephole is not None:
        p_i, p_f, p_o = load_vectors(peephole, d, u, H, u < H, 3 - COUPLED)
    b_n = 0.0
    if bias_n is not None:
        b_n = tl.load(bias_n + d * H + u, mask=u < H, other=0.0).to(tl.float32)[:, None]
    is_unit = (u < H)[:, None]
    g0, g1, g2, g3, w_c, b_c = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if NORM:
        g0, g1, g2, g3 = load_scales(scales, d, u, H, u < H, REAL)
        if CELL == "lstm":
            w_c, _, b_c = load_vectors(norm_c, d, u, H, u < H, 2)
    if BEFORE and SOLO:
        tile_n = load_rows(weights_n + d.to(tl.int64) * (U * K), U, K, CHUNKS)[0]
    # Of products that are given, what they see has its place for one step only.
    SEEN_T = 1 if GIVEN else T
    h, first_h = load_state(h_from, initial_h, rows, u, is_tile, H)
    c, first_c = h, first_h
    if CELL == "lstm":
        c, first_c = load_state(c_from, initial_c, rows, u, is_tile, H)
    if prepares:
        if resets is not None:
            flags = reset_before(resets, n, is_row, s_begin, T, is_reverse)
            h = tl.where(flags[None, :], first_h, h)
            c = tl.where(flags[None, :], first_c, c)
        if seen is not None:
            t = 0 if GIVEN else tl.where(is_reverse, T - 1 - s_begin, s_begin)
            publish(seen, noise, h, rows, t, s_begin, n, u, is_row, is_tile, noise_step, SEEN_T, H, HS)
            if SYNC:
                arrive(counter)
    for s in range(s_begin, s_end):
        t = tl.where(is_reverse, T - 1 - s, s)
        here = rows * T + t
        a0, a1, a2, a3 = load_x_gates(x_gates, x_rows + t * ND, u, HS, is_wide, REAL)
        is_real = is_row
        if mask is not None:
            is_real = tl.load(mask + n.to(tl.int64) * T + t, mask=is_row, other=0) != 0
        if h_in is not None:
            tl.store(h_in + here[None, :] * HS + u[:, None], h.to(h_in.dtype.element_ty), mask=is_wide)
        shown = h
        if SOLO or BEFORE:
            if noise is not None:
                shown = h * noise_at(noise, s, n, u, is_tile, noise_step, H)
        if GIVEN:
            q0, q1, q2, q3 = load_x_gates(given, rows, u, HS, is_wide, 2 if BEFORE else REAL)
        elif SOLO:
            product = tl.dot(tiles[0], shown.to(weights.dtype.element_ty), input_precision=PRECISION)
        else:
            if SYNC:
                wait(counter, n_blocks * (s + 1 - s_begin))
            if len(CHUNKS):
                product = resident_product(
                    tiles, seen + here * HS, is_row, HS, R, N, CHUNKS, AHEAD, PRECISION
                )
            else:
                product = streamed_product(weights, seen + here * HS, is_row, HS, R, N, K, BLOCK, PRECISION)
        if not GIVEN:
            q0, q1, q2, q3 = split_gates(product, U, N, GATES)
        if NORM:
            q0, q1, q2, q3 = normalised(
                q0, q1, q2, q3, g0, g1, g2, g3, is_unit, H, 2 if BEFORE else REAL
            )  # fmt: skip
        if BEFORE:
            shown *= tl.sigmoid(a0 + q0)
            if GIVEN:
                q2, _, _, _ = load_x_gates(given_n, rows, u, HS, is_wide, 1)
            else:
                product = tl.dot(tile_n, shown.to(weights.dtype.element_ty), input_precision=PRECISION)
                q2 = as_loaded(product, U, N)
            if NORM:
                q2, _, _, _ = normalised(q2, q2, q2, q2, g2, g2, g2, g2, is_unit, H, 1)
        new_h, new_c, s0, s1, s2, s3, mean, scale = step_forward(
            a0, a1, a2, a3, q0, q1, q2, q3, h, c, p_i, p_f, p_o, b_n, w_c, b_c, is_unit, H, CELL, RELU,
            COUPLED, peephole is not None, NORM, BEFORE,
        )  # fmt: skip
        if BEFORE:
            s3 = shown
        old_c = c
        if ZONE_H == 2:
            new_h = tl.where(mask_at(zone_h, s, n, u, is_tile, B, H), h, new_h)
        elif ZONE_H == 1:
            new_h = rate_h * h + (1.0 - rate_h) * new_h
        if ZONE_C == 2:
            new_c = tl.where(mask_at(zone_c, s, n, u, is_tile, B, H), c, new_c)
        elif ZONE_C == 1:
            new_c = rate_c * c + (1.0 - rate_c) * new_c
        h = tl.where(is_real[None, :], new_h, h)
        c = tl.where(is_real[None, :], new_c, c)
        if resets is not None:
            flags = reset_before(resets, n, is_row, s + 1, T, is_reverse)
            h = tl.where(flags[None, :], first_h, h)
            c = tl.where(flags[None, :], first_c, c)
        if seen is not None:
            if s + 1 < T:
                then = 0 if GIVEN else tl.where(is_reverse, T - 2 - s, s + 1)
                publish(seen, noise, h, rows, then, s + 1, n, u, is_row, is_tile, noise_step, SEEN_T, H, HS)
                if SYNC:
                    arrive(counter)
        # The others wait for h only: what is kept is written after it.
        if gates is not None:
            store_slots(gates, here, u, HS, is_wide, s0, s1, s2, s3, SLOTS)
        if c_before is not None:
            tl.store(c_before + here[None, :] * HS + u[:, None], old_c, mask=is_wide)
        if c_moments is not None:
            tl.store(c_moments + here * 2, mean, mask=is_row)
            tl.store(c_moments + here * 2 + 1, scale, mask=is_row)
        outward = (x_rows + t * ND)[None, :] * H + u[:, None]
        tl.store(y + outward, tl.where(is_real[None, :], new_h, 0.0).to(y.dtype.element_ty), mask=is_tile)
        if cells is not None:
            kept_c = tl.where(is_real[None, :], new_c, 0.0)
            tl.store(cells + outward, kept_c.to(cells.dtype.element_ty), mask=is_tile)
    last = rows[None, :] * H + u[:, None]
    tl.store(h_to + last, h.to(h_to.dtype.element_ty), mask=is_tile)
    if CELL == "lstm":
        tl.store(c_to + last, c.to(c_to.dtype.element_ty), mask=is_tile)
