"""The choice of a backend for a call, and its reason.

A backend joins by a row in `_candidates`: its name, and why it cannot take a call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.kernels import engines, gpu_choice, scan, torch_fused
from ostinato.kernels.reference import CellOptions, CellSpec
from ostinato.kernels.task import Task

BACKENDS = ("auto", "native", "triton", "torch", "torch steps", "reference")
# Those whose kernels are our own, one for each kind of device.
KERNELS = ("native", "triton")


class Path(NamedTuple):
    """Which backend a call takes, and why not a faster one ('' where it is the fastest).

    `is_fallback`: a faster one was passed over, rather than not asked for. `products`: what x and the weights
    are converted to under autocast; None for their own dtype.
    """

    path: str
    reason: str
    is_fallback: bool = False
    products: torch.dtype | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path


class Request(NamedTuple):
    """What a choice of backend depends on beside the cell and its options.

    Attributes:
        has_resets, returns_states, has_recurrent_dropout: of the call.
        keeps: as in `task.Task`.
        is_masked: some steps may not be real.
        batch: B, where it may decide and is known: on a GPU, and not while a graph is recorded.
        products: autocast's dtype, on a device whose kernels know what to do with it.
    """

    has_resets: bool = False
    returns_states: bool = False
    has_recurrent_dropout: bool = False
    keeps: str = "gates"
    is_masked: bool = False
    batch: int | None = None
    products: torch.dtype | None = None

    def with_call(self, x: Tensor, *, is_masked: bool) -> Request:
        """The same for a call on x (B, T, D)."""
        if not gpu_choice.is_for_triton(x):
            return self
        batch = None if torch.compiler.is_compiling() else int(x.shape[0])
        return self._replace(is_masked=is_masked, batch=batch)


def choose(spec: CellSpec, options: CellOptions, request: Request, backend: str, like: Tensor) -> Path:
    """The fastest backend that computes exactly this, or the one asked for.

    Raises:
        InputError: an unknown backend, or one that cannot take this call.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: unknown name {backend!r}; known: {', '.join(BACKENDS)}")
    is_on_gpu = gpu_choice.is_for_triton(like)
    foreign = "native" if is_on_gpu else "triton"
    reasons: list[str] = []
    for name, obstacle in _candidates(spec, options, request, like):
        if backend == name:
            if obstacle:
                raise InputError(f"backend={name!r} cannot run this ({obstacle}); use backend='auto'")
            return _path(name, "asked for", False, request)
        if backend != "auto" or name == foreign:
            continue
        if obstacle:
            reasons.append(f"not {name!r}: {obstacle}")
            continue
        better = _reason_for_cudnn(spec, request, like) if is_on_gpu and name == "triton" else None
        if better and _fused_obstacle(spec, options, request, like) is None:
            return _path("torch", better, False, request)
        return _path(name, "; ".join(reasons), bool(reasons), request)
    raise AssertionError("the reference takes every call")


def _path(name: str, reason: str, is_fallback: bool, request: Request) -> Path:
    return Path(name, reason, is_fallback, request.products if name == "triton" else None)


def _candidates(
    spec: CellSpec, options: CellOptions, request: Request, like: Tensor
) -> list[tuple[str, str | None]]:
    """Backends from the fastest to the slowest, each with what keeps it from this call (None: nothing).

    Of our own kernels those of another device come too, for calls that ask for them.
    """
    rows: list[tuple[str, str | None]] = []
    task = Task(spec.name, options, False, False, request.keeps)
    for name in KERNELS:
        if is_transformed():
            rows.append((name, _transformed(request)))
        else:
            own = scan.obstacle(like, name) if spec.is_linear else engines.obstacle(name, task, like)
            rows.append((name, own))
    rows.append(("torch", _fused_obstacle(spec, options, request, like)))
    # A composition of differentiable operators: nothing keeps it from any call.
    return [*rows, ("torch steps", None), ("reference", None)]


def _fused_obstacle(spec: CellSpec, options: CellOptions, request: Request, like: Tensor) -> str | None:
    fused = torch_fused.obstacle(spec, options, like)
    if request.has_resets:
        fused = fused or "resets inside a stretch"
    if request.has_recurrent_dropout:
        fused = fused or "PyTorch has no fused form of dropout_recurrent"
    if request.returns_states:
        fused = fused or "return_states=True needs the state after every step"
    if request.keeps == "outputs":
        fused = fused or "PyTorch's fused layers cannot recompute their gates"
    return fused or (_transformed(request) if is_transformed() else None)


def _transformed(request: Request) -> str:
    transformed = "a functorch transform or forward-mode differentiation is active"
    if request.keeps == "outputs":
        transformed += ", where recompute=True has no effect"
    return transformed


def _reason_for_cudnn(spec: CellSpec, request: Request, like: Tensor) -> str | None:
    # Under autocast the state stays in the weights' dtype, and cuDNN would take it in that of the products.
    if spec.is_linear or request.products is not None:
        return None
    rows, D = like.shape
    call = gpu_choice.Call(spec.name, like.dtype, D, rows // spec.gates, request.batch, request.is_masked)
    return gpu_choice.reason_for_cudnn(call)


def products_under_autocast(x: Tensor) -> torch.dtype | None:
    """What autocast has products on x's device computed in, where the device's kernels can follow it."""
    kind = x.device.type
    if not (gpu_choice.is_for_triton(x) and torch.is_autocast_enabled(kind)):
        return None
    return torch.get_autocast_dtype(kind)


def is_transformed() -> bool:
    """Whether vmap, grad, jvp … of torch.func or forward-mode differentiation is active."""
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0
