"""The checks that every layer makes of what it is given: sizes, dtypes, devices, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.kernels.stretch import Stretch
from ostinato.types import State

_ONE_STEP = Stretch(1)


def check_sizes(where: str, **sizes: object) -> None:
    """Every size is an integer of at least 1.

    Raises:
        InputError: names the one that is not.
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{where}: {name}={value!r}, expected an integer of at least 1")


def check_input(where: str, x: object, input_size: int, n_axes: int, like: Tensor) -> Tensor:
    """x in the dtype that the layer computes in: its weights', whatever autocast is active.

    Raises:
        SizeError: not a tensor of `n_axes` axes with D last, or another dtype or device than the weights.
    """
    if not isinstance(x, Tensor) or x.dim() != n_axes:
        axes = {2: "(B, D)", 3: "(B, T, D)"}[n_axes]
        if not isinstance(x, Tensor):
            raise SizeError(f"{where}: x is a {type(x).__name__}, expected a tensor {axes}")
        cure = "; unsqueeze the missing axis" if x.dim() == n_axes - 1 else ""
        raise SizeError(f"{where}: x has shape {tuple(x.shape)}, expected {axes}{cure}")
    if x.shape[-1] != input_size:
        raise SizeError(
            f"{where}: x has width {x.shape[-1]}, expected input_size={input_size}; pass "
            f"input_size={x.shape[-1]} or project x first"
        )
    if x.device != like.device:
        raise SizeError(f"{where}: x is on {x.device}, the weights are on {like.device}; move one of them")
    if x.dtype != like.dtype:
        if not (x.dtype.is_floating_point and torch.is_autocast_enabled(x.device.type)):
            raise SizeError(f"{where}: x is {x.dtype}, the weights are {like.dtype}; convert one of them")
        x = x.to(like.dtype)
    return x


def check_leaves(
    where: str, state: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], B: int, like: Tensor
) -> dict[str, Tensor]:
    """The named leaves, each (B, *s) in the weights' dtype and on their device; nothing is broadcast.

    Raises:
        SizeError: what is wrong with which leaf.
    """
    leaves = {}
    for name, shape in shapes.items():
        leaf = state.get(name)
        if not isinstance(leaf, Tensor):
            raise SizeError(f"{where}: state has no leaf {name!r}; it has: {', '.join(state)}")
        if leaf.shape != (B, *shape):
            raise SizeError(f"{where}: state.{name} has shape {tuple(leaf.shape)}, expected {(B, *shape)}")
        if leaf.dtype != like.dtype or leaf.device != like.device:
            raise SizeError(
                f"{where}: state.{name} is {leaf.dtype} on {leaf.device}, expected {like.dtype} on "
                f"{like.device}; use state.to(…)"
            )
        leaves[name] = leaf
    return leaves


def check_state(where: str, state: object) -> State:
    """A `State`.

    Raises:
        SizeError: something else, such as torch's tuple (h_n, c_n).
    """
    if not isinstance(state, State):
        raise SizeError(
            f"{where}: state is a {type(state).__name__}, expected a State; use initial_state(B), "
            "State.from_torch(hx), or torch_compatible=True"
        )
    return state


def make_stretch(
    where: str,
    x: Tensor,
    *,
    lengths: Tensor | Sequence[int] | None,
    mask: Tensor | None,
    resets: Tensor | None,
    dt: Tensor | None,
    takes_dt: bool,
) -> Stretch:
    """Which steps of x (B, T, D) are real, where rows are reset, and how much time passes.

    On the CPU the values are checked too; elsewhere that would wait for the device, and a traced graph
    cannot depend on them.

    Raises:
        InputError: `lengths` and `mask` together, or `dt` for a cell that takes none.
        SizeError: a wrong shape or dtype, or a length outside 0 … T.
    """
    B, T, _ = x.shape
    if lengths is None and mask is None and resets is None and dt is None and not takes_dt:
        return _ONE_STEP if T == 1 else Stretch(T)
    if lengths is not None and mask is not None:
        raise InputError(f"{where}: lengths and mask both say which steps are real; pass one of them")
    if (dt is not None) != takes_dt:
        said = "takes no dt; leave it out" if dt is not None else "needs dt (B, T), the time before each step"
        raise InputError(f"{where}: the cell {said}")
    has_values = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if lengths is not None:
        mask = _mask_from_lengths(where, lengths, B, T, x.device)
    elif mask is not None:
        mask = _flags(where, "mask", mask, B, T, x.device)
    is_right_padded = lengths is not None and mask is not None
    if mask is not None and has_values:
        if bool(mask.all()):
            mask, is_right_padded = None, False
        else:
            is_right_padded = is_right_padded or bool((mask[:, 1:] <= mask[:, :-1]).all())
    if resets is not None:
        resets = _flags(where, "resets", resets, B, T, x.device)
        if has_values and not bool(resets.any()):
            resets = None
    if dt is not None:
        if dt.shape != (B, T):
            raise SizeError(f"{where}: dt has shape {tuple(dt.shape)}, expected (B, T) = {(B, T)}")
        dt = dt.to(x)
    return Stretch(T, mask, resets, dt, is_right_padded)


def _mask_from_lengths(
    where: str, lengths: Tensor | Sequence[int], B: int, T: int, device: torch.device
) -> Tensor | None:
    """None where they are known to be all T."""
    counts = torch.as_tensor(lengths)
    if counts.shape != (B,) or counts.dtype.is_floating_point or counts.dtype == torch.bool:
        raise SizeError(
            f"{where}: lengths has shape {tuple(counts.shape)} and {counts.dtype}, expected {B} integers (B,)"
        )
    is_known = counts.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_known and B:
        least, most = int(counts.min()), int(counts.max())
        if not 0 <= least <= most <= T:
            raise SizeError(f"{where}: lengths are {least} … {most}, expected them within 0 … T={T}")
        if least == T:
            return None
    return torch.arange(T, device=device) < _moved(counts, device).unsqueeze(1)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it where the value cannot change meanwhile."""
    is_copied_at_once = device.type == "cuda" and value.device.type == "cpu" and not value.is_pinned()
    return value.to(device, non_blocking=is_copied_at_once)


def _flags(where: str, name: str, flags: Tensor, B: int, T: int, device: torch.device) -> Tensor:
    if not isinstance(flags, Tensor) or flags.shape != (B, T) or flags.dtype != torch.bool:
        found = f"{tuple(flags.shape)} {flags.dtype}" if isinstance(flags, Tensor) else type(flags).__name__
        raise SizeError(f"{where}: {name} is {found}, expected a boolean tensor (B, T) = {(B, T)}")
    return _moved(flags, device)
