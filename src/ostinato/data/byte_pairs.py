"""`BytePairs`: units between characters and words, learned from the training part, stored as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ostinato.errors import InputError, MissingExtraError, RunFolderError

FEWEST_PAIRS = 256
"""Units at least: one for each byte."""


class BytePairs:
    """Byte pairs over bytes (Sennrich et al. 2016, arXiv:1508.07909): any text is split, nothing is unknown.

    Made by `train` or `from_json`. What is stored are merges and settings as text; nothing of it is run.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 8000) -> BytePairs:
        """Learn the most frequent pairs.

        Args:
            texts: the training part, in one pass.
            size: units, the 256 bytes among them.

        Raises:
            InputError: a size below 256.
            MissingExtraError: the library `tokenizers` is not installed.
        """
        if size < FEWEST_PAIRS:
            raise InputError(
                f"BytePairs: size={size}, expected at least {FEWEST_PAIRS}, one unit for each byte"
            )
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(map(_encodable, texts), trainer)
        return cls(tokenizer)

    def __len__(self) -> int:
        """Units that can occur."""
        return int(self._tokenizer.get_vocab_size())

    def units(self) -> list[str]:
        """All of them, in the order in which they were learned, the bytes first."""
        numbers: dict[str, int] = self._tokenizer.get_vocab()
        return sorted(numbers, key=lambda unit: numbers[unit])

    def split(self, text: str) -> list[str]:
        """The units of a text; `Ġ` stands for the blank before a word."""
        units: list[str] = self._tokenizer.encode(_encodable(text)).tokens
        return units

    @staticmethod
    def join(units: Iterable[str]) -> str:
        """The text of units, with the blank before the first word; bytes that are no characters, such as half
        of one, become the sign of replacement."""
        return b"".join(map(BytePairs.bytes_of, units)).decode("utf-8", "replace")

    @staticmethod
    def bytes_of(unit: str) -> bytes:
        """The bytes of UTF-8 that a unit stands for, perhaps a part of a character."""
        byte_of = _byte_of()
        return bytes(byte_of[sign] for sign in unit)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        stored: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BytePairs:
        """The units that `to_json` wrote.

        Raises:
            RunFolderError: the values are not those of byte pairs.
            MissingExtraError: the library `tokenizers` is not installed.
        """
        library = _library()
        try:
            return cls(library.Tokenizer.from_str(json.dumps(stored)))
        except Exception as error:
            raise RunFolderError(f"stored byte pairs are damaged: {error}; restore the run folder") from error


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each sign of a unit stands for.

    Bytes that Latin-1 shows stand for themselves, the others in their order for the signs from U+0100 on.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(FEWEST_PAIRS) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


def _encodable(text: str) -> str:
    """Lone surrogates, which no encoding has, as the sign of replacement."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise MissingExtraError("splitting texts into byte pairs", "tokenizers", "text") from None
    return tokenizers
