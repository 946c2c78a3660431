"""A class for a text from what a language model makes of it: a linear model over that, then fine-tuned."""

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
FIRST = (1, 2)
"""Places of units whose outputs are features too; at 0 stands the unit before every text."""


def text_features(language: LanguageNetwork, ids: Tensor, lengths: Tensor, *, frozen: int = 0) -> Tensor:
    """What a language model makes of whole texts: (B, 5·H + E).

    Its outputs after the first unit and the second, its last, highest and mean output, and the mean of the
    vectors of the units; of an empty text zeros.

    Args:
        language: the model.
        ids: (B, T), each row beginning with the unit that stands before every text.
        lengths: (B,).
        frozen: as for `LanguageNetwork.encode`.
    """
    if ids.shape[1] == 0:
        ids = ids.new_zeros(len(ids), 1)
    y, state = language.encode(ids, frozen=frozen, lengths=lengths)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    output = Output(y, state, mask=mask)
    rows, last = torch.arange(len(ids), device=ids.device), (lengths - 1).clamp(min=0)
    firsts = [y[rows, last.clamp(max=place)] for place in FIRST]
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        vectors = Output(language.embedding(ids) * mask.unsqueeze(2), state, mask=mask).pooled("mean")
    features = torch.cat([*firsts, *(output.pooled(kind) for kind in POOLED), vectors], dim=1)
    return features * (lengths > 0).unsqueeze(1)


class PretrainedClassifier(nn.Module):
    """A language model's `text_features`, what another network makes of the text, and one dense layer over
    both.

    It is meant to begin where a linear model over the features of the language model as it was ends
    (`begin_with`): fine-tuning a new dense layer spoils what lies below it before the layer itself is of use
    (arXiv:2202.10054). Every `thaw_steps` optimizer steps the next layer below joins in (gradual unfreezing,
    arXiv:1801.06146). What is frozen still is run without a graph. The vectors of the units never learn:
    those of units that no labelled text has could not follow the others. What the labelled texts alone can
    teach, such as endings of words, is the part of the other network.

    Args:
        language: trained; its softmax is dropped.
        output_size: K, classes.
        own: `own(batch) -> (B, own_size)`, of the other network, dropped already; None: there is none.
        own_size: its width.
        dropout: on the features.
        thaw_steps: 0 trains all layers from the start.

    Raises:
        InputError: a size below 1, or no probability.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        language: LanguageNetwork,
        output_size: int,
        own: nn.Module | None = None,
        own_size: int = 0,
        *,
        dropout: float = 0.2,
        thaw_steps: int = 0,
    ):
        super().__init__()
        check_sizes("PretrainedClassifier", output_size=output_size)
        check_probability("PretrainedClassifier: dropout", dropout)
        language.forget_softmax()
        language.embedding.requires_grad_(False)
        self.language, self.own = language, own
        F = (len(FIRST) + len(POOLED)) * language.hidden_size + language.embedding.width
        self.register_buffer("mean", torch.zeros(F))
        self.register_buffer("scale", torch.ones(F))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(F + own_size, output_size)
        self.objective = ClassLoss("PretrainedClassifier", output_size, None, 0.0)
        self.thaw_steps = thaw_steps
        self._step = 0

    @torch.no_grad()
    def set_scaling(self, mean: Tensor, scale: Tensor) -> None:
        """The dense layer reads (features - mean)·scale, both (F,)."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    @torch.no_grad()
    def begin_with(self, weight: Tensor, bias: Tensor) -> None:
        """The dense layer over the features, as (F, K) and (K,); that over the other network is 0 then."""
        self.head.weight.zero_()
        self.head.weight[:, : len(weight)] = weight.T
        self.head.bias.copy_(bias)

    def set_mask_key(self, seed: int, step: int) -> None:
        """Take note of the optimizer step, which says what is frozen; the training loop calls it."""
        self._step = step

    @property
    def frozen(self) -> int:
        """How many parts from below, the embeddings and the layers, do not learn now."""
        waiting = len(self.language.layers) - self._step // self.thaw_steps if self.thaw_steps else 0
        return 1 + max(0, waiting)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K) of `units` (B, T) ids, `unit_lengths` (B,), and what the other network takes."""
        ids, lengths = batch["units"], batch["unit_lengths"]
        frozen = self.frozen if self.training else 0
        features = text_features(self.language, ids, lengths, frozen=frozen)
        parts = [self.dropout((features - self.mean) * self.scale)]
        if self.own is not None:
            parts.append(self.own(batch))
        logits: Tensor = self.head(torch.cat(parts, dim=1))
        return logits

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy with `y` (B,), summed over the texts.

        Raises:
            InputError: a state, which whole texts do not carry, or targets that do not fit.
        """
        if state is not None:
            raise InputError("PretrainedClassifier.loss: texts are whole, and no state is carried")
        return self.objective(self(batch), batch.y)
