"""Truncated BPTT: gradients reach exactly k2 steps back, the state is carried, and pieces make the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from ostinato.errors import InputError
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.training.tbptt import Backpropagation, BatchList, Feed, stretch
from ostinato.types import Batch, LossOutput, State


class Tracer(nn.Module):
    """s_t = s_{t-1} + w * x_t: the gradient of y_t = s_t names the inputs that it reaches back to."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls = []

    def loss(self, batch, state=None):
        self.calls.append((batch["x"].shape[1], state))
        start = torch.zeros(batch.size, dtype=torch.float64) if state is None else state["s"]
        s = start[:, None] + (self.w * batch["x"]).cumsum(1)
        return LossOutput(s.sum(), torch.tensor(s.numel()), State(s=s[:, -1]))


def powers(B=2, T=12):
    """Inputs whose sums can be read like digits."""
    return torch.randn(B, T, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def truncated_gradient(x, first, last, k2):
    """d/dw of the sum over t in first..last of s_t, through the inputs from k2 steps before `last`."""
    horizon = max(0, last - k2)
    return sum(float(x[:, horizon : t + 1].sum()) for t in range(max(first, horizon), last))


@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (3, 6), (2, 8), (4, 2), (5, 1), (1, 4)])
def test_gradients_reach_k2_steps_back(k1, k2):
    x = powers()
    settings = TrainingSettings(tbptt_steps=k1, tbptt_backward_steps=k2)
    model, feed, bptt = Tracer(), Feed([Batch(x=x)], settings), Backpropagation(settings)
    first = 0
    while (item := feed.next()) is not None:
        output = bptt.loss(model, *item)
        model.w.grad = None
        output.total.backward()
        last = min(first + k1, x.shape[1])
        begin = first
        expected = truncated_gradient(x, begin, last, k2 if k2 < k1 else k2 - k1 + last - first)
        assert model.w.grad.item() == pytest.approx(expected, abs=1e-12), (first, last)
        # Values are those of the whole sequence, wherever the graph ends.
        trained = range(max(begin, last - k2), last)
        values = sum(float(x[:, : t + 1].sum()) for t in trained)
        assert output.total.item() == pytest.approx(values, abs=1e-12)
        first = last
    assert first == x.shape[1]


def test_stretches_without_truncated_gradients_equal_the_whole(programs):
    """k2 as long as the sequence: the summed gradient of all stretches is that of plain BPTT."""
    torch.manual_seed(0)
    T = 12
    data = Batch(x=torch.randn(3, T, 3, dtype=torch.float64), y=torch.randn(3, T, dtype=torch.float64))
    whole, cut = (programs.Net(dropout=0.0, dtype=torch.float64) for _ in range(2))
    whole.loss(data).total.backward()
    settings = TrainingSettings(tbptt_steps=3, tbptt_backward_steps=12)
    feed, bptt = Feed([data], settings), Backpropagation(settings)
    while (item := feed.next()) is not None:
        bptt.loss(cut, *item).total.backward()
    for (name, p), q in zip(whole.named_parameters(), cut.parameters(), strict=True):
        error = ((p.grad - q.grad).abs().max() / p.grad.abs().max()).item()
        assert error < 1e-12, f"{name}: {error}"


def test_a_carried_state_is_detached_and_starts_afresh_with_each_epoch():
    x = powers(2, 10)
    chunks = [Batch(x=x[:, :5]), Batch(x=x[:, 5:])]
    model = Tracer()
    settings = TrainingSettings(epochs=2, carry_state=True, learning_rate=1e-9, clip_norm=None)
    train(model, chunks, settings, progress="quiet")
    states = [state for _, state in model.calls]
    assert [state is None for state in states] == [True, False, True, False]
    assert not states[1]["s"].requires_grad
    torch.testing.assert_close(states[1]["s"], x[:, :5].sum(1), atol=1e-6, rtol=0)


def test_without_carry_state_each_batch_starts_afresh():
    model = Tracer()
    settings = TrainingSettings(epochs=1, tbptt_steps=4)
    train(model, [Batch(x=powers(2, 10)), Batch(x=powers(2, 10))], settings, progress="quiet")
    assert [T for T, _ in model.calls] == [4, 4, 2, 4, 4, 2]
    assert [state is None for _, state in model.calls] == [True, False, False] * 2


def test_stretch_cuts_what_has_time():
    batch = Batch(
        x=torch.randn(3, 10, 2),
        y=torch.arange(30).view(3, 10),
        resets=torch.zeros(3, 10, dtype=torch.bool),
        lengths=torch.tensor([10, 5, 0]),
        static=torch.randn(3, 10),
        label=torch.arange(3),
    )
    cut = stretch(batch, 4, 8)
    assert cut["x"].shape == (3, 4, 2)
    assert cut["y"][1].tolist() == [14, 15, 16, 17]
    assert cut["resets"].shape == (3, 4)
    assert cut["lengths"].tolist() == [4, 1, 0]
    assert cut["static"].shape == (3, 10)
    assert cut["label"].shape == (3,)


def test_what_truncated_bptt_needs(programs):
    class Stateless(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def loss(self, batch, state=None):
            return LossOutput((self.w * batch["x"]).sum(), torch.tensor(1))

    quiet = {"progress": "quiet"}
    with pytest.raises(InputError, match="returns the state to carry"):
        train(Stateless(), [Batch(x=torch.ones(2, 4))], TrainingSettings(epochs=1, tbptt_steps=2), **quiet)
    with pytest.raises(InputError, match="cuts batches along the second axis of 'x'; this batch has: z"):
        train(Stateless(), [Batch(z=torch.ones(2, 4))], TrainingSettings(epochs=1, tbptt_steps=2), **quiet)
    with pytest.raises(InputError, match="a batch has 3 rows, the one before had 4"):
        train(programs.Net(), programs.batches(2), TrainingSettings(epochs=1, carry_state=True), **quiet)


def test_an_endless_stream_holds_no_graph(programs):
    """After many chunks the carried state has no history: its graph would grow without end."""
    seen = []
    model = programs.Net(dropout=0.0)
    inner = model.loss

    def loss(batch, state=None):
        seen.append(state)
        return inner(batch, state)

    model.loss = loss
    train(
        model,
        itertools.cycle(programs.batches(3)[:2]),
        TrainingSettings(steps=30, carry_state=True),
        progress="quiet",
    )
    assert all(state.grad_fn is None for state in seen[1:])
    assert not torch.equal(seen[1], seen[-1])


def test_a_list_of_batches_is_shared_only_where_every_tensor_is_by_rows():
    plain = [Batch(x=torch.arange(5), y=torch.arange(10).view(5, 2))]
    source = BatchList(plain)
    source.set_share(1, 2)
    assert [batch["y"].tolist() for batch in source] == [[[2, 3], [6, 7]]]
    # A table beside the rows: its entries belong to all of them.
    source = BatchList([*plain, Batch(x=torch.arange(5), spellings=torch.zeros(7, 3))])
    source.set_share(0, 2)
    with pytest.raises(InputError, match=r"batch 1: 'spellings' has shape \(7, 3\) in a batch of 5 rows"):
        list(source)
