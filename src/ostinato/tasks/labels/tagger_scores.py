"""Scores of tags, and of labels beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ostinato.tasks.labels.scores import NAMED, class_scores
from ostinato.tasks.labels.spans import span_scores, tag_accuracy

Rows = Sequence[Sequence[str]]


def tag_scores(actual: Rows, said: Rows, *, has_spans: bool) -> dict[str, float]:
    """accuracy over tokens, and where tags spell spans span_f1, span_precision and span_recall."""
    return {"accuracy": tag_accuracy(actual, said), **(span_scores(actual, said) if has_spans else {})}


def label_scores(actual: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """label_accuracy and label_macro_f1 of the labels of sentences."""
    return {f"label_{name}": value for name, value in class_scores(actual, said).items()}


def exact_match(actual: Rows, said: Rows, labels: Sequence[str], said_labels: Sequence[str]) -> float:
    """The share of sentences whose label and tags are all right."""
    pairs = zip(actual, said, labels, said_labels, strict=True)
    right = [list(a) == list(b) and one == other for a, b, one, other in pairs]
    return sum(right) / max(len(right), 1)


def unknown_note(what: str, found: Iterable[str], known: Iterable[str]) -> str | None:
    """What to say of answers that training did not have; None where there are none."""
    among = set(known)
    unknown = Counter(answer for answer in found if answer not in among)
    if not unknown:
        return None
    named = ", ".join(f"{answer!r} ({count})" for answer, count in unknown.most_common(NAMED))
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return (
        f"{sum(unknown.values())} {what} are none that training had and count as wrong answers: {named}{more}"
    )
