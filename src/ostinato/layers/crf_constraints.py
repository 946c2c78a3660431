"""Which tag may follow which: the schemes that spell spans as tags, and the limits they set on a path.

A span tag is a letter, `-` and a type (`B-NP`); `O` stands outside of every span. The letters:

    bio     B begins every span, I goes on                 (IOB2)
    iob1    I begins and goes on, B only splits neighbours of one type
    bioes   B begins, I goes on, E ends; S is a span of one token
    bilou   the same, with L for E and U for S
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.layers.options import check_choice

SCHEMES = ("none", "bio", "iob1", "bioes", "bilou")
"""What `constraints_for` takes; `none` lets every tag follow every other."""

_LETTERS = {"bio": "BI", "iob1": "BI", "bioes": "BIES", "bilou": "BILU"}
# Every scheme in the letters of BIOES.
_AS_BIOES = str.maketrans("LU", "ES")
_AS_BILOU = str.maketrans("ES", "LU")
# Matrix powers beyond which a pattern counts as one that does not mix.
_MAX_MIXING_STEPS = 16


@dataclass(frozen=True)
class Constraints:
    """What a path may do, as booleans: transitions[from][to], start[tag], end[tag].

    Attributes:
        transitions: K rows of K.
        start: K, the tags that may come first.
        end: K, the tags that may come last.
    """

    transitions: tuple[tuple[bool, ...], ...]
    start: tuple[bool, ...]
    end: tuple[bool, ...]

    def __post_init__(self) -> None:
        K = len(self.start)
        widths = {len(self.end), len(self.transitions), *map(len, self.transitions)}
        if widths != {K}:
            raise InputError(
                f"Constraints: start has {K} tags, end {len(self.end)}, transitions {len(self.transitions)} "
                f"rows of {sorted(set(map(len, self.transitions)))}; expected the same number everywhere"
            )

    @property
    def num_tags(self) -> int:
        """K."""
        return len(self.start)

    def mixing_steps(self) -> int | None:
        """The fewest steps m in which every tag leads to every other; None where there is no such m ≤ 16.

        Tags that no allowed path passes through do not count.
        """
        follows = torch.tensor(self.transitions).float()
        reached = _closure(follows, torch.tensor(self.start))
        useful = reached & _closure(follows.T, torch.tensor(self.end))
        follows = follows[useful][:, useful]
        power = torch.eye(len(follows))
        for m in range(1, _MAX_MIXING_STEPS + 1):
            power = ((power @ follows) > 0).float()
            if bool(power.all()):
                return m
        return None

    def violations(self, path: Sequence[int]) -> int:
        """How many starts, transitions and ends of a path of tag numbers are not allowed."""
        if not path:
            return 0
        wrong = sum(not self.transitions[before][after] for before, after in pairwise(path))
        return wrong + (not self.start[path[0]]) + (not self.end[path[-1]])


def constraints_for(tags: Sequence[str], scheme: str) -> Constraints | None:
    """The constraints of a scheme on tags in the order of their numbers; None for the scheme `none`.

    Raises:
        InputError: an unknown scheme, or a tag that the scheme cannot spell.
    """
    check_choice("constraints_for", "scheme", scheme, SCHEMES)
    if scheme == "none":
        return None
    parts = [_split(tag, scheme) for tag in tags]
    transitions = tuple(tuple(_may_follow(one, other, scheme) for other in parts) for one in parts)
    outside = ("O", "")
    start = tuple(_may_follow(outside, part, scheme) for part in parts)
    end = tuple(_may_follow(part, outside, scheme) for part in parts)
    return Constraints(transitions, start, end)


def infer_scheme(sequences: Iterable[Sequence[str]]) -> str:
    """The scheme whose letters these tags use and whose rules the most sequences keep; `none` for other tags.

    A few sequences that break the rules of their own scheme, as hand-made files have them, do not change the
    answer; `respell` mends them.

    Cost: one pass over the tags.
    """
    sequences = [tuple(sequence) for sequence in sequences]
    tags = sorted({tag for sequence in sequences for tag in sequence})
    letters = set()
    for tag in tags:
        if tag != "O" and (tag[1:2] != "-" or tag[0] not in "BIESLU"):
            return "none"
        letters.add(tag[0])
    letters.discard("O")
    if not letters:
        return "none"
    if letters <= set("BI"):
        return min(("bio", "iob1"), key=lambda scheme: _n_broken(sequences, tags, scheme))
    # Ends without a single begin are IOE, whose spans of one token these schemes would spell otherwise.
    if not letters & set("BSU"):
        return "none"
    return next((scheme for scheme in ("bioes", "bilou") if letters <= set(_LETTERS[scheme])), "none")


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The spans (type, first, last + 1) of a sequence of tags, as conlleval and seqeval read any scheme.

    A span ends at a change of type, and a letter that cannot go on begins a new one; so every sequence has a
    reading, also one that breaks its scheme.
    """
    found: list[tuple[str, int, int]] = []
    before, kind, first = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        letter, other = _parts(tag)
        ends = before != "O" and (before in "ES" or letter in "OBS" or other != kind)
        if ends:
            found.append((kind, first, place))
        if letter != "O" and (before == "O" or ends):
            first = place
        before, kind = letter, other
    return found


def respell(tags: Sequence[str], scheme: str) -> list[str]:
    """The same spans in another scheme, or in the same one without its breaches.

    Raises:
        InputError: an unknown scheme, `none` included.
    """
    check_choice("respell", "scheme", scheme, tuple(_LETTERS))
    found = spans(tags)
    spelled = ["O"] * len(tags)
    for number, (kind, first, end) in enumerate(found):
        letters = ["I"] * (end - first)
        touches = number > 0 and found[number - 1][0] == kind and found[number - 1][2] == first
        if scheme != "iob1" or touches:
            letters[0] = "B"
        if scheme in ("bioes", "bilou"):
            letters[-1] = "E" if end - first > 1 else "S"
        for place, letter in enumerate(letters, first):
            spelled[place] = f"{letter.translate(_AS_BILOU) if scheme == 'bilou' else letter}-{kind}"
    return spelled


def _n_broken(sequences: Sequence[Sequence[str]], tags: Sequence[str], scheme: str) -> int:
    constraints = constraints_for(tags, scheme)
    numbers = {tag: number for number, tag in enumerate(tags)}
    assert constraints is not None
    return sum(constraints.violations([numbers[tag] for tag in row]) > 0 for row in sequences)


def _parts(tag: str) -> tuple[str, str]:
    """The letter, in those of BIOES, and the type; tags of no scheme are outside."""
    if tag[1:2] == "-" and tag[0] in "BIESLU":
        return tag[0].translate(_AS_BIOES), tag[2:]
    return "O", ""


def _split(tag: str, scheme: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    if tag[1:2] != "-" or tag[0] not in _LETTERS[scheme]:
        letters = ", ".join(f"{letter}-TYPE" for letter in _LETTERS[scheme])
        raise InputError(
            f"tag {tag!r} is not of the scheme {scheme!r}, which knows O, {letters}; use scheme='none'"
        )
    return _parts(tag)


def _may_follow(before: tuple[str, str], after: tuple[str, str], scheme: str) -> bool:
    """Whether one tag may follow another; the edges of a sequence are outside of every span."""
    is_same, letter, last = before[1] == after[1], after[0], before[0]
    if scheme == "bio":
        return letter != "I" or (last in "BI" and is_same)
    if scheme == "iob1":
        return letter != "B" or (last in "BI" and is_same)
    if last in "BI":
        return letter in "IE" and is_same
    return letter in "OBS"


def _closure(follows: Tensor, first: Tensor) -> Tensor:
    """Tags that can be reached from `first`, those included."""
    reached = first.clone()
    while True:
        more = reached | ((reached.float() @ follows) > 0)
        if bool((more == reached).all()):
            return reached
        reached = more
