"""Recording one step of a cell as a list of calls of torch operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ostinato.kernels.program_graph import Unsupported

# What a random operator is tagged with.
_RANDOM = torch.Tag.nondeterministic_seeded
_READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "allclose")


@dataclass(frozen=True)
class Ref:
    """A tensor of the trace, by its number."""

    number: int


class Call(NamedTuple):
    """One operator, by its name in torch.ops.aten (in-place ones as the others): tensors are `Ref`s.

    `has_gradient`: gradients were enabled; where they were not, none flows back.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    has_gradient: bool


class Trace(NamedTuple):
    """A recorded step.

    Attributes:
        inputs: name -> number of the tensor, for what changes with time and rows.
        fixed: name -> number, for parameters, buffers and plain tensor attributes.
        literals: number -> tensor, for small tensors that the step makes from Python numbers.
        calls: in order.
        outputs: name -> number, or the name of an input that is passed on.
        shapes, dtypes: of each numbered tensor.
        n_rows: B of the trace, a prime that no size of the cell is a multiple of.
    """

    inputs: dict[str, int]
    fixed: dict[str, int]
    literals: dict[int, Tensor]
    calls: list[Call]
    outputs: dict[str, int]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    n_rows: int


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import torch's compiler, which takes seconds, at the first operator of a trace.
        return False

    def __init__(self) -> None:
        super().__init__()
        self._number: dict[int, int] = {}
        # Held, so that an id stays the tensor's own.
        self.tensors: list[Tensor] = []
        self.storages: dict[int, int] = {}
        self.literals: dict[int, Tensor] = {}
        self.calls: list[Call] = []
        self.n_inputs = 0

    def add(self, tensor: Tensor) -> int:
        number = self._number.get(id(tensor))
        if number is None:
            number = self._number[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            storage = tensor.untyped_storage()._cdata
            self.storages[storage] = self.storages.get(storage, 0) + 1
        return number

    def number(self, tensor: object) -> int | None:
        return self._number.get(id(tensor))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = function._schema.name.partition("::")[2]
        # Inference mode hands composite operators over whole; elsewhere they come in parts already.
        with self:
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if _RANDOM in function.tags:
            raise Unsupported(f"{packet} is random")
        if packet in _READS:
            raise Unsupported(
                f"the step reads a tensor's value ({packet}), so its course depends on the data"
            )
        if packet == "lift_fresh" and self.number(args[0]) is None:
            self.literals[self.add(args[0])] = args[0].clone()
        refs_args, refs_kwargs = tree_map(self._ref, (tuple(args), kwargs))
        if function._schema.is_mutable:
            return self._record_in_place(function, packet, args, kwargs, refs_args, refs_kwargs)
        result = function(*args, **kwargs)
        self._record(packet, function, refs_args, refs_kwargs, result)
        return result

    def _ref(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        number = self.number(value)
        if number is None:
            raise Unsupported(
                f"the step uses a tensor {tuple(value.shape)} that is neither a parameter nor a buffer of "
                "the cell; register it as a buffer"
            )
        return Ref(number)

    def _record(self, packet: str, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        results = result if isinstance(result, (tuple, list)) else (result,)
        numbers = tuple(self.add(value) if isinstance(value, Tensor) else None for value in results)
        self.calls.append(Call(packet, function, args, kwargs, numbers, torch.is_grad_enabled()))

    def _record_in_place(
        self, function: Any, packet: str, args: Any, kwargs: Any, refs_args: Any, refs_kwargs: Any
    ) -> Any:
        target = args[0] if args else None
        number = self.number(target)
        if "out" in kwargs or not packet.endswith("_") or number is None:
            raise Unsupported(f"{packet} writes into a tensor")
        assert isinstance(target, Tensor)
        if number < self.n_inputs:
            raise Unsupported(f"{packet} changes an input, a state or a parameter in place")
        if self.storages[target.untyped_storage()._cdata] > 1:
            raise Unsupported(f"{packet} changes a view in place")
        result = function(*args, **kwargs)
        # From here on the tensor is another value under the same identity.
        self._number[id(target)] = len(self.tensors)
        self.tensors.append(target)
        self.calls.append(
            Call(
                packet[:-1],
                function,
                refs_args,
                refs_kwargs,
                (self._number[id(target)],),
                torch.is_grad_enabled(),
            )
        )
        return result


def record(
    step: Callable[[], tuple[Tensor, Mapping[str, Tensor]]],
    inputs: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    n_rows: int,
) -> Trace:
    """Run `step` once and note what it does.

    Args:
        step: called without arguments; computes from the tensors `inputs` and `fixed` themselves.
        inputs: what differs from row to row, (n_rows, …): x, dt, the state's leaves.
        fixed: parameters, buffers and other tensors of the cell.
        n_rows: B.

    Raises:
        Unsupported: something that cannot be replayed from a list of operators.
    """
    recorder = _Recorder()
    named_inputs = {name: recorder.add(tensor) for name, tensor in inputs.items()}
    named_fixed = {name: recorder.add(tensor) for name, tensor in fixed.items()}
    recorder.n_inputs = len(recorder.tensors)
    with torch.enable_grad(), recorder:
        y, leaves = step()
    outputs = {}
    for name, value in {"y": y, **{f"leaf {name}": leaf for name, leaf in leaves.items()}}.items():
        number = recorder.number(value)
        if number is None:
            raise Unsupported(f"the step returns a tensor {tuple(value.shape)} that it did not compute")
        outputs[name] = number
    return Trace(
        named_inputs, named_fixed, recorder.literals, recorder.calls, outputs,
        [tuple(tensor.shape) for tensor in recorder.tensors], [tensor.dtype for tensor in recorder.tensors],
        n_rows,
    )  # fmt: skip


def leaves_of(call: Call) -> list[Ref]:
    """The tensors among a call's arguments."""
    return [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Ref)]
