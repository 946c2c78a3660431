"""Device functions: what the cells compute on tiles of (units, rows) in float32, forward and backward.

The equations are those of `reference.py`. Only `triton_forward.py` and `triton_backward.py` use this file;
it needs Triton when it is imported.
"""

# Triton's language needs `else` after `return`, tuples that grow by `+`, and many arguments.
# mypy: ignore-errors
# ruff: noqa: RET505, SIM108, PLR0912, PLR0913, PLR0917
import triton
import triton.language as tl

from ostinato.kernels.triton_norm import centred, moments_of, through_norm


@triton.jit
def tanh(x):
    """2 σ(2x) - 1: no overflow, and the interpreter knows it; an absolute error of 1e-7."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def as_loaded(product, U: tl.constexpr, N: tl.constexpr):
    """The same values, no longer spread over the threads as tensor cores leave them.

    Else the compiler would spread everything that comes after it likewise, and move each tile that is loaded
    or stored through shared memory.
    """
    even, odd = tl.split(tl.permute(tl.reshape(product, (U // 2, 2, N)), (0, 2, 1)))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 1)), (U, N))


@triton.jit
def split_gates(product, U: tl.constexpr, N: tl.constexpr, GATES: tl.constexpr):
    """(GATES·U, N), the gates of a unit side by side, as four tiles (U, N); fewer gates are repeated."""
    if GATES == 1:
        product = as_loaded(product, U, N)
        return product, product, product, product
    elif GATES == 2:
        q0, q1 = tl.split(tl.permute(tl.reshape(product, (U, 2, N)), (0, 2, 1)))
        return q0, q1, q0, q1
    else:
        pairs = tl.permute(tl.reshape(product, (U, 2, 2, N)), (0, 3, 1, 2))
        even, odd = tl.split(pairs)
        q0, q2 = tl.split(even)
        q1, q3 = tl.split(odd)
        return q0, q1, q2, q3


@triton.jit
def join_gates(q0, q1, q2, q3, U: tl.constexpr, N: tl.constexpr, GATES: tl.constexpr):
    """The inverse of `split_gates`."""
    if GATES == 1:
        return q0
    elif GATES == 2:
        return tl.reshape(tl.permute(tl.join(q0, q1), (0, 2, 1)), (2 * U, N))
    else:
        pairs = tl.join(tl.join(q0, q2), tl.join(q1, q3))
        return tl.reshape(tl.permute(pairs, (0, 2, 3, 1)), (4 * U, N))


@triton.jit
def show(new_c, w_c, b_c, is_unit, H, NORM: tl.constexpr):
    """What the output gate multiplies, and with NORM the moments of the cell state."""
    if NORM:
        mean, scale = moments_of(new_c, is_unit, H)
        return tanh(centred(new_c, mean, is_unit) * scale[None, :] * w_c + b_c), mean, scale
    else:
        return tanh(new_c), 0.0, 0.0


@triton.jit
def step_forward(
    a0, a1, a2, a3, q0, q1, q2, q3, h, c, p_i, p_f, p_o, b_n, w_c, b_c, is_unit, H, CELL: tl.constexpr,
    RELU: tl.constexpr, COUPLED: tl.constexpr, PEEPHOLE: tl.constexpr, NORM: tl.constexpr,
    BEFORE: tl.constexpr,
):  # fmt: skip
    """The new h and c from the input product a and the recurrent one q, gate by gate; the four slots to keep;
    and with NORM the moments of the LSTM's new cell state.

    Slots: rnn h'; lstm i, f, g, o, or i, g, o where f = 1 - i; gru n, r, z, and what r multiplies, but for
    BEFORE: there q has r in it already.
    """
    if CELL == "rnn":
        if RELU:
            new_h = tl.maximum(a0 + q0, 0.0)
        else:
            new_h = tanh(a0 + q0)
        return new_h, c, new_h, new_h, new_h, new_h, 0.0, 0.0
    elif CELL == "gru":
        r = tl.sigmoid(a0 + q0)
        z = tl.sigmoid(a1 + q1)
        u_n = q2 + b_n
        if BEFORE:
            n = tanh(a2 + u_n)
        else:
            n = tanh(a2 + r * u_n)
        return (1.0 - z) * n + z * h, c, n, r, z, u_n, 0.0, 0.0
    elif COUPLED:
        i, g, o = a0 + q0, a1 + q1, a2 + q2
        if PEEPHOLE:
            i += p_i * c
        i, g = tl.sigmoid(i), tanh(g)
        new_c = (1.0 - i) * c + i * g
        if PEEPHOLE:
            o += p_o * new_c
        o = tl.sigmoid(o)
        shown, mean, scale = show(new_c, w_c, b_c, is_unit, H, NORM)
        return o * shown, new_c, i, g, o, o, mean, scale
    else:
        i, f, g, o = a0 + q0, a1 + q1, a2 + q2, a3 + q3
        if PEEPHOLE:
            i += p_i * c
            f += p_f * c
        i, f, g = tl.sigmoid(i), tl.sigmoid(f), tanh(g)
        new_c = f * c + i * g
        if PEEPHOLE:
            o += p_o * new_c
        o = tl.sigmoid(o)
        shown, mean, scale = show(new_c, w_c, b_c, is_unit, H, NORM)
        return o * shown, new_c, i, f, g, o, mean, scale


@triton.jit
def activations(s0, s1, s2, s3, CELL: tl.constexpr, RELU: tl.constexpr):
    """The slots of a plain cell from what stands before the activations."""
    if CELL == "rnn":
        if RELU:
            return tl.maximum(s0, 0.0), s1, s2, s3
        else:
            return tanh(s0), s1, s2, s3
    elif CELL == "gru":
        r = tl.sigmoid(s1)
        return tanh(s0 + r * s3), r, tl.sigmoid(s2), s3
    else:
        return tl.sigmoid(s0), tl.sigmoid(s1), tanh(s2), tl.sigmoid(s3)


@triton.jit
def step_backward(
    s0, s1, s2, s3, h, c, d_h, d_c, p_i, p_f, p_o, w_c, b_c, mean, scale, is_unit, H, CELL: tl.constexpr,
    RELU: tl.constexpr, COUPLED: tl.constexpr, PEEPHOLE: tl.constexpr, NORM: tl.constexpr,
    BEFORE: tl.constexpr,
):  # fmt: skip
    """From the slots, the old h and c, and the gradients of the new ones; with NORM the moments of the new c.

    Returns what goes straight to the old h and c, the gradients in the slots' order, the new c, and with NORM
    the new c normalised and the gradient of what it becomes. BEFORE: r comes back as it is.
    """
    zero = tl.zeros_like(d_h)
    if CELL == "rnn":
        if RELU:
            d_a = tl.where(s0 > 0.0, d_h, 0.0)
        else:
            d_a = d_h * (1.0 - s0 * s0)
        return zero, zero, d_a, d_a, d_a, d_a, zero, zero, zero
    elif CELL == "gru":
        d_n = d_h * (1.0 - s2) * (1.0 - s0 * s0)
        d_z = d_h * (h - s0) * s2 * (1.0 - s2)
        if BEFORE:
            return d_h * s2, zero, d_n, s1, d_z, s3, zero, zero, zero
        else:
            d_r = d_n * s3 * s1 * (1.0 - s1)
            return d_h * s2, zero, d_n, d_r, d_z, d_n * s1, zero, zero, zero
    else:
        if COUPLED:
            i, g, o = s0, s1, s2
            f = 1.0 - i
        else:
            i, f, g, o = s0, s1, s2, s3
        new_c = f * c + i * g
        if NORM:
            even = centred(new_c, mean, is_unit) * scale[None, :]
            shown = tanh(even * w_c + b_c)
        else:
            even = zero
            shown = tanh(new_c)
        d_o = d_h * shown * o * (1.0 - o)
        d_shown = d_h * o * (1.0 - shown * shown)
        if NORM:
            d_new, _, _, _ = through_norm(
                d_shown, d_shown, d_shown, d_shown, even, even, even, even, w_c, w_c, w_c, w_c, scale, H, 1
            )
            d_c += d_new
        else:
            d_c += d_shown
        if PEEPHOLE:
            d_c += d_o * p_o
        d_g = d_c * i * (1.0 - g * g)
        d_old = d_c * f
        if COUPLED:
            d_i = d_c * (g - c) * i * f
            if PEEPHOLE:
                d_old += d_i * p_i
            return zero, d_old, d_i, d_g, d_o, zero, new_c, even, d_shown
        else:
            d_i = d_c * g * i * (1.0 - i)
            d_f = d_c * c * f * (1.0 - f)
            if PEEPHOLE:
                d_old += d_i * p_i + d_f * p_f
            return zero, d_old, d_i, d_f, d_g, d_o, new_c, even, d_shown
