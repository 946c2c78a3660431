"""From what a decoder says to probabilities of tokens: of a vocabulary, or also of words of the source."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.layers.softmax import linear_cross_entropy


class WordOutput(nn.Module):
    """Softmax over a vocabulary, P = softmax(W r + b).

    Args:
        size: D, width of r.
        target_size: V.
        feature_size: not of use here.
        is_tied: W is given with each call, and no parameter of this module.
    """

    def __init__(self, size: int, target_size: int, feature_size: int, *, is_tied: bool):
        super().__init__()
        self.weight: nn.Parameter | None = None
        if not is_tied:
            self.weight = nn.Parameter(torch.randn(target_size, size) * size**-0.5)
        self.bias = nn.Parameter(torch.zeros(target_size))

    def scores(self, readout: Tensor, weight: Tensor) -> Tensor:
        """Logits (…, V) of readouts (…, D)."""
        return F.linear(readout, weight, self.bias)

    def loss(self, readout: Tensor, targets: Tensor, weight: Tensor, smoothing: float) -> Tensor:
        """Σ of -(1 - ε) log P(target) - ε · mean over v of log P(v) for readouts (n, D), targets (n,)."""
        total = linear_cross_entropy(readout, weight, self.bias, targets)
        if smoothing:
            # Both parts share the logarithm of the sum, and differ by a logit that is cheap to have.
            apart = F.embedding(targets, weight) - weight.mean(0)
            of_bias = self.bias[targets].sum() - len(targets) * self.bias.mean()
            total = total + smoothing * ((readout * apart).sum() + of_bias)
        return total


class CopyOutput(nn.Module):
    """A softmax over a vocabulary and the words of the source (pointer-generator; See et al. 2017).

        g = sigmoid(w · f + b)        P(word) = g softmax(W r + b)[word] + (1 - g) Σ_{s: source_s = word} a_s

    A word that the vocabulary lacks has the second part only. Weights a that do not sum to 1, as those of
    local attention, are made to; where there is nothing to attend to, g is 1.

    Args:
        size: D, width of r.
        target_size: V.
        feature_size: F, width of f.
        is_tied: as for `WordOutput`.
    """

    def __init__(self, size: int, target_size: int, feature_size: int, *, is_tied: bool):
        super().__init__()
        self.words = WordOutput(size, target_size, feature_size, is_tied=is_tied)
        self.gate = nn.Linear(feature_size, 1)
        self.target_size = target_size

    @property
    def weight(self) -> Tensor | None:
        """W, where it is not tied."""
        return self.words.weight

    def _shares(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log g and log (1 - g), (…, 1), and the weights (…, S) with a sum of 1, or of 0."""
        gate = self.gate(features)
        total = attention.sum(-1, keepdim=True)
        is_possible = total > 0
        said = F.logsigmoid(gate).masked_fill(~is_possible, 0.0)
        return said, F.logsigmoid(-gate), attention / total.masked_fill(~is_possible, 1.0)

    def scores(
        self, readout: Tensor, features: Tensor, weight: Tensor, attention: Tensor, copied: Tensor, size: int
    ) -> Tensor:
        """Log-probabilities (N, T, size) over the extended vocabulary; -inf for words that are nowhere.

        Args:
            readout: (N, T, D).
            features: (N, T, F).
            weight: W (V, D).
            attention: (N, T, S).
            copied: (N, S) ids of the source in the extended vocabulary.
            size: V and the extra words.
        """
        own, other, attention = self._shares(features, attention)
        said = torch.log_softmax(self.words.scores(readout, weight), dim=-1) + own
        said = F.pad(said, (0, size - self.target_size), value=float("-inf"))
        places = copied.unsqueeze(1).expand(attention.shape)
        mass = torch.zeros_like(said).scatter_add_(2, places, attention.to(said.dtype))
        return torch.logaddexp(said, mass.log() + other)

    def loss(
        self,
        readout: Tensor,
        features: Tensor,
        targets: Tensor,
        attention: Tensor,
        matches: Tensor,
        weight: Tensor,
        smoothing: float,
    ) -> Tensor:
        """Σ -log P(target) over n rows; `matches` (n, S) says where the source has the target.

        Label smoothing is that of the softmax over the vocabulary.
        """
        own, other, attention = self._shares(features, attention)
        mass = (attention * matches).sum(1)
        logits = F.linear(readout, weight, self.words.bias)
        is_known = targets < self.target_size
        inside = targets.masked_fill(~is_known, 0)
        log_sum = torch.logsumexp(logits, dim=1)
        chosen = logits.gather(1, inside.unsqueeze(1)).squeeze(1) - log_sum + own.squeeze(1)
        # Far below anything that adds to a sum, but finite, so that gradients of the other part are numbers.
        nothing = torch.finfo(logits.dtype).min / 4
        copied = mass.clamp_min(torch.finfo(mass.dtype).tiny).log() + other.squeeze(1)
        copied = copied.masked_fill(mass <= 0, nothing)
        likelihood = torch.logaddexp(chosen.masked_fill(~is_known, nothing), copied)
        if not smoothing:
            return -likelihood.sum()
        spread = (logits.mean(1) - log_sum).sum()
        return -(1 - smoothing) * likelihood.sum() - smoothing * spread
