"""Tags that spell spans: in which letters the network learns them, and the scores that are about spans.

`layers/crf_constraints.py` has the schemes (B-NP, I-NP, O and their kin). Here come other ways to write the
same, which data have: bare letters (B, I, O), and M for the inside of a span (BMES).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from ostinato.errors import MissingExtraError
from ostinato.layers.crf_constraints import infer_scheme, respell

OUTSIDE = "O"
BARE = frozenset("BIESLUM")
SAMPLE = 20_000


@dataclass(frozen=True)
class TagSpelling:
    """Between the tags of the data and those that a network learns.

    Attributes:
        scheme: of the data (`bio`, `iob1`, `bioes`, `bilou`), or `none` where tags are no spans.
        learned: the scheme that the network learns; another one can be easier to learn.
        is_bare: the data write B for what elsewhere is B-TYPE.
        inside: the data's letter for the inside of a span, I or M.
    """

    scheme: str = "none"
    learned: str = "none"
    is_bare: bool = False
    inside: str = "I"

    @classmethod
    def infer(
        cls, rows: Iterable[Sequence[str]], tags: Iterable[str] | None = None, *, learn_ends: bool = True
    ) -> Self:
        """From the tags of the training data.

        Args:
            rows: the tags of sentences, of which the first 20,000 are looked at.
            tags: every tag that occurs; None: those of `rows`.
            learn_ends: learn BIO as BIOES, where the end of a span has a tag of its own.
        """
        sample = [tuple(row) for row in islice(rows, SAMPLE)]
        every = {tag for row in sample for tag in row} if tags is None else set(tags)
        is_bare = bool(every & {"B", "S"}) and every <= BARE | {OUTSIDE}
        letters = {tag[0] for tag in every if is_bare or tag[1:2] == "-"}
        inside = "M" if "M" in letters and "I" not in letters else "I"
        spelling = cls(is_bare=is_bare, inside=inside)
        scheme = infer_scheme([spelling._plain(row) for row in sample])
        if scheme == "none" or not all(_is_span(tag) for tag in spelling._plain(list(every))):
            return cls()
        return cls(scheme, "bioes" if learn_ends and scheme == "bio" else scheme, is_bare, inside)

    @property
    def has_spans(self) -> bool:
        """Whether the tags spell spans."""
        return self.scheme != "none"

    def to_learned(self, tags: Sequence[str]) -> list[str]:
        """The tags that the network learns; where the data break their scheme, mended."""
        return respell(self._plain(tags), self.learned) if self.has_spans else list(tags)

    def from_learned(self, tags: Sequence[str]) -> list[str]:
        """The tags that the data would have."""
        if not self.has_spans:
            return list(tags)
        return [self._own(tag) for tag in respell(tags, self.scheme)]

    def merged(self, tags: Sequence[str]) -> tuple[list[str], list[int]]:
        """The data's tags behind the learned ones, and for each learned tag the index of that which it is.

        A begin is a begin whether its span goes on or not, so that probabilities can be summed.
        """
        own = [self._own(self._without_ends(tag)) for tag in tags]
        names = sorted(set(own))
        return names, [names.index(tag) for tag in own]

    def _without_ends(self, tag: str) -> str:
        if self.learned == self.scheme or tag == OUTSIDE:
            return tag
        return {"E": "I", "S": "B"}.get(tag[0], tag[0]) + tag[1:]

    def _plain(self, tags: Sequence[str]) -> list[str]:
        """In the letters of a scheme, with types."""
        if self.is_bare:
            tags = [tag if tag == OUTSIDE else f"{tag}-" for tag in tags]
        if self.inside == "I":
            return list(tags)
        return ["I" + tag[1:] if tag.startswith("M-") else tag for tag in tags]

    def _own(self, tag: str) -> str:
        if tag == OUTSIDE:
            return tag
        letter = self.inside if tag[0] == "I" else tag[0]
        return letter if self.is_bare else letter + tag[1:]


def span_scores(actual: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """span_f1, span_precision and span_recall by seqeval's default definition: micro averages over all spans.

    A span counts where type, first and last token are all right. Spans are read as the script conlleval does:
    I-X after another type begins one.

    Args:
        actual, said: the tags of each sentence, in any scheme or in bare letters.

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
    with warnings.catch_warnings():
        # Tags that training did not have are counted in a note; seqeval would name them once more.
        warnings.filterwarnings("ignore", ".* seems not to be NE tag")
        return {
            "span_f1": float(f1_score(*pair, zero_division=0)),
            "span_precision": float(precision_score(*pair, zero_division=0)),
            "span_recall": float(recall_score(*pair, zero_division=0)),
        }


def tag_accuracy(actual: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> float:
    """The share of tokens with the right tag, by scikit-learn; NaN where there is no token.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import accuracy_score
    except ImportError:
        raise MissingExtraError("scoring tags", "scikit-learn", "labels") from None
    flat: Any = [[tag for row in rows for tag in row] for rows in (actual, said)]
    return float(accuracy_score(*flat)) if flat[0] else float("nan")


# the letters that seqeval knows are B, I, E, S, O
_SEQEVAL = {"L": "E", "U": "S", "M": "I"}


def _is_span(tag: str) -> bool:
    return tag == OUTSIDE or (tag[1:2] == "-" and tag[0] in BARE)


def _as_seqeval(tag: str) -> str:
    is_span = len(tag) == 1 or tag[1:2] == "-"
    return _SEQEVAL[tag[0]] + tag[1:] if is_span and tag[0] in _SEQEVAL else tag
