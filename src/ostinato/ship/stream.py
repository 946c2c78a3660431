"""`Session`: a recurrent layer fed a tick or a chunk at a time; it keeps packed weights and the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ostinato.errors import InputError, SizeError
from ostinato.kernels import streaming
from ostinato.kernels.streaming import FORMATS, NativeStream
from ostinato.layers.gated import GatedStack
from ostinato.layers.stack import Stack
from ostinato.layers.streaming import parts_of
from ostinato.types import State, fingerprint


class FormatError(NamedTuple):
    """How far a session's outputs are from those with weights as they are.

    Attributes:
        largest: the largest difference.
        relative: the same over the largest output.
        mean: the mean difference.
    """

    largest: float
    relative: float
    mean: float


class Session:
    """Streaming: `push` what has come, and have what comes out; the state stays inside.

    What comes out equals one run of the layer over the whole sequence, however the stream is cut into frames
    and chunks: to the last bit where `path` is `native`, else to rounding. Rows are independent: B streams
    that tick together are one session with `batch_size=B`.

    Weights are taken at creation: later changes of the layer are seen after `refresh()` only. No gradient is
    recorded. A session is for one thread at a time; several sessions of one layer run at once.

    Cost of a push: that of reading the packed weights once for each step, and about 0.1 µs (0.7 µs more where
    it has to make a tensor, that is without `out`). Nothing else is allocated.

    Args:
        layer: any recurrent layer of one direction: `LSTM`, `GRU`, `RNN`, `MinGRU` …, `Recurrent(cell)`.
        batch_size: B, the number of streams.
        state: where to begin; the layer's initial state by default.
        weights: `float32` (as they are, whatever their dtype); or, for plain RNN, LSTM and GRU in float32,
            `bfloat16` (half the bytes) or `int8` (a quarter, one scale for each row of `weight_ih` and
            `weight_hh`). Biases, state and sums stay float32. `error_on` measures what that costs.
        row_ids: one id for each stream, stored by `to_bytes`; their numbers by default.

    Raises:
        InputError: a bidirectional layer, one that would draw random masks, or weights that the layer cannot
            have.
    """

    def __init__(
        self,
        layer: Stack,
        batch_size: int = 1,
        *,
        state: State | None = None,
        weights: str = "float32",
        row_ids: Sequence[str] | None = None,
    ):
        _check(layer, batch_size, weights)
        self.layer, self.batch_size, self.weights = layer, batch_size, weights
        self._like = layer._like().detach()
        self.row_ids = [str(b) for b in range(batch_size)] if row_ids is None else [str(i) for i in row_ids]
        if len(self.row_ids) != batch_size:
            raise SizeError(f"Session: {len(self.row_ids)} row_ids for {batch_size} rows")
        parts, reason = parts_of(layer)
        reason = reason or streaming.obstacle(parts, self._like) or ""
        if weights != FORMATS[0]:
            found = reason or streaming.format_obstacle(parts, self._like, weights)
            if found:
                raise InputError(f"Session: weights={weights!r}: {found}; use weights='float32'")
        self._native = None if reason else NativeStream(parts, batch_size, self._like, weights)
        # None of `_push` means: not a case for the quick way.
        self._push = _never if self._native is None else self._native.push
        self._state = layer.initial_state(batch_size, training=False)
        self._path, self._reason = ("layer" if reason else "native"), reason
        self.state = self._state if state is None else state

    @property
    def path(self) -> str:
        """`native`; or `layer`, which is called at every push."""
        return self._path

    @property
    def reason(self) -> str:
        """Why the path is not `native`; '' where it is."""
        return self._reason

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are kept, padding included."""
        if self._native is not None:
            return self._native.packed_bytes
        return sum(value.numel() * value.element_size() for value in self.layer.parameters())

    def __repr__(self) -> str:
        said = f"{self._path}: {self._reason}" if self._reason else self._path
        kind = type(self.layer).__name__
        return f"Session({kind}, batch_size={self.batch_size}, weights={self.weights}, {said})"

    # ------------------------------------------------------------------------------------------ push

    def push(self, x: Any, out: Any = None) -> Any:
        """Take a frame (B, D), or a chunk (B, T, D); give y (B, P), or (B, T, P).

        Args:
            x: a tensor, or a NumPy array, and then y is one too.
            out: a contiguous tensor or array that takes y, which saves making one; may not overlap x.

        Raises:
            SizeError: a shape, dtype or device that does not fit.
            InputError: `out` overlaps x.
        """
        y = self._push(x, out)
        return self._push_any(x, out) if y is None else y

    def _push_any(self, x: Any, out: Any) -> Any:
        """`push` where the quick way does not know x or out."""
        if isinstance(x, np.ndarray):
            return self._push_array(x, out)
        x = self._checked("x", x, self.layer.input_size)
        T = x.shape[1] if x.dim() == 3 else None
        shape = (*x.shape[:-1], self.layer.output_size)
        if out is None:
            y = self._like.new_empty(shape)
        else:
            y = self._checked("out", out, self.layer.output_size)
            if y.shape != shape or not y.is_contiguous():
                raise SizeError(
                    f"Session.push: out has shape {tuple(y.shape)} and strides {y.stride()}, expected a "
                    f"contiguous tensor {tuple(shape)}"
                )
            if _overlap(x, y):
                raise InputError("Session.push: out shares memory with x; give it memory of its own")
        chunk, y_chunk = (x.unsqueeze(1), y.unsqueeze(1)) if T is None else (x, y)
        if chunk.shape[1] == 0:
            return y
        if self._native is not None:
            self._native.push_checked(chunk.detach(), y_chunk.detach())
        else:
            self._run_layer(chunk, y_chunk)
        return y if out is None else out

    def _push_array(self, x: np.ndarray, out: Any) -> Any:
        y = out
        if out is None:
            y = np.empty((*x.shape[:-1], self.layer.output_size), x.dtype)
            if self._push(x, y) is not None:
                return y
        self._push_any(_tensor_of("x", x), _tensor_of("out", y))
        return y

    def _run_layer(self, x: Tensor, y: Tensor) -> None:
        run = self.layer.run_contract if isinstance(self.layer, GatedStack) else self.layer
        with torch.no_grad():
            made, self._state = run(x, self._state)
            y.copy_(made)

    def _checked(self, name: str, x: object, width: int) -> Tensor:
        axes, like = f"(B, {width}) or (B, T, {width})", self._like
        if not isinstance(x, Tensor):
            raise SizeError(
                f"Session.push: {name} is a {type(x).__name__}, expected a tensor or array {axes}"
            )
        if x.dim() not in (2, 3) or x.shape[0] != self.batch_size or x.shape[-1] != width:
            raise SizeError(
                f"Session.push: {name} has shape {tuple(x.shape)}, expected {axes} with B={self.batch_size}"
            )
        if x.dtype != like.dtype or x.device != like.device:
            raise SizeError(
                f"Session.push: {name} is {x.dtype} on {x.device}, expected {like.dtype} on {like.device}; "
                "convert it"
            )
        return x

    # ----------------------------------------------------------------------------------------- state

    @property
    def state(self) -> State:
        """A copy of the state after the last push, as the layer takes and returns it; may be set."""
        if self._native is None:
            return self._state
        return self.layer._stack_leaves([[leaves] for leaves in self._native.read_state()])

    @state.setter
    def state(self, state: State) -> None:
        rows = self.layer._unstack_leaves(state, self.batch_size, self._like)
        if self._native is None:
            self._state = state.detach()
        else:
            self._native.write_state([directions[0] for directions in rows])

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Begin again from the layer's initial state: all streams, or those with these numbers.

        Raises:
            InputError: a number outside 0 … B-1.
        """
        numbers = list(range(self.batch_size)) if rows is None else [int(row) for row in rows]
        if any(not 0 <= row < self.batch_size for row in numbers):
            raise InputError(
                f"Session.reset: rows {numbers}, expected numbers from 0 to {self.batch_size - 1}"
            )
        with torch.no_grad():
            fresh = self.layer.initial_state(self.batch_size, training=False)
        if self._native is None:
            keep = torch.ones(self.batch_size, dtype=torch.bool, device=self._like.device)
            keep[numbers] = False
            self._state = _merged(self._state, fresh, keep)
            return
        leaves = [each[0] for each in self.layer._unstack_leaves(fresh, self.batch_size, self._like)]
        for row in numbers:
            self._native.write_state(
                [{name: leaf[row : row + 1] for name, leaf in layer.items()} for layer in leaves], row
            )

    def select(self, rows: Sequence[int]) -> Session:
        """A new session with these streams, in this order: drop some, or take some twice."""
        if not all(0 <= row < self.batch_size for row in rows) or not len(rows):
            raise InputError(
                f"Session.select: rows {list(rows)}, expected numbers from 0 to {self.batch_size - 1}"
            )
        state = self.state.select(torch.as_tensor(rows, dtype=torch.long, device=self._like.device))
        ids = [self.row_ids[row] for row in rows]
        return Session(self.layer, len(ids), state=state, weights=self.weights, row_ids=ids)

    def refresh(self) -> None:
        """Take the layer's weights anew; the state stays."""
        if self._native is not None:
            self._native.pack(parts_of(self.layer)[0])

    # --------------------------------------------------------------------------------------- storage

    def to_bytes(self) -> bytes:
        """The state with the layer's fingerprint and the ids of the rows, as `State.to_bytes`; no weights."""
        return self.state.to_bytes(self.layer, self.row_ids)

    @classmethod
    def from_bytes(cls, data: bytes, layer: Stack, *, weights: str = "float32") -> Session:
        """A session that goes on where the one that wrote `data` was.

        Raises:
            InputError: not a state, a newer format, or the state of a layer with other weights.
        """
        state = State.from_bytes(data, fingerprint(layer)).to(layer._like().device)
        return cls(layer, state.batch_size, state=state, weights=weights, row_ids=State.row_ids(data))

    # ---------------------------------------------------------------------------------------- formats

    def error_on(self, x: Tensor) -> FormatError:
        """What the format of the weights costs on typical data x (B, T, D), from the initial state on.

        Two sessions run over x, one with these weights and one with weights as they are; this one stays as it
        is. Errors add up over time, so give stretches as long as those to come.
        """
        x = self._checked("x", x, self.layer.input_size)
        mine, exact = (
            Session(self.layer, self.batch_size, weights=w).push(x).double()
            for w in (self.weights, FORMATS[0])
        )
        gap = (mine - exact).abs()
        if not gap.numel():
            return FormatError(0.0, 0.0, 0.0)
        largest = float(gap.max())
        return FormatError(largest, largest / max(float(exact.abs().max()), 1e-30), float(gap.mean()))


def _check(layer: object, batch_size: object, weights: str) -> None:
    if not isinstance(layer, Stack):
        raise InputError(
            f"Session: layer is a {type(layer).__name__}, expected a recurrent layer; wrap a cell in "
            "Recurrent(cell)"
        )
    name = type(layer).__name__
    if layer.bidirectional:
        raise InputError(f"Session: a bidirectional {name} needs the whole sequence; stream one direction")
    if layer.takes_dt:
        raise InputError(
            f"Session: the cell of this {name} needs dt at every step; call layer.step(x, state, dt=dt)"
        )
    if layer.training and layer._draws_masks:
        raise InputError(
            f"Session: this {name} would draw random masks in training mode; call layer.eval() first"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"Session: batch_size={batch_size!r}, expected an integer of at least 1")
    if weights not in FORMATS:
        raise InputError(f"Session: weights: unknown name {weights!r}; known: {', '.join(FORMATS)}")


def _never(x: Any, out: Any = None) -> None:
    """In place of the quick way."""


def _tensor_of(name: str, array: object) -> Tensor:
    if isinstance(array, Tensor):
        raise SizeError(f"Session.push: {name} is a tensor and x is an array; give both as one of them")
    if not isinstance(array, np.ndarray):
        raise SizeError(f"Session.push: {name} is a {type(array).__name__}, expected an array")
    if name == "x" and (not array.flags.writeable or any(stride < 0 for stride in array.strides)):
        # PyTorch has no form for either.
        array = array.copy()
    if not array.flags.writeable:
        raise SizeError(f"Session.push: {name} is read-only; give an array that can be written")
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise SizeError(f"Session.push: {name} ({array.dtype}, strides {array.strides}): {error}") from error


def _overlap(x: Tensor, y: Tensor) -> bool:
    def ends(t: Tensor) -> tuple[int, int]:
        reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size()

    if not (x.numel() and y.numel()):
        return False
    (x_begin, x_end), (y_begin, y_end) = ends(x), ends(y)
    return x_begin < y_end and y_begin < x_end


def _merged(state: State, fresh: State, keep: Tensor) -> State:
    """Rows of `state` where `keep` is set, else of `fresh`."""
    leaves: dict[str, Tensor | State] = {}
    for name, leaf in state.items():
        other = fresh[name]
        if isinstance(leaf, State):
            assert isinstance(other, State)
            leaves[name] = _merged(leaf, other, keep)
        else:
            assert isinstance(other, Tensor)
            leaves[name] = torch.where(keep.view(-1, *[1] * (leaf.dim() - 1)), leaf, other)
    return State(leaves)
