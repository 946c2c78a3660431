"""`TokenEncoder`: a vector for each token, from its word, its spelling, its shape and further columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.dropout import Clock, Kind, MaskKey, check_probability
from ostinato.layers.gated import LSTM
from ostinato.layers.options import check_choice
from ostinato.types import Batch

SPELLINGS = ("conv", "lstm", "none")
_UNKNOWN = 1
# Beyond the layers of any stack, whose masks are drawn under the same key.
_LAYER = 4095


class TokenEncoder(nn.Module):
    """What is known of each token, side by side: (B, T, E), exactly 0 in the padding.

    - An embedding of the word. In training a word that occurs n times is taken for unknown with probability
      a / (a + n) (Kiperwasser and Goldberg 2016, arXiv:1603.04351), so that the unknown word is trained.
    - The given vector of the word, fixed or trained on.
    - The spelling, of each different word once: a convolution over three characters with max pooling (Ma and
      Hovy 2016, arXiv:1603.01354), or the last states of an LSTM in both directions (Lample et al. 2016,
      arXiv:1603.01360).
    - The sum of embeddings of its beginnings, ends and shape.
    - Embeddings of further columns.

    Args:
        sizes: `TokenPreparation.sizes`: how many of each there are; a part that has none is left out.
        word_size: width of a word's embedding.
        spelling: `conv`, `lstm` or `none`.
        character_size: width of a character's embedding.
        spelling_size: width of what stands for the spelling; even for `lstm`.
        shape_size: width of what stands for the shape; 0 leaves it out.
        column_size: width for each further column.
        dropout: probability for each unit of E, in all steps of a sentence at once (arXiv:1512.05287).
        word_dropout: a; 0 switches it off. Training needs the counts then: `set_word_counts`.
        tune_vectors: whether the given vectors (`set_vectors`) are trained on, rather than kept.

    Attributes:
        output_size: E.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; a probability that is none.

    Cost: for each different spelling of C characters, 3·C·spelling_size additions (`conv`), or the two LSTMs;
    look-ups otherwise.
    """

    digits: Tensor
    word_drop: Tensor | None
    vectors: Tensor | None

    def __init__(
        self,
        sizes: Mapping[str, Any],
        *,
        word_size: int = 100,
        spelling: str = "conv",
        character_size: int = 32,
        spelling_size: int = 64,
        shape_size: int = 64,
        column_size: int = 16,
        dropout: float = 0.3,
        word_dropout: float = 0.25,
        tune_vectors: bool = False,
    ):
        super().__init__()
        check_sizes("TokenEncoder", word_size=word_size, words=sizes["words"])
        check_choice("TokenEncoder", "spelling", spelling, SPELLINGS)
        if isinstance(word_dropout, bool) or not isinstance(word_dropout, int | float) or word_dropout < 0:
            raise InputError(f"TokenEncoder: word_dropout={word_dropout!r}, expected a number of at least 0")
        self.dropout = check_probability("TokenEncoder: dropout", dropout)
        self.word_dropout, self.n_words = float(word_dropout), int(sizes["words"])
        self.mask_key = MaskKey()
        self.register_buffer("digits", 0.5 ** torch.arange(1.0, 17.0), False)
        self.register_buffer("word_drop", None, False)
        self.word = nn.Embedding(self.n_words, word_size, padding_idx=0)
        rows, vector_size = sizes["vectors"]
        table = torch.zeros(rows, vector_size) if vector_size else None
        if table is not None and tune_vectors:
            self.vectors = nn.Parameter(table)
        else:
            self.register_buffer("vectors", table)
        width = word_size + vector_size
        self.spelling: nn.Module | None = None
        if sizes["characters"] and spelling != "none":
            kind = _Convolution if spelling == "conv" else _LastStates
            self.spelling = kind(int(sizes["characters"]), character_size, spelling_size)
            width += spelling_size
        self.shape = _SumOfEmbeddings(sizes["shapes"], shape_size) if sizes["shapes"] and shape_size else None
        width += shape_size if self.shape is not None else 0
        self.columns = nn.ModuleList(
            nn.Embedding(size, column_size, padding_idx=0) for size in sizes["columns"]
        )
        self.output_size = width + column_size * len(self.columns)
        # A word that is seldom seen is moved by few steps: small at first, it leaves the word to the others.
        for embedding in (self.word, *self.columns):
            with torch.no_grad():
                embedding.weight.uniform_(-0.1, 0.1)[0] = 0.0

    def set_word_counts(self, counts: Any) -> None:
        """How often training has each word, (V,): of use in training only, and not stored with the network.

        Raises:
            InputError: not one count for each word.
        """
        n = torch.as_tensor(counts, dtype=torch.float32, device=self.word.weight.device)
        if n.shape != (self.n_words,):
            raise InputError(f"TokenEncoder: counts have shape {tuple(n.shape)}, expected ({self.n_words},)")
        self.word_drop = self.word_dropout / (self.word_dropout + n.clamp(min=1))
        # The padding, and what is unknown already.
        self.word_drop[:2] = 0.0

    def set_vectors(self, vectors: Any) -> None:
        """The given vectors (rows, width) of all words: where training starts; a stored network has its own.

        Raises:
            InputError: the sizes say that there are none, or other numbers of them.
        """
        shape = None if self.vectors is None else tuple(self.vectors.shape)
        table = torch.as_tensor(vectors, dtype=torch.float32)
        if self.vectors is None or table.shape != shape:
            raise InputError(f"TokenEncoder: vectors have shape {tuple(table.shape)}, the sizes say {shape}")
        with torch.no_grad():
            self.vectors.copy_(table)

    def forward(self, batch: Batch) -> Tensor:
        """(B, T, E) of the fields that `EncodedTokens.batch` gives.

        Raises:
            InputError: words are to be dropped in training, and their counts were never set.
        """
        words = batch["words"]
        clock = self._clock(words) if self.training else None
        # Words that only the given vectors have come after those that were trained.
        known = words if self.vectors is None else words.masked_fill(words >= self.n_words, _UNKNOWN)
        parts = [self.word(self._drop_words(known, clock))]
        if self.vectors is not None:
            parts.append(F.embedding(words, self.vectors))
        different = []
        if self.spelling is not None:
            different.append(self.spelling(batch["spellings"], batch["spelling_lengths"]))
        if self.shape is not None:
            different.append(self.shape(batch["shapes"]))
        if different:
            parts.append(F.embedding(batch["spelled"], torch.cat(different, dim=1)))
        parts += [embed(batch["columns"][:, :, i]) for i, embed in enumerate(self.columns)]
        x = torch.cat(parts, dim=2)
        if clock is None or not self.dropout:
            return x
        keep = clock.keep(Kind.INPUT, _LAYER, 0, self.output_size, self.dropout, is_variational=True)
        return x * (keep.to(x.dtype) / (1 - self.dropout))

    def _clock(self, words: Tensor) -> Clock:
        B, T = words.shape
        rows, steps = torch.arange(B, device=words.device), torch.arange(T, device=words.device)
        key = self.mask_key.draw(B, words.device)
        return Clock(key, rows, steps.expand(B, T), rows.new_zeros(B, 1))

    def _drop_words(self, words: Tensor, clock: Clock | None) -> Tensor:
        if clock is None or not self.word_dropout:
            return words
        if self.word_drop is None:
            raise InputError(
                "TokenEncoder: word_dropout needs set_word_counts(preparation.word_counts) before training"
            )
        # Sixteen throws of a coin are the digits of a number in [0, 1): each word has its own probability.
        digits = clock.keep(Kind.INPUT, _LAYER, 1, len(self.digits), 0.5, is_variational=False)
        chance = digits.to(self.digits.dtype) @ self.digits
        return words.masked_fill(chance < self.word_drop[words], _UNKNOWN)


class _Convolution(nn.Module):
    """Filters over three characters, the highest answer of each: (U, C) -> (U, size).

    Each of the few characters is multiplied with the filters once, and the products are looked up. Id 0
    stands for what lies outside of the word.
    """

    def __init__(self, n_characters: int, character_size: int, size: int):
        super().__init__()
        check_sizes("TokenEncoder", character_size=character_size, spelling_size=size)
        self.embedding = nn.Embedding(n_characters, character_size)
        self.filters = nn.Linear(character_size, 3 * size, bias=False)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, spellings: Tensor, lengths: Tensor) -> Tensor:
        U, C = spellings.shape
        n, size = self.embedding.num_embeddings, len(self.bias)
        products = self.filters(self.embedding.weight).view(n, 3, size).transpose(0, 1).reshape(3 * n, size)
        steps = torch.arange(C, device=spellings.device)
        windows = F.pad(spellings, (1, 1)).unfold(1, 3, 1)
        windows = windows + torch.arange(0, 3 * n, n, device=spellings.device)
        with torch.no_grad():
            # Steps beyond the word look up a row of their own.
            table = torch.cat([products, products.new_full((1, size), float("-inf"))])
            inside = windows.masked_fill((steps >= lengths.unsqueeze(1)).unsqueeze(2), 3 * n)
            answers = F.embedding_bag(inside.view(U * C, 3), table, mode="sum").view(U, C, size)
            is_highest = answers == answers.amax(dim=1, keepdim=True)
            numbers = steps.float().unsqueeze(1)
            places = torch.where(is_highest, numbers, 0.0).amax(dim=1).long()
        # Looked up once more, where they are highest: the gradient then visits these places alone.
        highest = sum(products.gather(0, windows[:, :, k].gather(1, places)) for k in range(3))
        answer: Tensor = F.relu(highest + self.bias) * (lengths > 0).unsqueeze(1)
        return answer


class _LastStates(nn.Module):
    """The last states of an LSTM from the start and of one from the end: (U, C) -> (U, size)."""

    def __init__(self, n_characters: int, character_size: int, size: int):
        super().__init__()
        check_sizes("TokenEncoder", character_size=character_size, spelling_size=size)
        if size % 2:
            raise InputError(
                f"TokenEncoder: spelling_size={size} must be even for spelling='lstm', half of it a direction"
            )
        self.embedding = nn.Embedding(n_characters, character_size, padding_idx=0)
        self.layer = LSTM(character_size, size // 2, bidirectional=True)

    def forward(self, spellings: Tensor, lengths: Tensor) -> Tensor:
        states: Tensor = self.layer(self.embedding(spellings), lengths=lengths).last
        return states


class _SumOfEmbeddings(nn.Module):
    """(U, K) ids of K vocabularies -> (U, size), the sum of an embedding of each; 0 for the padding."""

    offsets: Tensor

    def __init__(self, counts: Sequence[int], size: int):
        super().__init__()
        check_sizes("TokenEncoder", shape_size=size)
        # One table: its row 0 is the padding of all, and those of the single vocabularies are left out.
        starts = torch.tensor([0, *counts[:-1]]).cumsum(0) - torch.arange(len(counts))
        self.register_buffer("offsets", starts, False)
        self.table = nn.EmbeddingBag(sum(counts) - len(counts) + 1, size, mode="sum", padding_idx=0)
        with torch.no_grad():
            self.table.weight.uniform_(-0.1, 0.1)[0] = 0.0

    def forward(self, shapes: Tensor) -> Tensor:
        summed: Tensor = self.table((shapes + self.offsets).masked_fill(shapes == 0, 0))
        return summed
