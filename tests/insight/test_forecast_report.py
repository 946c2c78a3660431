import shutil
import sys

import numpy as np
import pytest

from ostinato.insight.forecast_report import write_forecast_report
from ostinato.tasks.forecast import Forecaster
from ostinato.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(6)
    n, names = 26, [f"shop {i} <b>" for i in range(11)]
    times = np.datetime64("2023-01-01") + np.arange(n)
    return {
        "shop": [name for name in names for _ in range(n)],
        "day": [str(day) for _ in names for day in times],
        "sold": np.concatenate([10 * i + rng.normal(size=n) for i in range(11)]).tolist(),
    }


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    forecaster = Forecaster(3, hidden_size=4, members=1, steps=3, test=3, seed=1, progress="quiet")
    return forecaster.fit(table, time="day", target="sold", series="shop", out=path), path


@pytest.fixture
def fitted(trained, tmp_path):
    forecaster, path = trained
    return forecaster, shutil.copytree(path, tmp_path / "run")


def test_the_report_joins_the_run_folder(fitted, table):
    forecaster, path = fitted
    model = RunFolder.open(path).read_bytes("model.safetensors")
    names = write_forecast_report(forecaster, path, table)
    assert names == ["report.html", "plots/forecast.png", "plots/training.png"]
    run = RunFolder.open(path)
    assert set(names) < set(run.files)
    assert run.read_bytes("model.safetensors") == model
    page = run.read_text("report.html")
    assert "The last 3 steps, not seen in training (9 of 11 series)" in page
    assert "shop 0 &lt;b&gt;" in page
    assert "seasonal_naive" in page
    assert f"{forecaster.metrics_['model']['lstm']['mase']:.3f}" in page
    assert "hidden_size = 4" in page
    assert "<b>" not in page.replace("<body>", "")


def test_without_matplotlib_the_page_says_what_is_missing(fitted, table, monkeypatch):
    forecaster, path = fitted
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_forecast_report(forecaster, path, table) == ["report.html"]
    page = RunFolder.open(path).read_text("report.html")
    assert "ostinato[plots]" in page
    assert "<svg" not in page
