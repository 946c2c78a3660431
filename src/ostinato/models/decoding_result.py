"""What decoding gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Decoded:
    """Sequences for B rows, n for each: of beam search the best first, of sampling in the order of the seeds.

    Where the rules allow fewer than n sequences, or the vocabulary has no more, the rest have a score of -inf
    and no tokens.

    Attributes:
        tokens: (B, n, T) int64, without start and end token, T the longest; beyond a sequence's length the
            end token, or 0 where there is none.
        lengths: (B, n) how many of them are the sequence's.
        ended: (B, n) True where the end token came; False where `max_length` cut the sequence off.
        scores: (B, n) what they are ranked by: length and coverage terms included. Sequences that ended stand
            before those that were cut off.
        log_probs: (B, n) the sum over the tokens, the end token included.
        attention: (B, n, T, S) where each token's step looked; 0 beyond the length. None: steps give none.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    scores: Tensor
    log_probs: Tensor
    attention: Tensor | None = None

    def sequences(self) -> list[list[list[int]]]:
        """For each row its sequences, each a list of tokens; only those that there are."""
        found = (self.scores > -torch.inf).tolist()
        cut = zip(self.tokens.tolist(), self.lengths.tolist(), found, strict=True)
        return [
            [tokens[:length] for tokens, length, is_found in zip(*row, strict=True) if is_found]
            for row in cut
        ]

    def best(self) -> list[list[int]]:
        """For each row the tokens of its first sequence; [] where there is none."""
        return [row[0] if row else [] for row in self.sequences()]
