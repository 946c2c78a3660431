"""Scores of classes, by scikit-learn; and of probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import MissingExtraError
from ostinato.tasks.labels.calibration import calibration_error

NAMED = 5  # of the unknown answers in a note


def need_sklearn(feature: str) -> None:
    """Refuse to begin what scikit-learn is needed for at the end.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError:
        raise MissingExtraError(feature, "scikit-learn", "labels") from None


def class_scores(actual: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """accuracy and macro_f1 (the mean over all classes that occur in either), as scikit-learn has them."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(list(actual), list(said))),
        "macro_f1": float(f1_score(list(actual), list(said), average="macro", zero_division=0.0)),
    }


def probability_scores(codes: NDArray[np.int64], probabilities: NDArray[Any]) -> dict[str, float]:
    """log_loss (nats) and calibration_error; of the examples whose class is known (code 0 or more)."""
    known = codes >= 0
    codes, probabilities = codes[known], probabilities[known]
    if not len(codes):
        return {"log_loss": float("nan"), "calibration_error": float("nan")}
    # A probability of 0 would make the mean infinite whatever the others are.
    at_label = np.maximum(probabilities[np.arange(len(codes)), codes], 1e-30)
    return {
        "log_loss": float(-np.log(at_label).mean()),
        "calibration_error": calibration_error(probabilities, codes),
    }


def strange_classes(labels: Sequence[str] | None, known: Collection[str]) -> list[str]:
    """A note where the column of the classes holds none of them: the columns may be in another order."""
    if labels is None or not len(labels) or any(label in known for label in labels):
        return []
    found = ", ".join(map(repr, list(dict.fromkeys(label[:40] for label in labels))[:3]))
    return [
        f"where training had the classes, the data hold none of them ({found}); are the columns in another "
        "order?"
    ]


def unknown_classes(labels: Sequence[str], known: Collection[str], where: str) -> list[str]:
    """A note about classes that training did not have, if there are such."""
    unknown = Counter(label for label in labels if label not in known)
    if not unknown:
        return []
    named = ", ".join(f"{label!r} ({n})" for label, n in unknown.most_common(NAMED))
    more = "" if len(unknown) <= NAMED else f" and {len(unknown) - NAMED} more"
    return [
        f"{sum(unknown.values())} examples of {where} are of classes that the training part does not "
        f"have: {named}{more}; they count as wrong answers and are left out of log_loss"
    ]
