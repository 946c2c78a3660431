"""`MinGRU`, `MinLSTM`, `RGLRU`: layers whose state is linear in the last state, unit by unit.

h' = keep * h + add, and neither coefficient looks at h. All gates of a sequence are therefore one matrix
product, and what is left is a scan (`kernels/scan.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.kernels import ops
from ostinato.kernels.reference import CELLS
from ostinato.layers import arguments
from ostinato.layers.cells import GatedCell
from ostinato.layers.gated import GatedStack


def linear_scan(
    keep: Tensor,
    add: Tensor,
    state: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    initial: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h_t = keep_t * h_(t-1) + add_t, unit by unit: the diagonal recurrence, for layers of your own.

    One pass over memory, forward and backward; the same bits whatever the batch, the chunks and the threads.
    Costs 2·B·T·H flops, reads 2·B·T·H numbers and writes B·T·H.

    Args:
        keep: (B, T, H), or anything that broadcasts to it, such as (H,) where it does not change: it is not
            copied then.
        add: (B, T, H).
        state: (B, H), h before the first step; zeros by default.
        lengths, mask, resets: as for every layer: at masked steps the state is carried and y is 0.
        initial: (B, H), what a reset returns to; zeros by default.
        reverse: from the last step to the first; a reset then acts after its step.

    Returns:
        y (B, T, H), and the state after the last step (B, H).

    Raises:
        InputError: complex numbers, `lengths` together with `mask`, or `initial` without `resets`.
        SizeError: a shape, dtype or device that does not fit.
    """
    where = "linear_scan"
    if not isinstance(add, Tensor) or add.dim() != 3:
        raise SizeError(f"{where}: add is {_described(add)}, expected a tensor (B, T, H)")
    if not add.dtype.is_floating_point:
        raise InputError(f"{where}: add is {add.dtype}, expected real floating point numbers")
    B, T, H = add.shape
    if isinstance(keep, Tensor) and keep.dim() <= len(add.shape):
        sizes = (1,) * (3 - keep.dim()) + keep.shape
        if all(size in (1, whole) for size, whole in zip(sizes, add.shape, strict=True)):
            keep = keep.expand(B, T, H)
    for name, value, shape in (
        ("keep", keep, (B, T, H)),
        ("state", state, (B, H)),
        ("initial", initial, (B, H)),
    ):
        if value is None and name != "keep":
            continue
        found = (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None
        if found != (shape, add.dtype, add.device):
            expected = f"{shape} {add.dtype} on {add.device}, as add"
            raise SizeError(f"{where}: {name} is {_described(value)}, expected {expected}")
    stretch = arguments.make_stretch(
        where, add, lengths=lengths, mask=mask, resets=resets, dt=None, takes_dt=False
    )
    if initial is not None and resets is None:
        raise InputError(f"{where}: initial is what resets return to, and there are no resets; leave it out")
    start = add.new_zeros(B, H) if state is None else state
    if stretch.resets is None:
        initial = None
    elif initial is None:
        initial = add.new_zeros(B, H)
    return ops.run_linear_scan((keep, add), start, stretch, initial=initial, is_reverse=reverse)


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {value.dtype} on {value.device}"


class MinGRU(GatedStack):
    """Minimal gated recurrent unit (arXiv:2410.01201), with the candidate of its log-space form.

        z = sigmoid(W_iz x + b_iz)
        n = g(W_in x + b_in)                g(v) = v + 0.5 for v >= 0, sigmoid(v) below
        h' = (1 - z) * h + z * n

    `candidate="linear"` is the paper's plain form, n = W_in x + b_in. Parameters: `weight_ih_l0` (2·H, D) in
    the order z n, `bias_ih_l0` (2·H). Cost per step, layer and sequence: 4·H·D flops.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        num_layers: L.
        bias: whether there is `bias_ih`.
        bidirectional: also run from the end to the start; y is then (B, T, 2·H).
        device, dtype: of the parameters.
        **options: fields of `ostinato.layers.options.LayerOptions`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["mingru"]


class MinLSTM(GatedStack):
    """Minimal LSTM (arXiv:2410.01201), its gates scaled to a sum of one, with the log-space candidate.

        i = sigmoid(W_ii x + b_ii)
        f = sigmoid(W_if x + b_if)
        n = g(W_in x + b_in)                g as in `MinGRU`, or candidate="linear"
        h' = f / (i + f) * h + i / (i + f) * n

    Parameters: `weight_ih_l0` (3·H, D) in the order i f n, `bias_ih_l0` (3·H). Cost per step, layer and
    sequence: 6·H·D flops.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        num_layers: L.
        bias: whether there is `bias_ih`.
        bidirectional: also run from the end to the start; y is then (B, T, 2·H).
        device, dtype: of the parameters.
        **options: fields of `ostinato.layers.options.LayerOptions`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["minlstm"]


class RGLRU(GatedStack):
    """Real-gated linear recurrent unit, a gated diagonal recurrence (Griffin, arXiv:2402.19427).

        r = sigmoid(W_ir x + b_ir)
        i = sigmoid(W_ii x + b_ii)
        n = W_in x + b_in
        d = sigmoid(decay)^(8 * r)
        h' = d * h + sqrt(1 - d^2) * (i * n)

    0 < d < 1 whatever the parameters: the recurrence is stable, and the state stays at the scale of i * n.
    The linear map in front of the unit (in Griffin a part of the block) is W_in; the gates read x itself.
    Parameters: `weight_ih_l0` (3·H, D) in the order r i n, `bias_ih_l0` (3·H), `decay_l0` (H), which starts
    with sigmoid(decay)^8 uniform in 0.9 … 0.999. Cost per step, layer and sequence: 6·H·D flops.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        num_layers: L.
        bias: whether there is `bias_ih`.
        bidirectional: also run from the end to the start; y is then (B, T, 2·H).
        device, dtype: of the parameters.
        **options: fields of `ostinato.layers.options.LayerOptions`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["rglru"]


class MinGRUCell(GatedCell):
    """One step of a minimal GRU; equations at `MinGRU`.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        bias: whether there is `bias_ih`.
        device, dtype: of the parameters.
        **options: `candidate`, `norm`, `init`, `backend`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["mingru"]


class MinLSTMCell(GatedCell):
    """One step of a minimal LSTM; equations at `MinLSTM`.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        bias: whether there is `bias_ih`.
        device, dtype: of the parameters.
        **options: `candidate`, `norm`, `init`, `backend`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["minlstm"]


class RGLRUCell(GatedCell):
    """One step of a real-gated linear recurrent unit; equations at `RGLRU`.

    Args:
        input_size: D, width of one input vector.
        hidden_size: H, width of the state.
        bias: whether there is `bias_ih`.
        device, dtype: of the parameters.
        **options: `norm`, `init`, `backend`.

    Raises:
        InputError: a size below 1, or an unknown option or value.
    """

    spec = CELLS["rglru"]
