"""Arguments and results exactly as `torch.nn.RNN`, `LSTM` and `GRU` have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ostinato.errors import InputError, SizeError
from ostinato.types import State

if TYPE_CHECKING:
    from ostinato.layers.gated import GatedStack


def from_torch(module: nn.Module, *, torch_compatible: bool = True, **options: Any) -> GatedStack:
    """An Ostinato layer with the weights of a `torch.nn.RNN`, `LSTM` or `GRU`.

    Args:
        module: the layer to copy; it is left as it is.
        torch_compatible: keep torch's arguments and results (`batch_first`, `(h_n, c_n)`, `PackedSequence`);
            False gives the contract of this package.
        **options: further options of the new layer; those that add parameters start them afresh.

    Raises:
        InputError: another kind of module.
    """
    from ostinato.layers import gated

    kinds = {nn.RNN: gated.RNN, nn.LSTM: gated.LSTM, nn.GRU: gated.GRU}
    if type(module) not in kinds:
        known = ", ".join(f"torch.nn.{kind.__name__}" for kind in kinds)
        raise InputError(f"from_torch: cannot convert a {type(module).__name__}; known: {known}")
    assert isinstance(module, nn.RNNBase)
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    if module.proj_size:
        options["proj_size"] = module.proj_size
    if torch_compatible:
        options |= {"torch_compatible": True, "batch_first": module.batch_first, "dropout": module.dropout}
    elif module.dropout and module.num_layers > 1:
        options["dropout_between"] = module.dropout
    like = next(module.parameters())
    layer = kinds[type(module)](
        module.input_size, module.hidden_size, module.num_layers, module.bias,
        bidirectional=module.bidirectional, device=like.device, dtype=like.dtype, **options,
    )  # fmt: skip
    layer.load_state_dict(
        module.state_dict(), strict=not options.keys() - {"torch_compatible", "batch_first"}
    )
    return layer.train(module.training)


def call(layer: GatedStack, x: Tensor | PackedSequence, hx: Any, **ours: Any) -> tuple[Any, Any]:
    """`forward` of a layer built with `torch_compatible=True`: (output, h_n) or (output, (h_n, c_n)).

    Raises:
        InputError: keywords of the other contract.
        SizeError: an input or a state of a wrong shape.
    """
    unknown = [name for name, value in ours.items() if value is not None and value is not False]
    if unknown:
        raise InputError(
            f"{layer._name}: torch_compatible=True takes (input, hx) only, found {', '.join(unknown)}; "
            "build the layer without it"
        )
    if isinstance(x, PackedSequence):
        return _call_packed(layer, x, hx)
    if x.dim() not in (2, 3):
        raise SizeError(f"{layer._name}: input has shape {tuple(x.shape)}, expected 2 or 3 axes")
    is_batched = x.dim() == 3
    batch = x if is_batched else x.unsqueeze(0)
    if is_batched and not layer.options.batch_first:
        batch = x.transpose(0, 1)
    if not is_batched and hx is not None:
        hx = _map(hx, lambda leaf: leaf.unsqueeze(1))
    y, state = layer.run_contract(batch, _state(layer, hx))
    result = state.to_torch()
    if not is_batched:
        return y[0], _map(result, lambda leaf: leaf.squeeze(1))
    return (y if layer.options.batch_first else y.transpose(0, 1)), result


def _call_packed(layer: GatedStack, x: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
    batch, lengths = pad_packed_sequence(x, batch_first=True)
    y, state = layer.run_contract(batch, _state(layer, hx), lengths=lengths)
    if x.sorted_indices is not None:
        y, lengths = y[x.sorted_indices], lengths[x.sorted_indices.to(lengths.device)]
    packed = pack_padded_sequence(y, lengths, batch_first=True)
    output = PackedSequence(packed.data, packed.batch_sizes, x.sorted_indices, x.unsorted_indices)
    return output, state.to_torch()


def _state(layer: GatedStack, hx: Any) -> State | None:
    if hx is None:
        return None
    state = State.from_torch(hx, layer.num_directions)
    if set(state) != set(layer.spec.leaves):
        raise SizeError(
            f"{layer._name}: hx has {len(state)} tensors, expected {', '.join(layer.spec.leaves)}"
        )
    return state


def _map(hx: Any, function: Any) -> Any:
    return function(hx) if isinstance(hx, Tensor) else tuple(function(leaf) for leaf in hx)
