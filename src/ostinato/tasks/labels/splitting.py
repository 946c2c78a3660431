"""What is learned from and what is held out; what the flow of fitting needs to know of encoded examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import InputError
from ostinato.types import Batch

Rows = NDArray[np.int64]
ROUNDING = 1e-6  # of sums of fractions


class Encoded(Protocol):
    """N examples as the network takes them."""

    @property
    def lengths(self) -> Any:
        """(N,) how many steps each has, to batch by."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Any) -> Batch:
        """Some rows, padded to the longest of them."""
        ...


@dataclass(frozen=True)
class Held:
    """Rows to learn from and rows to validate on.

    Attributes:
        learned: rows that some member of the network learns from.
        checked: rows that some member does not learn from.
        folds: (N,) member m does not learn from the rows of fold m; None where there is one member, whose
            `learned` and `checked` are apart.
    """

    learned: Rows
    checked: Rows
    folds: Rows | None = None

    @classmethod
    def none(cls, n: int) -> Self:
        """All n are learned from."""
        return cls(np.arange(n), np.empty(0, np.int64))

    def folds_of(self, rows: Rows) -> Rows | None:
        """The folds of some rows."""
        return None if self.folds is None else self.folds[rows]


def hold_out(n: int, fraction: float, seed: int, strata: Sequence[Any] | None = None) -> Held:
    """A random fraction of n rows, of every stratum about as much, and never all of a stratum.

    Raises:
        InputError: nothing is left to learn from or to check on.
    """
    if n < 2:
        raise _too_few(n)
    fraction = min(max(fraction, 1 / n), 1 - 1 / n)
    order = _by_stratum(n, seed, strata)
    places = np.arange(n) + _start(seed, max(2, round(1 / fraction)))
    chosen = np.empty(n, np.bool_)
    # Evenly spread: where the sum of the fractions passes a whole number.
    chosen[order] = np.floor(places * fraction + ROUNDING) > np.floor((places - 1) * fraction + ROUNDING)
    if strata is not None:
        _, firsts, codes, counts = np.unique(
            np.asarray(strata), return_index=True, return_inverse=True, return_counts=True
        )
        chosen[firsts[np.bincount(codes[chosen], minlength=len(counts)) == counts]] = False
    if not chosen.any() or chosen.all():
        raise _too_few(n)
    return Held(np.flatnonzero(~chosen), np.flatnonzero(chosen))


def fold_out(n: int, members: int, count: int, seed: int, strata: Sequence[Any] | None = None) -> Held:
    """For each of several members another `1 / count` of the rows; all rows are learned from by some.

    Args:
        n: rows.
        members: how many parts are held out, 2 or more and at most `count`.
        count: folds.
        seed: decides which row is in which.
        strata: (n,) values of which each fold is a fair sample. A row that is alone in its stratum is always
            learned from.
    """
    own = folds(n, count, seed, strata)
    if strata is not None:
        own[_alone(strata)] = count
    checked = np.flatnonzero(own < members)
    if not len(checked):
        raise _too_few(n)
    return Held(np.arange(n), checked, own)


def folds(n: int, count: int, seed: int, strata: Sequence[Any] | None = None) -> Rows:
    """(n,) a fold from 0 for each row, of sizes that differ by at most one, spread evenly over the strata."""
    result = np.empty(n, np.int64)
    result[_by_stratum(n, seed, strata)] = (np.arange(n) + _start(seed, count)) % count
    return result


def _by_stratum(n: int, seed: int, strata: Sequence[Any] | None) -> Rows:
    """(n,) the rows in random order, those of a stratum together."""
    order = np.random.default_rng([seed, 1]).permutation(n)
    if strata is None:
        return order
    _, codes = np.unique(np.asarray(strata), return_inverse=True)
    return order[np.argsort(codes[order], kind="stable")]


def _start(seed: int, count: int) -> int:
    """A random one of `count` folds: else the first would always be the larger ones of the first class."""
    return int(np.random.default_rng([seed, 2]).integers(count))


def _too_few(n: int) -> InputError:
    return InputError(
        f"{n} examples, or those of each class, are too few to hold out any for validation; give more of "
        "each class, or others to validate on (valid=, --valid)"
    )


def _alone(strata: Sequence[Any]) -> NDArray[np.bool_]:
    _, codes, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    alone: NDArray[np.bool_] = counts[codes] == 1
    return alone
