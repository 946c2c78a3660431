"""Which sequences are held out for validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError
from ostinato.tasks.sequences.network import Part
from ostinato.tasks.sequences.targets import Targets


@dataclass(frozen=True)
class Split:
    """What is learned from, and what is checked on.

    Attributes:
        part: to learn from.
        checks: to validate on, or None.
        seen: targets of `part`, and of `checks` where both come from the same data.
    """

    part: Part
    checks: Part | None
    seen: Targets


def split_off(part: Part, fraction: Any, seed: int, groups: NDArray[Any] | None) -> Split:
    """Hold out a random fraction of the sequences, of every group about as much.

    Args:
        part: N sequences with targets.
        fraction: between 0 and 1.
        seed: decides which.
        groups: (N,) values that the held-out part should be a fair sample of, or None.

    Raises:
        InputError: not a fraction, or nothing would be left to learn from.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise InputError(
            f"validation is {fraction!r}, expected a fraction between 0 and 1, (X, y) or (X, y, lengths)"
        )
    assert part.targets is not None
    N = len(part)
    n_checks = max(1, round(fraction * N))
    if n_checks >= N:
        raise InputError(f"validation={fraction} of {N} sequences leaves none to learn from; lower it")
    order = np.random.default_rng([seed, 1]).permutation(N)
    if groups is not None:
        order = order[np.argsort(groups[order], kind="stable")]
    is_check = np.zeros(N, np.bool_)
    is_check[order[((np.arange(n_checks) + 0.5) * N / n_checks).astype(np.int64)]] = True
    chosen, rest = np.flatnonzero(is_check), np.flatnonzero(~is_check)
    return Split(part.select(rest), part.select(chosen), part.targets)
