import pytest
import torch

from ostinato.errors import InputError
from ostinato.layers.dropout import set_mask_key
from ostinato.models.language import LanguageNetwork
from ostinato.types import Batch

V = 13


def network(cell="lstm", **options):
    torch.manual_seed(1)
    return LanguageNetwork(V, 6, 7, 2, cell, **options)


def text(B=3, T=17):
    ids = torch.randint(V, (B, T + 1))
    return Batch(x=ids[:, :-1], y=ids[:, 1:])


@pytest.mark.parametrize("cell", ["lstm", "gru", "mingru"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_over_chunks_is_the_loss_over_the_whole_stream(cell, tied):
    net, batch = network(cell, tied=tied).double().eval(), text()
    batch["resets"] = torch.rand(3, 17) < 0.1
    whole = net.loss(batch)
    total, state = 0.0, None
    for first, last in ((0, 5), (5, 6), (6, 17)):
        piece = net.loss(Batch({name: value[:, first:last] for name, value in batch.items()}), state)
        total, state = total + piece.total, piece.state
    torch.testing.assert_close(total, whole.total)
    assert int(whole.count) == 51
    for mine, other in zip(state["layer1"].values(), whole.state["layer1"].values(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("cutoffs", [(), (3, 8)])
def test_steps_say_what_the_whole_stretch_says(cutoffs):
    net, batch = network(cutoffs=cutoffs).eval(), text()
    state, total = net.initial_state(3), 0.0
    for t in range(17):
        logits, state = net.step(batch.x[:, t], state)
        total -= torch.log_softmax(logits, 1).gather(1, batch.y[:, t : t + 1]).sum()
    torch.testing.assert_close(total, net.loss(batch).total)


def test_masked_steps_do_not_count():
    net, batch = network().eval(), text()
    short = Batch({name: value[:, :9] for name, value in batch.items()})
    batch["mask"] = (torch.arange(17) < 9).expand(3, 17)
    masked = net.loss(batch)
    assert int(masked.count) == 27
    torch.testing.assert_close(masked.total, net.loss(short).total)


@pytest.mark.parametrize(
    "option",
    ["word_dropout", "dropout_in", "dropout_between", "dropout_out", "weight_drop", "activation", "slowness"],
)
def test_every_regulariser_changes_training_and_nothing_else(option):
    plain, other, batch = network(), network(**{option: 0.4}), text()
    for net in (plain, other):
        set_mask_key(net, 0, 3)
    assert plain.loss(batch).total.item() != other.loss(batch).total.item()
    assert plain.eval().loss(batch).total.item() == other.eval().loss(batch).total.item()


def test_masks_are_those_of_the_streams_not_of_their_place_in_the_batch():
    net, batch = network(dropout_in=0.3, dropout_between=0.3, dropout_out=0.3), text(B=4)
    batch["row"] = torch.arange(4)
    set_mask_key(net, 5, 6)
    whole = net.loss(batch).total
    parts = sum(net.loss(Batch({n: v[rows] for n, v in batch.items()})).total for rows in ([0, 2], [3, 1]))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("cutoffs", [(), (3, 8)])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_learns(tied, cutoffs):
    net = network(tied=tied, cutoffs=cutoffs, weight_drop=0.2, dropout_in=0.1)
    batch = text(B=8, T=40)
    net.loss(batch).total.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_tied_weights_are_the_embeddings():
    net = network(tied=True)
    assert net.output_weight is net.embedding.weights[0]
    assert net.projection is not None
    assert LanguageNetwork(V, 7, 7).projection is None
    assert network(tied=False).output_weight.shape == (V, 7)


def test_unknown_options_are_refused():
    with pytest.raises(InputError, match="unknown option 'dropout'; known: word_dropout"):
        network(dropout=0.1)
    with pytest.raises(InputError, match="slowness"):
        network(slowness=-1.0)
