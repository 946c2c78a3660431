"""The loop equals a bare PyTorch loop, keeps its budgets, validates, and ends with the best weights."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from ostinato.errors import InputError
from ostinato.training import events
from ostinato.training.history import read_history
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch, LossOutput


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def fit(model, source, validate=None, listeners=(), **changes):
    return train(
        model, source, TrainingSettings(**changes), validate=validate, listeners=listeners, progress="quiet"
    )


class Recorder:
    def __init__(self):
        self.events = []

    def notify(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def bare_loop(model, data, optimizer, epochs, clip_norm=None):
    """What the loop has to equal: the mean over valid targets, clipped as torch clips."""
    losses = []
    for batch in data * epochs:
        optimizer.zero_grad()
        output = model.loss(batch)
        loss = output.total / output.count
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("adam", {}, lambda p: torch.optim.Adam(p, lr=0.01)),
        ("sgd", {"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        ("rmsprop", {"alpha": 0.9}, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9)),
    ],
)
def test_equals_a_bare_loop(programs, clip_norm, name, options, make):
    data = programs.batches(ragged=True, dtype=torch.float64)
    ours, bare = (programs.Net(dropout=0.0, dtype=torch.float64) for _ in range(2))
    history = fit(
        ours, data, epochs=3, optimizer=name, optimizer_options=options, learning_rate=0.01,
        clip_norm=clip_norm, log_every_steps=1,
    )  # fmt: skip
    losses = bare_loop(bare, data, make(bare.parameters()), 3, clip_norm)
    difference = (weights(ours) - weights(bare)).abs().max().item()
    assert difference < 1e-12, f"weights differ by {difference}"
    np.testing.assert_allclose(history["train_loss"], losses, rtol=1e-12)


def test_accumulation_equals_one_large_ragged_batch(programs):
    data = programs.batches(4, ragged=True, dtype=torch.float64)
    pairs = [
        Batch((name, torch.cat([a[name], b[name]])) for name in a)
        for a, b in zip(data[::2], data[1::2], strict=True)
    ]
    ours, whole = (programs.Net(dropout=0.0, dtype=torch.float64) for _ in range(2))
    fit(ours, data, epochs=3, accumulate=2)
    history = fit(whole, pairs, epochs=3)
    assert history.steps == 6
    difference = (weights(ours) - weights(whole)).abs().max().item()
    assert difference < 1e-12, f"weights differ by {difference}"


def test_an_odd_number_of_batches_ends_the_epoch_with_a_smaller_step(programs):
    history = fit(programs.Net(), programs.batches(5), epochs=2, accumulate=2)
    assert (history.steps, history.epochs) == (6, 2)


def test_budgets_in_epochs_and_steps(programs):
    data = programs.batches(5)
    assert (h := fit(programs.Net(), data, epochs=2)).steps == 10
    assert h.stopped == "epochs"
    assert (h := fit(programs.Net(), data, steps=7)).steps == 7
    assert (h.stopped, h.epochs) == ("steps", 1)
    assert fit(programs.Net(), data, steps=7, epochs=1).stopped == "epochs"
    with pytest.raises(InputError, match="has no end"):
        fit(programs.Net(), data)


def test_an_endless_source_with_steps(programs):
    history = fit(programs.Net(), itertools.cycle(programs.batches(3)), steps=20)
    assert (history.steps, history.epochs, history.stopped) == (20, 0, "steps")


class VirtualTime:
    """A clock that only what happens moves on: a little at each look, and as long as one says."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        monkeypatch.setattr(time, "monotonic", self.look)

    def look(self):
        self.now_s += 1e-3
        return self.now_s

    def validation(self, lasts_s):
        calls = []

        def slow(model):
            calls.append(self.now_s)
            self.now_s += lasts_s
            return {"loss": 1.0 / len(calls)}

        return slow


def test_a_time_budget_bounds_validation_too(programs, monkeypatch):
    clock = VirtualTime(monkeypatch)
    slow = clock.validation(0.15)
    history = fit(programs.Net(), programs.batches(200), slow, max_time_s=1.0, validate_every_epochs=1)
    spent_s = clock.now_s - 100.0
    assert 0.7 < spent_s < 1.0, f"took {spent_s:.3f} s"
    assert history.stopped == "time"
    assert history.steps > 5
    # The last weights were validated before the time ran out.
    assert history["step"][-1] == history.steps
    assert not math.isnan(history["loss"][-1])


def test_a_time_budget_finds_out_what_a_validation_costs(programs, monkeypatch):
    clock = VirtualTime(monkeypatch)
    slow = clock.validation(0.4)
    history = fit(
        programs.Net(), itertools.cycle(programs.batches(3)), slow, max_time_s=1.5, validate_every_epochs=None
    )
    spent_s = clock.now_s - 100.0
    assert 0.7 < spent_s < 1.5, f"took {spent_s:.3f} s"
    assert history.best_step is not None


def scripted(values):
    """A validation with given results; remembers the weights it saw."""
    seen = []

    def validate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(weights(model).clone())
        return {"loss": values[len(seen) - 1]}

    return validate, seen


def test_early_stopping_restores_the_best_weights(programs):
    validate, seen = scripted([5.0, 3.0, 4.0, 2.0, 2.5, 3.0, 2.1, 0.0])
    model = programs.Net()
    history = fit(model, programs.batches(), validate, patience_validations=3)
    assert (history.stopped, history.epochs) == ("patience", 7)
    assert (history.best, history.best_step) == (2.0, 20)
    assert torch.equal(weights(model), seen[3])
    assert not model.training


def test_without_restore_best_the_last_weights_stay(programs):
    validate, seen = scripted([5.0, 3.0, 4.0])
    model = programs.Net()
    fit(model, programs.batches(), validate, epochs=3, restore_best=False)
    assert torch.equal(weights(model), seen[2])


def test_min_delta_spends_patience_but_small_gains_still_give_the_best_weights(programs):
    validate, seen = scripted([5.0, 4.95, 4.92, 4.0])
    model = programs.Net()
    history = fit(model, programs.batches(), validate, patience_validations=2, min_delta=0.1)
    assert history.epochs == 3
    assert history.best == 4.92
    assert torch.equal(weights(model), seen[2])


def test_a_metric_that_is_not_a_number_is_never_the_best(programs):
    validate, seen = scripted([math.nan, 2.0, math.nan, math.nan])
    model = programs.Net()
    history = fit(model, programs.batches(), validate, patience_validations=2)
    assert (history.epochs, history.best) == (4, 2.0)
    assert torch.equal(weights(model), seen[1])


def test_the_untrained_model_takes_part(programs):
    validate, seen = scripted([1.0, 2.0, 3.0])
    model = programs.Net()
    untrained = weights(model).clone()
    history = fit(model, programs.batches(), validate, epochs=2, validate_first=True)
    assert (history.best, history.best_step) == (1.0, 0)
    assert torch.equal(weights(model), untrained)
    assert torch.equal(seen[0], untrained)
    assert history.row(0) == {"step": 0, "epoch": 0, "loss": 1.0} | {"elapsed_s": history["elapsed_s"][0]}


def test_mode_max_and_an_unknown_monitor(programs):
    validate, _ = scripted([1.0, 3.0, 2.0])
    history = fit(programs.Net(), programs.batches(), validate, epochs=3, mode="max")
    assert history.best == 3.0
    with pytest.raises(InputError, match=r"monitor='accuracy' is not among.*loss"):
        fit(programs.Net(), programs.batches(), scripted([1.0])[0], epochs=1, monitor="accuracy")


def test_validation_does_not_disturb_training(programs):
    def noisy(model):
        torch.rand(7), np.random.rand(3), random.random()  # noqa: NPY002
        return {"loss": 1.0}

    plain, watched = programs.Net(), programs.Net()
    fit(plain, programs.batches(), epochs=2)
    fit(watched, programs.batches(), noisy, epochs=2, validate_every_steps=1, restore_best=False)
    assert torch.equal(weights(plain), weights(watched))


def test_the_seed_decides_and_the_caller_keeps_his_random_state(programs):
    models = [programs.Net(dropout=0.5) for _ in range(3)]
    torch.manual_seed(11)
    random.seed(11)
    expected = torch.rand(3), random.random()
    torch.manual_seed(11)
    random.seed(11)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fit(model, programs.batches(), epochs=1, seed=seed)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_bf16_autocast_keeps_float32_weights(programs):
    seen = []

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def loss(self, batch, state=None):
            y = self.linear(batch["x"])
            seen.append(y.dtype)
            return LossOutput(y.float().pow(2).sum(), torch.tensor(y.numel()))

    model = Casting()
    fit(model, programs.batches(2), epochs=1, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert model.linear.weight.dtype == torch.float32
    fit(model, programs.batches(2), epochs=1)
    assert seen[-1] == torch.float32


def test_masks_are_keyed_once_per_step(programs):
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys = []

        def set_mask_key(self, seed, step):
            self.keys.append((seed, step))

    model = programs.Net()
    model.inner = nn.Sequential(Keyed(), Keyed())
    fit(model, programs.batches(4), epochs=2, accumulate=2, seed=9)
    assert model.inner[0].keys == [(9, step) for step in range(4)]
    assert model.inner[1].keys == model.inner[0].keys


def test_history_file_and_events(programs, tmp_path):
    recorder = Recorder()
    validate, _ = scripted([3.0, 2.0])
    history = train(
        programs.Net(), programs.batches(5), TrainingSettings(epochs=2, log_every_steps=2), validate=validate,
        folder=tmp_path / "run", listeners=[recorder], progress="quiet",
    )  # fmt: skip
    assert history["step"] == [2, 4, 5, 6, 8, 10]
    assert history["epoch"] == [0, 0, 1, 1, 1, 2]
    assert history.columns == (
        "step", "epoch", "elapsed_s", "train_loss", "learning_rate", "grad_norm", "loss",
    )  # fmt: skip
    on_disk = read_history(tmp_path / "run" / "history.csv")
    for name in history.columns:
        np.testing.assert_array_equal(on_disk[name], history[name], err_msg=name)
    assert [event.step for event in recorder.of(events.StepEnded)] == list(range(1, 11))
    assert [event.is_best for event in recorder.of(events.Validated)] == [True, True]
    (ended,) = recorder.of(events.Ended)
    assert (ended.reason, ended.step, ended.best, ended.best_step) == ("epochs", 10, 2.0, 10)
    assert recorder.of(events.Started)[0].steps_per_epoch == 5
    assert recorder.of(events.CheckpointWritten)[-1].step == 10
    # A row's loss is the mean per target over its steps.
    losses = [event.loss for event in recorder.of(events.StepEnded)]
    np.testing.assert_allclose(history["train_loss"][0], np.mean(losses[:2]), rtol=1e-6)


def test_batches_without_targets_change_nothing(programs):
    data = programs.batches(4, ragged=True)
    empty = Batch({name: value.clone() for name, value in data[0].items()})
    empty["lengths"] = torch.zeros_like(empty["lengths"])
    ours, plain = programs.Net(dropout=0.0), programs.Net(dropout=0.0)
    history = fit(ours, [data[0], empty, Batch(), data[1]], epochs=1)
    fit(plain, data[:2], epochs=1)
    assert history.steps == 4
    assert torch.equal(weights(ours), weights(plain))
    assert torch.isfinite(torch.tensor(history["train_loss"])).all()


def test_wrong_arguments(programs):
    data = programs.batches(2)
    with pytest.raises(InputError, match=r"must be an nn.Module with loss"):
        fit(nn.Linear(2, 2), data, epochs=1)
    with pytest.raises(InputError, match="patience_validations needs the argument validate"):
        fit(programs.Net(), data, patience_validations=2)
    with pytest.raises(InputError, match="needs validations"):
        fit(programs.Net(), data, scripted([])[0], patience_validations=2, validate_every_epochs=None)
    with pytest.raises(InputError, match=r"no batch in epoch 1"):
        fit(programs.Net(), [], epochs=1)
    with pytest.raises(InputError, match="yielded no batch in epoch 2"):
        fit(programs.Net(), iter(data), epochs=2)
    with pytest.raises(InputError, match=r"has no state_dict"):
        train(programs.Net(), iter(data), TrainingSettings(epochs=1), folder="unused", progress="quiet")
    with pytest.raises(InputError, match=r"'loud' is not known; known: auto, bar"):
        train(programs.Net(), data, TrainingSettings(epochs=1), progress="loud")
    with pytest.raises(InputError, match="'cuda' cannot be used"):
        train(programs.Net(), data, TrainingSettings(epochs=1), device="cuda", progress="quiet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs must be a whole number ≥ 1, got 0"),
        ({"steps": 1.5}, r"steps must be a whole number ≥ 1, got 1\.5"),
        ({"learning_rate": -1.0}, r"learning_rate must be a number > 0, got -1\.0"),
        ({"learning_rate": None}, r"learning_rate must be a number > 0, got None"),
        ({"averaging_decay": 2}, r"averaging_decay must be a number from 0 to 1, got 2"),
        ({"averaging": "emma"}, r"averaging 'emma' is not known; known: none, ema, swa; did you mean 'ema'"),
        ({"mode": "lowest"}, r"mode 'lowest' is not known; known: min, max"),
        ({"precision": "fp16"}, r"precision 'fp16' is not known; known: full, bf16"),
        ({"tbptt_backward_steps": 4}, r"needs tbptt_steps"),
        ({"tbptt_steps": 4, "tbptt_backward_steps": 6}, r"take 4 or 8"),
        ({"seed": -1}, r"seed must be a whole number from 0"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(InputError, match=message):
        TrainingSettings(**changes)


def test_settings_from_a_mapping():
    settings = TrainingSettings(epochs=3, optimizer_options={"betas": (0.9, 0.98)})
    again = TrainingSettings.from_mapping(settings.to_mapping())
    assert again.to_mapping() == settings.to_mapping()
    with pytest.raises(
        InputError, match=r"training setting 'epoch' is not known; known: epochs, .*mean 'epochs'"
    ):
        TrainingSettings.from_mapping({"epoch": 3})


def test_gradients_and_buffers_are_left_clean(programs):
    model = programs.Net()
    model.register_buffer("scale", torch.ones(2))
    fit(model, programs.batches(2), epochs=1)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model.scale, torch.ones(2))
