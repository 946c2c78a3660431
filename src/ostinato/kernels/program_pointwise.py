"""Which elementwise operators of torch the native interpreter runs, and as what."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ostinato.kernels.program_graph import Graph, Unsupported, View
from ostinato.kernels.program_lowering import Lowering, argument, handles, whole
from ostinato.kernels.program_trace import Call

_UNARY = [
    "neg",
    "reciprocal",
    "sqrt",
    "rsqrt",
    "exp",
    "expm1",
    "log",
    "log1p",
    "abs",
    "sign",
    "sin",
    "cos",
    "sigmoid",
    "tanh",
    "relu",
    "square",
    "erf",
    "floor",
]


@handles(*_UNARY)
def _unary(low: Lowering, call: Call) -> View:
    return low.graph.map(call.name, low.view(call.args[0], low.out_shape(call)))


_BINARY = {
    "mul": "mul", "maximum": "max", "minimum": "min", "gt": "gt", "ge": "ge", "lt": "lt",
    "le": "le", "eq": "eq", "ne": "ne", "logical_and": "mul", "bitwise_and": "mul", "logical_or": "max",
    "bitwise_or": "max", "pow": "pow",
}  # fmt: skip


def _operands(low: Lowering, call: Call) -> tuple[View, View]:
    shape = low.out_shape(call)
    return low.view(call.args[0], shape), low.view(call.args[1], shape)


@handles(*_BINARY)
def _binary(low: Lowering, call: Call) -> View:
    a, b = _operands(low, call)
    if call.name == "pow" and b.node.op == "scalar":
        return _power(low.graph, a, b.node.attr)
    return low.graph.map(_BINARY[call.name], a, b)


def _power(g: Graph, a: View, exponent: float) -> View:
    simple: dict[float, Callable[[], View]] = {
        0.5: lambda: g.map("sqrt", a),
        1.0: lambda: a,
        2.0: lambda: g.map("square", a),
        3.0: lambda: g.map("mul", a, g.map("square", a)),
        -0.5: lambda: g.map("rsqrt", a),
        -1.0: lambda: g.map("reciprocal", a),
    }
    return simple[exponent]() if exponent in simple else g.map("pow", a, exponent)


@handles("add", "sub", "rsub")
def _add(low: Lowering, call: Call) -> View:
    a, b = _operands(low, call)
    if call.name == "rsub":
        a, b = b, a
    alpha = argument(call, 2, "alpha", 1)
    if alpha != 1:
        if call.name == "rsub":
            raise Unsupported("rsub with alpha")
        b = low.graph.map("mul", b, alpha)
    return low.graph.map("add" if call.name == "add" else "sub", a, b)


@handles("div")
def _div(low: Lowering, call: Call) -> View:
    if call.kwargs.get("rounding_mode") is not None:
        raise Unsupported("div with a rounding mode")
    a, b = _operands(low, call)
    return low.graph.map("div", a, b)


@handles("logical_not", "bitwise_not")
def _not(low: Lowering, call: Call) -> View:
    return low.graph.map("eq", low.view(call.args[0], low.out_shape(call)), 0.0)


@handles("where")
def _where(low: Lowering, call: Call) -> View:
    shape = low.out_shape(call)
    return low.graph.map("where", *(low.view(arg, shape) for arg in call.args))


@handles("masked_fill")
def _masked_fill(low: Lowering, call: Call) -> View:
    shape = low.out_shape(call)
    x, mask, value = (low.view(arg, shape) for arg in call.args)
    return low.graph.map("where", mask, value, x)


@handles("clamp", "clamp_min", "clamp_max", "hardtanh")
def _clamp(low: Lowering, call: Call) -> View:
    shape = low.out_shape(call)
    x = low.view(call.args[0], shape)
    defaults = {"hardtanh": [-1.0, 1.0]}.get(call.name, [None, None])
    given = list(call.args[1:])
    if call.name == "clamp_max":
        low_bound, high_bound = None, given[0]
    else:
        bounds = [*given, *defaults[len(given) :]]
        low_bound = call.kwargs.get("min", call.kwargs.get("min_val", bounds[0]))
        high_bound = call.kwargs.get("max", call.kwargs.get("max_val", bounds[1]))
    inside = low.graph.scalar(1.0)
    result = x
    if low_bound is not None:
        bound = low.view(low_bound, shape)
        inside = low.graph.map("mul", inside, low.graph.map("ge", x, bound))
        result = low.graph.map("max", result, bound)
    if high_bound is not None:
        bound = low.view(high_bound, shape)
        inside = low.graph.map("mul", inside, low.graph.map("le", x, bound))
        result = low.graph.map("min", result, bound)
    # `where` keeps torch's gradient at the bounds: that of the inside.
    return (
        low.graph.map("where", inside, x, low.stopped(result))
        if _is_number(low_bound, high_bound)
        else result
    )


def _is_number(*bounds: Any) -> bool:
    return all(bound is None or isinstance(bound, (int, float)) for bound in bounds)


@handles("addcmul", "addcdiv")
def _addcmul(low: Lowering, call: Call) -> View:
    shape = low.out_shape(call)
    x, a, b = (low.view(arg, shape) for arg in call.args[:3])
    product = low.graph.map("mul" if call.name == "addcmul" else "div", a, b)
    return low.graph.map("add", x, low.graph.map("mul", product, call.kwargs.get("value", 1)))


@handles("lerp")
def _lerp(low: Lowering, call: Call) -> View:
    shape = low.out_shape(call)
    a, b, weight = (low.view(arg, shape) for arg in call.args[:3])
    return low.graph.map("add", a, low.graph.map("mul", weight, low.graph.map("sub", b, a)))


def _softplus(g: Graph, x: View, call: Call) -> View:
    beta, threshold = argument(call, 1, "beta", 1), argument(call, 2, "threshold", 20)
    scaled = g.map("mul", x, beta)
    soft = g.map("mul", g.map("softplus", scaled), 1 / beta)
    return g.map("where", g.map("gt", scaled, threshold), x, soft)


def _leaky_relu(g: Graph, x: View, call: Call) -> View:
    slope = argument(call, 1, "negative_slope", 0.01)
    return g.map("where", g.map("gt", x, 0.0), x, g.map("mul", x, slope))


def _elu(g: Graph, x: View, call: Call) -> View:
    names = ("alpha", "scale", "input_scale")
    alpha, scale, inner = (argument(call, i, name, 1) for i, name in enumerate(names, 1))
    below = g.map("mul", g.map("expm1", g.map("mul", x, inner)), alpha * scale)
    return g.map("where", g.map("gt", x, 0.0), g.map("mul", x, scale), below)


def _gelu(g: Graph, x: View, call: Call) -> View:
    if argument(call, 1, "approximate", "none") == "tanh":
        cubic = g.map("mul", g.map("add", g.map("mul", g.map("square", x), 0.044715), 1.0), x)
        part = g.map("tanh", g.map("mul", cubic, math.sqrt(2 / math.pi)))
    else:
        part = g.map("erf", g.map("mul", x, math.sqrt(0.5)))
    return g.map("mul", g.map("mul", x, 0.5), g.map("add", part, 1.0))


def _hardsigmoid(g: Graph, x: View, _: Call) -> View:
    return g.map("mul", g.map("min", g.map("max", g.map("add", x, 3.0), 0.0), 6.0), 1 / 6)


_ACTIVATIONS: dict[str, Callable[[Graph, View, Call], View]] = {
    "silu": lambda g, x, _: g.map("mul", x, g.map("sigmoid", x)),
    "mish": lambda g, x, _: g.map("mul", x, g.map("tanh", g.map("softplus", x))),
    "log_sigmoid_forward": lambda g, x, _: g.map("neg", g.map("softplus", g.map("neg", x))),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda g, x, call: g.map("mul", x, _hardsigmoid(g, x, call)),
    "softplus": _softplus,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
}


@handles(*_ACTIVATIONS)
def _activation(low: Lowering, call: Call) -> View:
    return _ACTIVATIONS[call.name](low.graph, low.view(call.args[0], low.out_shape(call)), call)


@handles("glu")
def _glu(low: Lowering, call: Call) -> View:
    x, axis = whole(low, call.args[0]), low.axis(argument(call, 1, "dim", -1), low.shape(call.args[0]))
    half = x.shape[axis] // 2
    return low.graph.map("mul", x.slice(axis, 0, half), low.graph.map("sigmoid", x.slice(axis, half, half)))


@handles("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
def _filled(low: Lowering, call: Call) -> View:
    if call.name.endswith("_like"):
        value = call.args[1] if call.name == "full_like" else float(call.name == "ones_like")
    elif "full" in call.name:
        value = call.args[-1] if call.name == "new_full" else call.args[1]
    else:
        value = float("ones" in call.name)
    return low.view(value, low.out_shape(call))


@handles("zero", "fill")
def _fill(low: Lowering, call: Call) -> View:
    return low.view(call.args[1] if call.name == "fill" else 0.0, low.out_shape(call))


@handles("copy")
def _copy(low: Lowering, call: Call) -> View:
    return low.view(call.args[1], low.out_shape(call))


@handles("clone", "_to_copy", "lift_fresh", "alias", "contiguous")
def _same(low: Lowering, call: Call) -> View:
    return whole(low, call.args[0])


@handles("detach")
def _detach(low: Lowering, call: Call) -> View:
    return low.stopped(whole(low, call.args[0]))
