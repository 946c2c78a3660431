"""Floor 5: a module or package per task: data, model, loss, report; a task never imports another."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

from ostinato.errors import RunFolderError
from ostinato.training.run_folder import RunFolder

# kind in the manifest -> the class that reads such a run, by its `from_run(run_folder, cells)`. A folder
# cannot name a module that is not in this table.
KINDS: dict[str, str] = {
    "forecast": "ostinato.tasks.forecast:Forecaster",
    "imputer": "ostinato.tasks.forecast.imputation:Imputer",
    "sequence_regressor": "ostinato.tasks.sequences:SequenceRegressor",
    "sequence_classifier": "ostinato.tasks.sequences:SequenceClassifier",
    "classifier": "ostinato.tasks.labels.classifier:Classifier",
    "tagger": "ostinato.tasks.labels.tagger:Tagger",
    "translator": "ostinato.tasks.translate.estimator:Translator",
    "summarizer": "ostinato.tasks.translate.summarizer:Summarizer",
    "language": "ostinato.tasks.language:LanguageModel",
}


def load(path: str | os.PathLike[str], cells: Sequence[type] = ()) -> Any:
    """The estimator that a run folder holds, fitted.

    The folder is verified first, and nothing in it is executed: its kind only chooses a row of `KINDS`.

    Args:
        path: a folder written by `ostinato train … --out` or an estimator's `save`.
        cells: your own `Cell` classes, where the run uses one; a folder never names a module to import.

    Raises:
        RunFolderError: no finished run is there, a file was truncated or altered, or a newer version wrote
            it.
    """
    run = RunFolder.open(path)
    if run.kind not in KINDS:
        raise RunFolderError(
            f"{run.path}: holds a {run.kind!r}, known kinds: {', '.join(KINDS)}; "
            f"it was written by ostinato {run.package_version}"
        )
    module, _, name = KINDS[run.kind].partition(":")
    return getattr(importlib.import_module(module), name).from_run(run, cells)
