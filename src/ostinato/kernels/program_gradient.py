"""Reverse differentiation of a step's graph: how the gradient of each node reaches its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from ostinato.kernels.program_graph import Graph, Node, Shape, Unsupported, View, contiguous

# From the graph, a node and the gradient of its value: the gradients of its operands, None where there is
# none.
Rule = Callable[[Graph, Node, View], Sequence[View | None]]


def whole(node: Node) -> View:
    """All of a node's value."""
    return View(node, 0, node.shape, contiguous(node.shape))


def reachable(roots: Iterable[View], ends: Collection[Node] = ()) -> list[Node]:
    """Every node that some views are computed from, back to `ends`, in an order of evaluation."""
    found: dict[int, Node] = {}
    pending = [view.node for view in roots]
    while pending:
        node = pending.pop()
        if id(node) not in found:
            found[id(node)] = node
            if node not in ends:
                pending.extend(view.node for view in node.inputs)
    return sorted(found.values(), key=lambda node: node.number)


class Gradients:
    """The gradients of a graph's inputs and constants.

    Args:
        g: the graph, which grows.
        outputs: (value, its gradient).
        inputs: names of the inputs whose gradients are wanted.
        consts: numbers of the constants whose gradients are wanted.

    Attributes:
        of_inputs: name -> gradient, None where the input has no influence.
        sinks: nodes `rowsum` (gradient) and `outer` (left operand, gradient) that add up over rows and steps;
            `attr` is (constant, offset, shape, strides) of the window that the sum belongs to.
    """

    def __init__(
        self, g: Graph, outputs: Sequence[tuple[View, View]], inputs: Iterable[str], consts: Iterable[int]
    ):
        self.g = g
        self.sinks: list[Node] = []
        self._consts = set(consts)
        self._pieces: dict[Node, list[View]] = {}
        self._gradients: dict[Node, list[View]] = {}
        self._wanted = set(inputs)
        nodes = reachable(value for value, _ in outputs)
        self._is_active: dict[Node, bool] = {}
        for node in nodes:
            self._is_active[node] = self._decide(node)
        for value, gradient in outputs:
            self._add(value, gradient)
        named: dict[str, View | None] = dict.fromkeys(self._wanted)
        for node in reversed(nodes):
            if node not in self._pieces or not node.has_rows:
                continue
            gradient = self._combined(node)
            if node.op == "input":
                named[node.attr] = gradient
                continue
            rule = RULES.get(node.op)
            if rule is None:
                raise Unsupported(f"the native interpreter has no gradient of {node.op!r}")
            for operand, part in zip(node.inputs, rule(g, node, gradient), strict=False):
                if part is not None:
                    self._add(operand, part)
            if node.op == "matmul" and node.inputs[1].node.attr in self._consts:
                self._add_outer(node.inputs[0], gradient, node.inputs[1])
        self.of_inputs = named

    def _decide(self, node: Node) -> bool:
        if node.op == "input":
            return node.attr in self._wanted
        if node.op == "const":
            return node.attr in self._consts
        return node.op not in _STOPS and any(self._is_active[view.node] for view in node.inputs)

    def _add(self, value: View, gradient: View) -> None:
        node = value.node
        if not self._is_active[node]:
            return
        repeated = [
            axis
            for axis, (size, stride) in enumerate(zip(value.shape, value.strides, strict=True))
            if stride == 0 and size > 1
        ]
        gradient = self.g.sum(gradient, repeated)
        for axis in reversed(repeated):
            value = value.slice(axis, 0, 1).squeeze(axis)
        if node.op == "const":
            window = (node.attr, value.offset, value.shape, value.strides)
            self.sinks.append(self.g.node("rowsum", (gradient,), (), window).node)
            return
        self._pieces.setdefault(node, []).append(value)
        self._gradients.setdefault(node, []).append(gradient)

    def _add_outer(self, left: View, gradient: View, weight: View) -> None:
        window = (weight.node.attr, weight.offset, weight.shape, weight.strides)
        self.sinks.append(self.g.node("outer", (left, self.g.compact(gradient)), (), window).node)

    def _combined(self, node: Node) -> View:
        """The sum of what came back to a node's windows."""
        g = self.g
        windows, gradients = self._pieces[node], self._gradients[node]
        total: View | None = None
        parts: list[tuple[int, Shape, View]] = []
        for window, gradient in zip(windows, gradients, strict=True):
            if window.offset == 0 and window.size == node.size and window.is_contiguous:
                shaped = g.reshape(gradient, node.shape)
                total = shaped if total is None else g.map("add", total, shaped)
            else:
                parts.append((window.offset, window.strides, gradient))
        if parts:
            assembled = g.assemble(node.shape, parts)
            total = assembled if total is None else g.map("add", total, assembled)
        assert total is not None
        return total


def covers(shape: Shape, windows: Sequence[tuple[int, Shape, Shape]]) -> tuple[bool, bool]:
    """Whether windows (offset, shape, strides) fill a value, and whether none of them overlap."""
    from ostinato.kernels.program_graph import positions

    counts = np.zeros(math.prod(shape), dtype=np.int64)
    for offset, sizes, strides in windows:
        np.add.at(counts, positions(offset, sizes, strides), 1)
    return bool((counts > 0).all()), bool((counts <= 1).all())


def _expanded(d: View, like: View) -> View:
    return d.unsqueeze(len(d.shape)).expand(like.shape)


def _extremum(g: Graph, node: Node, d: View) -> list[View | None]:
    a, b = node.inputs
    first = g.map("gt" if node.op == "max" else "lt", a, b)
    # Equal operands share the gradient, as in torch.
    share = g.map("mul_add", g.map("eq", a, b), g.scalar(0.5), first)
    mine = g.map("mul", d, share)
    return [mine, g.map("sub", d, mine)]


def _highest(g: Graph, node: Node, d: View) -> list[View | None]:
    a = node.inputs[0]
    is_it = g.map("eq", a, _expanded(whole(node), a))
    share = g.map("div", d, g.reduce("sum", is_it))
    return [g.map("mul", _expanded(share, a), is_it)]


def _power(g: Graph, node: Node, d: View) -> list[View | None]:
    a, b = node.inputs
    lower = g.map("pow", a, g.map("sub", b, g.scalar(1.0)))
    of_b = None
    if b.node.op != "scalar":
        log = g.map("where", g.map("gt", a, 0.0), g.map("log", a), 0.0)
        of_b = g.map("mul", g.map("mul", d, whole(node)), log)
    return [g.map("mul", g.map("mul", d, b), lower), of_b]


def _normalise(g: Graph, node: Node, d: View) -> list[View | None]:
    scale = node.inputs[2]
    return [g.node("normalise_gradient", (g.compact(d), whole(node), scale), node.shape)]


def _matmul(g: Graph, node: Node, d: View) -> list[View | None]:
    a, weight = node.inputs[:2]
    d_a = g.node("matmul", (g.compact(d), weight.permute((1, 0))), a.shape)
    return [d_a, None, *([d] if len(node.inputs) == 3 else [])]


def _bmm(g: Graph, node: Node, d: View) -> list[View | None]:
    a, b = node.inputs
    n = len(a.shape)
    swapped = [*range(n - 2), n - 1, n - 2]
    return [
        g.node("bmm", (d, b.permute(swapped)), a.shape),
        g.node("bmm", (a.permute(swapped), d), b.shape),
    ]


def _assemble(g: Graph, node: Node, d: View) -> list[View | None]:
    if not d.is_contiguous:
        d = g.node("copy", (d,), d.shape)
    return [
        View(d.node, d.offset + offset, view.shape, strides)
        for (offset, strides), view in zip(node.attr, node.inputs, strict=True)
    ]


def _cumsum(g: Graph, node: Node, d: View) -> list[View | None]:
    last = len(d.shape) - 1
    return [g.node("cumsum", (d.flip(last),), d.shape).flip(last)]


def _square(g: Graph, node: Node, d: View) -> list[View | None]:
    return [g.map("mul", g.map("mul", d, 2.0), node.inputs[0])]


def _mul(g: Graph, node: Node, d: View) -> list[View | None]:
    return [g.map("mul", d, node.inputs[1]), g.map("mul", d, node.inputs[0])]


def _div(g: Graph, node: Node, d: View) -> list[View | None]:
    of_a = g.map("div", d, node.inputs[1])
    return [of_a, g.map("neg", g.map("mul", of_a, whole(node)))]


def _where(g: Graph, node: Node, d: View) -> list[View | None]:
    condition = node.inputs[0]
    return [None, g.map("where", condition, d, 0.0), g.map("where", condition, 0.0, d)]


_ERF = 2 / math.sqrt(math.pi)
_STOPS = {"detach", "moments", "gt", "ge", "lt", "le", "eq", "ne", "floor", "sign"}
RULES: Mapping[str, Rule] = {
    "copy": lambda g, n, d: [d],
    "neg": lambda g, n, d: [g.map("neg", d)],
    "add": lambda g, n, d: [d, d],
    "sub": lambda g, n, d: [d, g.map("neg", d)],
    "mul": _mul,
    "div": _div,
    "max": _extremum,
    "min": _extremum,
    "where": _where,
    "pow": _power,
    "square": _square,
    "reciprocal": lambda g, n, d: [g.map("neg", g.map("mul", d, g.map("square", whole(n))))],
    "sqrt": lambda g, n, d: [g.map("div", g.map("mul", d, 0.5), whole(n))],
    "rsqrt": lambda g, n, d: [
        g.map("mul", g.map("mul", d, -0.5), g.map("mul", whole(n), g.map("square", whole(n))))
    ],
    "exp": lambda g, n, d: [g.map("mul", d, whole(n))],
    "expm1": lambda g, n, d: [g.map("mul", d, g.map("add", whole(n), 1.0))],
    "log": lambda g, n, d: [g.map("div", d, n.inputs[0])],
    "log1p": lambda g, n, d: [g.map("div", d, g.map("add", n.inputs[0], 1.0))],
    "abs": lambda g, n, d: [g.map("mul", d, g.map("sign", n.inputs[0]))],
    "sin": lambda g, n, d: [g.map("mul", d, g.map("cos", n.inputs[0]))],
    "cos": lambda g, n, d: [g.map("neg", g.map("mul", d, g.map("sin", n.inputs[0])))],
    "sigmoid": lambda g, n, d: [g.map("sigmoid_gradient", d, whole(n))],
    "tanh": lambda g, n, d: [g.map("tanh_gradient", d, whole(n))],
    "relu": lambda g, n, d: [g.map("relu_gradient", d, whole(n))],
    "softplus": lambda g, n, d: [g.map("mul", d, g.map("sigmoid", n.inputs[0]))],
    "erf": lambda g, n, d: [
        g.map("mul", d, g.map("mul", g.map("exp", g.map("neg", g.map("square", n.inputs[0]))), _ERF))
    ],
    "sum": lambda g, n, d: [_expanded(d, n.inputs[0])],
    "dot": lambda g, n, d: [
        g.map("mul", _expanded(d, n.inputs[0]), n.inputs[1]),
        g.map("mul", _expanded(d, n.inputs[0]), n.inputs[0]),
    ],
    "amax": _highest,
    "amin": _highest,
    "cumsum": _cumsum,
    "normalise": _normalise,
    "matmul": _matmul,
    "bmm": _bmm,
    "assemble": _assemble,
}
