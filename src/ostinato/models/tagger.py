"""Tokens to tags: token vectors, recurrent layers, a chain over the tags; if asked, a class beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.layers.crf import LinearChainCRF
from ostinato.layers.crf_constraints import constraints_for
from ostinato.layers.options import check_choice
from ostinato.layers.pooling import SequencePooling
from ostinato.models.encoder import build_encoder
from ostinato.models.language import LanguageNetwork
from ostinato.models.token_encoder import TokenEncoder
from ostinato.types import Batch, LossOutput, Output

OUTPUTS = ("crf", "softmax")
"""What reads the tags from the emissions: a chain, or each step alone."""


@dataclass(frozen=True)
class TaggerPrediction:
    """What a network says of a batch.

    Attributes:
        tags: (B, T) int64, the best sequence as a whole; 0 beyond a row's length.
        probabilities: (B, T, K), of each tag at each step; zeros beyond a row's length.
        class_probabilities: (B, C), of the whole sentence; None from a network of tags alone.
    """

    tags: Tensor
    probabilities: Tensor
    class_probabilities: Tensor | None = None


class TaggerNetwork(nn.Module):
    """A tag for each token, from both sides of it (Huang et al. 2015, arXiv:1508.01991; Lample et al. 2016,
    arXiv:1603.01360).

        token vectors → recurrent layers → dropout → emissions → a chain (`crf`) or each step (`softmax`)

    Batches hold what `TokenEncoder` takes, `lengths` (B,), and for the loss `y` (B, T) int64: the tags,
    anything beyond a row's length.

    Args:
        sizes: `TokenPreparation.sizes`.
        tags: their names, in the order of their numbers.
        scheme: how the tags spell spans (`crf_constraints.SCHEMES`); sequences that break it are impossible.
            With `crf` only.
        output: `crf` or `softmax`.
        tokens: further arguments of the `TokenEncoder`, by name.
        cell: a name in `encoder.CELLS`, or a `Cell` class.
        hidden_size: H of each direction.
        num_layers: L.
        bidirectional: also read from the end to the start.
        dropout: on the states, which the emissions are made from, and between layers.
        **options: of the recurrent layers, as for `ot.LSTM`; and `language`, a trained `LanguageNetwork`,
            whose outputs at the last unit of each token stand beside the token's vector
            (arXiv:1705.00108). It is trained on, its softmax is dropped, and batches also hold `units`
            (B, U), `unit_lengths` (B,) and `unit_ends` (B, T).

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; a tag that the scheme cannot spell.

    Cost: that of the token vectors, the recurrent layers and the chain; and 2·dirs·H·K flops a token.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        tags: Sequence[str],
        *,
        scheme: str = "none",
        output: str = "crf",
        tokens: Mapping[str, Any] | None = None,
        cell: str | type[Cell] = "lstm",
        hidden_size: int = 200,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.3,
        **options: Any,
    ):
        super().__init__()
        language: LanguageNetwork | None = options.pop("language", None)
        check_sizes("TaggerNetwork", number_of_tags=len(tags))
        check_choice("TaggerNetwork", "output", output, OUTPUTS)
        constraints = constraints_for(tags, scheme)
        if output == "softmax" and constraints is not None:
            raise InputError(
                f"TaggerNetwork: scheme={scheme!r} limits sequences, and output='softmax' looks at each tag "
                "alone; use output='crf', or scheme='none'"
            )
        self.num_tags = len(tags)
        self.tokens = TokenEncoder(sizes, **(tokens or {}))
        dropouts = {"dropout_out": dropout} | ({"dropout_between": dropout} if num_layers > 1 else {})
        self.language = language
        width = self.tokens.output_size
        if language is not None:
            language.forget_softmax()
            width += language.hidden_size
        self.encoder = build_encoder(
            cell, width, hidden_size, num_layers,
            bidirectional=bidirectional, **(dropouts | options),
        )  # fmt: skip
        self.head = nn.Linear(self.encoder.output_size, self.num_tags)
        self.crf = LinearChainCRF(self.num_tags, constraints=constraints) if output == "crf" else None

    def forward(self, batch: Batch) -> Tensor:
        """Emissions (B, T, K): scores of each tag at each step, before the chain; logits for `softmax`."""
        emissions: Tensor = self.head(self._encode(batch).y)
        return emissions

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """-log P(tags) summed over the sentences; `count` is the number of sentences.

        Raises:
            InputError: tags that break the scheme.
            SizeError: a shape or dtype that does not fit.
        """
        return LossOutput(self._tag_loss(self._encode(batch), batch), torch.tensor(batch.size))

    @torch.no_grad()
    def decode(self, batch: Batch) -> Tensor:
        """The best tags (B, T) int64, 0 beyond a row's length."""
        return self._decode(self.head(self._encode(batch).y), batch["lengths"])

    @torch.no_grad()
    def marginals(self, batch: Batch) -> Tensor:
        """P(tag at step), (B, T, K), zeros beyond a row's length."""
        return self._marginals(self.head(self._encode(batch).y), batch["lengths"])

    @torch.no_grad()
    def predict(self, batch: Batch) -> TaggerPrediction:
        """Tags and probabilities, from one run of the layers."""
        return self._predict(self._encode(batch), batch)

    # Inside ------------------------------------------------------------------------------------------

    def _encode(self, batch: Batch) -> Output:
        x = self.tokens(batch)
        if self.language is not None:
            read, _ = self.language.encode(batch["units"], lengths=batch["unit_lengths"])
            ends = batch["unit_ends"].unsqueeze(2).expand(-1, -1, read.shape[2])
            x = torch.cat([x, read.gather(1, ends)], dim=2)
        output: Output = self.encoder(x, lengths=batch["lengths"])
        return output

    def _tag_loss(self, output: Output, batch: Batch) -> Tensor:
        emissions, y = self.head(output.y), batch["y"]
        if self.crf is not None:
            return -self.crf.log_likelihood(emissions, y, lengths=batch["lengths"]).sum()
        if y.shape != emissions.shape[:2]:
            raise SizeError(
                f"TaggerNetwork.loss: y has shape {tuple(y.shape)}, expected (B, T) = "
                f"{tuple(emissions.shape[:2])}"
            )
        if output.mask is not None:
            y = y.masked_fill(~output.mask, -1)
        return F.cross_entropy(emissions.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")

    def _predict(self, output: Output, batch: Batch) -> TaggerPrediction:
        emissions, lengths = self.head(output.y), batch["lengths"]
        return TaggerPrediction(self._decode(emissions, lengths), self._marginals(emissions, lengths))

    def _decode(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        if self.crf is not None:
            return self.crf.decode(emissions, lengths=lengths)[0]
        return emissions.argmax(2).masked_fill(_beyond(lengths, emissions), 0)

    def _marginals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        if self.crf is not None:
            return self.crf.marginals(emissions, lengths=lengths)
        return torch.softmax(emissions, dim=2).masked_fill(_beyond(lengths, emissions).unsqueeze(2), 0.0)


class JointTagger(TaggerNetwork):
    """Tags and a class for the whole sentence, such as slots and an intent, from the same states in one loss
    (Liu and Lane 2016, arXiv:1609.01454).

    Batches for the loss also hold `label` (B,) int64, the class.

    Args:
        sizes, tags: as for `TaggerNetwork`.
        num_classes: C.
        class_weight: weight of -log P(class) in the loss, beside -log P(tags).
        pooling: what stands for the sentence, a name in `pooling.KINDS`.
        **options: of `TaggerNetwork`.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        tags: Sequence[str],
        num_classes: int,
        *,
        class_weight: float = 1.0,
        pooling: str = "attention",
        **options: Any,
    ):
        super().__init__(sizes, tags, **options)
        check_sizes("JointTagger", num_classes=num_classes)
        self.class_weight = float(class_weight)
        self.pooling = SequencePooling(pooling, self.encoder.output_size)
        self.class_head = nn.Linear(self.pooling.output_size, num_classes)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Emissions of the tags (B, T, K), and logits of the classes (B, C)."""
        output = self._encode(batch)
        return self.head(output.y), self.class_head(self.pooling(output))

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """-log P(tags) - class_weight·log P(class), summed over the sentences; errors as without classes."""
        output = self._encode(batch)
        logits = self.class_head(self.pooling(output))
        class_loss = F.cross_entropy(logits, batch["label"], reduction="sum")
        total = self._tag_loss(output, batch) + self.class_weight * class_loss
        return LossOutput(total, torch.tensor(batch.size))

    def _predict(self, output: Output, batch: Batch) -> TaggerPrediction:
        said = super()._predict(output, batch)
        classes = torch.softmax(self.class_head(self.pooling(output)), dim=1)
        return TaggerPrediction(said.tags, said.probabilities, classes)


def _beyond(lengths: Tensor, emissions: Tensor) -> Tensor:
    """(B, T): steps that are not real."""
    return torch.arange(emissions.shape[1], device=lengths.device) >= lengths.unsqueeze(1)
