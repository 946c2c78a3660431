"""Whether a call must be an operator that PyTorch can see."""

from __future__ import annotations

import torch
from torch import Tensor

# Other classes of tensors (fake, functional, distributed) hold no memory that a kernel could read.
_PLAIN = (Tensor, torch.nn.Parameter)


def is_traced(one: Tensor, other: Tensor) -> bool:
    """Whether PyTorch records or intercepts operators, told by two of the tensors of a call."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return type(one) not in _PLAIN or type(other) not in _PLAIN
