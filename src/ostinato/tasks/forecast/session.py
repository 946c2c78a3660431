"""Streaming forecasts: one object that holds everything a forecaster remembers, fed a row at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ostinato.data.memory import PreparedState
from ostinato.data.table import SeriesTable, TableSchema
from ostinato.data.times import TimeParser
from ostinato.errors import DataError, InputError
from ostinato.models.forecaster import DirectForecaster
from ostinato.tasks.forecast.engine import Distribution, Engine
from ostinato.tasks.forecast.rows import encoder_inputs, row_id
from ostinato.tasks.forecast.tables import ForecastColumns
from ostinato.types import State

FORMAT_VERSION = 1
LONGEST_GAP = 100_000
"""Missing steps between two rows of a series that are stepped over; more are taken for a mistake."""


@dataclass
class _Row:
    """What is remembered of one row: one target of one series.

    `features` and `observed` are those of the last step, which waits for what is known of the next one.
    """

    start: np.datetime64
    clock: int
    prepared: PreparedState
    encoder: State
    static: np.ndarray
    features: np.ndarray
    observed: np.ndarray


class Session:
    """A forecaster's memory of a stream.

    `update(rows)` costs the same however long the stream is, and the forecasts equal those of a back-test
    over the whole history. Missing steps between two updates are stepped over as missing values.

    Args:
        engine: of a fitted forecaster.
        schema: of its training table.
    """

    def __init__(self, engine: Engine, schema: TableSchema):
        self._engine, self._schema = engine, schema
        self._rows: dict[str, _Row] = {}
        self._names = tuple(str(column) for column in schema.spec.columns("target"))

    # ---------------------------------------------------------------------------------------- update

    def update(self, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Feed new rows, each a mapping from column names to values; times must rise within a series.

        A row has the time column, the series column if training had one, the targets (None or NaN where
        missing), and the known and observed columns; `static` columns are read at a series' first row.

        Raises:
            DataError: a column is missing, a time is off the grid or does not rise, a value is no number. The
                rows before that one are taken, it and what follows are not.
        """
        for number, row in enumerate([rows] if isinstance(rows, Mapping) else rows):
            self._update_one(row, number)

    def feed(self, table: SeriesTable) -> None:
        """Feed whole series, as read from a file; the session must not have them yet."""
        for series in table.series:
            if row_id(series.id, self._names[0]) in self._rows:
                raise InputError(f"the session has series {series.id!r} already; continue it with update")
            known = np.full((series.length, len(table.known)), np.nan)
            known[: len(series.known)] = series.known[: series.length]
            for t in range(series.length):
                for c, name in enumerate(table.targets):
                    ident = row_id(series.id, name)
                    row = self._rows.get(ident) or self._open(ident, series.start)
                    self._push(
                        row, ident, c, series.values[t, c], known[t], series.observed[t], series.static
                    )

    def forecast(self, future: Iterable[Mapping[str, Any]] = ()) -> dict[str, list[Any]]:
        """Forecast the next `horizon` steps of every row, in the columns of `Forecaster.predict`.

        Args:
            future: rows with the known columns of those steps, needed where training had any.
        """
        ahead = self._known_ahead(future)
        frequency = self._schema.frequency
        columns = ForecastColumns(frequency, len(self._names))
        for ident, row in self._rows.items():
            if not row.prepared.smoothing.observed[0]:
                continue
            series, _, target = ident.rpartition("\n")
            said = self.distribution(series, target, ahead.get(series))
            columns.add(series, target, frequency.times(row.start, 1, offset=row.clock)[0], said, 0)
        return columns.result()

    def distribution(
        self, series: str = "", target: str | None = None, known: np.ndarray | None = None
    ) -> Distribution:
        """Mean and quantiles (1, H), (1, H, Q) of one row; `known` (H, K) are its future known columns."""
        engine = self._engine
        ident = row_id(series, target or self._names[0])
        if ident not in self._rows:
            raise InputError(f"the session has no series {series!r} yet; feed it with update first")
        row = self._rows[ident]
        if not row.prepared.smoothing.observed[0]:
            raise InputError(f"series {series!r} has no value yet; feed one with update first")
        c = self._names.index(target or self._names[0])
        width = engine.columns.known.shape[1]
        known = np.full((engine.horizon, width), np.nan) if known is None else known
        ahead = self._ahead(row, c, known)[None]
        state, parameters = row.prepared, engine.preparation.parameters([ident])
        x = encoder_inputs(row.features, ahead[:, 0], row.observed)
        with torch.no_grad():
            hidden, encoder = engine.model.encoder.step(engine.tensor(x), row.encoder)
        if engine.is_autoregressive:
            paths = engine.paths_from(state, parameters, encoder, hidden, ahead, [ident])
            return engine.from_paths(paths)
        anchors = engine.preparation.anchors(state, parameters, engine.horizon)
        anchors = (anchors - state.last[:, None, None]) / state.scale[:, None, None]
        assert isinstance(engine.model, DirectForecaster)
        with torch.no_grad():
            said = engine.model.predict(hidden, engine.tensor(ahead), engine.tensor(anchors))
        return engine.finish(said.cpu().numpy().astype(np.float64), state.last, state.scale)

    # --------------------------------------------------------------------------------------- storage

    def to_bytes(self) -> bytes:
        """The whole session as safetensors: arrays, clocks, row ids, and the schema's fingerprint."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {}
        rows = []
        for i, (ident, row) in enumerate(self._rows.items()):
            rows.append({"id": ident, "start": str(row.start), "clock": row.clock})
            arrays |= {f"{i}/prepared/{name}": a for name, a in row.prepared.arrays().items()}
            arrays |= {f"{i}/encoder/{name}": a for name, a in _flat(row.encoder).items()}
            arrays |= {f"{i}/{name}": getattr(row, name) for name in ("static", "features", "observed")}
        header = {"version": FORMAT_VERSION, "fingerprint": self._fingerprint(), "rows": rows}
        return save(arrays, {"session": json.dumps(header)})

    def load_bytes(self, stored: bytes) -> Session:
        """Take up a session that `to_bytes` wrote; another forecaster's is refused."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(stored)
            length = int.from_bytes(stored[:8], "little")
            header = json.loads(json.loads(stored[8 : 8 + length])["__metadata__"]["session"])
            version, fingerprint = int(header["version"]), header["fingerprint"]
            if version <= FORMAT_VERSION and fingerprint == self._fingerprint():
                rows = {one["id"]: self._restored(i, one, arrays) for i, one in enumerate(header["rows"])}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError("these bytes are not a saved session; give what to_bytes returned") from error
        if version > FORMAT_VERSION:
            raise InputError(f"the session has format {version}, this version reads {FORMAT_VERSION}")
        if fingerprint != self._fingerprint():
            raise InputError("the session was saved with another forecaster; load it with that one")
        self._rows = rows
        return self

    def _restored(self, i: int, one: dict[str, Any], arrays: dict[str, np.ndarray]) -> _Row:
        prepared = {k.split("/", 2)[2]: v for k, v in arrays.items() if k.startswith(f"{i}/prepared/")}
        encoder = {k.split("/", 2)[2]: v for k, v in arrays.items() if k.startswith(f"{i}/encoder/")}
        return _Row(
            np.datetime64(one["start"]),
            int(one["clock"]),
            PreparedState.from_arrays(prepared),
            _nested(encoder).map(lambda leaf: leaf.to(self._engine.device)),
            *(arrays[f"{i}/{name}"] for name in ("static", "features", "observed")),
        )

    # -------------------------------------------------------------------------------------- internal

    def _fingerprint(self) -> str:
        import hashlib

        learned = [self._schema.to_json(), self._engine.preparation.to_json(), self._engine.columns.to_json()]
        digest = hashlib.sha256(json.dumps(learned, sort_keys=True).encode())
        for name, tensor in sorted(self._engine.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _update_one(self, row: Mapping[str, Any], number: int) -> None:
        spec = self._schema.spec
        time = self._time(row, number)
        series = str(self._cell(row, spec.series, number)) if spec.series is not None else self._only()
        targets = [self._number(row, column, number) for column in spec.columns("target")]
        known = self._covariates(row, "known", number)
        observed = self._covariates(row, "observed", number)
        new = row_id(series, self._names[0]) not in self._rows
        static = (
            self._covariates(row, "static", number)
            if new
            else self._rows[row_id(series, self._names[0])].static
        )
        for c, (name, value) in enumerate(zip(self._names, targets, strict=True)):
            ident = row_id(series, name)
            held = self._rows.get(ident) or self._open(ident, time)
            steps, on_grid = self._schema.frequency.locate(held.start, np.array([time]))
            if not on_grid[0] or steps[0] < held.clock:
                last = self._schema.frequency.times(held.start, 1, offset=max(held.clock - 1, 0))[0]
                raise DataError(
                    f"row {number}: time {time} must be a later step of {self._schema.frequency} than {last}"
                )
            gap = int(steps[0]) - held.clock
            if gap > LONGEST_GAP:
                raise DataError(
                    f"row {number}: {gap} steps lie between time {time} and the last row of series "
                    f"{series!r}; at most {LONGEST_GAP} are stepped over: begin a new session"
                )
            nothing = (np.full_like(known, np.nan), np.full_like(observed, np.nan))
            for _ in range(gap):
                self._push(held, ident, c, np.nan, *nothing, static)
            self._push(held, ident, c, value, known, observed, static)

    def _only(self) -> str:
        return _series_of(next(iter(self._rows))) if self._rows else self._default_series

    @property
    def _default_series(self) -> str:
        """The name that a table without a series column gives its only series."""
        return _series_of(self._engine.preparation.row_ids[0])

    def _open(self, ident: str, start: np.datetime64) -> _Row:
        engine = self._engine
        row = _Row(
            start.astype("datetime64[s]"),
            0,
            engine.preparation.start(1),
            engine.model.encoder.initial_state(1),
            np.zeros(engine.columns.static.shape[1]),
            np.zeros((1, len(engine.preparation.feature_names))),
            np.zeros((1, engine.columns.observed.shape[1]), dtype=np.float32),
        )
        self._rows[ident] = row
        return row

    def _push(
        self,
        row: _Row,
        ident: str,
        target: int,
        value: float,
        known: np.ndarray,
        observed: np.ndarray,
        static: np.ndarray,
    ) -> None:
        """One step: finish the encoder's step that waited for `known`, then take in the new value."""
        engine = self._engine
        if row.clock == 0:
            row.static = static
        if row.clock:
            ahead = self._ahead(row, target, known[None])
            x = encoder_inputs(row.features, ahead, row.observed)
            with torch.no_grad():
                _, row.encoder = engine.model.encoder.step(engine.tensor(x), row.encoder)
        parameters = engine.preparation.parameters([ident])
        values = engine.preparation.forward(np.array([value], dtype=np.float64))
        row.features, _ = engine.preparation.advance(row.prepared, parameters, values)
        row.observed = engine.columns.scale_observed(observed[None])
        row.clock += 1

    def _ahead(self, row: _Row, target: int, known: np.ndarray) -> np.ndarray:
        """What is known in advance of the steps after the last one: (n, P) for known columns (n, K)."""
        calendar = self._schema.frequency.calendar(row.start, len(known), offset=row.clock)
        return self._engine.columns.compose(calendar, known, row.static, target)

    def _known_ahead(self, future: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Future known columns by series (H, K); every step that training knew must be given."""
        engine, spec = self._engine, self._schema.spec
        if not engine.columns.known.shape[1]:
            return {}
        given: dict[tuple[str, np.datetime64], np.ndarray] = {}
        for number, row in enumerate(future):
            series = self._cell(row, spec.series, number) if spec.series is not None else self._default_series
            given[str(series), self._time(row, number)] = self._covariates(row, "known", number)
        ahead = {}
        frequency = self._schema.frequency
        for ident, held in self._rows.items():
            series = _series_of(ident)
            times = frequency.times(held.start, engine.horizon, offset=held.clock)
            found = [given.get((series, t)) for t in times]
            missing = [
                t for t, values in zip(times, found, strict=True) if values is None or np.isnan(values).any()
            ]
            if missing:
                listed = ", ".join(frequency.format(np.array(missing[:5])))
                raise DataError(
                    f"series {series!r}: known columns have no value at {len(missing)} of the "
                    f"{engine.horizon} times of the forecast: {listed}; give rows with these times and "
                    "the known columns as future"
                )
            ahead[series] = np.stack([values for values in found if values is not None])
        return ahead

    def _time(self, row: Mapping[str, Any], number: int) -> np.datetime64:
        spec = self._schema.spec
        value = self._cell(row, "time" if spec.time is None else spec.time, number)
        is_step = self._schema.frequency.unit == "step"
        parser = TimeParser("step" if is_step else None if spec.time is None else spec.time_format)

        def error(message: str, _: int) -> DataError:
            return DataError(f"row {number}, time {value!r}: {message}")

        # NumPy writes an hour as 2024-01-01T00, which no file does.
        shown = value.astype("datetime64[s]") if isinstance(value, np.datetime64) else value
        seconds = parser.parse([str(shown)], error)
        parser.finish()
        return np.datetime64(int(seconds[0]), "s")

    @staticmethod
    def _cell(row: Mapping[str, Any], column: str | int, number: int) -> Any:
        if column not in row:
            raise DataError(
                f"row {number}: there is no column {column!r}; it has: {', '.join(map(str, row))}"
            )
        return row[column]  # type: ignore[index]

    def _number(self, row: Mapping[str, Any], column: str | int, number: int) -> float:
        value = self._cell(row, column, number)
        try:
            found = np.nan if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            raise DataError(f"row {number}, column {column!r}: expected a number, found {value!r}") from None
        if np.isinf(found):
            raise DataError(f"row {number}, column {column!r}: expected a finite number, found {value!r}")
        return found

    def _covariates(self, row: Mapping[str, Any], role: str, number: int) -> np.ndarray:
        """The float columns of a role, encoded as in training."""
        encoding, cells = self._schema.encoding, []
        names = self._schema.spec.columns(role)
        for column, name in zip(encoding.columns(role), names, strict=True):
            if column.kind == "number":
                cells.append(self._number(row, name, number))
            else:
                value = self._cell(row, name, number)
                cells.append(np.nan if value is None or value == "" else column.code(str(value)))
        if not cells:
            return np.zeros(0)
        return encoding.expand(role, np.array([cells], dtype=np.float64))[0]


def _series_of(ident: str) -> str:
    return ident.rpartition("\n")[0]


def _flat(state: State, prefix: str = "") -> dict[str, np.ndarray]:
    named: dict[str, np.ndarray] = {}
    for name, leaf in state.items():
        if isinstance(leaf, State):
            named |= _flat(leaf, f"{prefix}{name}.")
        else:
            named[prefix + name] = leaf.cpu().numpy()
    return named


def _nested(named: Mapping[str, np.ndarray]) -> State:
    tree: dict[str, Any] = {}
    for path, array in named.items():
        *parents, leaf = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = torch.from_numpy(array.copy())

    def build(level: dict[str, Any]) -> State:
        return State({name: build(part) if isinstance(part, dict) else part for name, part in level.items()})

    return build(tree)
