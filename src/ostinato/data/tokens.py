"""From text to words and sentences, and what of a word its id and its shape keep.

Everything here is a function of the text alone: blanks apart, each character of a text is in exactly one
word, in order.
"""

from __future__ import annotations

import re
import unicodedata

# Scripts that put no blanks between words, of which each sign is a word: Han, kana, Bopomofo, half-width
# kana.
UNSPACED = (
    "\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff"
)
# Signs that belong to the letter before them, which Python's class of word characters leaves out: accents,
# points and vowel signs, block by block.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f"
    "\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0\u0900-\u0903"
    "\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u09d7\u0a01-\u0a03\u0a3c-\u0a4d\u0a70"
    "\u0a71\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b4d\u0b56\u0b57\u0b82\u0bbe-\u0bcd\u0bd7"
    "\u0c00-\u0c04\u0c3c-\u0c56\u0c81-\u0c83\u0cbc-\u0cd6\u0d00-\u0d03\u0d3b-\u0d4d\u0d57\u0d81-\u0d83"
    "\u0dca-\u0ddf\u0df2\u0df3\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f18\u0f19"
    "\u0f35\u0f37\u0f39\u0f3e\u0f3f\u0f71-\u0f84\u0f8d-\u0fbc\u102b-\u103e\u1056-\u1059\u105e-\u1060"
    "\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u135d-\u135f\u17b4-\u17d3\u1ab0-\u1aff\u1b00-\u1b04"
    "\u1b34-\u1b44\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f"
)
_LETTERS = rf"[^\W{UNSPACED}]+(?:[{_MARKS}]+[^\W{UNSPACED}]*)*"
_PICTURE = (
    "[\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u25aa-\u27bf\u2934\u2935\u2b05-\u2b55"
    "\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff]"
)
_URL = r"(?:(?:https?|ftp)://|www\.)[^\s<>\"“”]*[^\s<>\"“”.,;:!?'’)\]}]"
_MAIL = r"[^\W_][\w.+-]{0,63}@[^\W_][\w-]{0,62}(?:\.[\w-]{0,62}[^\W_]){1,8}"
_TOKEN = re.compile(
    "|".join(
        [
            _URL,
            _MAIL,
            # Amounts, times, dates, versions; with letters after it a word of its own, as in 3rd, 80s, 4x4.
            rf"\d+(?:[.,:/]\d+)*(?:{_LETTERS})?",
            # Faces: a letter is a mouth only where no word goes on.
            r"[<>]?[:;=][-o^']?(?:[()\[\]{}|/\\*@]+|[DPpSsOo3](?!\w))",
            r"[()\[\]{}][-^']?[:;=](?![\w:;=])|</?3(?!\w)|[\^oO][_.][\^oO](?!\w)",
            rf"[#@]{_LETTERS}",
            rf"{_LETTERS}(?:['’]{_LETTERS})*['’]?",
            rf"[{UNSPACED}][{_MARKS}]*",
            "[\U0001f1e6-\U0001f1ff]{2}",
            rf"{_PICTURE}(?:[\ufe0f\u20e3\U0001f3fb-\U0001f3ff]|\u200d{_PICTURE})*",
            # A run of one sign, as in "..." and "!!!".
            r"(?P<sign>[^\w\s])(?P=sign)*",
            r"\S",
        ]
    )
)
_CLITICS = frozenset(("s", "re", "ve", "ll", "d", "m"))
_ONLY_URL, _ONLY_MAIL = re.compile(_URL), re.compile(_MAIL)
_DIGIT, _LONG_RUN = re.compile(r"\d"), re.compile(r"(\D)\1{3,}")
_END = re.compile(r"\n\s*\n|[.!?…]+[\"'”’»)\]]*(?=\s+[\"'“‘«(\[¿¡]*[^\W_a-zß-öø-ÿ])|[。！？]+[」』”’）]*")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:[^\W\d_]|[A-Z](?:\.[A-Z])+|Mrs?|Ms|Dr|Prof|St|Sr|Jr|vs|e\.g|i\.e|cf|al|No|Nr|Fig|Vol|Rev"
    r"|Gen|Col|Lt|Sgt|Capt|Sen|Rep|Gov|Hon|Inc|Ltd|Corp|Co|Mt|approx|ca|bzw|usw|Mme|Mlle|Sra?)\.$"
)


def split_words(text: str) -> list[str]:
    """The words and signs of a text, in order.

    URLs, mail addresses, numbers with their inner signs (`10:30`, `3.5`, `1/2`), hashtags, faces (`:-)`),
    emoji with all that belongs to them, and runs of one sign (`...`) are one word each; accents and vowel
    signs stay with their letter. English clitics are words of their own as in the Penn Treebank (`do n't`,
    `she 's`), and so are elided articles (`l' eau`). Hyphens part words. Each Han character and each kana is
    a word; scripts such as Thai, which neither part words, give one word from blank to blank: prefer
    characters or byte pairs there.

    Cost: one pass, about 2 µs a word.
    """
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        word = match[0]
        if "'" in word or "’" in word:
            words += _without_clitics(word)
        else:
            words.append(word)
    return words


def _without_clitics(word: str) -> list[str]:
    """A word with apostrophes in it as its parts; anything else that has one (a face, a URL) as it is."""
    if not word[0].isalpha() or "://" in word or word.startswith("www."):
        return [word]
    plain, ends, parts = word.replace("’", "'"), len(word), []
    if plain[-1] == "'":
        ends -= 1
        parts.append(word[ends])
    while (at := plain.rfind("'", 0, ends)) > 0:
        is_negation = plain[at - 1] in "nN" and plain[at + 1 : ends] in ("t", "T")
        if not is_negation and plain[at + 1 : ends].lower() not in _CLITICS:
            # An elided article or pronoun, as in l'eau and qu'il; else one word, as in rock'n'roll.
            if at <= 5 and ends > at + 2 and plain.find("'", 0, at) < 0:
                parts += [word[at + 1 : ends], word[: at + 1]]
                ends = 0
            break
        parts.append(word[at - is_negation : ends])
        ends = at - is_negation
    if ends:
        parts.append(word[:ends])
    return parts[::-1]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the blanks around them; none of a blank text.

    A sentence ends at `.`, `!`, `?` or `…` before a blank and something that can begin one (no small Latin
    letter), at their Chinese and Japanese forms, and at an empty line; not after initials and the
    abbreviations of titles and the like.
    """
    sentences, first = [], 0
    for match in _END.finditer(text):
        if match[0] == "." and _ABBREVIATION.search(text, max(first, match.end() - 12), match.end()):
            continue
        sentences.append(text[first : match.end()].strip())
        first = match.end()
    sentences.append(text[first:].strip())
    return [sentence for sentence in sentences if sentence]


def normalised(word: str, *, lowercase: bool = True) -> str:
    """What a word's id stands for: small letters, every digit 0, composed accents (Unicode's NFC).

    A URL becomes `http://`, a mail address `@`, and a run of four or more of one sign or letter three.
    """
    if not word.isascii():
        word = unicodedata.normalize("NFC", word)
    if lowercase:
        word = word.lower()
    if word.isalpha() and len(word) < 4:
        return word
    if "://" in word or word.startswith("www."):
        if _ONLY_URL.fullmatch(word):
            return "http://"
    elif "@" in word and _ONLY_MAIL.fullmatch(word):
        return "@"
    return _DIGIT.sub("0", _LONG_RUN.sub(r"\1\1\1", word))


def shape(word: str) -> str:
    """The kinds of a word's characters: X capital, x small, c other letter, d digit, signs themselves.

    A run of one kind counts as two at most: `McDonald` is `XxXxx`, `1,500` is `d,dd`.
    """
    kinds: list[str] = []
    for character in word[:40]:
        if character.isalpha():
            kind = "x" if character.islower() else "X" if character.isupper() else "c"
        else:
            kind = "d" if character.isdecimal() else character
        if kinds[-2:] != [kind, kind]:
            kinds.append(kind)
    return "".join(kinds)


def affixes(word: str, prefixes: tuple[int, ...], suffixes: tuple[int, ...]) -> list[str]:
    """The beginnings and ends of a word of the given lengths; the whole word where it is shorter."""
    return [*(word[:length] for length in prefixes), *(word[-length:] for length in suffixes)]
