"""`Classifier`: a class for a text, a row of letters, an array, a document or a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ostinato.data.examples import Examples
from ostinato.data.paired_lines import is_slots
from ostinato.errors import DataError, InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.options import check_choice
from ostinato.models.encoder import CELLS
from ostinato.tasks.labels.baselines import Regression, cross_predicted
from ostinato.tasks.labels.beginning import GENTLE, require_same_values, take_members
from ostinato.tasks.labels.calibration import Calibration
from ostinato.tasks.labels.classifier_answers import answer_columns, sklearn_tags, typed
from ostinato.tasks.labels.ensemble import Ensemble, held_out_probabilities
from ostinato.tasks.labels.estimator import LabelEstimator
from ostinato.tasks.labels.inputs import Inputs, Labelled, complete, tensors_of
from ostinato.tasks.labels.kinds import form_of, form_of_kind, inputs_class, kind_of, optimizer_of
from ostinato.tasks.labels.linear_part import blend_linear, fit_linear
from ostinato.tasks.labels.reading import label_type
from ostinato.tasks.labels.scores import (
    class_scores,
    need_sklearn,
    probability_scores,
    strange_classes,
    unknown_classes,
)
from ostinato.tasks.labels.splitting import Encoded, Held, Rows, fold_out
from ostinato.tasks.transfer import Moved, places

MAJORITY = "majority"
# Of few examples a tenth says little about which weights are best.
FOLDS, FEW_FOLDS, FEW = 10, 5, 500
TREE_CELLS = ("nary", "child_sum")


@dataclass(kw_only=True, eq=False, repr=False)
class Classifier(LabelEstimator):
    """Recurrent network, or several that answer together, that says a class for each sequence.

    Sequences are texts, documents (`hierarchy`), parse trees (`tree`), rows of letters such as DNA, and
    arrays or signals. Small sets are learned by several networks, each without another part of the data:
    what they say about that part chooses the best weights and calibrates the probabilities. An empty
    sequence is answered by the shares of the classes. The parameters are the fields of this class and of
    `LabelEstimator`; None is chosen from the data.

    Attributes (after `fit`), beside those of `LabelEstimator`:
        classes_: (K,) the classes, sorted; text, or numbers where y was an array of numbers.
        shares_: (K,) of the training labels.
        calibration_: the temperature of the probabilities.
        metrics_: accuracy, macro_f1, log_loss (nats) and calibration_error of the network, accuracy and
            macro_f1 of the baselines `majority` and a logistic regression.
    """

    kind: ClassVar[str] = "classifier"
    _inputs: ClassVar[tuple[str, ...]] = ("text", "letters", "arrays", "trees")
    _others: ClassVar[str] = "; tags of tokens are learned by a Tagger (ostinato train tag)"
    _cells: ClassVar[tuple[str, ...]] = (*CELLS, *TREE_CELLS)
    _estimator_type: ClassVar[str] = "classifier"

    members: int | None = None
    """Networks whose probabilities are averaged."""
    tree: bool = False
    """Read parse trees, by a Tree-LSTM."""
    hierarchy: bool = False
    """Read documents: words to sentences, sentences to the document."""
    unit: str | None = None
    """What texts are split into: word, char or bpe."""
    vectors: str | Path | None = None
    """File of word vectors in the usual text format, where the words of texts begin."""

    _decided: ClassVar[tuple[str, ...]] = ("cell", "hidden_size", "num_layers", "unit")

    # ------------------------------------------------------------------------------------------- fit

    def fit(  # noqa: PLR0913 - how a file is written, one argument each
        self,
        data: Any,
        y: Any = None,
        *,
        text: str | int | None = None,
        label: str | int | None = None,
        sequence: str | int | bool | None = None,
        letters: str | int | bool | None = None,
        time: str | int | None = None,
        values: Sequence[str | int] | None = None,
        format: str | None = None,  # noqa: A002 - the name of the option everywhere
        separator: str | None = None,
        encoding: str | None = None,
        header: bool = True,
        valid: Any = None,
        test: Any = None,
        out: str | Path | None = None,
        resume: bool = False,
        started_s: float | None = None,
    ) -> Self:
        """Learn from a file, a table, lists or arrays.

        Args:
            data: a file, a table, a list of pairs (input, class), `Examples`; or inputs alone: a list of N
                texts, an array (N, T, D) or (N, T), a list of N arrays (T_i, D), a list of N `Tree`.
            y: (N,) classes, where `data` holds inputs alone.
            text, label: columns of a file or table: a name, or a number that may count from the end (-1).
            sequence: arrays or signals rather than texts: True, or the column with the arrays, or for one
                row per step the column that says which signal a row is of.
            time, values: of signals with one row per step the column to sort each by, and those of the
                numbers; None: a column with a usual name of times, and every other that holds numbers.
            letters: rows of letters rather than texts: True, or their column.
            format, separator, encoding, header: how a file is written.
            valid: to choose the best weights by, in the form of `data` or a pair (inputs, classes); None: a
                part of `data` is held out.
            test: never learned from; `metrics_` then is about it.
            out: a new folder for the run: checkpoints, history, and at the end what `save` writes.
            resume: go on with the run in `out`; without a checkpoint start afresh, a finished run is loaded.
            started_s: `time.monotonic()` from which `max_time_s` counts; None: now.

        Raises:
            InputError: parameters, columns or examples that cannot be used; the message names them.
            DataError: a file that cannot be used, with its line.
            MissingExtraError: scikit-learn, for scores and baselines, is not installed.
            DivergenceError: training went wrong at too many steps in a row.
        """
        need_sklearn("Classifier")
        self._label_type_ = label_type(data, y)
        given: dict[str, Any] = {
            "kind": "text" if is_slots(data, format) else None,
            "text": text, "label": label, "sequence": sequence, "letters": letters, "format": format,
            "separator": separator, "encoding": encoding, "tree": self.tree or None,
            "header": None if header else False, "time": time, "values": values,
        }  # fmt: skip
        reading = {name: value for name, value in given.items() if value is not None}
        return self._fit(
            data, y, reading, valid=valid, test=test, out=out, resume=resume, started_s=started_s
        )

    def _check_network(self) -> None:
        if self.members is not None:
            check_sizes("Classifier", members=self.members)
        if not self.tree:
            super()._check_network()
            return
        if self.cell is not None:
            check_choice("Classifier", "cell", self.cell, TREE_CELLS)
        if self.num_layers not in (None, 1):
            raise InputError(f"num_layers={self.num_layers}: a Tree-LSTM has one layer; leave it out")

    def _check_examples(self, examples: Examples, name: str) -> Examples:
        labels = examples.labels
        if labels is None:
            raise InputError(
                f"{name}: no classes in {examples.source or 'the data'}; name their column with label="
            )
        form_of(examples, self)
        return examples

    def _learn_answers(self, data: Examples, valid: Examples | None) -> None:
        labels = data.labels or ()
        counts = Counter(labels)
        if len(counts) < 2:
            raise DataError(
                f"every example is of the class {labels[0]!r}; a classifier needs two classes or more",
                path=data.source or None,
            )
        names = sorted(counts, key=int) if self._label_type_ == "int" else sorted(counts)
        self._names_ = names
        self.shares_ = np.array([counts[name] for name in names]) / len(labels)
        first = self._first
        self.kind_ = kind_of(data, self, first and first.kind_)
        if first is not None:
            require_same_values(first.reading_, self.reading_, self.init)
        for name in ("unit", "vectors"):
            if getattr(self, name) is not None and self.kind_ in ("arrays", "letters"):
                raise InputError(
                    f"{name}={getattr(self, name)!r} is about words, and the data hold {self.kind_}"
                )
        if valid is not None:
            if not counts.keys() & set(valid.labels or ()):
                raise DataError(
                    f"valid: none of its classes is in the training data, which have {', '.join(names[:20])}",
                    path=valid.source or None,
                )
            self.notes_ += unknown_classes(valid.labels or (), counts, "the validation part")

    @property
    def classes_(self) -> NDArray[Any]:
        """(K,) the classes, sorted."""
        return typed(self._require_fitted("_names_"), self._label_type_)

    def _choose(self, data: Examples) -> dict[str, Any]:
        first = self._first
        chosen = inputs_class(self.kind_).choose(data, self.settings_, first and first.preparation_)
        if first is not None and set(self._names_) <= set(first._names_):
            chosen["learning_rate"] *= GENTLE
        if len(data) < 4 * FEW_FOLDS:
            chosen["members"] = min(chosen["members"], 2)
        if self.held_out is not None:
            chosen["members"] = 1
        return {"patience": None, "held_out": 0.1, **chosen}

    def _hold_out(self, data: Examples) -> Held:
        s = self.settings_
        assert s.members is not None
        if s.members == 1 or not inputs_class(self.kind_).folds:
            return super()._hold_out(data)
        if self.held_out is not None:
            raise InputError(
                f"held_out={self.held_out} is of a single network, and each of members={s.members} learns "
                "without another part; leave one of them out"
            )
        count = max(s.members, FEW_FOLDS if len(data) < FEW else FOLDS)
        return fold_out(len(data), s.members, count, s.seed, self._strata(data))

    def _fit_preparation(self, learned: Examples) -> None:
        old = self._first and self._first.preparation_
        kind = inputs_class(self.kind_)
        self.preparation_: Inputs = kind.fit(learned, self.settings_, self._names_, old)

    def _fit_baselines(self, learned: Examples, folds: Rows | None, left_s: float | None) -> None:
        s = self.settings_
        assert s.members is not None
        self.regression_ = Regression.fit(learned, s.seed, left_s)
        self.notes_ += self.regression_.notes
        self._cross_predicted = None
        if folds is not None:
            self._cross_predicted = cross_predicted(learned, folds, s.members, s.seed, left_s)

    def _encode(self, examples: Examples, folds: Rows | None = None) -> Labelled:
        numbers = {name: i for i, name in enumerate(self._names_)}
        codes = None
        if examples.labels is not None:
            codes = np.array([numbers.get(label, -1) for label in examples.labels], np.int64)
        encoded = Labelled(self.preparation_.encode(examples.inputs), codes, folds)
        self.notes_ += [note for note in encoded.notes if note not in self.notes_]
        return encoded

    def _optimizer(self) -> dict[str, Any]:
        return optimizer_of(self.kind_, self.settings_.members or 1)

    def _build(self) -> Ensemble:
        s = self.settings_
        assert s.members is not None
        K = len(self._names_)
        return Ensemble([self.preparation_.build(K, s) for _ in range(s.members)])

    def _take(self, first: Self) -> str:
        moved, head = self.preparation_.moved(first.preparation_), self.preparation_.head
        rows = places(self._names_, first._names_)
        moved |= {f"{head}.{name}": Moved(rows) for name in ("weight", "bias")}
        take_members(self._ensemble, first._ensemble, moved)
        return f"{sum(row >= 0 for row in rows)} of {len(rows)} classes are known to its output layer"

    def _begin(self, inputs: Encoded, checks: Encoded, left_s: float | None) -> None:
        assert isinstance(inputs, Labelled)
        assert isinstance(checks, Labelled)
        fit_linear(self._ensemble, inputs, checks, left_s, self.settings_.seed, starts=self._first is None)

    @property
    def _ensemble(self) -> Ensemble:
        network: Ensemble = self.network_  # type: ignore[assignment]
        return network

    # --------------------------------------------------------------------------------------- validation

    def _validate(self, checks: Encoded) -> dict[str, float]:
        assert isinstance(checks, Labelled)
        assert checks.codes is not None
        probabilities = self._raw_probabilities(checks)
        said = probabilities.argmax(axis=1)
        right = float((said == checks.codes).mean())
        loss = probability_scores(checks.codes, probabilities)["log_loss"]
        # Of weights that are right equally often, those that are surer of it: less than one example's worth.
        return {
            "accuracy": right,
            "log_loss": loss,
            "selection": right + 0.5 * float(np.exp(-loss)) / len(checks) if np.isfinite(loss) else right,
        }

    def _raw_probabilities(self, encoded: Labelled) -> NDArray[np.float64]:
        return held_out_probabilities(self._ensemble, encoded, self.shares_)

    def _finish(self, checks: Encoded) -> None:
        assert isinstance(checks, Labelled)
        assert checks.codes is not None
        scales = blend_linear(self._ensemble, checks)
        if scales is not None:
            self.notes_.append(
                f"the answer weighs the network by {scales[0]:.2f} and a linear model over "
                f"{self.preparation_.linear_over} by {scales[1]:.2f}, as held-out examples speak for them"
            )
        usable = np.flatnonzero((checks.codes >= 0) & (checks.lengths > 0))
        probabilities = self._raw_probabilities(checks)
        self.calibration_ = Calibration.fit(probabilities[usable], checks.codes[usable])

    def _probabilities(self, encoded: Labelled) -> NDArray[np.float64]:
        said = self.calibration_.apply(self._raw_probabilities(encoded))
        said[encoded.lengths == 0] = self.shares_
        return said

    def _scores(self, examples: Examples, encoded: Encoded, notes: list[str] | None = None) -> dict[str, Any]:
        assert isinstance(encoded, Labelled)
        assert encoded.codes is not None
        labels = list(examples.labels or ())
        probabilities = self._probabilities(encoded)
        said = [self._names_[i] for i in probabilities.argmax(axis=1)]
        model = {**class_scores(labels, said), **probability_scores(encoded.codes, probabilities)}
        if notes is not None:
            notes += unknown_classes(labels, set(self._names_), "the data")
        likeliest = self._names_[int(self.shares_.argmax())]
        if encoded.folds is not None and self._cross_predicted is not None:
            regression = self._cross_predicted
        else:
            regression = self.regression_.predict(examples.inputs)
        return {
            "model": {self.name_: model},
            "baselines": {
                MAJORITY: class_scores(labels, [likeliest] * len(labels)),
                self.regression_.features.name: class_scores(labels, regression),
            },
        }

    # ---------------------------------------------------------------------------------------- predict

    def predict(self, data: Any) -> NDArray[Any]:
        """The most probable class of each sequence, (N,), of data in the form that `fit` took; classes among
        them are not looked at."""
        return self.classes_[self.predict_proba(data).argmax(axis=1)]

    def predict_proba(self, data: Any) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K), in the order of `classes_`."""
        return self._shares(self._given(data))

    def answers(self, data: Any) -> dict[str, list[Any]]:
        """The class of each sequence, its probability and that of every class, as columns; of signals in long
        format also which signal it is, under the name of its column. `ostinato predict` writes them."""
        examples = self._given(data)
        id_name = str(examples.reading.get("series", "id"))
        return answer_columns(
            [str(name) for name in self.classes_.tolist()], self._shares(examples), examples.ids, id_name
        )

    def _shares(self, examples: Examples) -> NDArray[np.float64]:
        self._require_kind(examples)
        self.notes_ = [*examples.notes, *strange_classes(examples.labels, self._names_)]
        encoded = self._encode(replace(examples, labels=None))
        empty = int((encoded.lengths == 0).sum())
        if empty:
            self.notes_.append(f"{empty} empty sequences were answered by the shares of the classes")
        return self._probabilities(encoded)

    def score(self, data: Any, y: Any = None) -> float:
        """The accuracy of `predict`."""
        scores: dict[str, float] = self.evaluate(data, y)["model"][self.name_]
        return scores["accuracy"]

    def _require_kind(self, examples: Examples) -> None:
        if form_of(examples, self) != form_of_kind(self.kind_):
            raise InputError(
                f"the data hold {examples.kind}, the training data held {self.kind_}; pass the same inputs"
            )

    def __sklearn_tags__(self) -> Any:
        return sklearn_tags()

    # ---------------------------------------------------------------------------------------- storage

    def _to_json(self) -> dict[str, Any]:
        return {
            "classes": {
                "names": self._names_, "shares": self.shares_.tolist(), "type": self._label_type_,
                "calibration": self.calibration_.to_json(),
            },
            "inputs": {"kind": self.kind_, **self.preparation_.to_json()},
            "baseline": self.regression_.to_json(),
        }  # fmt: skip

    def _from_json(self, stored: Mapping[str, Any]) -> None:
        classes, inputs = stored["classes"], dict(stored["inputs"])
        self._names_, self._label_type_ = list(classes["names"]), classes["type"]
        self.shares_ = np.asarray(classes["shares"], np.float64)
        self.calibration_ = Calibration.from_json(classes["calibration"])
        self.kind_ = inputs.pop("kind")
        self.preparation_ = inputs_class(self.kind_).from_json(inputs)
        self._stored_baseline = stored["baseline"]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.regression_.tensors(), **tensors_of(self.preparation_)}

    def _take_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.regression_ = Regression.from_json(self._stored_baseline, tensors)
        self.preparation_ = complete(self.preparation_, tensors)
