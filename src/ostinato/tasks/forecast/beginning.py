"""Forecasters that begin with the network of another: what the two need to have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ostinato.data.covariates import ROLES
from ostinato.data.series import SeriesSpec
from ostinato.data.table import SeriesTable, TableSchema
from ostinato.errors import InputError
from ostinato.models.encoder import CELLS
from ostinato.tasks.forecast import storage
from ostinato.tasks.forecast.engine import Engine
from ostinato.tasks.forecast.settings import ForecastSettings
from ostinato.tasks.forecast.tables import read_table
from ostinato.tasks.transfer import decided, open_source, own_cells

if TYPE_CHECKING:
    from ostinato.tasks.forecast.estimator import Forecaster


@dataclass(frozen=True)
class Beginning:
    """The run that a forecaster begins with.

    Attributes:
        init: where it lies.
        engine: its network and preparation.
        schema: how its table was read.
        decided: the parameters that it decides, by name.
    """

    init: str
    engine: Engine
    schema: TableSchema
    decided: dict[str, Any]

    @classmethod
    def read(cls, estimator: type[Forecaster], settings: ForecastSettings) -> Self | None:
        """The run that `init` names; None without one.

        Raises:
            InputError: a run of another kind, or of a network that `settings` do not ask for.
            RunFolderError: there is no finished run, or it was altered.
        """
        init = settings.init
        if init is None:
            return None
        run = open_source(init, [storage.KIND])
        known = (*CELLS, *(one.__name__ for one in storage.BUILT_IN))
        cells = own_cells(storage.read_settings(run).cell, settings.cell, known, init)
        first = storage.read(estimator, run, cells)
        had = first.settings()
        values = decided(settings, ForecastSettings(horizon=had.horizon), had, storage.DECIDED, init)
        if had.head == "quantile" and settings.horizon != had.horizon:
            raise InputError(
                f"horizon={settings.horizon}: the run in init={init!r} says {had.horizon} steps at once; "
                f"pass horizon={had.horizon}, or begin with a run of another head, which goes step by step"
            )
        return cls(init, first.engine_, first.schema_, values)

    @classmethod
    def again(cls, fitted: Forecaster) -> Self | None:
        """The run that a fitted forecaster began with, as far as it is still known; None without one."""
        init = fitted.settings().init
        return None if init is None else cls(init, fitted.engine_, fitted.schema_, fitted.decided_)

    @property
    def note(self) -> str:
        """What to say about it."""
        said = f"begins with the network of the run in {self.init!r}"
        blend = getattr(self.engine.model, "blend", None)
        return said if blend is None else f"{said}, of which validation there kept {float(blend):.0%}"

    def read_table(self, data: Any, spec: SeriesSpec | None, future: Any) -> SeriesTable:
        """The table to learn from, with the columns that the run has; arguments as of `tables.read_table`."""
        if spec is not None:
            return read_table(data, schema=schema_like(spec, self.schema, self.init), future=future)
        table = read_table(data, future=future)
        check_table(table, self.schema, self.init)
        return table


def schema_like(spec: SeriesSpec, had: TableSchema, init: Any) -> TableSchema:
    """How to read a table for a network that learned from another: the columns of `spec`, the frequency and
    the categories of text columns that the run in `init` had.

    Raises:
        InputError: other columns than that run had, or another frequency.
    """
    _require_as_many(len(spec.columns("target")), len(had.spec.columns("target")), init)
    for role in ROLES:
        names = [column.name for column in had.encoding.columns(role)]
        found = spec.columns(role)
        # A number says where a column stands; its name is not known yet.
        same = [a == b for a, b in zip(found, names, strict=False) if isinstance(a, str)]
        if len(found) != len(names) or not all(same):
            raise _other_columns(role, names, list(map(str, found)), init)
    if spec.grid is not None and spec.grid.name != had.frequency.name:
        raise _other_frequency(spec.grid.name, had, init)
    return TableSchema(spec, had.encoding, had.frequency)


def check_table(table: SeriesTable, had: TableSchema, init: Any) -> None:
    """Refuse a table in memory whose columns are not those of the run in `init`.

    Raises:
        InputError: with what both have.
    """
    _require_as_many(len(table.targets), len(had.spec.columns("target")), init)
    for role in ROLES:
        names, found = list(had.encoding.names(role)), list(getattr(table, role))
        if found != names:
            raise _other_columns(role, names, found, init)
    if table.frequency.name != had.frequency.name:
        raise _other_frequency(table.frequency.name, had, init)


def _require_as_many(found: int, had: int, init: Any) -> None:
    if found != had:
        raise InputError(
            f"target: the run in init={str(init)!r} forecasts {had} columns side by side, found {found}; "
            "name as many, or train without that run"
        )


def _other_columns(role: str, names: Sequence[str], found: Sequence[str], init: Any) -> InputError:
    return InputError(
        f"{role}: the run in init={str(init)!r} has the columns {', '.join(names) or 'none'}, found "
        f"{', '.join(found) or 'none'}; name the same in that order, or train without that run"
    )


def _other_frequency(found: str, had: TableSchema, init: Any) -> InputError:
    return InputError(
        f"frequency: the run in init={str(init)!r} has {had.frequency}, found {found}; give a table of the "
        "same time step, or train without that run"
    )
