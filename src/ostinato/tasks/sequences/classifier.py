"""`SequenceClassifier`: a label for a sequence, or for each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.tasks.sequences.estimator import SequenceEstimator
from ostinato.tasks.sequences.targets import Classes, Targets, read_labels
from ostinato.tasks.transfer import places
from ostinato.training import metrics


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceClassifier(SequenceEstimator):
    """Recurrent network that says labels: one for a sequence (many-to-one), or one for each step (tagging).

    Labels are whole numbers, text or truth values. The parameters are the fields of this class and of
    `SequenceEstimator`, with their defaults.

    Attributes (after `fit`):
        classes_: (K,) the labels, sorted.
        history_: of training.
        metrics_: accuracy, macro_f1 and log_loss (nats) of the network and of answering with the training
            shares of the classes (`majority`), on the validation part if there is one, else on the training
            part.
        baseline_: the scores of `majority` among them.
        notes_: what fitting had to say, as text.
        output_: sequence or step; n_features_in_: D.
        network_: the network and the scaling of its inputs; shares_: (K,) of the training labels.
    """

    kind: ClassVar[str] = "sequence_classifier"
    _estimator_type: ClassVar[str] = "classifier"
    _baselines: ClassVar[tuple[str, ...]] = ("majority",)

    class_weight: Any = None
    """Factors on the loss of each class: balanced, or a mapping from label to factor; None: all the same."""

    def predict_proba(self, X: Any, lengths: Any = None) -> Any:
        """The probability of each class, in the order of `classes_`.

        Returns:
            float64 (N, K); per step (N, T, K) for an array without lengths, else a list of N arrays (T_i, K).
        """
        said, lengths = self._said(X, lengths)
        shares = _softmax(said)
        if lengths is None:
            return shares
        return [row[:n] for row, n in zip(shares, lengths, strict=True)]

    def predict(self, X: Any, lengths: Any = None) -> Any:
        """The most probable label for each sequence, or for each step.

        Returns:
            labels (N,); per step (N, T) for an array without lengths, else a list of N arrays (T_i,).
        """
        said, lengths = self._said(X, lengths)
        labels = self.classes_[said.argmax(axis=-1)]
        if lengths is None:
            return labels
        return [row[:n] for row, n in zip(labels, lengths, strict=True)]

    def score(self, X: Any, y: Any, lengths: Any = None) -> float:
        """The accuracy of `predict`: the share of the labels that are right.

        Raises:
            InputError: y has a label that training did not have.
        """
        scores: dict[str, float] = next(iter(self.evaluate(X, y, lengths)["model"].values()))
        return scores["accuracy"]

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
            classifier_tags=ClassifierTags(),
        )

    def _groups(self, targets: Targets) -> NDArray[Any] | None:
        return None if targets.per_step else targets.flat

    def _read_values(self, targets: Targets) -> Targets:
        return read_labels(targets)

    def _learn_targets(self, targets: Targets, seen: Targets) -> None:
        # A label whose few sequences were all held out is still a label.
        classes = Classes.fit(seen.flat)
        self.classes_ = classes.labels
        codes = classes.encode(targets).flat
        self.shares_ = np.bincount(codes, minlength=len(classes)) / len(codes)

    def _take_answers(self, first: Self) -> list[int]:
        return places(self.classes_.tolist(), first.classes_.tolist())

    def _encoded(self, targets: Targets) -> Targets:
        return Classes(self.classes_).encode(targets)

    def _output_size(self) -> int:
        return len(self.classes_)

    def _objective(self, settings: Self, targets: Targets | None) -> dict[str, Any]:
        objective: dict[str, Any] = {"objective": "cross_entropy"}
        if targets is not None:
            classes = Classes(self.classes_)
            codes = classes.encode(targets).flat
            objective["class_weights"] = classes.weights(codes, settings.class_weight)
        return objective

    def _scores(self, actual: NDArray[Any], said: NDArray[np.float32]) -> dict[str, float]:
        return _scores_of(actual, said.argmax(axis=-1), _softmax(said))

    def _baseline_scores(self, actual: NDArray[Any], name: str) -> dict[str, float]:
        likeliest = np.full(len(actual), self.shares_.argmax())
        return _scores_of(actual, likeliest, np.broadcast_to(self.shares_, (len(actual), len(self.shares_))))

    def _answers_to_json(self) -> dict[str, Any]:
        return {"classes": Classes(self.classes_).to_json(), "shares": self.shares_.tolist()}

    def _answers_from_json(self, stored: Mapping[str, Any]) -> None:
        self.classes_ = Classes.from_json(stored["classes"]).labels
        self.shares_ = np.asarray(stored["shares"], np.float64)


def _softmax(said: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(said.astype(np.float64) - said.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares


def _scores_of(
    actual: NDArray[Any], likeliest: NDArray[Any], shares: NDArray[np.float64]
) -> dict[str, float]:
    # A probability of 0 would make the mean infinite whatever the others are.
    at_label = np.maximum(shares[np.arange(len(actual)), actual], np.finfo(np.float64).tiny)
    return {
        "accuracy": metrics.accuracy(actual, likeliest),
        "macro_f1": metrics.macro_f1(actual, likeliest),
        "log_loss": float(-np.log(at_label).mean()),
    }
