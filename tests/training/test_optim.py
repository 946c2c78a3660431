"""Optimizers by name, parameter groups, schedules and averages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ostinato.errors import InputError
from ostinato.training.loop import train
from ostinato.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    AveragedWeights,
    Schedule,
    make_optimizer,
    parameter_groups,
)
from ostinato.training.settings import TrainingSettings


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(3, 4, num_layers=2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.initial_h = nn.Parameter(torch.zeros(2, 4))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_trains(programs, name):
    model = programs.Net(dropout=0.0)
    before = model.out.weight.detach().clone()
    options = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    settings = TrainingSettings(epochs=2, optimizer=name, weight_decay=0.01, optimizer_options=options)
    history = train(model, programs.batches(), settings, progress="quiet")
    assert history.skipped_steps == 0
    assert not torch.equal(before, model.out.weight)


def test_unknown_optimizers_and_options():
    with pytest.raises(InputError, match=r"optimizer 'adan' is not known; known: adadelta, .*mean 'adam'"):
        make_optimizer(Model(), TrainingSettings(optimizer="adan"))
    with pytest.raises(InputError, match=r"option of optimizer 'sgd' 'beta' is not known; known: momentum"):
        make_optimizer(Model(), TrainingSettings(optimizer="sgd", optimizer_options={"beta": 1}))
    with pytest.raises(InputError, match="refused its options"):
        make_optimizer(Model(), TrainingSettings(optimizer_options={"betas": (2.0, 0.9)}))


def by_name(model, settings):
    groups = parameter_groups(model, settings)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["weight_decay"], g["lr"]) for g in groups for p in g["params"]}


def test_decay_is_for_matrices_only():
    found = by_name(Model(), TrainingSettings(weight_decay=0.1))
    decaying = {name for name, (decay, _) in found.items() if decay}
    matrices = {f"encoder.weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)}
    assert decaying == matrices | {"head.weight"}


def test_rate_factors_by_longest_prefix_and_freezing():
    factors = {"encoder": 0.1, "encoder.weight_ih_l0": 0.5, "norm.": 0.0}
    found = by_name(Model(), TrainingSettings(learning_rate=0.2, learning_rate_factors=factors))
    assert found["encoder.bias_hh_l1"][1] == pytest.approx(0.02)
    assert found["encoder.weight_ih_l0"][1] == pytest.approx(0.1)
    assert found["head.weight"][1] == 0.2
    assert "norm.weight" not in found
    with pytest.raises(
        InputError, match="no trainable parameter begins with 'encode'; the model has: initial_h"
    ):
        by_name(Model(), TrainingSettings(learning_rate_factors={"encode": 0.1}))
    with pytest.raises(InputError, match="must be a number ≥ 0, got -1"):
        by_name(Model(), TrainingSettings(learning_rate_factors={"head": -1}))
    with pytest.raises(InputError, match="no parameter to train"):
        by_name(Model().requires_grad_(False), TrainingSettings())


def test_a_frozen_layer_does_not_move(programs):
    model = programs.Net()
    before = [p.detach().clone() for p in model.rnn.parameters()]
    settings = TrainingSettings(epochs=2, learning_rate_factors={"rnn": 0})
    train(model, programs.batches(), settings, progress="quiet")
    assert all(torch.equal(a, b) for a, b in zip(before, model.rnn.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def factors(steps=100, **changes):
    schedule = Schedule(TrainingSettings(steps=steps, **changes))
    return [schedule.factor(step, 0.0, 0.0) for step in range(steps + 1)]


def test_schedule_shapes():
    assert set(factors(schedule="constant")) == {1.0}
    linear = factors(schedule="linear", final_factor=0.2)
    assert linear[0] == 1.0
    assert linear[50] == pytest.approx(0.6)
    assert linear[100] == pytest.approx(0.2)
    cosine = factors(schedule="cosine")
    assert (cosine[0], cosine[50], cosine[100]) == pytest.approx((1.0, 0.5, 0.0), abs=1e-12)
    step = factors(schedule="step", decay_every_steps=30, decay_factor=0.5)
    assert [step[i] for i in (0, 29, 30, 59, 60, 90)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]
    cycle = factors(schedule="one_cycle")
    assert cycle[0] == pytest.approx(1 / 25)
    assert max(cycle) == cycle[30] == pytest.approx(1.0)
    assert cycle[100] == pytest.approx(1 / 25e4)
    warm = factors(schedule="constant", warmup_steps=4)
    assert warm[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_schedule_units():
    def factor(step, epoch, elapsed_s, **changes):
        return Schedule(TrainingSettings(schedule="linear", **changes)).factor(step, epoch, elapsed_s)

    assert factor(50, 0, 0, schedule_steps=200, steps=60) == 0.75
    assert factor(0, 1.5, 0, schedule_epochs=3, epochs=2) == 0.5
    assert factor(0, 1.5, 99, epochs=2, max_time_s=100) == 0.25
    assert factor(7, 1.5, 30, max_time_s=120) == 0.75
    assert factor(999, 0, 0, steps=100) == 0.0
    epochs = Schedule(TrainingSettings(schedule="step", decay_every_epochs=2, epochs=9))
    assert epochs.factor(5, 3.9, 0) == pytest.approx(0.1)
    with pytest.raises(InputError, match="needs its length"):
        Schedule(TrainingSettings(schedule="cosine", patience_validations=2))
    with pytest.raises(InputError, match="needs decay_every_steps or decay_every_epochs"):
        Schedule(TrainingSettings(schedule="step"))
    with pytest.raises(InputError, match=r"schedule 'cosin' is not known; known: .*did you mean 'cosine'"):
        Schedule(TrainingSettings(schedule="cosin"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_reaches_the_history(programs, name):
    changes = {"decay_every_epochs": 2} if name == "step" else {}
    settings = TrainingSettings(epochs=4, schedule=name, log_every_steps=1, plateau_validations=2, **changes)
    history = train(
        programs.Net(), programs.batches(), settings, validate=lambda model: {"loss": 1.0}, progress="quiet"
    )
    rates = [rate / settings.learning_rate for rate in history["learning_rate"]]
    if name == "plateau":
        # Validations 2 and 3 do not improve on the first.
        assert rates == pytest.approx([1.0] * 15 + [0.1] * 5)
    elif name == "step":
        assert rates == pytest.approx([1.0] * 10 + [0.1] * 10)
    else:
        schedule = Schedule(settings)
        expected = [schedule.factor(step, step / 5, 0.0) for step in range(20)]
        assert rates == pytest.approx(expected)


def test_averages():
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    swa = AveragedWeights([parameter], TrainingSettings(averaging="swa", averaging_start_steps=2))
    ema = AveragedWeights([parameter], TrainingSettings(averaging="ema", averaging_decay=0.5))
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 3.0, 7.0, 5.0], 1):
        parameter.data.fill_(value)
        swa.update(step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert swa.average[0].tolist() == [5.0, 5.0]
    assert ema.average[0].tolist() == pytest.approx([expected, expected])
    swa.swap()
    assert parameter.tolist() == [5.0, 5.0]
    swa.swap()
    assert parameter.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_the_averaged_weights_are_validated_and_kept(programs, averaging):
    plain, averaged = programs.Net(), programs.Net()
    seen = []

    def validate(model):
        seen.append(model.out.weight.detach().clone())
        return {"loss": -len(seen)}

    train(plain, programs.batches(), TrainingSettings(epochs=3), progress="quiet")
    settings = TrainingSettings(epochs=3, averaging=averaging, averaging_decay=0.9)
    train(averaged, programs.batches(), settings, validate=validate, progress="quiet")
    assert torch.equal(averaged.out.weight, seen[-1])
    assert not torch.equal(averaged.out.weight, plain.out.weight)
    assert math.isfinite(averaged.out.weight.sum().item())
