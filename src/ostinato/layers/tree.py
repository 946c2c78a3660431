"""`ChildSumTreeLSTM`, `NaryTreeLSTM`: recurrent layers over trees, all nodes of one height at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import SizeError
from ostinato.layers import arguments
from ostinato.layers.dropout import Clock, Kind, MaskKey, check_probability
from ostinato.layers.forest import Forest
from ostinato.layers.initialisation import initialise, read_init
from ostinato.layers.options import check_choice
from ostinato.layers.tree_steps import ChildSumStep, NaryStep

INPUTS = ("leaves", "nodes")


@dataclass(frozen=True, eq=False)
class TreeOutput:
    """What a layer over trees returns. Unpacks as `h, c`.

    Attributes:
        h: (M, H), the output of every node, in the caller's order.
        c: (M, H), every node's cell state.
        roots: (B, H), the outputs of the roots.
    """

    h: Tensor
    c: Tensor
    roots: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.h, self.c))


class TreeLSTM(nn.Module):
    """What both tree LSTMs share: arguments, dropout and the leaves.

    Args:
        input_size: D, width of one node's input.
        hidden_size: H, width of h and c.
        bias: whether there is `bias_ih`.
        inputs: `leaves`: only leaves have inputs; `nodes`: every node has one.
        dropout_in: on the inputs.
        dropout_out: on h as it leaves the layer; what parents see is whole.
        dropout_candidate: on g, the update of the cell state, which leaves the memory itself whole
            (arXiv:1603.05118).
        init: `torch` (uniform within 1/√H), `orthogonal` or a mapping, as for `ot.LSTM`; `forget_bias` goes
            to every forget gate.
        device, dtype: of the parameters.

    Raises:
        InputError: a size below 1, or an unknown value, with the known ones.
    """

    # Blocks of H rows in weight_ih and bias_ih: those before the forget gates, the forget gates, the rest.
    _n_forget = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        inputs: str = "leaves",
        dropout_in: float = 0.0,
        dropout_out: float = 0.0,
        dropout_candidate: float = 0.0,
        init: str | Mapping[str, Any] = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self._name = type(self).__name__
        arguments.check_sizes(self._name, input_size=input_size, hidden_size=hidden_size)
        check_choice(self._name, "inputs", inputs, INPUTS)
        for name, value in (("in", dropout_in), ("out", dropout_out), ("candidate", dropout_candidate)):
            check_probability(f"{self._name}: dropout_{name}", value)
        self.input_size, self.hidden_size, self.bias, self.inputs = input_size, hidden_size, bias, inputs
        self.dropout_in, self.dropout_out, self.dropout_candidate = dropout_in, dropout_out, dropout_candidate
        self._init = read_init(self._name, init, "lstm", bias=bias)
        self.mask_key = MaskKey()
        # Without inputs at inner nodes the forget gates see none.
        n_gates = 3 + self._n_forget
        n_input, H = n_gates if inputs == "nodes" else 3, hidden_size
        self.weight_ih = nn.Parameter(torch.empty(n_input * H, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(
            torch.empty(n_gates * H, self._n_forget * H, device=device, dtype=dtype)
        )
        self.bias_ih: nn.Parameter | None = None
        if bias:
            self.bias_ih = nn.Parameter(torch.empty(n_gates * H, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the option `init` says."""
        H = self.hidden_size
        initialise(dict(self.named_parameters(recurse=False)), self._init, "lstm", H, is_coupled=False)
        forget_bias = self._init.get("forget_bias")
        if forget_bias is not None and self.bias_ih is not None:
            with torch.no_grad():
                self.bias_ih[H : (1 + self._n_forget) * H] = forget_bias

    def extra_repr(self) -> str:
        """Sizes, and the options that are not at their defaults."""
        told = {"inputs": (self.inputs, "leaves"), "bias": (self.bias, True)}
        told |= {f"dropout_{n}": (getattr(self, f"dropout_{n}"), 0.0) for n in ("in", "out", "candidate")}
        changed = [f", {name}={value!r}" for name, (value, usual) in told.items() if value != usual]
        return f"{self.input_size}, {self.hidden_size}" + "".join(changed)

    def forward(self, x: Tensor, forest: Forest) -> TreeOutput:
        """Every node's h and c.

        Args:
            x: (n_leaves, D), rows as `forest.leaves`; with `inputs="nodes"` (M, D), rows as the nodes.
            forest: which trees; on the device of the weights.

        Raises:
            SizeError: another shape, dtype or device.
            InputError: a node has more children than the layer takes.
        """
        where = f"{self._name}.forward"
        x = arguments.check_input(where, x, self.input_size, 2, self.weight_ih)
        n_rows = forest.n_leaves if self.inputs == "leaves" else forest.n_nodes
        if x.shape[0] != n_rows:
            raise SizeError(
                f"{where}: x has {x.shape[0]} rows for {forest.n_leaves} leaves and {forest.n_nodes} nodes; "
                f"inputs={self.inputs!r} takes {n_rows}"
            )
        if forest.device != x.device:
            raise SizeError(f"{where}: the forest is on {forest.device}, x on {x.device}; use forest.to(…)")
        with torch.autocast(x.device.type, enabled=False):
            has_masks = self.training and any((self.dropout_in, self.dropout_out, self.dropout_candidate))
            masks = _Masks(self, forest) if has_masks else None
            H, keep = self.hidden_size, None
            if masks is not None and self.dropout_in:
                nodes = forest.leaves if self.inputs == "leaves" else None
                x = x * masks.factors(Kind.INPUT, x.shape[1], self.dropout_in, nodes)
            if masks is not None and self.dropout_candidate:
                keep = masks.factors(Kind.RECURRENT, H, self.dropout_candidate, forest.order)
            leaf, inner = self._preactivations(x, forest)
            h, c = self._run(leaf, inner, keep, forest)
            if masks is not None and self.dropout_out:
                h = h * masks.factors(Kind.OUTPUT, H, self.dropout_out)
        return TreeOutput(h, c, h.index_select(0, forest.roots))

    def _preactivations(self, x: Tensor, forest: Forest) -> tuple[Tensor, Tensor]:
        """Of the leaves `i g o` (n_leaves, 3·H), of the inner nodes all gates, (n_inner, …) or one row."""
        H, n_forget = self.hidden_size, self._n_forget
        bias = self.weight_ih.new_zeros((3 + n_forget) * H) if self.bias_ih is None else self.bias_ih
        if self.inputs == "leaves":
            return F.linear(x, self.weight_ih, _without_forget(bias, H, n_forget)), bias.unsqueeze(0)
        of_leaves, of_inner = x.index_select(0, forest.leaves), x.index_select(0, forest.inner)
        leaf = F.linear(
            of_leaves, _without_forget(self.weight_ih, H, n_forget), _without_forget(bias, H, n_forget)
        )
        return leaf, F.linear(of_inner, self.weight_ih, bias)

    def _run(self, leaf: Tensor, inner: Tensor, keep: Tensor | None, forest: Forest) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class ChildSumTreeLSTM(TreeLSTM):
    """LSTM over trees that adds up what the children say (Tai et al. 2015, arXiv:1503.00075, §3.1).

        s  = sum of h_k over the children k
        i  = sigmoid(W_i x + b_i + U_i s)
        fk = sigmoid(W_f x + b_f + U_f h_k)      for each child k
        g  = tanh(W_g x + b_g + U_g s)
        o  = sigmoid(W_o x + b_o + U_o s)
        c' = i * g + sum of fk * c_k
        h' = o * tanh(c')

    A node may have any number of children, and their order does not matter. A leaf has none: s = 0. Where
    only leaves have inputs (`inputs="leaves"`), W x is zero at inner nodes. On a chain, where each node has
    one child, this is an LSTM from the leaf to the root.

    Parameters: `weight_ih` (4·H, D) in the order i f g o, or (3·H, D) in the order i g o with
    `inputs="leaves"`; `weight_hh` (4·H, H) and `bias_ih` (4·H) in the order i f g o.
    Cost: 8·H·D flops a node with inputs, 6·H² a node and 2·H² a child; one pass of a few operators for each
    height. Saves 7·H values a node. First derivatives only.

    Args: those of `TreeLSTM`.
    """

    def _run(self, leaf: Tensor, inner: Tensor, keep: Tensor | None, forest: Forest) -> tuple[Tensor, Tensor]:
        H, U = self.hidden_size, self.weight_hh
        others = torch.cat([inner[:, :H], inner[:, 2 * H :]], dim=1)
        h, c = ChildSumStep.apply(
            leaf, others, inner[:, H : 2 * H], _without_forget(U, H, 1), U[H : 2 * H], keep, forest
        )
        return h, c


class NaryTreeLSTM(TreeLSTM):
    """LSTM over trees of at most N ordered children (Tai et al. 2015, arXiv:1503.00075, §3.2).

        i  = sigmoid(W_i x + b_i + sum of U_ij h_j over the children j)
        fk = sigmoid(W_f x + b_fk + sum of U_fkj h_j)      for each child k
        g  = tanh(W_g x + b_g + sum of U_gj h_j)
        o  = sigmoid(W_o x + b_o + sum of U_oj h_j)
        c' = i * g + sum of fk * c_k
        h' = o * tanh(c')

    Each child has its own matrices, and each forget gate sees all children: N × N of them. The paper's b_f is
    one for each child here, and so is W_f. Children are counted from the first; one that is missing counts as
    h = c = 0, so that a node with a single child is a step like any other.

    Parameters: `weight_ih` ((3+N)·H, D) in the order i f_1 … f_N g o, or (3·H, D) in the order i g o with
    `inputs="leaves"`; `weight_hh` ((3+N)·H, N·H), columns by child; `bias_ih` ((3+N)·H).
    Cost: 2·(3+N)·N·H² flops an inner node, 6·H·D a leaf; one pass of a few operators for each height. Saves
    (6+N)·H values a node. First derivatives only.

    Args: those of `TreeLSTM`, and
        max_children: N.
    """

    def __init__(self, input_size: int, hidden_size: int, max_children: int = 2, **options: Any):
        arguments.check_sizes(type(self).__name__, max_children=max_children)
        self._n_forget = self.max_children = max_children
        super().__init__(input_size, hidden_size, **options)

    def extra_repr(self) -> str:
        """Sizes, and the options that are not at their defaults."""
        return f"{super().extra_repr()}, max_children={self.max_children}"

    def _run(self, leaf: Tensor, inner: Tensor, keep: Tensor | None, forest: Forest) -> tuple[Tensor, Tensor]:
        h, c = NaryStep.apply(leaf, inner, self.weight_hh, keep, forest, self.max_children)
        return h, c


class _Masks:
    """Random factors of one call: functions of (key, tree, node's number in its tree, unit)."""

    def __init__(self, layer: TreeLSTM, forest: Forest):
        self.key = layer.mask_key.draw(forest.n_nodes, forest.device)
        self.trees, self.numbers, self.dtype = (
            forest.trees,
            forest.numbers.unsqueeze(1),
            layer.weight_ih.dtype,
        )

    def factors(self, kind: Kind, width: int, probability: float, nodes: Tensor | None = None) -> Tensor:
        """(M, width), or a row for each of `nodes`: 0 with `probability`, else 1 / (1 - probability)."""
        key, row, t = self.key, self.trees, self.numbers
        if nodes is not None:
            key, row, t = key[nodes], row[nodes], t[nodes]
        clock = Clock(key, row, t, torch.zeros_like(t))
        keep = clock.keep(kind, 0, 0, width, probability, is_variational=False).squeeze(1)
        return keep.to(self.dtype) / (1 - probability)


def _without_forget(blocks: Tensor, H: int, n_forget: int) -> Tensor:
    """Rows i g o of i f_1 … f_N g o."""
    return torch.cat([blocks[:H], blocks[(1 + n_forget) * H :]])
