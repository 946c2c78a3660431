"""A step as a graph of row-local operators: what the native interpreter can run, and how values are viewed.

Every value has one row for each sequence; its shape here leaves the row out. A `Node` computes a contiguous
value; a `View` is a strided window on one, so that slices, transpositions and broadcasts cost nothing.
Constants (parameters and what is computed from them alone) and scalars are nodes without rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Unsupported(Exception):  # noqa: N818 - an answer, not an error: the caller takes another path
    """The step cannot run natively; the message names what is in the way."""


class Node:
    """One operator's result, contiguous; compared by identity, made once for equal operands by `Graph`.

    Attributes:
        op: `input`, `const`, `scalar`, `assemble`, or an operator of the native interpreter.
        inputs: operands; elementwise ones have the node's shape, strides 0 where they are broadcast.
        shape: without the row.
        attr: an input's name, a constant's number, a scalar's value, an assemblage's windows.
        number: increasing in the order of creation, which is an order of evaluation.
    """

    __slots__ = ("attr", "inputs", "number", "op", "shape")

    def __init__(self, op: str, inputs: tuple[View, ...], shape: Shape, attr: Any, number: int):
        self.op, self.inputs, self.shape, self.attr, self.number = op, inputs, shape, attr, number

    @property
    def has_rows(self) -> bool:
        """Whether its value differs from row to row."""
        return self.op not in ("const", "scalar")

    @property
    def size(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"%{self.number} {self.op}{self.shape}"


class View(NamedTuple):
    """A strided window on a node's value; strides and offset in elements."""

    node: Node
    offset: int
    shape: Shape
    strides: Shape

    @property
    def size(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the node, in order."""
        return self.offset == 0 and self.shape == self.node.shape and self.is_contiguous

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other."""
        return all(
            size == 1 or stride == expected
            for size, stride, expected in zip(self.shape, self.strides, contiguous(self.shape), strict=True)
        )

    def indices(self) -> np.ndarray:
        """The flat positions that it covers in the node's value, in order."""
        return positions(self.offset, self.shape, self.strides)

    def slice(self, axis: int, start: int, size: int, step: int = 1) -> View:
        """Every `step`-th of the elements from `start` on along an axis."""
        offset = self.offset + start * self.strides[axis]
        return View(
            self.node,
            offset,
            _with(self.shape, axis, size),
            _with(self.strides, axis, step * self.strides[axis]),
        )

    def select(self, axis: int, index: int) -> View:
        """One element along an axis, which goes."""
        view = self.slice(axis, index, 1)
        return View(self.node, view.offset, _without(view.shape, axis), _without(view.strides, axis))

    def flip(self, axis: int) -> View:
        """Backwards along an axis."""
        n = self.shape[axis]
        return self.slice(axis, n - 1, n, -1) if n else self

    def unsqueeze(self, axis: int) -> View:
        """With an axis of 1."""
        return View(
            self.node, self.offset, (*self.shape[:axis], 1, *self.shape[axis:]),
            (*self.strides[:axis], 0, *self.strides[axis:]),
        )  # fmt: skip

    def squeeze(self, axis: int) -> View:
        """Without an axis of 1."""
        return View(self.node, self.offset, _without(self.shape, axis), _without(self.strides, axis))

    def permute(self, axes: Sequence[int]) -> View:
        """With its axes in another order."""
        return View(
            self.node, self.offset, tuple(self.shape[i] for i in axes), tuple(self.strides[i] for i in axes)
        )

    def expand(self, shape: Shape) -> View:
        """Broadcast as torch does: aligned at the last axis, axes of 1 repeated."""
        missing = len(shape) - len(self.shape)
        if missing < 0:
            raise Unsupported(f"a value {self.shape} broadcast to {shape}")
        strides = [0] * missing
        for size, own, stride in zip(shape[missing:], self.shape, self.strides, strict=True):
            if own not in (size, 1):
                raise Unsupported(f"a value {self.shape} broadcast to {shape}")
            strides.append(stride if own == size and own != 1 else 0)
        return View(self.node, self.offset, shape, tuple(strides))

    def reshape(self, shape: Shape) -> View | None:
        """The same elements in another shape; None where that needs a copy."""
        if shape == self.shape:
            return self
        sizes, strides = collapse(self.shape, [self.strides])
        found: list[int] = []
        axis, left = len(sizes) - 1, sizes[-1] if sizes else 1
        stride = strides[0][-1] if sizes else 0
        for size in reversed(shape):
            if size == 1:
                found.append(0)
                continue
            while left == 1 and axis > 0:
                axis -= 1
                left, stride = sizes[axis], strides[0][axis]
            if left % size:
                return None
            found.append(stride)
            stride, left = stride * size, left // size
        return View(self.node, self.offset, shape, tuple(reversed(found)))


def contiguous(shape: Shape) -> Shape:
    """Row-major strides."""
    strides, n = [], 1
    for size in reversed(shape):
        strides.append(n)
        n *= size
    return tuple(reversed(strides))


def positions(offset: int, shape: Shape, strides: Shape) -> np.ndarray:
    """Flat positions of a strided window, in order."""
    found = np.full(1, offset, dtype=np.int64)
    for size, stride in zip(shape, strides, strict=True):
        found = (found[:, None] + np.arange(size) * stride).reshape(-1)
    return found


def collapse(shape: Shape, strides: Sequence[Shape]) -> tuple[list[int], list[list[int]]]:
    """Axes of 1 dropped, and neighbours merged where all the given strides allow it."""
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(own[-1] == size * new[axis] for own, new in zip(kept, strides, strict=True)):
            sizes[-1] *= size
            for own, new in zip(kept, strides, strict=True):
                own[-1] = new[axis]
        else:
            sizes.append(size)
            for own, new in zip(kept, strides, strict=True):
                own.append(new[axis])
    return sizes, kept


def _with(values: Shape, axis: int, value: int) -> Shape:
    return (*values[:axis], value, *values[axis + 1 :])


def _without(values: Shape, axis: int) -> Shape:
    return (*values[:axis], *values[axis + 1 :])


class Graph:
    """Makes nodes; equal operators on equal operands are made once."""

    def __init__(self) -> None:
        self._made: dict[Any, Node] = {}
        self._n_nodes = 0

    def node(self, op: str, inputs: Iterable[View], shape: Shape, attr: Any = None) -> View:
        """The whole of a node."""
        operands = tuple(inputs)
        key = (op, tuple((id(v.node), v.offset, v.shape, v.strides) for v in operands), shape, attr)
        made = self._made.get(key)
        if made is None:
            self._n_nodes += 1
            made = self._made[key] = Node(op, operands, shape, attr, self._n_nodes)
        return View(made, 0, shape, contiguous(shape))

    def input(self, name: str, shape: Shape) -> View:
        """A value that comes from outside at every step."""
        return self.node("input", (), shape, name)

    def const(self, number: int, shape: Shape) -> View:
        """A tensor without rows, by its number among the constants."""
        return self.node("const", (), shape, number)

    def scalar(self, value: float) -> View:
        """A number."""
        return self.node("scalar", (), (), float(value))

    def map(self, op: str, *operands: View | float) -> View:
        """An elementwise operator over operands broadcast to one shape."""
        views = [self.scalar(v) if not isinstance(v, View) else v for v in operands]
        shape: Shape = ()
        for view in views:
            shape = tuple(np.broadcast_shapes(shape, view.shape))
        known = [v.node.attr if v.node.op == "scalar" else None for v in views]
        simple = _simplified(op, views, known, shape)
        if simple is not None:
            return simple if isinstance(simple, View) else self.scalar(simple).expand(shape)
        return self.node(op, (view.expand(shape) for view in views), shape)

    def reduce(self, op: str, *operands: View) -> View:
        """An operator along the last axis, which goes."""
        return self.node(op, operands, operands[0].shape[:-1])

    def sum(self, view: View, axes: Iterable[int]) -> View:
        """The sum along some axes, which go."""
        gone = sorted({axis % max(len(view.shape), 1) for axis in axes})
        if not gone or not view.shape:
            return view
        for axis in reversed(gone):
            if view.strides[axis] == 0 or view.shape[axis] == 1:
                # All alike along this axis.
                n = view.shape[axis]
                view = view.slice(axis, 0, 1).squeeze(axis)
                view = view if n == 1 else self.map("mul", view, n)
                gone.remove(axis)
        if not gone:
            return view
        kept = [axis for axis in range(len(view.shape)) if axis not in gone]
        moved = view.permute([*kept, *gone])
        shape = moved.shape[: len(kept)]
        flat = self.reshape(moved, (*shape, math.prod(moved.shape[len(kept) :])))
        return self.reduce("sum", flat)

    def reshape(self, view: View, shape: Shape) -> View:
        """In another shape, copied where strides cannot express it."""
        found = view.reshape(shape)
        if found is None:
            found = self.node("copy", (view,), view.shape).reshape(shape)
        assert found is not None
        return found

    def compact(self, view: View) -> View:
        """With elements that follow each other along the last axis, copied where they do not."""
        if not view.shape or view.shape[-1] == 1 or view.strides[-1] == 1:
            return view
        return self.node("copy", (view,), view.shape)

    def assemble(self, shape: Shape, pieces: Sequence[tuple[int, Shape, View]]) -> View:
        """Values in windows (offset, strides) of a new one: zeros elsewhere, sums where they overlap."""
        windows = tuple((offset, strides) for offset, strides, _ in pieces)
        return self.node("assemble", (view for _, _, view in pieces), shape, windows)

    def concatenate(self, views: Sequence[View], axis: int) -> View:
        """Along an axis."""
        shape = _with(views[0].shape, axis, sum(view.shape[axis] for view in views))
        strides = contiguous(shape)
        pieces, start = [], 0
        for view in views:
            pieces.append((start * strides[axis], strides, view))
            start += view.shape[axis]
        return self.assemble(shape, pieces)


_FOLDED: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
}


def _simplified(op: str, views: list[View], known: list[float | None], shape: Shape) -> View | float | None:
    if op in _FOLDED and all(value is not None for value in known):
        return _FOLDED[op](*known)
    if op == "add" and 0.0 in known:
        return views[1 - known.index(0.0)].expand(shape)
    if op == "sub" and known[1] == 0.0:
        return views[0].expand(shape)
    if op in ("mul", "div") and known[1] == 1.0:
        return views[0].expand(shape)
    if op == "mul" and known[0] == 1.0:
        return views[1].expand(shape)
    return None
