"""A recurrent encoder with one output per sequence or one per step: regression and classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.layers.options import check_choice
from ostinato.layers.pooling import KINDS, SequencePooling
from ostinato.models.encoder import build_encoder
from ostinato.types import Batch, LossOutput, Output, State


def _each(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    return lambda outputs, y, _: function(outputs, y, reduction="none")


def _cross_entropy(outputs: Tensor, y: Tensor, class_weights: Tensor | None) -> Tensor:
    each = F.cross_entropy(outputs.flatten(0, -2), y.flatten(), class_weights, reduction="none")
    return each.view_as(y)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "squared": _each(F.mse_loss),
    "absolute": _each(F.l1_loss),
    "huber": _each(F.huber_loss),
    "cross_entropy": _cross_entropy,
}
"""Loss of each single target: numbers (…, C) for the first three, class numbers (…) for cross_entropy."""


class Labeller(nn.Module):
    """Recurrent layers, then a dense layer on the pooled sequence or on every step.

    Many-to-one reads the whole sequence before it answers; many-to-many answers at each step, from what it
    has read so far (and, where bidirectional, from what follows); one-to-one is either of them at T = 1.

    Args:
        input_size: D.
        output_size: C, numbers or classes of one answer.
        objective: `squared`, `absolute`, `huber` (at 1) or `cross_entropy`.
        per_step: one answer for each step rather than for each sequence.
        pooling: what represents a sequence: `last`, `mean`, `max`, `sum` or `attention` over its real steps,
            or several side by side, `max_mean` or `mix` (see `SequencePooling`).
        cell: a name in `encoder.CELLS`, or a `Cell` class whose constructor takes (input_size, hidden_size).
        hidden_size: H.
        num_layers: L.
        bidirectional: also read from the end to the start.
        class_weights: (C,) factors on the loss of each class, for cross_entropy.
        **options: of the recurrent layers, as for `ot.LSTM`.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; an option without effect.

    Cost: that of the recurrent layers, and 2·H·C flops an answer.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        objective: str,
        per_step: bool = False,
        pooling: str = "last",
        cell: str | type[Cell] = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        class_weights: Sequence[float] | None = None,
        **options: Any,
    ):
        super().__init__()
        check_sizes("Labeller", output_size=output_size)
        check_choice("Labeller", "objective", objective, OBJECTIVES)
        check_choice("Labeller", "pooling", pooling, KINDS)
        if per_step and pooling != "last":
            raise InputError(
                f"Labeller: pooling={pooling!r} sums up a whole sequence, and there is one answer per step; "
                "leave it at 'last'"
            )
        if class_weights is not None and (objective != "cross_entropy" or len(class_weights) != output_size):
            raise InputError(
                f"Labeller: {len(class_weights)} class_weights for output_size={output_size} and "
                f"objective={objective!r}; expected one for each class of a cross_entropy"
            )
        self.objective, self.per_step, self.pooling = objective, per_step, pooling
        self.encoder = build_encoder(
            cell, input_size, hidden_size, num_layers, bidirectional=bidirectional, **options
        )
        # Most kinds hold no parameters, and a network stored before there was `pool` is read as ever.
        self.pool = SequencePooling(pooling, self.encoder.output_size)
        features = self.encoder.output_size if per_step else self.pool.output_size
        self.head = nn.Linear(features, output_size)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=self.head.weight.dtype)
        # Of use in training only; a stored network answers the same without them.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, x: Tensor, state: State | None = None, *, lengths: Any = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Answers and the state after the last step.

        Args:
            x: (B, T, D).
            state: from an earlier call or `initial_state`; None starts afresh.
            lengths, mask: which steps are real, as for every layer.

        Returns:
            answers (B, C), or (B, T, C) with `per_step`: numbers, or logits of the classes; and the state.
        """
        output = self._encode(x, state, lengths, mask)
        return self._answer(output), output.state

    def step(self, x_t: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One tick: x_t (B, D) -> the answer (B, C) after it, and the state.

        With one answer per sequence it is the answer if the sequence ended here.

        Raises:
            InputError: the encoder is bidirectional, or its pooling needs more than the last step.
        """
        if self.pooling != "last":
            raise InputError(
                f"Labeller.step: pooling={self.pooling!r} needs the whole sequence; call it on (B, T, D)"
            )
        y, after = self.encoder.step(x_t, state)
        return self.head(y), after

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""
        return self.encoder.initial_state(batch_size)

    def loss(self, batch: Batch, state: State | None = None) -> LossOutput:
        """The objective, summed over all real targets.

        The batch holds `x` (B, T, D), perhaps `lengths` (B,) or `mask` (B, T), and `y`: numbers (B, C), or
        class numbers (B,); with `per_step` (B, T, C), or (B, T). What y holds at steps that are not real
        does not matter, NaN included.
        """
        output = self._encode(batch.x, state, batch.get("lengths"), batch.get("mask"))
        answers, y = self._answer(output), batch.y
        self._check_targets(answers, y)
        valid = output.mask if self.per_step else None
        if valid is not None:
            valid = valid if y.dim() == 2 else valid.unsqueeze(2).expand_as(y)
            # Before the loss: 0·NaN in its backward pass would spread.
            y = y.masked_fill(~valid, 0)
        each = OBJECTIVES[self.objective](answers, y, self.class_weights)
        if valid is None:
            return LossOutput(each.sum(), torch.tensor(each.numel()), output.state)
        return LossOutput(each.masked_fill(~valid, 0.0).sum(), valid.sum(), output.state)

    def _encode(self, x: Tensor, state: State | None, lengths: Any, mask: Tensor | None) -> Output:
        return self.encoder(x, state, lengths=lengths, mask=mask)

    def _answer(self, output: Output) -> Tensor:
        features = output.y if self.per_step else self.pool(output)
        return self.head(features)

    def _check_targets(self, answers: Tensor, y: Tensor) -> None:
        expected = answers.shape[:-1] if self.objective == "cross_entropy" else answers.shape
        if y.shape != expected:
            raise InputError(
                f"Labeller.loss: y has shape {tuple(y.shape)}, expected {tuple(expected)} for "
                f"objective={self.objective!r} with per_step={self.per_step}"
            )
