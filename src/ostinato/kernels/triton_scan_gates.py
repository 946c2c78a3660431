"""Gates of the linear recurrences inside a Triton kernel: what keeps, what is added, and their gradients.

Equations: `reference.py`, the cells of the same names; everything is float32 here. Only exponentials of
numbers that are not positive are taken, so nothing overflows. Imported by kernels only: it needs Triton.
"""

# Triton knows less of Python.
# ruff: noqa: PLR1714
# mypy: ignore-errors
from __future__ import annotations

import triton
from triton import language as tl


@triton.jit
def coefficients(GATES: tl.constexpr, a, b, c, rate):
    """keep and add from one tile of each input; `rate` is -log of what an open gate keeps (RG-LRU)."""
    if GATES == "linear":
        keep, add = a, b
    elif GATES == "mingru" or GATES == "mingru_linear":
        z, keep = _logistic(a)
        n, _ = _candidate(GATES == "mingru", b)
        add = z * n
    elif GATES == "rglru":
        r, _ = _logistic(a)
        i, _ = _logistic(b)
        keep, room = _decayed(rate * r)
        add = tl.sqrt(room) * (i * c)
    else:
        write, keep, _, _ = _shares(a, b)
        n, _ = _candidate(GATES == "minlstm", c)
        add = write * n
    return keep, add


@triton.jit
def gradients(GATES: tl.constexpr, a, b, c, rate, h, g):
    """Gradients of a, b, c and rate, 0 for what there is not: g is the new state's, h the state before."""
    zero = tl.zeros_like(g)
    if GATES == "linear":
        d_a, d_b, d_c, d_rate = g * h, g, zero, zero
    elif GATES == "mingru" or GATES == "mingru_linear":
        z, complement = _logistic(a)
        n, slope = _candidate(GATES == "mingru", b)
        d_a, d_b, d_c, d_rate = g * (n - h) * (z * complement), g * z * slope, zero, zero
    elif GATES == "rglru":
        r, r_complement = _logistic(a)
        i, i_complement = _logistic(b)
        keep, room = _decayed(rate * r)
        scale = tl.sqrt(room)
        # The square root of nothing has no derivative: there, what it multiplies is nothing too.
        is_open = scale > 0
        bent = tl.where(is_open, g * (i * c) * keep / tl.where(is_open, scale, 1.0), 0.0)
        d_log = keep * (g * h - bent)
        d_a = -d_log * rate * (r * r_complement)
        d_b, d_c = g * scale * c * (i * i_complement), g * scale * i
        d_rate = -d_log * r
    else:
        write, keep, share_i, share_f = _shares(a, b)
        n, slope = _candidate(GATES == "minlstm", c)
        apart = g * (h - n)
        d_a, d_b = -apart * (write * share_i), apart * (keep * share_f)
        d_c, d_rate = g * write * slope, zero
    return d_a, d_b, d_c, d_rate


@triton.jit
def rate_of(decay):
    """-8 log sigmoid(decay), the `rate` of the RG-LRU."""
    e = tl.exp(-tl.abs(decay))
    grown = 1.0 + e
    # log(1 + e) with full relative accuracy: what rounding takes from 1 + e, the quotient gives back.
    exact = tl.where(grown == 1.0, e, tl.log(grown) * (e / tl.where(grown == 1.0, 1.0, grown - 1.0)))
    return 8.0 * (tl.maximum(-decay, 0.0) + exact)


@triton.jit
def _logistic(x):
    """sigmoid(x) and sigmoid(-x), both with full relative accuracy."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@triton.jit
def _candidate(IS_POSITIVE: tl.constexpr, v):
    """(g(v), its slope) with g(v) = v + 0.5 for v >= 0 and sigmoid(v) below; or v as it is."""
    if IS_POSITIVE:
        low, complement = _logistic(v)
        n, slope = tl.where(v >= 0, v + 0.5, low), tl.where(v >= 0, 1.0, low * complement)
    else:
        n, slope = v, tl.full(v.shape, 1.0, tl.float32)
    return n, slope


@triton.jit
def _shares(i, f):
    """i / (i + f) and f / (i + f) of logistic gates, and what their slopes share with them.

    They are (1 + e^-f) / den and (1 + e^-i) / den with den = 2 + e^-i + e^-f. All terms are scaled so that
    the largest is 1: nothing overflows, and the ratio survives where both gates are closed.
    """
    low, high = tl.minimum(i, f), tl.maximum(i, f)
    small = tl.exp(-tl.abs(low))
    e_high = tl.exp(tl.minimum(low, 0.0) - high)
    one, e_low = tl.where(low < 0, small, 1.0), tl.where(low < 0, 1.0, small)
    e_i, e_f = tl.where(i < f, e_low, e_high), tl.where(i < f, e_high, e_low)
    scale = 1.0 / ((one + e_i) + (one + e_f))
    return (one + e_f) * scale, (one + e_i) * scale, e_i * scale, e_f * scale


@triton.jit
def _decayed(x):
    """exp(-x) and 1 - exp(-x)^2 for x >= 0, the second without cancellation."""
    # Below 0.5 ten terms of the series of exp(-x) - 1 are exact to a rounding.
    m = 1.0 - x * (1.0 / 10.0)
    for k in tl.static_range(8):
        m = 1.0 - x * m * (1.0 / (9 - k))
    less = tl.where(x < 0.5, -x * m, tl.exp(-x) - 1.0)
    return less + 1.0, -less * (less + 2.0)
