"""Where the Triton kernels run, and which recurrences on a GPU cuDNN computes faster than they do.

The second is the table `CUDNN_IS_FASTER`, and nothing else: `ostinato bench gpu` lists the calls for which it
is wrong on the GPU at hand. Triton is looked for here and imported by the kernels only.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

IS_INSTALLED = importlib.util.find_spec("triton") is not None
# Types of devices whose recurrences are Triton's. Tests that interpret the kernels add the CPU.
DEVICES = {"cuda"}
_FIRST_CAPABILITY = (8, 0)


class Call(NamedTuple):
    """What decides which way is faster.

    Attributes:
        cell: its row of `reference.CELLS`.
        dtype: of x and the weights.
        D, H: widths of x and of the state.
        B: rows, None where they are not known beforehand.
        is_masked: whether some steps may not be real.
    """

    cell: str
    dtype: torch.dtype
    D: int
    H: int
    B: int | None
    is_masked: bool


class Region(NamedTuple):
    """Calls that cuDNN computes faster.

    Attributes:
        because: as `layer.explain(x)` says it.
        source: where that was measured.
        cells: rows of `reference.CELLS`.
        dtypes: of x and the weights.
        widths: the least and the largest H, both included.
        width_multiple: what D and H are multiples of.
        rows: the least and the largest B, both included; None for any, known or not.
        row_multiple: what B is a multiple of.
        masked: whether calls with steps that are not real are in it too.
    """

    because: str
    source: str
    cells: frozenset[str]
    dtypes: frozenset[torch.dtype]
    widths: tuple[int, int]
    width_multiple: int = 1
    rows: tuple[int, int] | None = None
    row_multiple: int = 1
    masked: bool = False

    def holds(self, call: Call) -> bool:
        """Whether this call lies in it."""
        if (
            call.cell not in self.cells
            or call.dtype not in self.dtypes
            or (call.is_masked and not self.masked)
        ):
            return False
        if not self.widths[0] <= call.H <= self.widths[1]:
            return False
        if call.H % self.width_multiple or call.D % self.width_multiple:
            return False
        if self.rows is None:
            return True
        return (
            call.B is not None and self.rows[0] <= call.B <= self.rows[1] and not call.B % self.row_multiple
        )


_GATED = frozenset({"rnn", "lstm", "gru"})
CUDNN_IS_FASTER: tuple[Region, ...] = (
    Region(
        "cuDNN keeps the weights of such a float16 layer on the chip, and is faster",
        "an H100: LSTM, B=16, T=1024, H=768 forward in 2.01 ms; ours is not measured yet",
        frozenset({"rnn", "lstm"}), frozenset({torch.float16}), (256, 1024), width_multiple=128,
        rows=(8, 128), row_multiple=8,
    ),
    Region(
        "the weights are larger than what the chip keeps, and cuDNN's products are faster",
        "not measured: one launch a step reads all weights again, as cuDNN does",
        _GATED, frozenset({torch.float16, torch.bfloat16}), (1537, 1 << 30), masked=True,
    ),
    Region(
        "the weights are larger than what the chip keeps, and cuDNN's products are faster",
        "not measured: one launch a step reads all weights again, as cuDNN does",
        _GATED, frozenset({torch.float32}), (1025, 1 << 30), masked=True,
    ),
)  # fmt: skip


def reason_for_cudnn(call: Call) -> str | None:
    """Why cuDNN is the faster for this call; None where the Triton kernels are."""
    return next((region.because for region in CUDNN_IS_FASTER if region.holds(call)), None)


def is_for_triton(like: Tensor) -> bool:
    """Whether recurrences on this tensor's device are Triton's, if anything keeps them from it or not."""
    return like.device.type in DEVICES


def device_obstacle(like: Tensor) -> str | None:
    """What keeps any Triton kernel from tensors like this one; None: nothing. Imports nothing."""
    if not is_for_triton(like):
        return f"the Triton kernels run on an NVIDIA GPU, not on {like.device.type}"
    if not IS_INSTALLED:
        return "Triton is not installed; pip install 'ostinato[triton]'"
    # While a graph is recorded there is nothing to ask; the operator asks when it runs.
    if like.device.type != "cuda" or torch.compiler.is_compiling():
        return None
    return _gpu_obstacle(like.device.index)


@lru_cache(maxsize=64)
def _gpu_obstacle(index: int | None) -> str | None:
    if torch.version.hip is not None:
        return "the Triton kernels are written for NVIDIA GPUs"
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    found = torch.cuda.get_device_capability(index)
    if found < _FIRST_CAPABILITY:
        return f"the Triton kernels need compute capability 8.0 or later, this GPU has {found[0]}.{found[1]}"
    return None


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes x's GPU the current one, on which Triton launches."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def allows_tf32() -> bool:
    """Whether products of float32 may be computed in TF32, as PyTorch lets cuDNN compute those of `nn.LSTM`.

    The switch is PyTorch's own, and on by default: `torch.backends.cudnn.rnn.fp32_precision = "ieee"`, in
    older releases `torch.backends.cudnn.allow_tf32 = False`, turns it off.
    """
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    if rnn is not None:
        return rnn.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32
