"""What a tagger is measured against: the most frequent tag of each word, and the most frequent label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ostinato.data.examples import Examples
from ostinato.tasks.labels.tagger_inputs import Sentences
from ostinato.tasks.labels.tagger_scores import label_scores, tag_scores


@dataclass(frozen=True)
class MostFrequentTag:
    """Says of every word the tag that it had most often, of words never seen the most frequent tag overall.

    Attributes:
        by_word: word -> tag, of the words whose tag is not `default`.
        default: for all others.
    """

    by_word: Mapping[str, str]
    default: str

    @classmethod
    def fit(cls, sentences: Iterable[Sequence[str]], tags: Iterable[Sequence[str]]) -> Self:
        """Count. Of tags that are equally frequent the one met first counts.

        Cost: one pass; memory by the number of different (word, tag).
        """
        overall: Counter[str] = Counter()
        by_word: dict[str, Counter[str]] = {}
        for words, row in zip(sentences, tags, strict=True):
            for word, tag in zip(words, row, strict=True):
                by_word.setdefault(word, Counter())[tag] += 1
            overall.update(row)
        default = overall.most_common(1)[0][0] if overall else ""
        likeliest = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
        return cls({word: tag for word, tag in likeliest.items() if tag != default}, default)

    def predict(self, sentences: Iterable[Sequence[str]]) -> list[list[str]]:
        """A tag for each token."""
        return [[self.by_word.get(word, self.default) for word in words] for words in sentences]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the words of each tag."""
        words: dict[str, list[str]] = {}
        for word, tag in self.by_word.items():
            words.setdefault(tag, []).append(word)
        return {"default": self.default, "words": words}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls({word: tag for tag, words in stored["words"].items() for word in words}, stored["default"])


@dataclass(frozen=True)
class Baselines:
    """The baselines of a tagger.

    Attributes:
        tags: the most frequent tag of each word.
        label: the most frequent label of sentences; "" where none is learned.
    """

    tags: MostFrequentTag
    label: str

    @classmethod
    def fit(cls, learned: Examples, *, has_labels: bool) -> Self:
        """From the training part."""
        tags = MostFrequentTag.fit((one.tokens for one in Sentences(learned)), learned.tags or ())
        counts = Counter(learned.labels or ()) if has_labels else Counter[str]()
        return cls(tags, counts.most_common(1)[0][0] if counts else "")

    def scores(self, examples: Examples, *, has_spans: bool) -> dict[str, dict[str, float]]:
        """Scores by name, as those of the network."""
        said = self.tags.predict(one.tokens for one in Sentences(examples))
        scores = {"most_frequent_tag": tag_scores(examples.tags or (), said, has_spans=has_spans)}
        if self.label and examples.labels is not None:
            scores["majority"] = label_scores(examples.labels, [self.label] * len(examples))
        return scores

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"most_frequent_tag": self.tags.to_json(), "majority": self.label}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(MostFrequentTag.from_json(stored["most_frequent_tag"]), str(stored["majority"]))
