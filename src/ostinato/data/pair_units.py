"""`PairUnits`: the units that a network reads and writes of one side of pairs, and back to the very text."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ostinato.data.byte_pairs import BytePairs
from ostinato.data.tokens import UNSPACED
from ostinato.errors import InputError, RunFolderError

UNITS = ("word", "char", "bpe", "symbol")
BLANK = "\u2581"  # ▁, before a word that a blank precedes
_PIECE = re.compile(rf"\s+|[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_LOOKED_AT, _KEPT_WORDS = 20_000, 1 << 17
_UNBROKEN, _MOST_SYMBOLS, _SYMBOL_USES = 0.95, 256, 50


@dataclass(frozen=True)
class PairUnits:
    """One way to cut a text; `join` undoes `split` up to the white space that `clean` leaves out.

    Attributes:
        kind: `word`: runs of letters and digits, single signs, and each Han character and each kana, all
            with ▁ where a blank precedes them;
            `char`: characters; `bpe`: byte pairs; `symbol`: whatever stands between white space.
        pairs: the byte pairs, where the kind is `bpe`.

    Raises:
        InputError: an unknown kind, or byte pairs that are missing or not wanted.
    """

    kind: str
    pairs: BytePairs | None = None
    _split_word: Callable[[str], list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_unit(self.kind)
        if (self.kind == "bpe") != (self.pairs is not None):
            raise InputError(f"PairUnits: kind={self.kind!r} with pairs={self.pairs!r}; bpe alone needs them")

        if self.pairs is not None:
            # Pairs do not reach over blanks, and words come again: most of the work is done once.
            object.__setattr__(self, "_split_word", functools.lru_cache(_KEPT_WORDS)(self.pairs.split))

    def clean(self, text: str) -> str:
        """The text without white space at its ends and, but for characters, with one blank for each run of it
        inside."""
        return text.strip() if self.kind == "char" else " ".join(text.split())

    def split(self, text: str) -> list[str]:
        """The units of a text, in order; none of a blank one."""
        if self.kind == "symbol":
            return text.split()
        text = text.strip()
        if not text:
            return []
        if self.kind == "char":
            return list(text)
        if self.pairs is not None:
            return [unit for word in text.split() for unit in self._split_word(word)]
        units, before = [], BLANK
        for piece in _PIECE.findall(text):
            if piece.isspace():
                before = BLANK
            else:
                units.append(before + piece)
                before = ""
        return units

    def tokens(self, text: str) -> list[str]:
        """What errors are counted in: characters or symbols, and of words and byte pairs what stands between
        blanks, each Han character and each kana by itself."""
        if self.kind == "char":
            return list(text.strip())
        return text.split() if self.kind == "symbol" else _TOKEN.findall(text)

    def join(self, units: Sequence[str]) -> str:
        """The text of units, also of such as no text was cut into."""
        if self.kind == "symbol":
            return " ".join(units)
        if self.kind == "char":
            return "".join(units).strip()
        if self.pairs is not None:
            return self.pairs.join(units).strip()
        # A sign ▁ of the text itself stands alone: words have none inside.
        return "".join(
            f" {unit[1:]}" if len(unit) > 1 and unit[0] == BLANK else unit for unit in units
        ).strip()

    def shown(self, unit: str) -> str:
        """A unit as people read it: of words and byte pairs its characters, with a dot in front where it goes
        on without a blank; white space as a visible sign."""
        if self.kind in ("char", "symbol"):
            return unit if unit.strip() else BLANK
        text = unit.replace(BLANK, " ") if self.pairs is None else self.pairs.join([unit])
        is_joined = not text.startswith(" ") and text[:1].isalnum()
        return f"·{text}" if is_joined else text.strip() or BLANK

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "pairs": None if self.pairs is None else self.pairs.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            RunFolderError: the values are not those of units.
        """
        try:
            pairs = stored["pairs"]
            return cls(stored["kind"], None if pairs is None else BytePairs.from_json(pairs))
        except (KeyError, TypeError, InputError) as error:
            raise RunFolderError(f"stored units are damaged: {error}; restore the run folder") from error


def check_unit(kind: str) -> None:
    """Raise InputError, with the known ones, for a unit that there is not."""
    if kind not in UNITS:
        raise InputError(f"unit: {kind!r} is not known; known: {', '.join(UNITS)}")


def choose_unit(texts: Sequence[str]) -> tuple[str, str]:
    """The kind of units that suits texts, and what that was judged by, in words.

    `char` where hardly any text has a blank in it: words, numbers, dates, scripts that write none. `symbol`
    where whatever stands between blanks comes again and again: phonemes, notes, moves. Else `bpe`.
    At most 20,000 texts, spread evenly, are looked at.
    """
    looked = [texts[i] for i in range(0, len(texts), max(1, len(texts) // _LOOKED_AT))]
    full = [text for text in looked if text.strip()]
    unbroken = sum(len(text.split()) == 1 for text in full)
    if full and unbroken >= _UNBROKEN * len(full):
        return "char", f"{unbroken / len(full):.0%} of the texts have no blank inside"
    counts: Counter[str] = Counter()
    for text in full:
        counts.update(text.split())
        if len(counts) > _MOST_SYMBOLS:
            break
    uses = sum(counts.values())
    if len(counts) <= _MOST_SYMBOLS and uses >= _SYMBOL_USES * len(counts):
        often = uses // max(len(counts), 1)
        return "symbol", f"{len(counts)} different symbols stand between blanks, each {often:,} times"
    return "bpe", "many different words stand between blanks"


def fit_units(kind: str, texts: Iterable[str], size: int) -> PairUnits:
    """Units of a kind; byte pairs, `size` of them, are learned from the texts.

    Raises:
        InputError: an unknown kind, or too few byte pairs.
        MissingExtraError: byte pairs without the library `tokenizers`.
    """
    check_unit(kind)
    return PairUnits(kind, BytePairs.train(map(str.strip, texts), size) if kind == "bpe" else None)
