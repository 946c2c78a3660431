"""What is held out for validation: sources, with all that they may become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ostinato.data.pair_files import Pairs
from ostinato.errors import InputError

Rows = NDArray[np.int64]
MOST_SCORED = 1000


def hold_out(sources: Sequence[str], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to validate on; pairs with one source stay together.

    Args:
        sources: N texts.
        fraction: of the different sources, at least one of them.
        seed: decides which.

    Raises:
        InputError: fewer than two different sources.
    """
    codes: dict[str, int] = {}
    own = np.array([codes.setdefault(source, len(codes)) for source in sources], np.int64)
    if len(codes) < 2:
        raise InputError(
            f"{len(sources)} pairs with {len(codes)} different sources are too few to hold out any for "
            "validation; give more, or others to validate on (valid=, --valid)"
        )
    count = min(max(round(fraction * len(codes)), 1), len(codes) - 1)
    chosen = np.zeros(len(codes), np.bool_)
    chosen[np.random.default_rng([seed, 1]).permutation(len(codes))[:count]] = True
    return np.flatnonzero(~chosen[own]), np.flatnonzero(chosen[own])


def some_sources(checked: Pairs, seed: int) -> tuple[Pairs, str]:
    """Of many pairs those of 1,000 different sources, drawn at random, and a note that says so."""
    names = list(dict.fromkeys(checked.sources))
    if len(names) <= MOST_SCORED:
        return checked, ""
    order = np.random.default_rng([seed, 6]).permutation(len(names))
    chosen = {names[i] for i in order[:MOST_SCORED].tolist()}
    rows = [i for i, source in enumerate(checked.sources) if source in chosen]
    return checked.select(rows), (
        f"scores are of {MOST_SCORED:,} of the {len(names):,} different sources of the validation part, "
        "drawn at random"
    )
