"""What the trace of a step depends on beside the values of tensors, and noticing cheaply that it has
changed."""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MODULE_FIELDS = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)


def _owners(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module's tensors are."""
    return module._parameters, module._buffers, module.__dict__


def _homes(cell: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    for prefix, module in cell.named_modules():
        for owner in _owners(module):
            for name, value in owner.items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, owner, name, value


def fixed_tensors(cell: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by name, each tensor once."""
    seen: dict[int, str] = {}
    for name, _, _, value in _homes(cell):
        seen.setdefault(id(value), name)
    return {name: value for name, _, _, value in _homes(cell) if seen[id(value)] == name}


class Swapped:
    """A context in which the cell has other tensors in place of its `fixed_tensors`."""

    def __init__(self, cell: nn.Module, tensors: Mapping[str, Tensor]):
        new = {id(old): tensors[name] for name, old in fixed_tensors(cell).items()}
        self._places = [(owner, name, value, new[id(value)]) for _, owner, name, value in _homes(cell)]

    def __enter__(self) -> None:
        for owner, name, _, tensor in self._places:
            owner[name] = tensor

    def __exit__(self, *details: object) -> None:
        for owner, name, old, _ in self._places:
            owner[name] = old


def hooked(cell: nn.Module) -> str | None:
    """The class of a module with hooks in the cell, None where there is none."""
    for module in cell.modules():
        if any(getattr(module, name, None) for name in _HOOKS):
            return type(module).__name__
    return None


def fingerprint(cell: nn.Module) -> Any:
    """What a step may depend on beside the values of tensors.

    Of the cell and every module in it: its class, mode and hooks, plain attributes (numbers, strings, and
    collections of them), the identity of other attributes, and of tensors shape, dtype and whether they want
    gradients. Global variables, closures and the insides of other objects count as constant.
    """
    parts: list[Any] = []
    for module in cell.modules():
        parts.append(id(type(module)))
        parts.extend((name, _plain(v)) for name, v in module.__dict__.items() if name not in _MODULE_FIELDS)
        for values in _owners(module)[:2]:
            parts.extend((name, _plain(value)) for name, value in values.items())
        parts.append(tuple(bool(getattr(module, name, None)) for name in _HOOKS))
    return tuple(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype, value.requires_grad
    if isinstance(value, (tuple, list, set, frozenset)):
        return type(value), tuple(_plain(one) for one in value)
    if isinstance(value, dict):
        return "dict", tuple((_plain(key), _plain(one)) for key, one in value.items())
    return id(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return isinstance(value, _PLAIN)


class Watch:
    """Says in microseconds that a cell's fingerprint is still the same, by looking whether objects still are.

    A cell may be changed back, or hold an equal object: `holds` is then False though the fingerprint is
    equal.
    """

    def __init__(self, cell: nn.Module):
        self.fingerprint = fingerprint(cell)
        self._same: list[tuple[dict[str, Any], str, Any]] = []
        self._equal: list[tuple[dict[str, Any], str, Any]] = []
        self._alike: list[tuple[dict[str, Any], str, Any]] = []
        self._tensors: list[tuple[Tensor, torch.Size, torch.dtype, bool]] = []
        self._counts: list[tuple[Mapping[Any, Any], int]] = []
        for module in cell.modules():
            # nn.Module keeps these dictionaries for life.
            own: dict[str, Any] = module.__dict__
            self._counts.extend((own[name], len(own[name])) for name in _HOOKS if name in own)
            for owner in (own, module._modules, *_owners(module)[:2]):
                self._counts.append((owner, len(owner)))
                for name, value in owner.items():
                    if owner is own and name in _MODULE_FIELDS:
                        continue
                    self._add(owner, name, value)
        names = {id(value): name for name, value in fixed_tensors(cell).items()}
        self._fixed: dict[str, tuple[dict[str, Any], str]] = {}
        for _, owner, name, value in _homes(cell):
            self._fixed.setdefault(names[id(value)], (owner, name))

    def _add(self, owner: dict[str, Any], name: str, value: Any) -> None:
        if not isinstance(value, (list, set, dict, tuple)) or name == "_arguments":
            self._same.append((owner, name, value))
        elif _is_plain(value):
            self._equal.append((owner, name, copy.deepcopy(value)))
        else:
            self._alike.append((owner, name, _plain(value)))
        if isinstance(value, Tensor):
            self._tensors.append((value, value.shape, value.dtype, value.requires_grad))

    def holds(self) -> bool:
        """Whether nothing has changed."""
        for owner, name, value in self._same:
            if owner.get(name) is not value:
                return False
        for tensor, shape, dtype, requires_grad in self._tensors:
            if tensor.shape != shape or tensor.dtype != dtype or tensor.requires_grad != requires_grad:
                return False
        for mapping, n in self._counts:
            if len(mapping) != n:
                return False
        for owner, name, value in self._equal:
            if owner.get(name) != value:
                return False
        return all(_plain(owner.get(name)) == value for owner, name, value in self._alike)

    def fixed_tensors(self) -> dict[str, Tensor]:
        """As the function, while `holds`."""
        return {name: owner[key] for name, (owner, key) in self._fixed.items()}
