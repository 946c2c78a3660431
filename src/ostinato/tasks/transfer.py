"""Networks that begin where others ended: reading the run that `init` names, and taking from it what fits."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.data.corpus_units import CorpusUnits
from ostinato.errors import InputError
from ostinato.layers.softmax import choose_cutoffs
from ostinato.models.encoder import CELLS
from ostinato.models.language import LanguageNetwork
from ostinato.tasks.stored import misfit
from ostinato.training.run_folder import RunFolder

KIND = "language"
SIZES = ("cell", "embedding_size", "hidden_size", "num_layers", "tied", "adaptive")
MAKERS = {
    "language": "ostinato train language",
    "classifier": "ostinato train classify",
    "tagger": "ostinato train tag",
    "forecast": "ostinato train forecast",
    "translator": "ostinato train translate",
    "summarizer": "ostinato train translate --copy",
    "sequence_classifier": "a SequenceClassifier",
    "sequence_regressor": "a SequenceRegressor",
}
"""What makes a run of each kind."""

OWN, MEAN = -1, -2
"""Instead of the number of a row that is taken: a row that stays as it is, or begins as the mean of all."""

Path = str | os.PathLike[str]


def open_source(path: Path, kinds: Sequence[str], name: str = "init") -> RunFolder:
    """The finished run that another begins with, verified.

    Args:
        path: of the run.
        kinds: what it may hold, of `MAKERS`.
        name: the argument, for messages.

    Raises:
        InputError: the run holds something else.
        RunFolderError: there is no finished run, or it was altered.
    """
    run = RunFolder.open(path)
    if run.kind not in kinds:
        raise InputError(
            f"{name}={str(path)!r}: holds a {run.kind!r}; begin with a run of "
            + " or ".join(MAKERS[kind] for kind in kinds)
        )
    return run


def decided(
    asked: Any, usual: Any, had: Any, names: Iterable[str], path: Path, name: str = "init"
) -> dict[str, Any]:
    """The values of parameters that a run decides, because the shapes of its tensors hang on them.

    Args:
        asked: has what was asked for as attributes `names`.
        usual: what stands there where nobody asked for anything.
        had: those of the run.
        names: the parameters.
        path, name: of the run, and the argument that named it, for messages.

    Raises:
        InputError: something is asked for that the run does not have.
    """
    values = {}
    for one in names:
        wanted, value = getattr(asked, one), getattr(had, one)
        if wanted not in (getattr(usual, one), value):
            raise InputError(
                f"{one}={wanted!r}: the run in {name}={str(path)!r} has {value!r}; leave it out, or train "
                "without that run"
            )
        values[one] = value
    return values


def own_cells(cell: str, asked: Any, known: Collection[str], path: Path, name: str = "init") -> list[type]:
    """The user's classes that are needed to read a run.

    Args:
        cell: the name of the run's.
        asked: the parameter `cell`: a name, or the user's class.
        known: names of cells that are none of the user's.
        path, name: of the run, and the argument that named it, for messages.

    Raises:
        InputError: the class is needed, and something else was passed.
    """
    if cell in known:
        return []
    if isinstance(asked, type) and asked.__name__ == cell:
        return [asked]
    raise InputError(
        f"{name}={str(path)!r}: the cell {cell!r} of the run is not part of ostinato; pass its class: "
        f"cell={cell}"
    )


@dataclass(frozen=True)
class Moved:
    """Where the rows of a tensor come from.

    Attributes:
        rows: for each new row the number of the row that is taken, `OWN` or `MEAN`.
        axes: how many of the first axes have these rows, as the transitions of a chain have them twice.
    """

    rows: Sequence[int]
    axes: int = 1

    def apply(self, taken: Tensor, own: Tensor) -> Tensor:
        """`own` with the rows of `taken`."""
        rows = torch.as_tensor(self.rows, dtype=torch.long)
        known = (rows >= 0).nonzero().squeeze(1)
        moved = own.clone()
        if self.axes == 2:
            moved[known[:, None], known] = taken[rows[known][:, None], rows[known]]
            return moved
        moved[known] = taken[rows[known]]
        mean = rows == MEAN
        if mean.any():
            moved[mean] = taken.mean(0)
        return moved


def places(new: Iterable[Any], old: Iterable[Any], other: int = OWN) -> list[int]:
    """For each of the new names its place among the old ones, `other` where it is not among them."""
    known = {name: place for place, name in enumerate(old)}
    return [known.get(name, other) for name in new]


@torch.no_grad()
def take(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    moved: Mapping[str, Moved] | None = None,
    own: Collection[str] = (),
) -> None:
    """Give a network the parameters and buffers of another.

    Args:
        network: takes them.
        tensors: of the other, by name; those that the network does not have are left.
        moved: by name, tensors whose rows have other places in the network.
        own: names, or beginnings of names that end in a full stop, which the network keeps its own of.

    Raises:
        InputError: a tensor of the network is missing in the other or has another shape there.
    """
    moved = moved or {}
    for name, value in network.state_dict().items():
        if any(name == one or (one.endswith(".") and name.startswith(one)) for one in own):
            continue
        taken = tensors.get(name)
        if taken is not None:
            taken = moved[name].apply(taken, value) if name in moved else taken
        if taken is None or taken.shape != value.shape:
            found = "none" if taken is None else f"shape {tuple(taken.shape)}"
            raise InputError(
                f"init: the network needs {name} of shape {tuple(value.shape)}, and the run has {found}; "
                "train without that run"
            )
        value.copy_(taken)


@dataclass(frozen=True)
class LanguageSource:
    """A trained language model as a beginning.

    Attributes:
        units: what it reads.
        sizes: those of `SIZES` by name.
        tensors: its weights by name; none where only the form is known, as of a run that began with it.
    """

    units: CorpusUnits
    sizes: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, path: Path, name: str = "init") -> LanguageSource:
        """From a run folder, which is verified first.

        Args:
            path: of the run.
            name: the argument, for messages.

        Raises:
            InputError: the run is not that of a language model, or its cell is a user's own.
            RunFolderError: there is no finished run, or it was altered.
        """
        run = open_source(path, [KIND], name)
        try:
            chosen = run.read_json("preparation/fit.json")["chosen"]
            sizes = {key: chosen[key] for key in SIZES}
            units = CorpusUnits.from_json(run.read_json("preparation/units.json"))
        except (KeyError, TypeError) as error:
            raise misfit(run, error) from error
        if sizes["cell"] not in CELLS:
            raise InputError(
                f"{name}={str(path)!r}: its cell {sizes['cell']!r} is not part of ostinato; known: "
                + ", ".join(CELLS)
            )
        return cls(units, sizes, run.read_tensors("model.safetensors"))

    def build(self, **regularisers: float) -> LanguageNetwork:
        """The network with its weights, where they are known; regularisers as for `LanguageNetwork`."""
        network = new_network(self.sizes, len(self.units), **regularisers)
        if self.tensors:
            network.load_state_dict(dict(self.tensors))
        return network

    def to_json(self) -> dict[str, Any]:
        """Units and sizes, without weights."""
        return {"units": self.units.to_json(), "sizes": self.sizes}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> LanguageSource:
        """The inverse of `to_json`."""
        return cls(CorpusUnits.from_json(stored["units"]), dict(stored["sizes"]))


def new_network(sizes: Mapping[str, Any], V: int, **regularisers: float) -> LanguageNetwork:
    """An untrained network of these sizes over V units."""
    given = dict(regularisers)
    if sizes["num_layers"] == 1:
        given.pop("dropout_between", None)
    if sizes["cell"] not in ("rnn", "lstm", "gru"):
        given.pop("weight_drop", None)
    return LanguageNetwork(
        V, sizes["embedding_size"], sizes["hidden_size"], sizes["num_layers"], sizes["cell"],
        tied=sizes["tied"], cutoffs=choose_cutoffs(V) if sizes["adaptive"] else (), **given,
    )  # fmt: skip


@torch.no_grad()
def begin_with(network: LanguageNetwork, units: CorpusUnits, source: LanguageSource) -> str:
    """Give a network of the same sizes the weights of another, whose units may be others.

    Vectors of units that both have are taken; a new unit begins with the mean of the old vectors
    (arXiv:1801.06146).

    Returns:
        what to say about it.

    Raises:
        InputError: tables in clusters of other units, whose vectors differ in width.
    """
    old = source.units
    same = units.vocabulary.entries == old.vocabulary.entries
    if not same and source.sizes["adaptive"]:
        raise InputError(
            "init: an adaptive softmax has vectors of several widths, which fit its own units only; pass the "
            "same text, or begin with a run of adaptive=False"
        )
    # 0 is the unknown unit: what is not known there begins as the mean.
    rows = [old.vocabulary.id(units.text_of(number)) - 1 or MEAN for number in range(1, len(units))]
    names = [] if same else [n for n, value in source.tensors.items() if _is_per_unit(n, value, len(old))]
    take(network, source.tensors, dict.fromkeys(names, Moved([0, *rows])))
    shared = sum(row > 0 for row in rows)
    return f"{shared} of {len(units) - 1} units begin with the vectors of the run that init names"


def _is_per_unit(name: str, value: Tensor, V: int) -> bool:
    return value.shape[:1] == (V,) and name.startswith(("embedding.", "output.", "head."))
