"""Units of running text: characters, words or byte pairs, as ids and back as text."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.byte_pairs import BytePairs
from ostinato.data.tokens import split_words
from ostinato.data.vocabulary import UNKNOWN, Vocabulary
from ostinato.errors import InputError, RunFolderError

UNITS = ("char", "word", "bpe")
SPLITTINGS = ("blanks", "words")
UNKNOWN_WORD = "<unk>"
END = "\n"
"""The end of a line, which for words and byte pairs is a unit of its own: `<eos>` in papers."""
JOINED = "\uffed"
"""Stands before a word that follows the one before it without a blank."""
CHARACTERS_UP_TO = 20_000_000
"""Characters of a text up to which its characters are the units by default."""
_MARKS = frozenset(",;:!?)]}\"'»”’")
_CODES = 0x110000
_SPELLED = 256  # kinds of characters up to which each is known, however rare


def choose_unit(text: str, characters: int) -> tuple[str, str]:
    """The unit for a text, and why.

    Words where it is split into words already (`is_split`); else characters up to 20 million of them, and
    byte pairs beyond.

    Args:
        text: its beginning.
        characters: how many it has in all.
    """
    if is_split(text):
        return "word", "the text is split into words by blanks already"
    if characters <= CHARACTERS_UP_TO:
        return "char", f"it is running text of at most {CHARACTERS_UP_TO:,} characters"
    return "bpe", f"it is running text of more than {CHARACTERS_UP_TO:,} characters"


def is_split(text: str) -> bool:
    """Whether blanks part all words from signs: `<unk>` occurs, or hardly a word ends in a comma or the like.

    A text of fewer than 20 words on less than a blank every 20 characters is not.
    """
    words = text.split()
    if len(words) < 20 or len(words) * 20 < len(text):
        return False
    if UNKNOWN_WORD in words:
        return True
    attached = sum(len(word) > 1 and word[-1] in _MARKS and word[0] not in "'\"" for word in words)
    alone = sum(len(word) == 1 and word in _MARKS for word in words)
    return attached < 0.002 * len(words) and alone > 0.01 * len(words)


class CorpusUnits:
    """How a text becomes ids 0 … V-1 and ids become text; learned from the training text only.

    Id 0 is whatever is unknown, then the units follow by falling frequency. Lines end with `END`: of
    characters that is the line feed itself, of words and byte pairs a unit.

    Words are split by `blanks` alone (text that is tokenised already: `don 't`), or as `words` by
    `ostinato.data.tokens.split_words`, and then `JOINED` marks those that no blank precedes, so that the text
    can be put together again; runs of blanks become one. The word `<unk>` of a text is the unknown word
    itself.

    Args:
        unit: char, word or bpe.
        vocabulary: of the units; its id less one is theirs.
        splitting: of words.
        pairs: of bpe.
    """

    def __init__(
        self, unit: str, vocabulary: Vocabulary, splitting: str = "", pairs: BytePairs | None = None
    ):
        self.unit, self.vocabulary, self.splitting, self.pairs = unit, vocabulary, splitting, pairs
        self._table: NDArray[np.int64] | None = None

    @classmethod
    def fit(
        cls,
        blocks: Iterable[str],
        unit: str,
        *,
        splitting: str = "",
        size: int | None = None,
        minimum_count: int | None = None,
        again: Iterable[str] = (),
        pairs: BytePairs | None = None,
    ) -> CorpusUnits:
        """Learn the units.

        Args:
            blocks: the training text in pieces of whole lines.
            unit: char, word or bpe.
            splitting: of words: blanks or words.
            size: the most units, beside the unknown one; None: all that are frequent enough. Of byte pairs
                how many are learned; None: 8,000.
            minimum_count: rarer units are unknown. None: 1, but 2 for words of a text without `<unk>` and for
                characters of a text with more than 256 of them, so that the unknown unit is learned; of byte
                pairs even those that the text does not have are units, so that nothing is unknown.
            again: the same text once more, for byte pairs.
            pairs: byte pairs that were learned before, in place of such from this text.

        Of words and byte pairs the end of a line is always a unit.

        Raises:
            InputError: an unknown unit or splitting, or units that are all too rare.
            MissingExtraError: byte pairs without the library `tokenizers`.
        """
        if unit not in UNITS:
            raise InputError(f"unit: {unit!r} is unknown; known: {', '.join(UNITS)}")
        if unit == "word" and splitting not in SPLITTINGS:
            raise InputError(f"splitting: {splitting!r} is unknown; known: {', '.join(SPLITTINGS)}")
        if unit == "bpe" and pairs is None:
            lines = (line for block in again for line in block.split(END))
            pairs = BytePairs.train(lines, size or 8000)
        units = cls(unit, Vocabulary([], []), splitting if unit == "word" else "", pairs)
        counts: Counter[str] = Counter()
        for block in blocks:
            counts.update(block if unit == "char" else units._split(block))
        unknown = counts.pop(UNKNOWN_WORD, 0) if unit == "word" else 0
        is_free = minimum_count is None
        if minimum_count is None:
            rare = (unit == "word" and not unknown) or (unit == "char" and len(counts) > _SPELLED)
            minimum_count = 2 if rare else 1
        always = [] if unit == "char" else [END]
        if pairs is not None and is_free:
            always += pairs.units()
        found = Vocabulary.fit(counts, minimum_count=minimum_count, maximum_size=None if pairs else size)
        if counts and not found.entries and not always:
            raise InputError(
                f"minimum_count={minimum_count}: no unit of the text occurs so often; give a smaller one"
            )
        units.vocabulary = _with_all(found, always, counts, unknown, None if pairs else size)
        return units

    def __len__(self) -> int:
        """V: the unknown unit and the others."""
        return len(self.vocabulary) - UNKNOWN

    @property
    def counts(self) -> NDArray[np.int64]:
        """(V,) how often each occurred in the training text."""
        return self.vocabulary.counts[UNKNOWN:]

    @property
    def start(self) -> int:
        """The id that stands before the first unit of a document: that of a line's end."""
        return self.vocabulary.id(END) - UNKNOWN

    @property
    def dtype(self) -> type[np.generic]:
        """Of arrays of ids: the narrowest that holds them."""
        return np.uint8 if len(self) <= 1 << 8 else np.uint16 if len(self) <= 1 << 16 else np.int32

    def encode(self, text: str) -> NDArray[Any]:
        """The ids of a text; its line feeds are ends of lines."""
        if self.unit != "char":
            ids = np.array(self.vocabulary.ids(self._split(text)), np.int64)
            return (ids - UNKNOWN).astype(self.dtype)
        if self._table is None:
            self._table = np.full(_CODES, UNKNOWN, np.int64)
            for number, entry in enumerate(self.vocabulary.entries, UNKNOWN + 1):
                self._table[ord(entry)] = number
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        return (self._table[codes] - UNKNOWN).astype(self.dtype)

    def _split(self, text: str) -> Iterator[str]:
        first, *further = text.split(END)
        yield from self._split_line(first)
        for line in further:
            yield END
            yield from self._split_line(line)

    def _split_line(self, line: str) -> Sequence[str]:
        if self.pairs is not None:
            return self.pairs.split(line) if line else []
        if self.splitting == "blanks":
            return line.split()
        return list(_joined(line))

    def text_of(self, number: int) -> str:
        """A unit as it is stored: a character, a word with its mark, a byte pair, `<unk>`, or a line feed."""
        return UNKNOWN_WORD if number == 0 else self.vocabulary.entry(int(number) + UNKNOWN)

    def decoder(self, *, at_line_start: bool = True) -> TextDecoder:
        """What makes ids text again, one after the other."""
        return TextDecoder(self, at_line_start)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids from the beginning of a line on."""
        decoder = self.decoder()
        return "".join(map(decoder.push, ids)) + decoder.finish()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        return {
            "unit": self.unit, "splitting": self.splitting, "vocabulary": self.vocabulary.to_json(),
            "pairs": None if self.pairs is None else self.pairs.to_json(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CorpusUnits:
        """The units that `to_json` wrote.

        Raises:
            RunFolderError: the values are not those of units.
        """
        try:
            pairs = stored["pairs"]
            if stored["unit"] not in UNITS:
                raise TypeError(f"unit is {stored['unit']!r}")
            return cls(
                str(stored["unit"]),
                Vocabulary.from_json(stored["vocabulary"]),
                str(stored["splitting"]),
                None if pairs is None else BytePairs.from_json(pairs),
            )
        except (KeyError, TypeError) as error:
            raise RunFolderError(f"stored units are damaged: {error}; restore the run folder") from error


class TextDecoder:
    """Text from ids, as they come: `push` gives what is certain, `finish` the rest."""

    def __init__(self, units: CorpusUnits, at_line_start: bool):
        self._units, self._begins = units, at_line_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, number: int) -> str:
        """The text that this id adds."""
        units, entry = self._units, self._units.text_of(number)
        if units.unit == "char":
            return entry
        if entry == END:
            self._begins = True
            return self._utf8.decode(b"", final=True) + END
        begins, self._begins = self._begins, False
        if units.unit == "word":
            if entry.startswith(JOINED) and units.splitting == "words":
                return entry[1:]
            return entry if begins else f" {entry}"
        if number == 0:
            return self._utf8.decode(b"", final=True) + UNKNOWN_WORD
        text = self._utf8.decode(BytePairs.bytes_of(entry))
        return text.removeprefix(" ") if begins else text

    def finish(self) -> str:
        """What bytes of a character that never became whole are worth: a sign of replacement."""
        return self._utf8.decode(b"", final=True)


def _with_all(
    found: Vocabulary, always: Sequence[str], counts: Mapping[str, int], unknown: int, most: int | None
) -> Vocabulary:
    """A vocabulary with what must be in it too, in place of its rarest entries where it is full.

    `unknown` more units of the text are in none.
    """
    further = sorted({e for e in always if e not in found}, key=lambda e: (-counts.get(e, 0), e))
    kept = found.entries if most is None else found.entries[: max(most - len(further), 0)]
    entries = [*kept, *further]
    own = [counts.get(entry, 0) for entry in entries]
    return Vocabulary(entries, own, sum(counts.values()) - sum(own) + unknown)


def _joined(line: str) -> Iterator[str]:
    """Words and signs of a line, with `JOINED` before each that no blank precedes."""
    place = 0
    for word in split_words(line):
        at = line.find(word, place)
        yield JOINED + word if at == place and place else word
        place = at + len(word)
