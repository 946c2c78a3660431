"""What every floor shares: `Batch`, `State`, `LossOutput`.

The alphabet of the project: B batch, T time, S source time, D input width, H hidden width, G gates,
L layers, V vocabulary, K beams or samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class State(Mapping[str, "Tensor | State"]):
    """What a recurrent layer remembers: named, batch-first leaves; an argument and a result.

    A cell's leaf is (B, *s); a stack's leaf is (B, L, dirs, *s); layers of unequal width or kind nest
    under `layer0`, `layer1`, … Leaves are read as `state["h"]` or `state.h`. A `State` is immutable and a
    registered pytree, so `torch.utils._pytree.tree_map` and `torch.compile` see through it.
    """

    __slots__ = ("_leaves",)

    def __init__(self, leaves: Mapping[str, Tensor | State] | None = None, /, **named: Tensor | State):
        object.__setattr__(self, "_leaves", {**(leaves or {}), **named})

    def __getitem__(self, name: str) -> Tensor | State:
        return self._leaves[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._leaves[name]
        except KeyError:
            known = ", ".join(self._leaves)
            raise AttributeError(f"State has no leaf {name!r}; it has: {known}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a State is immutable; use state.replace(name=value)")

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (dict(self._leaves),)

    def __repr__(self) -> str:
        leaves = ", ".join(
            f"{name}={tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"{name}={leaf!r}"
            for name, leaf in self._leaves.items()
        )
        return f"State({leaves})"

    def replace(self, **leaves: Tensor | State) -> State:
        """A copy with some leaves replaced or added."""
        return State(self._leaves, **leaves)

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Apply `function` to every tensor leaf."""
        return State(
            {
                name: leaf.map(function) if isinstance(leaf, State) else function(leaf)
                for name, leaf in self.items()
            }
        )

    def detach(self) -> State:
        """Cut the graph: what truncated BPTT does between chunks."""
        return self.map(Tensor.detach)

    def select(self, rows: Tensor | slice) -> State:
        """Keep or reorder rows of the batch (an index or boolean tensor over B)."""
        return self.map(lambda leaf: leaf[rows])

    def to(self, *args: Any, **kwargs: Any) -> State:
        """Move every leaf, as `Tensor.to`."""
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    @property
    def batch_size(self) -> int:
        """B, read from the first leaf."""
        leaf = next(iter(self._leaves.values()))
        return leaf.batch_size if isinstance(leaf, State) else leaf.shape[0]


class Batch(dict[str, Tensor]):
    """Named tensors with a common first axis B; the one thing that travels from data to models.

    Names by convention: `x` inputs, `y` targets, `lengths` (B,), `mask` (B, T) True at real steps,
    `resets` (B, T). A registered pytree. `batch.x` reads `batch["x"]`.
    """

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Batch has no tensor {name!r}; it has: {', '.join(self)}") from None

    @property
    def size(self) -> int:
        """B."""
        return next(iter(self.values())).shape[0]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move every tensor, as `Tensor.to`."""
        return Batch({name: value.to(*args, **kwargs) for name, value in self.items()})


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply `function` to every tensor of any registered pytree (a `State`, a tuple of them, None)."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, state)


@dataclass(frozen=True)
class LossOutput:
    """What a model's `loss(batch, state)` returns to the training loop.

    Attributes:
        total: scalar, the *sum* of the loss over all valid targets of the batch.
        count: scalar, how many valid targets that sum covers; the loop divides by the global count.
        state: carried to the next chunk in truncated BPTT; None where nothing is carried.
    """

    total: Tensor
    count: Tensor
    state: Any = None


def _flatten_mapping(mapping: Mapping[str, Any]) -> tuple[list[Any], Any]:
    return list(mapping.values()), list(mapping)


pytree.register_pytree_node(
    State,
    _flatten_mapping,
    lambda values, names: State(dict(zip(names, values, strict=True))),
    serialized_type_name="ostinato.types.State",
    to_dumpable_context=list,
    from_dumpable_context=list,
    flatten_with_keys_fn=lambda state: (
        [(pytree.MappingKey(name), leaf) for name, leaf in state.items()],
        list(state),
    ),
)
pytree.register_pytree_node(
    Batch,
    _flatten_mapping,
    lambda values, names: Batch(zip(names, values, strict=True)),
    serialized_type_name="ostinato.types.Batch",
    to_dumpable_context=list,
    from_dumpable_context=list,
)
