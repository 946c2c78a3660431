"""Whether the parameters of a translator can be used, as far as that needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ostinato.data.byte_pairs import FEWEST_PAIRS
from ostinato.data.pair_units import check_unit
from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.dropout import check_probability
from ostinato.models.decoding import Rules
from ostinato.models.decoding_draws import is_number
from ostinato.models.encoder import check_cell
from ostinato.models.seq2seq_options import MONOTONIC, read_options
from ostinato.tasks.translate.joining import AUTO, USUAL
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
    if s.held_out is not None and not (is_number(s.held_out) and 0 < s.held_out < 1):
        raise InputError(f"held_out is {s.held_out!r}, expected a fraction between 0 and 1")
    if not (is_number(s.length_penalty) and s.length_penalty >= 0):
        raise InputError(f"length_penalty is {s.length_penalty!r}, expected a number of 0 or more")
    if s.no_repeat_ngram is not None:
        Rules(no_repeat_ngram=s.no_repeat_ngram)
    _check_units(s.unit, s.vocabulary_size)
    _check_joint(s)
    if s.attention == MONOTONIC and s.cuts:
        raise InputError("attention='monotonic' does not go with a summarizer; leave it out")
    if s.cell is not None:
        check_cell(s.cell, s.hidden_size or 8, s.num_layers or 1)
    if s.coverage and s.attention != "additive":
        raise InputError(
            f"coverage=True acts on additive attention, and attention is {s.attention!r}; pass "
            "attention='additive' (--attention additive) too"
        )
    options = {
        "attention": USUAL if s.attention == AUTO else s.attention,
        "feeding": s.feeding,
        "copying": bool(s.copying if s.copying is not None else s.defaults["copying"]),
        "coverage": s.coverage,
        "hidden_size": s.hidden_size or 8,
    }
    read_options(type(s).__name__, options, has_source=True)
    budgets = {name: value for name in _OF_TRAINING if (value := getattr(s, name)) is not None}
    TrainingSettings(**budgets, patience_validations=s.patience)
    return s


def _check_joint(s: Translator) -> None:
    if s.joint not in (None, False, True):
        raise InputError(f"joint is {s.joint!r}, expected True, False or None")
    if not s.joint:
        return
    for name, is_so in (
        ("a summarizer", s.cuts), ("copying=True", s.copying), ("beam=1", s.beam == 1),
    ):  # fmt: skip
        if is_so:
            raise InputError(f"joint=True does not go with {name}; leave one of them out")


def _check_units(unit: object, vocabulary_size: int | None) -> None:
    if unit is None:
        return
    if not isinstance(unit, str):
        raise InputError(f"unit={unit!r}: expected a text, such as word or char,symbol")
    kinds = [part.strip() for part in unit.split(",")]
    for kind in kinds:
        if kind != "auto":
            check_unit(kind)
    if "bpe" in kinds and (vocabulary_size or FEWEST_PAIRS) < FEWEST_PAIRS:
        raise InputError(
            f"vocabulary_size={vocabulary_size}: of byte pairs (unit={unit!r}) at least {FEWEST_PAIRS} are "
            "needed, one for each byte; give more, or leave it out"
        )
