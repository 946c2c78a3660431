"""A class for a text: tokens, recurrent layers, pooling, a dense layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.cells import Cell
from ostinato.layers.dropout import check_probability
from ostinato.layers.pooling import SequencePooling
from ostinato.models.class_loss import ClassLoss
from ostinato.models.encoder import build_encoder
from ostinato.models.token_encoder import TokenEncoder
from ostinato.types import Batch, LossOutput


class TextClassifier(nn.Module):
    """Tokens to vectors, recurrent layers over them, one pooled vector, a dense layer to the classes.

    Args:
        sizes: of the tokens, as `TokenPreparation.sizes`.
        output_size: K, classes.
        cell: a name in `encoder.CELLS`, or a `Cell` class whose constructor takes (input_size, hidden_size).
        hidden_size: H of each direction.
        pooling: a name in `pooling.KINDS`.
        dropout: on the pooled vector, and between layers where there are several.
        class_weights: (K,) factors on the loss of each class.
        label_smoothing: the share of each target that is spread over all classes (arXiv:1512.00567).
        tokens: options of `TokenEncoder`.
        **options: of the recurrent layers: `num_layers`, `bidirectional` (True by default), and as for
            `ot.LSTM`.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; an option without effect.

    Cost: that of the token encoder and the recurrent layers, and 2·K flops for each feature of the pooled
    vector.
    """

    def __init__(
        self,
        sizes: Mapping[str, Any],
        output_size: int,
        *,
        cell: str | type[Cell] = "lstm",
        hidden_size: int = 128,
        pooling: str = "max_mean",
        dropout: float = 0.4,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        tokens: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        check_sizes("TextClassifier", output_size=output_size)
        self.tokens = TokenEncoder(sizes, **(tokens or {}))
        options.setdefault("bidirectional", True)
        if options.get("num_layers", 1) > 1:
            options.setdefault("dropout_between", dropout)
        self.encoder = build_encoder(cell, self.tokens.output_size, hidden_size, **options)
        self.pool = SequencePooling(pooling, self.encoder.output_size)
        self.dropout = nn.Dropout(check_probability("TextClassifier: dropout", dropout))
        self.head = nn.Linear(self.pool.output_size, output_size)
        self.objective = ClassLoss("TextClassifier", output_size, class_weights, label_smoothing)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, K).

        The batch holds the fields of `EncodedTokens.batch`. A text without tokens is judged by the head's
        bias alone.
        """
        return self.attend(batch)[0]

    def attend(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The logits (B, K), and the weights of attention (B, 1, T), None for a pooling that has none."""
        output = self.encoder(self.tokens(batch), lengths=batch.lengths)
        pooled, weights = self.pool.attend(output)
        return self.head(self.dropout(pooled)), weights

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """Cross entropy with `y` (B,), summed over the texts.

        Raises:
            InputError: a state, which whole texts do not carry, or targets that do not fit.
        """
        if state is not None:
            raise InputError("TextClassifier.loss: texts are whole, and no state is carried between them")
        return self.objective(self(batch), batch.y)
