"""Filling gaps and the past: no worse than interpolation, from both sides, exact where values are known."""

import numpy as np
import pytest
import torch

import ostinato as ot
from ostinato.data.bundled import load_bundled
from ostinato.data.interpolation import gap_lengths, interpolate, seasonal_neighbours
from ostinato.data.series import SeriesSpec, table_from_frame
from ostinato.errors import DataError, InputError
from ostinato.models.imputer import BidirectionalImputer
from ostinato.tasks.forecast.engine import LEVELS
from ostinato.tasks.forecast.gaps import GapRows, Places, Scaling, window_batch
from ostinato.tasks.forecast.hiding import Holes, HoleSource, hold_out
from ostinato.tasks.forecast.rows import Columns
from ostinato.types import Batch, State

QUANTILES = [f"q{level / 10:g}" for level in range(1, 10)]
QUICK = {"progress": "quiet", "hidden_size": 12, "members": 1, "batch_size": 16}


def punched(n, longest, seed, share=0.2):
    """Which of n values are taken away: scattered points and spans, never the first or last value."""
    rng = np.random.default_rng(seed)
    gone = np.zeros(n, dtype=bool)
    gone[rng.choice(np.arange(1, n - 1), int(share / 4 * n), replace=False)] = True
    while gone.mean() < share:
        span = int(rng.integers(2, longest + 1))
        begin = int(rng.integers(1, n - span - 1))
        gone[begin : begin + span] = True
    return gone


def bundled(name, first=0):
    table = load_bundled(name)
    series = table.series[0]
    times = table.frequency.format(table.times(series))[first:]
    return times, series.values[first:, 0], table.frequency.season


def simple_estimates(values, season):
    """Linear interpolation, and the mean of the nearest known values of the same phase on both sides."""
    known = np.flatnonzero(~np.isnan(values))
    linear = np.interp(np.arange(len(values)), known, values[known])
    seasonal = linear.copy()
    for t in np.flatnonzero(np.isnan(values)):
        sides = [values[t + d :: d] for d in (season, -season) if t + d >= 0]
        nearest = [side[~np.isnan(side)][0] for side in sides if (~np.isnan(side)).any()]
        seasonal[t] = np.mean(nearest) if nearest else linear[t]
    return linear, seasonal


@pytest.fixture(scope="module")
def air():
    times, truth, _ = bundled("airpassengers")
    gone = punched(len(truth), 12, seed=0)
    data = {"month": times, "y": np.where(gone, np.nan, truth)}
    imputer = ot.Imputer(training_steps=50, seed=0, **QUICK).fit(data, target="y", time="month")
    return imputer, data, truth, gone


def filled(imputer, data):
    return {name: np.array(column) for name, column in imputer.impute(data).items()}


# ------------------------------------------------------------------------------------------------ accuracy


def test_gaps_of_airpassengers_beat_both_interpolations(air):
    imputer, data, truth, gone = air
    out = filled(imputer, data)
    network, linear, seasonal = (
        np.abs(estimate - truth)[gone].mean() for estimate in (out["value"], *simple_estimates(data["y"], 12))
    )
    assert network < 0.5 * min(linear, seasonal), f"{network:.2f}, {linear:.2f}, {seasonal:.2f}"


def test_gaps_of_half_hourly_load_beat_both_interpolations():
    # Four weeks of a load with a day, a quieter weekend, and noise that remembers.
    rng = np.random.default_rng(11)
    t, season = np.arange(1344), 48
    noise = np.convolve(rng.normal(0, 100, 1344 + 20), 0.8 ** np.arange(21), mode="valid")
    day = 4000 * np.sin(2 * np.pi * t / 48 - 1.5) + 1500 * np.sin(4 * np.pi * t / 48)
    truth = 28_000 + day * np.where(t // 48 % 7 < 5, 1.0, 0.7) + noise
    times = np.datetime64("2020-06-01T00:00") + 30 * t * np.timedelta64(1, "m")
    gone = punched(len(truth), 40, seed=1)
    data = {"t": times, "y": np.where(gone, np.nan, truth)}
    imputer = ot.Imputer(training_steps=40, seed=1, **QUICK).fit(data, target="y", time="t")
    out = filled(imputer, data)
    network, linear, seasonal = (
        np.abs(estimate - truth)[gone].mean()
        for estimate in (out["value"], *simple_estimates(data["y"], season))
    )
    assert network < 0.5 * min(linear, seasonal), f"{network:.1f}, {linear:.1f}, {seasonal:.1f}"
    inside = ((truth >= out["q0.1"]) & (truth <= out["q0.9"]))[gone].mean()
    assert 0.6 < inside <= 1.0, f"80 % intervals cover {inside:.2f}"


def test_a_random_walk_is_not_filled_worse_than_by_interpolation():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=400).cumsum()
    gone = punched(400, 10, seed=3)
    data = {"y": np.where(gone, np.nan, truth), "t": np.arange("2020-01-01", 400, dtype="datetime64[D]")}
    imputer = ot.Imputer(training_steps=50, **QUICK).fit(data, target="y", time="t")
    network = np.abs(filled(imputer, data)["value"] - truth)[gone].mean()
    linear = np.abs(simple_estimates(data["y"], 7)[0] - truth)[gone].mean()
    assert network <= 1.05 * linear, f"{network:.3f} against {linear:.3f}"


def test_the_first_year_of_airpassengers_is_backcast_better_than_naively():
    times, truth, _ = bundled("airpassengers")
    data = {"month": times[12:], "y": truth[12:]}
    imputer = ot.Imputer(training_steps=50, backcast_steps=12, seed=0, **QUICK)
    out = imputer.fit(data, target="y", time="month").backcast(data, 12)
    assert list(out) == ["series", "time", "mean", *QUANTILES]
    assert out["time"] == times[:12]
    errors = [np.abs(estimate - truth[:12]).mean() for estimate in (out["q0.5"], truth[12], truth[12:24])]
    assert errors[0] < min(errors[1:]), f"network, naive, seasonal naive: {errors}"
    assert (np.diff([out[q] for q in QUANTILES], axis=0) >= 0).all()
    # Further back than training has shown: said, not refused.
    long = imputer.backcast(data, 30)
    assert np.isfinite(long["mean"]).all()
    assert any("backcast_steps=30" in note for note in imputer.notes_), imputer.notes_


# -------------------------------------------------------------------------------------------- the contract


def test_known_values_come_back_untouched_and_quantiles_do_not_cross(air):
    imputer, data, _, gone = air
    out = filled(imputer, data)
    assert list(out) == ["series", "time", "value", "is_imputed", *QUANTILES]
    assert (out["is_imputed"] == gone).all()
    for name in ("value", *QUANTILES):
        assert (out[name][~gone] == data["y"][~gone]).all(), name
    quantiles = np.array([out[q] for q in QUANTILES])
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=0) >= 0).all()
    assert (np.diff(quantiles[:, gone], axis=0) > 0).any()
    assert (out["value"] == out["q0.5"]).all()


def test_a_change_on_either_side_of_a_gap_moves_what_fills_it(air):
    imputer, data, _, _ = air
    y = data["y"].copy()
    y[60:70] = np.nan
    y[[58, 59, 70, 71]] = [200.0, 202.0, 225.0, 230.0]
    plain = filled(imputer, {**data, "y": y})["value"][60:70]
    moves = {}
    for side, step in (("before", 59), ("after", 70)):
        changed = y.copy()
        changed[step] *= 1.15
        moves[side] = np.abs(filled(imputer, {**data, "y": changed})["value"][60:70] - plain)
    assert moves["before"][:3].min() > 0.1, moves
    assert moves["after"][-3:].min() > 0.1, moves


def test_the_network_reads_in_both_directions():
    model = BidirectionalImputer(5, 3, 2, LEVELS, hidden_size=4, members=2, dropout=0.0)
    for head in model.heads:
        torch.nn.init.normal_(head.project.weight)
    x = torch.randn(2, 9, 5, requires_grad=True)
    said = model(x, torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.int64))
    assert said.shape == (2, 2, 9, len(LEVELS))
    assert (said.diff(dim=-1) > 0).all()
    (slope,) = torch.autograd.grad(said[:, :, 4].sum(), x)
    assert (slope.abs().sum((0, 2)) > 0).all(), slope.abs().sum((0, 2))


def test_the_loss_counts_hidden_steps_and_refuses_a_state():
    model = BidirectionalImputer(5, 3, 2, LEVELS, hidden_size=4)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2:4] = True
    ones = torch.ones(2, 6)
    batch = Batch(
        x=torch.randn(2, 6, 5), anchors=torch.randn(2, 6, 3), prior=torch.zeros(2, 6, dtype=torch.int64),
        inside=torch.ones(2, 6, dtype=torch.bool), y=torch.randn(2, 6), mask=mask, weight=ones,
    )  # fmt: skip
    output = model.loss(batch)
    assert output.count == 2
    assert output.total > 0
    with pytest.raises(InputError, match="cannot carry"):
        model.loss(batch, State(h=ones))
    with pytest.raises(InputError, match=r"esn.*rnn.*lstm.*gru"):
        BidirectionalImputer(5, 3, 2, LEVELS, cell="esn")


def test_no_gaps_is_a_note(air):
    imputer, data, truth, _ = air
    out = imputer.impute({**data, "y": truth})
    assert out["value"] == truth.tolist()
    assert not any(out["is_imputed"])
    assert any("no target is missing" in note for note in imputer.notes_)


def test_saved_and_loaded_it_fills_the_same(air, tmp_path):
    imputer, data, _, _ = air
    imputer.save(tmp_path / "run")
    loaded = ot.load(tmp_path / "run")
    assert loaded.get_params() == imputer.get_params()
    assert loaded.impute(data) == imputer.impute(data)
    assert loaded.backcast(data, 3) == imputer.backcast(data, 3)


# ------------------------------------------------------------------------------------------- many kinds


def ragged(n_series=3, targets=("y",), seed=0, missing=0.15):
    rng = np.random.default_rng(seed)
    columns = {"id": [], "day": [], "price": [], "rain": [], **{name: [] for name in targets}}
    for s in range(n_series):
        n = 40 + 13 * (s % 4)
        t = np.arange(n)
        columns["id"] += [f"s{s}"] * n
        columns["day"] += (np.datetime64("2021-03-01") + t).astype(str).tolist()
        columns["price"] += rng.normal(size=n).tolist()
        columns["rain"] += rng.normal(size=n).tolist()
        for c, name in enumerate(targets):
            y = 5 * np.sin(2 * np.pi * (t + c) / 7) + rng.normal(0, 0.3, n) - 2
            y[rng.random(n) < missing] = np.nan
            if s == 0:
                y[[0, 1]] = np.nan
            y[-1] = 1.0
            columns[name] += y.tolist()
    return columns


def test_many_targets_covariates_and_missing_beginnings_in_a_frame():
    pandas = pytest.importorskip("pandas")
    data = pandas.DataFrame(ragged(targets=("y", "z")))
    roles = {"target": ["y", "z"], "time": "day", "series": "id", "known": "price", "observed": "rain"}
    imputer = ot.Imputer(training_steps=4, **QUICK).fit(data, **roles)
    out = imputer.impute(data)
    assert isinstance(out, pandas.DataFrame)
    assert list(out.columns)[:5] == ["series", "time", "target", "value", "is_imputed"]
    assert len(out) == 2 * len(data)
    assert out["value"].notna().all()
    assert int(out["is_imputed"].sum()) == int(data[["y", "z"]].isna().sum().sum())
    for name in ("y", "z"):
        part = out[out["target"] == name]
        known = data[name].notna().to_numpy()
        assert (part["value"].to_numpy()[known] == data[name].to_numpy()[known]).all()
    past = imputer.backcast(data, 4)
    assert len(past) == 3 * 2 * 4
    assert past["time"].tolist()[:4] == ["2021-02-25", "2021-02-26", "2021-02-27", "2021-02-28"]


def test_hundreds_of_series_and_the_same_bits_from_the_same_seed():
    data = ragged(n_series=150)
    roles = {"target": "y", "time": "day", "series": "id"}
    options = {**QUICK, "training_steps": 2, "seed": 5}
    first, again = (ot.Imputer(**options).fit(data, **roles).impute(data) for _ in range(2))
    assert first == again
    assert np.isfinite(first["value"]).all()
    other = ot.Imputer(**{**options, "seed": 6}).fit(data, **roles).impute(data)
    assert other["value"] != first["value"]


def test_a_constant_series_is_filled_with_its_constant():
    y = np.full(60, 7.0)
    y[20:25] = np.nan
    data = {"y": y, "t": np.arange("2020-01-01", 60, dtype="datetime64[D]")}
    out = ot.Imputer(training_steps=2, **QUICK).fit(data, target="y", time="t").impute(data)
    assert np.allclose(out["value"], 7.0, atol=1e-4), out["value"][20:25]


def test_the_forecaster_fills_and_backcasts(kit):
    data = kit.long_table(lengths=(70,), extras=False, missing=0.1)
    forecaster = kit.quick(steps=2).fit(data, target="y", time="month", series="id")
    out = forecaster.impute(data, **{**QUICK, "training_steps": 2})
    assert sum(out["is_imputed"]) == int(np.isnan(data["y"]).sum())
    assert len(forecaster.backcast(data, 5, **{**QUICK, "training_steps": 2})["mean"]) == 5


# ------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_filled_is_refused(air):
    imputer, data, _, _ = air
    n = len(data["y"])
    both = {"month": data["month"] * 2, "id": ["a"] * n + ["b"] * n, "y": [*data["y"], *[np.nan] * n]}
    with pytest.raises(DataError, match="1 series without any value"):
        ot.Imputer(training_steps=1, **QUICK).fit(both, target="y", time="month", series="id")
    with pytest.raises(DataError, match="least to learn from"):
        ot.Imputer(training_steps=1).fit({"t": data["month"][:6], "y": np.arange(6.0)}, target="y", time="t")
    with pytest.raises(InputError, match="steps must be a whole number"):
        imputer.backcast(data, 0)
    with pytest.raises(InputError, match="not fitted"):
        ot.Imputer().impute(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "sqrt"}, "expected one of: auto, none, log"),
        ({"hidden_size": 0}, "hidden_size must be a whole number ≥ 1"),
        ({"backcast_steps": -1}, "backcast_steps must be a whole number ≥ 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"patience": None, "max_time_s": None}, "no end"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ot.Imputer(**options).settings()


# ---------------------------------------------------------------------------------- windows and estimates


def rows_of(data, seasons=(7,), **roles):
    table = table_from_frame(data, SeriesSpec(**{"target": "y", "time": "day", "series": "id", **roles}))
    columns = Columns.fit(table, [s.length for s in table.series])
    return GapRows.of(table, columns, Scaling("none", 0.0, seasons))


@pytest.mark.parametrize("is_edge", [False, True], ids=["gap", "beginning"])
def test_nothing_that_is_hidden_reaches_the_network(is_edge):
    data = ragged(n_series=1, targets=("y", "z"), missing=0.1)
    roles = {"target": ["y", "z"], "observed": "rain", "known": "price"}
    rows = rows_of(data, **roles)
    places = Places.whole(np.array([0]), np.array([5]), 24, rows.lengths)
    hidden = slice(10, 15)
    if is_edge:
        places.begin[:], places.known_from[:] = 5, 15
        hidden = slice(0, 15)
    else:
        places.hidden[0, 5:10] = places.alone[:] = True
    before = window_batch(rows, places, 24)
    # The scales of a row are those of all its values; what is tested is the path through the window.
    for row in rows.values:
        row[hidden] += 100.0
    rows.table.series[0].observed[0 if is_edge else 99 : 15] += 100.0
    after = window_batch(rows, places, 24)
    for name in ("x", "anchors", "prior", "inside"):
        assert torch.equal(before.batch[name], after.batch[name]), name
    assert before.mask.any()
    assert not torch.equal(before.batch.y, after.batch.y)


def test_held_values_are_never_targets_of_training_and_the_position_resumes():
    rows = rows_of(ragged(n_series=5))
    holes = Holes.of(rows, 7, None)
    held = hold_out(rows, holes, 40, np.random.default_rng(0))
    share = 1 - sum(mask.sum() for mask in held.allowed) / sum((~np.isnan(row)).sum() for row in rows.values)
    assert 0.1 < share < 0.5, share
    source = HoleSource(rows, holes, held.allowed, 40, 6, seed=4)
    places = source.draw(np.random.default_rng(1))
    windows = window_batch(rows, places, source.margin, held.allowed)
    for b, t in zip(*np.nonzero(windows.mask), strict=True):
        assert held.allowed[places.rows[b]][places.starts[b] + t]
    batches = iter(source)
    next(batches)
    position = source.state_dict()
    expected = next(batches)
    resumed = HoleSource(rows, holes, held.allowed, 40, 6, seed=4)
    resumed.load_state_dict(position)
    found = next(iter(resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # Two processes take each their half of the batch that one would take.
    parts = []
    for rank in (0, 1):
        one = HoleSource(rows, holes, held.allowed, 40, 6, seed=4)
        one.load_state_dict(position)
        one.set_share(rank, 2)
        parts.append(next(iter(one)))
    assert torch.equal(torch.cat([p.y for p in parts]), torch.cat([expected.y[0::2], expected.y[1::2]]))


def test_beginnings_are_hidden_as_beginnings():
    rows = rows_of(ragged(n_series=2))
    source = HoleSource(rows, Holes.of(rows, 7, 9), [~np.isnan(r) for r in rows.values], 40, 64, seed=0)
    places = source.draw(np.random.default_rng(0))
    edges = places.known_from > 0
    assert 0.3 < edges.mean() < 0.7, edges.mean()
    assert (places.known_from - places.begin)[edges].max() == 9
    windows = window_batch(rows, places, source.margin)
    assert windows.mask[edges, 0].any()
    assert (windows.classes[edges, 0] >= 9).all()


def test_linear_interpolation_by_hand():
    values = np.array([[9.0, 1.0, 9.0, 9.0, 4.0, 9.0], [9.0] * 6])
    visible = np.array([[False, True, False, False, True, False], [False] * 6])
    filled_in = interpolate(values, visible, np.array([0.0, -3.0]))
    assert filled_in.tolist() == [[1.0, 1.0, 2.0, 3.0, 4.0, 4.0], [-3.0] * 6]


def test_seasons_with_a_trend_are_continued_exactly_into_gaps_and_the_past():
    t = np.arange(80)
    truth = (0.5 * t + np.array([3.0, -1.0, 4.0, 0.0, 2.0])[t % 5])[None]
    visible = np.ones((1, 80), dtype=bool)
    visible[0, :7] = visible[0, 30:48] = visible[0, -3:] = False
    shown = np.where(visible, truth, 0.0)
    linear = interpolate(shown, visible, np.zeros(1))
    for estimate in seasonal_neighbours(shown, visible, 5, linear, slice(0, 80), 0)[:2]:
        assert np.allclose(estimate[~visible], truth[~visible]), np.abs(estimate - truth)[~visible]
    nothing = seasonal_neighbours(shown, np.zeros_like(visible), 5, linear, slice(3, 60), 5)
    assert all((estimate == linear[:, 3:60]).all() for estimate in nothing)


def test_lengths_of_gaps_by_hand():
    missing = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1], dtype=bool)
    assert gap_lengths(missing) == (2, [1, 3], 1)
    assert gap_lengths(np.ones(4, dtype=bool)) == (4, [], 0)
