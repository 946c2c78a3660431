"""`MinGRU`, `MinLSTM`, `RGLRU`: layers whose state is linear in the last state, unit by unit.

h' = keep * h + add, and neither coefficient looks at h. All gates of a sequence are therefore one matrix
product, and what is left is a scan (`kernels/scan.py`).
"""

from __future__ import annotations

from ostinato.kernels.reference import CELLS
from ostinato.layers.cells import GatedCell
from ostinato.layers.gated import GatedStack


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
