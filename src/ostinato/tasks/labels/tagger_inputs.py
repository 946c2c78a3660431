"""From examples to what a tagger takes: sentences, further columns, stretches of long ones, batches."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.examples import Examples, Sentence
from ostinato.data.ragged import RaggedRows
from ostinato.data.token_encoding import TokenPreparation
from ostinato.data.tokens import split_words
from ostinato.errors import InputError
from ostinato.tasks.labels.tagger_language import LanguageTokens
from ostinato.types import Batch

LONGEST = 320
"""Tokens of a stretch; a longer sentence is cut into several."""
SAMPLE = 100
"""Sentences by which it is judged whether a column is the one that training had."""
OVERLAP = 40
"""Tokens on each side of a stretch that are seen, and tagged by its neighbours."""


class Sentences(Sequence[Sentence]):
    """The sentences of some examples; texts are split into words as they are looked at."""

    def __init__(self, examples: Examples):
        self._inputs, self._is_text = examples.inputs, examples.kind == "text"

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._sentence(self._inputs[index])

    def __iter__(self) -> Iterator[Sentence]:
        return map(self._sentence, self._inputs)

    def _sentence(self, one: Any) -> Sentence:
        return Sentence(split_words(one)) if self._is_text else one


def choose_columns(features: Any, columns: Sequence[str], reading: Mapping[str, Any]) -> list[str]:
    """Names of the further columns that the network sees.

    Args:
        features: `none`; names or numbers of columns, in a list or with commas between; or `auto`: those
            between the token and the tag of a plain CoNLL file. Those of CoNLL-U are what other programs say,
            and are not there when new text is tagged.
        columns: what the sentences have.
        reading: how they were read.

    Raises:
        InputError: a column that there is not, with those that there are.
    """
    if features == "none":
        return []
    if features == "auto":
        first, last = reading.get("text"), reading.get("label")
        if not isinstance(first, int) or not isinstance(last, int):
            return []
        return [name for name in columns if name.isdigit() and first < int(name) < last]
    wanted = str(features).split(",") if isinstance(features, str | int) else list(features)
    names = [str(name).strip() for name in wanted]
    for name in names:
        if name not in columns:
            known = ", ".join(columns) or "none"
            raise InputError(f"features: no column {name!r}; further columns of the sentences: {known}")
    return names


def same_columns(
    features: Any, chosen: list[str], had: list[str], columns: Collection[str], init: Any
) -> list[str]:
    """Names of the further columns that the network sees, where the run in `init` sees those that it `had`.

    Args:
        features: what was asked for, as for `choose_columns`; `auto` leaves it to the run.
        chosen: what `choose_columns` took it for.
        had: those of the run.
        columns: what the sentences have.
        init: the run.

    Raises:
        InputError: others are asked for, or a column that the run sees is missing.
    """
    if features != "auto" and chosen != had:
        raise InputError(
            f"features={features!r}: the run in init={str(init)!r} sees {', '.join(had) or 'none'}; leave it "
            "out, or train without that run"
        )
    missing = [name for name in had if name not in columns]
    if missing:
        known = ", ".join(columns) or "none"
        raise InputError(
            f"features: the run in init={str(init)!r} sees the column {missing[0]!r}; further columns of the "
            f"sentences: {known}; give those, or train without that run"
        )
    return had


def with_known_columns(
    examples: Examples, preparation: TokenPreparation | LanguageTokens, tags: Collection[str]
) -> Examples:
    """Examples whose further columns hold something of what training had; else a note says so.

    Columns without names, of which one is missing, would otherwise be taken for each other.

    Raises:
        InputError: a column holds nothing but `tags`, which training had elsewhere.
    """
    notes = []
    for name, known in preparation.columns.items():
        looked = islice(Sentences(examples), SAMPLE)
        found = list(dict.fromkeys(chain.from_iterable(one.columns.get(name, ()) for one in looked)))
        if not found or any(value in known for value in found):
            continue
        what = f"column {name} of {examples.source or 'the data'} holds {_named(found)}"
        had = f"in training it held {_named(known.entries)}"
        if set(found) <= set(tags):
            raise InputError(f"{what}, which are tags; {had}: that column is missing, put it before them")
        notes.append(f"{what}, all unknown: {had}")
    return replace(examples, notes=(*examples.notes, *notes)) if notes else examples


def _named(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:3])) + (", …" if len(values) > 3 else "")


@dataclass(frozen=True)
class Stretch:
    """A part of a sentence: tokens first … stop - 1 are seen, tokens begin … end - 1 tagged."""

    sentence: int
    first: int
    stop: int
    begin: int
    end: int
    is_whole: bool = True


def cut(sentence: int, length: int, longest: int = LONGEST, overlap: int = OVERLAP) -> list[Stretch]:
    """The stretches of a sentence, one where it is not longer than `longest`."""
    if length <= longest:
        return [Stretch(sentence, 0, length, 0, length)]
    inner = longest - 2 * overlap
    return [
        Stretch(
            sentence, max(0, b - overlap), min(length, b + inner + overlap), b, min(length, b + inner), False
        )
        for b in range(0, length, inner)
    ]


def cut_long(examples: Examples) -> Examples:
    """Examples whose sentences are no longer than a stretch: longer ones become several, and a note says so.

    Otherwise nothing could be held out of a file without blank lines.
    """
    sentences = Sentences(examples)
    parts = [one for i, tokens in enumerate(sentences) for one in cut(i, len(tokens), overlap=0)]
    if len(parts) == len(examples):
        return examples
    tags = examples.tags
    n = len({one.sentence for one in parts if not one.is_whole})
    note = (
        f"{n} of {len(examples)} sentences have more than {LONGEST} tokens and were cut into parts, so that "
        f"some can be held out: {len(parts)} in all; a blank line ends a sentence"
    )
    return replace(
        examples.select([one.sentence for one in parts]),
        inputs=[_part(sentences[one.sentence], one) for one in parts],
        tags=None if tags is None else [tags[one.sentence][one.first : one.stop] for one in parts],
        notes=(*examples.notes, note),
    )


class TaggedTokens:
    """Sentences as a tagger takes them, cut into stretches; with their answers where these are known.

    Attributes:
        examples: what it was made of.
        sentences: how many sentences there are; sentence_lengths: their tokens.
        lengths: (N,) tokens of each stretch.
    """

    def __init__(self, examples: Examples, preparation: TokenPreparation | LanguageTokens):
        self.examples = examples
        sentences = Sentences(examples)
        self.sentences = len(sentences)
        self.sentence_lengths = array("q")
        self._stretches = array("q")  # five numbers each: objects would take ten times the memory
        self.tokens = preparation.encode(self._cut(sentences))
        self.lengths = self.tokens.lengths
        self._tags: RaggedRows | None = None
        self._labels: NDArray[np.int64] | None = None

    def _cut(self, sentences: Sequence[Sentence]) -> Iterator[Sentence]:
        for number, sentence in enumerate(sentences):
            parts = cut(number, len(sentence))
            for one in parts:
                self._stretches.extend((one.sentence, one.first, one.stop, one.begin, one.end))
            self.sentence_lengths.append(len(sentence))
            yield from [sentence] if len(parts) == 1 else [_part(sentence, one) for one in parts]

    def __len__(self) -> int:
        return len(self._stretches) // 5

    def stretch(self, row: int) -> Stretch:
        """Which part of which sentence a row is."""
        sentence, first, stop, begin, end = self._stretches[5 * row : 5 * row + 5]
        return Stretch(sentence, first, stop, begin, end, end - begin == self.sentence_lengths[sentence])

    def set_tags(self, tags: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], list[int]]) -> None:
        """The tags of each sentence; `encode` makes numbers of those of a stretch."""
        self._tags = RaggedRows()
        last: int = -1
        row: Sequence[str] = ()
        for one in map(self.stretch, range(len(self))):
            if one.sentence != last:
                last, row = one.sentence, tags[one.sentence]
            self._tags.append(encode(row[one.first : one.stop]))

    def set_labels(self, labels: Sequence[int]) -> None:
        """The label of each sentence."""
        self._labels = np.asarray(labels, np.int64)

    def batch(self, rows: Any) -> Batch:
        """Some stretches, as the preparation gives them; with `y` (B, T) and `label` (B,) where known."""
        chosen: NDArray[np.int64] = np.asarray(rows, np.int64).reshape(-1)
        batch = self.tokens.batch(chosen)
        if self._tags is not None:
            batch["y"] = torch.from_numpy(self._tags.padded(chosen, least=1))
        if self._labels is not None:
            sentences = [self._stretches[5 * row] for row in chosen.tolist()]
            batch["label"] = torch.from_numpy(self._labels[sentences])
        return batch

    def by_length(self, tokens: int, most: int) -> Iterator[NDArray[np.int64]]:
        """All rows, those of similar length together: at most so many tokens, padding included, and rows."""
        order = np.argsort(self.lengths, kind="stable")
        first = 0
        while first < len(order):
            end = first + 1
            while (
                end < min(len(order), first + most) and (end + 1 - first) * self.lengths[order[end]] <= tokens
            ):
                end += 1
            yield order[first:end]
            first = end


def _part(sentence: Sentence, part: Stretch) -> Sentence:
    columns = {name: values[part.first : part.stop] for name, values in sentence.columns.items()}
    return Sentence(sentence.tokens[part.first : part.stop], columns)


def tagged(encoded: object) -> TaggedTokens:
    """What a tagger encoded, as what it is."""
    assert isinstance(encoded, TaggedTokens)
    return encoded
