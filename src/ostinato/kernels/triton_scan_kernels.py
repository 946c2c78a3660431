"""The device side of `triton_scan.py`, imported by it at the first use: one pass over memory each way.

A *tile* is S·R steps of HB units of one row. Its steps lie in S segments of R consecutive steps; a thread
holds some units of some segments, all R steps of them, in registers. So the work inside a segment is one
multiply-add for each step, only the S segments' sums go through a parallel scan, and every load is a run of
HB contiguous numbers.

A tile needs the state before it. Either one program walks along the tiles of its units (`words` is None), or
every tile is a program, and what it needs comes by look-back (`triton_scan_maps.carried`).
"""

# Triton takes arguments one by one, and knows less of Python.
# ruff: noqa: PLR0917, RUF005
# mypy: ignore-errors
from __future__ import annotations

import triton
from triton import language as tl

from ostinato.kernels.triton_scan_gates import coefficients, gradients, rate_of
from ostinato.kernels.triton_scan_maps import (
    applied,
    carried,
    last_row,
    packed,
    publish,
    scanned,
    times,
    turn,
)

# Numbers that the kernels are not compiled anew for.
_RUNTIME = ("T", "n_chunks", "n_blocks", "n_chains", "n_words", "start_b", "initial_b")


# Where a tile lies ------------------------------------------------------------------------------------


@triton.jit
def _flags(mask, resets, row, q, t, t_reset, T):
    """Of steps q, at times t: whether they are real, and whether the state starts anew (flag of t_reset)."""
    is_real = q < T
    is_reset = q < 0
    if resets is not None:
        is_reset = tl.load(resets + row * T + t_reset, mask=is_real & (t_reset < T), other=0) != 0
    if mask is not None:
        is_real = tl.load(mask + row * T + t, mask=is_real, other=0) != 0
    return is_real, is_reset


@triton.jit
def _rate(decay, units, is_unit):
    return rate_of(tl.load(decay + units, mask=is_unit, other=0.0).to(tl.float32))[None, :]


@triton.jit
def _read(first, gate_stride, here, N_GATES: tl.constexpr, POLICY: tl.constexpr):
    """A tile of each of the N_GATES parts of an input, the first of them at `first`; in float32."""
    a = tl.load(first, mask=here, other=0.0, eviction_policy=POLICY).to(tl.float32)
    b, c = a, a
    if N_GATES > 1:
        b = tl.load(first + gate_stride, mask=here, other=0.0, eviction_policy=POLICY).to(tl.float32)
    if N_GATES > 2:
        c = tl.load(first + 2 * gate_stride, mask=here, other=0.0, eviction_policy=POLICY).to(tl.float32)
    return a, b, c


# Kernels ----------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_RUNTIME)
def forward_kernel(  # noqa: PLR0913, PLR0915
    a, b, decay, start, initial, mask, resets, y, final, words, T, H, n_chunks, n_blocks, n_chains, n_words,
    a_b, a_t, a_h, b_b, b_t, b_h, start_b, initial_b,
    GATES: tl.constexpr, N_GATES: tl.constexpr, IS_REVERSE: tl.constexpr, CARRIES: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, HB: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """y (B, T, H) and the final state (B, H), both contiguous."""
    seg = tl.arange(0, S)
    if words is None:
        chunk, chain = tl.program_id(0) * 0, tl.program_id(0)
        n_own = n_chunks
    else:
        chunk, chain = turn(words, n_chains)
        n_own = chunk + 1
        maps = words + 1
        states = maps + n_words
    row = (chain // n_blocks).to(tl.int64)
    units = (chain % n_blocks).to(tl.int64) * HB + tl.arange(0, HB)
    is_unit = units < H
    a_row = a + row * a_b + units[None, :] * a_h
    b_row = b + row * b_b + units[None, :] * b_h
    y_row = y + row * T * H + units[None, :]
    start_h = tl.load(start + row * start_b + units, mask=is_unit, other=0.0).to(tl.float32)
    initial_h = start_h
    if resets is not None:
        initial_h = tl.load(initial + row * initial_b + units, mask=is_unit, other=0.0).to(tl.float32)
    rate = 0.0
    if decay is not None:
        rate = _rate(decay, units, is_unit)
    state = start_h
    now = chunk
    while now < n_own:
        # What each segment does to the state.
        P = tl.full((S, HB), 1.0, tl.float32)
        A = tl.zeros((S, HB), tl.float32)
        keeps, adds, reals, anews = (), (), (), ()
        for r in tl.static_range(R):
            s = tl.full((S,), now, tl.int64) * (S * R) + seg * R + r
            t = T - 1 - s if IS_REVERSE else s
            is_real, is_anew = _flags(mask, resets, row, s, t, t + 1 if IS_REVERSE else t, T)
            here = is_real[:, None] & is_unit[None, :]
            in_a, in_b, in_c = _read(a_row + t[:, None] * a_t, H * a_h, here, N_GATES, "")
            if GATES == "linear":
                in_b = tl.load(b_row + t[:, None] * b_t, mask=here, other=0.0).to(tl.float32)
            keep, add = coefficients(GATES, in_a, in_b, in_c, rate)
            keep, add = tl.where(here, keep, 1.0), tl.where(here, add, 0.0)
            if resets is not None:
                P = tl.where(is_anew[:, None], 0.0, P)
                A = tl.where(is_anew[:, None], initial_h[None, :], A)
            P, A = times(P, keep), keep * A + add
            keeps, adds, reals, anews = keeps + (keep,), adds + (add,), reals + (is_real,), anews + (is_anew,)
        E, F, P, A = scanned(P, A, S, HB)
        if words is not None:
            P_all, A_all = last_row(P, seg, S), last_row(A, seg, S)
            at = (chain.to(tl.int64) * n_chunks + now) * HB
            publish(maps, at + tl.arange(0, HB), packed(P_all, A_all))
            state = carried(maps, states, now, at, start_h, HB, WINDOW)
            told = applied(P_all, A_all, state)
            publish(states, at + tl.arange(0, HB), packed(told, told))
        h = applied(E, F, tl.broadcast_to(state[None, :], (S, HB)))
        for r in tl.static_range(R):
            s = tl.full((S,), now, tl.int64) * (S * R) + seg * R + r
            t = T - 1 - s if IS_REVERSE else s
            if resets is not None:
                h = tl.where(anews[r][:, None], initial_h[None, :], h)
            h = keeps[r] * h + adds[r]
            shown = h
            if mask is not None and not CARRIES:
                shown = tl.where(reals[r][:, None], h, 0.0)
            tl.store(y_row + t[:, None] * H, shown, mask=(s < T)[:, None] & is_unit[None, :])
        state = last_row(h, seg, S)
        now += 1
    if n_own == n_chunks:
        if resets is not None and IS_REVERSE:
            state = tl.where(tl.load(resets + row * T) != 0, initial_h, state)
        tl.store(final + row * H + units, state, mask=is_unit)


@triton.jit(do_not_specialize=(*_RUNTIME, "d_final_b"))
def backward_kernel(  # noqa: PLR0913, PLR0915, C901, PLR0912
    a, decay, start, initial, mask, resets, sources, y, d_y, d_final, words,
    d_a, d_b, d_start, d_initial, d_rate, T, H, n_chunks, n_blocks, n_chains, n_words,
    a_b, a_t, a_h, start_b, initial_b, d_y_b, d_y_t, d_y_h, d_final_b, d_final_h,
    GATES: tl.constexpr, N_GATES: tl.constexpr, IS_REVERSE: tl.constexpr, CARRIES: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, HB: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs, contiguous, and of the start; those of initial and of rate for each chunk.

    Step q of this pass is step T - 1 - q of the forward one, and what is handed on is the gradient of the
    state. d_initial and d_rate are (chunks, B, H), one chunk where a program walks along the tiles.
    """
    seg = tl.arange(0, S)
    if words is None:
        chunk, chain = tl.program_id(0) * 0, tl.program_id(0)
        n_own = n_chunks
    else:
        chunk, chain = turn(words, n_chains)
        n_own = chunk + 1
        maps = words + 1
        states = maps + n_words
    row = (chain // n_blocks).to(tl.int64)
    units = (chain % n_blocks).to(tl.int64) * HB + tl.arange(0, HB)
    is_unit = units < H
    a_row = a + row * a_b + units[None, :] * a_h
    y_row = y + row * T * H + units[None, :]
    start_h = tl.load(start + row * start_b + units, mask=is_unit, other=0.0).to(tl.float32)
    initial_h = start_h
    if resets is not None:
        initial_h = tl.load(initial + row * initial_b + units, mask=is_unit, other=0.0).to(tl.float32)
    rate = 0.0
    if decay is not None:
        rate = _rate(decay, units, is_unit)
    final_d = tl.zeros((HB,), tl.float32)
    if d_final is not None:
        final_d = tl.load(d_final + row * d_final_b + units * d_final_h, mask=is_unit, other=0.0).to(
            tl.float32
        )
    initial_sum = tl.zeros((S, HB), tl.float32)
    rate_sum = tl.zeros((S, HB), tl.float32)
    if resets is not None and IS_REVERSE:
        # The last thing that the forward pass did with the state.
        ends_anew = tl.load(resets + row * T) != 0
        ends_here = ends_anew & (chunk == 0) & (seg == 0)
        initial_sum = tl.where(ends_here[:, None], final_d[None, :], initial_sum)
        final_d = tl.where(ends_anew, 0.0, final_d)
    d = final_d
    now = chunk
    while now < n_own:
        P = tl.full((S, HB), 1.0, tl.float32)
        A = tl.zeros((S, HB), tl.float32)
        keeps, d_ys, reals, anews = (), (), (), ()
        for r in tl.static_range(R):
            q = tl.full((S,), now, tl.int64) * (S * R) + seg * R + r
            t = q if IS_REVERSE else T - 1 - q
            is_real, is_anew = _flags(mask, resets, row, q, t, t + 1 if IS_REVERSE else t, T)
            here = is_real[:, None] & is_unit[None, :]
            in_a, in_b, in_c = _read(a_row + t[:, None] * a_t, H * a_h, here, N_GATES, "evict_last")
            shown = tl.zeros((S, HB), tl.float32)
            if d_y is not None:
                is_shown = (q < T)[:, None] & is_unit[None, :] if CARRIES else here
                at = d_y + row * d_y_b + t[:, None] * d_y_t + units[None, :] * d_y_h
                shown = tl.load(at, mask=is_shown, other=0.0).to(tl.float32)
            keep, _ = coefficients(GATES, in_a, in_b, in_c, rate)
            keep = tl.where(here, keep, 1.0)
            P, A = times(P, keep), keep * (A + shown)
            if resets is not None:
                P = tl.where(is_anew[:, None], 0.0, P)
                A = tl.where(is_anew[:, None], 0.0, A)
            keeps, d_ys = keeps + (keep,), d_ys + (shown,)
            reals, anews = reals + (is_real,), anews + (is_anew,)
        E, F, P, A = scanned(P, A, S, HB)
        if words is not None:
            P_all, A_all = last_row(P, seg, S), last_row(A, seg, S)
            at = (chain.to(tl.int64) * n_chunks + now) * HB
            publish(maps, at + tl.arange(0, HB), packed(P_all, A_all))
            d = carried(maps, states, now, at, final_d, HB, WINDOW)
            told = applied(P_all, A_all, d)
            publish(states, at + tl.arange(0, HB), packed(told, told))
        d_h = applied(E, F, tl.broadcast_to(d[None, :], (S, HB)))
        for r in tl.static_range(R):
            q = tl.full((S,), now, tl.int64) * (S * R) + seg * R + r
            t = q if IS_REVERSE else T - 1 - q
            here = reals[r][:, None] & is_unit[None, :]
            # The state before the step: y of the step before it, the start, or what a reset put there.
            t_source = t + 1 if IS_REVERSE else t - 1
            is_initial = anews[r]
            is_start = q == T - 1
            if sources is not None:
                t_source = tl.load(sources + row * T + t, mask=reals[r], other=-1)
                is_start, is_initial = t_source == -1, t_source == -2
            is_stored = here & (~(is_start | is_initial))[:, None]
            h = tl.load(y_row + t_source[:, None] * H, mask=is_stored, other=0.0).to(tl.float32)
            h = tl.where(is_start[:, None], start_h[None, :], h)
            if resets is not None:
                h = tl.where(is_initial[:, None], initial_h[None, :], h)
            g = d_h + d_ys[r]
            # Read again, and the gates computed again: from the nearest cache, and registers are what there
            # is least of.
            in_a, in_b, in_c = _read(a_row + t[:, None] * a_t, H * a_h, here, N_GATES, "evict_first")
            g_a, g_b, g_c, g_rate = gradients(GATES, in_a, in_b, in_c, rate, h, g)
            is_step = (q < T)[:, None] & is_unit[None, :]
            if GATES == "linear":
                at = row * T * H + t[:, None] * H + units[None, :]
                if d_a is not None:
                    tl.store(d_a + at, tl.where(here, g_a, 0.0), mask=is_step)
                if d_b is not None:
                    tl.store(d_b + at, tl.where(here, g_b, 0.0), mask=is_step)
            elif d_a is not None:
                at = d_a + (row * T + t[:, None]) * (H * N_GATES) + units[None, :]
                tl.store(at, tl.where(here, g_a, 0.0), mask=is_step)
                tl.store(at + H, tl.where(here, g_b, 0.0), mask=is_step)
                if N_GATES > 2:
                    tl.store(at + 2 * H, tl.where(here, g_c, 0.0), mask=is_step)
            if d_rate is not None:
                rate_sum += tl.where(here, g_rate, 0.0)
            d_h = keeps[r] * g
            if resets is not None:
                initial_sum += tl.where(anews[r][:, None], d_h, 0.0)
                d_h = tl.where(anews[r][:, None], 0.0, d_h)
        d = last_row(d_h, seg, S)
        now += 1
    if n_own == n_chunks:
        tl.store(d_start + row * H + units, d, mask=is_unit)
    at = chunk.to(tl.int64) * (n_chains // n_blocks) * H + row * H + units
    if d_initial is not None:
        tl.store(d_initial + at, tl.sum(initial_sum, 0), mask=is_unit)
    if d_rate is not None:
        tl.store(d_rate + at, tl.sum(rate_sum, 0), mask=is_unit)


@triton.jit(do_not_specialize=("T",))
def sources_kernel(mask, resets, sources, T, IS_REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """The time whose y is the state that each step meets; -1 for the start, -2 for that after a reset."""
    row = tl.program_id(0).to(tl.int64)
    # Of step s, 2 s + 2 says that it was real, 2 s + 1 that the state began anew before it; the largest wins.
    latest = tl.zeros((), tl.int64)
    first = tl.zeros((), tl.int64)
    while first < T:
        s = first + tl.arange(0, BLOCK)
        t = T - 1 - s if IS_REVERSE else s
        t_before = t + 1 if IS_REVERSE else t - 1
        was_real = tl.load(mask + row * T + t_before, mask=(s > 0) & (s < T), other=0) != 0
        key = tl.where(was_real, 2 * s, 0)
        if resets is not None:
            t_reset = t + 1 if IS_REVERSE else t
            is_anew = tl.load(resets + row * T + t_reset, mask=(s < T) & (t_reset < T), other=0) != 0
            key = tl.where(is_anew, 2 * s + 1, key)
        key = tl.maximum(tl.associative_scan(key, 0, _larger), latest)
        step = key // 2 - 1
        source = tl.where(key % 2 == 1, -2, tl.where(key == 0, -1, T - 1 - step if IS_REVERSE else step))
        tl.store(sources + row * T + t, source, mask=s < T)
        latest = tl.max(key, 0)
        first += BLOCK


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other)
