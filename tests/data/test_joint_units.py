"""Joint units: all ways to cut a pair, and learning the true one."""

import itertools
import random

import numpy as np
import pytest

from ostinato.data import joint_units
from ostinato.data.joint_units import JointUnits, can_be_joined

CIPHER = {2: (7,), 3: (9,), 4: (), 5: (8, 9), 6: (2,), 7: (3,)}  # 4 is silent, 5 is two sounds


def rows(*lists):
    return [np.array(row, np.int32) for row in lists]


def cipher(n, seed=0):
    draw = random.Random(seed)
    sources = [
        [draw.choice([2, 2, 3, 3, 4, 5, 6, 6, 7]) for _ in range(draw.randint(2, 8))] for _ in range(n)
    ]
    targets = [[sound for letter in word for sound in CIPHER[letter]] for word in sources]
    return rows(*sources), rows(*targets)


def ways(source, target):
    """Every way to cut a pair, as joint units."""
    for sizes in itertools.product(range(3), repeat=len(source)):
        if sum(sizes) == len(target):
            ends = np.cumsum([0, *sizes]).tolist()
            yield [(s, *target[a:b]) for s, (a, b) in zip(source, itertools.pairwise(ends), strict=True)]


def test_silent_and_doubled_units_are_found():
    sources, targets = cipher(300)
    units, cuts = JointUnits.fit(sources, targets, seed=0)
    found = {(row[0], tuple(u for u in row[1:] if u)) for row in units.table.tolist()}
    assert found == set(CIPHER.items())
    for source, target, cut in zip(sources, targets, cuts, strict=True):
        joined = units.table[cut]
        assert joined[:, 0].tolist() == source.tolist()
        assert [u for u in joined[:, 1:].ravel().tolist() if u] == target.tolist()


def test_all_ways_to_cut_are_summed():
    size, pairs = (
        10,
        [([2, 3, 2], [7, 9, 7]), ([3, 3, 4], [9]), ([2, 4, 4], [8, 9, 7, 7, 2, 1]), ([5, 5, 5], [])],
    )
    sources, targets = rows(*(s for s, _ in pairs)), rows(*(t for _, t in pairs))
    lattice = joint_units._Lattice(sources, targets, np.arange(4), size)
    codes = lattice.different()
    lattice.look_up(codes)
    log_p = np.log(np.random.default_rng(0).dirichlet(np.ones(len(codes))))
    number = {code: i for i, code in enumerate(codes.tolist())}

    def numbers(way):
        return [number[(u[0] * size + [*u, 0][1]) * size + [*u, 0, 0][2]] for u in way]

    counts, wanted = np.zeros(len(codes)), np.zeros(len(codes))
    lattice.count(log_p, counts)
    totals, best = lattice.totals(log_p), lattice.best(log_p)
    for i, (source, target) in enumerate(pairs):
        each = [numbers(way) for way in ways(source, target)]
        p = np.exp([log_p[way].sum() for way in each])
        assert totals[i] == pytest.approx(np.log(p.sum()))
        assert best[i].tolist() == each[int(p.argmax())]
        for way, share in zip(each, p / p.sum(), strict=True):
            np.add.at(wanted, way, share)
    np.testing.assert_allclose(counts, wanted)


def test_pairs_that_cannot_be_cut_are_told_and_blocks_change_nothing(monkeypatch):
    sources, targets = cipher(60)
    sources, targets = sources + rows([2], []), targets + rows([7, 7, 7], [7])
    units, cuts = JointUnits.fit(sources, targets, seed=1)
    assert [cut is None for cut in cuts] == [False] * 60 + [True] * 2
    assert can_be_joined(np.array([1, 1, 0]), np.array([2, 3, 0])).tolist() == [True, False, False]
    monkeypatch.setattr(joint_units, "_BLOCK_CELLS", 50)
    again, same = JointUnits.fit(sources, targets, seed=1)
    np.testing.assert_array_equal(again.table, units.table)
    assert all(np.array_equal(a, b) for a, b in zip(cuts[:60], same[:60], strict=True))
    none, nothing = JointUnits.fit(rows([2]), rows([7, 7, 7]), seed=0)
    assert none.table.shape == (0, 3)
    assert nothing == [None]


def test_a_part_is_enough_to_learn_from(monkeypatch):
    monkeypatch.setattr(joint_units, "_MOST_PAIRS", 200)
    sources, targets = cipher(300)
    # Only one pair has this unit, and EM may not have seen it.
    sources, targets = sources + rows([2, 8, 3]), targets + rows([7, 5, 9])
    units, cuts = JointUnits.fit(sources, targets, seed=0)
    assert units.table[cuts[-1]].tolist() == [[2, 7, 0], [8, 5, 0], [3, 9, 0]]
