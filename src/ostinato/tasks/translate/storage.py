"""The run folder of a translator: what it holds, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ostinato.data.pair_encoding import PairPreparation
from ostinato.errors import InputError
from ostinato.tasks.run_estimator import read_run
from ostinato.tasks.transfer import decided, open_source, own_cells
from ostinato.tasks.translate.answers import Limits
from ostinato.tasks.translate.baselines import Baselines
from ostinato.tasks.translate.joint_ngrams import JointNgrams
from ostinato.tasks.translate.preparing import build_network
from ostinato.tasks.translate.rescoring import Rescoring
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.translate.estimator import Translator

E = TypeVar("E", bound="Translator")

KINDS = ("translator", "summarizer")
# What has to be the same where one run goes on with the weights of another.
OF_NETWORK = (
    "cell", "hidden_size", "embedding_size", "num_layers", "attention", "feeding", "copying", "coverage",
    "shared", "vocabulary_size",
)  # fmt: skip
_UNITS, _BASELINES = "preparation/units.json", "preparation/baselines.json"
_JOINT = "preparation/joint.safetensors"


def write_parts(estimator: Translator, run: RunFolder) -> dict[str, Any]:
    """Units, baselines and joint n-grams; returns what joins preparation/fit.json."""
    run.write_json(_UNITS, estimator.preparation_.to_json())
    run.write_json(_BASELINES, estimator.baselines_.to_json())
    stored: dict[str, Any] = {"limits": asdict(estimator.limits_)}
    if (rescoring := estimator.rescoring_) is not None:
        run.write_tensors(_JOINT, rescoring.ngrams.tensors())
        stored["joint"] = {"weight": rescoring.weight, "ngrams": rescoring.ngrams.to_json()}
    return stored


def read_parts(estimator: Translator, run: RunFolder, stored: Mapping[str, Any]) -> None:
    """The inverse of `write_parts`; makes the network too."""
    estimator.limits_ = Limits(**stored["limits"])
    estimator.preparation_ = PairPreparation.from_json(run.read_json(_UNITS))
    estimator.baselines_ = Baselines.from_json(run.read_json(_BASELINES))
    estimator.network_ = build_network(estimator.settings_, estimator.preparation_)
    # Runs of earlier versions, and of texts that n-grams do not suit, have none.
    estimator.rescoring_ = None
    if (joint := stored.get("joint")) is not None:
        ngrams = JointNgrams.from_json(joint["ngrams"], run.read_tensors(_JOINT))
        estimator.rescoring_ = Rescoring(ngrams, float(joint["weight"]))


def read_init(path: str, settings: E) -> E:
    """The run whose units and weights a new one begins with.

    Raises:
        RunFolderError: no finished run is there.
        InputError: a run of another kind, or of another network than `settings` ask for.
    """
    run = open_source(path, KINDS)
    cell = str(run.read_json("preparation/fit.json")["chosen"]["cell"])
    first = read_run(type(settings), run, own_cells(cell, settings.cell, settings._cells, path))
    # A summarizer is asked to copy by its name.
    copies = (settings.defaults["copying"] or None) if settings.copying is None else settings.copying
    asked = replace(settings, copying=copies)
    for name, value in decided(asked, type(settings)(), first.settings_, OF_NETWORK, path).items():
        setattr(settings, name, value)
    if not _is_same_unit(settings.unit, first.settings_.unit):
        raise InputError(
            f"unit={settings.unit!r}: the run in init={path!r} has {first.settings_.unit!r}; leave it out"
        )
    return first


def _is_same_unit(wanted: str | None, had: str | None) -> bool:
    """Whether `wanted` leaves it at `had`, which names both sides."""
    sides = [part.strip() for part in (wanted or "auto").split(",")]
    pairs = zip([*sides, *sides], (had or "").split(","), strict=False)
    return all(side in ("auto", known) for side, known in pairs)
