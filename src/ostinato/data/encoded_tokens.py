"""`EncodedTokens`: sentences as numbers, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.ragged import RaggedRows
from ostinato.types import Batch


class EncodedTokens:
    """Sentences as numbers: for each token which spelling it is, and a table of the different spellings.

    Made by `TokenPreparation.encode`. Spelling 0 is the padding.

    Attributes:
        rows: N rows of numbers of spellings; `rows.offsets` says where each sentence lies in `rows.flat`.
    """

    def __init__(
        self,
        rows: RaggedRows,
        columns: Sequence[RaggedRows],
        words: NDArray[np.int64],
        spellings: RaggedRows | None,
        shapes: NDArray[np.int64] | None,
    ):
        self.rows = rows
        self._columns, self._words, self._spellings, self._shapes = columns, words, spellings, shapes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): tokens of each sentence."""
        return self.rows.lengths

    def batch(self, rows: Any) -> Batch:
        """A batch of chosen sentences, padded to the longest, to one step at least.

        Args:
            rows: (B,) indices.

        Returns:
            `words` (B, T) ids, 0 in the padding; `lengths` (B,); where words are spelled or their shapes
            looked at, `spelled` (B, T), which of the batch's U different spellings a token is, and of these
            `spellings` (U, C) characters, 0 after the last, `spelling_lengths` (U,), `shapes` (U, K); and
            `columns` (B, T, F) where there are further columns. All int64.
        """
        chosen = np.asarray(rows, np.int64).reshape(-1)
        kinds = self.rows.padded(chosen, least=1)
        offsets = self.rows.offsets
        fields = {"words": self._words[kinds], "lengths": offsets[chosen + 1] - offsets[chosen]}
        if self._spellings is not None or self._shapes is not None:
            different, spelled = np.unique(kinds, return_inverse=True)
            fields["spelled"] = spelled.reshape(kinds.shape)
            if self._spellings is not None:
                fields["spellings"] = self._spellings.padded(different, least=1)
                offsets = self._spellings.offsets
                fields["spelling_lengths"] = offsets[different + 1] - offsets[different]
            if self._shapes is not None:
                fields["shapes"] = self._shapes[different]
        if self._columns:
            fields["columns"] = np.stack([column.padded(chosen, least=1) for column in self._columns], axis=2)
        return Batch({name: torch.from_numpy(value) for name, value in fields.items()})
