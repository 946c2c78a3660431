"""Small tables and quickly fitted forecasters, shared by the tests of forecasting."""

import numpy as np
import pytest

import ostinato as ot
from ostinato.tasks.forecast import backtest
from ostinato.tasks.forecast.baselines import BASELINES

QUICK = {"members": 1, "hidden_size": 8, "steps": 30, "progress": "quiet", "paths": 40}


def long_table(lengths=(96, 60, 75), seed=0, targets=1, extras=True, missing=0.05):
    """Monthly series below each other; `price` moves the target, `rain` is observed, `region` static."""
    rng = np.random.default_rng(seed)
    columns = {"id": [], "month": [], "y": []}
    columns |= {f"y{c}": [] for c in range(1, targets)}
    columns |= {"price": [], "rain": [], "region": []} if extras else {}
    for s, n in enumerate(lengths):
        t = np.arange(n)
        price = rng.normal(size=n)
        columns["id"] += [f"s{s}"] * n
        columns["month"] += [str(m) for m in np.datetime64("2000-01") + t]
        for c in range(targets):
            y = 20 + 4 * np.sin(2 * np.pi * (t + c) / 12) + 2 * price + rng.normal(0, 0.5, n)
            y[rng.random(n) < missing] = np.nan
            y[[0, -1]] = 20.0
            columns[f"y{c}" if c else "y"] += y.tolist()
        if extras:
            columns["price"] += price.tolist()
            columns["rain"] += rng.normal(size=n).tolist()
            columns["region"] += [["north", "south"][s % 2]] * n
    return columns


def rows_of(columns):
    """A dict of columns as a list of rows."""
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


ROLES = {"target": "y", "time": "month", "series": "id"}
ALL_ROLES = {**ROLES, "known": "price", "observed": "rain", "static": "region"}


def quick(horizon=6, **options):
    return ot.Forecaster(horizon, **{**QUICK, **options})


@pytest.fixture(scope="session")
def kit():
    """The functions of this file, for tests that make their own tables and forecasters."""
    from types import SimpleNamespace

    return SimpleNamespace(
        long_table=long_table, rows_of=rows_of, quick=quick, ROLES=ROLES, ALL_ROLES=ALL_ROLES
    )


@pytest.fixture(scope="session")
def fast_baselines():
    """The baselines without ETS, whose search takes longer than a small network's training."""
    return {name: make for name, make in BASELINES.items() if name != "ets"}


@pytest.fixture
def without_ets(monkeypatch, fast_baselines):
    """For tests that are not about scores."""
    monkeypatch.setattr(backtest, "BASELINES", fast_baselines)


@pytest.fixture(scope="session", params=["quantile", "student_t"])
def fitted(request, fast_baselines):
    """A forecaster with every kind of column, fitted up to the last 12 rows, and the whole table."""
    table = long_table()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backtest, "BASELINES", fast_baselines)
        return quick(head=request.param, test=12).fit(table, **ALL_ROLES), table


@pytest.fixture(scope="session")
def plain(fast_baselines):
    """A quantile forecaster of one target without other columns, and its table."""
    table = long_table(extras=False, missing=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backtest, "BASELINES", fast_baselines)
        return quick().fit(table, **ROLES), table
