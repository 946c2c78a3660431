"""From a step's graph to the flat program that the native interpreter runs: phases, segments, buffers.

Over a chunk of steps a tile of rows goes through three phases. `before` holds what does not depend on the
recurrent values: it sees all (row, step) pairs of the chunk at once. `during` is what one step hands to the
next: step by step. `after` is the rest, again for all pairs at once. Inside a phase, row-local operators
between two products form a segment, which runs on strips of a few rows, so that its temporaries stay in the
first cache.

native/program.h says what the numbers mean to the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from ostinato.kernels.program_gradient import covers, reachable, whole
from ostinato.kernels.program_graph import Node, Shape, Unsupported, View, collapse, contiguous

# Rows of buffers begin at whole vectors of the widest instruction set.
_ALIGNMENT = 16
BEFORE, DURING, AFTER, OUTER = range(4)


class Scope(IntEnum):
    """Where a buffer lives and how it is addressed; the order is native/program.h's."""

    CONST = 0  # a constant: no rows
    SCALAR = 1  # the pool of numbers
    STRIP = 2  # inside one segment: the rows of a strip
    BLOCK = 3  # inside one phase: the rows of a block
    CHUNK = 4  # between phases: all (row, step) pairs of a chunk
    SAVED = 5  # kept for backward by the caller, all pairs of the run
    STATE = 6  # a recurrent value before the step
    NEXT = 7  # a recurrent value after the step
    SUM = 8  # sums over rows and steps: no rows


class Buffer(NamedTuple):
    """`place`: an offset among the scope's buffers, or the number of the constant, leaf or saved value."""

    scope: Scope
    stride: int
    place: int


class Location(NamedTuple):
    """Where a node's value begins, in a row."""

    buffer: int
    offset: int


class Layout:
    """A program, as arrays.

    Args:
        outputs: name -> what each step gives to the outside.
        leaves: name -> the recurrent value after the step; its value before is the input `prefix + name`.
        sinks: nodes that add up over rows and steps.
        prefix: of the recurrent inputs' names.
        saved: name -> node of the graph whose values the caller keeps (or, as inputs of that name, gives
            back).
        operators: the interpreter's operators by name.

    Attributes:
        instructions: (n, 28) int64.
        segments: (n, 4): phase, first, last + 1, whether it is a product.
        buffers: (n, 3).
        inputs, outputs: (name, width, buffer) of what is copied in and out at every step.
        leaf_widths, saved_widths: by number.
        scalars: the pool of numbers.
        packs: (constant, offset, K, N, k-stride, n-stride, place) of each packed weight.
        sums: (place, window, is_outer, sizes) of each sink.
    """

    def __init__(
        self,
        outputs: Mapping[str, View],
        leaves: Mapping[str, View],
        sinks: Sequence[Node],
        prefix: str,
        saved: Mapping[str, Node],
        operators: Mapping[str, int],
    ):
        self._operators = operators
        self._prefix = prefix
        self._leaf_names = list(leaves)
        self._saved = {node: i for i, node in enumerate(saved.values())}
        self.saved_widths = [node.size for node in saved.values()]
        self.leaf_widths = [view.size for view in leaves.values()]
        self._fresh = 0
        self._outputs = {name: self._root(view, set()) for name, view in outputs.items()}
        taken = {view.node for view in self._outputs.values()} | set(self._saved)
        self._leaves: dict[str, View] = {}
        for name, view in leaves.items():
            root = self._root(view, taken)
            taken.add(root.node)
            self._leaves[name] = root
        self._sinks = list(sinks)
        roots = [*self._outputs.values(), *self._leaves.values()]
        others = [*(v for sink in sinks for v in sink.inputs), *map(whole, saved.values())]
        self._nodes = self._ordered([*roots, *others])
        self._assign_phases()
        if self._copy_leaves_read_later():
            roots = [*self._outputs.values(), *self._leaves.values()]
            self._nodes = self._ordered([*roots, *others])
            self._assign_phases()
        self._schedule()
        self._assign_storage()
        self._emit()

    # Roots --------------------------------------------------------------------------------------------

    def _root(self, view: View, taken: set[Node]) -> View:
        """The view as a node of its own, so that its buffer can be the output itself."""
        node = view.node
        if view.is_whole and node.has_rows and node.op != "input" and node not in taken:
            return view
        self._fresh += 1
        return whole(Node("copy", (view,), view.shape, None, 1 << 30 | self._fresh))

    def _ordered(self, roots: Sequence[View]) -> list[Node]:
        return [node for node in reachable(roots) if node.has_rows]

    # Phases -------------------------------------------------------------------------------------------

    def _assign_phases(self) -> None:
        depends: dict[Node, bool] = {}
        for node in self._nodes:
            is_recurrent = node.op == "input" and node.attr.startswith(self._prefix)
            depends[node] = is_recurrent or any(depends[v.node] for v in node.inputs if v.node.has_rows)
        hands_on = set(reachable(self._leaves.values()))
        self.phase: dict[Node, int] = {}
        users: dict[Node, list[Node]] = {}
        for node in self._nodes:
            for view in node.inputs:
                users.setdefault(view.node, []).append(node)
        leaf_roots = {view.node for view in self._leaves.values()}
        kept = {view.node for view in self._outputs.values()} | set(self._saved)
        for node in reversed(self._nodes):
            if node in leaf_roots:
                self.phase[node] = DURING
            elif not depends[node]:
                # What only `after` needs is computed there, and so need not be kept in between.
                later = [self.phase[user] for user in users.get(node, [])]
                is_late = bool(later) and min(later) == AFTER and node not in kept and node.op != "input"
                self.phase[node] = AFTER if is_late else BEFORE
            else:
                self.phase[node] = DURING if node in hands_on else AFTER

    def _copy_leaves_read_later(self) -> bool:
        """What is handed to the next step lies in that step's place: `after` needs a value of this one."""
        read = {view.node for sink in self._sinks for view in sink.inputs}
        read |= {view.node for node in self._nodes if self.phase[node] == AFTER for view in node.inputs}
        found = [name for name, view in self._leaves.items() if view.node in read]
        for name in found:
            self._leaves[name] = self._root(self._leaves[name], {self._leaves[name].node})
        return bool(found)

    def _schedule(self) -> None:
        """Segments: all row-local operators that are ready, then all products that are ready."""
        self.plan: list[tuple[int, bool, list[Node]]] = []
        done = {node for node in self._nodes if node.op == "input"}
        for phase in (BEFORE, DURING, AFTER):
            left = [node for node in self._nodes if self.phase[node] == phase and node not in done]
            while left:
                for is_product in (False, True):
                    chosen: list[Node] = []
                    for node in left:
                        is_ready = all(v.node in done for v in node.inputs if v.node.has_rows)
                        if is_ready and (node.op == "matmul") == is_product:
                            chosen.append(node)
                            if not is_product:
                                done.add(node)
                    done.update(chosen)
                    left = [node for node in left if node not in done]
                    if is_product:
                        self.plan.extend((phase, True, [node]) for node in chosen)
                    elif chosen:
                        self.plan.append((phase, False, chosen))
        # Sums over rows join the strips of the segment after which their operand is complete.
        self._sums_after: dict[int, list[Node]] = {}
        where = {node: i for i, (_, _, nodes) in enumerate(self.plan) for node in nodes}
        self._segment_of = where
        for sink in self._sinks:
            if sink.op != "rowsum":
                continue
            segment = where.get(sink.inputs[0].node, -1)
            if segment < 0 or self.plan[segment][1]:
                segment = self._own_segment(sink)
            self._sums_after.setdefault(segment, []).append(sink)

    def _own_segment(self, sink: Node) -> int:
        """A last segment for sums of products and of inputs."""
        if not self.plan or self.plan[-1][0] != AFTER or self.plan[-1][1]:
            self.plan.append((AFTER, False, []))
        return len(self.plan) - 1

    # Storage ------------------------------------------------------------------------------------------

    def _assign_storage(self) -> None:
        self._home = {node: node for node in self._nodes}
        self._shift = dict.fromkeys(self._nodes, 0)
        leaf_of = {view.node: i for i, view in enumerate(self._leaves.values())}
        fixed = set(self._saved) | set(leaf_of) | {view.node for view in self._outputs.values()}
        self._written_in_place: dict[Node, set[int]] = {}
        self._cover: dict[Node, tuple[bool, bool]] = {}
        for node in self._nodes:
            if node.op == "assemble":
                self._merge_pieces(node, fixed)
        users, phases = self._uses()
        self.buffers: list[Buffer] = []
        self._buffer_of: dict[Node, int] = {}
        self._tops = dict.fromkeys((Scope.BLOCK, Scope.CHUNK, Scope.SUM), 0)
        outputs = {self._home[view.node] for view in self._outputs.values()}
        self._strips: list[Node] = []
        for node in self._nodes:
            if self._home[node] is not node:
                continue
            if node in self._saved:
                self._add_buffer(node, Scope.SAVED, self._saved[node])
            elif node in leaf_of:
                self._add_buffer(node, Scope.NEXT, leaf_of[node])
            elif node.op == "input":
                self._add_input(node)
            elif node in outputs or len(phases[node]) > 1:
                self._add_buffer(node, Scope.CHUNK)
            elif len(users[node]) > 1 or self.plan[next(iter(users[node]))][1]:
                self._add_buffer(node, Scope.BLOCK)
            else:
                self._strips.append(node)
        self._place_strips()
        self._collect_series()

    def _uses(self) -> tuple[dict[Node, set[int]], dict[Node, set[int]]]:
        """Of each buffer's node: the segments and the phases that write or read it."""
        users: dict[Node, set[int]] = {}
        phases: dict[Node, set[int]] = {}
        for i, (phase, _, nodes) in enumerate(self.plan):
            for node in [*nodes, *self._sums_after.get(i, [])]:
                touched = [v.node for v in node.inputs if v.node.has_rows]
                for one in [*touched, *([node] if node.op != "rowsum" else [])]:
                    users.setdefault(self._home[one], set()).add(i)
                    phases.setdefault(self._home[one], set()).add(phase)
        for sink in self._sinks:
            if sink.op == "outer":
                for view in sink.inputs:
                    phases.setdefault(self._home[view.node], set()).add(OUTER)
        return users, phases

    def _merge_pieces(self, node: Node, fixed: set[Node]) -> None:
        """Pieces of an assemblage that can be computed right in their places."""
        windows = [(o, v.shape, s) for (o, s), v in zip(node.attr, node.inputs, strict=True)]
        is_full, is_disjoint = covers(node.shape, windows)
        self._written_in_place[node] = set()
        self._cover[node] = (is_full, is_disjoint)
        if not (is_full and is_disjoint) or node in fixed or self._home[node] is not node:
            return
        for i, ((offset, strides), view) in enumerate(zip(node.attr, node.inputs, strict=True)):
            piece = view.node
            sizes, kept = collapse(view.shape, [strides, contiguous(view.shape)])
            is_run = len(sizes) == 0 or (len(sizes) == 1 and kept[0] == kept[1])
            if (
                view.is_whole and is_run and piece.op not in ("input", "assemble") and piece.has_rows
                and piece not in fixed and self._home[piece] is piece
            ):  # fmt: skip
                self._home[piece], self._shift[piece] = node, offset
                self._written_in_place[node].add(i)

    def _add_buffer(self, node: Node, scope: Scope, place: int | None = None) -> None:
        stride = -(-max(node.size, 1) // _ALIGNMENT) * _ALIGNMENT
        if place is None:
            place = self._tops[scope]
            self._tops[scope] += stride
        self._buffer_of[node] = len(self.buffers)
        self.buffers.append(Buffer(scope, stride, place))

    def _add_input(self, node: Node) -> None:
        name = str(node.attr)
        if name.startswith(self._prefix):
            self._add_buffer(node, Scope.STATE, self._leaf_names.index(name[len(self._prefix) :]))
        else:
            self._add_buffer(node, Scope.CHUNK)

    def _place_strips(self) -> None:
        """Temporaries of a segment share memory once their last reader is done."""
        first: dict[Node, tuple[int, int]] = {}
        last: dict[Node, tuple[int, int]] = {}
        for i, (_, _, nodes) in enumerate(self.plan):
            for j, node in enumerate([*nodes, *self._sums_after.get(i, [])]):
                for one in [*(v.node for v in node.inputs), *([node] if node.op != "rowsum" else [])]:
                    home = self._home.get(one)
                    if home is not None:
                        first.setdefault(home, (i, j))
                        last[home] = (i, j)
        free: dict[int, list[int]] = {}
        live: list[tuple[tuple[int, int], Node]] = []
        self.strip_width = 0
        for node in sorted(self._strips, key=lambda node: first[node]):
            for end, other in list(live):
                if end < first[node]:
                    live.remove((end, other))
                    buffer = self.buffers[self._buffer_of[other]]
                    free.setdefault(buffer.stride, []).append(buffer.place)
            stride = -(-max(node.size, 1) // _ALIGNMENT) * _ALIGNMENT
            if free.get(stride):
                place = free[stride].pop()
            else:
                place = self.strip_width
                self.strip_width += stride
            self._add_buffer(node, Scope.STRIP, place)
            live.append((last[node], node))

    def _collect_series(self) -> None:
        self.inputs = [
            (str(node.attr), node.size, self._buffer_of[node])
            for node in self._nodes
            if node.op == "input" and self.buffers[self._buffer_of[node]].scope == Scope.CHUNK
        ]
        self.outputs = [(name, view.size, self._buffer_of[view.node]) for name, view in self._outputs.items()]

    # Emission -----------------------------------------------------------------------------------------

    def _emit(self) -> None:
        from ostinato.kernels.program_emission import N_FIELDS, Emitter

        emitter = Emitter(self, self._operators)
        segments = []
        for i, (phase, is_product, nodes) in enumerate(self.plan):
            start = len(emitter.rows)
            for node in nodes:
                emitter.add(node)
            for sink in self._sums_after.get(i, []):
                emitter.add_rowsum(sink)
            segments.append((phase, start, len(emitter.rows), int(is_product)))
        start = len(emitter.rows)
        for sink in self._sinks:
            if sink.op == "outer":
                emitter.add_outer(sink)
        if len(emitter.rows) > start:
            segments.append((OUTER, start, len(emitter.rows), 0))
        self.instructions = np.array(emitter.rows, dtype=np.int64).reshape(-1, N_FIELDS)
        self.segments = np.array(segments, dtype=np.int64).reshape(-1, 4)
        self.scalars, self.packs, self.sums = emitter.scalars, emitter.packs, emitter.sums

    def locate(self, node: Node) -> Location:
        """Where a node with rows is kept."""
        return Location(self._buffer_of[self._home[node]], self._shift[node])

    def home_size(self, node: Node) -> int:
        """Elements of what a node's buffer holds."""
        return self._home[node].size

    def unwritten_pieces(self, node: Node) -> tuple[list[int], bool, bool]:
        """Of an assemblage: the pieces to copy in, whether they cover it, and whether they do not overlap."""
        is_full, is_disjoint = self._cover[node]
        return (
            [i for i in range(len(node.inputs)) if i not in self._written_in_place[node]],
            is_full,
            is_disjoint,
        )

    def add_sum(self, size: int) -> int:
        """A buffer for a sum over rows and steps."""
        stride = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        self.buffers.append(Buffer(Scope.SUM, 0, self._tops[Scope.SUM]))
        self._tops[Scope.SUM] += stride
        return len(self.buffers) - 1

    def add_constant(self, number: int) -> int:
        """A buffer for a constant."""
        self.buffers.append(Buffer(Scope.CONST, 0, number))
        return len(self.buffers) - 1

    def add_scalars(self) -> int:
        """The buffer of the pool of numbers."""
        self.buffers.append(Buffer(Scope.SCALAR, 0, 0))
        return len(self.buffers) - 1

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Elements of a row in the scopes strip, block, chunk, and of all sums."""
        return self.strip_width, self._tops[Scope.BLOCK], self._tops[Scope.CHUNK], self._tops[Scope.SUM]


def fitted(shape: Shape, strides: Sequence[Shape], n_axes: int) -> tuple[list[int], list[list[int]]]:
    """Collapsed axes, with axes of 1 in front up to `n_axes`.

    Raises:
        Unsupported: they do not fit.
    """
    sizes, kept = collapse(shape, strides)
    missing = n_axes - len(sizes)
    if missing < 0:
        raise Unsupported(f"an operator over {len(sizes)} strided axes")
    return [1] * missing + sizes, [[0] * missing + own for own in kept]
