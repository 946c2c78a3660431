"""`SeriesTable`: one or many series on one regular grid, with what is known about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ostinato.data.covariates import CovariateEncoding
from ostinato.data.frequency import Frequency
from ostinato.errors import DataError, InputError

Names = str | int | Sequence[str | int]


@dataclass(frozen=True)
class SeriesSpec:
    """Which columns of a table play which role, and how the table is written.

    A column is a name, or a number that counts from 0, negative from the end. Where a list is expected a
    single column may stand alone.

    Args:
        target: what is forecast, one column or several.
        time: when; None for a table without times, which needs `frequency` and `start`.
        series: which of many series a row belongs to; None for one series.
        known: covariates that are known in advance (prices, holidays), also for future rows.
        observed: covariates that are known only as far as the target is.
        static: facts that do not change within a series.
        frequency: such as "h", "30min", "D", "MS", or a `Frequency`; None finds it from the times.
        start: the first time of a table without times, or of one that counts steps.
        time_format: strptime codes, "step", "epoch_s" or "epoch_ms"; None decides from the file.
        separator: between fields; None finds it.
        decimal: "." or ","; None finds it.
        encoding: of the text.
        header: whether the first line holds the names.
    """

    target: Names
    time: str | int | None = None
    series: str | int | None = None
    known: Names = ()
    observed: Names = ()
    static: Names = ()
    frequency: str | Frequency | None = None
    start: str | None = None
    time_format: str | None = None
    separator: str | None = None
    decimal: str | None = None
    encoding: str = "utf-8"
    header: bool = True

    def __post_init__(self) -> None:
        for role in ("target", "known", "observed", "static"):
            given = getattr(self, role)
            object.__setattr__(self, role, (given,) if isinstance(given, str | int) else tuple(given))
        if not self.columns("target"):
            raise InputError("target: expected at least one column, found none")
        if self.decimal not in (None, ".", ","):
            raise InputError(f"decimal: expected '.' or ',', found {self.decimal!r}")
        if self.frequency is not None:
            object.__setattr__(self, "frequency", Frequency.parse(self.frequency))

    def columns(self, role: str) -> tuple[str | int, ...]:
        """The columns of "target", "known", "observed" or "static" as a tuple."""
        found: tuple[str | int, ...] = getattr(self, role)
        return found

    @property
    def grid(self) -> Frequency | None:
        """The given frequency, parsed."""
        return None if self.frequency is None else Frequency.parse(self.frequency)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        stored = {field.name: getattr(self, field.name) for field in fields(self)}
        stored |= {role: list(self.columns(role)) for role in ("target", "known", "observed", "static")}
        stored["frequency"] = None if self.grid is None else self.grid.to_json()
        return stored

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> SeriesSpec:
        """The spec that `to_json` wrote."""
        frequency = stored["frequency"]
        return cls(**{**stored, "frequency": None if frequency is None else Frequency.from_json(frequency)})


@dataclass(frozen=True)
class Note:
    """What reading did or found; `count` is how many rows, cells or series it concerns."""

    kind: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Series:
    """One series. Row t of every array lies t steps after `start`; NaN where missing.

    Attributes:
        id: its name.
        start: time of row 0, datetime64[s].
        values: targets, float64 (T, C).
        known: float64 (T + F, K); the F rows after the last target are the future.
        observed: float64 (T, O).
        static: float64 (S,).
    """

    id: str
    start: np.datetime64
    values: NDArray[np.float64]
    known: NDArray[np.float64]
    observed: NDArray[np.float64]
    static: NDArray[np.float64]

    @property
    def length(self) -> int:
        """T, up to the last row with a target."""
        return len(self.values)

    @property
    def future(self) -> int:
        """F, the number of known rows after the last target; 0 where the table has no known columns."""
        return max(len(self.known) - len(self.values), 0)

    def until(self, length: int) -> Series:
        """The series as it was after `length` rows: what follows is cut, known values stay as future rows."""
        return replace(self, values=self.values[:length], observed=self.observed[:length])


@dataclass(frozen=True)
class SeriesTable:
    """Series on one grid, with the names of their columns.

    Attributes:
        series: in the order of their first row.
        frequency: the grid.
        targets: names of the C targets.
        known, observed, static: names of the K, O and S float columns; a text column has one for each
            category.
        notes: what reading did.
        encoding: of the covariates; give it to `read_series` to read other tables the same way.
        spec: the roles of the columns.
        source: the file, or "frame"; used in messages.
        scratch: keeps the temporary folder of mapped arrays alive.
    """

    series: list[Series]
    frequency: Frequency
    targets: tuple[str, ...]
    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    notes: list[Note] = field(default_factory=list)
    encoding: CovariateEncoding = field(default_factory=CovariateEncoding)
    spec: SeriesSpec | None = None
    source: str = "frame"
    scratch: object = None

    def __len__(self) -> int:
        return len(self.series)

    def __iter__(self) -> Iterator[Series]:
        return iter(self.series)

    def __getitem__(self, name: str) -> Series:
        for series in self.series:
            if series.id == name:
                return series
        shown = ", ".join(repr(series.id) for series in self.series[:10])
        raise InputError(f"there is no series {name!r}; the table has: {shown}")

    @property
    def n_points(self) -> int:
        """Rows of all series together, missing ones included."""
        return sum(series.length for series in self.series)

    def times(self, series: Series, *, future: int = 0) -> NDArray[np.datetime64]:
        """The times of a series and of `future` steps after it: datetime64[s] (T + future,)."""
        return self.frequency.times(series.start, series.length + future)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the schema: frequency, and names of the columns in their order."""
        schema = [self.frequency.name, self.targets, self.known, self.observed, self.static]
        return hashlib.sha256(json.dumps(schema).encode()).hexdigest()[:16]

    def restrict(self, keep: Callable[[Series], bool]) -> SeriesTable:
        """The table with the series for which `keep` is true."""
        return replace(
            self, series=[series for series in self.series if keep(series)], notes=list(self.notes)
        )

    def with_notes(self, *notes: Note) -> SeriesTable:
        """The table with more notes."""
        return replace(self, notes=[*self.notes, *notes])

    def split_last(self, n: int) -> tuple[SeriesTable, SeriesTable]:
        """Hold out the last `n` rows of every series: (the table without them, the whole table).

        The known values of the rows held out stay in the first table as future rows. Raises DataError where a
        series has no more than `n` rows.
        """
        if n < 1:
            raise InputError(f"rows to hold out: expected at least 1, found {n}")
        shortest = min(self.series, key=lambda series: series.length)
        if shortest.length <= n:
            raise DataError(
                f"cannot hold out {n} rows of every series: series {shortest.id!r} has only "
                f"{shortest.length}; hold out fewer, or drop short series first"
            )
        return replace(self, series=[series.until(series.length - n) for series in self.series]), self

    def to_long(self) -> dict[str, list[str] | NDArray[Any]]:
        """All rows one below the other, as columns: `series`, `time` (text), and the targets (float64)."""
        ids: list[str] = []
        times: list[str] = []
        for series in self.series:
            ids += [series.id] * series.length
            times += self.frequency.format(self.times(series))
        values = np.concatenate([series.values for series in self.series])
        return {"series": ids, "time": times} | {name: values[:, i] for i, name in enumerate(self.targets)}

    def schema(self) -> dict[str, Any]:
        """Plain JSON values for a run folder, which `TableSchema.from_json` reads back."""
        if self.spec is None:
            raise InputError("the table was not read from columns, so it has no schema to store")
        return TableSchema(self.spec, self.encoding, self.frequency).to_json()


@dataclass(frozen=True)
class TableSchema:
    """Spec, encoding and frequency of the training table; `read_series(…, schema=…)` reads others like it."""

    spec: SeriesSpec
    encoding: CovariateEncoding
    frequency: Frequency

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        return {
            "spec": self.spec.to_json(),
            "encoding": self.encoding.to_json(),
            "frequency": self.frequency.to_json(),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> TableSchema:
        """The schema that `to_json` wrote."""
        return cls(
            SeriesSpec.from_json(stored["spec"]),
            CovariateEncoding.from_json(stored["encoding"]),
            Frequency.from_json(stored["frequency"]),
        )
