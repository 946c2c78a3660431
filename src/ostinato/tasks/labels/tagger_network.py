"""The network of a tagger: built from what was chosen, and begun with the weights of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ostinato.data.token_encoding import TokenPreparation
from ostinato.models.tagger import JointTagger, TaggerNetwork
from ostinato.tasks.labels.tagger_answers import Answers
from ostinato.tasks.labels.tagger_language import LanguageTokens, language_network
from ostinato.tasks.labels.texts import prepare_tokens
from ostinato.tasks.transfer import Moved, places, take

ENDS = ("crf.", "pooling.", "class_head.")
"""Parts that a tagger may have or not."""


def build_network(
    settings: Any, answers: Answers, preparation: TokenPreparation | LanguageTokens
) -> TaggerNetwork:
    """The untrained network of a `Tagger` with these settings."""
    options: dict[str, Any] = {
        "scheme": answers.spelling.learned if settings.decoder == "crf" else "none",
        "output": settings.decoder,
        "tokens": {"word_size": settings.word_size},
        "cell": settings.cell,
        "hidden_size": settings.hidden_size,
        "num_layers": settings.num_layers,
        "dropout": settings.dropout,
        "language": language_network(preparation),
    }
    sizes = preparation.sizes
    network = (
        JointTagger(sizes, answers.learned, len(answers.labels), **options)
        if answers.labels
        else TaggerNetwork(sizes, answers.learned, **options)
    )
    prepare_tokens(network.tokens, preparation)
    return network


def take_tagger(
    network: nn.Module, first: nn.Module, tables: Mapping[str, Moved], answers: Answers, old: Answers
) -> str:
    """Give a network the weights of another, tag by tag and label by label.

    Args:
        network: takes them.
        first: has them.
        tables: where the rows of the tables of tokens come from.
        answers, old: of both.

    Returns:
        which answers were known.
    """
    tags, labels = places(answers.learned, old.learned), places(answers.labels, old.labels)
    moved = dict(tables)
    for name in ("head.weight", "head.bias", "crf.start", "crf.end"):
        moved[name] = Moved(tags)
    moved["crf.transitions"] = Moved(tags, axes=2)
    for name in ("class_head.weight", "class_head.bias"):
        moved[name] = Moved(labels)
    tensors = first.state_dict()
    missing = [part for part in ENDS if not any(name.startswith(part) for name in tensors)]
    take(network, tensors, moved, missing)
    said = f"{sum(row >= 0 for row in tags)} of {len(tags)} tags"
    if labels:
        said += f" and {sum(row >= 0 for row in labels)} of {len(labels)} labels"
    return f"{said} are known to its output layer"
