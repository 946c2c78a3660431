"""From nodes to the interpreter's instructions."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ostinato.kernels.program_gradient import whole
from ostinato.kernels.program_graph import Node, Shape, View, contiguous

if TYPE_CHECKING:
    from ostinato.kernels.program_layout import Layout

N_OPERANDS = 4
# Operator, number of inputs, whether rows run together, four sizes, an attribute, and five numbers an
# operand.
N_FIELDS = 8 + 5 * N_OPERANDS
_ALONG_AXIS = ("sum", "amax", "amin", "dot", "moments", "cumsum", "normalise_gradient")

_WHOLE_LINES = ("moments", "cumsum", "normalise_gradient")

Operand = tuple[int, int, int, int, int]  # buffer, offset, strides
_NONE: Operand = (-1, 0, 0, 0, 0)


class Emitter:
    """Collects instructions; see `native/program.h` for what each field means.

    Attributes:
        rows: the instructions.
        scalars, packs, sums: as in `Layout`.
    """

    def __init__(self, layout: Layout, operators: Mapping[str, int]):
        self._layout, self._operators = layout, operators
        self.rows: list[list[int]] = []
        self.scalars: list[float] = []
        self.packs: list[tuple[int, ...]] = []
        self.sums: list[tuple[int, Any, bool, tuple[int, ...]]] = []
        self._packed_elements = 0
        self._constants: dict[int, int] = {}
        self._pool: int | None = None

    def add(self, node: Node) -> None:
        """What computes a node."""
        if node.op == "assemble":
            self._add_assemblage(node)
        elif node.op == "matmul":
            self._add_matmul(node)
        elif node.op == "bmm":
            self._add_bmm(node)
        elif node.op in _ALONG_AXIS:
            self._add_along_axis(node)
        else:
            op = "sub_mul" if node.op == "normalise" else node.op
            self._add_map(op, whole(node), node.inputs)

    # Operands -----------------------------------------------------------------------------------------

    def _place(self, view: View) -> tuple[int, int]:
        node = view.node
        if node.op == "scalar":
            if self._pool is None:
                self._pool = self._layout.add_scalars()
            if node.attr not in self.scalars:
                self.scalars.append(node.attr)
            return self._pool, self.scalars.index(node.attr)
        if node.op == "const":
            if node.attr not in self._constants:
                self._constants[node.attr] = self._layout.add_constant(node.attr)
            return self._constants[node.attr], view.offset
        location = self._layout.locate(node)
        return location.buffer, location.offset + view.offset

    def _operand(self, view: View, strides: Sequence[int]) -> Operand:
        buffer, offset = self._place(view)
        first, second, third = strides
        return buffer, offset, first, second, third

    def _row(
        self,
        op: str,
        sizes: Sequence[int],
        operands: Sequence[Operand],
        attr: float = 0.0,
        runs: bool = False,
    ) -> None:
        bits = struct.unpack("<q", struct.pack("<d", attr))[0]
        padded = [*operands, *[_NONE] * (N_OPERANDS - len(operands))]
        four = [*sizes, *[1] * (4 - len(sizes))]
        self.rows.append(
            [
                self._operators[op],
                len(operands) - 1,
                int(runs),
                *four,
                bits,
                *(f for one in padded for f in one),
            ]
        )

    # Operators ----------------------------------------------------------------------------------------

    def _add_map(self, op: str, target: View, inputs: Sequence[View]) -> None:
        from ostinato.kernels.program_layout import fitted

        views = [target, *inputs]
        sizes, strides = fitted(target.shape, [view.strides for view in views], 3)
        operands = [self._operand(view, own) for view, own in zip(views, strides, strict=True)]
        # Rows of one width in buffers of that width: one long run over rows and padding.
        runs = sizes[:2] == [1, 1] and all(
            own[2] == 1 and self._fills_buffer(view) for view, own in zip(views, strides, strict=True)
        )
        self._row(op, sizes, operands, runs=runs)

    def _fills_buffer(self, view: View) -> bool:
        if not view.node.has_rows:
            return False
        location = self._layout.locate(view.node)
        width = self._layout.home_size(view.node)
        return location.offset + view.offset == 0 and view.size == width

    def _add_along_axis(self, node: Node) -> None:
        from ostinato.kernels.program_layout import fitted

        kept = node.inputs[0].shape[:-1]
        out = whole(node)
        out_strides = out.strides[: len(kept)]
        sizes, strides = fitted(kept, [out_strides, *(view.strides[:-1] for view in node.inputs)], 2)
        inner = [1 if node.op in _WHOLE_LINES else 0, *(view.strides[-1] for view in node.inputs)]
        operands = [
            self._operand(view, [*own, last])
            for view, own, last in zip([out, *node.inputs], strides, inner, strict=True)
        ]
        attr = node.attr if node.op == "moments" else 0.0
        self._row(node.op, [*sizes, node.inputs[0].shape[-1]], operands, attr)

    def _add_assemblage(self, node: Node) -> None:
        pieces, is_full, is_disjoint = self._layout.unwritten_pieces(node)
        target = whole(node)
        if not (is_full and is_disjoint):
            zero = View(Node("scalar", (), (), 0.0, 0), 0, node.shape, (0,) * len(node.shape))
            self._add_map("copy", target, [zero])
        for i in pieces:
            (offset, strides), view = node.attr[i], node.inputs[i]
            window = View(node, offset, view.shape, strides)
            if is_disjoint:
                self._add_map("copy", window, [view])
            else:
                self._add_map("add", window, [window, view])

    def _add_matmul(self, node: Node) -> None:
        from ostinato.kernels.program_layout import fitted

        a, weight, *start = node.inputs
        K, N = weight.shape
        outer = node.shape[:-1]
        out = whole(node)
        views = [out, a, *start]
        sizes, strides = fitted(outer, [view.strides[:-1] for view in views], 1)
        lasts = [view.strides[-1] if view.shape[-1] > 1 else 1 for view in views]
        operands = [
            self._operand(view, [own[0], last, 0])
            for view, own, last in zip(views, strides, lasts, strict=True)
        ]
        if not start:
            operands.append(_NONE)
        self._row("matmul", [sizes[0], K, N, len(start)], [*operands, (self._pack(weight), 0, 0, 0, 0)])

    def _pack(self, weight: View) -> int:
        K, N = weight.shape
        k_stride, n_stride = weight.strides
        key = (weight.node.attr, weight.offset, K, N, k_stride, n_stride)
        for i, known in enumerate(self.packs):
            if known[:6] == key:
                return i
        self.packs.append((*key, self._packed_elements))
        self._packed_elements += K * (-(-N // 16) * 16)
        return len(self.packs) - 1

    def _add_bmm(self, node: Node) -> None:
        from ostinato.kernels.program_layout import fitted

        out = whole(node)
        views = [out, *node.inputs]
        batch = node.shape[:-2]
        wide = [
            view.expand((*batch, *view.shape[-2:])) if view.shape[:-2] != batch else view for view in views
        ]
        sizes, strides = fitted(batch, [view.strides[:-2] for view in wide], 1)
        operands = [
            self._operand(view, [own[0], *view.strides[-2:]]) for view, own in zip(wide, strides, strict=True)
        ]
        n, k = node.inputs[0].shape[-2:]
        self._row("bmm", [sizes[0], n, k, node.shape[-1]], operands)

    # Sums over rows -----------------------------------------------------------------------------------

    def add_rowsum(self, sink: Node) -> None:
        """A gradient added up over rows, in its own contiguous buffer."""
        from ostinato.kernels.program_layout import fitted

        view = sink.inputs[0]
        buffer = self._layout.add_sum(view.size)
        sizes, (to, own) = fitted(view.shape, [contiguous(view.shape), view.strides], 3)
        self._row("rowsum", sizes, [(buffer, 0, *to), self._operand(view, own)])  # type: ignore[list-item]
        self.sums.append((self._layout.buffers[buffer].place, sink.attr, False, view.shape))

    def add_outer(self, sink: Node) -> None:
        """left^T gradient, added up over rows: (N, K padded) for a weight (K, N)."""
        from ostinato.kernels.program_layout import fitted

        left, gradient = sink.inputs
        K, N = left.shape[-1], gradient.shape[-1]
        padded = -(-K // 16) * 16
        buffer = self._layout.add_sum(N * padded)
        shape: Shape = left.shape[:-1]
        sizes, strides = fitted(shape, [left.strides[:-1], gradient.strides[:-1]], 1)
        operands = [
            (buffer, 0, padded, 1, 0),
            self._operand(left, [strides[0][0], 1, 0]),
            self._operand(gradient, [strides[1][0], 1, 0]),
        ]
        self._row("outer", [sizes[0], K, N], operands)
        self.sums.append((self._layout.buffers[buffer].place, sink.attr, True, (N, padded)))


def packed_elements(packs: Sequence[tuple[int, ...]]) -> int:
    """Elements that all packed weights take."""
    return sum(K * (-(-N // 16) * 16) for _, _, K, N, _, _, _ in packs)
