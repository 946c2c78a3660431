"""The answers of a classifier: classes of the type they were given in, columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
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


def typed(names: Sequence[str], label_type: str) -> NDArray[Any]:
    """Classes (K,) as they were given: of text, int or bool, as `reading.label_type` calls it."""
    if label_type == "int":
        return np.array([int(name) for name in names], np.int64)
    if label_type == "bool":
        return np.array([name == "True" for name in names], np.bool_)
    return np.array(names)


def sklearn_tags() -> Any:
    """What scikit-learn asks an estimator about itself."""
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

    return Tags(
        estimator_type="classifier",
        target_tags=TargetTags(required=True),
        input_tags=InputTags(two_d_array=True, three_d_array=True, string=True),
        classifier_tags=ClassifierTags(),
    )
