"""Fitting an imputer: transformation, a mixture of simple estimates to begin with, network, calibration."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ostinato.data.interpolation import Floats, Indices
from ostinato.data.table import SeriesTable
from ostinato.errors import InputError
from ostinato.models.imputer import BidirectionalImputer
from ostinato.tasks.forecast.calibration import Calibration
from ostinato.tasks.forecast.engine import LEVELS
from ostinato.tasks.forecast.gaps import CLASSES, SIDES, GapRows, Scaling, Windows, window_batch
from ostinato.tasks.forecast.hiding import Holes, HoleSource, hold_out
from ostinato.tasks.forecast.rows import Columns
from ostinato.training.history import History
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings

TRANSFORMS = ("auto", "none", "log")
_SURVEY_WINDOWS = 256
_AT_ONCE = 64


@dataclass(frozen=True)
class ImputationSettings:
    """What an imputer is told besides the data.

    Raises:
        InputError: a value out of range, or an unknown name.
    """

    cell: Any = "lstm"
    """rnn, lstm, gru, mingru, minlstm, rglru, or a `Cell` class of your own; run in both directions."""
    hidden_size: int = 32
    """Width of the state of each direction and member."""
    num_layers: int = 1
    """Bidirectional layers of each member."""
    members: int = 2
    """Networks that are trained together and averaged."""
    dropout: float = 0.1
    """Before the head."""
    season: int | None = None
    """Main season in steps; None: from the frequency, 1: none."""
    window: int | None = None
    """Steps that the network sees at once; None: about two seasons and twice the longest gap, 64 to 512."""
    backcast_steps: int | None = None
    """Longest stretch before a series that training prepares for; half of its windows then begin with one.
    0: none; None: a season (at least 12 steps), at a quarter of the windows."""
    transform: str = "auto"
    """auto, none or log: whether the network works on logarithms of the targets."""
    batch_size: int = 32
    """Windows of one optimizer step."""
    learning_rate: float = 2e-3
    """Of AdamW; the weights that are kept are a moving average."""
    training_steps: int | None = None
    """Optimizer steps; None: until the validation loss stops improving, or time is up."""
    max_time_s: float | None = 60.0
    """Wall time of the fit in seconds, validation included; None: no limit."""
    patience: int | None = 10
    """Validations without improvement after which training stops; not used with `training_steps`."""
    seed: int = 0
    """Of initial weights, hidden values and dropout."""
    device: str = "cpu"
    """cpu, cuda, … or auto."""
    progress: str = "auto"
    """auto, bar, lines or quiet."""

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise InputError(f"transform is {self.transform!r}; expected one of: {', '.join(TRANSFORMS)}")
        always = ("hidden_size", "num_layers", "members", "batch_size")
        for name in (*always, "season", "window", "training_steps", "patience", "backcast_steps"):
            value = getattr(self, name)
            least = 0 if name == "backcast_steps" else 1
            if value is None and name not in always:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} must be a whole number ≥ {least}, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        for name in ("learning_rate", "max_time_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0, got {value!r}")
        if self.training_steps is None and self.patience is None and self.max_time_s is None:
            raise InputError("training has no end; set one of training_steps, patience, max_time_s")


@dataclass
class ImputationEngine:
    """A fitted imputer's parts.

    Attributes:
        model: the network.
        scaling, columns: how values become its inputs.
        near, apart: calibrations of steps with values on both sides, and on one side only.
        width: W, steps of a window.
        prepared_steps: longest missing beginning that training has shown.
        device: where the network runs.
    """

    model: BidirectionalImputer
    scaling: Scaling
    columns: Columns
    near: Calibration
    apart: Calibration
    width: int
    prepared_steps: int
    device: str = "cpu"

    def quantiles(self, windows: Windows) -> Floats:
        """What the network says, before calibration: (B, W, Q) in the windows' units."""
        with torch.no_grad():
            said = self.model.predict(windows.batch.to(self.device))
        return said.cpu().numpy().astype(np.float64)

    def values(self, windows: Windows) -> Floats:
        """Calibrated quantiles (B, W, Q) in the original unit."""
        factors = np.concatenate([self.near.factors, self.apart.factors])[windows.classes]
        raw = self.quantiles(windows)
        flat = Calibration(factors.reshape(-1, factors.shape[-1])).apply(raw.reshape(-1, raw.shape[-1]))
        moved = windows.base[..., None] + flat.reshape(raw.shape) * windows.unit[..., None]
        return self.scaling.inverse(moved)


def build_imputer(input_size: int, scaling: Scaling, settings: ImputationSettings) -> BidirectionalImputer:
    """The untrained network that settings and scaling call for."""
    return BidirectionalImputer(
        input_size,
        scaling.anchors,
        CLASSES,
        LEVELS,
        cell=settings.cell,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        members=settings.members,
        dropout=settings.dropout,
    )


def fit_imputer(
    table: SeriesTable, settings: ImputationSettings, started_s: float
) -> tuple[ImputationEngine, History]:
    """Fit every part of an imputer to `table`, every row of which has a value.

    `started_s` is the `time.monotonic()` from which `max_time_s` counts.
    """
    columns = Columns.fit(table, [s.length for s in table.series])
    longest = max(s.length for s in table.series)
    main = table.frequency.season
    ordered = tuple(dict.fromkeys((main, *table.frequency.seasons)))[:2]
    seasons = tuple(m for m in ordered if m > 1 and 2 * m <= longest)
    rng = np.random.default_rng(settings.seed)
    scaling = Scaling("none", 0.0, seasons)
    rows = GapRows.of(table, columns, scaling)
    holes = Holes.of(rows, main, settings.backcast_steps)
    width = _width(holes, seasons, longest, settings)
    held = hold_out(rows, holes, width, rng)
    rows = _choose_transform(rows, holes, held.allowed, width, settings)
    rows, mixture, gaps = _begin(rows, holes, held.allowed, width, settings)
    source = HoleSource(rows, holes, held.allowed, width, settings.batch_size, seed=settings.seed)
    checks = [
        window_batch(rows, held.places.select(slice(i, i + _AT_ONCE)), source.margin)
        for i in range(0, len(held.places.rows), _AT_ONCE)
    ]
    torch.manual_seed(settings.seed)
    model = build_imputer(checks[0].batch.x.shape[-1], rows.scaling, settings)
    model.start_from(torch.from_numpy(mixture).float(), torch.from_numpy(gaps).float())
    none = Calibration.none(SIDES, len(LEVELS))
    engine = ImputationEngine(model, rows.scaling, columns, none, none, width, holes.lead)
    left_s = None
    if settings.max_time_s is not None:
        left_s = max(settings.max_time_s - (time.monotonic() - started_s) - 0.5, 0.5)

    def validate(_: Any) -> dict[str, float]:
        engine.device = str(next(model.parameters()).device)
        return {"loss": _loss(engine, checks)}

    history = train(
        model,
        source,
        _training_settings(settings, left_s),
        validate=validate,
        device=settings.device,
        progress=settings.progress,
    )
    engine.device = str(next(model.parameters()).device)
    near, apart = _calibrate(engine, checks)
    return replace(engine, near=near, apart=apart), history


def _width(holes: Holes, seasons: tuple[int, ...], longest: int, settings: ImputationSettings) -> int:
    if settings.window is not None:
        return min(settings.window, longest)
    gap = int(np.quantile(holes.lengths, 0.95))
    lead = holes.lead if holes.lead_share else 0
    wanted = max(64, min(2 * max(seasons[:1], default=1), 192), 3 * gap, 2 * lead)
    return min(wanted, 512, longest)


def _survey(
    rows: GapRows, holes: Holes, allowed: list[Any], width: int, settings: ImputationSettings
) -> dict[str, Floats]:
    """What is hidden in some training windows: truth, anchors, classes and units, one line a hidden value."""
    source = HoleSource(rows, holes, allowed, width, 32, seed=settings.seed + 1)
    rng = np.random.default_rng([settings.seed, 1])
    parts: dict[str, list[Any]] = {name: [] for name in ("truth", "anchors", "classes", "unit", "row")}
    for _ in range(_SURVEY_WINDOWS // 32):
        places = source.draw(rng)
        windows = window_batch(rows, places, source.margin, allowed)
        b, t = np.nonzero(windows.mask)
        for name, value in (
            ("truth", windows.truth[b, t]),
            ("anchors", windows.anchors[b, t]),
            ("classes", windows.classes[b, t]),
            ("unit", windows.row_unit[b]),
            ("row", places.rows[b]),
        ):
            parts[name].append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _choose_transform(
    rows: GapRows, holes: Holes, allowed: list[Any], width: int, settings: ImputationSettings
) -> GapRows:
    """Logarithms for positive values whose hidden ones are then estimated better by 2 % or more."""
    smallest = min(float(np.nanmin(row)) for row in rows.values)
    if settings.transform == "none":
        return rows
    if smallest <= 0:
        if settings.transform == "log":
            raise InputError(
                f"transform='log' needs positive targets, found {smallest:g}; use transform='none'"
            )
        return rows
    scaling = Scaling("log", smallest / 2, rows.scaling.seasons)
    logs = GapRows.of(rows.table, rows.columns, scaling)
    if settings.transform == "log":
        return logs
    errors = []
    for candidate in (rows, logs):
        seen = _survey(candidate, holes, allowed, width, settings)
        inverse = candidate.scaling.inverse
        error = np.abs(inverse(seen["anchors"]) - inverse(seen["truth"])[:, None])
        errors.append((error / rows.spread[seen["row"].astype(np.int64)][:, None]).mean(axis=0).min())
    return logs if errors[1] < 0.98 * errors[0] else rows


def _begin(
    rows: GapRows, holes: Holes, allowed: list[Any], width: int, settings: ImputationSettings
) -> tuple[GapRows, Floats, Floats]:
    """Rows with the factors of their classes; for each class a mixture of estimates and quantile gaps."""
    seen = _survey(rows, holes, allowed, width, settings)
    classes = seen["classes"].astype(np.int64)
    anchors = (seen["anchors"] - seen["truth"][:, None]) / seen["unit"][:, None]
    mixture = _mixture(anchors, classes, min(len(classes), sum(int(mask.sum()) for mask in allowed)))
    residual = -(anchors * mixture[classes]).sum(axis=1)
    factors = np.empty(CLASSES)
    gaps = np.empty((CLASSES, len(LEVELS) - 1))
    for k in range(CLASSES):
        # A class that was seldom seen takes what its neighbours on the same side show.
        near = np.abs(classes - k)
        near = np.where((classes < SIDES) == (k < SIDES), near, near + CLASSES)
        chosen = near == 0 if (near == 0).sum() >= 40 else np.argsort(near, kind="stable")[:40]
        mine = residual[chosen]
        factors[k] = max(float(np.abs(mine).mean()), 1e-3)
        gaps[k] = np.diff(np.quantile(mine / factors[k], LEVELS))
    return rows.with_scaling(replace(rows.scaling, factors=factors)), mixture, gaps


def _mixture(errors: Floats, classes: Indices, evidence: int) -> Floats:
    """Convex weights (CLASSES, A) of the estimates, whose mixed absolute error is least.

    Steps with values on both sides and steps with one side have weights in common; each class departs from
    them as far as that pays for itself.

    Args:
        errors: (n, A) of every estimate at n hidden values, some of them hidden repeatedly.
        classes: (n,).
        evidence: how many different values there are.
    """
    side = (classes >= SIDES).astype(np.int64)
    error = np.abs(errors).mean(axis=0)
    sides = np.stack([np.abs(errors[side == k]).mean(axis=0) if (side == k).any() else error for k in (0, 1)])
    best = np.maximum(sides.min(axis=1, keepdims=True), 1e-12)
    begin = torch.from_numpy(np.maximum(-6.0 * (sides / best - 1.0), -6.0))
    values, index, which = (torch.from_numpy(array) for array in (errors, classes, side))
    unit = torch.from_numpy(best[:, 0])[which]
    common = begin.clone().requires_grad_()
    own = torch.zeros(CLASSES, errors.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([common, own], lr=0.1)
    for _ in range(150):
        mixed = (torch.softmax(common[which] + own[index], dim=-1) * values).sum(-1)
        penalty = (own.square().sum() + 0.5 * (common - begin).square().sum()) / evidence
        loss = (mixed.abs() / unit).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return torch.softmax(common[torch.arange(CLASSES) // SIDES] + own, dim=-1).numpy()


def _training_settings(settings: ImputationSettings, budget_s: float | None) -> TrainingSettings:
    return TrainingSettings(
        steps=settings.training_steps,
        max_time_s=budget_s,
        optimizer="adamw",
        learning_rate=settings.learning_rate,
        weight_decay=1e-2,
        warmup_steps=20,
        averaging="ema",
        averaging_decay=0.98,
        clip_norm=1.0,
        validate_first=True,
        validate_every_epochs=None,
        validate_every_steps=25,
        patience_validations=None if settings.training_steps is not None else settings.patience,
        seed=settings.seed,
    )


def _loss(engine: ImputationEngine, checks: list[Windows]) -> float:
    """Pinball loss of the held-out values in units of their rows."""
    levels = np.array(LEVELS)
    total = count = 0.0
    for windows in checks:
        error = windows.batch.y.numpy()[..., None] - engine.quantiles(windows)
        loss = np.maximum(levels * error, (levels - 1) * error).mean(-1)
        share = windows.unit / windows.row_unit[:, None]
        total += float((loss * windows.mask * share).sum())
        count += float(windows.mask.sum())
    return total / max(count, 1.0)


def _calibrate(engine: ImputationEngine, checks: list[Windows]) -> tuple[Calibration, Calibration]:
    """Conformal factors from the held-out values, for each class; wider the further away."""
    parts = []
    for w in checks:
        # In units of the row, so that "wider" compares one class with another.
        share = (w.unit / w.row_unit[:, None])[w.mask]
        y = w.batch.y.numpy()[w.mask].astype(np.float64)
        parts.append((engine.quantiles(w)[w.mask] * share[:, None], y * share, w.classes[w.mask]))
    quantiles, y, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
    is_apart = [((w.classes >= SIDES) & w.mask).any(axis=1) for w in checks]
    is_near = [((w.classes < SIDES) & w.mask).any(axis=1) for w in checks]
    return (
        _calibration(quantiles, y, classes, 0, float(np.concatenate(is_near).sum())),
        _calibration(quantiles, y, classes, SIDES, float(np.concatenate(is_apart).sum())),
    )


def _calibration(quantiles: Floats, y: Floats, classes: Indices, first: int, witnesses: float) -> Calibration:
    """`Calibration.fit` with the classes as its steps; it wants as many lines of each, the rest masked."""
    counts = np.bincount(classes, minlength=CLASSES)[first : first + SIDES]
    used = np.flatnonzero(counts)
    if not len(used):
        return Calibration.none(SIDES, len(LEVELS))
    n = int(counts.max())
    lines, mask = np.empty((n, SIDES), dtype=np.int64), np.zeros((n, SIDES), dtype=np.bool_)
    for k in range(SIDES):
        nearest = int(used[np.argmin(np.abs(used - k))])
        lines[:, k] = np.resize(np.flatnonzero(classes == first + nearest), n)
        mask[: counts[k], k] = True
    return Calibration.fit(quantiles[lines], y[lines], mask, np.array(LEVELS), witnesses)
