"""A class for a document: words to sentences, sentences to the document, attention at both levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.layers.dropout import check_probability
from ostinato.layers.pooling import SequencePooling
from ostinato.models.class_loss import ClassLoss
from ostinato.models.encoder import build_encoder
from ostinato.models.token_encoder import TokenEncoder
from ostinato.types import Batch, LossOutput


@dataclass(frozen=True)
class DocumentAttention:
    """What a hierarchical network says about documents, and where it looked.

    Attributes:
        logits: (B, K).
        words: (S, T) weights of the words within each sentence of the batch, rows summing to 1; None for a
            pooling without attention.
        sentences: (B, N) weights of the sentences within each document, in their order; None likewise.
    """

    logits: Tensor
    words: Tensor | None
    sentences: Tensor | None


class HierarchicalClassifier(nn.Module):
    """Hierarchical attention network (Yang et al. 2016, N16-1174), with any cell and any pooling.

        word vectors → recurrent layers → pooling  =  one vector for each sentence
        sentence vectors → recurrent layers → pooling → dropout → classes

    The sentences of all documents of a batch run through the lower level together, as S rows of their own,
    and are then laid out as B rows of N sentences. Without words it reads nested series: an outer sequence of
    inner sequences of vectors.

    Args:
        inputs: of the tokens, as `TokenPreparation.sizes`; or D, the width of the vectors of nested series.
        output_size: K, classes.
        cell: a name in `encoder.CELLS`, or a `Cell` class whose constructor takes (input_size, hidden_size).
        hidden_size: H of each direction, at both levels.
        pooling: a name in `pooling.KINDS`, at both levels.
        dropout: on the vector of each sentence and on that of the document.
        class_weights: (K,) factors on the loss of each class.
        label_smoothing: the share of each target that is spread over all classes (arXiv:1512.00567).
        tokens: options of `TokenEncoder`.
        **options: of the recurrent layers of both levels: `num_layers`, `bidirectional` (True by default),
            and as for `ot.LSTM`.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; an option without effect.

    Cost: that of the recurrent layers over S·T words and over B·N sentences. Unlike a flat network's its
    longest chain of steps is that of a sentence plus that of the sentences.
    """

    def __init__(
        self,
        inputs: Mapping[str, Any] | int,
        output_size: int,
        *,
        cell: str | type[Cell] = "gru",
        hidden_size: int = 64,
        pooling: str = "attention",
        dropout: float = 0.3,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        tokens: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        check_sizes("HierarchicalClassifier", output_size=output_size)
        self.tokens: TokenEncoder | None = None
        if isinstance(inputs, Mapping):
            self.tokens = TokenEncoder(inputs, **(tokens or {}))
            width = self.tokens.output_size
        elif tokens:
            raise InputError("HierarchicalClassifier: tokens are options of a token encoder; pass its sizes")
        else:
            check_sizes("HierarchicalClassifier", inputs=inputs)
            width = inputs
        options.setdefault("bidirectional", True)
        if options.get("num_layers", 1) > 1:
            options.setdefault("dropout_between", dropout)
        self.words = build_encoder(cell, width, hidden_size, **options)
        self.pool_words = SequencePooling(pooling, self.words.output_size)
        self.sentences = build_encoder(cell, self.pool_words.output_size, hidden_size, **options)
        self.pool_sentences = SequencePooling(pooling, self.sentences.output_size)
        self.dropout = nn.Dropout(check_probability("HierarchicalClassifier: dropout", dropout))
        self.head = nn.Linear(self.pool_sentences.output_size, output_size)
        self.objective = ClassLoss("HierarchicalClassifier", output_size, class_weights, label_smoothing)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K).

        The batch holds `sentence_counts` (B,), how many sentences each document has, and of all S sentences
        one after the other what `EncodedTokens.batch` gives; or, for nested series, `x` (S, T, D) and
        `lengths` (S,). An empty sentence has the vector 0, an empty document the head's bias.

        Raises:
            SizeError: the counts do not add up to S.
        """
        return self.attend(batch).logits

    def attend(self, batch: Batch) -> DocumentAttention:
        """The logits, and the weights of both levels."""
        lengths, counts = batch["lengths"], batch["sentence_counts"]
        if int(counts.sum()) != len(lengths):
            raise SizeError(
                f"HierarchicalClassifier: sentence_counts add up to {int(counts.sum())}, and the batch has "
                f"{len(lengths)} sentences"
            )
        x = batch["x"] if self.tokens is None else self.tokens(batch)
        vectors, words = self.pool_words.attend(self.words(x, lengths=lengths))
        output = self.sentences(laid_out(self.dropout(vectors), counts), lengths=counts)
        document, sentences = self.pool_sentences.attend(output)
        logits = self.head(self.dropout(document))
        if words is None or sentences is None:
            return DocumentAttention(logits, None, None)
        return DocumentAttention(logits, words[:, 0], sentences[:, 0])

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy with `y` (B,), summed over the documents.

        Raises:
            InputError: a state, which whole documents do not carry, or targets that do not fit.
        """
        if state is not None:
            raise InputError(
                "HierarchicalClassifier.loss: documents are whole, and no state is carried between them"
            )
        return self.objective(self(batch), batch.y)


def laid_out(rows: Tensor, counts: Tensor) -> Tensor:
    """Rows (S, F) of B groups one after the other as (B, N, F), zeros after the end of each group.

    Args:
        rows: S is the sum of counts.
        counts: (B,); N is the largest of them, at least 1.
    """
    B, N = len(counts), max(int(counts.max()) if len(counts) else 0, 1)
    group = torch.repeat_interleave(torch.arange(B, device=rows.device), counts)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[group]
    return rows.new_zeros(B, N, rows.shape[1]).index_put((group, place), rows)
