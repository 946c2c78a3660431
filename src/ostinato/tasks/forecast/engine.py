"""From prepared rows to forecasts: the fitted parts together, without files, frames or estimators."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from ostinato.data.memory import PreparedState
from ostinato.data.preparation import Indices, Preparation
from ostinato.data.smoothing import Floats, SmoothingParameters
from ostinato.layers.heads import DistributionHead
from ostinato.models.forecaster import AutoregressiveForecaster, DirectForecaster
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.rows import Columns, PreparedRows, Single, encoder_inputs
from ostinato.training.distributed import find_device
from ostinato.types import State

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Quantile levels of the networks; the outermost two only serve the mean."""

_STEPS_AT_ONCE = 1_000_000


@dataclass
class Distribution:
    """Forecasts in the original unit: `mean` (n, H), `quantiles` (n, H, Q) at `levels` (Q,)."""

    mean: Floats
    quantiles: Floats
    levels: Floats


@dataclass
class Engine:
    """A fitted forecaster's parts.

    Attributes:
        model: the network.
        preparation, columns: how values become its inputs.
        calibration: of its intervals.
        horizon: H.
        paths: S, sampled paths of the autoregressive network.
        seed: of the sampling.
        device: where the network runs.
    """

    model: DirectForecaster | AutoregressiveForecaster
    preparation: Preparation
    columns: Columns
    calibration: Calibration
    horizon: int
    paths: int = 200
    seed: int = 0
    device: str = "cpu"

    @property
    def is_autoregressive(self) -> bool:
        """Whether forecasts come from sampled paths."""
        return isinstance(self.model, AutoregressiveForecaster)

    def move_to(self, device: str) -> None:
        """Run the network there from now on. Raises InputError where the device is not there."""
        found = find_device(device)
        self.model.to(found)
        self.device = str(found)

    def forecast(self, prepared: PreparedRows, rows: Indices, at: Indices) -> Distribution:
        """Forecast from origins (rows[i], at[i]), `at` being the last known step.

        Cost: one pass of the encoder over every row that has an origin, however many origins it has.
        """
        if self.is_autoregressive:
            return self.from_paths(self.sample_paths(prepared, rows, at))
        return self.from_relative(self.relative_quantiles(prepared, rows, at), prepared, rows, at)

    # --------------------------------------------------------------------------------------- direct

    def relative_quantiles(
        self, prepared: PreparedRows, rows: Indices, at: Indices, warm: int | None = None
    ) -> Floats:
        """What the direct network says, before calibration: (n, H, Q) in relative units.

        `warm` starts the encoder that many steps before the first origin instead of at the beginning.
        """
        assert isinstance(self.model, DirectForecaster)
        quantiles = np.empty((len(rows), self.horizon, len(LEVELS)))
        for chosen, hidden in self._hidden_at(prepared, rows, at, warm):
            future, anchors = prepared.relative(self.preparation, rows[chosen], at[chosen], self.horizon)
            with torch.no_grad():
                said = self.model.predict(hidden, self.tensor(future), self.tensor(anchors))
            quantiles[chosen] = said.cpu().numpy()
        return quantiles

    def ends_of_blend(
        self, prepared: PreparedRows, rows: Indices, at: Indices, warm: int | None = None
    ) -> tuple[Floats, Floats]:
        """`relative_quantiles` of the untrained mixture and of the network alone, from one pass of the
        encoder; leaves the network alone in charge."""
        assert isinstance(self.model, DirectForecaster)
        mixture, network = (np.empty((len(rows), self.horizon, len(LEVELS))) for _ in range(2))
        for chosen, hidden in self._hidden_at(prepared, rows, at, warm):
            future, anchors = prepared.relative(self.preparation, rows[chosen], at[chosen], self.horizon)
            for share, said in ((0.0, mixture), (1.0, network)):
                self.model.blend.fill_(share)
                with torch.no_grad():
                    output = self.model.predict(hidden, self.tensor(future), self.tensor(anchors))
                said[chosen] = output.cpu().numpy()
        return mixture, network

    def from_relative(
        self, quantiles: Floats, prepared: PreparedRows, rows: Indices, at: Indices
    ) -> Distribution:
        """Calibrated quantiles in the original unit, and their mean."""
        last, scale = prepared.history.filled[rows, at], prepared.history.scale[rows, at]
        return self.finish(quantiles, last, scale)

    def finish(self, quantiles: Floats, last: Floats, scale: Floats) -> Distribution:
        """The same from the origin's value and scale (n,)."""
        moved = self.calibration.apply(quantiles)
        values = self.preparation.inverse(last[:, None, None] + moved * scale[:, None, None])
        levels = np.array(LEVELS)
        # The mean is the integral of the quantile function; each level stands for its neighbourhood.
        edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
        return Distribution((values * np.diff(edges)).sum(-1), values, levels)

    def _hidden_at(
        self, prepared: PreparedRows, rows: Indices, at: Indices, warm: int | None
    ) -> Iterator[tuple[Indices, torch.Tensor]]:
        """Hidden states at the origins: pairs of (which origins, their (n, M, H)), bounded in memory."""
        T = prepared.x.shape[1]
        wanted = np.unique(rows)
        size = max(1, _STEPS_AT_ONCE // max(1, min(T, 20_000)) // 8)
        for i in range(0, len(wanted), size):
            group = wanted[i : i + size]
            state: State | None = None
            mine = at[np.isin(rows, group)]
            first = 0 if warm is None else max(0, int(mine.min()) - warm)
            for begin in range(first, int(mine.max()) + 1, 20_000):
                end = min(begin + 20_000, T)
                with torch.no_grad():
                    hidden, state = self.model.encode(self.tensor(prepared.x[group, begin:end]), state)
                chosen = np.flatnonzero(np.isin(rows, group) & (at >= begin) & (at < end))
                for j in range(0, len(chosen), 2048):
                    part = chosen[j : j + 2048]
                    place = torch.from_numpy(np.searchsorted(group, rows[part])).to(hidden.device)
                    yield part, hidden[place, torch.from_numpy(at[part] - begin).to(hidden.device)]

    # -------------------------------------------------------------------------------- autoregressive

    def sample_paths(self, prepared: PreparedRows, rows: Indices, at: Indices) -> Floats:
        """Joint paths from every origin, original unit, before calibration: (n, S, H)."""
        assert isinstance(self.model, AutoregressiveForecaster)
        paths = np.empty((len(rows), self.paths, self.horizon))
        wanted = np.unique(rows)
        values = self.preparation.forward(prepared.values[wanted])
        parameters = prepared.parameters.select(wanted)
        state = self.preparation.start(len(wanted))
        encoder = self.model.encoder.initial_state(len(wanted))
        done = 0
        for step in np.unique(at):
            for t in range(done, step + 1):
                self.preparation.advance(state, parameters, values[:, t])
            with torch.no_grad():
                hidden, encoder = self.model.encode(self.tensor(prepared.x[wanted, done : step + 1]), encoder)
            done = int(step) + 1
            chosen = np.flatnonzero(at == step)
            for j in range(0, len(chosen), 64):
                part = chosen[j : j + 64]
                place = np.searchsorted(wanted, rows[part])
                future = prepared.ahead[rows[part][:, None], step + 1 + np.arange(self.horizon)]
                index = torch.from_numpy(place).to(self.device)
                paths[part] = self.paths_from(
                    state.select(place),
                    parameters.select(place),
                    encoder.select(index),
                    hidden[index, -1],
                    future,
                    [prepared.ids[row] for row in rows[part]],
                )
        return paths

    def paths_from(
        self,
        state: PreparedState,
        parameters: SmoothingParameters,
        encoder: State,
        hidden: torch.Tensor,
        future: Single,
        ids: Sequence[str],
    ) -> Floats:
        """Feed draws back for H steps from n states of the rows `ids`: (n, S, H) in the original unit.

        The draws at an origin are a function of the seed, its row and its step alone.
        """
        assert isinstance(self.model, AutoregressiveForecaster)
        n, S, H = len(future), self.paths, self.horizon
        generators = [
            torch.Generator().manual_seed(_origin_seed(self.seed, ident, int(clock)))
            for ident, clock in zip(ids, state.smoothing.clock, strict=True)
        ]
        copies = np.repeat(np.arange(n), S)
        state, parameters = state.select(copies), parameters.select(copies)
        index = torch.from_numpy(copies).to(self.device)
        encoder, hidden = encoder.select(index), hidden[index]
        observed = np.zeros((n * S, self.columns.observed.shape[1]), dtype=np.float32)
        paths = np.empty((n * S, H))
        for k in range(H):
            last, scale = state.last, state.scale
            anchors = self.preparation.anchors(state, parameters, 1)[:, 0]
            anchors = (anchors - last[:, None]) / scale[:, None]
            with torch.no_grad():
                drawn = self.model.sample_next(
                    hidden, self.tensor(anchors), self.tensor(last), self.tensor(scale), generators
                )
            # Nothing is a thousand scales away but a mistake that would feed itself.
            value = last + scale * np.clip(drawn.numpy().astype(np.float64), -1e3, 1e3)
            value = np.maximum(np.round(value), 0.0) if self._counts_only else value
            paths[:, k] = value
            if k + 1 == H:
                break
            features, _ = self.preparation.advance(state, parameters, value)
            x = encoder_inputs(features, future[copies, k + 1], observed)
            with torch.no_grad():
                hidden, encoder = self.model.encoder.step(self.tensor(x), encoder)
        return self.preparation.inverse(paths).reshape(n, S, H)

    def from_paths(self, paths: Floats) -> Distribution:
        """Calibrated mean and quantiles of sampled paths (n, S, H)."""
        spread = self.preparation.inverse(self.calibration.spread(self.preparation.forward(paths)))
        if self._counts_only:
            spread = np.maximum(np.round(spread), 0.0)
        levels = np.array(LEVELS)
        quantiles = np.moveaxis(np.quantile(spread, levels, axis=1), 0, -1)
        return Distribution(spread.mean(axis=1), quantiles, levels)

    @property
    def _counts_only(self) -> bool:
        return bool(cast(DistributionHead, self.model.heads[0]).counts_only)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """A float32 tensor on the network's device."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)


def _origin_seed(seed: int, ident: str, clock: int) -> int:
    digest = hashlib.blake2b(f"{seed}\n{clock}\n{ident}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
