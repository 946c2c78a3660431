"""Networks that begin where others ended: what a run of a language model gives to another run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ostinato.data.corpus_units import CorpusUnits
from ostinato.errors import InputError
from ostinato.layers.softmax import choose_cutoffs
from ostinato.models.encoder import CELLS
from ostinato.models.language import LanguageNetwork
from ostinato.tasks.stored import misfit
from ostinato.training.run_folder import RunFolder

KIND = "language"
SIZES = ("cell", "embedding_size", "hidden_size", "num_layers", "tied", "adaptive")


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
    def read(cls, path: str | os.PathLike[str], name: str = "init") -> LanguageSource:
        """From a run folder, which is verified first.

        Args:
            path: of the run.
            name: the argument, for messages.

        Raises:
            InputError: the run is not that of a language model, or its cell is a user's own.
            RunFolderError: there is no finished run, or it was altered.
        """
        run = RunFolder.open(path)
        if run.kind != KIND:
            raise InputError(
                f"{name}={str(path)!r}: holds a {run.kind!r}; begin with a run of `ostinato train language`"
            )
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
    places = [0] + [old.vocabulary.id(units.text_of(number)) - 1 for number in range(1, len(units))]
    rows = torch.tensor(places)
    taken = dict(source.tensors)
    if not same:
        for name in [name for name, value in taken.items() if _is_per_unit(name, value, len(old))]:
            table = taken[name]
            # 0 is the unknown unit: what is not known there begins as the mean.
            fresh = table.mean(0, keepdim=True).expand(len(units), *table.shape[1:]).clone()
            known = (rows > 0) | (torch.arange(len(units)) == 0)
            fresh[known] = table[rows[known]]
            taken[name] = fresh
    network.load_state_dict(taken)
    shared = sum(place > 0 for place in places)
    return f"{shared} of {len(units) - 1} units begin with the vectors of the run that init names"


def _is_per_unit(name: str, value: Tensor, V: int) -> bool:
    return value.shape[:1] == (V,) and name.startswith(("embedding.", "output.", "head."))
