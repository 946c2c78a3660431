import sys

import numpy as np
import pytest

from ostinato.errors import InputError, MissingExtraError, SizeError
from ostinato.insight.plots import (
    ForecastPanel,
    figure_bytes,
    forecast_figure,
    save_figure,
    training_figure,
)

LEVELS = np.arange(1, 10) / 10


def panel(title="load", T=200, H=24, seed=1, **changes):
    rng = np.random.default_rng(seed)
    times = np.datetime64("2024-02-27T13:00", "s") + np.arange(T + H) * np.timedelta64(3600, "s")
    history = rng.normal(size=T)
    history[3 : T - 1 : 41] = np.nan
    arguments = {
        "history_times": times[:T],
        "history": history,
        "times": times[T:],
        "quantiles": np.sort(rng.normal(size=(H, 9)), axis=1),
        "levels": LEVELS,
        "mean": rng.normal(size=H),
        "actual": np.where(rng.random(H) < 0.2, np.nan, rng.normal(size=H)),
        "baselines": {name: rng.normal(size=H) for name in ("naive", "seasonal_naive", "ets", "of mine")},
        "unit": "MW",
    }
    return ForecastPanel(title, **{**arguments, **changes})


def drawn(figure):
    """Label -> line of the first panel."""
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def test_a_panel_shows_what_it_was_given():
    one = panel()
    figure = forecast_figure([one], "Day ahead")
    lines = drawn(figure)
    np.testing.assert_array_equal(lines["median"].get_ydata(), one.quantiles[:, 4])
    np.testing.assert_array_equal(lines["mean"].get_ydata(), one.mean)
    np.testing.assert_array_equal(lines["actual"].get_ydata()[1:], one.actual)
    np.testing.assert_array_equal(lines["history"].get_ydata(), one.history[-96:])
    for name, values in one.baselines.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), values)
    wide, narrow = (band.get_datalim(figure.axes[0].transData) for band in figure.axes[0].collections)
    assert wide.y0 == one.quantiles[:, 0].min()
    assert wide.y1 == one.quantiles[:, 8].max()
    assert narrow.y0 == pytest.approx(one.quantiles[:, 1:3].mean(axis=1).min())  # 25 %: between 20 and 30
    assert figure.axes[0].get_ylabel() == "MW"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["80 % interval", "50 % interval"]
    assert len(set(texts)) == len(texts) == 10


@pytest.mark.parametrize("n", [1, 3, 7, 12])
def test_one_panel_per_series_up_to_nine(n):
    figure = forecast_figure([panel(f"s{i}", seed=i, T=20, H=5) for i in range(n)], "Many")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"s{i}" for i in range(min(n, 9))]
    assert ("the first 9 of 12" in figure.get_suptitle()) == (n > 9)
    if n == 7:  # drawing takes seconds: the widest grid with an empty place stands for all
        assert figure_bytes(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("format_", ["png", "svg"])
def test_the_same_figure_gives_the_same_bytes(format_):
    first, second = (figure_bytes(forecast_figure([panel()]), format_) for _ in range(2))
    assert first == second


def test_odd_names_numbers_for_times_and_single_steps_are_drawn_without_a_warning():
    odd = panel(
        "prix $a_b$ <é> 温度 " + 90 * "x",
        T=1,
        H=1,
        history_times=np.arange(1),
        history=np.zeros(1),
        times=np.ones(1),
    )
    figure = forecast_figure([odd], "$title$ {x}")
    figure_bytes(figure, "png")
    assert "温度" in figure_bytes(figure, "svg").decode()
    bare = panel(mean=None, actual=None, baselines={}, unit="")
    figure_bytes(forecast_figure([bare]), "svg")
    constant = panel(quantiles=np.zeros((24, 9)), history=np.zeros(200), actual=np.zeros(24), baselines={})
    figure_bytes(forecast_figure([constant]), "png")


def test_training_curves_mark_the_best_step():
    nan = float("nan")
    history = {
        "step": [1, 50, 100, 150],
        "epoch": [0, 0, 1, 1],
        "elapsed_s": [0.1, 1, 2, 3],
        "train_loss": [5.0, 0.1, 0.05, 0.04],
        "learning_rate": [0, 1e-3, 1e-3, 5e-4],
        "grad_norm": [3.0, 2.0, nan, 1.0],
        "loss": [nan, 0.3, nan, 0.25],
        "crps": [nan, 0.5, nan, nan],
    }
    figure = training_figure(history, best_step=150)
    loss, validation, rate, norm = figure.axes
    assert loss.get_yscale() == "log"
    assert rate.get_yscale() == "linear"
    assert [line.get_label() for line in validation.get_lines()][:2] == ["loss", "crps"]
    np.testing.assert_array_equal(validation.get_lines()[0].get_xdata(), [50, 150])
    np.testing.assert_array_equal(norm.get_lines()[0].get_ydata(), [3, 2, 1])
    assert "150" in validation.get_title(loc="left")
    assert all(150 in line.get_xdata() for line in (ax.get_lines()[-1] for ax in figure.axes))
    figure_bytes(figure, "png")
    figure_bytes(training_figure({"step": [], "train_loss": []}), "png")
    with pytest.raises(InputError, match="no column 'train_loss'; it has: step"):
        training_figure({"step": [1]})


def test_files_by_ending(tmp_path):
    figure = forecast_figure([panel()])
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes() == figure_bytes(figure, "png")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        save_figure(figure, tmp_path / "a.gif")


@pytest.mark.parametrize("name", ["history", "quantiles", "mean", "actual", "baselines"])
def test_sizes_that_differ_are_named(name):
    wrong = {"naive": np.zeros(3)} if name == "baselines" else np.zeros(3)
    with pytest.raises(SizeError, match=rf"'load'.*{name.removesuffix('s')}.*\(3,\)"):
        panel(**{name: wrong})


def test_no_panel_and_no_matplotlib_say_what_to_do(monkeypatch):
    with pytest.raises(InputError, match="at least one ForecastPanel"):
        forecast_figure([])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"ostinato\[plots\]"):
        forecast_figure([panel()])


def test_pyplot_is_never_touched():
    import subprocess

    program = (
        "import sys, numpy as np; from ostinato.insight import plots\n"
        "figure = plots.training_figure({'step': [1, 2], 'train_loss': [1, 2]})\n"
        "plots.figure_bytes(figure, 'png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
