"""Random masks: their statistics, and what they do and do not depend on."""

from __future__ import annotations

import math

import pytest
import torch

import ostinato as ot
from ostinato.layers.dropout import Clock, Kind, reset_mask_key, set_mask_key

B, T, D, H = 64, 50, 5, 40


def _clock(key=1, rows=None, start=0, n_steps=T, episodes=None):
    row = torch.arange(B) if rows is None else torch.tensor(rows)
    t = (start + torch.arange(n_steps)).expand(len(row), n_steps)
    episode = torch.zeros(len(row), 1, dtype=torch.int64) if episodes is None else episodes
    return Clock(torch.full((len(row),), key, dtype=torch.int64), row, t, episode)


def _keep(clock, kind=Kind.INPUT, layer=0, direction=0, p=0.3, width=H, is_variational=False):
    return clock.keep(kind, layer, direction, width, p, is_variational=is_variational)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_masks_have_their_rate_and_no_correlation(p):
    dropped = (~_keep(_clock(), p=p)).double()
    n = dropped.numel()
    error = abs(dropped.mean().item() - p) / math.sqrt(p * (1 - p) / n)
    assert error < 4.5, f"rate is {error:.1f} standard deviations off"
    centred = (dropped - p) / math.sqrt(p * (1 - p))
    for axis in range(3):
        shape = centred.movedim(axis, 0)
        for lag in (1, 2, 16, 32):
            product = (shape[lag:] * shape[:-lag]).mean().item() * math.sqrt(shape[lag:].numel())
            assert abs(product) < 5, (
                f"axis {axis}, lag {lag}: correlation of {product:.1f} standard deviations"
            )


def test_every_part_of_the_key_changes_the_mask():
    base = _keep(_clock())
    others = [
        _keep(_clock(key=2)), _keep(_clock(key=1 + 2**40)), _keep(_clock(), kind=Kind.OUTPUT),
        _keep(_clock(), layer=1), _keep(_clock(), direction=1), _keep(_clock(start=1)),
        _keep(_clock(rows=range(B, 2 * B))), _keep(_clock(rows=[b + 2**35 for b in range(B)])),
        _keep(_clock(episodes=torch.ones(B, 1, dtype=torch.int64))),
    ]  # fmt: skip
    for i, other in enumerate(others):
        share = (base != other).double().mean().item()
        assert abs(share - 2 * 0.3 * 0.7) < 0.02, f"part {i}: {share:.2f} of the bits differ, expected 0.42"


def test_masks_depend_on_what_they_are_for_only():
    whole = _keep(_clock())
    assert torch.equal(_keep(_clock(rows=[9, 3])), whole[[9, 3]])
    assert torch.equal(_keep(_clock(start=20, n_steps=5)), whole[:, 20:25])
    assert torch.equal(_keep(_clock(), width=11), whole[..., :11])
    variational = _keep(_clock(), is_variational=True)
    assert variational.shape == (B, 1, H)
    assert torch.equal(_keep(_clock(start=7), is_variational=True), variational)


def test_variational_masks_change_at_a_reset_only():
    episodes = torch.zeros(B, T, dtype=torch.int64)
    episodes[0, 10:] = 1
    mask = _keep(_clock(episodes=episodes), is_variational=True)
    assert (mask == mask[:, :1]).all(dim=2).sum() == B * T - (T - 10)
    assert (mask[0, 10:] == mask[0, 10]).all()


@pytest.fixture
def layer():
    return ot.GRU(D, H, 2, dropout_in=0.2, dropout_between=0.3, dropout_recurrent=0.4, weight_drop=0.2)


def test_a_set_key_decides_and_an_unset_one_is_drawn(layer):
    x = torch.randn(3, 4, D)
    set_mask_key(layer, seed=1, step=5)
    one = layer(x).y
    assert torch.equal(one, layer(x).y)
    for seed, step in ((1, 6), (2, 5), (5, 1)):
        set_mask_key(layer, seed, step)
        assert not torch.equal(one, layer(x).y), f"seed {seed}, step {step} gives the masks of 1, 5"
    set_mask_key(torch.nn.Sequential(layer), 1, 5)
    assert torch.equal(one, layer(x).y)
    reset_mask_key(layer)
    torch.manual_seed(3)
    first, second = layer(x).y, layer(x).y
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, layer(x).y)


def test_the_state_carries_row_and_time_in_training_only(layer):
    x = torch.randn(3, 4, D)
    out = layer(x, lengths=[4, 0, 2])
    assert out.state.row.tolist() == [0, 1, 2]
    assert out.state.t.tolist() == [4, 0, 2]
    resets = torch.zeros(3, 4, dtype=torch.bool)
    resets[1, 2] = True
    assert layer(x, out.state, resets=resets).state.episode.tolist() == [0, 1, 0]
    named = layer.initial_state(2, rows=[7, 70])
    assert named.row.tolist() == [7, 70]
    layer.eval()
    assert set(layer(x).state) == {"h"}
    carried = layer(x, out.state).state
    assert carried.t.tolist() == [8, 4, 6]


def test_a_new_key_replaces_the_one_in_a_carried_state(layer):
    x = torch.randn(3, 4, D)
    set_mask_key(layer, 0, 1)
    state = layer(x).state
    one = layer(x, state).y
    set_mask_key(layer, 0, 2)
    assert not torch.equal(one, layer(x, state).y)


def test_dropout_keeps_the_expectation():
    layer = ot.RNN(D, H, dropout_out=0.4)
    x = torch.randn(2, 3, D)
    mean = torch.stack([layer(x).y for _ in range(600)]).mean(0)
    exact = layer.eval()(x).y
    assert (mean - exact).abs().mean() < 0.03, (mean - exact).abs().mean().item()


def test_zoneout_keeps_the_old_value_at_its_rate():
    layer = ot.LSTM(D, H, zoneout_h=0.25, zoneout_c=0.5)
    x = torch.randn(200, 1, D)
    start = layer.initial_state(200).map(
        lambda leaf: torch.randn_like(leaf) if leaf.is_floating_point() else leaf
    )
    out = layer(x, start)
    for name, rate in (("h", 0.25), ("c", 0.5)):
        kept = (out.state[name] == start[name]).double().mean().item()
        assert abs(kept - rate) < 4.5 * math.sqrt(rate * (1 - rate) / (200 * H)), f"{name}: {kept:.3f}"
