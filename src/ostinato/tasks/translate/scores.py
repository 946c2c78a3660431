"""Scores of texts that were said against one or several right ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from ostinato.data.tokens import UNSPACED
from ostinato.errors import MissingExtraError

_NOT_A_WORD = re.compile(r"[^a-z0-9]+")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def need_scores(feature: str) -> None:
    """Refuse to begin what sacrebleu and rapidfuzz are needed for at the end.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    for package in ("sacrebleu", "rapidfuzz"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(feature, package, "text") from None


def by_source(sources: Sequence[str], targets: Sequence[str]) -> dict[str, list[str]]:
    """The different targets of each different source, both in their order."""
    references: dict[str, list[str]] = {}
    for source, target in zip(sources, targets, strict=True):
        known = references.setdefault(source, [])
        if target not in known:
            known.append(target)
    return references


def text_scores(
    said: Sequence[str], references: Sequence[Sequence[str]], tokens: Callable[[str], Sequence[str]]
) -> dict[str, float]:
    """How well N texts agree with their references, of which each has one or more.

    Args:
        said: N texts.
        references: for each the right ones.
        tokens: a text as the tokens of token_error_rate.

    Returns:
        bleu: of the corpus, 0 … 100, cased, 13a tokens, as sacrebleu has it (Post 2018, arXiv:1804.08771);
        chrf: chrF2, 0 … 100, as sacrebleu has it; rouge_l: mean F of the longest common subsequence, 0 … 1,
        with the tokens of the package rouge-score (without stemming), at the best of the references;
        exact_match: share of texts that are one of their references; token_error_rate: edits to the nearest
        reference, by the tokens of those references; above 1 where much is said too much.

    Raises:
        MissingExtraError: sacrebleu or rapidfuzz is not installed.
    """
    need_scores("scoring texts")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    streams = [list(stream) for stream in zip_longest(*references)]
    words = rouge_words(references)
    pairs = list(zip(said, references, strict=True))
    return {
        # "force" is for a warning that the texts look tokenised, as some do: it changes no score.
        "bleu": float(BLEU(force=True).corpus_score(list(said), streams).score),
        "chrf": float(CHRF().corpus_score(list(said), streams).score),
        "rouge_l": _mean([max(rouge_l(one, text, words) for text in right) for one, right in pairs]),
        "exact_match": _mean([float(one in right) for one, right in pairs]),
        "token_error_rate": token_error_rate(said, references, tokens),
    }


def token_error_rate(
    said: Sequence[str], references: Sequence[Sequence[str]], tokens: Callable[[str], Sequence[str]]
) -> float:
    """That of `text_scores` alone.

    Raises:
        MissingExtraError: sacrebleu or rapidfuzz is not installed.
    """
    need_scores("scoring texts")
    from rapidfuzz.distance import Levenshtein

    edits = length = 0
    for one, right in zip(said, references, strict=True):
        mine = list(tokens(one))
        tried = [(Levenshtein.distance(mine, theirs := list(tokens(text))), len(theirs)) for text in right]
        # Of the share of its tokens, so that a long reference does not lose for its length.
        best = min(tried, key=lambda pair: (pair[0] / max(pair[1], 1), pair[0]))
        edits, length = edits + best[0], length + best[1]
    return edits / max(length, 1)


def rouge_words(references: Sequence[Sequence[str]]) -> Callable[[str], list[str]]:
    """How texts are cut for ROUGE: as the package rouge-score does, runs of a–z and 0–9 in small letters;
    where half of the references or more have none, runs of any letters and digits, and each Han character and
    each kana."""
    bare = sum(not _NOT_A_WORD.sub("", text.lower()) for right in references for text in right)
    if 2 * bare >= max(sum(map(len, references)), 1):
        return lambda text: _WORD.findall(text.lower())
    return lambda text: _NOT_A_WORD.sub(" ", text.lower()).split()


def rouge_l(said: str, reference: str, words: Callable[[str], Sequence[str]]) -> float:
    """F of the longest common subsequence of words (Lin 2004, W04-1013); 0 where either has none."""
    from rapidfuzz.distance import LCSseq

    mine, theirs = list(words(said)), list(words(reference))
    common = LCSseq.similarity(mine, theirs)
    return 2 * common / (len(mine) + len(theirs)) if common else 0.0


def _mean(values: Sequence[Any]) -> float:
    return sum(values) / max(len(values), 1)
