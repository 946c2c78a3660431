"""How the Triton kernels cut a recurrence on a GPU: which mode, how many units and rows a thread block takes.

No GPU and no Triton is needed to ask. The numbers that stand for speed are rough, and good enough to compare
cuts of one recurrence with each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ostinato.errors import InputError
from ostinato.kernels import gpu_choice, reference
from ostinato.kernels.task import Task

MODES = ("solo", "group", "step")
# Columns of the recurrent weights that one product takes; what is left over is rounded up to these.
_LARGEST_CHUNK, _SMALLEST_CHUNK = 512, 32
# Bytes of h, and of partial sums, that pass through a thread block at a time.
_CHUNK_BYTES, _PARTIAL_BYTES = 8 * 1024, 32 * 1024
# Units times rows of a thread block that has whole rows, if not one row has more.
_ROW_VALUES = 2048
# Columns at a time where the weights do not stay on the multiprocessor.
STREAMED = 64
# Multiplying and adding in one instruction: said, since what Triton takes by itself changes with its version.
FUSED = {"enable_fp_fusion": True}
_KIB = 1024


Chunks = tuple[tuple[int, int], ...]


class Chip(NamedTuple):
    """A GPU: its compute capability, multiprocessors, and bytes of shared memory for one thread block."""

    capability: tuple[int, int]
    n_processors: int
    shared_bytes: int

    @staticmethod
    @lru_cache(maxsize=16)
    def of(index: int) -> Chip:
        """The CUDA device of this number, as Triton sees it."""
        from triton.runtime import driver

        found = driver.active.utils.get_device_properties(index)
        capability = torch.cuda.get_device_capability(index)
        return Chip(capability, found["multiprocessor_count"], found["max_shared_mem"])


# The smallest of each generation that is sold for training: what fits there fits its siblings.
CHIPS = {
    (8, 0): Chip((8, 0), 108, 163 * _KIB),
    (8, 6): Chip((8, 6), 46, 99 * _KIB),
    (8, 9): Chip((8, 9), 58, 99 * _KIB),
    (9, 0): Chip((9, 0), 114, 227 * _KIB),
    (10, 0): Chip((10, 0), 148, 227 * _KIB),
    (12, 0): Chip((12, 0), 84, 99 * _KIB),
}


class Mode(NamedTuple):
    """`solo`, `group` or `step`, and why."""

    name: str
    reason: str


class Plan(NamedTuple):
    """The cut of one call.

    Attributes:
        mode: of MODES.
        reason: why that one.
        U, N: units and rows (sequences) of one thread block.
        gates: rows of weights for each unit; three are padded to four.
        n_blocks: thread blocks that share the units of a batch tile.
        K: columns of the weights, with padding.
        chunks: (first column, columns) of each product; none where the weights are streamed.
        back_chunks: (first, number) of units whose gradients one product of backward gives.
        ahead: chunks of h on their way while one is multiplied.
        at_once: partial sums that backward reads at a time.
        num_warps: warps of a thread block, forward and backward.
        tiles_at_once: batch tiles in one launch.
        precision: of a product of float32: `tf32`, or `tf32x3`, which is nearly float32.
        is_phased: one launch a step, whatever the mode.
        is_by_rows: a thread block has whole rows, and torch computes the products between launches.
    """

    mode: str
    reason: str
    U: int
    N: int
    gates: int
    n_blocks: int
    K: int
    chunks: Chunks
    back_chunks: Chunks
    ahead: int
    at_once: int
    num_warps: tuple[int, int]
    tiles_at_once: int
    precision: str
    is_phased: bool
    is_by_rows: bool = False

    @property
    def rows(self) -> int:
        """Rows of weights that a thread block has."""
        return self.gates * self.U

    @property
    def back_K(self) -> int:  # noqa: N802 - the alphabet of the project
        """Rows of the transposed weights of backward, with padding."""
        return _end(self.back_chunks) if self.back_chunks else self.K

    @property
    def stays(self) -> bool:
        """Whether the weights stay on the multiprocessor."""
        return bool(self.chunks)


def precision_of(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as `torch.nn.LSTM` and `GRU` do it, by cuDNN's setting."""
    return "tf32x3" if dtype is torch.float32 and not gpu_choice.allows_tf32() else "tf32"


def mode(task: Task, B: int, H: int, dtype: torch.dtype, capability: tuple[int, int]) -> Mode:
    """The mode that such a call takes on a GPU of this compute capability, and why."""
    if capability not in CHIPS:
        known = ", ".join(f"{a}.{b}" for a, b in CHIPS)
        raise InputError(f"capability: unknown {capability}; known: {known}")
    found = plan(task, B, H, dtype, CHIPS[capability], precision=precision_of(dtype))
    return Mode(found.mode, found.reason)


@lru_cache(maxsize=1024)
def plan(
    task: Task,
    B: int,
    H: int,
    dtype: torch.dtype,
    chip: Chip,
    *,
    precision: str = "tf32",
    n_directions: int = 1,
    only: str | None = None,
) -> Plan:
    """The fastest cut that fits, or the fastest of the mode `only`.

    Raises:
        InputError: the mode asked for does not fit, or is unknown.
    """
    if only is not None and only not in MODES:
        raise InputError(f"mode: unknown name {only!r}; known: {', '.join(MODES)}")
    size = dtype.itemsize * (2 if precision == "tf32x3" else 1)
    gates, whole = padded_gates(task), needs_whole_rows(task)
    reasons = []
    if only in (None, "solo"):
        U = max(16, power_of_two(H))
        needed = _shared_bytes(gates * U, U, ((0, U),), 0, 16, size)
        # The candidate's weights, which have their own product then.
        needed += 0 if task.options.reset_after else U * U * size
        if needed <= chip.shared_bytes and U <= 256:
            reason = f"all recurrent weights fit into one thread block ({needed // _KIB} KiB)"
            solo = _cut("solo", reason, B, H, gates, U, 16, ((0, U),), B, precision)
            # Moments need registers.
            return solo._replace(num_warps=(8, 8)) if task.options.norm and U >= 64 else solo
        reasons.append(
            f"the recurrent weights take {needed // _KIB} KiB, a thread block has {chip.shared_bytes // _KIB}"
        )
    if only in (None, "group") and whole is not None:
        reasons.append(whole)
    elif only in (None, "group"):
        found = _group(B, H, gates, size, chip, precision, n_directions)
        if found is not None:
            return found._replace(reason="; ".join([*reasons, found.reason]))
        reasons.append("they do not fit into all thread blocks together")
    if only in (None, "step") and whole is not None:
        return _rows("; ".join(reasons) or "asked for", B, H, gates, chip, precision)
    if only in (None, "step"):
        U = 64 // gates if 64 // gates < H else max(16, power_of_two(H))
        reason = "; ".join(reasons) or "asked for"
        return _cut("step", reason, B, H, gates, U, 32 if B > 16 else 16, (), B, precision)
    raise InputError(f"mode={only!r} does not fit: {'; '.join(reasons)}")


def needs_whole_rows(task: Task) -> str | None:
    """Why a thread block must have all units of its rows; None where it need not."""
    if task.options.norm:
        return "layer normalisation would have the thread blocks of a group meet two or three times a step"
    if not task.options.reset_after:
        return "a reset gate before its product would have the thread blocks of a group meet twice a step"
    return None


def padded_gates(task: Task) -> int:
    """Rows of weights for each unit: a power of two. The candidate's are apart where r comes before them."""
    if not task.options.reset_after:
        return 2
    return 1 if reference.CELLS[task.cell].gates == 1 else 4


def padded(H: int) -> int:
    """Columns of arrays of h and of gates, so that rows begin at addresses that wide loads can take."""
    return (H + 15) // 16 * 16


def power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()


def chunks_of(H: int, largest: int = _LARGEST_CHUNK) -> Chunks:
    """(first column, columns) of products that together have at least H columns, each a power of two."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < H:
        left = H - first
        size = min(largest, power_of_two(left))
        # A smaller one first where rounding up would waste a quarter and more.
        if size - left >= size // 4 and size > _SMALLEST_CHUNK:
            size //= 2
        size = max(size, _SMALLEST_CHUNK)
        found.append((first, size))
        first += size
    return tuple(found)


def _end(chunks: Chunks) -> int:
    return chunks[-1][0] + chunks[-1][1]


def _shared_bytes(rows: int, K: int, chunks: Chunks, ahead: int, N: int, size: int) -> int:
    """Shared memory of a thread block: the weights, and what passes through beside them at most."""
    forward = max(length for _, length in chunks) * N * size * (ahead + 1)
    backward = min(_PARTIAL_BYTES, K * N * 4) // 2 + rows * N * size
    return rows * K * size + max(forward, backward, rows * N * 4) + 2 * _KIB


def _group(
    B: int, H: int, gates: int, size: int, chip: Chip, precision: str, n_directions: int
) -> Plan | None:
    """The fastest way of sharing the weights among thread blocks, or None."""
    best: tuple[float, Plan] | None = None
    # Tensor cores of compute capability 9 take 64 rows; 32 go the older way.
    for U in (32 // gates, 64 // gates, 128 // gates):
        for N in (16, 32, 64):
            chunks = chunks_of(H, min(_LARGEST_CHUNK, _CHUNK_BYTES * (4 if N == 64 else 1) // (N * size)))
            K = _end(chunks)
            n_blocks = tiles_of(padded(H), U)
            groups = chip.n_processors // n_blocks // n_directions
            fits = _shared_bytes(gates * U, K, chunks, 0, N, size) <= chip.shared_bytes
            if not fits or groups < 1 or (N > 16 and N // 2 >= B):
                continue
            n_launches = -(-tiles_of(B, N) // groups)
            # µs of a step: two ways through the L2 cache, h on its way in, the weights out of shared memory.
            cost = 1.4 + K * N * size / 100e3 + max(64, gates * U) * K * size / 200e3 + 0.5 * (gates * U < 64)
            if best is None or cost * n_launches < best[0]:
                reason = f"{n_blocks} thread blocks share them, {U} units each"
                cut = _cut("group", reason, B, H, gates, U, N, chunks, groups, precision)
                best = cost * n_launches, _looking_ahead(cut, chip, size)
    return None if best is None else best[1]


def _looking_ahead(cut: Plan, chip: Chip, size: int) -> Plan:
    """The same with as many chunks of h under way as there is room for."""
    # Of 64 rows one chunk fills the registers. Of fewer, none spill (as compiled) where the chunks are whole
    # rounds of those under way.
    n = len(cut.chunks)
    whole = [ahead for ahead in (3, 2) if n % (ahead + 1) == 0]
    for ahead in [] if cut.N == 64 else [*whole, min(2, n - 1), min(1, n - 1)]:
        if _shared_bytes(cut.rows, cut.K, cut.chunks, ahead, cut.N, size) <= chip.shared_bytes:
            return cut._replace(ahead=ahead)
    return cut


def _rows(reason: str, B: int, H: int, gates: int, chip: Chip, precision: str) -> Plan:
    """Launches over whole rows, as many thread blocks as can be of use."""
    U = max(16, power_of_two(H))
    N = min(max(1, _ROW_VALUES // U), power_of_two(tiles_of(B, 4 * chip.n_processors)))
    num_warps = min(16, max(4, U * N // 256))
    return Plan(
        "step", reason, U, N, gates, 1, 16, (), (), 0, 1, (num_warps, num_warps), tiles_of(B, N), precision,
        is_phased=True, is_by_rows=True,
    )  # fmt: skip


def tiles_of(B: int, N: int) -> int:
    """Batch tiles of N rows."""
    return (B + N - 1) // N


def _cut(
    mode: str, reason: str, B: int, H: int, gates: int, U: int, N: int, chunks: Chunks, tiles_at_once: int,
    precision: str,
) -> Plan:  # fmt: skip
    n_blocks = tiles_of(padded(H), U)
    K = _end(chunks) if chunks else tiles_of(H, STREAMED) * STREAMED
    few = 4 if gates * U <= 128 and N < 64 else 8
    # Backward, a thread block has partial sums for all units in its registers.
    num_warps = few, few if mode == "solo" else 8
    back_chunks = chunks
    if mode == "group":
        back_chunks = chunks_of(H, min(_LARGEST_CHUNK, _PARTIAL_BYTES // (4 * N)))
    # About 48 registers of each thread.
    at_once = min(n_blocks, max(4, 48 * 32 * num_warps[1] // (U * N)))
    at_once = tiles_of(n_blocks, tiles_of(n_blocks, at_once))
    return Plan(
        mode, reason, U, N, gates, n_blocks, K, chunks, back_chunks, 0, at_once,
        num_warps, min(tiles_at_once, tiles_of(B, N)), precision, mode == "step",
    )  # fmt: skip
