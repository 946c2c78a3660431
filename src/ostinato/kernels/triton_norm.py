"""Device functions of layer normalisation: moments over all units of a row, forward and backward.

A thread block must hold all units of its rows: nothing is exchanged. Tiles are (U, N) in float32, and as
many of four as there are gates that are normalised together (COUNT); columns are (U, 1), moments (N,). Needs
Triton when it is imported.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917
import triton
import triton.language as tl

# As `torch.nn.functional.layer_norm` has it.
EPSILON = tl.constexpr(1e-5)


@triton.jit
def _row_sums(q0, q1, q2, q3, COUNT: tl.constexpr):
    """(N,): over all units of the first COUNT tiles."""
    total = q0
    if COUNT > 1:
        total += q1
    if COUNT > 2:
        total += q2
    if COUNT > 3:
        total += q3
    return tl.sum(total, axis=0)


@triton.jit
def centred(value, mean, is_unit):
    """(U, N) less its mean, and zeros where there is no unit."""
    return tl.where(is_unit, value - mean[None, :], 0.0)


@triton.jit
def normalised(q0, q1, q2, q3, g0, g1, g2, g3, is_unit, H, COUNT: tl.constexpr):
    """The first COUNT of four products, normalised together and scaled by the columns g."""
    # From differences to the mean: a difference of two large sums of squares would lose what is left of them.
    mean = _row_sums(q0, q1, q2, q3, COUNT) / (COUNT * H)
    q0 = centred(q0, mean, is_unit)
    if COUNT > 1:
        q1 = centred(q1, mean, is_unit)
    if COUNT > 2:
        q2 = centred(q2, mean, is_unit)
    if COUNT > 3:
        q3 = centred(q3, mean, is_unit)
    squares = _row_sums(q0 * q0, q1 * q1, q2 * q2, q3 * q3, COUNT)
    scale = tl.rsqrt(squares / (COUNT * H) + EPSILON)[None, :]
    return q0 * (scale * g0), q1 * (scale * g1), q2 * (scale * g2), q3 * (scale * g3)


@triton.jit
def through_norm(d0, d1, d2, d3, n0, n1, n2, n3, g0, g1, g2, g3, scale, H, COUNT: tl.constexpr):
    """Gradients of COUNT products from those of what `normalised` made of them.

    n: the products normalised, before they were scaled; scale: (N,), 1 over their standard deviation.
    """
    d0, d1, d2, d3 = d0 * g0, d1 * g1, d2 * g2, d3 * g3
    mean = (_row_sums(d0, d1, d2, d3, COUNT) / (COUNT * H))[None, :]
    slope = (_row_sums(d0 * n0, d1 * n1, d2 * n2, d3 * n3, COUNT) / (COUNT * H))[None, :]
    s = scale[None, :]
    return (
        s * (d0 - mean - n0 * slope), s * (d1 - mean - n1 * slope), s * (d2 - mean - n2 * slope),
        s * (d3 - mean - n3 * slope),
    )  # fmt: skip


@triton.jit
def moments_of(value, is_unit, H):
    """(N,) each: the mean over the units, and 1 over the standard deviation."""
    mean = tl.sum(value, axis=0) / H
    rest = centred(value, mean, is_unit)
    return mean, tl.rsqrt(tl.sum(rest * rest, axis=0) / H + EPSILON)


@triton.jit
def load_scales(scales, d, u, H, is_unit, REAL: tl.constexpr):
    """Four columns (U, 1) of `scales` (ND, REAL, H); those that there are not repeat the first."""
    here = scales + d * REAL * H + u
    g0 = tl.load(here, mask=is_unit, other=0.0).to(tl.float32)[:, None]
    g1, g2, g3 = g0, g0, g0
    if REAL > 1:
        g1 = tl.load(here + H, mask=is_unit, other=0.0).to(tl.float32)[:, None]
        g2 = tl.load(here + 2 * H, mask=is_unit, other=0.0).to(tl.float32)[:, None]
    if REAL > 3:
        g3 = tl.load(here + 3 * H, mask=is_unit, other=0.0).to(tl.float32)[:, None]
    return g0, g1, g2, g3
