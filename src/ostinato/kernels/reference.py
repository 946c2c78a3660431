"""What each cell *is*: one row of `CELLS` and one readable step function per cell.

Everything faster must equal this file. `exact_product` multiplies so that every output element has one
order of summation, whatever the batch, the stretch or the number of threads; with pointwise functions
that treat every element alike, outputs and states are bitwise independent of B, T, chunking and order.
Given `torch.nn.functional.linear` as the product, the same equations are the path `torch steps`.

Times are the first axis here: xs (T, B, D), masks (T, B).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.cell_options import CellOptions as CellOptions  # noqa: PLC0414 - one vocabulary

Leaves = dict[str, Tensor]
Product = Callable[[Tensor, Tensor], Tensor]


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, D) times weight (G, D) transposed, (B, G): each element summed along D in one fixed order.

    A matrix product's kernel is chosen by the number of rows, and with it the order of summation; a sum along
    the contiguous last axis is not. Costs B·G·D of memory traffic: about ten times the matrix product.
    """
    return (x.unsqueeze(-2) * weight).sum(-1)


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function by way of tanh.

    `torch.sigmoid` rounds differently in the vectorised body of a tensor and in its tail, so a value would
    depend on its neighbours; tanh does not, and this form has no overflow in any of its derivatives.
    """
    return 0.5 * torch.tanh(0.5 * x) + 0.5


class Noise(NamedTuple):
    """Random masks drawn beforehand, (T, B, ·) or (1, B, ·) where they do not change with time.

    Attributes:
        recurrent: multiplies h on its way into the recurrent product; None for none.
        zoneout: leaf -> True where the old value stays.
    """

    recurrent: Tensor | None = None
    zoneout: Mapping[str, Tensor] = {}

    def at(self, t: int) -> Noise:
        """The masks of step t, (B, ·)."""
        recurrent = None if self.recurrent is None else self.recurrent[min(t, len(self.recurrent) - 1)]
        return Noise(recurrent, {name: mask[t] for name, mask in self.zoneout.items()})


class Weights(NamedTuple):
    """Parameters of one cell under their names without the layer's suffix, and how to multiply by them."""

    tensors: Mapping[str, Tensor]
    product: Product

    def input_part(self, x: Tensor, options: CellOptions) -> Tensor:
        """W_ih x + b_ih, normalised if asked for: what does not depend on the state, (…, G·H)."""
        return self._affine(x, self.tensors["weight_ih"], "ih", options)

    def recurrent_part(self, h: Tensor, options: CellOptions, rows: slice = slice(None)) -> Tensor:
        """W_hh h + b_hh, normalised if asked for; `rows` takes some of the gates only."""
        return self._affine(h, self.tensors["weight_hh"][rows], "hh", options, rows)

    def _affine(
        self, x: Tensor, weight: Tensor, kind: str, options: CellOptions, rows: slice = slice(None)
    ) -> Tensor:
        result = self.product(x, weight)
        if options.norm:
            scale = self.tensors[f"norm_{kind}.weight"][rows]
            result = F.layer_norm(result, result.shape[-1:], scale)
        bias = self.tensors.get(f"bias_{kind}")
        return result if bias is None else result + bias[rows]


def rnn_step(a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise) -> Leaves:
    """h' = act(a + W_hh h + b_hh), act tanh or relu (Elman 1990)."""
    act = torch.tanh if o.nonlinearity == "tanh" else torch.relu
    return {"h": act(a + w.recurrent_part(_dropped(state["h"], noise), o))}


def lstm_step(a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise) -> Leaves:
    """c' = f c + i g, h' = o tanh(c') (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000)."""
    c = state["c"]
    gates = a + w.recurrent_part(_dropped(state["h"], noise), o)
    *a_if, a_g, a_o = gates.chunk(3 if o.coupled_gates else 4, -1)
    if o.peephole:
        a_if = [a_k + p_k * c for a_k, p_k in zip(a_if, w.tensors["peephole"], strict=False)]
    i = sigmoid(a_if[0])
    f = 1 - i if o.coupled_gates else sigmoid(a_if[1])
    new_c = f * c + i * torch.tanh(a_g)
    if o.peephole:
        a_o = a_o + w.tensors["peephole"][-1] * new_c
    seen = new_c
    if o.norm:
        seen = F.layer_norm(new_c, new_c.shape[-1:], w.tensors["norm_c.weight"], w.tensors["norm_c.bias"])
    h = sigmoid(a_o) * torch.tanh(seen)
    if o.projection:
        h = w.product(h, w.tensors["weight_hr"])
    return {"h": h, "c": new_c}


def gru_step(a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise) -> Leaves:
    """h' = (1 - z) n + z h; the reset gate acts after (arXiv:1406.1078v1) or before (v3) the product."""
    h = state["h"]
    dropped = _dropped(h, noise)
    H = h.shape[-1]
    a_r, a_z, a_n = a.chunk(3, -1)
    if o.reset_after:
        u_r, u_z, u_n = w.recurrent_part(dropped, o).chunk(3, -1)
        r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
        n = torch.tanh(a_n + r * u_n)
    else:
        u_r, u_z = w.recurrent_part(dropped, o, slice(0, 2 * H)).chunk(2, -1)
        r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
        n = torch.tanh(a_n + w.recurrent_part(r * dropped, o, slice(2 * H, 3 * H)))
    return {"h": (1 - z) * n + z * h}


def mingru_coefficients(a: Tensor, w: Weights, o: CellOptions) -> tuple[Tensor, Tensor]:
    """1 - z and z n, with z = sigmoid(a_z)."""
    a_z, a_n = a.chunk(2, -1)
    # Two logistic functions rather than one subtraction: 1 - z keeps its relative accuracy where z is near 1.
    return sigmoid(-a_z), sigmoid(a_z) * _candidate(a_n, o)


def minlstm_coefficients(a: Tensor, w: Weights, o: CellOptions) -> tuple[Tensor, Tensor]:
    """f / (i + f) and i n / (i + f), with i = sigmoid(a_i) and f = sigmoid(a_f)."""
    a_i, a_f, a_n = a.chunk(3, -1)
    # sigmoid(log f - log i) is f / (i + f), also where both are too small for a floating point number.
    odds = F.logsigmoid(a_f) - F.logsigmoid(a_i)
    return sigmoid(odds), sigmoid(-odds) * _candidate(a_n, o)


def rglru_coefficients(a: Tensor, w: Weights, o: CellOptions) -> tuple[Tensor, Tensor]:
    """d = sigmoid(decay)^(8 r) and sqrt(1 - d^2) i n, with r = sigmoid(a_r) and i = sigmoid(a_i)."""
    a_r, a_i, a_n = a.chunk(3, -1)
    log_d = 8 * F.logsigmoid(w.tensors["decay"]) * sigmoid(a_r)
    # The square root of nothing has no derivative.
    scale = torch.sqrt((-torch.expm1(2 * log_d)).clamp(min=torch.finfo(a.dtype).tiny))
    return torch.exp(log_d), scale * (sigmoid(a_i) * a_n)


def _candidate(a_n: Tensor, o: CellOptions) -> Tensor:
    if o.candidate == "linear":
        return a_n
    return torch.where(a_n >= 0, a_n + 0.5, sigmoid(a_n))


def mingru_step(a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise) -> Leaves:
    """h' = (1 - z) h + z n; n = g(a_n), g(v) = v + 0.5 for v >= 0 and sigmoid(v) below, or n = a_n."""
    return _advance(state, *mingru_coefficients(a, w, o))


def minlstm_step(a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise) -> Leaves:
    """h' = f / (i + f) h + i / (i + f) n, n as in the minGRU."""
    return _advance(state, *minlstm_coefficients(a, w, o))


def rglru_step(a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise) -> Leaves:
    """h' = d h + sqrt(1 - d^2) i a_n, d = sigmoid(decay)^(8 r)."""
    return _advance(state, *rglru_coefficients(a, w, o))


def _advance(state: Leaves, keep: Tensor, add: Tensor) -> Leaves:
    return {"h": keep * state["h"] + add}


def _dropped(h: Tensor, noise: Noise) -> Tensor:
    return h if noise.recurrent is None else h * noise.recurrent


@dataclass(frozen=True)
class CellSpec:
    """One row of the table of cells.

    Attributes:
        name: as `--cell` takes it.
        gates: G, blocks of H rows in `weight_ih` and `weight_hh`, in torch's order.
        leaves: names of the state's leaves; the first is the output.
        options: fields of `CellOptions` that this cell takes.
        step: its equations.
        source: who published them.
        coefficients: where h' = keep * h + add and neither looks at h: `(keep, add)` from the input part.
        vectors: parameters (H,) beside the weights.
    """

    name: str
    gates: int
    leaves: tuple[str, ...]
    options: frozenset[str]
    step: Callable[[Tensor, Leaves, Weights, CellOptions, Noise], Leaves]
    source: str
    coefficients: Callable[[Tensor, Weights, CellOptions], tuple[Tensor, Tensor]] | None = None
    vectors: tuple[str, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether the next state is linear in the last one, unit by unit; then there is no `weight_hh`."""
        return self.coefficients is not None

    def state_sizes(self, H: int, options: CellOptions) -> dict[str, tuple[int, ...]]:
        """Leaf -> shape without B."""
        return {name: (options.projection or H if name == "h" else H,) for name in self.leaves}

    def parameter_shapes(
        self, D: int, H: int, options: CellOptions, bias: bool
    ) -> dict[str, tuple[int, ...]]:
        """Name without the layer's suffix -> shape; the names and shapes of `torch.nn` come first."""
        rows = (self.gates - options.coupled_gates) * H
        kinds = ("ih",) if self.is_linear else ("ih", "hh")
        widths = {"ih": D, "hh": options.projection or H}
        shapes: dict[str, tuple[int, ...]] = {f"weight_{kind}": (rows, widths[kind]) for kind in kinds}
        shapes |= {name: (H,) for name in self.vectors}
        if bias:
            shapes |= {f"bias_{kind}": (rows,) for kind in kinds}
        if options.projection:
            shapes["weight_hr"] = (options.projection, H)
        if options.peephole:
            shapes["peephole"] = (2 if options.coupled_gates else 3, H)
        if options.norm:
            shapes |= {f"norm_{kind}.weight": (rows,) for kind in kinds}
            if "c" in self.leaves:
                shapes |= {"norm_c.weight": (H,), "norm_c.bias": (H,)}
        return shapes


_LINEAR = frozenset({"norm"})
_ANY = _LINEAR | {"zoneout"}
CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn", 1, ("h",), _ANY | {"nonlinearity"}, rnn_step, "Elman 1990"),
        CellSpec(
            "lstm", 4, ("h", "c"), _ANY | {"peephole", "coupled_gates", "projection"}, lstm_step,
            "Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000",
        ),
        CellSpec("gru", 3, ("h",), _ANY | {"reset_after"}, gru_step, "Cho et al. 2014, arXiv:1406.1078"),
        CellSpec(
            "mingru", 2, ("h",), _LINEAR | {"candidate"}, mingru_step, "Feng et al. 2024, arXiv:2410.01201",
            mingru_coefficients,
        ),
        CellSpec(
            "minlstm", 3, ("h",), _LINEAR | {"candidate"}, minlstm_step,
            "Feng et al. 2024, arXiv:2410.01201", minlstm_coefficients,
        ),
        CellSpec(
            "rglru", 3, ("h",), _LINEAR, rglru_step, "De et al. 2024, arXiv:2402.19427", rglru_coefficients,
            ("decay",),
        ),
    )
}  # fmt: skip


def cell_step(
    spec: CellSpec, a: Tensor, state: Leaves, w: Weights, o: CellOptions, noise: Noise
) -> tuple[Tensor, Leaves]:
    """One tick from the input part `a` (B, G·H): the cell's equations, then zoneout; (y, new state)."""
    new = spec.step(a, state, w, o, noise)
    for name, probability in o.zoneout.items():
        if o.training:
            new[name] = torch.where(noise.zoneout[name], state[name], new[name])
        else:
            new[name] = probability * state[name] + (1 - probability) * new[name]
    return new["h"], new


def scan(
    step: Callable[[int, Leaves], tuple[Tensor, Leaves]],
    n_steps: int,
    state: Leaves,
    *,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    initial: Leaves | None = None,
    return_states: bool = False,
) -> tuple[list[Tensor], Leaves, list[Leaves]]:
    """Run `step(t, state) -> (y, state)` over time under the contract's rules; works for any cell.

    Args:
        step: one tick; it sees the state after any reset.
        n_steps: T.
        state: leaves (B, *s).
        mask: (T, B), True at real steps; elsewhere the state is carried and y is 0.
        resets: (T, B); True replaces the row's state by `initial` before the step.
        initial: leaves (B, *s), needed with `resets`.
        return_states: also collect the state after each step.

    Returns:
        The outputs y, the final state, and the states (empty unless asked for).
    """
    ys: list[Tensor] = []
    states: list[Leaves] = []
    for t in range(n_steps):
        if resets is not None and initial is not None:
            state = choose(resets[t], initial, state)
        y, new = step(t, state)
        if mask is not None:
            y = torch.where(_like(mask[t], y), y, torch.zeros((), dtype=y.dtype, device=y.device))
            new = choose(mask[t], new, state)
        state = new
        ys.append(y)
        if return_states:
            states.append(state)
    return ys, state, states


def run(
    spec: CellSpec,
    xs: Tensor,
    state: Leaves,
    tensors: Mapping[str, Tensor],
    options: CellOptions,
    *,
    noise: Noise,
    product: Product = exact_product,
    hoisted: bool = False,
    **rules: object,
) -> tuple[list[Tensor], Leaves, Sequence[Leaves]]:
    """A built-in cell over xs (T, B, D); `rules` go to `scan`. `hoisted` multiplies all inputs beforehand."""
    w = Weights(tensors, product)
    a = w.input_part(xs, options) if hoisted and len(xs) else None
    parts = None if a is None else a.unbind(0)
    # Of a linear recurrence the coefficients need no loop either.
    pairs: list[tuple[Tensor, Tensor]] = []
    if a is not None and spec.coefficients is not None:
        pairs = list(zip(*(part.unbind(0) for part in spec.coefficients(a, w, options)), strict=True))

    def step(t: int, leaves: Leaves) -> tuple[Tensor, Leaves]:
        if pairs:
            new = _advance(leaves, *pairs[t])
            return new["h"], new
        part = w.input_part(xs[t], options) if parts is None else parts[t]
        return cell_step(spec, part, leaves, w, options, noise.at(t))

    return scan(step, len(xs), state, **rules)  # type: ignore[arg-type]


def _like(flags: Tensor, leaf: Tensor) -> Tensor:
    return flags.view(-1, *(1,) * (leaf.dim() - 1))


def choose(flags: Tensor, chosen: Leaves, other: Leaves) -> Leaves:
    """Leaf by leaf, `chosen` in the rows that `flags` (B,) marks and `other` elsewhere."""
    return {name: torch.where(_like(flags, leaf), chosen[name], leaf) for name, leaf in other.items()}
