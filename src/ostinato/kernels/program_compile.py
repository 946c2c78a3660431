"""From a cell's step to the native programs that run it: forward, and backward where it is wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ostinato.kernels import program_pointwise, program_reductions  # noqa: F401 - register their operators
from ostinato.kernels.native_module import MISSING
from ostinato.kernels.native_module import extension as _native
from ostinato.kernels.program_emission import packed_elements
from ostinato.kernels.program_fusion import LEAF, finished, with_started_products
from ostinato.kernels.program_gradient import Gradients, reachable, whole
from ostinato.kernels.program_graph import Node, Unsupported, View
from ostinato.kernels.program_layout import Layout
from ostinato.kernels.program_lowering import Lowering
from ostinato.kernels.program_trace import Call, Ref, Trace, leaves_of

_OPERATORS: dict[str, int] = (
    {} if MISSING else {name: i for i, name in enumerate(_native.program_operators())}
)
_GRADIENT = "d_"


class Program:
    """A layout with the native object that runs it.

    Attributes:
        layout: what goes in and out.
        native: runs it.
        n_packed: elements of the packed weights.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.n_packed = packed_elements(layout.packs)
        self.native = _native.Program(
            layout.instructions.reshape(-1).tolist(),
            layout.segments.reshape(-1).tolist(),
            [int(field) for buffer in layout.buffers for field in buffer],
            [n for _, width, buffer in layout.inputs for n in (width, buffer)],
            [n for _, width, buffer in layout.outputs for n in (width, buffer)],
            [n for pack in layout.packs for n in pack],
            layout.scalars,
            layout.leaf_widths,
            layout.saved_widths,
            list(layout.widths),
        )


@dataclass
class Backward:
    """The backward program of one choice of wanted gradients.

    Attributes:
        program: runs it; its outputs are `x` and `dt` where they are wanted.
        forward: the forward program that keeps what this one needs.
        n_values: how many intermediate values `forward` keeps.
        leaves: names of the leaves whose values before each step this one reads.
    """

    program: Program
    forward: Program
    n_values: int
    leaves: list[str]


@dataclass
class Compiled:
    """A step that runs natively.

    Attributes:
        forward: the program without anything kept for backward.
        leaf_names: of the state, in order.
        dtype: of all values.
    """

    trace: Trace
    lowering: Lowering
    outputs: dict[str, View]
    leaf_names: list[str]
    forward: Program
    dtype: torch.dtype
    _backward: dict[Any, Backward] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace, dtype: torch.dtype) -> Compiled:
        """From a trace.

        Raises:
            Unsupported: an operator or a shape that the interpreter cannot run.
        """
        lowering = Lowering(trace, dtype)
        names = list(lowering.outputs)
        _, views = with_started_products([lowering.outputs[name] for name in names])
        outputs = dict(zip(names, views, strict=True))
        leaf_names = [name[len(LEAF) :] for name in names if name.startswith(LEAF)]
        forward = _forward(outputs, leaf_names, {})
        return cls(trace, lowering, outputs, leaf_names, forward, dtype)

    def in_dtype(self, dtype: torch.dtype) -> Compiled:
        """The same programs over another real type: they hold no numbers that depend on it."""
        return self if dtype == self.dtype else replace(self, dtype=dtype)

    @property
    def n_consts(self) -> int:
        """How many constants the programs take."""
        return len(self.lowering.consts)

    def constants(self, fixed: Mapping[str, Tensor]) -> list[Tensor]:
        """The constants from parameters and buffers: the prelude, replayed with torch."""
        values: dict[int, Tensor] = {number: fixed[name] for name, number in self.trace.fixed.items()}
        values.update(self.trace.literals)
        for call in self.lowering.prelude:
            _replay(call, values)
        return [values[number] for number in self.lowering.consts]

    def consts_from(self, names: Collection[str]) -> list[int]:
        """Numbers of the constants that some parameters have an influence on."""
        touched = {self.trace.fixed[name] for name in names}
        for call in self.lowering.prelude:
            if call.has_gradient and any(ref.number in touched for ref in leaves_of(call)):
                touched.update(number for number in call.outputs if number is not None)
        return [i for i, number in enumerate(self.lowering.consts) if number in touched]

    def backward(self, inputs: Iterable[str], consts: Iterable[int]) -> Backward:
        """The backward program that gives the gradients of some inputs and constants.

        Raises:
            Unsupported: an operator without a gradient here.
        """
        key = (tuple(sorted(inputs)), tuple(sorted(consts)))
        if key not in self._backward:
            self._backward[key] = self._make_backward(*key)
        return self._backward[key]

    def _make_backward(self, inputs: Sequence[str], consts: Sequence[int]) -> Backward:
        # A graph of its own: differentiation adds to it.
        graph, views = with_started_products(list(self.outputs.values()))
        outputs = dict(zip(self.outputs, views, strict=True))
        pairs = [(view, graph.input(_GRADIENT + name, view.shape)) for name, view in outputs.items()]
        leaves = [LEAF + name for name in self.leaf_names]
        found = Gradients(graph, pairs, [*inputs, *leaves], consts)
        zero = graph.scalar(0.0)
        shapes = {name: view.shape for name, view in outputs.items()}
        recurrent = [found.of_inputs[name] or zero.expand(shapes[name]) for name in leaves]
        wanted = [found.of_inputs[name] or zero.expand(self._input_shape(name)) for name in inputs]
        forward_nodes = reachable(views)
        products = {node: f"value {i}" for i, node in enumerate(n for n in forward_nodes if n.op == "matmul")}
        roots, sinks = finished([*wanted, *recurrent], found.sinks, products)
        needed = [
            node
            for node in reachable([*roots, *(view for sink in sinks for view in sink.inputs)])
            if node.op == "input" and node.attr.startswith(("value ", LEAF))
        ]
        values = [node for node in needed if node.attr.startswith("value ")]
        states = [node for node in needed if node.attr.startswith(LEAF)]
        layout = Layout(
            dict(zip(inputs, roots[: len(inputs)], strict=True)),
            dict(zip(self.leaf_names, roots[len(inputs) :], strict=True)),
            sinks,
            _GRADIENT + LEAF,
            {node.attr: node for node in [*values, *states]},
            _OPERATORS,
        )
        by_name = {name: node for node, name in products.items()}
        kept = {node.attr: by_name[node.attr] for node in values}
        forward = _forward(outputs, self.leaf_names, kept)
        return Backward(Program(layout), forward, len(values), [node.attr[len(LEAF) :] for node in states])

    def _input_shape(self, name: str) -> tuple[int, ...]:
        return self.lowering.canonical(self.trace.shapes[self.trace.inputs[name]])


def _forward(outputs: Mapping[str, View], leaf_names: Sequence[str], kept: Mapping[str, Node]) -> Program:
    names = ["y", *(LEAF + name for name in leaf_names)]
    roots, _ = finished([*(outputs[name] for name in names), *map(whole, kept.values())])
    y, *leaves = roots[: len(names)]
    saved = {name: view.node for name, view in zip(kept, roots[len(names) :], strict=True)}
    return Program(Layout({"y": y}, dict(zip(leaf_names, leaves, strict=True)), [], LEAF, saved, _OPERATORS))


def _replay(call: Call, values: dict[int, Tensor]) -> None:
    args, kwargs = tree_map(lambda v: values[v.number] if isinstance(v, Ref) else v, (call.args, call.kwargs))
    if call.function._schema.is_mutable:
        # Its target was made in the trace; here it may be a parameter's own value.
        args = (args[0].clone(), *args[1:])
    with torch.set_grad_enabled(torch.is_grad_enabled() and call.has_gradient):
        result = call.function(*args, **kwargs)
    results = result if isinstance(result, (tuple, list)) else (result,)
    for number, value in zip(call.outputs, results, strict=True):
        if number is not None:
            values[number] = value


__all__ = ["MISSING", "Backward", "Compiled", "Program", "Unsupported"]
