import pytest
import torch

from ostinato.errors import InputError
from ostinato.models.language import LanguageNetwork
from ostinato.models.pretrained_classifier import PretrainedClassifier, text_features
from ostinato.types import Batch


def network(**options):
    torch.manual_seed(3)
    return PretrainedClassifier(LanguageNetwork(11, 5, 6, 2, dropout_in=0.1), 4, **options)


def texts():
    lengths = torch.tensor([7, 3, 0, 1])
    units = torch.randint(11, (4, 7)) * (torch.arange(7) < lengths.unsqueeze(1))
    return Batch(units=units, unit_lengths=lengths, y=torch.tensor([0, 3, 1, 2]))


def test_padding_changes_nothing():
    net, batch = network().eval(), texts()
    wide = Batch({**batch, "units": torch.cat([batch.units, torch.full((4, 5), 9)], 1)})
    torch.testing.assert_close(net(wide), net(batch))
    alone = Batch(units=batch.units[1:2, :3], unit_lengths=batch.unit_lengths[1:2])
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
        (0, ["head"]), (9, ["head"]), (10, ["head", "top"]), (20, ["head", "top", "below"]),
        (90, ["head", "top", "below"]),
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
    assert network().frozen == 1


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


def test_features_are_outputs_at_places_and_pooled_ones():
    net, batch = network().eval(), texts()
    language = net.language
    with torch.no_grad():
        found = text_features(language, batch.units, batch.unit_lengths)
        assert not found[2].any()
        for row in (0, 1, 3):
            ids = batch.units[row : row + 1, : batch.unit_lengths[row]]
            y = language.encode(ids)[0][0]
            T = len(y)
            parts = [y[min(1, T - 1)], y[min(2, T - 1)], y[-1], y.amax(0), y.mean(0)]
            expected = torch.cat([*parts, language.embedding(ids)[0].mean(0)])
            torch.testing.assert_close(found[row], expected)
        nothing = text_features(language, batch.units[:2, :0], torch.zeros(2, dtype=torch.long))
    assert nothing.shape == (2, found.shape[1])
    assert not nothing.any()


def test_a_network_begins_as_the_linear_model_it_is_given():
    net, batch = network().eval(), texts()
    F = net.head.in_features
    generator = torch.Generator().manual_seed(1)
    mean, scale = torch.randn(F, generator=generator), torch.rand(F, generator=generator)
    weight, bias = torch.randn(F, 4, generator=generator), torch.randn(4, generator=generator)
    net.set_scaling(mean, scale)
    net.begin_with(weight, bias)
    with torch.no_grad():
        features = text_features(net.language, batch.units, batch.unit_lengths)
        torch.testing.assert_close(net(batch), (features - mean) * scale @ weight + bias)
