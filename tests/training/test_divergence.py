"""Bad steps are skipped without a trace; a diverging run stops and names step, layer, parameter and gate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ostinato.errors import DivergenceError
from ostinato.training import events
from ostinato.training.divergence import Watch, explain_gradient
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch, LossOutput


class Skips:
    def __init__(self):
        self.events = []

    def notify(self, event):
        if isinstance(event, events.StepSkipped):
            self.events.append(event)


def fit(model, data, folder=None, **changes):
    skips = Skips()
    history = train(
        model, data, TrainingSettings(**changes), listeners=[skips], folder=folder, progress="quiet"
    )
    return history, skips.events


def poisoned(programs, at, **changes):
    data = programs.batches(**changes)
    data[at]["x"] = data[at]["x"].clone()
    data[at]["x"][1, 2, 0] = math.nan
    return data


def test_a_skipped_step_leaves_no_trace(programs):
    """Weights, optimizer and buffers go on as though the bad batch had not been there."""
    data = poisoned(programs, 2)
    model, without = programs.Net(dropout=0.0), programs.Net(dropout=0.0)
    history, skipped = fit(model, data, epochs=2, optimizer_options={"betas": (0.8, 0.9)})
    fit(without, data[:2] + data[3:], epochs=2, optimizer_options={"betas": (0.8, 0.9)})
    for (name, p), q in zip(model.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs by {(p - q).abs().max().item()}"
    assert history.skipped_steps == 2
    assert [event.step for event in skipped] == [3, 8]
    assert skipped[0].consecutive == 1
    assert "1 of 132 values of the batch's 'x' are not finite" in skipped[0].reason


def test_an_infinite_input_is_found_where_only_gradients_show_it(programs):
    data = poisoned(programs, 2)
    data[2]["x"][1, 2, 0] = math.inf
    _, (skipped,) = fit(programs.Net(), data, epochs=1)
    assert skipped.reason.startswith("gradient of parameter 'rnn.weight_ih_l0'"), skipped.reason
    assert skipped.reason.endswith("1 of 132 values of the batch's 'x' are not finite"), skipped.reason


def test_buffers_are_put_back(programs):
    class Normed(programs.Net):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.norm = nn.BatchNorm1d(3)

        def loss(self, batch, state=None):
            x = self.norm(batch["x"].flatten(0, 1)).view_as(batch["x"])
            return super().loss(Batch(x=x, y=batch["y"]), state)

    model, without = Normed(), Normed()
    data = poisoned(programs, 2)
    fit(model, data, epochs=1)
    fit(without, data[:2] + data[3:], epochs=1)
    assert torch.equal(model.norm.running_mean, without.norm.running_mean)
    assert torch.equal(model.norm.running_var, without.norm.running_var)


def test_a_carried_state_is_not_poisoned(programs):
    data = poisoned(programs, 1)[:4]
    history, _ = fit(programs.Net(), data, epochs=1, tbptt_steps=4, carry_state=True)
    # One of three stretches of the second batch holds the bad value.
    assert history.skipped_steps == 1


@pytest.mark.parametrize(
    ("cell", "gates", "gate", "text"),
    [
        (nn.LSTM, 4, 0, "gate i (input)"),
        (nn.LSTM, 4, 1, "gate f (forget)"),
        (nn.LSTM, 4, 3, "gate o (output)"),
        (nn.GRU, 3, 0, "gate r (reset)"),
        (nn.GRU, 3, 2, "gate n (candidate)"),
    ],
)
def test_the_error_names_step_layer_and_gate(programs, tmp_path, cell, gates, gate, text):
    model = programs.Net(cell=cell)
    H = 7
    calls = []

    def hurt(gradient):
        calls.append(1)
        if len(calls) > 6:
            gradient = gradient.clone()
            gradient[gate * H + 2, 3] = math.nan
        return gradient

    model.rnn.weight_hh_l0.register_hook(hurt)
    with pytest.raises(DivergenceError) as caught:
        fit(model, programs.batches(), tmp_path / "run", epochs=9, max_bad_steps=3, checkpoint_every_steps=2)
    message = str(caught.value)
    assert "4 steps in a row were skipped up to step 10" in message
    assert "began at step 7" in message
    assert f"parameter 'rnn.weight_hh_l0', {text}" in message
    assert f"last good checkpoint is {tmp_path / 'run' / 'checkpoints' / '000003'}" in message
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_rate_out_of_bounds_is_explained(programs):
    model = programs.Net(cell=nn.LSTM)
    with pytest.raises(DivergenceError, match=r"(parameter|layer).*'(rnn|out)"):
        fit(model, programs.batches(), epochs=50, optimizer="sgd", learning_rate=1e30, clip_norm=None)


def test_the_first_layer_with_a_bad_output_is_named(programs):
    class Exploding(nn.Module):
        def forward(self, x):
            return torch.exp(1e4 * x.abs() + 1e3)

    model = programs.Net()
    model.drop = nn.Sequential(nn.Identity(), Exploding())
    with pytest.raises(DivergenceError, match=r"first layer with such an output is 'drop\.1'"):
        fit(model, programs.batches(), epochs=9, max_bad_steps=0)


def test_of_several_bad_layers_the_last_went_first(programs):
    model = nn.Sequential(nn.LSTM(3, 4), nn.LSTM(4, 5))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    model[1].weight_ih_l0.grad.zero_()
    with torch.no_grad():
        model[1].weight_hh_l0[5:10] *= 100
    text = explain_gradient(model)
    assert text.startswith(
        "gradient of parameter '1.weight_hh_l0', gate f (forget) is not finite (100 of 100"
    )
    assert "so are those of 6 other parameters" in text


def test_an_exploding_loss_is_a_bad_step(programs):
    data = programs.batches(30, seed=1)
    data[25]["y"] = data[25]["y"] * 1e4
    _, skipped = fit(programs.Net(), data, epochs=1, explosion_factor=1000.0)
    assert [event.step for event in skipped] == [26]
    assert "exploded" in skipped[0].reason
    _, skipped = fit(programs.Net(), data, epochs=1, explosion_factor=None)
    assert not skipped


def test_the_watch_needs_time_and_follows_the_loss():
    settings = TrainingSettings(explosion_factor=10.0)
    watch = Watch()
    assert not watch.explodes(1e9, settings)
    for step in range(100):
        watch.good(1.0 + 0.1 * (-1) ** step)
    assert watch.mean == pytest.approx(1.0, abs=0.02)
    assert watch.spread == pytest.approx(0.1, abs=0.02)
    assert not watch.explodes(11.0, settings)
    assert watch.explodes(13.0, settings)
    # A loss may be negative, such as a log density.
    for _ in range(1000):
        watch.good(-5.0)
    assert not watch.explodes(30.0, settings)
    assert watch.explodes(60.0, settings)


def test_no_checkpoint_is_written_between_bad_steps(programs, tmp_path):
    data = programs.batches(6)
    for batch in data[3:]:
        batch["x"] = batch["x"] * math.nan
    with pytest.raises(DivergenceError, match=r"checkpoints/000003"):
        fit(
            programs.Net(), data, tmp_path / "run", epochs=1, max_bad_steps=2, checkpoint_every_steps=1,
            keep_checkpoints=9,
        )  # fmt: skip
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3


def test_gradients_that_overflow_only_in_backward(programs):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 1, bias=False)

        def loss(self, batch, state=None):
            return LossOutput((self.head(batch["x"]) * 0).abs().sqrt().sum(), torch.tensor(1))

    with pytest.raises(DivergenceError, match=r"gradient of parameter 'head\.weight' is not finite"):
        fit(Root(), programs.batches(), epochs=5, max_bad_steps=1)
