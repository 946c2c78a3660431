"""What needs no network: the source itself, its first words, a table of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.data.pair_units import PairUnits
from ostinato.data.vocabulary import UNKNOWN, Vocabulary

COPY, FIRST_WORDS = "copy_source", 8
TABLES = {"word": "word_table", "char": "letter_table", "symbol": "symbol_table"}
_MOST_ENTRIES, _MOST_LINKS, _ROUNDS = 20_000, 3_000_000, 5
_SHORTER = 1.5  # a source this much longer than its target is not translated word by word


@dataclass(frozen=True)
class Baselines:
    """Answers without a network.

    Attributes:
        kinds: the units of the table on both sides: those of the network, words for byte pairs.
        table: for each unit of a source the one that most often stands for it; empty where sources are much
            longer than targets, which their first eight words are compared with instead.
        is_shortening: whether they are.
    """

    kinds: tuple[str, str]
    table: Mapping[str, str] = field(default_factory=dict)
    is_shortening: bool = False

    @classmethod
    def fit(
        cls, sources: Sequence[str], targets: Sequence[str], kinds: tuple[str, str], seed: int = 0
    ) -> Self:
        """From the training part; of very many pairs a random part is enough."""
        kinds = ("word" if kinds[0] == "bpe" else kinds[0], "word" if kinds[1] == "bpe" else kinds[1])
        cut = [PairUnits(kind) for kind in kinds]
        order = np.random.default_rng([seed, 5]).permutation(len(sources))
        rows: list[tuple[list[str], list[str]]] = []
        links, sizes = 0, [0, 0]
        for i in order.tolist():
            pair = cut[0].split(sources[i]), cut[1].split(targets[i])
            sizes = [size + len(side) for size, side in zip(sizes, pair, strict=True)]
            own = len(pair[0]) * len(pair[1])
            if own > _MOST_LINKS // 10:  # one pair would be most of what is learned from
                continue
            links += own
            if links > _MOST_LINKS:
                break
            rows.append(pair)
        is_shortening = kinds == ("word", "word") and sizes[0] > _SHORTER * sizes[1]
        table = {} if is_shortening else _most_likely(rows)
        return cls(kinds, table, is_shortening)

    def say(self, sources: Sequence[str]) -> dict[str, list[str]]:
        """Answers to some sources by the name of the baseline."""
        said = {COPY: [" ".join(source.split()) for source in sources]}
        if self.is_shortening:
            first = [" ".join(source.split()[:FIRST_WORDS]) for source in sources]
            return {f"first_{FIRST_WORDS}_words": first, **said}
        source_units, target_units = (PairUnits(kind) for kind in self.kinds)
        said[TABLES[self.kinds[0]]] = [
            target_units.join([self.table[u] for u in source_units.split(source) if u in self.table])
            for source in sources
        ]
        return said

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kinds": list(self.kinds), "table": dict(self.table), "is_shortening": self.is_shortening}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        first, second = stored["kinds"]
        return cls((first, second), dict(stored["table"]), bool(stored["is_shortening"]))


def _most_likely(rows: Sequence[tuple[list[str], list[str]]]) -> dict[str, str]:
    """For each source unit the target unit with the highest probability in IBM model 1, five rounds of EM
    (Brown et al. 1993, J93-2003), without the empty word."""
    sides = []
    for side in (0, 1):
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(row[side])
        sides.append(Vocabulary.fit(counts, maximum_size=_MOST_ENTRIES))
    numbers = [(sides[0].ids(source), sides[1].ids(target)) for source, target in rows]
    links = [_links(source, target, sides[1]) for source, target in numbers if source and target]
    if not links:
        return {}
    keys = np.concatenate([key for key, _ in links])
    before = np.cumsum([0, *(int(place[-1]) + 1 for _, place in links[:-1])])
    places = np.concatenate([place + first for (_, place), first in zip(links, before, strict=True)])
    different, inverse = np.unique(keys, return_inverse=True)
    source_of = different // len(sides[1])
    share = np.ones(len(different))
    for _ in range(_ROUNDS):
        weights = share[inverse]
        weights /= np.bincount(places, weights)[places]
        expected = np.bincount(inverse, weights, len(different))
        share = expected / np.bincount(source_of, expected)[source_of]
    order = np.lexsort((-share, source_of))
    _, first = np.unique(source_of[order], return_index=True)
    best = different[order[first]]
    return {
        sides[0].entry(int(key) // len(sides[1])): sides[1].entry(int(key) % len(sides[1]))
        for key in best.tolist()
        if key // len(sides[1]) > UNKNOWN and key % len(sides[1]) > UNKNOWN
    }


def _links(source: list[int], target: list[int], vocabulary: Vocabulary) -> tuple[NDArray[np.int64], ...]:
    """Every source unit with every target unit of a pair: one number for both, and which target it is."""
    S, T = len(source), len(target)
    keys = np.repeat(np.array(source, np.int64), T) * len(vocabulary) + np.tile(np.array(target, np.int64), S)
    return keys, np.tile(np.arange(T), S)
