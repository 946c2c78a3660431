"""What y may look like: a target or label for each sequence, or for each step; arrays or ragged lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ostinato.errors import DataError, InputError, SizeError

OUTPUTS = ("auto", "sequence", "step")
FORMS = "(N,) or (N, C) for one answer per sequence, (N, T) or (N, T, C) or a ragged list for one per step"


@dataclass(frozen=True)
class Targets:
    """y as one array, with what it says about the network.

    Attributes:
        values: (N, …), or (N, T, …) per step with anything in the padding; the last axis is C, if there is
            one.
        real: (N, T) bool, True where a step has a target; None where there is one target per sequence.
        columns: C; None where y has no axis for it.
    """

    values: NDArray[Any]
    real: NDArray[np.bool_] | None

    @property
    def per_step(self) -> bool:
        """Whether there is one target per step."""
        return self.real is not None

    @property
    def columns(self) -> int | None:
        """C; None where y has no axis for it."""
        axes = 2 if self.per_step else 1
        return self.values.shape[axes] if self.values.ndim > axes else None

    @property
    def flat(self) -> NDArray[Any]:
        """The targets that count, in order: (n,) or (n, C)."""
        return self.values if self.real is None else self.values[self.real]

    def replaced(self, flat: NDArray[Any]) -> Targets:
        """The same form with other values where targets count, and zeros in the padding."""
        if self.real is None:
            return Targets(flat, None)
        values = np.zeros((*self.real.shape, *flat.shape[1:]), flat.dtype)
        values[self.real] = flat
        return Targets(values, self.real)

    def select(self, rows: NDArray[np.intp]) -> Targets:
        """The targets of some sequences."""
        return Targets(self.values[rows], None if self.real is None else self.real[rows])

    def place(self, row: int) -> str:
        """Where target number `row` of `flat` stands in y, for messages."""
        if self.real is None:
            return f"y[{row}]"
        n, t = np.argwhere(self.real)[row]
        return f"y[{n}] at step {t}"


def read_targets(y: Any, lengths: NDArray[np.int64], T: int, output: str = "auto") -> Targets:
    """y beside N sequences of these lengths, padded to T.

    A row of y with as many entries as its sequence has steps is one target per step; so (N, T) is read as
    that rather than as T numbers for each sequence, unless `output` says otherwise. At T = 1 the two are the
    same.

    Args:
        y: an array (N,), (N, C), (N, T) or (N, T, C), or a list of N arrays (T_i,) or (T_i, C).
        lengths: (N,).
        T: padded length of the sequences.
        output: `sequence`, `step`, or `auto` to tell from the shape.

    Raises:
        SizeError: the number of rows, or a row's length, does not fit.
    """
    array = _joined(y, lengths, T, output)
    N = len(lengths)
    if array.ndim not in (1, 2, 3):
        raise SizeError(f"y: expected {FORMS}; found an array of shape {array.shape}")
    if len(array) != N:
        raise SizeError(f"y has {len(array)} rows, X has {N} sequences; give one row for each sequence")
    is_step_long = array.ndim > 1 and array.shape[1] == T
    wants_step = output == "step" or (output == "auto" and (array.ndim == 3 or (is_step_long and (T > 1))))
    if not wants_step:
        if array.ndim == 3:
            raise SizeError(
                f"y has shape {array.shape}, and output='sequence' expects (N,) or (N, C); pass "
                "output='step' for one answer per step"
            )
        return Targets(array, None)
    if not is_step_long:
        raise SizeError(
            f"y has shape {array.shape}, expected one target for each of the T = {T} steps: (N, T) or "
            "(N, T, C), or a list of arrays as long as their sequences"
        )
    return Targets(array, np.arange(T) < lengths[:, None])


def _joined(y: Any, lengths: NDArray[np.int64], T: int, output: str) -> NDArray[Any]:
    """y as one array; ragged rows are padded to T."""
    rows = list(y) if isinstance(y, np.ndarray) and y.dtype == object and y.ndim == 1 else y
    if not isinstance(rows, list | tuple) or all(np.ndim(row) == 0 for row in rows):
        return _array(rows)
    if len(rows) != len(lengths):
        raise SizeError(f"y has {len(rows)} rows, X has {len(lengths)} sequences; give one row for each")
    arrays = [_array(row) for row in rows]
    sizes = np.array([len(row) if row.ndim else -1 for row in arrays])
    shapes = {row.shape[1:] for row in arrays}
    kinds = {row.dtype.kind for row in arrays if row.size}
    if len(shapes) > 1 or (len(kinds) > 1 and not kinds <= set("fiub")):
        raise SizeError(
            f"y: the rows differ beyond their length: shapes {sorted(map(str, shapes))}, "
            f"kinds {sorted(kinds)}"
        )
    if (sizes != lengths).any() or output == "sequence":
        if len(set(sizes.tolist())) == 1:
            return np.stack(arrays)
        row = int((sizes != lengths).argmax())
        raise SizeError(
            f"y[{row}] has {sizes[row]} targets, its sequence has {lengths[row]} steps; give one target for "
            "each step, or one for each sequence"
        )
    dtype = np.result_type(*(row for row in arrays if row.size)) if kinds else np.dtype(np.float64)
    padded = np.zeros((len(arrays), T, *shapes.pop()), dtype)
    for place, array in zip(padded, arrays, strict=True):
        place[: len(array)] = array
    return padded


def _array(values: Any) -> NDArray[Any]:
    """As numpy has it, but for numbers beside text, which stay what they are."""
    array = np.asarray(values)
    is_mixed = (
        array.dtype.kind == "U"
        and isinstance(values, list | tuple)
        and not all(isinstance(value, str) for value in values)
    )
    return np.asarray(values, dtype=object) if is_mixed else array


def read_numbers(targets: Targets) -> Targets:
    """Targets of a regression as float64.

    Raises:
        DataError: text, NaN or an infinity; names the row and the step.
    """
    flat = targets.flat
    if flat.dtype.kind not in "fiub":
        raise DataError(f"y: expected numbers, found {flat.dtype}; for labels use SequenceClassifier")
    numbers = flat.astype(np.float64)
    wrong = ~np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if wrong.any():
        raise DataError(
            f"{targets.place(int(wrong.argmax()))}: the target is NaN or infinite; leave the sequence "
            "out, or shorten it with lengths"
        )
    return targets.replaced(numbers)


def read_labels(targets: Targets) -> Targets:
    """Labels of a classification: whole numbers, text or truth values, in one axis less than their columns.

    Raises:
        SizeError: more than one column; DataError: labels that are not all of one such kind.
    """
    if targets.columns is not None:
        if targets.columns != 1:
            raise SizeError(
                f"y has shape {targets.values.shape}; expected one label for each sequence (N,), or for each "
                "step (N, T); of rows with one 1 among zeros, pass y.argmax(axis=-1)"
            )
        targets = Targets(targets.values[..., 0], targets.real)
    flat = targets.flat
    if flat.dtype.kind == "O":
        flat = _of_one_kind(flat)
    if flat.dtype.kind not in "biufU":
        raise DataError(f"y: expected whole numbers, text or truth values as labels, found {flat.dtype}")
    if flat.dtype.kind == "f":
        wrong = flat != np.round(flat)
        wrong |= ~np.isfinite(flat)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{targets.place(row)}: {flat[row]!r} is not a label; pass whole numbers or text, or use "
                "SequenceRegressor"
            )
    return targets.replaced(flat)


def _of_one_kind(flat: NDArray[Any]) -> NDArray[Any]:
    for kind, dtype in ((str, np.str_), (bool, np.bool_), (int, np.int64)):
        if all(type(label) is kind or isinstance(label, dtype) for label in flat):
            return flat.astype(dtype)
    kinds = sorted({type(label).__name__ for label in flat})
    raise DataError(
        f"y: labels of several kinds, {', '.join(kinds)}; make them all text or all whole numbers"
    )


class Classes:
    """The labels that training saw, sorted, and their numbers.

    Args:
        labels: (K,), sorted and different.
    """

    def __init__(self, labels: NDArray[Any]):
        self.labels = labels

    @classmethod
    def fit(cls, flat: NDArray[Any]) -> Self:
        """The classes of labels (n,).

        Raises:
            InputError: fewer than two.
        """
        labels = np.unique(flat)
        if len(labels) < 2:
            found = f"only the class {labels[0].item()!r}" if len(labels) else "no label"
            raise InputError(f"y has {found}; a classifier needs two classes or more")
        return cls(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def encode(self, targets: Targets) -> Targets:
        """Labels to class numbers, int64.

        Raises:
            InputError: a label that training did not have.
        """
        flat = targets.flat
        is_text = self.labels.dtype.kind == "U"
        unseen = np.full(len(flat), is_text != (flat.dtype.kind == "U"))
        codes = np.zeros(len(flat), np.int64)
        if not unseen.any():
            codes = np.minimum(np.searchsorted(self.labels, flat), len(self) - 1)
            unseen = self.labels[codes] != flat
        if unseen.any():
            row = int(unseen.argmax())
            known = ", ".join(repr(label) for label in self.labels[:20].tolist())
            raise InputError(
                f"{targets.place(row)}: the label {flat[row].item()!r} was not in the training data; known: "
                f"{known}{', …' if len(self) > 20 else ''}"
            )
        return targets.replaced(codes)

    def weights(
        self, codes: NDArray[np.int64], asked: str | Mapping[Any, float] | None
    ) -> list[float] | None:
        """A factor for each class, 1 on average over the training labels.

        Args:
            codes: (n,) class numbers of the training labels.
            asked: `balanced` (n / (K · count)), a factor by label (1 where it has none), or None.

        Raises:
            InputError: an unknown name or label, or a factor that is not above 0.
        """
        if asked is None:
            return None
        counts = np.bincount(codes, minlength=len(self)).astype(np.float64)
        if isinstance(asked, str):
            if asked != "balanced":
                raise InputError(
                    f"class_weight is {asked!r}; expected 'balanced', a factor by label, or None"
                )
            factors = 1.0 / np.maximum(counts, 1.0)
        else:
            known = self.labels.tolist()
            for label, factor in asked.items():
                if label not in known:
                    raise InputError(
                        f"class_weight has the label {label!r}, which y does not have; known: {known[:20]}"
                    )
                if not factor > 0 or not np.isfinite(factor):
                    raise InputError(f"class_weight[{label!r}] is {factor!r}, expected a number above 0")
            factors = np.array([float(asked.get(label, 1.0)) for label in known])
        scaled: list[float] = (factors * counts.sum() / (factors * counts).sum()).tolist()
        return scaled

    def to_json(self) -> dict[str, Any]:
        """Plain values and their dtype."""
        return {"dtype": self.labels.dtype.str, "labels": self.labels.tolist()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, bit for bit."""
        dtype = np.dtype(str(stored["dtype"]))
        if dtype.kind not in "biufU":
            raise InputError(f"stored labels have dtype {dtype}, expected numbers or text")
        return cls(np.array(stored["labels"], dtype))
