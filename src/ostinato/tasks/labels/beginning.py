"""Labelled sequences that begin with the run of others like them: which run, and what is taken of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.data.token_encoding import Item, TokenPreparation
from ostinato.data.vocabulary import FIRST_ID, UNKNOWN, Vocabulary
from ostinato.errors import InputError
from ostinato.models.wide import WideAndDeep
from ostinato.tasks.labels.ensemble import Ensemble
from ostinato.tasks.run_estimator import read_run
from ostinato.tasks.transfer import KIND, Moved, open_source, own_cells, take

if TYPE_CHECKING:
    from ostinato.tasks.labels.estimator import LabelEstimator

E = TypeVar("E", bound="LabelEstimator")

GENTLE = 0.1
"""On the usual learning rate, where nothing begins at random: whole rates spoil what the run knows, which
few examples do not teach again (measured on TREC: 84.7 % against 83.8 % of four runs)."""


def read_first(settings: E) -> E | None:
    """The estimator in the run that `init` names; None without one, and where it is a language model, which
    the preparation of the inputs reads.

    Raises:
        InputError: a run of another kind; parameters that cannot go with one.
        RunFolderError: there is no finished run, or it was altered.
    """
    if settings.init is None:
        return None
    run = open_source(settings.init, (KIND, settings.kind))
    if run.kind == KIND:
        return None
    if (vectors := getattr(settings, "vectors", None)) is not None:
        raise InputError(
            f"vectors={str(vectors)!r}: words begin as the run in init={str(settings.init)!r} has "
            "them; leave it out"
        )
    cell = str(run.read_json("preparation/fit.json")["chosen"]["cell"])
    return read_run(type(settings), run, own_cells(cell, settings.cell, settings._cells, settings.init))


def require_same_values(first: Mapping[str, Any], reading: Mapping[str, Any], path: Any) -> None:
    """Refuse signals whose columns are not those of the run in `path`; each was read as its mapping says.

    Raises:
        InputError: with both, in their order.
    """
    had, found = first.get("values"), reading.get("values")
    if had is not None and found is not None and list(had) != list(found):
        raise InputError(
            f"values: the run in init={str(path)!r} reads the columns {', '.join(map(str, had))}, found "
            f"{', '.join(map(str, found))}; name the same ones in that order (values=, --values), or train "
            "without that run"
        )


def extended(old: TokenPreparation, items: Iterable[Item], *, minimum_count: int = 1) -> TokenPreparation:
    """A preparation that reads as `old` does, and knows further words, letters and values of columns.

    Their ids follow those of `old`; words are counted in both.

    Args:
        old: the preparation.
        items: the training part, of the kind that `old` was fitted to.
        minimum_count: new words that are rarer stay unknown.

    Raises:
        InputError: no token at all, a column that a sentence lacks.
    """
    if old.unit == "word":
        new = TokenPreparation.fit(
            items, lowercase=old.lowercase, columns=list(old.columns), minimum_count=minimum_count,
            characters=old.characters is not None, shapes=bool(old.shapes),
        )  # fmt: skip
    else:
        counts = Counter(chain.from_iterable(map(old.split, items)))
        new = TokenPreparation(Vocabulary.fit(counts, minimum_count=minimum_count), unit=old.unit)
    words, characters = _joined(old.words, new.words), None
    if old.characters is not None and new.characters is not None:
        characters = _joined(old.characters, new.characters)
    return TokenPreparation(
        words,
        unit=old.unit,
        lowercase=old.lowercase,
        characters=characters,
        shapes=list(map(_joined, old.shapes, new.shapes)),
        columns={name: _joined(known, new.columns[name]) for name, known in old.columns.items()},
        byte_pairs=old.byte_pairs,
        vector_words=[word for word in old.vector_words if word not in words],
        vector_size=old.vector_size,
    )


def _joined(old: Vocabulary, new: Vocabulary) -> Vocabulary:
    counts = dict(zip(old.entries, old.counts[FIRST_ID:].tolist(), strict=True))
    for entry, count in zip(new.entries, new.counts[FIRST_ID:].tolist(), strict=True):
        counts[entry] = counts.get(entry, 0) + count
    unknown = int(old.counts[UNKNOWN] + new.counts[UNKNOWN])
    return Vocabulary(list(counts), list(counts.values()), unknown)


def token_rows(new: TokenPreparation, old: TokenPreparation, name: str = "tokens") -> dict[str, Moved]:
    """Where the rows of the tables of a `TokenEncoder` come from.

    What only `new` knows begins as the row of what is unknown: with the weights of `old` a network over `new`
    says at first what it said over `old`.

    Args:
        new: an extension of `old`.
        old: of the run that is begun with.
        name: of the encoder in its network.
    """
    words = _ids(new.words, old.words)
    vectors = {word: number for number, word in enumerate(old.vector_words, len(old.words))}
    further = [*new.words.entries, *new.vector_words]
    given = [old.words.id(word) if word in old.words else vectors.get(word, UNKNOWN) for word in further]
    # One table for all shapes, whose vocabularies share the padding.
    shapes, start = [0], 0
    for known, before in zip(new.shapes, old.shapes, strict=True):
        shapes += [start + number for number in _ids(known, before)[1:]]
        start += len(before) - 1
    rows = {"word.weight": words, "vectors": [0, UNKNOWN, *given], "shape.table.weight": shapes}
    if new.characters is not None and old.characters is not None:
        rows["spelling.embedding.weight"] = _ids(new.characters, old.characters)
    for i, (known, before) in enumerate(zip(new.columns.values(), old.columns.values(), strict=True)):
        rows[f"columns.{i}.weight"] = _ids(known, before)
    return {f"{name}.{one}": Moved(places) for one, places in rows.items()}


def _ids(new: Vocabulary, old: Vocabulary) -> list[int]:
    return [0, UNKNOWN, *old.ids(new.entries)]


def known_words(new: TokenPreparation, old: TokenPreparation) -> str:
    """How many words of an extension are new, as a part of a note."""
    further = len(new.words) - len(old.words)
    return f"{len(old.words) - FIRST_ID:,} words and {further:,} new ones"


def take_members(network: Ensemble, first: Ensemble, moved: Mapping[str, Moved]) -> None:
    """Give each member the weights of one of another ensemble, the linear models aside.

    Of the same data each then takes from the one that has not learned from the same part.
    """
    sources = list(first.members)
    for m, member in enumerate(network.members):
        take(_deep(member), _deep(sources[m % len(sources)]).state_dict(), moved)


def _deep(member: Any) -> Any:
    return member.network if isinstance(member, WideAndDeep) else member
