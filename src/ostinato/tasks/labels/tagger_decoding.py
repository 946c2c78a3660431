"""What a tagger's network says of sentences: tags, probabilities, labels; long ones put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.models.tagger import JointTagger, TaggerNetwork
from ostinato.tasks.labels.tagger_inputs import Stretch, TaggedTokens

TOKENS, ROWS = 6000, 128  # of a batch, padding included


@dataclass
class Said:
    """Of N sentences, what the network says.

    Attributes:
        tags: N arrays (T_i,) of learned tags.
        probabilities: N arrays (T_i, K); empty where they were not asked for.
        label_probabilities: (N, C); None for a network of tags alone.
    """

    tags: list[NDArray[np.int64]]
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)
    label_probabilities: NDArray[np.float32] | None = None


def say(network: TaggerNetwork, encoded: TaggedTokens, *, with_probabilities: bool = False) -> Said:
    """Run a network over sentences, those of similar length together.

    The stretches of a long sentence are read one by one, each with tokens of its neighbours around it; the
    chain over the tags then reads the sentence as a whole. The probabilities of its label are the mean of
    those of its stretches, by their length.

    Cost: memory for the emissions of one batch, and of each cut sentence.
    """
    N = encoded.sentences
    N = encoded.sentences
    said = Said([np.empty(0, np.int64)] * N)
    if with_probabilities:
        said.probabilities = [np.empty((0, network.num_tags), np.float32)] * N
    if isinstance(network, JointTagger):
        said.label_probabilities = np.zeros((N, network.class_head.out_features), np.float32)
    parts: dict[int, dict[int, Tensor]] = {}
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        for rows in encoded.by_length(TOKENS, ROWS):
            batch = encoded.batch(rows).to(device)
            emissions = network(batch)
            chosen = [encoded.stretch(row) for row in rows.tolist()]
            if isinstance(network, JointTagger):
                emissions, logits = emissions
                _add_labels(said, chosen, logits, encoded)
            whole = [i for i, one in enumerate(chosen) if one.is_whole]
            if whole:
                lengths = batch["lengths"]
                same = len(whole) == len(chosen)
                _read(
                    network,
                    *((emissions, lengths) if same else (emissions[whole], lengths[whole])),
                    [chosen[i].sentence for i in whole],
                    said,
                )
            for i, one in enumerate(chosen):
                if not one.is_whole:
                    kept = emissions[i, one.begin - one.first : one.end - one.first]
                    parts.setdefault(one.sentence, {})[one.begin] = kept.clone()
        for sentence, pieces in parts.items():
            joined = torch.cat([pieces[begin] for begin in sorted(pieces)]).unsqueeze(0)
            _read(network, joined, torch.tensor([joined.shape[1]], device=device), [sentence], said)
    return said


def _add_labels(said: Said, chosen: Sequence[Stretch], logits: Tensor, encoded: TaggedTokens) -> None:
    """Each stretch's share of the probabilities of its sentence's label."""
    assert said.label_probabilities is not None
    shares = torch.softmax(logits.float(), dim=1).cpu().numpy()
    for one, row in zip(chosen, shares, strict=True):
        weight = 1.0 if one.is_whole else (one.end - one.begin) / encoded.sentence_lengths[one.sentence]
        said.label_probabilities[one.sentence] += weight * row


def _read(
    network: TaggerNetwork, emissions: Tensor, lengths: Tensor, sentences: Sequence[int], said: Said
) -> None:
    """Tags and probabilities of whole sentences from their emissions (B, T, K)."""
    crf = network.crf
    tags = emissions.argmax(2) if crf is None else crf.decode(emissions, lengths=lengths)[0]
    counts = lengths.tolist()
    for sentence, row, n in zip(sentences, tags.cpu().numpy(), counts, strict=True):
        said.tags[sentence] = row[:n]
    if said.probabilities:
        shares = torch.softmax(emissions, 2) if crf is None else crf.marginals(emissions, lengths=lengths)
        for sentence, row, n in zip(sentences, shares.float().cpu().numpy(), counts, strict=True):
            said.probabilities[sentence] = row[:n]
