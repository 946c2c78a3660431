"""What a fitted estimator of sequences runs: the network, its scalings, and batches of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.scaling import Scaling
from ostinato.errors import DataError
from ostinato.models.labeller import Labeller
from ostinato.tasks.sequences.targets import Targets
from ostinato.types import Batch

_CELLS = 1 << 24
_MOST_ROWS = 512


@dataclass(frozen=True)
class Part:
    """Sequences in the network's unit, with their targets where these are known.

    Attributes:
        x: (N, T, D), float32 once it is scaled.
        lengths: (N,).
        targets: numbers (N, C) or (N, T, C), class numbers (N,) or (N, T); or None.
    """

    x: NDArray[Any]
    lengths: NDArray[np.int64]
    targets: Targets | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def is_ragged(self) -> bool:
        """Whether some sequence is shorter than T."""
        return bool((self.lengths < self.x.shape[1]).any())

    def select(self, rows: NDArray[np.intp]) -> Part:
        """A copy of some rows."""
        return Part(self.x[rows], self.lengths[rows], self.targets and self.targets.select(rows))

    def batch(self, rows: NDArray[np.intp]) -> Batch:
        """Some rows, cut to the longest of them."""
        lengths = self.lengths[rows]
        T = int(lengths.max())
        batch = Batch(x=torch.from_numpy(self.x[rows, :T]))
        if (lengths < T).any():
            batch["lengths"] = torch.from_numpy(lengths)
        if self.targets is not None:
            y = self.targets.values[rows]
            y = y[:, :T] if self.targets.per_step else y
            y = y.astype(np.float32) if y.dtype.kind == "f" else y
            batch["y"] = torch.from_numpy(y)
        return batch


@dataclass(frozen=True)
class Network:
    """A trained network and the scaling of what it reads."""

    model: Labeller
    inputs: Scaling

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def prepare(self, x: NDArray[np.float64], lengths: NDArray[np.int64]) -> Part:
        """Sequences as `sequences_from` gives them, scaled before they lose their last digits to float32.

        Raises:
            DataError: a value that float32 cannot hold.
        """
        scaled = np.empty(x.shape, np.float32)
        with np.errstate(over="ignore"):
            for first in range(0, len(x), 1024):
                scaled[first : first + 1024] = self.inputs.forward(x[first : first + 1024])
        wrong = ~np.isfinite(scaled)
        if wrong.any():
            row, step, column = map(int, np.argwhere(wrong)[0])
            raise DataError(
                f"X[{row}]: the value {x[row, step, column]:g} at step {step}, column {column} is too large "
                "for float32; divide the column, or leave scale_inputs on"
            )
        return Part(scaled, lengths)

    @torch.no_grad()
    def outputs(self, part: Part) -> NDArray[np.float32]:
        """What the network says: (N, C), or (N, T, C) with zeros after the end of a sequence."""
        model, (N, T, _) = self.model, part.x.shape
        C = model.head.out_features
        said = np.zeros((N, T, C) if model.per_step else (N, C), np.float32)
        for rows in self.chunks(part):
            batch = part.batch(rows).to(self.device)
            values = model(batch.x, lengths=batch.get("lengths"))[0].cpu().numpy()
            if model.per_step:
                said[rows, : values.shape[1]] = values
            else:
                said[rows] = values
        return said

    @torch.no_grad()
    def loss(self, part: Part) -> float:
        """The mean of the training objective over the targets of a part."""
        total, count = 0.0, 0.0
        for rows in self.chunks(part):
            output = self.model.loss(part.batch(rows).to(self.device))
            total, count = total + float(output.total), count + float(output.count)
        return total / count if count else float("nan")

    def chunks(self, part: Part) -> list[NDArray[np.intp]]:
        """Rows that are run together: of similar length, and few enough for the memory."""
        T, D = part.x.shape[1:]
        layers = self.model.encoder.num_layers * self.model.encoder.output_size
        size = int(np.clip(_CELLS // max(T * (D + layers), 1), 1, _MOST_ROWS))
        order = np.argsort(part.lengths, kind="stable")
        return [order[first : first + size] for first in range(0, len(order), size)]
