"""Parameters of a translator by the pairs it learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.pair_files import Pairs
from ostinato.data.pair_units import check_unit, choose_unit
from ostinato.errors import InputError
from ostinato.models.seq2seq_options import MONOTONIC

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

_LOOKED_AT = 20_000
_SAME_LANGUAGE, _SAME_LETTERS = 0.5, 0.9
# Share of the time, products a second, products for a unit and H², and passes below which H is halved.
_OF_TRAINING, _SPEED_HZ, _PRODUCTS, _FEWEST = 0.8, 5e10, 36.0, 2.5
_FASTER = 4.0  # a machine than that
MOST_READ = 400  # units of a source whose beginning alone is read
MANY = 12  # passes, in which monotonic attention learns a training part by heart
SHORT, LONG = ("char", "symbol"), ("word", "bpe")


def choose(settings: Translator, data: Pairs, first: Translator | None) -> list[str]:
    """Give every parameter that is None a value, but those of `choose_network`; notes about what was judged
    from the texts.

    Args:
        settings: is changed.
        data: to learn from.
        first: the run that is gone on with.

    Raises:
        InputError: an unknown unit.
    """
    assert data.targets is not None
    note = ""
    if first is not None:
        kinds = first.preparation_.source_units.kind, first.preparation_.target_units.kind
    else:
        asked = settings.unit or settings.defaults.get("unit")
        source, target, note = choose_units(asked, data.sources, data.targets)
        kinds = source, target
    copies = bool(settings.defaults["copying"] if settings.copying is None else settings.copying)
    words = count_words(data.sources) + count_words(data.targets)
    chosen = {
        "vocabulary_size": vocabulary_size(kinds, words, copies=copies),
        "shared": is_better_shared(kinds, data.sources, data.targets),
        "held_out": float(np.clip(2000 / max(len(data), 1), 0.005, 0.1)),
        **settings.defaults,
    }
    if settings.cuts:
        chosen["max_source_length"] = MOST_READ
    _fill(settings, chosen)
    settings.unit = ",".join(kinds)
    return [note] if note else []


def choose_network(settings: Translator, data: Pairs) -> None:
    """Give a value to the parameters of the network and its training that are None.

    Args:
        settings: is changed; units and attention are chosen.
        data: to learn from.
    """
    assert settings.unit is not None
    assert data.targets is not None
    source, target = settings.unit.split(",")
    words = count_words(data.sources) + count_words(data.targets)
    units = words * 1.2 if target in LONG else 2.0 * words
    _fill(settings, chosen_parameters(settings, (source, target), len(data), units / len(data)))


def _fill(settings: Translator, chosen: Mapping[str, Any]) -> None:
    for name, value in chosen.items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)


def choose_units(unit: str | None, sources: Sequence[str], targets: Sequence[str]) -> tuple[str, str, str]:
    """The kinds of units of both sides, and a note about those that were not asked for.

    Args:
        unit: one for both sides, two with a comma between, or None; `auto` stands for a side to be chosen.
        sources, targets: texts.

    Raises:
        InputError: an unknown unit.
    """
    asked = ["auto", "auto"] if unit is None else [part.strip() for part in unit.split(",")]
    if len(asked) > 2:
        raise InputError(
            f"unit: {unit!r} has {len(asked)} parts; expected one, or two: of sources and of targets, as in "
            "char,symbol"
        )
    kinds, notes = [], []
    for name, texts, kind in zip(("sources", "targets"), (sources, targets), [*asked, *asked], strict=False):
        if kind == "auto":
            chosen, why = choose_unit(texts)
            kinds.append(chosen)
            notes.append(f"{name} {chosen} ({why})")
        else:
            check_unit(kind)
            kinds.append(kind)
    note = f"units: {', '.join(notes)}" if notes else ""
    return kinds[0], kinds[1], note


def is_better_shared(kinds: tuple[str, str], sources: Sequence[str], targets: Sequence[str]) -> bool:
    """Whether one vocabulary serves both sides.

    It does for two texts of one language; and for byte pairs of two languages that are written in the same
    letters, whose names, numbers and related words then are the same units (arXiv:1508.07909).
    """
    if kinds[0] != kinds[1]:
        return False
    if is_one_language(sources, targets):
        return True
    if kinds[0] != "bpe":
        return False
    return all(share_of_letters(*two) >= _SAME_LETTERS for two in ((sources, targets), (targets, sources)))


def share_of_letters(texts: Sequence[str], others: Sequence[str]) -> float:
    """Of the letters in some texts, each as often as it is there, how many the others have too."""
    counts = Counter("".join(some_of(texts)).lower())
    known = set("".join(some_of(others)).lower())
    letters = {letter: n for letter, n in counts.items() if letter.isalpha()}
    return sum(n for letter, n in letters.items() if letter in known) / max(sum(letters.values()), 1)


def some_of(texts: Sequence[str]) -> list[str]:
    """At most about 2,000 of the texts, spread evenly."""
    return [texts[i] for i in range(0, len(texts), max(1, len(texts) // 2000))]


def is_one_language(sources: Sequence[str], targets: Sequence[str]) -> bool:
    """Whether half of the targets' words or more occur in their own source."""
    inside = total = 0
    for source, target in zip(some_of(sources), some_of(targets), strict=True):
        known = set(source.lower().split())
        words = target.lower().split()
        inside, total = inside + sum(word in known for word in words), total + len(words)
    return total > 0 and inside >= _SAME_LANGUAGE * total


def count_words(texts: Sequence[str]) -> int:
    """How many stand between blanks; judged by some where there are many."""
    step = max(1, len(texts) // _LOOKED_AT)
    looked = range(0, len(texts), step)
    return int(sum(len(texts[i].split()) for i in looked) * len(texts) / max(len(looked), 1))


def vocabulary_size(kinds: tuple[str, str], words: int, *, copies: bool) -> int:
    """Byte pairs or words to know where a text has so many words; what can be copied need not be known."""
    if "bpe" in kinds:
        return int(np.clip(round(words / 180, -2), 400, 16_000))
    return 16_000 if copies else 30_000


def network_sizes(
    kinds: tuple[str, str], pairs: int, units: float, max_time_s: float | None
) -> dict[str, int]:
    """Widths of the network: by the amount of data, and smaller where a few passes would not fit the time."""
    if kinds[1] in SHORT:
        hidden = 256 if pairs >= 10_000 else 128
    else:
        hidden = 512 if pairs >= 20_000 else 256 if pairs >= 2_000 else 128
    while max_time_s is not None and hidden > 64 and passes(hidden, pairs * units, max_time_s) < _FEWEST:
        hidden //= 2
    return {"hidden_size": hidden, "embedding_size": max(hidden // 2, 64), "num_layers": 1}


def passes(hidden: int, units: float, max_time_s: float) -> float:
    """How often so many units can be learned from, by a rough guess at one core of a small machine."""
    return _OF_TRAINING * max_time_s * _SPEED_HZ / (_PRODUCTS * hidden**2 * units)


def usual_epochs(pairs: int, units: float, hidden: int, max_time_s: float | None) -> int:
    """Passes over the training part: where time is given, as many as may still help and may just fit."""
    usual = float(np.clip(20 * (30_000 / max(pairs, 1)) ** 0.5, 6, 100))
    if max_time_s is None:
        return round(usual)
    return max(1, round(min(3 * usual, _FASTER * passes(hidden, pairs * units, max_time_s))))


def usual_dropout(kinds: tuple[str, str], pairs: int, *, is_overfitting: bool = False) -> float:
    """Less where there is much to learn from: there the time ends before the network knows it by heart.

    Args:
        kinds: of units.
        pairs: N.
        is_overfitting: whether it does not.
    """
    if pairs < 10_000:
        return 0.3
    return 0.1 if kinds[1] in SHORT and not is_overfitting else 0.2


def batch_size(pairs: int, units: float) -> int:
    """Pairs of a step: fewer where they are few or long.

    Args:
        pairs: N.
        units: of a pair, on average.
    """
    by_number = 2 ** round(np.log2(max(pairs, 1) / 400))
    by_length = 2 ** round(np.log2(4000 / max(units, 1)))
    return int(np.clip(min(by_number, by_length), 16, 128))


def longest(lengths: NDArray[np.int64]) -> int:
    """So many units as hardly a text has: those that have more are mistakes, or cost more than they teach."""
    usual = float(np.quantile(lengths, 0.9, method="lower")) if len(lengths) else 1.0
    return int(np.clip(3 * usual, 50, 1000))


def chosen_parameters(
    settings: Translator, kinds: tuple[str, str], pairs: int, units: float
) -> dict[str, Any]:
    """A value for every parameter of the network and its training that may be None."""
    limit_s, is_monotonic = settings.max_time_s, settings.attention == MONOTONIC
    sizes = network_sizes(kinds, pairs, units, limit_s)
    hidden = settings.hidden_size or sizes["hidden_size"]
    epochs = usual_epochs(pairs, units, hidden, limit_s)
    expected = epochs if limit_s is None else passes(hidden, pairs * units, limit_s)
    return {
        "cell": "lstm",
        **sizes,
        "dropout": usual_dropout(kinds, pairs, is_overfitting=is_monotonic and expected >= MANY),
        "epochs": epochs,
        "batch_size": batch_size(pairs, units),
        "learning_rate": 2e-3,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
    }
