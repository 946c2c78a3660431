"""How the Triton kernels cut a recurrence on a GPU: which mode, how many units and rows a thread block takes.

No GPU and no Triton is needed to ask. The numbers that stand for speed are rough, and good enough to compare cuts
of one recurrence with each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ostinato.errors import InputError
from ostinato.kernels import reference
from ostinato.kernels.task import Task

MODES = ("solo", "group", "step")
# Columns of the recurrent weights that one product takes; what is left over is rounded up to these.
_LARGEST_CHUNK, _SMALLEST_CHUNK = 512, 32
# Columns at a time where the weights do not stay on the multiprocessor.
_STREAMED = 64
_KIB = 1024


class Chip(NamedTuple):
    """What a GPU offers: compute capability, multiprocessors, and shared memory of one thread block in bytes."""

    capability: tuple[int, int]
    n_processors: int
    shared_bytes: int

    @staticmethod
    @lru_cache(maxsize=16)
    def of(index: int) -> Chip:
        """The CUDA device of this number."""
        found = torch.cuda.get_device_properties(index)
        return Chip(
            (found.major, found.minor), found.multi_processor_count, found.shared_memory_per_block_optin
        )


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
        num_warps: warps of a thread block.
        tiles_at_once: batch tiles in one launch.
        precision: of a product of float32: `tf32`, or `tf32x3`, which is nearly float32.
        is_phased: one launch a step, whatever the mode.
    """

    mode: str
    reason: str
    U: int
    N: int
    gates: int
    n_blocks: int
    K: int
    chunks: tuple[tuple[int, int], ...]
    num_warps: int
    tiles_at_once: int
    precision: str
    is_phased: bool

    @property
    def rows(self) -> int:
        """Rows of weights that a thread block has."""
        return self.gates * self.U

    @property
    def stays(self) -> bool:
        """Whether the weights stay on the multiprocessor."""
        return bool(self.chunks)


def precision_of(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as `torch.nn.LSTM` and `GRU` do it, by cuDNN's setting."""
    if dtype is torch.float32 and not torch.backends.cudnn.allow_tf32:
        return "tf32x3"
    return "tf32"


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
    gates = padded_gates(task)
    reasons = []
    if only in (None, "solo"):
        U = max(16, power_of_two(H))
        needed = _shared_bytes(gates * U, U, ((0, U),), 16, size)
        if needed <= chip.shared_bytes and U <= 256:
            reason = f"all recurrent weights fit into one thread block ({needed // _KIB} KiB)"
            return _cut("solo", reason, B, H, gates, U, 16, ((0, U),), B, precision)
        reasons.append(
            f"the recurrent weights take {needed // _KIB} KiB, a thread block has {chip.shared_bytes // _KIB}"
        )
    if only in (None, "group"):
        found = _group(B, H, gates, size, chip, precision, n_directions)
        if found is not None:
            return found._replace(reason="; ".join([*reasons, found.reason]))
        reasons.append("they do not fit into all thread blocks together")
    if only in (None, "step"):
        U = 64 // gates if 64 // gates < H else max(16, power_of_two(H))
        reason = "; ".join(reasons) or "asked for"
        return _cut("step", reason, B, H, gates, U, 32 if B > 16 else 16, (), B, precision)
    raise InputError(f"mode={only!r} does not fit: {'; '.join(reasons)}")


def padded_gates(task: Task) -> int:
    """Rows of weights for each unit: a power of two."""
    return 1 if reference.CELLS[task.cell].gates == 1 else 4


def power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()


def chunks_of(H: int) -> tuple[tuple[int, int], ...]:
    """(first column, columns) of products that together have at least H columns, each a power of two."""
    found: list[tuple[int, int]] = []
    first = 0
    while first < H:
        left = H - first
        size = min(_LARGEST_CHUNK, power_of_two(left))
        # A smaller one first where rounding up would waste a quarter and more.
        if size > left and size - left >= size // 4 and size > _SMALLEST_CHUNK:
            size //= 2
        size = max(size, _SMALLEST_CHUNK)
        found.append((first, size))
        first += size
    return tuple(found)


def _shared_bytes(rows: int, K: int, chunks: tuple[tuple[int, int], ...], N: int, size: int) -> int:
    """Shared memory of a thread block: the weights, and the largest tile that passes through beside them."""
    passing = max(max(length for _, length in chunks) * N * size, rows * N * 4)
    return rows * K * size + passing + 4 * _KIB


def _group(
    B: int, H: int, gates: int, size: int, chip: Chip, precision: str, n_directions: int
) -> Plan | None:
    """The fastest way of sharing the weights among thread blocks, or None."""
    chunks = chunks_of(H)
    K = chunks[-1][0] + chunks[-1][1]
    best: tuple[float, Plan] | None = None
    # Tensor cores of compute capability 9 take 64 rows; 32 go the older way.
    for U in (32 // gates, 64 // gates, 128 // gates):
        for N in (16, 32, 64):
            n_blocks = -(-H // U)
            groups = chip.n_processors // n_blocks // n_directions
            fits = _shared_bytes(gates * U, K, chunks, N, size) <= chip.shared_bytes
            if not fits or groups < 1 or (N > 16 and N // 2 >= B):
                continue
            n_launches = -(-(-(-B // N)) // groups)
            # µs of a step: two ways through the L2 cache, h on its way in, and the weights out of shared memory.
            cost = n_launches * (1.4 + K * N * size / 100e3 + max(64, gates * U) * K * size / 200e3)
            cost += 0.5 * (gates * U < 64)
            if best is None or cost < best[0]:
                reason = f"{n_blocks} thread blocks share them, {U} units each"
                best = cost, _cut("group", reason, B, H, gates, U, N, chunks, groups, precision)
    return None if best is None else best[1]


def _cut(
    mode: str, reason: str, B: int, H: int, gates: int, U: int, N: int, chunks: tuple[tuple[int, int], ...],
    tiles_at_once: int, precision: str,
) -> Plan:  # fmt: skip
    n_blocks = -(-H // U)
    K = chunks[-1][0] + chunks[-1][1] if chunks else -(-H // _STREAMED) * _STREAMED
    num_warps = 4 if gates * U <= 128 else 8
    return Plan(
        mode, reason, U, N, gates, n_blocks, K, chunks, num_warps, min(tiles_at_once, -(-B // N)), precision,
        mode == "step",
    )  # fmt: skip


STREAMED = _STREAMED
