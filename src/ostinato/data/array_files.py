"""Labelled signals in .npz files of numpy: one array with all of them, lengths, and a label each."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ostinato.data.examples import Examples
from ostinato.data.files import open_binary
from ostinato.data.labelled_spec import Column, LabelledSpec
from ostinato.data.large import LazyScratch
from ostinato.data.lines import Collector, Findings, Row
from ostinato.data.record_roles import LABEL_NAMES
from ostinato.data.record_values import as_label, check_finite
from ostinato.errors import DataError

ARRAY_KEYS = ("x", "data", "inputs", "values", "sequences", "series", "signals", "features")
LENGTH_KEYS = ("length", "lengths", "n_steps", "seq_len", "len")


def read_npz(path: str | Path, spec: LabelledSpec) -> Examples:
    """Signals from the arrays of a .npz file.

    `spec.text`, `spec.length` and `spec.label` name the arrays; without them they are found by usual names,
    such as x, length and label; labels also as the only array left with one value for each signal.

    The signals are (N, T, …) with optional lengths (N,), or end to end (steps, …) with lengths that sum to
    the first axis. Further axes become one of D dimensions; (N, T) has D = 1.

    Raises:
        DataError: pickled objects, arrays that there are not or do not fit together, values that are NaN or
            infinite (with signal, step and dimension).
    """
    findings = Findings(unit="element")
    scratch = LazyScratch()
    with _opened(path) as members:
        arrays = _Arrays(Path(path), members, spec.large_bytes, scratch)
        key = arrays.key(spec.text, ARRAY_KEYS, "text (the array of the signals)")
        key = key or arrays.only_floats()
        length_key = arrays.key(spec.length, LENGTH_KEYS, "length")
        x = arrays.read(key)
        bounds, width_of = _bounds(arrays, x, key, length_key)
        label_key = _label_key(arrays, spec, len(bounds), {key, length_key})
        labels = None if label_key is None else arrays.read(label_key)
    if labels is not None and labels.shape != (len(bounds),):
        raise arrays.error(
            f"{label_key!r} has shape {labels.shape}, expected {len(bounds)} labels, one a signal"
        )
    collector = Collector("arrays", str(path), spec, findings, has_labels=labels is not None)
    signals = NpzSignals(x, bounds, width_of, scratch)
    kept = []
    for i in range(len(bounds)):
        _check(arrays, key, signals[i], i)
        before = len(collector.places)
        label = None if labels is None else as_label(labels[i], arrays.error)
        collector.add(Row(signals[i], label), i + 1)
        if len(collector.places) > before:
            kept.append(i)
    reading: dict[str, Any] = {"kind": "arrays", "text": key}
    reading |= {} if length_key is None else {"length": length_key}
    reading |= {} if label_key is None else {"label": label_key}
    examples = collector.finish(reading)
    return replace(examples, inputs=NpzSignals(x, [bounds[i] for i in kept], width_of, scratch))


class NpzSignals(Sequence[NDArray[np.float32]]):
    """Signals cut from one array when they are looked at: (row or None, first step, end) for each."""

    def __init__(
        self,
        x: NDArray[Any],
        bounds: Sequence[tuple[int | None, int, int]],
        width: int,
        scratch: LazyScratch,
    ):
        self._x, self._bounds, self._width, self._scratch = x, bounds, width, scratch

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row, start, stop = self._bounds[index]
        piece = self._x[start:stop] if row is None else self._x[row, start:stop]
        with np.errstate(over="ignore"):
            return np.asarray(piece).reshape(stop - start, self._width).astype(np.float32)


class _Arrays:
    """The arrays of the file by name; large ones are mapped from a temporary copy."""

    def __init__(self, path: Path, members: zipfile.ZipFile, large_bytes: int, scratch: LazyScratch):
        self.path, self._members = path, members
        self._large_bytes, self._scratch = large_bytes, scratch
        self._infos = {
            info.filename.removesuffix(".npy"): info
            for info in members.infolist()
            if info.filename.endswith(".npy")
        }
        if not self._infos:
            raise self.error("the file holds no arrays; write it with numpy.savez")
        self._headers = {name: self._header(name) for name in self._infos}

    @property
    def names(self) -> list[str]:
        return list(self._infos)

    def error(self, message: str) -> DataError:
        """An error that names the file."""
        return DataError(message, path=self.path)

    def shown(self) -> str:
        """Names and shapes for a message."""
        return ", ".join(f"{name} {shape}" for name, (shape, _) in self._headers.items())

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the array."""
        return self._headers[name][0]

    def key(self, wanted: Column | None, usual: Sequence[str], option: str) -> str | None:
        """The name that is wanted (or the array at that place), else one of the usual names, else None."""
        if wanted is not None:
            if str(wanted) in self._infos:
                return str(wanted)
            try:
                return self.names[int(wanted)]
            except (ValueError, IndexError):
                raise self.error(
                    f"{option}: there is no array {wanted!r}; the arrays are: {self.shown()}"
                ) from None
        lowered = {name.lower(): name for name in reversed(self.names)}
        return next((lowered[name] for name in usual if name in lowered), None)

    def only_floats(self) -> str:
        """The only array of fractions with two axes or more."""
        found = [
            name for name, (shape, dtype) in self._headers.items() if dtype.kind == "f" and len(shape) > 1
        ]
        if len(found) != 1:
            raise self.error(f"text: say which array holds the signals; the arrays are: {self.shown()}")
        return found[0]

    def read(self, name: str) -> NDArray[Any]:
        """The array; numbers or text."""
        shape, dtype = self._headers[name]
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size > self._infos[name].file_size:
            raise self.error(f"{name!r} is cut off: {size:,} bytes expected; make or fetch the file again")
        with self._members.open(self._infos[name]) as packed:
            if size <= self._large_bytes:
                array: NDArray[Any] = np.lib.format.read_array(packed, allow_pickle=False)
                return array
            copy = self._scratch.get().file()
            with copy.open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        mapped: NDArray[Any] = np.load(copy, mmap_mode="r", allow_pickle=False)
        return mapped

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._members.open(self._infos[name]) as packed:
            try:
                version = np.lib.format.read_magic(packed)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(packed)
            except ValueError as error:
                raise self.error(f"{name!r} is no array of numpy ({error}); write it anew") from None
        if dtype.hasobject:
            raise self.error(
                f"{name!r} holds pickled objects, which are never loaded; write numbers or text "
                "(signals of different length: one padded array and their lengths)"
            )
        return shape, dtype


@contextmanager
def _opened(path: str | Path) -> Iterator[zipfile.ZipFile]:
    with open_binary(path) as raw, tempfile.TemporaryFile() as plain:
        seekable: BinaryIO = raw
        if not hasattr(raw, "fileno") or type(raw).__name__ != "BufferedReader":
            shutil.copyfileobj(raw, plain, 1 << 20)
            plain.seek(0)
            seekable = plain
        with zipfile.ZipFile(seekable) as members:
            yield members


def _bounds(
    arrays: _Arrays, x: NDArray[Any], key: str, length_key: str | None
) -> tuple[list[tuple[int | None, int, int]], int]:
    """Where each signal lies, and D."""
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise arrays.error(
            f"{key!r} is {x.dtype} of shape {x.shape}; expected numbers (N, T, D), or (ΣT, D) with lengths"
        )
    lengths = None if length_key is None else arrays.read(length_key)
    if lengths is None:
        return [(i, 0, x.shape[1]) for i in range(len(x))], int(np.prod(x.shape[2:]))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (len(lengths) and lengths.min() < 0):
        raise arrays.error(
            f"{length_key!r} is {lengths.dtype} of shape {lengths.shape}; expected whole numbers (N,)"
        )
    if len(lengths) == len(x) and int(lengths.max(initial=0)) <= x.shape[1] and x.ndim > 1:
        is_padded = int(lengths.sum()) != len(x)
    else:
        is_padded = False
    if is_padded:
        return [(i, 0, n) for i, n in enumerate(lengths.tolist())], int(np.prod(x.shape[2:]))
    if int(lengths.sum()) != len(x):
        raise arrays.error(
            f"{length_key!r} does not fit {key!r} of shape {x.shape}: {len(lengths)} lengths up to "
            f"{int(lengths.max(initial=0))} with sum {int(lengths.sum())}; expected one for each row, "
            f"or a sum of {len(x)}"
        )
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    return [(None, s, e) for s, e in zip(starts, ends, strict=True)], int(np.prod(x.shape[1:]))


def _label_key(arrays: _Arrays, spec: LabelledSpec, n: int, taken: set[str | None]) -> str | None:
    if spec.label is not None and not spec.needs_labels and str(spec.label) not in arrays.names:
        return None
    found = arrays.key(spec.label, LABEL_NAMES, "label")
    left = [name for name in arrays.names if name not in taken and arrays.shape(name) == (n,)]
    if found is None and len(left) == 1:
        found = left[0]
    if found is None and spec.needs_labels:
        raise arrays.error(f"label: say which array holds the labels; the arrays are: {arrays.shown()}")
    return found


def _check(arrays: _Arrays, key: str, signal: NDArray[np.float32], index: int) -> None:
    check_finite(signal, lambda message: arrays.error(f"{key!r}, signal {index}: {message}"))
