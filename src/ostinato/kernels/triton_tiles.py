"""Device functions: tiles, the resident weights, and the barrier between the thread blocks of a group.

Shapes: U units of a thread block, N rows (sequences) of its batch tile, R = gates · U rows, K units
of the whole layer, rounded up to a sum of powers of two (CHUNKS: pairs of first unit and length).
"""

# Triton's language needs `else` after `return`, tuples that grow by `+`, and many arguments.
# mypy: ignore-errors
# ruff: noqa: RUF005, PLR0913, PLR0917
import triton
import triton.language as tl

# Polls before a thread block gives up: some seconds, where a step takes microseconds. The trap ends the
# kernel, and CUDA reports it at the next synchronisation. The difference stays right where counts wrap.
_WAIT = """
{
.reg .pred %arrived;
.reg .pred %patient;
.reg .s32 %seen;
.reg .s32 %ahead;
.reg .s32 %polls;
mov.s32 %polls, 0;
POLL:
ld.acquire.gpu.global.s32 %seen, [$1];
sub.s32 %ahead, %seen, $2;
setp.ge.s32 %arrived, %ahead, 0;
@%arrived bra ARRIVED;
add.s32 %polls, %polls, 1;
setp.lt.s32 %patient, %polls, 8388608;
@%patient bra POLL;
trap;
ARRIVED:
mov.s32 $0, %seen;
}
"""
WAIT = tl.constexpr(_WAIT)


@triton.jit
def arrive(counter):
    """Tell the group that this thread block has written its part of a step."""
    # The other threads' writes must come before the release by one of them.
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    """Until the counter has reached the target; what was written before those arrivals is then visible."""
    tl.inline_asm_elementwise(WAIT, "=r,l,r", [counter, target], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()


@triton.jit
def load_rows(weights, R: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr):
    """The weights (R, K) of a thread block as one tile for each chunk of columns."""
    tiles = ()
    rows = tl.arange(0, R)
    for i in tl.static_range(len(CHUNKS)):
        k = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])
        tiles = tiles + (tl.load(weights + rows[:, None] * K + k[None, :]),)
    return tiles


@triton.jit
def load_columns(weights, R: tl.constexpr, CHUNKS: tl.constexpr):
    """The transposed weights (K, R) of a thread block as one tile for each chunk of rows."""
    tiles = ()
    rows = tl.arange(0, R)
    for i in tl.static_range(len(CHUNKS)):
        k = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])
        tiles = tiles + (tl.load(weights + k[:, None] * R + rows[None, :]),)
    return tiles


@triton.jit
def resident_product(
    tiles, h, is_row, width, R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(R, N): resident weights times h, whose rows of `width` units start at the N addresses.

    AHEAD: chunks that are on their way while one is multiplied.
    """
    parts = ()
    product = tl.zeros((R, N), tl.float32)
    for i in tl.static_range(len(CHUNKS) + AHEAD):
        if i < len(CHUNKS):
            k = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])
            known = (k[:, None] < width) & is_row[None, :]
            # The caches of a multiprocessor do not see what others write.
            parts = parts + (tl.load(h[None, :] + k[:, None], mask=known, other=0.0, cache_modifier=".cg"),)
        if i >= AHEAD:
            product = tl.dot(tiles[i - AHEAD], parts[i - AHEAD], product, input_precision=PRECISION)
    return product


@triton.jit
def streamed_product(
    weights, h, is_row, width, R: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same with weights (R, K) that are read as they are needed."""
    rows = tl.arange(0, R)
    product = tl.zeros((R, N), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        w = tl.load(weights + rows[:, None] * K + k[None, :])
        known = (k[:, None] < width) & is_row[None, :]
        part = tl.load(h[None, :] + k[:, None], mask=known, other=0.0, cache_modifier=".cg")
        product = tl.dot(w, part, product, input_precision=PRECISION)
    return product


@triton.jit
def store_partials(
    tiles, weights, d_gates, partials, is_row, width, R: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write what this block's gates give to the gradient of all units of h, rows at the N addresses."""
    if len(CHUNKS):
        for i in tl.static_range(len(CHUNKS)):
            k = CHUNKS[i][0] + tl.arange(0, CHUNKS[i][1])
            part = tl.dot(tiles[i], d_gates, input_precision=PRECISION)
            tl.store(partials[None, :] + k[:, None], part, mask=(k[:, None] < width) & is_row[None, :])
    else:
        rows = tl.arange(0, R)
        for start in range(0, K, BLOCK):
            k = start + tl.arange(0, BLOCK)
            w = tl.load(weights + k[:, None] * R + rows[None, :])
            part = tl.dot(w, d_gates, input_precision=PRECISION)
            tl.store(partials[None, :] + k[:, None], part, mask=(k[:, None] < width) & is_row[None, :])


@triton.jit
def sum_partials(
    partials, n_blocks, stride, u, n, is_tile, width, U: tl.constexpr, N: tl.constexpr, AT_ONCE: tl.constexpr
):
    """(U, N): the sum over all thread blocks, in their order, of what they wrote for these units and rows."""
    total = tl.zeros((U, N), tl.float32)
    here = n[None, :] * width + u[:, None]
    for first in range(0, n_blocks, AT_ONCE):
        # Not one load of three axes: its sum would leave copies of the tile in all threads.
        for j in tl.static_range(AT_ONCE):
            known = is_tile & (first + j < n_blocks)
            total += tl.load(
                partials + (first + j) * stride + here, mask=known, other=0.0, cache_modifier=".cg"
            )
    return total
