"""Spans: what tags such as B-NP, I-NP, O say together, and the scores that are about them.

| scheme | letters | how a span begins |
| --- | --- | --- |
| `iob1` | I, O, and B only where a span follows one of its own type at once | I, rarely B |
| `iob2` | B, I, O | B |
| `bioes` | B, I, E (or L), S (or U), O; also BMES | B, or S for a span of one token |

A span is (type, first, end): the tokens first … end - 1; tags without a type have the type "". Reading is
lenient as the CoNLL script `conlleval` is, and as the library `seqeval` is unless told to be strict: I-X
after another type begins a span.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ostinato.errors import InputError, MissingExtraError
from ostinato.layers.options import check_choice

OUTSIDE = "O"
SCHEMES = ("iob1", "iob2", "bioes")
Span = tuple[str, int, int]

_TAG = re.compile(r"([BIESLUM])(?:-(.+))?", re.DOTALL)
# other letters for the same thing: BILOU, and BMES as word segmentation writes it
_MEANS = {"L": "E", "U": "S", "M": "I"}


def detect_scheme(rows: Iterable[Sequence[str]]) -> str | None:
    """How the tags of some sentences write spans: a name in `SCHEMES`, or None where they are no spans.

    They are spans where every tag but O is a letter of a scheme with a type (`B-NP`), or where they are bare
    letters and B or S is among them.

    Cost: one pass over all tags.
    """
    letters: set[str] = set()
    typed, starts_inside, needless_begins, seen = False, 0, 0, set()
    for row in rows:
        before: tuple[str, str] = (OUTSIDE, "")
        for tag in row:
            now = split_tag(tag)
            if now is None:
                return None
            if tag not in seen:
                seen.add(tag)
                letters.add(now[0])
                typed = typed or "-" in tag
            follows = before[0] != OUTSIDE and before[1] == now[1]
            starts_inside += now[0] == "I" and not follows
            needless_begins += now[0] == "B" and not follows
            before = now
    letters.discard(OUTSIDE)
    if not letters or not (typed or letters & {"B", "S"}):
        return None
    if letters & {"E", "S"}:
        return "bioes"
    return "iob1" if starts_inside > needless_begins else "iob2"


def split_tag(tag: str) -> tuple[str, str] | None:
    """(letter, type) of a tag, the letter one of B, I, E, S, O; None where it is no tag of spans."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _TAG.fullmatch(tag)
    return match and (_MEANS.get(match[1], match[1]), match[2] or "")


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence, in any scheme.

    Raises:
        InputError: a tag that is none of spans.
    """
    found: list[Span] = []
    kind, first, before = "", 0, OUTSIDE
    for t, tag in enumerate([*tags, OUTSIDE]):
        now = split_tag(tag)
        if now is None:
            raise InputError(
                f"tag {tag!r} at token {t + 1}: expected O, or B, I, E or S with a type, such as B-NP"
            )
        letter, own = now
        ends = before != OUTSIDE and (before in "ES" or letter in "BSO" or own != kind)
        if ends:
            found.append((kind, first, t))
        if letter != OUTSIDE and (ends or before == OUTSIDE):
            first = t
        kind, before = own, letter
    return found


def write_spans(found: Iterable[Span], length: int, scheme: str) -> list[str]:
    """The tags of a sentence of `length` tokens: the inverse of `spans`.

    Args:
        found: spans that do not overlap, in their order.
        length: T.
        scheme: a name in `SCHEMES`.

    Raises:
        InputError: an unknown scheme.
    """
    check_choice("write_spans", "scheme", scheme, SCHEMES)
    tags = [OUTSIDE] * length
    before: Span = ("", 0, -1)
    for span in found:
        kind, first, end = span
        suffix = f"-{kind}" if kind else ""
        tags[first:end] = [f"I{suffix}"] * (end - first)
        touches = before[2] == first and before[0] == kind
        if scheme != "iob1" or touches:
            tags[first] = f"B{suffix}"
        if scheme == "bioes":
            tags[end - 1] = f"E{suffix}" if end - first > 1 else f"S{suffix}"
        before = span
    return tags


def span_scores(actual: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """span_f1, span_precision and span_recall by seqeval's default definition: micro averages over all spans.

    A span counts where type, first and last token are all right.

    Raises:
        MissingExtraError: seqeval is not installed.
    """
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score
    except ImportError:
        raise MissingExtraError("scoring spans", "seqeval", "labels") from None
    pair = (
        [[_as_seqeval(tag) for tag in row] for row in actual],
        [[_as_seqeval(tag) for tag in row] for row in said],
    )
    return {
        "span_f1": float(f1_score(*pair, zero_division=0)),
        "span_precision": float(precision_score(*pair, zero_division=0)),
        "span_recall": float(recall_score(*pair, zero_division=0)),
    }


def tag_accuracy(actual: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> float:
    """The share of tokens with the right tag, by scikit-learn.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import accuracy_score
    except ImportError:
        raise MissingExtraError("scoring tags", "scikit-learn", "labels") from None
    flat: Any = [[tag for row in rows for tag in row] for rows in (actual, said)]
    return float(accuracy_score(*flat)) if flat[0] else float("nan")


def _as_seqeval(tag: str) -> str:
    """The same tag in the letters that seqeval knows: B, I, E, S, O."""
    return _MEANS[tag[0]] + tag[1:] if tag[0] in _MEANS and split_tag(tag) else tag
