"""What a classifier is measured against: the most frequent class, and scikit-learn's logistic regression."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.examples import Examples, Tree
from ostinato.tasks.labels.splitting import Rows
from ostinato.tasks.labels.summaries import SummaryFeatures

USUAL_S = 30.0
SHARE = 0.1  # of the time that is left
TRIED = 1000  # rows by which the time of all is judged
MOST_NGRAMS = 100_000
MOST_ITERATIONS = 200


class Features(Protocol):
    """Inputs to the rows of a matrix."""

    name: str

    def fit(self, inputs: Sequence[Any]) -> Any:
        """Learn from inputs; their matrix (N, F), dense or sparse."""
        ...

    def transform(self, inputs: Sequence[Any]) -> Any:
        """Matrix (N, F)."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def take_json(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `to_json`."""
        ...


class TextFeatures:
    """TF-IDF of words and pairs of words (`TfidfVectorizer`); of letters, 1 to 4 in a row."""

    def __init__(self, analyzer: str):
        self.name = "tfidf_logistic_regression"
        self.analyzer = analyzer

    def _vectorizer(self, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        more: dict[str, Any] = {"ngram_range": (1, 4), "analyzer": "char"}
        if self.analyzer == "word":
            more = {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b|[^\w\s]"}
        return TfidfVectorizer(sublinear_tf=True, **more, **options)

    def fit(self, inputs: Sequence[Any]) -> Any:
        """TF-IDF rows; texts without any word share one column of zeros."""
        self._made = self._vectorizer(max_features=MOST_NGRAMS)
        texts = [_text(one) for one in inputs]
        try:
            return self._made.fit_transform(texts)
        except ValueError:  # scikit-learn's word for "no text has a word"
            self._made = self._vectorizer(vocabulary={" ": 0})
            self._made.idf_ = np.ones(1)
            return self._made.transform(texts)

    def transform(self, inputs: Sequence[Any]) -> Any:
        """TF-IDF rows."""
        return self._made.transform([_text(one) for one in inputs])

    def to_json(self) -> dict[str, Any]:
        """The n-grams in the order of their columns, and their inverse document frequencies."""
        ngrams = sorted(self._made.vocabulary_.items(), key=lambda pair: int(pair[1]))
        return {
            "analyzer": self.analyzer,
            "ngrams": [ngram for ngram, _ in ngrams],
            "idf": self._made.idf_.tolist(),
        }

    def take_json(self, stored: Mapping[str, Any]) -> None:
        """The vectorizer that `to_json` described."""
        self._made = self._vectorizer(vocabulary={ngram: i for i, ngram in enumerate(stored["ngrams"])})
        self._made.idf_ = np.asarray(stored["idf"], np.float64)


class PlaceFeatures:
    """Rows of letters of one length: which letter is at which place, one column for each pair."""

    def __init__(self) -> None:
        self.name = "positional_logistic_regression"

    def fit(self, inputs: Sequence[str]) -> Any:
        """Columns for the letters that occur."""
        self.alphabet = "".join(sorted({letter for one in inputs for letter in one.upper()}))
        self.places = max(len(one) for one in inputs)
        return self.transform(inputs)

    def transform(self, inputs: Sequence[str]) -> NDArray[np.float32]:
        """(N, places·letters); what lies beyond the places is not looked at."""
        numbers = {letter: i for i, letter in enumerate(self.alphabet)}
        V = len(self.alphabet)
        rows = np.zeros((len(inputs), self.places, V), np.float32)
        for row, one in zip(rows, inputs, strict=True):
            for place, letter in enumerate(one.upper()[: self.places]):
                if letter in numbers:
                    row[place, numbers[letter]] = 1.0
        return rows.reshape(len(inputs), -1)

    def to_json(self) -> dict[str, Any]:
        """Alphabet and number of places."""
        return {"alphabet": self.alphabet, "places": self.places}

    def take_json(self, stored: Mapping[str, Any]) -> None:
        """The inverse of `to_json`."""
        self.alphabet, self.places = str(stored["alphabet"]), int(stored["places"])


def features_for(examples: Examples) -> Features:
    """The features that suit a kind of examples."""
    if examples.kind == "arrays":
        return SummaryFeatures()
    if examples.kind != "letters":
        return TextFeatures("word")
    lengths = {len(one) for one in examples.inputs}
    return PlaceFeatures() if len(lengths) == 1 and max(lengths) <= 1024 else TextFeatures("char")


_FEATURES: dict[str, Any] = {
    "tfidf_logistic_regression": lambda stored: TextFeatures(stored["analyzer"]),
    "positional_logistic_regression": lambda stored: PlaceFeatures(),
    "summary_logistic_regression": lambda stored: SummaryFeatures(),
}


class Regression:
    """Multinomial logistic regression (scikit-learn's, C = 1 for arrays, 10 for TF-IDF rows) over features.

    Attributes:
        features: what it reads.
        classes: the classes that it can say.
        notes: whether it learned from fewer examples than there were.
    """

    def __init__(self, features: Features):
        self.features = features
        self.classes: list[str] = []
        self.notes: list[str] = []

    @classmethod
    def fit(cls, examples: Examples, seed: int, left_s: float | None) -> Self:
        """Learn from examples, within a tenth of the time that is left (30 s without a limit).

        From so many examples as that time allows, judged by a first try; if not all, that is noted.
        """
        self = cls(features_for(examples))
        limit_s = USUAL_S if left_s is None else SHARE * left_s
        rows = np.random.default_rng([seed, 5]).permutation(len(examples))
        started_s = time.monotonic()
        if len(rows) > 2 * TRIED:
            self._learn(examples.select(rows[:TRIED]))
            # Vocabularies grow with the examples, and so do the iterations: somewhat worse than linear.
            possible = int(TRIED * (limit_s / max(time.monotonic() - started_s, 1e-3)) ** 0.85)
            if possible < len(rows):
                kept = max(possible, TRIED)
                self.notes = [
                    f"the baseline {self.features.name} learned from {kept} of {len(rows)} examples, as many "
                    "as its share of the time allows"
                ]
                rows = rows[:kept]
        self._learn(examples.select(np.sort(rows)))
        return self

    def _learn(self, examples: Examples) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        assert examples.labels is not None
        matrix = self.features.fit(examples.inputs)
        C = 10.0 if isinstance(self.features, TextFeatures) else 1.0
        self._model = LogisticRegression(C=C, max_iter=MOST_ITERATIONS)
        with warnings.catch_warnings():
            # Good enough for a baseline: later iterations change little.
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Many classes of few examples each are no mistake of ours.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            self._model.fit(matrix, np.asarray(examples.labels))
        self.classes = [str(label) for label in self._model.classes_]

    def predict(self, inputs: Sequence[Any]) -> list[str]:
        """The most probable class of each."""
        return [str(label) for label in self._model.predict(self.features.transform(inputs))]

    def to_json(self) -> dict[str, Any]:
        """All but the coefficients."""
        return {"name": self.features.name, "classes": self.classes, "features": self.features.to_json()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The coefficients."""
        return {
            "regression.coefficients": torch.from_numpy(self._model.coef_),
            "regression.intercepts": torch.from_numpy(self._model.intercept_),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Self:
        """The inverse of `to_json` and `tensors`."""
        from sklearn.linear_model import LogisticRegression

        features: Features = _FEATURES[stored["name"]](stored["features"])
        features.take_json(stored["features"])
        self = cls(features)
        self.classes = [str(label) for label in stored["classes"]]
        self._model = LogisticRegression()
        self._model.classes_ = np.asarray(self.classes)
        self._model.coef_ = tensors["regression.coefficients"].numpy()
        self._model.intercept_ = tensors["regression.intercepts"].numpy()
        self._model.n_features_in_ = self._model.coef_.shape[1]
        return self


def cross_predicted(
    examples: Examples, folds: Rows, members: int, seed: int, left_s: float | None
) -> list[str]:
    """For the examples of the first folds, in their order, what a regression says that has not learned from
    them."""
    said: dict[int, str] = {}
    majority = Counter(examples.labels or ()).most_common(1)[0][0]
    for fold in range(members):
        rows = np.flatnonzero(folds == fold)
        rest = examples.select(np.flatnonzero(folds != fold))
        share_s = None if left_s is None else left_s / members
        if len(set(rest.labels or ())) > 1:
            model = Regression.fit(rest, seed, share_s)
            answers = model.predict(examples.select(rows).inputs) if len(rows) else []
        else:
            answers = [majority] * len(rows)
        said.update(zip(rows.tolist(), answers, strict=True))
    return [said[row] for row in sorted(said)]


def _text(one: Any) -> str:
    return " ".join(one.tokens) if isinstance(one, Tree) else str(one)
