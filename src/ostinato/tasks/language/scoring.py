"""How probable a network finds a text: summed over all of it, with the state carried from unit to unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ostinato.data.corpus import Corpus
from ostinato.data.token_streams import ScoringStreams
from ostinato.models.language import LanguageNetwork

SIDE_BY_SIDE = 32
"""Streams that a text is cut into, each warmed up on what stands before its part."""
EXACT_UP_TO = 20_000
"""Units of a text up to which it is read as one stream."""


@torch.no_grad()
def text_nats(network: LanguageNetwork, corpus: Corpus, *, streams: int | None = None) -> float:
    """Σ -log P(unit | all units before it in its document), in nats, over every unit of a text.

    Args:
        network: is left in evaluation mode.
        corpus: the text.
        streams: side by side; 1 reads it from the first to the last unit. None: 1 for up to 20,000 units,
            else 32, each warmed up on the 256 units before its part, which costs a tenth of the time and
            changes the sum by less than 0.1 %.
    """
    network.eval()
    if streams is None:
        streams = 1 if len(corpus) <= EXACT_UP_TO else SIDE_BY_SIDE
    device = next(network.parameters()).device
    state, total = None, 0.0
    for chunk in ScoringStreams(corpus.ids, corpus.starts, corpus.start, streams=streams):
        batch = chunk.to(device)
        h, state = network.encode(batch["x"], state, resets=batch.get("resets"))
        counted = batch["counted"]
        total += float(network.unit_nats(h[counted], batch["y"][counted]))
    return total


def scores_of(nats: float, corpus: Corpus) -> dict[str, Any]:
    """Perplexity, nats per unit, and bits per character of the text, line feeds counted."""
    per_unit = nats / len(corpus)
    return {
        "perplexity": math.exp(min(per_unit, 700.0)),
        "nats": per_unit,
        "bits_per_char": nats / math.log(2) / corpus.characters,
    }


def score_table(
    name: str, network: LanguageNetwork, baselines: Mapping[str, float], corpus: Corpus
) -> dict[str, Any]:
    """{"model": {NAME: scores}, "baselines": {NAME: scores}}; `baselines` are summed nats by name."""
    return {
        "model": {name: scores_of(text_nats(network, corpus), corpus)},
        "baselines": {other: scores_of(nats, corpus) for other, nats in baselines.items()},
    }
