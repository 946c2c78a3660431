"""The preparation of series: one recurrence that training, back-tests, streams and sampled paths share."""

import json

import numpy as np
import pytest

from ostinato.data.memory import PreparedState
from ostinato.data.preparation import Preparation
from ostinato.errors import InputError

H = 9


def table(rows=5, steps=70, seed=0, missing=0.25):
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    y = 20 + 5 * np.sin(2 * np.pi * t / 12) + rng.normal(0, 1, (rows, steps))
    y[rng.random(y.shape) < missing] = np.nan
    y[1, :15] = np.nan
    return y


def fit(y, seasons=(12,), **options):
    return Preparation.fit(list(y), [f"row{r}" for r in range(len(y))], seasons, H, **options)


@pytest.fixture(scope="module")
def prepared():
    y = table()
    preparation = fit(y)
    return y, preparation, preparation.parameters(preparation.row_ids)


def same(first, second, part):
    for name in ("filled", "scale", "level", "trend", "residual", "features"):
        np.testing.assert_array_equal(part(getattr(first, name)), part(getattr(second, name)), err_msg=name)


def test_nothing_looks_ahead(prepared):
    y, preparation, gains = prepared
    changed = y.copy()
    changed[:, 50:] = 1e6
    same(preparation.run(y, gains), preparation.run(changed, gains), lambda a: a[:, :50])


def test_rows_together_equal_each_alone_bitwise(prepared):
    y, preparation, gains = prepared
    whole = preparation.run(y, gains)
    for r in range(len(y)):
        alone = preparation.run(y[r : r + 1], gains.select(np.array([r])))
        same(whole, alone, lambda a, r=r: a[r] if len(a) > 1 else a[0])


def test_chunks_with_carried_state_equal_the_whole_bitwise(prepared):
    y, preparation, gains = prepared
    whole = preparation.run(y, gains)
    state, parts = None, []
    for a, b in ((0, 1), (1, 2), (2, 33), (33, 70)):
        stored = state and PreparedState.from_arrays({k: v.copy() for k, v in state.arrays().items()})
        parts.append(preparation.run(y[:, a:b], gains, stored))
        state = parts[-1].state
    features = np.concatenate([part.features for part in parts], axis=1)
    np.testing.assert_array_equal(features, whole.features)
    for name, array in state.arrays().items():
        np.testing.assert_array_equal(array, whole.state.arrays()[name], err_msg=name)


@pytest.mark.parametrize("at", [0, 1, 11, 12, 40, 69])
def test_anchors_of_a_state_equal_those_of_the_history(prepared, at):
    y, preparation, gains = prepared
    history = preparation.run(y, gains)
    state = preparation.run(y[:, : at + 1], gains).state
    rows = np.arange(len(y))
    from_state = preparation.anchors(state, gains, H)
    from_history = preparation.anchors_at(history, gains, rows, np.full(len(y), at), H)
    np.testing.assert_allclose(from_state, from_history, rtol=1e-12, atol=1e-12)


def test_the_season_anchor_is_the_value_one_season_back():
    y = np.arange(30.0)[None] ** 1.5
    preparation = fit(y, transform="none")
    gains = preparation.parameters(preparation.row_ids)
    anchors = preparation.anchors(preparation.run(y, gains).state, gains, 15)
    season = preparation.anchor_names.index("season_12")
    np.testing.assert_array_equal(anchors[0, :, season], np.concatenate([y[0, 18:30], y[0, 18:21]]))


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e12])
def test_features_do_not_depend_on_the_unit_of_the_values(size):
    y = table(3)
    reference, scaled = fit(y, transform="none"), fit(size * y, transform="none")
    expected = reference.run(y, reference.smoothing).features
    found = scaled.run(size * y, scaled.smoothing).features
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_large_offset_leaves_the_scale_at_the_size_of_the_changes():
    rng = np.random.default_rng(0)
    y = 1e6 + rng.normal(0, 0.01, (1, 80))
    preparation = fit(y, transform="none")
    scale = preparation.run(y, preparation.smoothing).scale[0, -1]
    assert 0.001 < scale < 0.1, scale


@pytest.mark.parametrize(
    "row",
    [
        np.full(40, 7.0),
        np.zeros(40),
        np.concatenate([np.zeros(30), [5.0], np.zeros(9)]),
        np.full(40, 1e12),
        np.array([3.0, 4.0]),
        np.concatenate([np.full(39, np.nan), [2.0]]),
        np.tile([np.nan, 1.0], 20),
    ],
    ids=["constant", "zeros", "one event", "huge constant", "two values", "one value", "every other"],
)
def test_awkward_rows_stay_finite(row):
    preparation = fit(row[None], seasons=(12, 365))
    history = preparation.run(row[None], preparation.smoothing)
    anchors = preparation.anchors(history.state, preparation.smoothing, H)
    for array in (history.features, history.scale, history.filled, anchors, preparation.unit):
        assert np.isfinite(array).all()
    assert (history.scale > 0).all()
    assert np.abs(history.features).max() <= 5


def test_a_quiet_start_does_not_shrink_the_unit_to_nothing():
    """A count series that begins with zeros: its first event must not be a billion units away."""
    y = np.concatenate([np.zeros(50), np.random.default_rng(0).poisson(0.4, 50)]).astype(float)
    preparation = fit(y[None], transform="none", seasons=())
    assert 1 / preparation.run(y[None], preparation.smoothing).scale[0, 49] < 1e4


def test_the_transformation_is_inverted_exactly_and_chosen_where_errors_are_relative():
    rng = np.random.default_rng(2)
    grown = np.exp(0.05 * np.arange(90) + rng.normal(0, 0.1, (2, 90)))
    preparation = fit(grown, seasons=())
    assert preparation.transform == "log"
    np.testing.assert_allclose(preparation.inverse(preparation.forward(grown)), grown, rtol=1e-14)
    plain = fit(grown, seasons=(), transform="none")
    np.testing.assert_array_equal(plain.inverse(plain.forward(grown)), grown)
    assert np.isfinite(preparation.forward(np.array([0.0, -3.0]))).all()
    assert np.isfinite(preparation.inverse(np.array([1e6]))).all()


def test_log_of_values_that_are_not_positive_is_refused():
    with pytest.raises(InputError, match=r"needs positive targets, found 0.*transform='none'"):
        fit(np.array([[1.0, 0.0, 2.0]]), seasons=(), transform="log")
    with pytest.raises(InputError, match=r"'sqrt'.*auto, none, log"):
        fit(np.array([[1.0, 2.0]]), seasons=(), transform="sqrt")


def test_json_round_trip_is_exact(prepared):
    y, preparation, gains = prepared
    again = Preparation.from_json(json.loads(json.dumps(preparation.to_json())))
    same(preparation.run(y, gains), again.run(y, again.parameters(again.row_ids)), lambda a: a)
    np.testing.assert_array_equal(again.unit, preparation.unit)


def test_rows_that_training_did_not_see_use_the_typical_gains(prepared):
    _, preparation, _ = prepared
    gains = preparation.parameters(["row2", "new"])
    assert gains.alpha[0] == preparation.smoothing.alpha[2]
    assert gains.alpha[1] == np.median(preparation.smoothing.alpha)


def test_rows_may_be_mapped_from_a_file(tmp_path):
    y = table(missing=0)
    mapped = np.memmap(tmp_path / "y", dtype=np.float64, mode="w+", shape=y.shape)
    mapped[:] = y
    first, second = fit(y), fit(mapped)
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
