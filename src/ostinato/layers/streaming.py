"""A stack of layers as the native streaming session takes it."""

from __future__ import annotations

from ostinato.kernels.backends import Request
from ostinato.kernels.streaming import Part
from ostinato.layers.cells import GatedCell
from ostinato.layers.gated import GatedStack
from ostinato.layers.recurrent import Recurrent
from ostinato.layers.stack import Stack


def parts_of(layer: Stack) -> tuple[list[Part], str]:
    """The layers of a stack for `ostinato.kernels.streaming.NativeStream`, or why there are none."""
    path = layer._choose(Request())
    if path.path != "native":
        return [], f"the layer itself takes the path {path}"
    parts = []
    for number in range(layer.num_layers):
        if isinstance(layer, GatedStack):
            spec, options, H = layer.spec, layer._cell_options, layer.hidden_size
            tensors = layer._tensors(number, 0)
        else:
            assert isinstance(layer, Recurrent)
            cell = layer._cell(number, 0)
            if not isinstance(cell, GatedCell):
                return [], f"{type(cell).__name__} is known by its step only"
            spec, options, H = cell.spec, cell.cell_options, cell.hidden_size
            tensors = cell.tensors()
        if spec.is_linear:
            return [], f"there is no native session of the cell {spec.name!r}"
        held = list(tensors.values())
        parts.append(Part(spec, options, held, held[0].shape[1], H, layer._residual and number > 0))
    return parts, ""
