"""Ostinato: recurrent neural networks, from a file of sequences to a trained, explained, shipped network.

Imports are lazy: `import ostinato` costs nothing beyond this table until a name is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> module that defines it
_HOME: dict[str, str] = {
    "State": "ostinato.types",
    "Batch": "ostinato.types",
    "Output": "ostinato.types",
    "RNN": "ostinato.layers.gated",
    "LSTM": "ostinato.layers.gated",
    "GRU": "ostinato.layers.gated",
    "MinGRU": "ostinato.layers.linear",
    "MinLSTM": "ostinato.layers.linear",
    "RGLRU": "ostinato.layers.linear",
    "linear_scan": "ostinato.layers.linear",
    "from_torch": "ostinato.layers.torch_compat",
    "Cell": "ostinato.layers.cells",
    "RNNCell": "ostinato.layers.cells",
    "LSTMCell": "ostinato.layers.cells",
    "GRUCell": "ostinato.layers.cells",
    "MinGRUCell": "ostinato.layers.linear",
    "MinLSTMCell": "ostinato.layers.linear",
    "RGLRUCell": "ostinato.layers.linear",
    "Recurrent": "ostinato.layers.recurrent",
    "AttentionPooling": "ostinato.layers.attention",
    "LinearChainCRF": "ostinato.layers.crf",
    "ChildSumTreeLSTM": "ostinato.layers.tree",
    "NaryTreeLSTM": "ostinato.layers.tree",
    "Forest": "ostinato.layers.forest",
    "set_mask_key": "ostinato.layers.dropout",
    "train": "ostinato.training.loop",
    "TrainingSettings": "ostinato.training.settings",
    "Forecaster": "ostinato.tasks.forecast",
    "Imputer": "ostinato.tasks.forecast.imputation",
    "SequenceRegressor": "ostinato.tasks.sequences",
    "SequenceClassifier": "ostinato.tasks.sequences",
    "Classifier": "ostinato.tasks.labels.classifier",
    "Tagger": "ostinato.tasks.labels.tagger",
    "Translator": "ostinato.tasks.translate.estimator",
    "Summarizer": "ostinato.tasks.translate.summarizer",
    "LanguageModel": "ostinato.tasks.language",
    "load": "ostinato.tasks",
    "Session": "ostinato.ship.stream",
    "OstinatoError": "ostinato.errors",
    "InputError": "ostinato.errors",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ostinato' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
