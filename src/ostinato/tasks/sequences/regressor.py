"""`SequenceRegressor`: numbers for a sequence, or for each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.data.scaling import Scaling
from ostinato.errors import InputError
from ostinato.tasks.sequences.estimator import SequenceEstimator
from ostinato.tasks.sequences.targets import Targets, read_numbers
from ostinato.training import metrics


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceRegressor(SequenceEstimator):
    """Recurrent network that says numbers: one or C for a sequence (many-to-one), or for each step.

    Targets are brought to mean 0 and variance 1 for training, column by column, and predictions back to their
    unit. The parameters are the fields of this class and of `SequenceEstimator`, with their defaults.

    Attributes (after `fit`):
        history_: of training.
        metrics_: rmse, mae and r2 of the network and of constant answers (the training mean and median), on
            the validation part if there is one, else on the training part.
        baseline_: the scores of the mean among them.
        notes_: what fitting had to say, as text.
        output_: sequence or step; columns_: C, None where y has no axis for it; n_features_in_: D.
        network_: the network and the scaling of its inputs; targets_: the scaling of the targets.
    """

    kind: ClassVar[str] = "sequence_regressor"
    _estimator_type: ClassVar[str] = "regressor"
    _baselines: ClassVar[tuple[str, ...]] = ("mean", "median")

    loss: str = "squared"
    """squared (MSE), absolute (MAE) or huber, of the scaled targets."""

    def predict(self, X: Any, lengths: Any = None) -> Any:
        """Numbers for each sequence, or for each step, in the unit and form of y.

        Returns:
            float64 (N,) or (N, C); per step (N, T) or (N, T, C) for an array without lengths, else a list of
            N arrays (T_i,) or (T_i, C).
        """
        said, lengths = self._said(X, lengths)
        numbers = self.targets_.inverse(said)
        numbers = numbers[..., 0] if self.columns_ is None else numbers
        if lengths is None:
            return numbers
        return [row[:n] for row, n in zip(numbers, lengths, strict=True)]

    def score(self, X: Any, y: Any, lengths: Any = None) -> float:
        """The coefficient of determination R² of `predict`, averaged over columns."""
        scores: dict[str, float] = next(iter(self.evaluate(X, y, lengths)["model"].values()))
        return scores["r2"]

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
            regressor_tags=RegressorTags(),
        )

    def _read_values(self, targets: Targets) -> Targets:
        return read_numbers(targets)

    def _learn_targets(self, targets: Targets, seen: Targets) -> None:
        flat = _with_columns(targets.flat)
        self.targets_ = Scaling.fit(flat)
        self.constants_ = {"mean": flat.mean(axis=0), "median": np.median(flat, axis=0)}

    def _take_answers(self, first: Self) -> list[int]:
        had, found = len(first.targets_.mean), self._output_size()
        if found != had:
            raise InputError(
                f"y: the run in init={str(self.init)!r} says {had} numbers, found {found}; give as many, or "
                "train without that run"
            )
        self.targets_ = first.targets_
        return list(range(found))

    def _scaling_of_answers(self) -> Scaling | None:
        return self.targets_

    def _encoded(self, targets: Targets) -> Targets:
        return targets.replaced(self.targets_.forward(_with_columns(targets.flat)))

    def _output_size(self) -> int:
        return len(self.targets_.mean)

    def _objective(self, settings: Self, targets: Targets | None) -> dict[str, Any]:
        return {"objective": settings.loss}

    def _scores(self, actual: NDArray[Any], said: NDArray[np.float32]) -> dict[str, float]:
        return _scores_of(self.targets_.inverse(actual), self.targets_.inverse(said))

    def _baseline_scores(self, actual: NDArray[Any], name: str) -> dict[str, float]:
        return _scores_of(self.targets_.inverse(actual), np.broadcast_to(self.constants_[name], actual.shape))

    def _answers_to_json(self) -> dict[str, Any]:
        constants = {name: values.tolist() for name, values in self.constants_.items()}
        return {"targets": self.targets_.to_json(), "constants": constants}

    def _answers_from_json(self, stored: Mapping[str, Any]) -> None:
        self.targets_ = Scaling.from_json(stored["targets"])
        self.constants_ = {
            name: np.asarray(values, np.float64) for name, values in stored["constants"].items()
        }


def _with_columns(flat: NDArray[Any]) -> NDArray[Any]:
    return flat[:, None] if flat.ndim == 1 else flat


def _scores_of(actual: NDArray[Any], said: NDArray[Any]) -> dict[str, float]:
    return {
        "rmse": metrics.rmse(actual, said),
        "mae": metrics.mae(actual, said),
        "r2": metrics.r2(actual, said),
    }
