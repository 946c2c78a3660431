"""Language models: running text in, the probability of what comes next out."""

from ostinato.tasks.language.estimator import LanguageModel

__all__ = ["LanguageModel"]
