"""Memory that a training step frees and the next one wants again."""

from __future__ import annotations

import torch

# The largest block that moves glibc's threshold (DEFAULT_MMAP_THRESHOLD_MAX), less its header and alignment.
_BLOCK_BYTES = 32 * 2**20 - 8192


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees, up to 64 MiB, instead of returning it to the system.

    A step allocates tensors of about a megabyte and frees them; glibc asks the system for such blocks anew
    each time, and the system clears every page at its first touch, which takes longer than the arithmetic on
    it. glibc raises the size from which it does so to that of the largest block freed so far (mallopt(3),
    M_MMAP_THRESHOLD): freeing one block, never touched, says that large blocks come and go here. Other
    allocators take no notice.
    """
    torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
