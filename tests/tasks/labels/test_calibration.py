"""Temperatures, calibration errors, folds."""

from __future__ import annotations

import numpy as np
import pytest

from ostinato.errors import InputError
from ostinato.tasks.labels.calibration import Calibration, calibration_error
from ostinato.tasks.labels.splitting import Held, fold_out, folds, hold_out


def shares(N: int, K: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that mean what they say, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(K), N)
    y = np.array([rng.choice(K, p=row) for row in p])
    return p, y


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature):
    p, y = shares(4000, 4)
    # What says p too surely by this factor: its own temperature undoes it.
    said = p ** (temperature)
    said /= said.sum(axis=1, keepdims=True)
    found = Calibration.fit(said, y)
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    np.testing.assert_allclose(found.apply(said).sum(axis=1), 1.0)
    assert found.error_after < 0.03
    if temperature != 1.0:
        assert found.error_before > 2 * found.error_after
    assert Calibration.from_json(found.to_json()) == found


def test_few_examples_without_a_mistake_move_it_little():
    p = np.tile([0.8, 0.2], (5, 1))
    found = Calibration.fit(p, np.zeros(5, np.int64))
    assert 0.5 < found.temperature < 1.0
    assert Calibration.fit(p[:0], np.zeros(0, np.int64)).temperature == 1.0


def test_a_probability_of_zero_is_no_trouble():
    found = Calibration.fit(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert np.isfinite(found.apply(np.array([[1.0, 0.0]]))).all()


def test_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    y = np.array([0, 1, 0, 1])
    # Bins of 1/15: {.9, .9} right half the time, {.6}, {.7} each right.
    assert calibration_error(p, y) == pytest.approx((2 * 0.4 + 0.4 + 0.3) / 4)
    assert np.isnan(calibration_error(p[:0], y[:0]))


@pytest.mark.parametrize("N", [10, 57, 200])
def test_folds_are_fair(N):
    strata = np.array(["a", "b", "b"] * N)[:N]
    own = folds(N, 5, 3, strata)
    counts = np.bincount(own, minlength=5)
    assert counts.max() - counts.min() <= 1
    for stratum in "ab":
        within = np.bincount(own[strata == stratum], minlength=5)
        assert within.max() - within.min() <= 2
    assert (folds(N, 5, 3, strata) == own).all()
    assert (folds(N, 5, 4, strata) != own).any()


def test_a_stratum_of_one_is_learned_from():
    strata = ["rare", *["a", "b"] * 20]
    for seed in range(20):
        assert 0 in hold_out(41, 0.1, seed, strata).learned
        assert 0 not in fold_out(41, 5, 5, seed, strata).checked
    held = hold_out(41, 0.1, 0, strata)
    assert sorted([*held.learned, *held.checked]) == list(range(41))
    assert held.folds is None
    several = fold_out(41, 2, 10, 0, strata)
    assert len(several.learned) == 41
    assert several.folds is not None
    assert (several.folds_of(several.checked) < 2).all()
    assert len(Held.none(4).checked) == 0


def test_nothing_to_hold_out():
    with pytest.raises(InputError, match="too few to hold out"):
        hold_out(2, 0.1, 0, ["a", "b"])


@pytest.mark.parametrize("n", [2, 5, 9, 30])
def test_one_of_a_few_is_held_out_whatever_the_seed(n):
    for seed in range(10):
        assert len(hold_out(n, 0.1, seed).checked) == max(1, n // 10)


@pytest.mark.parametrize("fraction", [0.03, 0.1, 1 / 3, 0.4, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("strata", [None, ["a"] * 61 + ["b"] * 140])
def test_as_much_is_held_out_as_was_asked_for(fraction, strata):
    for seed in range(5):
        held = hold_out(201, fraction, seed, strata)
        assert abs(len(held.checked) - 201 * fraction) < 1
        assert sorted([*held.learned, *held.checked]) == list(range(201))
        if strata is not None:
            assert abs((held.checked < 61).sum() - 61 * fraction) < 2


def test_every_stratum_is_learned_from():
    strata = [label for label in "abcdefgh" for _ in range(2)]
    for seed in range(10):
        assert {strata[i] for i in hold_out(16, 0.9, seed, strata).learned} == set("abcdefgh")
