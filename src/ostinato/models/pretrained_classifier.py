"""A class for a text from a language model that has read much before: fine-tuning as ULMFiT does it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.dropout import check_probability
from ostinato.models.class_loss import ClassLoss
from ostinato.models.language import LanguageNetwork
from ostinato.types import Batch, LossOutput, Output

POOLED = ("last", "max", "mean")
MIDDLE = 50


class PretrainedClassifier(nn.Module):
    """A language model's layers, its last, highest and mean outputs side by side, two dense layers
    (arXiv:1801.06146).

    Training begins with the dense layers; every `thaw_steps` optimizer steps the next layer below joins in,
    the embeddings last (gradual unfreezing). What is frozen still is run without a graph.

    Args:
        language: trained; its softmax is dropped.
        output_size: K, classes.
        dropout: on the pooled vector, and half of it before the last layer.
        thaw_steps: 0 trains everything from the start.

    Raises:
        InputError: a size below 1, or no probability.
    """

    def __init__(
        self, language: LanguageNetwork, output_size: int, *, dropout: float = 0.4, thaw_steps: int = 0
    ):
        super().__init__()
        check_sizes("PretrainedClassifier", output_size=output_size)
        check_probability("PretrainedClassifier: dropout", dropout)
        language.forget_softmax()
        self.language = language
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(len(POOLED) * language.hidden_size, MIDDLE),
            nn.ReLU(),
            nn.Dropout(dropout / 2),
            nn.Linear(MIDDLE, output_size),
        )
        self.objective = ClassLoss("PretrainedClassifier", output_size, None, 0.0)
        self.thaw_steps = thaw_steps
        self._step = 0

    def set_mask_key(self, seed: int, step: int) -> None:
        """Take note of the optimizer step, which says what is frozen; the training loop calls it."""
        self._step = step

    @property
    def frozen(self) -> int:
        """How many parts from below, the embeddings and the layers, do not learn now."""
        parts = len(self.language.layers) + 1
        return max(0, parts - self._step // self.thaw_steps) if self.thaw_steps else 0

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K) of `units` (B, T) ids, `lengths` (B,)."""
        ids, lengths = batch["units"], batch["lengths"]
        frozen = self.frozen if self.training else 0
        y, state = self.language.encode(ids, frozen=frozen, lengths=lengths)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        dropped = self.language.drops[-1](y)
        output = Output(dropped, state, mask=mask)
        logits: Tensor = self.head(torch.cat([output.pooled(kind) for kind in POOLED], dim=1))
        return logits

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy with `y` (B,), summed over the texts.

        Raises:
            InputError: a state, which whole texts do not carry, or targets that do not fit.
        """
        if state is not None:
            raise InputError("PretrainedClassifier.loss: texts are whole, and no state is carried")
        return self.objective(self(batch), batch.y)
