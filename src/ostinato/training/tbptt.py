"""From batches to stretches of time: backpropagation through time, whole or truncated.

This file detaches the state. Truncated BPTT follows Williams and Peng (1990), "An efficient gradient-based
algorithm for on-line training of recurrent network trajectories": an update every k1 steps from the losses of
those steps, with gradients that reach k2 steps back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ostinato.errors import InputError
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch, LossOutput, map_state

# Per row, not per time step, whatever their width.
_NOT_SEQUENCES = ("lengths", "static")


@runtime_checkable
class Resumable(Protocol):
    """A source of batches that knows its position (DESIGN.md, the joint Source → loop)."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values: the position after the last batch that was yielded."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to that position; the next `iter` continues there."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A source that can yield one process's rows of each global batch."""

    def set_share(self, rank: int, world_size: int) -> None:
        """Yield only the rows of process `rank`."""
        ...


class BatchList:
    """A list of batches as a source; in several processes each takes every `world_size`-th row."""

    def __init__(self, batches: Sequence[Batch]):
        self._batches, self._position, self._share = batches, 0, (0, 1)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        rank, world_size = self._share
        while self._position < len(self._batches):
            batch = self._batches[self._position]
            self._position += 1
            yield batch if world_size == 1 else self._shared(batch, rank, world_size)
        self._position = 0

    def _shared(self, batch: Batch, rank: int, world_size: int) -> Batch:
        other = next((name for name, value in batch.items() if value.shape[:1] != (batch.size,)), None)
        if other is not None:
            raise InputError(
                f"batch {self._position - 1}: {other!r} has shape {tuple(batch[other].shape)} in a batch of "
                f"{batch.size} rows, so that processes cannot share it row by row; pass a RowSource, which "
                "makes each process's batch from its own rows"
            )
        return Batch({name: value[rank::world_size] for name, value in batch.items()})

    def set_share(self, rank: int, world_size: int) -> None:
        """Yield the rows `rank`, `rank + world_size`, …"""
        self._share = (rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """How many batches of this epoch were yielded."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go there."""
        self._position = int(state["position"])


def as_source(source: Any, rank: int, world_size: int, *, needs_position: bool) -> Any:
    """The source itself, or a `BatchList` around a list; shared out among the processes.

    Raises:
        InputError: the source lacks what several processes or checkpoints need.
    """
    if isinstance(source, (list, tuple)):
        source = BatchList(source)
    if not isinstance(source, Iterable):
        raise InputError(f"source must yield batches when iterated, got {type(source).__name__}")
    if needs_position and not isinstance(source, Resumable):
        raise InputError(
            f"source {type(source).__name__} has no state_dict and load_state_dict, which checkpoints "
            "(folder=) "
            "need; add them, pass a list of batches, or leave folder unset"
        )
    if world_size > 1:
        if not isinstance(source, Shared):
            raise InputError(
                f"source {type(source).__name__} has no set_share(rank, world_size), which {world_size} "
                "processes "
                "need; add it, or run one process"
            )
        source.set_share(rank, world_size)
    return source


def stretch(batch: Batch, first: int, last: int) -> Batch:
    """The time steps `first` to `last` (exclusive) of a batch.

    Cut are tensors whose second axis has the length of that of `x`; `lengths` become those within the
    stretch; `static` and everything else stay whole.
    """
    T = batch["x"].shape[1]
    if first == 0 and last >= T:
        return batch
    pieces: dict[str, Tensor] = {}
    for name, value in batch.items():
        if name == "lengths":
            pieces[name] = (value - first).clamp(0, last - first)
        elif name not in _NOT_SEQUENCES and value.ndim >= 2 and value.shape[1] == T:
            pieces[name] = value[:, first:last]
        else:
            pieces[name] = value
    return Batch(pieces)


class Feed:
    """Batches of one epoch as stretches of at most k1 time steps, with a position that can be stored."""

    def __init__(self, source: Any, settings: TrainingSettings):
        self.source, self.k1 = source, settings.tbptt_steps
        self.batches = 0
        self._is_over = False
        self._batch: Batch | None = None
        self._next = 0
        self._iterator: Iterator[Batch] | None = None
        self._before: dict[str, Any] | None = None
        # Batches per epoch, where the source knows.
        self.length = len(source) if isinstance(source, Sized) else None

    def next(self) -> tuple[Batch, bool] | None:
        """The next stretch and whether it begins a batch; None at the end of the epoch."""
        if self._is_over:
            return None
        if self._batch is None:
            if self._iterator is None:
                self._iterator = iter(self.source)
            if self.k1 is not None and isinstance(self.source, Resumable):
                self._before = self.source.state_dict()
            batch = next(self._iterator, None)
            if batch is None:
                # Said again until the next epoch is begun: a last step with fewer stretches ends here too.
                self._iterator, self._is_over = None, True
                return None
            self.batches += 1
            if self.k1 is None or not batch or batch.size == 0:
                return batch, True
            self._batch, self._next = batch, 0
        return self._cut(self._batch, self.k1 or 0)

    def _cut(self, batch: Batch, k1: int) -> tuple[Batch, bool]:
        if "x" not in batch or batch["x"].ndim < 2:
            raise InputError(
                f"tbptt_steps={k1} cuts batches along the second axis of 'x'; this batch has: "
                + ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
            )
        first = self._next
        piece = stretch(batch, first, first + k1)
        self._next = first + k1
        if self._next >= batch["x"].shape[1]:
            self._batch = None
        return piece, first == 0

    def begin_epoch(self) -> None:
        """Go on with the next epoch."""
        self.batches, self._is_over = 0, False

    def state_dict(self) -> dict[str, Any]:
        """The position, inside a batch too: plain JSON values."""
        inside = self._batch is not None
        return {
            "source": self._before if inside else self.source.state_dict(),
            "batches": self.batches - inside,
            "next": self._next if inside else 0,
            "is_over": self._is_over,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a stored position; reads the batch again where it was inside of one."""
        self.source.load_state_dict(state["source"])
        self.batches, self._is_over = state["batches"], state["is_over"]
        self._iterator, self._batch = None, None
        if state["next"]:
            self._iterator, self._before = iter(self.source), state["source"]
            self._batch, self._next = next(self._iterator), state["next"]
            self.batches += 1


class Backpropagation:
    """Computes the loss of a stretch from the carried state, and carries it on, detached.

    Memory is that of one stretch (k1 time steps), or k2 of them where k2 > k1; never that of the stream.
    """

    def __init__(self, settings: TrainingSettings):
        k1, k2 = settings.tbptt_steps, settings.tbptt_backward_steps
        self.carries = settings.carry_state
        self.is_truncated = settings.carry_state or k1 is not None
        self.context_length = k2 // k1 - 1 if k1 and k2 and k2 > k1 else 0
        self.k2 = k2 if k1 and k2 and k2 < k1 else None
        self.state: Any = None
        self.context: list[Batch] = []
        self._rows = 0

    @property
    def carried(self) -> tuple[Any, list[Batch], int]:
        """What a stretch starts from: state, context, rows."""
        return self.state, list(self.context), self._rows

    @carried.setter
    def carried(self, value: tuple[Any, list[Batch], int]) -> None:
        self.state, self.context, self._rows = value[0], list(value[1]), value[2]

    def reset(self) -> None:
        """Forget the carried state: the next stretch starts from the initial one."""
        self.state, self.context = None, []

    def loss(self, model: nn.Module, piece: Batch, begins: bool) -> LossOutput:
        """The model's loss over `piece`; `begins` says that it is the first stretch of its batch."""
        if not self.is_truncated:
            return model.loss(piece)  # type: ignore[operator]
        if begins and not self.carries:
            self.reset()
        if self.state is not None and piece.size != self._rows:
            raise InputError(
                f"carry_state=True: a batch has {piece.size} rows, the one before had {self._rows}; every "
                "batch must hold the next chunk of the same streams"
            )
        self._rows = piece.size
        if self.k2 is not None:
            piece = self._skip(model, piece, self.k2)
        return self._with_context(model, piece)

    def _skip(self, model: nn.Module, piece: Batch, k2: int) -> Batch:
        """Run all but the last k2 steps without a graph; only those are trained."""
        T = piece["x"].shape[1]
        if k2 >= T:
            return piece
        with torch.no_grad():
            self.state = self._carried(model.loss(stretch(piece, 0, T - k2), self.state))  # type: ignore[operator]
        return stretch(piece, T - k2, T)

    def _with_context(self, model: nn.Module, piece: Batch) -> LossOutput:
        """Earlier stretches are run again under the present weights: the graph reaches back through them."""
        state, after_first = self.state, None
        for index, earlier in enumerate(self.context):
            state = model.loss(earlier, state).state  # type: ignore[operator]
            if index == 0:
                after_first = state
        output: LossOutput = model.loss(piece, state)  # type: ignore[operator]
        if self.context_length == 0:
            self.state = self._carried(output)
            return output
        if len(self.context) == self.context_length:
            self.state = map_state(Tensor.detach, after_first)
            del self.context[0]
        self.context.append(piece)
        return output

    def _carried(self, output: LossOutput) -> Any:
        if output.state is None:
            raise InputError(
                "truncated BPTT needs a model whose loss(batch, state) returns the state to carry in "
                "LossOutput.state, got None; return it, or leave tbptt_steps and carry_state unset"
            )
        return map_state(Tensor.detach, output.state)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name and plain values: the carried state and the stretches that the graph reaches back
        to."""
        leaves, spec = pytree.tree_flatten(self.state)
        tensors = {
            f"state/{index:04d}": leaf for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)
        }
        for index, batch in enumerate(self.context):
            tensors |= {f"context/{index:04d}/{name}": value for name, value in batch.items()}
        return tensors, {
            "spec": pytree.treespec_dumps(spec),
            "leaves": len(leaves),
            "rows": self._rows,
            "context": len(self.context),
        }

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._rows = values["rows"]
        leaves = [tensors.get(f"state/{index:04d}") for index in range(values["leaves"])]
        self.state = pytree.tree_unflatten(leaves, pytree.treespec_loads(values["spec"]))
        self.context = [
            Batch(
                (name.removeprefix(prefix), value)
                for name, value in tensors.items()
                if name.startswith(prefix)
            )
            for prefix in (f"context/{index:04d}/" for index in range(values["context"]))
        ]
