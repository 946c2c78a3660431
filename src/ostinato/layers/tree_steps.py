"""The steps of tree LSTMs, forwards from the leaves and back from the roots, as autograd functions.

All buffers are in the order of levels (`Forest`), leaves apart from inner nodes; `U` are weights on what the
children left. Gates keep their activated values. Backward first turns them into factors on the gradients of h
and c, for all nodes at once, so that little is left to do level by level. A node has one parent: gradients
are written where the node will look for its own, never added up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ostinato.layers.forest import Forest, Slots


class _States(NamedTuple):
    """Rows of `slots`: what each node leaves to its parent."""

    h: Tensor
    c: Tensor


class NaryStep(torch.autograd.Function):
    """All nodes of N-ary trees: `i f_1 … f_N g o` in the columns of gates, weights and biases.

    Inputs: leaf (n_leaves, 3·H), the leaves' preactivations `i g o`; inner (n_inner, (3+N)·H), or one row
    for all alike; U ((3+N)·H, N·H); keep (M, H), factors on the candidates in the order of levels, or None.
    Outputs h, c (M, H) in the caller's order of nodes.
    """

    @staticmethod
    def forward(
        ctx: Any, leaf: Tensor, inner: Tensor, U: Tensor, keep: Tensor | None, forest: Forest, n: int
    ) -> tuple[Tensor, Tensor]:
        """From the leaves to the roots."""
        H, n_leaves = leaf.shape[1] // 3, forest.n_leaves
        n_inner = forest.n_nodes - n_leaves
        slots = forest.child_slots(n)
        left = _empty_states(slots, leaf, H)
        squashed = leaf.new_empty(forest.n_nodes, H)
        leaf = _leaves(leaf.clone(), squashed, left, slots, keep)
        gates = leaf.new_empty(n_inner, U.shape[0])
        h = left.h[: n_inner * n].view(n_inner, n * H)
        c = left.c[: n_inner * n].view(n_inner, n, H)
        transposed = U.t()
        for level in forest.levels:
            rows = slice(level.first, level.last)
            own = gates[rows]
            torch.addmm(inner if inner.shape[0] == 1 else inner[rows], h[rows], transposed, out=own)
            i, f, g, o = own[:, :H], own[:, H : (1 + n) * H], own[:, (1 + n) * H : -H], own[:, -H:]
            own[:, : (1 + n) * H].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            kept = slice(n_leaves + level.first, n_leaves + level.last)
            new = i * g if keep is None else (i * g).mul_(keep[kept])
            for child in range(n):
                new.addcmul_(f[:, child * H : (child + 1) * H], c[rows, child])
            _leave(new, o, squashed[kept], left, slots.of_order[kept])
        ctx.save_for_backward(leaf, gates, U, keep, squashed, *left)
        ctx.forest, ctx.n, ctx.shares_inner = forest, n, inner.shape[0] == 1
        return left.h.index_select(0, slots.of_nodes), left.c.index_select(0, slots.of_nodes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        """From the roots to the leaves, then the weights in one product."""
        leaf, gates, U, keep, squashed, left_h, left_c = ctx.saved_tensors
        forest, n = ctx.forest, ctx.n
        slots, n_leaves, H = forest.child_slots(n), forest.n_leaves, left_h.shape[1]
        n_inner = forest.n_nodes - n_leaves
        i, f, g, o = gates[:, :H], gates[:, H : (1 + n) * H], gates[:, (1 + n) * H : -H], gates[:, -H:]
        c = left_c[: n_inner * n].view(n_inner, n * H)
        # What multiplies dc for i, f_1 … f_N and g, and dh for o, to give the preactivations' gradients.
        factors = torch.empty_like(gates)
        kept = None if keep is None else keep[n_leaves:]
        _candidate_factors(i, g, kept, factors[:, :H], factors[:, (1 + n) * H : -H])
        torch.mul(_slope(f), c, out=factors[:, H : (1 + n) * H])
        torch.mul(_slope(o), squashed[n_leaves:], out=factors[:, -H:])
        to_c = _squash_slope(squashed[n_leaves:]).mul_(o)
        gone = _gradients(slots, left_h)
        back_h, back_c = gone.h[: n_inner * n].view(n_inner, n * H), gone.c[: n_inner * n].view(n_inner, n, H)
        forgets = f.unflatten(1, (n, H))
        d_gates = factors
        d_h, d_c = d_h.index_select(0, forest.order), d_c.index_select(0, forest.order)
        for level in reversed(forest.levels):
            rows, nodes = slice(level.first, level.last), slice(n_leaves + level.first, n_leaves + level.last)
            own_h, own_c = _arrived(d_h, d_c, gone, slots, nodes)
            own_c.addcmul_(own_h, to_c[rows])
            own = d_gates[rows]
            own[:, :-H].unflatten(1, (2 + n, H)).mul_(own_c.unsqueeze(1))
            own[:, -H:].mul_(own_h)
            torch.mul(forgets[rows], own_c.unsqueeze(1), out=back_c[rows])
            torch.mm(own, U, out=back_h[rows])
        d_leaf = _back_to_leaves(leaf, squashed, keep, _arrived(d_h, d_c, gone, slots, slice(0, n_leaves)))
        d_U = d_gates.t() @ left_h[: n_inner * n].view(n_inner, n * H)
        d_inner = d_gates.sum(0, keepdim=True) if ctx.shares_inner else d_gates
        return d_leaf, d_inner, d_U, None, None, None


class ChildSumStep(torch.autograd.Function):
    """All nodes of trees that sum up children: `i g o` in the columns of gates; f apart, one for each child.

    Inputs: leaf (n_leaves, 3·H); inner (n_inner, 3·H) and inner_f (n_inner, H), or one row of each for all
    alike; U (3·H, H) on the sum of the children's h, U_f (H, H) on each child's; keep (M, H) or None.
    Outputs h, c (M, H) in the caller's order of nodes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        leaf: Tensor,
        inner: Tensor,
        inner_f: Tensor,
        U: Tensor,
        U_f: Tensor,
        keep: Tensor | None,
        forest: Forest,
    ) -> tuple[Tensor, Tensor]:
        """From the leaves to the roots."""
        H, n_leaves = leaf.shape[1] // 3, forest.n_leaves
        n_inner, n_edges = forest.n_nodes - n_leaves, forest.n_nodes - forest.n_trees
        slots, parents = forest.edge_slots(), forest.edge_parents
        left = _empty_states(slots, leaf, H)
        squashed = leaf.new_empty(forest.n_nodes, H)
        leaf = _leaves(leaf.clone(), squashed, left, slots, keep)
        gates, forgets = leaf.new_empty(n_inner, 3 * H), leaf.new_empty(n_edges, H)
        sums = leaf.new_zeros(n_inner, H)
        transposed, transposed_f = U.t(), U_f.t()
        shares = inner.shape[0] == 1
        for level in forest.levels:
            rows, edges = slice(level.first, level.last), slice(level.first_edge, level.last_edge)
            above = parents[edges]
            torch.addmm(
                inner_f if shares else inner_f.index_select(0, above),
                left.h[edges],
                transposed_f,
                out=forgets[edges],
            )
            f = forgets[edges].sigmoid_()
            sums.index_add_(0, above, left.h[edges])
            own = torch.addmm(inner if shares else inner[rows], sums[rows], transposed, out=gates[rows])
            i, g, o = own[:, :H].sigmoid_(), own[:, H : 2 * H].tanh_(), own[:, 2 * H :].sigmoid_()
            kept = slice(n_leaves + level.first, n_leaves + level.last)
            new = i * g if keep is None else (i * g).mul_(keep[kept])
            new.index_add_(0, above - level.first, f * left.c[edges])
            _leave(new, o, squashed[kept], left, slots.of_order[kept])
        ctx.save_for_backward(leaf, gates, forgets, sums, U, U_f, keep, squashed, *left)
        ctx.forest, ctx.shares_inner = forest, shares
        return left.h.index_select(0, slots.of_nodes), left.c.index_select(0, slots.of_nodes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        """From the roots to the leaves, then the weights in one product each."""
        leaf, gates, forgets, sums, U, U_f, keep, squashed, left_h, left_c = ctx.saved_tensors
        forest, H = ctx.forest, left_h.shape[1]
        slots, parents = forest.edge_slots(), forest.edge_parents
        n_leaves, n_edges = forest.n_leaves, len(forgets)
        i, g, o = gates.split(H, dim=1)
        factors = torch.empty_like(gates)
        kept = None if keep is None else keep[n_leaves:]
        _candidate_factors(i, g, kept, factors[:, :H], factors[:, H : 2 * H])
        torch.mul(_slope(o), squashed[n_leaves:], out=factors[:, 2 * H :])
        d_gates, d_forgets = factors, _slope(forgets).mul_(left_c[:n_edges])
        to_c = _squash_slope(squashed[n_leaves:]).mul_(o)
        gone = _gradients(slots, left_h)
        d_h, d_c = d_h.index_select(0, forest.order), d_c.index_select(0, forest.order)
        for level in reversed(forest.levels):
            rows, edges = slice(level.first, level.last), slice(level.first_edge, level.last_edge)
            nodes = slice(n_leaves + level.first, n_leaves + level.last)
            own_h, own_c = _arrived(d_h, d_c, gone, slots, nodes)
            own_c.addcmul_(own_h, to_c[rows])
            own = d_gates[rows]
            own[:, : 2 * H].unflatten(1, (2, H)).mul_(own_c.unsqueeze(1))
            own[:, 2 * H :].mul_(own_h)
            above = parents[edges] - level.first
            from_above = own_c.index_select(0, above)
            torch.mul(forgets[edges], from_above, out=gone.c[edges])
            d_forgets[edges].mul_(from_above)
            torch.addmm((own @ U).index_select(0, above), d_forgets[edges], U_f, out=gone.h[edges])
        d_leaf = _back_to_leaves(leaf, squashed, keep, _arrived(d_h, d_c, gone, slots, slice(0, n_leaves)))
        d_U, d_U_f = d_gates.t() @ sums, d_forgets.t() @ left_h[:n_edges]
        if ctx.shares_inner:
            d_inner, d_inner_f = d_gates.sum(0, keepdim=True), d_forgets.sum(0, keepdim=True)
        else:
            d_inner, d_inner_f = d_gates, torch.zeros_like(sums).index_add_(0, parents, d_forgets)
        return d_leaf, d_inner, d_inner_f, d_U, d_U_f, None, None


def _empty_states(slots: Slots, like: Tensor, H: int) -> _States:
    left = _States(like.new_empty(slots.total, H), like.new_empty(slots.total, H))
    if slots.empty is not None:
        for states in left:
            states.index_fill_(0, slots.empty, 0.0)
    return left


def _leaves(leaf: Tensor, squashed: Tensor, left: _States, slots: Slots, keep: Tensor | None) -> Tensor:
    """The leaves' gates from their preactivations, in place."""
    n_leaves, H = leaf.shape[0], leaf.shape[1] // 3
    i, g, o = leaf[:, :H].sigmoid_(), leaf[:, H : 2 * H].tanh_(), leaf[:, 2 * H :].sigmoid_()
    new = i * g if keep is None else (i * g).mul_(keep[:n_leaves])
    _leave(new, o, squashed[:n_leaves], left, slots.of_order[:n_leaves])
    return leaf


def _leave(new: Tensor, o: Tensor, squashed: Tensor, left: _States, rows: Tensor) -> None:
    """Put c = `new` and h = o·tanh(c) where the parents will look."""
    torch.tanh(new, out=squashed)
    left.c.index_copy_(0, rows, new)
    left.h.index_copy_(0, rows, o * squashed)


def _gradients(slots: Slots, left_h: Tensor) -> _States:
    """Buffers for what parents send back; nothing comes to the roots, and none looks at the empty rows."""
    gone = _States(torch.empty_like(left_h), torch.empty_like(left_h))
    n_rows = slots.total - slots.n_roots
    for gradient in gone:
        gradient[n_rows:].zero_()
    return gone


def _arrived(d_h: Tensor, d_c: Tensor, gone: _States, slots: Slots, nodes: slice) -> tuple[Tensor, Tensor]:
    """All of dh and dc for some nodes: from above, and from the outside."""
    rows = slots.of_order[nodes]
    return gone.h.index_select(0, rows).add_(d_h[nodes]), gone.c.index_select(0, rows).add_(d_c[nodes])


def _back_to_leaves(
    leaf: Tensor, squashed: Tensor, keep: Tensor | None, arrived: tuple[Tensor, Tensor]
) -> Tensor:
    """Gradients of the leaves' preactivations `i g o`."""
    n_leaves, H = leaf.shape[0], leaf.shape[1] // 3
    i, g, o = leaf.split(H, dim=1)
    own_h, own_c = arrived
    own_c.addcmul_(own_h, _squash_slope(squashed[:n_leaves]).mul_(o))
    factors = torch.empty_like(leaf)
    _candidate_factors(i, g, None if keep is None else keep[:n_leaves], factors[:, :H], factors[:, H : 2 * H])
    torch.mul(_slope(o), squashed[:n_leaves], out=factors[:, 2 * H :])
    factors[:, : 2 * H].unflatten(1, (2, H)).mul_(own_c.unsqueeze(1))
    factors[:, 2 * H :].mul_(own_h)
    return factors


def _candidate_factors(i: Tensor, g: Tensor, keep: Tensor | None, to_i: Tensor, to_g: Tensor) -> None:
    """What multiplies dc where c = … + i·g·keep."""
    torch.mul(_slope(i), g, out=to_i)
    torch.mul(_squash_slope(g), i, out=to_g)
    if keep is not None:
        to_i.mul_(keep)
        to_g.mul_(keep)


def _slope(s: Tensor) -> Tensor:
    """Of the logistic function, from its value."""
    return s - s * s


def _squash_slope(t: Tensor) -> Tensor:
    """Of tanh, from its value."""
    return (t * t).neg_().add_(1.0)
