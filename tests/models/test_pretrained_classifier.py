import pytest
import torch

from ostinato.errors import InputError
from ostinato.models.language import LanguageNetwork
from ostinato.models.pretrained_classifier import PretrainedClassifier
from ostinato.types import Batch


def network(**options):
    torch.manual_seed(3)
    return PretrainedClassifier(LanguageNetwork(11, 5, 6, 2, dropout_in=0.1), 4, **options)


def texts():
    lengths = torch.tensor([7, 3, 0, 1])
    units = torch.randint(11, (4, 7)) * (torch.arange(7) < lengths.unsqueeze(1))
    return Batch(units=units, lengths=lengths, y=torch.tensor([0, 3, 1, 2]))


def test_padding_changes_nothing():
    net, batch = network().eval(), texts()
    wide = Batch({**batch, "units": torch.cat([batch.units, torch.full((4, 5), 9)], 1)})
    torch.testing.assert_close(net(wide), net(batch))
    alone = Batch(units=batch.units[1:2, :3], lengths=batch.lengths[1:2])
    torch.testing.assert_close(net(alone), net(batch)[1:2])


def test_layers_join_in_from_the_top_as_steps_go_by():
    net, batch = network(thaw_steps=10), texts()
    parts = {
        "head": "head",
        "top": "language.layers.1",
        "below": "language.layers.0",
        "words": "language.emb",
    }
    for step, learning in [
        (0, ["head"]), (9, ["head"]), (10, ["head", "top"]), (20, ["head", "top", "below"]), (30, [*parts])
    ]:  # fmt: skip
        net.set_mask_key(0, step)
        net.zero_grad()
        net.loss(batch).total.backward()
        got = {
            part
            for part, prefix in parts.items()
            for name, p in net.named_parameters()
            if name.startswith(prefix) and p.grad is not None
        }
        assert got == set(learning), step
    assert network().frozen == 0


def test_freezing_changes_no_answer():
    net, batch = network(thaw_steps=10), texts()
    net.eval()
    said = net(batch)
    net.set_mask_key(0, 50)
    assert torch.equal(net(batch), said)


def test_what_only_probabilities_need_is_gone_and_states_are_refused():
    net = network()
    assert not [name for name in net.state_dict() if "language.head" in name or "projection" in name]
    with pytest.raises(InputError, match="no state"):
        net.loss(texts(), state=0)
