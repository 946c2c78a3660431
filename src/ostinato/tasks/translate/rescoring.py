"""Two models' answers, ranked by both: those of the network's beam, and those of joint n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.data.pair_encoding import START, EncodedPairs, PairPreparation
from ostinato.models.seq2seq import Encoded, EncoderDecoder
from ostinato.tasks.translate.answers import (
    Limits,
    Piece,
    Said,
    Search,
    beams,
    found_by,
    may_be,
    piece_of,
    weights_of_parts,
)
from ostinato.tasks.translate.joint_ngrams import Candidates, JointNgrams
from ostinato.tasks.translate.scores import token_error_rate
from ostinato.types import map_state

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7)
MIDDLE_WEIGHT = 0.5
_LIKELY = 15  # candidates among which the answer is
_BELOW = 3.0  # the last of the joint model's list is what it did not list, in nats

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """What may be said to one source.

    Attributes:
        said: with its log-probability by the network.
        joint: log-probability by the other model.
    """

    said: Said
    joint: float


@dataclass(frozen=True)
class Rescoring:
    """The answer of least expected error by two models (Kumar and Byrne 2004, N04-1022).

    Candidates are the whole beam of the network and the list of the joint n-grams. Their probabilities are
    taken to be proportional to the weighted geometric mean of both models',
    exp((log p_network + weight · log p_joint) / (1 + weight)); the answer is the candidate that on average is
    the fewest edits away from the 15 most probable ones.

    Attributes:
        ngrams: the joint model.
        weight: of its log-probabilities.
    """

    ngrams: JointNgrams
    weight: float

    @torch.no_grad()
    def search(
        self,
        network: EncoderDecoder,
        preparation: PairPreparation,
        rows: Sequence[list[str]],
        search: Search,
        limits: Limits,
        *,
        attends: bool,
    ) -> list[Piece]:
        """An answer to each of some sources, which are units and not empty."""
        encoded = preparation.encode_units(rows)
        found: dict[int, Piece] = {}
        found_in = self._candidates(network, preparation, encoded, search, limits, attends=attends)
        for chosen, lists, joint in found_in:
            best_of = choose_among(lists, self.weight)
            for row, best, second in zip(chosen.tolist(), best_of, joint, strict=True):
                piece = piece_of(best, rows[row], encoded.unknown[row], preparation)
                found[row] = replace(piece, second=preparation.units_of(second[0][0]))
        return [found[row] for row in range(len(rows))]

    def _candidates(
        self,
        network: EncoderDecoder,
        preparation: PairPreparation,
        encoded: EncodedPairs,
        search: Search,
        limits: Limits,
        *,
        attends: bool = False,
    ) -> Iterator[tuple[Integers, list[list[Candidate]], list[Candidates]]]:
        """For batches of sources their candidates, the best one of the beam first; and the joint model's."""
        n = search.beam
        for chosen, memory, decoded in beams(network, encoded, search, limits, attends=attends, n_best=n):
            joint = self.ngrams.candidates([encoded.source(row) for row in chosen.tolist()])
            lists = [_of_beam(found_by(decoded, i, preparation, search), one) for i, one in enumerate(joint)]
            missing = []
            for i, one in enumerate(joint):
                known = {candidate.said.ids for candidate in lists[i] if candidate.said.has_ended}
                missing += [
                    _Missing(i, ids, told, p)
                    for ids, p, reading in one
                    if ids not in known
                    and may_be(ids, search)
                    and (told := self._told(preparation, ids, reading)) is not None
                ]
            for i, candidate in _of_joint(memory, missing, encoded.end, preparation, search, attends=attends):
                lists[i].append(candidate)
            yield chosen, lists, joint

    def _told(
        self, preparation: PairPreparation, ids: tuple[int, ...], reading: Sequence[int]
    ) -> tuple[int, ...] | None:
        """What the network would have to say for a target of the joint n-grams; None where it cannot."""
        if preparation.parts is None:
            return ids or None
        return preparation.said_for(self.ngrams.parts_of(reading))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        ngrams: JointNgrams,
        network: EncoderDecoder,
        preparation: PairPreparation,
        references: dict[str, list[str]],
        search: Search,
        limits: Limits,
    ) -> tuple[Rescoring | None, str]:
        """Choose the weight by the token error rate of the answers to held-out sources.

        Args:
            ngrams, network, preparation, search, limits: as for `search`.
            references: the right answers to each source.

        Returns:
            None where none of `WEIGHTS` is better than the network alone; and a note.
        """
        split = preparation.source_units.split
        rows = {source: units for source in references if 0 < len(units := split(source)) <= limits.source}
        if not rows:
            return (
                None,
                "joint n-grams are not used: no held-out source is short enough to choose a weight by",
            )
        encoded = preparation.encode_units(rows.values())
        lists: dict[int, list[Candidate]] = {}
        for chosen, found, _ in cls(ngrams, 0.0)._candidates(network, preparation, encoded, search, limits):
            lists.update(zip(chosen.tolist(), found, strict=True))
        ordered = [lists[row] for row in range(len(rows))]
        right = [references[source] for source in rows]

        def error(best: Sequence[Said]) -> float:
            said = [preparation.text_of(one.ids) for one in best]
            return token_error_rate(said, right, preparation.target_units.tokens)

        alone = error([one[0].said for one in ordered])
        errors = {weight: error(choose_among(ordered, weight)) for weight in WEIGHTS}
        # With its neighbours, since some hundred sources more or less decide between two.
        around = np.array([errors[WEIGHTS[0]], *errors.values(), errors[WEIGHTS[-1]]])
        weight = WEIGHTS[int(np.convolve(around, [1, 2, 1], "valid").argmin())]
        measured = f"token error rate {errors[weight]:.4f} with them and {alone:.4f} without"
        where = f"of {len(rows):,} held-out sources"
        if errors[weight] >= alone:
            return None, f"joint n-grams are not used: {measured}, {where}"
        return cls(
            ngrams, weight
        ), f"answers are rescored by joint n-grams, weight {weight}: {measured}, {where}"


def _of_beam(found: Sequence[Said], joint: Candidates) -> list[Candidate]:
    """What the beam found, and what the other model thinks of that."""
    listed, floor = {ids: p for ids, p, _ in joint}, joint[-1][1] - _BELOW
    return [Candidate(said, listed.get(said.ids, floor)) for said in found]


@dataclass(frozen=True)
class _Missing:
    """A target of the joint n-grams that the beam lacks.

    Attributes:
        row: its source in the batch.
        ids: of the target's vocabulary.
        told: what the network would say for it.
        joint: log-probability.
    """

    row: int
    ids: tuple[int, ...]
    told: tuple[int, ...]
    joint: float


def _of_joint(
    memory: Encoded,
    missing: Sequence[_Missing],
    end: int,
    preparation: PairPreparation,
    search: Search,
    *,
    attends: bool,
) -> Iterator[tuple[int, Candidate]]:
    """What the joint model lists and the beam lacks, told to the network step by step.

    Args:
        memory: of a batch of sources.
        missing: targets.
        end, search, attends: as of the beam.
        preparation: of the network.
    """
    if not missing:
        return
    device = memory.state.row.device
    sizes = torch.tensor([len(one.told) for one in missing], device=device)
    told = torch.full((len(missing), int(sizes.max()) + 2), end)
    told[:, 0] = START
    for place, one in enumerate(missing):
        told[place, 1 : len(one.told) + 1] = torch.tensor(one.told)
    told = told.to(device)
    owners = torch.tensor([one.row for one in missing], device=device)
    state: Any = map_state(lambda leaf: leaf[owners], memory.state)
    total = torch.zeros(len(missing), dtype=torch.float64, device=device)
    looked: list[Tensor] = []
    for t in range(told.shape[1] - 1):
        scores, state, *weights = memory.step(told[:, t], state)
        own = torch.log_softmax(scores, 1).gather(1, told[:, t + 1, None])[:, 0].double()
        total += torch.where(t <= sizes, own, 0.0)
        if attends:
            looked += weights
    seen = torch.stack(looked, 1).cpu().numpy() if looked else None
    lengths = search.ranking.divisor(torch.tensor([len(one.ids) + 1 for one in missing], device=device))
    scores_of = (total / lengths).tolist()
    for place, (one, log_p, score) in enumerate(zip(missing, total.tolist(), scores_of, strict=True)):
        said = Said(one.told, log_p, score, weights=None if seen is None else seen[place])
        if preparation.parts is not None:
            said = replace(said, ids=one.ids, weights=weights_of_parts(said, preparation))
        yield one.row, Candidate(said, one.joint)


def choose_among(lists: Sequence[Sequence[Candidate]], weight: float) -> list[Said]:
    """The candidate of least expected error for each source; one that ended, where there is one."""
    likely: list[list[Candidate]] = []
    for one in lists:
        whole = [candidate for candidate in one if candidate.said.has_ended] or list(one)
        likely.append(sorted(whole, key=lambda c: -_mean(c, weight))[:_LIKELY])
    counts = np.array([len(one) for one in likely], np.int64)
    firsts = np.cumsum(counts) - counts
    every = [candidate.said for one in likely for candidate in one]
    p = np.concatenate(
        [_shares(np.array([_mean(candidate, weight) for candidate in one])) for one in likely]
    )  # fmt: skip
    lengths = np.array([len(said.ids) for said in every], np.int64)
    tokens = np.full((len(every), int(lengths.max(initial=0))), -1, np.int64)
    for place, said in enumerate(every):
        tokens[place, : len(said.ids)] = said.ids
    pairs = [
        np.stack(np.triu_indices(n, 1)) + first
        for n, first in zip(counts.tolist(), firsts.tolist(), strict=True)
    ]
    a, b = np.concatenate(pairs, axis=1)
    apart = edit_distances(tokens[a], lengths[a], tokens[b], lengths[b])
    expected = np.bincount(a, p[b] * apart, len(every)) + np.bincount(b, p[a] * apart, len(every))
    return [
        every[first + int(expected[first : first + n].argmin())]
        for n, first in zip(counts.tolist(), firsts.tolist(), strict=True)
    ]


def _mean(candidate: Candidate, weight: float) -> float:
    return (candidate.said.log_p + weight * candidate.joint) / (1 + weight)


def _shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) probabilities; equal ones where nothing has a score above -inf."""
    best = scores.max()
    shares = np.exp(scores - best) if np.isfinite(best) else np.ones(len(scores))
    return np.asarray(shares / shares.sum())


def edit_distances(
    left: Integers, left_lengths: Integers, right: Integers, right_lengths: Integers
) -> NDArray[np.int64]:
    """(n,) insertions, deletions and substitutions between n pairs of rows.

    Args:
        left, right: (n, L) and (n, R), of which the first `left_lengths` and `right_lengths` (n,) count.

    Cost: 10 passes over n·R numbers for each of the L places.
    """
    n, width = right.shape
    steps = np.arange(width + 1)
    row = np.broadcast_to(steps, (n, width + 1)).copy()
    found = np.where(left_lengths == 0, right_lengths, 0)
    for i in range(left.shape[1]):
        best = row + 1  # without a unit of the left
        best[:, 1:] = np.minimum(best[:, 1:], row[:, :-1] + (left[:, i, None] != right))
        # Insertions: the least over all places before, one for each step from there.
        row = np.minimum.accumulate(best - steps, axis=1) + steps
        done = np.flatnonzero(left_lengths == i + 1)
        found[done] = row[done, right_lengths[done]]
    return found
