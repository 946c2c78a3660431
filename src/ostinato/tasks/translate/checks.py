"""Whether the parameters of a translator can be used, as far as that needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ostinato.data.pair_units import check_unit
from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.dropout import check_probability
from ostinato.models.encoder import check_cell
from ostinato.models.seq2seq_options import read_options
from ostinato.training.settings import TrainingSettings

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

E = TypeVar("E", bound="Translator")

_SIZES = ("hidden_size", "embedding_size", "num_layers", "batch_size", "vocabulary_size", "beam")
_LENGTHS = ("max_source_length", "max_target_length")
_OF_TRAINING = ("epochs", "max_time_s", "learning_rate", "weight_decay", "seed")


def checked_parameters(estimator: E) -> E:
    """A copy with plain Python numbers.

    Raises:
        InputError: a parameter out of its range, or parameters that exclude each other.
    """
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in estimator.get_params().items()}
    s = type(estimator)(**plain)
    sizes = {name: value for name in (*_SIZES, *_LENGTHS) if (value := getattr(s, name)) is not None}
    check_sizes(type(s).__name__, **sizes)
    for name in ("dropout", "word_dropout", "label_smoothing"):
        if getattr(s, name) is not None:
            check_probability(name, getattr(s, name))
    if s.held_out is not None and not 0 < s.held_out < 1:
        raise InputError(f"held_out is {s.held_out!r}, expected a fraction between 0 and 1")
    if s.length_penalty < 0:
        raise InputError(f"length_penalty is {s.length_penalty!r}, expected 0 or more")
    if s.no_repeat_ngram is not None and s.no_repeat_ngram < 0:
        raise InputError(f"no_repeat_ngram is {s.no_repeat_ngram!r}, expected 0 or more")
    for unit in (s.unit or "auto").split(","):
        if unit.strip() != "auto":
            check_unit(unit.strip())
    if s.cell is not None:
        check_cell(s.cell, s.hidden_size or 8, s.num_layers or 1)
    options = {
        "attention": s.attention or "general",
        "feeding": s.feeding,
        "copying": bool(s.copying if s.copying is not None else s.defaults["copying"]),
        "coverage": s.coverage,
        "hidden_size": s.hidden_size or 8,
    }
    read_options(type(s).__name__, options, has_source=True)
    budgets = {name: value for name in _OF_TRAINING if (value := getattr(s, name)) is not None}
    TrainingSettings(**budgets, patience_validations=s.patience)
    return s
