"""What a language model's parameters may be, as far as that can be told without the text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ostinato.data.byte_pairs import FEWEST_PAIRS
from ostinato.data.corpus import DOCUMENTS
from ostinato.data.corpus_units import SPLITTINGS, UNITS
from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.dropout import check_probability
from ostinato.layers.options import check_choice
from ostinato.models.decoding_draws import is_number
from ostinato.models.encoder import check_cell
from ostinato.training.settings import AVERAGING, TrainingSettings

if TYPE_CHECKING:
    from ostinato.tasks.language.estimator import LanguageModel

_SIZES = (
    "hidden_size", "embedding_size", "num_layers", "batch_size", "chunk", "vocabulary_size", "minimum_count"
)  # fmt: skip
_PROBABILITIES = ("dropout", "dropout_in", "dropout_between", "word_dropout", "weight_drop")


def check_parameters(settings: LanguageModel) -> None:
    """Refuse what cannot be used.

    Raises:
        InputError: names the parameter, what was found, and what it may be.
    """
    check_sizes("LanguageModel", **{n: v for n in _SIZES if (v := getattr(settings, n)) is not None})
    check_choice("LanguageModel", "unit", settings.unit, (None, *UNITS))
    check_choice("LanguageModel", "splitting", settings.splitting, (None, *SPLITTINGS))
    check_choice("LanguageModel", "documents", settings.documents, DOCUMENTS)
    check_choice("LanguageModel", "averaging", settings.averaging, AVERAGING)
    for name in _PROBABILITIES:
        if getattr(settings, name) is not None:
            check_probability(name, getattr(settings, name))
    for name in ("activation", "slowness"):
        if not (is_number(getattr(settings, name)) and getattr(settings, name) >= 0):
            raise InputError(f"{name} is {getattr(settings, name)!r}, expected a number of at least 0")
    if not (is_number(settings.held_out) and 0 < settings.held_out < 1):
        raise InputError(f"held_out is {settings.held_out!r}, expected a fraction between 0 and 1")
    if settings.unit == "bpe" and (settings.vocabulary_size or FEWEST_PAIRS) < FEWEST_PAIRS:
        raise InputError(
            f"vocabulary_size={settings.vocabulary_size}: of byte pairs (unit='bpe') at least {FEWEST_PAIRS} "
            "are needed, one for each byte; give more, or leave it out"
        )
    if settings.init is not None and not isinstance(settings.init, str | os.PathLike):
        raise InputError(f"init={settings.init!r}: expected the folder of a run")
    if settings.splitting is not None and settings.unit not in (None, "word"):
        raise InputError(f"splitting={settings.splitting!r} is about words, and unit is {settings.unit!r}")
    if settings.cell is not None:
        check_cell(settings.cell, settings.hidden_size or 8, settings.num_layers or 1)
    given = ("epochs", "max_time_s", "learning_rate", "weight_decay", "seed")
    budgets = {name: value for name in given if (value := getattr(settings, name)) is not None}
    TrainingSettings(**budgets, patience_validations=settings.patience)
