"""The task of sequences: numbers or labels for a whole sequence, or for each of its steps."""

from __future__ import annotations

from ostinato.tasks.sequences.classifier import SequenceClassifier
from ostinato.tasks.sequences.regressor import SequenceRegressor

__all__ = ["SequenceClassifier", "SequenceRegressor"]
