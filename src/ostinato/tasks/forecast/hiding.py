"""Gaps made for training and for validation: spans as long as the real ones, and missing beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ostinato.data.interpolation import Indices, Mask, gap_lengths
from ostinato.tasks.forecast.drawn import DrawnSource
from ostinato.tasks.forecast.gaps import GapRows, Places, margin_of, window_batch
from ostinato.types import Batch

_HELD_SHARE = 0.2
_HELD_SPANS = 256


@dataclass(frozen=True)
class Holes:
    """What is missing from a table, and what is therefore hidden in training.

    Attributes:
        lengths: of the gaps between values; made up, from 1 to a season, where there are none.
        lead, trail: longest stretch that is missing before the first or after the last value.
        lead_share, trail_share: how many of the windows end or begin with such a stretch.
        alone_share: how often other targets are missing together with the one that is hidden.
    """

    lengths: Indices
    lead: int
    trail: int
    lead_share: float
    trail_share: float
    alone_share: float

    @staticmethod
    def of(rows: GapRows, season: int, backcast_steps: int | None) -> Holes:
        """Look at all rows; `backcast_steps` as in `ImputationSettings`."""
        found: list[int] = []
        lead = trail = 0
        longest = int(rows.lengths.max())
        for row in rows.values:
            first, between, last = gap_lengths(np.isnan(row))
            lead, trail = max(lead, first), max(trail, last)
            found += between
        if not found:
            usual = max(2, min(max(season, 8), longest // 6))
            found = np.unique(np.geomspace(1, usual, 8).astype(int)).tolist()
        asked = max(season, 12) if backcast_steps is None else backcast_steps
        share = 0.25 if backcast_steps is None else 0.5 if backcast_steps else 0.0
        share = max(share, 0.15 if lead else 0.0)
        # A stretch that leaves less than half of a row visible teaches nothing about it.
        lead = max(1, min(max(lead, asked), longest // 2))
        together = _missing_together(rows)
        lengths = np.minimum(np.array(found, dtype=np.int64), max(1, longest // 3))
        return Holes(lengths, lead, max(1, min(trail, longest // 2)), share, 0.15 if trail else 0.0, together)

    def draw_length(self, rng: np.random.Generator, most: int) -> int:
        """Length of a gap: one of the real ones, up to a third longer or shorter, sometimes any shorter."""
        length = float(rng.choice(self.lengths))
        if rng.random() < 0.15:
            length = float(np.exp(rng.random() * np.log(max(length, 1.0))))
        elif length > 2:
            length *= rng.uniform(0.7, 1.4)
        return int(np.clip(round(length), 1, max(1, most)))


def _missing_together(rows: GapRows) -> float:
    """Of the steps at which a target is missing, how often are the others missing too: 0.5 where none is."""
    if len(rows.table.targets) == 1:
        return 0.0
    together = apart = 0
    for series in rows.table.series:
        missing = np.isnan(series.values).sum(axis=1)
        together += int(missing[missing == len(rows.table.targets)].sum())
        apart += int(missing[missing < len(rows.table.targets)].sum())
    return together / (together + apart) if together + apart else 0.5


@dataclass(frozen=True)
class Held:
    """Values that training never asks for: windows in which they are hidden, and which steps are left."""

    places: Places
    allowed: list[Mask]


def hold_out(rows: GapRows, holes: Holes, width: int, rng: np.random.Generator) -> Held:
    """Choose gaps and beginnings whose values choose the weights and calibrate the intervals.

    About a fifth of the known values, in at most 256 windows spread over the rows; each is hidden in a window
    of its own and stays visible in all others.
    """
    lengths = rows.lengths
    allowed = [~np.isnan(row) for row in rows.values]
    known = np.array([int(mask.sum()) for mask in allowed])
    places: list[Places] = []
    order = rng.permutation(np.flatnonzero(known >= 4))
    per_row = max(1, _HELD_SPANS // max(1, len(order)))
    for r in order[:_HELD_SPANS]:
        taken = 0
        for _ in range(per_row):
            kind = rng.random()
            if taken >= _HELD_SHARE * known[r]:
                break
            n = int(lengths[r])
            if kind < holes.lead_share + holes.trail_share:
                edge, at_end = (holes.trail, True) if kind >= holes.lead_share else (holes.lead, False)
                span = min(edge, n // 3)
                begin = int(rng.integers(0, n - 2 * span + 1))
                place, chosen = _edge(rows, int(r), begin, span, width, at_end)
            else:
                span = holes.draw_length(rng, min(width // 2, n // 4))
                begin = int(rng.integers(1, max(2, n - span)))
                place, chosen = _gap(rows, int(r), begin, span, width, rng.random() < holes.alone_share)
            taken += int(allowed[r][chosen].sum())
            allowed[r][chosen] = False
            places.append(place)
    return Held(Places.concatenate(places), allowed)


def _gap(rows: GapRows, row: int, begin: int, span: int, width: int, alone: bool) -> tuple[Places, slice]:
    n = len(rows.values[row])
    start = int(np.clip(begin + span // 2 - width // 2, 0, max(n - width, 0)))
    place = Places.whole(np.array([row]), np.array([start]), width, rows.lengths)
    place.hidden[0, begin - start : begin - start + span] = True
    place.alone[0] = alone
    return place, slice(begin, begin + span)


def _edge(rows: GapRows, row: int, begin: int, span: int, width: int, at_end: bool) -> tuple[Places, slice]:
    """A window of a series that pretends to start at `begin` with `span` missing values; or mirrored."""
    n = len(rows.values[row])
    if not at_end:
        place = Places.whole(np.array([row]), np.array([begin]), width, rows.lengths)
        place.begin[0], place.known_from[0] = begin, begin + span
        return place, slice(begin, begin + span)
    end = n - begin
    place = Places.whole(np.array([row]), np.array([max(end - width, 0)]), width, rows.lengths)
    place.end[0], place.known_until[0] = end, end - span
    return place, slice(end - span, end)


class HoleSource(DrawnSource):
    """Batches of random windows with values hidden at random.

    Args:
        rows: all of them.
        holes: what to hide.
        allowed: the steps of each row that may be targets.
        width: W of the windows.
        size: B windows of a batch.
        seed: of the draw.
    """

    def __init__(
        self, rows: GapRows, holes: Holes, allowed: Sequence[Mask], width: int, size: int, *, seed: int
    ):
        super().__init__(seed)
        self.rows, self.holes, self.allowed = rows, holes, allowed
        self.width, self.size = width, size
        self.margin = margin_of(rows.scaling.seasons, width)
        self.batches = max(20, int(rows.lengths.sum()) // (size * width))

    def __len__(self) -> int:
        return self.batches

    def _batch(self, number: int) -> Batch:
        share = self.draw(np.random.default_rng([self.seed, self.epoch, number])).select(self.share)
        return window_batch(self.rows, share, self.margin, self.allowed).batch

    def draw(self, rng: np.random.Generator) -> Places:
        """B windows; longer rows more often, but not in proportion: short ones must be learned too."""
        lengths = self.rows.lengths
        weight = np.sqrt(lengths.astype(np.float64))
        chosen = rng.choice(len(lengths), size=self.size, p=weight / weight.sum())
        return Places.concatenate([self._window(int(r), rng) for r in chosen])

    def _window(self, row: int, rng: np.random.Generator) -> Places:
        holes, n = self.holes, len(self.rows.values[row])
        kind = rng.random()
        if kind < holes.lead_share + holes.trail_share:
            edge, at_end = (holes.trail, True) if kind >= holes.lead_share else (holes.lead, False)
            most = max(1, min(edge, n // 2))
            span = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
            begin = int(rng.integers(0, max(n - 2 * span, 0) + 1))
            return _edge(self.rows, row, begin, span, self.width, at_end)[0]
        start = int(rng.integers(0, max(n - self.width, 0) + 1))
        place = Places.whole(np.array([row]), np.array([start]), self.width, self.rows.lengths)
        inside = min(self.width, n - start)
        known = ~np.isnan(self.rows.values[row][start : start + inside])
        hidden = place.hidden[0]
        wanted = rng.uniform(0.05, 0.3) * known.sum()
        for _ in range(64):
            span = holes.draw_length(rng, inside // 2)
            begin = int(rng.integers(0, inside - span + 1))
            hidden[begin : begin + span] = True
            if (hidden[:inside] & known).sum() >= wanted:
                break
        place.alone[0] = rng.random() < holes.alone_share
        # With its first or last value hidden the row would have no gap there, but end.
        observed = np.flatnonzero(~np.isnan(self.rows.values[row])) - start
        for end in (observed[0], observed[-1]):
            if 0 <= end < self.width:
                hidden[end] = False
        return place
