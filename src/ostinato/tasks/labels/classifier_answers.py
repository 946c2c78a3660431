"""What a classifier says of a file, as columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

LABEL, PROBABILITY = "label", "probability"


def answer_columns(
    names: Sequence[str], shares: NDArray[Any], ids: Sequence[str] | None, id_name: str
) -> dict[str, list[Any]]:
    """The most probable class of each of N inputs, its probability, and that of every class.

    Args:
        names: K classes.
        shares: (N, K).
        ids: (N,) what the inputs are called: the first column, named `id_name`; None: there is none.

    Returns:
        columns by name; a class called as one of the first columns gets the column p(NAME).
    """
    best = shares.argmax(axis=1).tolist()
    columns: dict[str, list[Any]] = {} if ids is None else {id_name: list(ids)}
    columns[LABEL] = [names[i] for i in best]
    columns[PROBABILITY] = shares.max(axis=1).tolist() if len(shares) else []
    taken = set(columns)
    for i, name in enumerate(names):
        columns[f"p({name})" if name in taken else name] = shares[:, i].tolist()
    return columns
