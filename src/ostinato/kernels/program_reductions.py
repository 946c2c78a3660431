"""Which reductions and matrix products of torch the native interpreter runs, and as what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ostinato.kernels.program_graph import Graph, Unsupported, View
from ostinato.kernels.program_lowering import Lowering, argument, handles, whole
from ostinato.kernels.program_trace import Call, Ref


def _axes(low: Lowering, call: Call, dims: int | Sequence[int] | None) -> list[int]:
    shape = low.shape(call.args[0])
    if dims is None or (not isinstance(dims, int) and not dims):
        raise Unsupported(f"{call.name} over all axes, the batch included")
    listed = [dims] if isinstance(dims, int) else list(dims)
    return sorted(low.axis(axis, shape) for axis in listed)


def _last(g: Graph, view: View, axes: list[int]) -> View:
    """The reduced axes merged into the last one."""
    kept = [axis for axis in range(len(view.shape)) if axis not in axes]
    moved = view.permute([*kept, *axes])
    n = math.prod(moved.shape[len(kept) :])
    return g.compact(g.reshape(moved, (*moved.shape[: len(kept)], n)))


def _restored(view: View, axes: list[int]) -> View:
    """With axes of 1 where it was reduced."""
    for axis in axes:
        view = view.unsqueeze(axis)
    return view


@handles("sum", "mean", "amax", "amin")
def _reduce(low: Lowering, call: Call) -> View:
    g, view = low.graph, whole(low, call.args[0])
    axes = _axes(low, call, argument(call, 1, "dim", None))
    if call.name in ("sum", "mean"):
        result = g.sum(view, axes)
        if call.name == "mean":
            result = g.map("mul", result, 1 / math.prod(view.shape[axis] for axis in axes))
    else:
        result = g.reduce(call.name, _last(g, view, axes))
    return _restored(result, axes) if argument(call, 2, "keepdim", False) else result


@handles("var", "std", "var_mean")
def _var(low: Lowering, call: Call) -> View | tuple[View, View]:
    g, view = low.graph, whole(low, call.args[0])
    axes = _axes(low, call, argument(call, 1, "dim", None))
    n = math.prod(view.shape[axis] for axis in axes)
    correction = call.kwargs.get("correction")
    mean = g.map("mul", g.sum(view, axes), 1 / n)
    centred = _last(g, g.map("sub", view, _restored(mean, axes)), axes)
    variance = g.map(
        "mul", g.reduce("dot", centred, centred), 1 / (n - (1 if correction is None else correction))
    )
    result = g.map("sqrt", variance) if call.name == "std" else variance
    if argument(call, 3, "keepdim", False):
        result, mean = _restored(result, axes), _restored(mean, axes)
    return (result, mean) if call.name == "var_mean" else result


@handles("linalg_vector_norm", "norm")
def _norm(low: Lowering, call: Call) -> View:
    g, view = low.graph, whole(low, call.args[0])
    order = argument(call, 1, "ord", 2)
    axes = _axes(low, call, argument(call, 2, "dim", None))
    if order not in (1, 2):
        raise Unsupported(f"a norm of order {order}")
    flat = _last(g, view, axes)
    squares = g.reduce("dot", flat, flat) if order == 2 else None
    result = g.reduce("sum", g.map("abs", flat)) if squares is None else g.map("sqrt", squares)
    return _restored(result, axes) if argument(call, 3, "keepdim", False) else result


@handles("_softmax", "_log_softmax", "logsumexp")
def _softmax(low: Lowering, call: Call) -> View:
    g, view = low.graph, whole(low, call.args[0])
    axes = _axes(low, call, call.args[1])
    highest = _restored(low.stopped(g.reduce("amax", _last(g, view, axes))), axes)
    shifted = g.map("sub", view, highest)
    powers = g.map("exp", shifted)
    total = _restored(g.sum(powers, axes), axes)
    if call.name == "_softmax":
        return g.map("mul", powers, g.map("reciprocal", total))
    if call.name == "_log_softmax":
        return g.map("sub", shifted, g.map("log", total))
    result = g.map("add", g.map("log", total), highest)
    if argument(call, 2, "keepdim", False):
        return result
    for axis in reversed(axes):
        result = result.squeeze(axis)
    return result


@handles("cumsum")
def _cumsum(low: Lowering, call: Call) -> View:
    g, view = low.graph, whole(low, call.args[0])
    axis = low.axis(call.args[1], low.shape(call.args[0]))
    last = len(view.shape) - 1
    order = [*(i for i in range(last + 1) if i != axis), axis]
    moved = view.permute(order)
    return g.node("cumsum", (moved,), moved.shape).permute([order.index(i) for i in range(last + 1)])


def normalised(g: Graph, view: View, eps: float) -> View:
    """(x - mean) / sqrt(variance + eps) along the last axis."""
    view = g.compact(view)
    moments = g.node("moments", (view,), (*view.shape[:-1], 2), float(eps))
    mean, scale = (moments.slice(len(view.shape) - 1, i, 1).expand(view.shape) for i in (0, 1))
    return g.node("normalise", (view, mean, scale), view.shape)


@handles("native_layer_norm")
def _layer_norm(low: Lowering, call: Call) -> tuple[View, None, None]:
    g, shape = low.graph, low.shape(call.args[0])
    x, sizes, weight, bias, eps = whole(low, call.args[0]), *call.args[1:5]
    kept = len(x.shape) - len(sizes)
    flat = g.reshape(x, (*x.shape[:kept], math.prod(sizes)))
    return _affine(low, g.reshape(normalised(g, flat, eps), x.shape), weight, bias, shape), None, None


@handles("native_group_norm")
def _group_norm(low: Lowering, call: Call) -> tuple[View, None, None]:
    g, shape = low.graph, low.shape(call.args[0])
    x, weight, bias = whole(low, call.args[0]), call.args[1], call.args[2]
    n_groups, eps = call.args[6], call.args[7]
    if len(shape) != 2 or shape[0] != low.trace.n_rows:
        raise Unsupported("group_norm of more than (B, C)")
    flat = g.reshape(x, (n_groups, x.shape[0] // n_groups))
    return _affine(low, g.reshape(normalised(g, flat, eps), x.shape), weight, bias, shape), None, None


def _affine(low: Lowering, x: View, weight: Any, bias: Any, shape: tuple[int, ...]) -> View:
    if weight is not None:
        x = low.graph.map("mul", x, low.view(weight, shape))
    return x if bias is None else low.graph.map("add", x, low.view(bias, shape))


# Products ---------------------------------------------------------------------------------------------


@handles("mm", "addmm", "matmul", "linear")
def _mm(low: Lowering, call: Call) -> View:
    a, b = call.args[1:3] if call.name == "addmm" else call.args[:2]
    if not low.has_rows(a) or low.has_rows(b) or len(low.shape(b)) != 2 or call.name in ("matmul", "linear"):
        raise Unsupported(f"{call.name} whose left side is no batch, or whose right side is one")
    product = matmul(low.graph, whole(low, a), low.const(b))
    if call.name == "mm":
        return product
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    product = product if alpha == 1 else low.graph.map("mul", product, alpha)
    bias = low.view(call.args[0], low.out_shape(call))
    return low.graph.map("add", product, bias if beta == 1 else low.graph.map("mul", bias, beta))


def matmul(g: Graph, a: View, weight: View) -> View:
    """a (…, K) times a constant (K, N).

    A concatenation is multiplied piece by piece, in the same order of summation, so that what does not
    depend on the state can be multiplied for many steps at once.
    """
    if a.node.op == "assemble" and len(a.shape) == 1 and a.is_whole:
        pieces = sorted(zip(a.node.attr, a.node.inputs, strict=True), key=lambda piece: piece[0][0])
        ends = [offset + view.size for (offset, _), view in pieces]
        starts = [offset for (offset, _), _ in pieces]
        if starts == [0, *ends[:-1]] and ends[-1] == a.size and all(s == (1,) for (_, s), _ in pieces):
            total = None
            for start, (_, view) in zip(starts, pieces, strict=True):
                part = g.compact(view)
                rows = weight.slice(0, start, view.size)
                operands = (part, rows) if total is None else (part, rows, total)
                total = g.node("matmul", operands, (*a.shape[:-1], weight.shape[1]))
            assert total is not None
            return total
    return g.node("matmul", (g.compact(a), weight), (*a.shape[:-1], weight.shape[1]))


@handles("bmm", "baddbmm")
def _bmm(low: Lowering, call: Call) -> View:
    a, b = call.args[-2:] if call.name == "baddbmm" else call.args
    if not (isinstance(a, Ref) and isinstance(b, Ref)) or low.shape(a)[0] != low.shape(b)[0]:
        raise Unsupported("bmm of constants")
    left, right = whole(low, a), whole(low, b)
    if not right.node.has_rows and len(right.shape) == 2 and left.node.has_rows:
        product = matmul(low.graph, left, right)
    else:
        product = low.graph.node("bmm", (left, right), (*left.shape[:-1], right.shape[-1]))
    if call.name == "bmm":
        return product
    added = low.view(call.args[0], low.out_shape(call))
    scaled = low.graph.map("mul", product, call.kwargs.get("alpha", 1))
    return low.graph.map("add", low.graph.map("mul", added, call.kwargs.get("beta", 1)), scaled)
