"""The run folder of a language model: what it holds, how it is read back, and how a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.config import from_mapping
from ostinato.data.corpus_units import CorpusUnits
from ostinato.errors import RunFolderError
from ostinato.models.decoding_draws import is_number
from ostinato.tasks.kneser_ney import KneserNey
from ostinato.tasks.language.ngrams import Baselines
from ostinato.tasks.language.plan import build
from ostinato.tasks.run_estimator import chosen
from ostinato.tasks.stored import misfit
from ostinato.training.atomic import write_bytes_atomically
from ostinato.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ostinato.tasks.language.estimator import LanguageModel

# Beside the checkpoints: a run without one chooses again.
_PLAN = Path("checkpoints") / "plan.json"
_UNITS = "preparation/units.json"
_BASELINES = "baselines.safetensors"


def write_parts(estimator: LanguageModel, run: RunFolder) -> dict[str, Any]:
    """Units and baselines; returns what joins preparation/fit.json."""
    baselines = estimator.baselines_
    run.write_json(_UNITS, estimator.units_.to_json())
    run.write_tensors(_BASELINES, baselines.ngrams.tensors())
    return {"ngrams": baselines.ngrams.to_json(), "baseline": baselines.name, "share": estimator.share_}


def read_parts(estimator: LanguageModel, run: RunFolder, stored: Mapping[str, Any]) -> None:
    """The inverse of `write_parts`; makes the network too."""
    estimator.units_ = CorpusUnits.from_json(run.read_json(_UNITS))
    ngrams = KneserNey.from_json(stored["ngrams"], run.read_tensors(_BASELINES))
    estimator.baselines_ = Baselines.of(estimator.units_.counts, ngrams, str(stored["baseline"]))
    share = stored["share"]
    if not (share is None or (is_number(share) and 0 <= share <= 1)):
        raise misfit(run, TypeError(f"the share of the network is {share!r}"))
    estimator.share_ = share
    estimator.network_ = build(estimator.settings_, len(estimator.units_))


def keep_plan(folder: Path, settings: LanguageModel) -> None:
    """Note what was chosen before training, part of it from the speed of this machine, for a resumed run."""
    write_bytes_atomically(folder / _PLAN, json.dumps(chosen(settings), indent=1).encode())


def kept_plan(folder: Path, asked: LanguageModel) -> dict[str, Any] | None:
    """A value for every parameter that `asked` leaves open, as `keep_plan` noted them in the folder of a run
    that was stopped; None where there is nothing.

    The time limit is that of `asked`: it is about the command that goes on.

    Raises:
        RunFolderError: the file was altered.
    """
    try:
        plan = json.loads((folder / _PLAN).read_bytes())
        if not isinstance(plan, dict) or plan.keys() != chosen(asked).keys():
            raise ValueError("it does not have the parameters of a language model")
        made = chosen(from_mapping(type(asked), plan, str(_PLAN)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(
            f"{folder / _PLAN}: is not what training wrote ({error}); remove the folder to start afresh"
        ) from None
    return {
        name: made[name] for name, value in chosen(asked).items() if value is None and name != "max_time_s"
    }
