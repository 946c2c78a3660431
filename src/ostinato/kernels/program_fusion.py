"""Rewriting a step's graph into fewer passes: sums started inside products, multiply-adds, dead detours
removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from ostinato.kernels.program_gradient import reachable
from ostinato.kernels.program_graph import Graph, Node, View

LEAF = "leaf "


class _Rewriter:
    """A copy of what some views are computed from, node by node."""

    def __init__(self, roots: Sequence[View], ends: Collection[Node] = ()):
        self.graph = Graph()
        self.nodes = reachable(roots, ends)
        self.made: dict[Node, View] = {}
        self.uses = Counter(view.node for node in self.nodes if node not in ends for view in node.inputs)
        self.uses.update(view.node for view in roots)

    def view(self, old: View) -> View:
        new = self.made[old.node]
        return View(new.node, new.offset + old.offset, old.shape, old.strides)

    def copy(self, node: Node) -> View:
        return self.graph.node(node.op, (self.view(view) for view in node.inputs), node.shape, node.attr)

    def is_only_use(self, view: View, op: str, like: Node) -> bool:
        return view.node.op == op and self.uses[view.node] == 1 and view.is_whole and view.shape == like.shape


def with_started_products(roots: Sequence[View]) -> tuple[Graph, list[View]]:
    """u + a·W as one product that starts from u; of two products the one that depends on the state."""
    r = _Rewriter(roots)
    depends: dict[Node, bool] = {}
    for node in r.nodes:
        is_leaf = node.op == "input" and node.attr.startswith(LEAF)
        depends[node] = is_leaf or any(depends[view.node] for view in node.inputs)
        sides = [view for view in node.inputs if node.op == "add" and _is_made_product(r, view, node)]
        if not sides:
            r.made[node] = r.copy(node)
            continue
        chosen = max(sides, key=lambda view: (depends[view.node], view.node.number))
        other = node.inputs[1] if node.inputs[0] is chosen else node.inputs[0]
        a, weight, *started = r.made[chosen.node].node.inputs
        # Its own start joins the other summand, which may be computed for many steps at once.
        start = r.view(other)
        if started:
            start = r.graph.map("add", start, started[0])
        r.made[node] = r.graph.node("matmul", (a, weight, start), node.shape)
    return r.graph, [r.view(view) for view in roots]


def _is_made_product(r: _Rewriter, view: View, like: Node) -> bool:
    made = r.made[view.node]
    return (
        made.node.op == "matmul" and made.is_whole and r.uses[view.node] == 1 and view.is_whole
        and view.shape == like.shape
    )  # fmt: skip


def finished(
    roots: Sequence[View], sinks: Iterable[Node] = (), given: Mapping[Node, str] | None = None
) -> tuple[list[View], list[Node]]:
    """The graph as it will run: values that are `given` under a name are inputs, multiply-adds are fused."""
    cut = given or {}
    sink_list = list(sinks)
    r = _Rewriter([*roots, *(view for sink in sink_list for view in sink.inputs)], set(cut))
    for node in r.nodes:
        if node in cut:
            r.made[node] = r.graph.input(cut[node], node.shape)
        elif node.op == "detach":
            r.made[node] = r.view(node.inputs[0])
        else:
            r.made[node] = _fused(r, node) or r.copy(node)
    new_sinks = [
        r.graph.node(sink.op, (r.view(view) for view in sink.inputs), (), sink.attr).node
        for sink in sink_list
    ]
    return [r.view(view) for view in roots], new_sinks


def _fused(r: _Rewriter, node: Node) -> View | None:
    """a·b + c and c - a·b in one pass."""
    if node.op not in ("add", "sub"):
        return None
    a, b = node.inputs
    if r.is_only_use(b, "mul", node):
        op = "mul_add" if node.op == "add" else "negative_mul_add"
        return r.graph.node(op, (*map(r.view, b.node.inputs), r.view(a)), node.shape)
    if node.op == "add" and r.is_only_use(a, "mul", node):
        return r.graph.node("mul_add", (*map(r.view, a.node.inputs), r.view(b)), node.shape)
    return None
