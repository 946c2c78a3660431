"""From torch's operators to the graph's: which of them the native interpreter can run, and as what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ostinato.kernels.program_graph import Graph, Shape, Unsupported, View, contiguous
from ostinato.kernels.program_trace import Call, Ref, Trace, leaves_of

Handler = Callable[["Lowering", Call], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Marks a function as what lowers torch's operators of these names."""

    def add(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return add


class Lowering:
    """The graph of a traced step, and the prelude: what depends on parameters only, once for all steps.

    Attributes:
        graph: its nodes.
        outputs: y and the leaves after the step, as in the trace.
        prelude: calls to replay with torch before a run.
        consts: number in the trace of each constant of the graph.
    """

    def __init__(self, trace: Trace, dtype: torch.dtype):
        self.trace, self.dtype, self.graph = trace, dtype, Graph()
        self.prelude: list[Call] = []
        self.consts: list[int] = []
        self._views: dict[int, View] = {}
        # Windows on constants, so that a transposed weight is packed straight from the parameter.
        self._const_views: dict[int, View] = {}
        self._scalars = {n: float(t) for n, t in trace.literals.items() if t.dim() == 0}
        for name, number in trace.inputs.items():
            self._views[number] = self.graph.input(name, self.canonical(trace.shapes[number]))
        for call in _needed(trace):
            self._lower(call)
        self.outputs = {name: self._output(name, number) for name, number in trace.outputs.items()}

    def _output(self, name: str, number: int) -> View:
        shape = self.trace.shapes[number]
        if self.trace.dtypes[number] != self.dtype:
            raise Unsupported(f"{name} is {self.trace.dtypes[number]}, and the cell computes in {self.dtype}")
        if not shape or shape[0] % self.trace.n_rows:
            raise Unsupported(f"{name} has shape {shape} without the batch in front")
        return self.view(Ref(number), shape)

    # Shapes and operands ------------------------------------------------------------------------------

    def canonical(self, shape: Shape) -> Shape:
        """A tensor's shape without the batch axis; what was merged into that axis comes first."""
        rows = self.trace.n_rows
        if not shape or shape[0] % rows:
            raise Unsupported(f"a value of shape {shape} has the batch axis not in front")
        if any(size % rows == 0 and size for size in shape[1:]):
            raise Unsupported(f"a value of shape {shape} relates rows of the batch to each other")
        return (shape[0] // rows, *shape[1:]) if shape[0] > rows else shape[1:]

    def has_rows(self, value: Any) -> bool:
        """Whether an argument is a tensor with a batch axis."""
        return isinstance(value, Ref) and value.number in self._views

    def axis(self, axis: int, shape: Shape) -> int:
        """An axis of a tensor as an axis of its view."""
        axis %= len(shape)
        if axis == 0:
            raise Unsupported("an operator along the batch axis")
        return axis if shape[0] > self.trace.n_rows else axis - 1

    def shape(self, ref: Ref) -> Shape:
        """A tensor's shape in the trace."""
        return self.trace.shapes[ref.number]

    def const(self, ref: Ref) -> View:
        """A tensor without rows, whole."""
        number = ref.number
        if number in self._scalars:
            return self.graph.scalar(self._scalars[number])
        shape = self.shape(ref)
        if any(size % self.trace.n_rows == 0 and size for size in shape):
            raise Unsupported(f"a value of shape {shape} depends on the batch size")
        if number in self._const_views:
            return self._const_views[number]
        if number not in self.consts:
            self.consts.append(number)
        return self.graph.const(self.consts.index(number), shape)

    def view(self, value: Any, shape: Shape) -> View:
        """An operand broadcast to a tensor shape (with the batch axis)."""
        target = self.canonical(shape)
        if isinstance(value, (int, float)):
            return self.graph.scalar(value).expand(target)
        if not isinstance(value, Ref):
            raise Unsupported(f"an argument of type {type(value).__name__}")
        own = self.shape(value)
        if self.has_rows(value):
            if len(own) != len(shape) or own[0] != shape[0]:
                raise Unsupported(f"a value of shape {own} broadcast to {shape} across the batch axis")
            return self._views[value.number].expand(target)
        view = self.const(value)
        if len(view.shape) == len(shape):
            if view.shape[0] != 1:
                raise Unsupported(f"a value of shape {own} that depends on the batch size")
            view = view.squeeze(0)
        return view.expand(target)

    # Calls --------------------------------------------------------------------------------------------

    def _lower(self, call: Call) -> None:
        refs = leaves_of(call)
        sizes = [self.trace.shapes[n] for n in call.outputs if n is not None]
        if not any(self.has_rows(ref) for ref in refs):
            is_batch_sized = any(size and size[0] == self.trace.n_rows for size in sizes)
            if not is_batch_sized:
                if not (call.has_gradient and self._add_const_views(call)):
                    self._add_to_prelude(call)
                return
        handler = HANDLERS.get(call.name)
        if handler is None:
            raise Unsupported(f"the native interpreter has no operator {call.name!r}")
        results = handler(self, call)
        results = (
            list(results)
            if isinstance(results, (list, tuple)) and not isinstance(results, View)
            else [results]
        )
        for number, view in zip(call.outputs, results, strict=False):
            if number is not None and view is not None:
                self._views[number] = self._stored(call, number, view)

    def _stored(self, call: Call, number: int, view: View) -> View:
        """A result as its tensor has it in the trace."""
        dtype = self.trace.dtypes[number]
        is_exact = view.node.op == "scalar"  # a number is the same in any dtype
        if dtype not in (self.dtype, torch.bool) and not is_exact:
            raise Unsupported(f"{call.name} gives {dtype}, and the cell is {self.dtype}")
        if not call.has_gradient:
            view = self.stopped(view)
        expected = self.canonical(self.trace.shapes[number])
        return view if view.shape == expected else self.graph.reshape(view, expected)

    def _add_const_views(self, call: Call) -> bool:
        """Whether the call only looks at a constant in another way, which a view can do."""
        handler = _CONST_VIEWS.get(call.name)
        if handler is None or call.args[0].number in self._scalars:
            return False
        shapes = [self.trace.shapes[n] for n in call.outputs if n is not None]
        views = handler(self.const(call.args[0]), call, shapes)
        if views is None or any(view.shape != shape for view, shape in zip(views, shapes, strict=True)):
            return False
        self._const_views.update(zip([n for n in call.outputs if n is not None], views, strict=True))
        return True

    def _add_to_prelude(self, call: Call) -> None:
        self.prelude.append(call)
        if call.name in ("lift_fresh", "detach", "alias") and call.outputs[0] is not None:
            value = self._scalars.get(call.args[0].number)
            if value is not None:
                self._scalars[call.outputs[0]] = value

    def stopped(self, view: View) -> View:
        """The same value without a gradient."""
        if not view.node.has_rows:
            return view
        whole = self.graph.node(
            "detach", (View(view.node, 0, view.node.shape, contiguous(view.node.shape)),), view.node.shape
        )
        return View(whole.node, view.offset, view.shape, view.strides)

    def out_shape(self, call: Call) -> Shape:
        """Shape of the first result in the trace."""
        number = call.outputs[0]
        assert number is not None
        return self.trace.shapes[number]


def _needed(trace: Trace) -> list[Call]:
    """The calls that the outputs come from; autograd's own copies are not among them."""
    wanted = set(trace.outputs.values())
    kept = []
    for call in reversed(trace.calls):
        if any(number in wanted for number in call.outputs):
            kept.append(call)
            wanted.update(ref.number for ref in leaves_of(call))
    return kept[::-1]


def argument(call: Call, index: int, name: str, default: Any) -> Any:
    """An argument given by place or by name."""
    return call.args[index] if len(call.args) > index else call.kwargs.get(name, default)


def whole(low: Lowering, ref: Ref) -> View:
    """A tensor as it is."""
    return low.view(ref, low.shape(ref))


# Views ------------------------------------------------------------------------------------------------


@handles("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def _view(low: Lowering, call: Call) -> View:
    return low.graph.reshape(whole(low, call.args[0]), low.canonical(low.out_shape(call)))


@handles("unsqueeze", "squeeze")
def _reshaped(low: Lowering, call: Call) -> View:
    return low.graph.reshape(whole(low, call.args[0]), low.canonical(low.out_shape(call)))


@handles("expand", "expand_as")
def _expand(low: Lowering, call: Call) -> View:
    return low.view(call.args[0], low.out_shape(call))


@handles("repeat")
def _repeat(low: Lowering, call: Call) -> View:
    own, times = low.shape(call.args[0]), call.args[1]
    if (
        len(own) != len(times)
        or times[0] != 1
        or any(n != 1 and size != 1 for n, size in zip(times, own, strict=True))
    ):
        raise Unsupported("repeat of more than axes of 1")
    return low.view(call.args[0], low.out_shape(call))


@handles("permute", "transpose", "t", "movedim")
def _permute(low: Lowering, call: Call) -> View:
    shape = low.shape(call.args[0])
    order = list(range(len(shape)))
    if call.name == "permute":
        order = [axis % len(shape) for axis in call.args[1]]
    else:
        i, j = (0, 1) if call.name == "t" else (axis % len(shape) for axis in call.args[1:3])
        order[i], order[j] = order[j], order[i]
    if order[0] != 0 or (shape[0] > low.trace.n_rows and order != sorted(order)):
        raise Unsupported("a transposition that moves the batch axis")
    return (
        whole(low, call.args[0]).permute([axis - 1 for axis in order[1:]])
        if shape[0] == low.trace.n_rows
        else (whole(low, call.args[0]))
    )


@handles("slice")
def _slice(low: Lowering, call: Call) -> View:
    shape = low.shape(call.args[0])
    axis = argument(call, 1, "dim", 0) % len(shape)
    start, end, step = (
        argument(call, i, n, d) for i, n, d in ((2, "start", None), (3, "end", None), (4, "step", 1))
    )
    chosen = range(shape[axis])[slice(start, end, step)]
    if axis == 0:
        if len(chosen) == shape[0] and step == 1:
            return whole(low, call.args[0])
        raise Unsupported("a slice of the batch axis")
    return whole(low, call.args[0]).slice(low.axis(axis, shape), chosen.start, len(chosen), step)


@handles("select")
def _select(low: Lowering, call: Call) -> View:
    shape = low.shape(call.args[0])
    axis = call.args[1] % len(shape)
    return whole(low, call.args[0]).select(low.axis(axis, shape), call.args[2] % shape[axis])


@handles("split", "split_with_sizes", "chunk", "unbind")
def _split(low: Lowering, call: Call) -> list[View]:
    shape = low.shape(call.args[0])
    if call.name == "unbind":
        axis = low.axis(argument(call, 1, "dim", 0), shape)
        view = whole(low, call.args[0])
        return [view.select(axis, i) for i in range(view.shape[axis])]
    axis = low.axis(argument(call, 2, "dim", 0), shape)
    sizes = [low.trace.shapes[n][argument(call, 2, "dim", 0)] for n in call.outputs if n is not None]
    views, start = [], 0
    for size in sizes:
        views.append(whole(low, call.args[0]).slice(axis, start, size))
        start += size
    return views


@handles("flip")
def _flip(low: Lowering, call: Call) -> View:
    view = whole(low, call.args[0])
    for axis in call.args[1]:
        view = view.flip(low.axis(axis, low.shape(call.args[0])))
    return view


@handles("cat", "stack")
def _cat(low: Lowering, call: Call) -> View:
    shape = low.out_shape(call)
    axis = low.axis(argument(call, 1, "dim", 0), shape)
    # Constants among the pieces have a batch axis of their own only if they came from an expansion.
    views = [whole(low, ref) for ref in call.args[0]]
    if call.name == "stack":
        views = [view.unsqueeze(axis) for view in views]
    return low.graph.concatenate(views, axis)


# The same for constants -------------------------------------------------------------------------------


def _const_permuted(view: View, call: Call, shapes: Sequence[Shape]) -> list[View]:
    n = len(view.shape)
    order = list(range(n))
    if call.name == "permute":
        order = [axis % n for axis in call.args[1]]
    elif n >= 2:
        i, j = (0, 1) if call.name == "t" else (axis % n for axis in call.args[1:3])
        order[i], order[j] = order[j], order[i]
    return [view.permute(order)]


def _const_slice(view: View, call: Call, shapes: Sequence[Shape]) -> list[View]:
    axis = argument(call, 1, "dim", 0) % len(view.shape)
    bounds = (argument(call, i, n, d) for i, n, d in ((2, "start", None), (3, "end", None), (4, "step", 1)))
    chosen = range(view.shape[axis])[slice(*bounds)]
    return [view.slice(axis, chosen.start, len(chosen), chosen.step)]


def _const_select(view: View, call: Call, shapes: Sequence[Shape]) -> list[View]:
    axis = call.args[1] % len(view.shape)
    return [view.select(axis, call.args[2] % view.shape[axis])]


def _const_split(view: View, call: Call, shapes: Sequence[Shape]) -> list[View]:
    if call.name == "unbind":
        axis = argument(call, 1, "dim", 0) % len(view.shape)
        return [view.select(axis, i) for i in range(view.shape[axis])]
    axis = argument(call, 2, "dim", 0) % len(view.shape)
    starts = [sum(shape[axis] for shape in shapes[:i]) for i in range(len(shapes))]
    return [view.slice(axis, start, shape[axis]) for start, shape in zip(starts, shapes, strict=True)]


def _const_reshaped(view: View, call: Call, shapes: Sequence[Shape]) -> list[View] | None:
    found = view.reshape(shapes[0])
    return None if found is None else [found]


_CONST_VIEWS: dict[str, Callable[[View, Call, Sequence[Shape]], list[View] | None]] = {
    **dict.fromkeys(("t", "permute", "transpose"), _const_permuted),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), _const_split),
    **dict.fromkeys(("view", "_unsafe_view", "unsqueeze", "squeeze", "alias"), _const_reshaped),
    "slice": _const_slice,
    "select": _const_select,
}
