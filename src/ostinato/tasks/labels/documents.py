"""Documents as a classifier reads them: sentences of words for a hierarchical network, n-grams beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import nn

from ostinato.data.documents import DocumentLimits, encode_documents
from ostinato.data.examples import Examples
from ostinato.models.hierarchical import HierarchicalClassifier
from ostinato.tasks.labels.inputs import how_many
from ostinato.tasks.labels.linear_rows import characters, encode_ngrams, fit_ngrams
from ostinato.tasks.labels.texts import (
    RARE_TEXTS,
    TOKEN_CHARACTERS,
    EncodedTexts,
    TextInputs,
    fit_tokens,
    text_batch_size,
)

SPEED_HZ = 20_000.0
USUAL_S = 240.0


@dataclass(frozen=True)
class DocumentInputs(TextInputs):
    """Documents to sentences of tokens, and to weighted n-grams; attributes as of `TextInputs`."""

    _network: ClassVar[Callable[..., nn.Module]] = HierarchicalClassifier

    @classmethod
    def choose(cls, data: Examples, settings: Any, old: Self | None = None) -> dict[str, Any]:
        """Parameters by the amount of data and, where it is limited, of time."""
        N = len(data)
        epochs = int(np.clip(round(10 * (3000 / max(N, 1)) ** 0.5), 3, 30))
        tokens = characters(data.inputs) / TOKEN_CHARACTERS
        passes = how_many(tokens * epochs, settings.max_time_s, speed_hz=SPEED_HZ, usual_s=USUAL_S)
        return {
            "cell": "gru",
            "hidden_size": 64,
            "num_layers": 1,
            "dropout": 0.3,
            "epochs": epochs,
            "batch_size": text_batch_size(N, tokens),
            "learning_rate": 2e-3,
            "weight_decay": 1e-2,
            "members": int(np.clip(passes, 1, 3)),
            "unit": "word",
        }

    @classmethod
    def fit(cls, learned: Examples, settings: Any, names: Sequence[str], old: Self | None = None) -> Self:
        """Count the words and n-grams of the training part.

        Raises:
            InputError: no document has a word; DataError: a file of word vectors that cannot be used.
        """
        few = len(learned) < RARE_TEXTS
        tokens = fit_tokens(learned.inputs, learned, settings, None if old is None else old.tokens)
        return cls(tokens, fit_ngrams(learned.inputs, len(names), min_documents=1 if few else 2))

    def encode(self, inputs: Sequence[str]) -> EncodedTexts:
        """Ready for batches."""
        documents = encode_documents(self.tokens, inputs, DocumentLimits())
        notes = []
        if documents.shortened:
            notes = [
                f"{documents.shortened} documents of more than {DocumentLimits().max_sentences} sentences: "
                "the network read the first and the last half of so many"
            ]
        return EncodedTexts(documents, encode_ngrams(self.ngrams, inputs), notes)
