"""Every contestant computes the case, and the check finds those that do not."""

import importlib
import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from ostinato.bench import custom_peers, scan_peers, subjects, torch_loop, torch_peers
from ostinato.bench.cases import GRIDS, LINEAR_CELLS, OWN_CELLS, SCAN, Problem
from ostinato.bench.checking import TOLERANCE, judge, oracle

OPTIONS = sorted({(c.cell, c.mode, c.tag, c.options) for c in GRIDS["options"].cases})


def small(options):
    return tuple((name, 8 if name == "proj_size" else value) for name, value in options)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"B": 1}, {"is_ragged": True}, {"layers": 2, "is_bidirectional": True}],
    ids=["dense", "one row", "ragged", "stack"],
)
def test_ours_and_torch_compute_the_case(case, cell, mode, shape):
    problem = Problem.draw(case(cell=cell, mode=mode, **shape))
    expected = oracle(problem)
    wanted = {"y", *problem.state}
    if mode == "training":
        wanted |= {f"d_{name}" for name in ("x", *problem.state, *problem.parameters)}
    assert set(expected) == wanted
    for one in (subjects.ours(problem, 1), torch_peers.contestant(problem, 1)):
        assert not judge(one, expected).differs, f"{one.name}: {judge(one, expected)}"


@pytest.mark.parametrize(("cell", "mode", "tag", "options"), OPTIONS, ids=str)
def test_ours_and_the_loop_compute_every_option_with_the_same_masks(case, cell, mode, tag, options):
    problem = Problem.draw(case(cell=cell, mode=mode, options=small(options), tag=tag))
    expected = oracle(problem)
    for one in (subjects.ours(problem, 1), torch_loop.loop(problem, 1)):
        assert not judge(one, expected).differs, f"{one.name}: {judge(one, expected)}"


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_oracle_of_options_equals_torch_without_options(case, cell):
    problem = Problem.draw(case(cell=cell))
    found = torch_loop.loop(problem, 1, torch.float64).results()
    for name, value in oracle(problem).items():
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        assert error < 1e-12, f"{name}: {error:.1e}"


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_steps_of_everybody_agree(case, cell):
    problem = Problem.draw(case(cell=cell, mode="step", B=1, T=1))
    expected = oracle(problem)
    assert set(expected) == set(problem.state)
    for one in (*subjects.steppers(problem, 1), torch_peers.contestant(problem, 1)):
        verdict = judge(one, expected)
        assert not verdict.differs, f"{one.name}: {verdict}"
        one.call()
        assert not judge(one, expected).differs, "results() starts from the first state again"


@pytest.mark.parametrize("peer", ["onnxruntime", "jax"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_optional_peers_compute_the_case(case, cell, peer):
    pytest.importorskip(peer)
    module = importlib.import_module(f"ostinato.bench.{ {'onnxruntime': 'onnx', 'jax': 'jax'}[peer] }_peers")
    checked = 0
    for mode in ("inference", "training", "step"):
        sizes = {"B": 1, "T": 1} if mode == "step" else {}
        problem = Problem.draw(case(cell=cell, mode=mode, **sizes))
        one = module.contestant(problem, 1)
        if one is not None:
            assert not judge(one, oracle(problem)).differs, f"{mode}: {judge(one, oracle(problem))}"
            checked += 1
    assert checked == 2, "ONNX Runtime has no training, JAX no steps"
    assert module.contestant(Problem.draw(case(is_ragged=True)), 1) is None


def test_a_wrong_output_a_missing_gradient_and_a_nan_differ(case):
    problem = Problem.draw(case())
    expected = oracle(problem)
    right = subjects.ours(problem, 1)

    def spoiled(change):
        def results():
            found = {name: np.array(value) for name, value in right.results().items()}
            change(found)
            return found

        return judge(replace(right, results=results), expected)

    assert not spoiled(lambda found: None).differs
    far = 2 * TOLERANCE * np.abs(expected["d_x"]).max()
    assert spoiled(lambda found: np.add.at(found["d_x"], (0, 0, 0), far)).worst == "d_x"
    assert spoiled(lambda found: np.add.at(found["d_x"], (0, 0, 0), far)).differs
    assert spoiled(lambda found: found.pop("d_weight_hh_l0")).error == float("inf")
    assert spoiled(lambda found: found["c"].fill(np.nan)).error == float("inf")
    assert spoiled(lambda found: found.update(y=found["y"][:, :-1])).worst == "y"


def test_the_same_seed_draws_the_same_problem_and_states_are_not_zero(case):
    one, same, other = Problem.draw(case()), Problem.draw(case()), Problem.draw(case(), seed=1)
    assert all(np.array_equal(one.parameters[name], same.parameters[name]) for name in one.parameters)
    assert np.array_equal(one.x, same.x)
    assert not np.array_equal(one.x, other.x)
    assert min(np.abs(leaf).max() for leaf in one.state.values()) > 0.1


def test_flops_count_the_products(case):
    assert case(mode="inference").flops() == 2 * 4 * 17 * (5 + 17) * 3 * 7
    assert case(cell="gru").flops() == 3 * 2 * 3 * 17 * (5 + 17) * 3 * 7
    ragged = Problem.draw(case(cell="rnn", mode="inference", is_ragged=True))
    assert ragged.case.flops(ragged.n_steps) == 2 * 17 * (5 + 17) * ragged.lengths.sum()
    projected = case(mode="inference", options=(("proj_size", 8),))
    assert projected.flops() == (2 * 4 * 17 * (5 + 8) + 2 * 17 * 8) * 3 * 7


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_linear_recurrence_and_its_peers_agree(case, mode):
    problem = scan_peers.draw(case(cell=SCAN, mode=mode, D=17))
    expected = oracle(problem)
    wanted = {"y", "h"} | ({"d_x", "d_h", "d_keep"} if mode == "training" else set())
    assert set(expected) == wanted
    has_jax = importlib.util.find_spec("jax") is not None
    found = list(scan_peers.contestants(problem, has_jax=has_jax))
    assert len(found) == 2 + has_jax
    for one in found:
        assert not judge(one, expected).differs, f"{one.name}: {judge(one, expected)}"


@pytest.mark.parametrize("cell", OWN_CELLS)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cells_of_users_compute_the_case(case, cell, mode):
    problem = custom_peers.draw(case(cell=cell, mode=mode))
    expected = oracle(problem)
    first, plain, loop = custom_peers.contestants(problem, 1, "plain")
    for one in (first, loop):
        assert not judge(one, expected).differs, f"{one.name}: {judge(one, expected)}"
    assert plain.name == "plain"
    assert len(expected) == len(problem.state) + 1 + (mode == "training") * (
        1 + len(problem.state) + len(problem.parameters)
    )


@pytest.mark.parametrize("cell", sorted(LINEAR_CELLS))
def test_layers_of_linear_recurrences_compute_the_case(case, cell):
    problem = Problem.draw(case(cell=cell, H=16, D=16))
    one = subjects.ours(problem, 1)
    assert not judge(one, oracle(problem)).differs, f"{judge(one, oracle(problem))}"
