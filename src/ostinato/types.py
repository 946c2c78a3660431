"""What every floor shares: `Batch`, `State`, `Output`, `LossOutput`.

The alphabet of the project: B batch, T time, S source time, D input width, H hidden width, G gates,
L layers, V vocabulary, K beams or samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ostinato.errors import InputError, SizeError

STATE_FORMAT = 1


class State(Mapping[str, "Tensor | State"]):
    """What a recurrent layer remembers: named, batch-first leaves; an argument and a result.

    A cell's leaf is (B, *s); a stack's leaf is (B, L, dirs, *s); layers of unequal width or kind nest
    under `layer0`, `layer1`, … Leaves are read as `state["h"]` or `state.h`. A `State` is immutable and a
    registered pytree, so `torch.utils._pytree.tree_map` and `torch.compile` see through it.
    """

    _leaves: dict[str, Tensor | State]

    def __init__(self, leaves: Mapping[str, Tensor | State] | None = None, /, **named: Tensor | State):
        # Past __setattr__, and not a slot: torch.compile follows instance dictionaries only.
        self.__dict__["_leaves"] = {**(leaves or {}), **named}

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

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

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

    def to_torch(self) -> Any:
        """As `torch.nn` has it: `h_n` (L·dirs, B, H), or the pair `(h_n, c_n)` where there is a cell state.

        Raises:
            InputError: the state nests (layers of unequal width or kind), which `torch.nn` has no form for.
        """
        leaves = [leaf for name, leaf in self.items() if name in ("h", "c") and isinstance(leaf, Tensor)]
        if not leaves or any(leaf.dim() != 4 for leaf in leaves):
            raise InputError(
                f"State.to_torch: expected leaves h (and c) of shape (B, L, dirs, H), found {self}"
            )
        stacked = [leaf.permute(1, 2, 0, 3).flatten(0, 1) for leaf in leaves]
        return stacked[0] if len(stacked) == 1 else tuple(stacked)

    @classmethod
    def from_torch(cls, hx: Tensor | tuple[Tensor, Tensor], num_directions: int = 1) -> State:
        """From `h_n` (L·dirs, B, H) or `(h_n, c_n)`; `num_directions` is 2 for a bidirectional stack."""
        pair = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if any(leaf.dim() != 3 or leaf.shape[0] % num_directions for leaf in pair):
            found = [tuple(leaf.shape) for leaf in pair]
            raise SizeError(
                f"State.from_torch: expected (L·{num_directions}, B, H), found {found}; pass num_directions"
            )
        leaves = [leaf.unflatten(0, (-1, num_directions)).permute(2, 0, 1, 3) for leaf in pair]
        return cls(dict(zip("hc", leaves, strict=False)))

    def to_bytes(self, model: nn.Module | str, row_ids: Sequence[str] | None = None) -> bytes:
        """Safetensors bytes with the format version, the model's fingerprint and the ids of the rows.

        Args:
            model: the module that the state belongs to, or its `fingerprint`.
            row_ids: one id for each of the B rows; by default their numbers, from leaf `row` where it exists.
        """
        from safetensors.torch import save

        if row_ids is None:
            row = self.get("row")
            numbers = row.tolist() if isinstance(row, Tensor) else range(self.batch_size)
            row_ids = [str(number) for number in numbers]
        if len(row_ids) != self.batch_size:
            raise SizeError(f"State.to_bytes: {len(row_ids)} row_ids for {self.batch_size} rows")
        header = {
            "format": STATE_FORMAT,
            "fingerprint": model if isinstance(model, str) else fingerprint(model),
            "row_ids": list(row_ids),
            "leaves": [name for name, _ in _flat_leaves(self)],
        }
        # One metadata key only: safetensors writes several in no fixed order, and bytes should not vary.
        return save(
            {name: leaf.detach().cpu().contiguous().clone() for name, leaf in _flat_leaves(self)},
            metadata={"ostinato_state": json.dumps(header, sort_keys=True)},
        )

    @classmethod
    def from_bytes(cls, data: bytes, model: nn.Module | str) -> State:
        """Read what `to_bytes` wrote; nothing stored is executed.

        Raises:
            InputError: not a state, a newer format, or a state of another model (another fingerprint).
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        header = _state_header(data)
        expected = model if isinstance(model, str) else fingerprint(model)
        if header["fingerprint"] != expected:
            raise InputError(
                f"State.from_bytes: the state belongs to model {str(header['fingerprint'])[:12]}…, expected "
                f"{expected[:12]}…; load the model that wrote it"
            )
        try:
            flat = load(data)
            return _nested_state({name: flat[name] for name in header["leaves"]})
        except (SafetensorError, KeyError) as error:
            raise InputError(f"State.from_bytes: the bytes are damaged or cut short ({error})") from error

    @staticmethod
    def row_ids(data: bytes) -> list[str]:
        """The ids of the rows in what `to_bytes` wrote."""
        return [str(name) for name in _state_header(data)["row_ids"]]


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and values of all parameters and buffers: which model this is."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def _flat_leaves(state: State, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, leaf in state.items():
        if isinstance(leaf, State):
            yield from _flat_leaves(leaf, f"{prefix}{name}/")
        else:
            yield prefix + name, leaf


def _nested_state(flat: Mapping[str, Tensor]) -> State:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf

    def build(branch: dict[str, Any]) -> State:
        return State({name: build(leaf) if isinstance(leaf, dict) else leaf for name, leaf in branch.items()})

    return build(tree)


def _state_header(data: bytes) -> dict[str, Any]:
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["ostinato_state"])
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "State.from_bytes: expected bytes written by State.to_bytes, found others"
        ) from error
    if version > STATE_FORMAT:
        raise InputError(
            f"State.from_bytes: format {version} is newer than {STATE_FORMAT}, the newest known here; upgrade"
        )
    return dict(header)


POOLINGS = ("last", "max", "mean", "sum")


@dataclass(frozen=True, eq=False)
class Output:
    """What a recurrent layer returns. Unpacks as exactly `y, state`.

    Attributes:
        y: (B, T, dirs·H), the forward direction's features first; exactly 0 at masked steps.
        state: after the last step; pass it on to continue.
        states: every leaf of every layer after each step, (B, T, L, dirs, *s); None unless asked for.
        mask: (B, T), True at real steps; None where all are real.
        directions: 1 or 2.
    """

    y: Tensor
    state: State
    states: State | None = None
    mask: Tensor | None = None
    directions: int = 1

    def __iter__(self) -> Iterator[Any]:
        return iter((self.y, self.state))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return (self.y, self.state)[index]

    @property
    def last(self) -> Tensor:
        """(B, dirs·H): forward at the last real step, backward at the first one; zeros for an empty row."""
        B, T, width = self.y.shape
        if T == 0:
            return self.y.new_zeros(B, width)
        forward, *backward = self.y.chunk(self.directions, dim=2)
        if self.mask is None:
            ends = [forward[:, -1], *(half[:, 0] for half in backward)]
            return torch.cat(ends, dim=1)
        # The row's real steps hold increasing numbers, so argmax finds the last of them, and the first.
        steps = torch.arange(1, T + 1, device=self.y.device)
        last = (self.mask * steps).argmax(dim=1)
        first = (self.mask * steps.flip(0)).argmax(dim=1)
        rows = torch.arange(B, device=self.y.device)
        # An empty row reads step 0, which is masked and therefore zero.
        return torch.cat([forward[rows, last], *(half[rows, first] for half in backward)], dim=1)

    def pooled(self, kind: str) -> Tensor:
        """(B, dirs·H), over real steps only: `last`, `max`, `mean` or `sum`; zeros for an empty row."""
        if kind not in POOLINGS:
            raise InputError(f"Output.pooled: unknown kind {kind!r}; known: {', '.join(POOLINGS)}")
        if kind == "last" or self.y.shape[1] == 0:
            return self.last
        if kind == "sum":
            return self.y.sum(dim=1)
        if self.mask is None:
            return self.y.amax(dim=1) if kind == "max" else self.y.mean(dim=1)
        if kind == "mean":
            return self.y.sum(dim=1) / self.mask.sum(dim=1, keepdim=True).clamp(min=1)
        empty = ~self.mask.any(dim=1, keepdim=True)
        highest = self.y.masked_fill(~self.mask.unsqueeze(2), float("-inf")).amax(dim=1)
        return highest.masked_fill(empty, 0.0)


class Batch(dict[str, Tensor]):
    """Named tensors with a common first axis B; the one thing that travels from data to models.

    Names by convention: `x` inputs, `y` targets, `lengths` (B,), `mask` (B, T) True at real steps,
    `resets` (B, T). The first tensor says what B is: beside the rows there may be tables that they point
    into, such as the spellings of a batch's words. A registered pytree. `batch.x` reads `batch["x"]`.
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


@runtime_checkable
class TakesMaskKey(Protocol):
    """A module whose random masks are a function of (seed, optimizer step, …), counter-based.

    The training loop calls `set_mask_key` once before each optimizer step, on every such submodule.
    """

    def set_mask_key(self, seed: int, step: int) -> None:
        """Use the masks of optimizer step `step` (counted from 0) under `seed` from now on."""
        ...


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
pytree.register_pytree_node(
    Output,
    lambda output: ([output.y, output.state, output.states, output.mask], output.directions),
    lambda parts, directions: Output(*[*parts, directions]),
    serialized_type_name="ostinato.types.Output",
    to_dumpable_context=int,
    from_dumpable_context=int,
)
# Exported programs store their example inputs, and torch.load refuses classes that it was not told of.
torch.serialization.add_safe_globals([State, Batch])
