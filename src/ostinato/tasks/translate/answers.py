"""From sources to answers: beams over batches of similar length; long sources in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ostinato.data.pair_encoding import START, EncodedPairs, PairPreparation
from ostinato.data.pair_units import BLANK, PairUnits
from ostinato.data.vocabulary import UNKNOWN
from ostinato.models.decoding import Decoded, LengthPenalty, Rules, beam_search
from ostinato.models.seq2seq import Encoded, EncoderDecoder

if TYPE_CHECKING:
    from ostinato.tasks.translate.rescoring import Rescoring

LOOKAHEAD = 4
"""Tokens: with 4 the answers of whole searches, up to three times as fast (translations, summaries)."""
_ROWS, _CELLS = 128, 60_000  # of a batch: sources, and hypotheses times units of the longest source
_SENTENCE_END = re.compile(r".*[.!?。！？…][\"'”’»)\]]*")
_BYTE_BLANK = "\u0120"  # how byte pairs write the blank before a word


@dataclass(frozen=True)
class Search:
    """How answers are looked for.

    Attributes:
        beam: hypotheses that are kept.
        length_penalty: alpha of `LengthPenalty(alpha, "plain")`.
        no_repeat_ngram: as for `Rules`.
    """

    beam: int = 5
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0

    @property
    def ranking(self) -> LengthPenalty:
        """What log-probabilities are divided by."""
        return LengthPenalty(self.length_penalty, "plain", LOOKAHEAD)


@dataclass(frozen=True)
class Limits:
    """How long sources and answers may be, in units, by what training has seen.

    Attributes:
        source: of one piece of a source.
        target: of an answer.
        ratio: of an answer over its source.
    """

    source: int
    target: int
    ratio: float

    @classmethod
    def of(cls, source_lengths: NDArray[np.int64], target_lengths: NDArray[np.int64], source: int) -> Limits:
        """Half as much again as nearly all pairs of the training part have."""
        ratios = target_lengths / np.maximum(source_lengths, 1)
        longest = int(1.5 * target_lengths.max(initial=1)) + 10
        return cls(source, longest, 1.5 * float(np.quantile(ratios, 0.99)) if len(ratios) else 1.5)

    def of_answer(self, source_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The most units of answers to sources of these lengths, the end counted."""
        found: NDArray[np.int64] = np.minimum(self.ratio * source_lengths + 10, self.target).astype(np.int64)
        return found


@dataclass(frozen=True)
class Piece:
    """One piece of a source and what it became.

    Attributes:
        source, target: units.
        score: log-probability of the target over its length penalty.
        weights: (T, S) where the attention was for each target unit; None where there is none.
        has_ended: False where the target was cut off because it became too long.
        unknown: how many units of the source the network does not know.
        second: what the model that answers are rescored by would have said; None without one.
    """

    source: list[str]
    target: list[str]
    score: float
    weights: NDArray[np.float32] | None = None
    has_ended: bool = True
    unknown: int = 0
    second: list[str] | None = None


@dataclass(frozen=True)
class Answer:
    """What was said to one source.

    Attributes:
        source: the text that it answers.
        text: the whole answer.
        pieces: one of most sources, none of an empty one, several of a very long one.
        unread: how many units at the end of the source were not read.
    """

    source: str
    text: str
    pieces: list[Piece]
    unread: int = 0


def answer(
    network: EncoderDecoder,
    preparation: PairPreparation,
    sources: Sequence[str],
    search: Search,
    limits: Limits,
    *,
    cuts: bool,
    attends: bool = False,
    rescoring: Rescoring | None = None,
) -> list[Answer]:
    """An answer to each source; none is said to an empty one.

    Args:
        network: in evaluation mode.
        preparation: of the network.
        sources: texts.
        search: how.
        limits: a source longer than `limits.source` is answered in pieces, which end with a sentence where
            one ends in their second half, else between words.
        cuts: of a longer source only the first piece is read.
        attends: whether weights are kept.
        rescoring: by a second model, where the beam is more than one.
    """
    rows: list[list[str]] = []
    owners: list[int] = []
    unread: list[int] = []
    for number, source in enumerate(sources):
        units = preparation.source_units.split(source)
        pieces = [units[: limits.source]] if cuts else list(pieces_of(units, limits.source))
        unread.append(len(units) - sum(map(len, pieces)))
        full = [piece for piece in pieces if piece]
        rows += full
        owners += [number] * len(full)
    found: list[list[Piece]] = [[] for _ in sources]
    look = _search if rescoring is None or search.beam == 1 else rescoring.search
    said = look(network, preparation, rows, search, limits, attends=attends)
    for owner, piece in zip(owners, said, strict=True):
        found[owner].append(piece)
    told = preparation.target_units
    return [
        Answer(source, joined(told, [piece.target for piece in parts]), parts, left)
        for source, parts, left in zip(sources, found, unread, strict=True)
    ]


def joined(units: PairUnits, parts: Sequence[Sequence[str]]) -> str:
    """The text of an answer from the units of its pieces."""
    between = "" if units.kind == "char" else " "
    return between.join(filter(None, (units.join(part) for part in parts)))


def notes_about(answers: Sequence[Answer], limits: Limits) -> list[str]:
    """What was not read, not known or not said to the end, counted."""
    notes, most = [], limits.source
    if cut := sum(one.unread > 0 for one in answers):
        notes.append(f"{cut:,} sources of more than {most:,} units: the first {most:,} are read")
    if long := sum(len(one.pieces) > 1 for one in answers):
        notes.append(f"{long:,} sources of more than {most:,} units, answered in pieces")
    pieces = [piece for one in answers for piece in one.pieces]
    if unknown := sum(piece.unknown for piece in pieces):
        total = sum(len(piece.source) for piece in pieces)
        notes.append(f"{unknown:,} of {total:,} units of the sources are unknown to the network")
    if endless := sum(not all(piece.has_ended for piece in one.pieces) for one in answers):
        notes.append(
            f"{endless:,} of {len(answers):,} answers did not come to an end and were cut off, at "
            f"{limits.target:,} units at the latest"
        )
    return notes


def pieces_of(units: list[str], most: int) -> Iterator[list[str]]:
    """Stretches of at most so many units, all of them together."""
    start = 0
    while len(units) - start > most:
        stop = _cut(units, start, start + most)
        yield units[start:stop]
        start = stop
    yield units[start:]


def _cut(units: list[str], start: int, stop: int) -> int:
    middle = (start + stop) // 2
    for at in range(stop, middle, -1):
        if _SENTENCE_END.fullmatch(units[at - 1]):
            return at
    for at in range(stop, middle, -1):
        if units[at][:1] in (BLANK, _BYTE_BLANK, " "):
            return at
    return stop


@dataclass(frozen=True)
class Said:
    """One of the answers that a beam found.

    Attributes:
        ids: of the target's vocabulary, without the end.
        log_p: log-probability; where parts are said that of all readings in the beam together.
        score: that over the length penalty.
        has_ended: False where it was cut off because it became too long.
        weights: (T, S) where the network looked at for each unit, and perhaps for the end; None where that is
            not kept.
    """

    ids: tuple[int, ...]
    log_p: float
    score: float
    has_ended: bool = True
    weights: NDArray[np.float32] | None = None


def found_by(decoded: Decoded, i: int, preparation: PairPreparation, search: Search) -> list[Said]:
    """What the beam found for source i, the best first: all that ended, or else the best."""
    attention = None if decoded.attention is None else decoded.attention[i].cpu().numpy()
    said: list[Said] = []
    for k, score in enumerate(decoded.scores[i].tolist()):
        has_ended = bool(decoded.ended[i, k])
        if k and not (has_ended and score > -np.inf):
            break
        ids = tuple(decoded.tokens[i, k, : int(decoded.lengths[i, k])].tolist())
        weights = None if attention is None else attention[k]
        said.append(Said(ids, float(decoded.log_probs[i, k]), score, has_ended, weights))
    return said if preparation.parts is None else _of_parts(said, preparation, search)


def _of_parts(readings: list[Said], preparation: PairPreparation, search: Search) -> list[Said]:
    """Targets of the parts that were said: those with the same units are one, of the sum of probabilities."""
    found: dict[tuple[int, ...], Said] = {}
    for reading in readings:
        ids = preparation.ids_of(reading.ids)
        if ids in found:
            old = found[ids]
            total = float(np.logaddexp(old.log_p, reading.log_p))
            found[ids] = replace(old, log_p=total)
        else:
            found[ids] = replace(reading, ids=ids, weights=weights_of_parts(reading, preparation))
    wanted = [said for ids, said in found.items() if may_be(ids, search)] or [*found.values()][:1]
    lengths = search.ranking.divisor(torch.tensor([len(said.ids) + 1 for said in wanted])).tolist()
    scored = [replace(said, score=said.log_p / n) for said, n in zip(wanted, lengths, strict=True)]
    return sorted(scored, key=lambda said: -said.score)


def weights_of_parts(reading: Said, preparation: PairPreparation) -> NDArray[np.float32] | None:
    """The weights of parts, for each unit of these."""
    if reading.weights is None:
        return None
    sizes = [len(preparation.ids_of([part])) for part in reading.ids]
    return np.repeat(reading.weights[: len(sizes)], sizes, axis=0)


def may_be(ids: tuple[int, ...], search: Search) -> bool:
    """Whether no n units come twice in a row of them, where the search wants that."""
    n = search.no_repeat_ngram
    grams = [ids[k : k + n] for k in range(len(ids) - n + 1)] if n else []
    return len(set(grams)) == len(grams)


def piece_of(
    best: Said, source: list[str], unknown: int, preparation: PairPreparation, extra: Sequence[str] = ()
) -> Piece:
    """What became of the units of a source, `unknown` of which the network does not know.

    Args:
        best: the answer.
        source: its units.
        unknown: is kept.
        preparation: of the network.
        extra: where words are copied, those that the target vocabulary lacks.
    """
    target = preparation.units_of(best.ids, extra)
    seen = None if best.weights is None else best.weights[: len(target), : len(source)]
    return Piece(source, target, best.score, seen, best.has_ended, unknown)


@torch.no_grad()
def _search(
    network: EncoderDecoder,
    preparation: PairPreparation,
    rows: Sequence[list[str]],
    search: Search,
    limits: Limits,
    *,
    attends: bool,
) -> list[Piece]:
    encoded = preparation.encode_units(rows)
    found: dict[int, Piece] = {}
    # Of parts the same target may have several readings.
    n = 1 if preparation.parts is None else search.beam
    for chosen, _, decoded in beams(network, encoded, search, limits, attends=attends, n_best=n):
        for i, row in enumerate(chosen.tolist()):
            extra = encoded.extra[row] if encoded.extra else ()
            best = found_by(decoded, i, preparation, search)[0]
            found[row] = piece_of(best, rows[row], encoded.unknown[row], preparation, extra)
    return [found[row] for row in range(len(rows))]


def beams(
    network: EncoderDecoder,
    encoded: EncodedPairs,
    search: Search,
    limits: Limits,
    *,
    attends: bool = False,
    n_best: int = 1,
) -> Iterator[tuple[NDArray[np.int64], Encoded, Decoded]]:
    """The best sequences for all sources, in batches of similar length: rows, what was read of them, and what
    the beam found. Without gradients only."""
    lengths = encoded.source_lengths
    longest = lengths + 1 if encoded.is_aligned else limits.of_answer(lengths)
    repeated = 0 if encoded.is_aligned else search.no_repeat_ngram  # of units, not of parts
    order = np.argsort(lengths, kind="stable")
    device = next(network.parameters()).device
    for chosen in _batches(order, lengths, search.beam):
        memory = network.encode(encoded.batch(chosen).to(device))

        def step(tokens: Tensor, state: Any, memory: Any = memory) -> tuple[Any, ...]:
            scores, state, *weights = memory.step(tokens, state)
            return scores, state, *(weights if attends else ())

        decoded = beam_search(
            step,
            memory.state,
            torch.full((len(chosen),), START, device=device),
            end=encoded.end,
            max_length=torch.from_numpy(longest[chosen]),
            beam=search.beam,
            n_best=n_best,
            length_penalty=search.ranking,
            rules=Rules(no_repeat_ngram=repeated, forbidden=(START, UNKNOWN)),
        )
        yield chosen, memory, decoded


def _batches(order: Any, lengths: NDArray[np.int64], beam: int) -> Iterator[NDArray[np.int64]]:
    """Rows in their order, fewer at once where they are long."""
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < min(start + _ROWS, len(order))
            and (stop + 1 - start) * beam * lengths[order[stop]] <= _CELLS
        ):
            stop += 1
        yield order[start:stop]
        start = stop
