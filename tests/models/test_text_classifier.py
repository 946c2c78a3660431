"""The flat text classifier, alone and beside the linear model: batches, empty texts, options, training."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.ngrams import NgramFeatures
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError
from ostinato.layers.pooling import KINDS
from ostinato.models.text_classifier import TextClassifier
from ostinato.models.wide import WideAndDeep
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch

TEXTS = ["What films are there ?", "", "who ran", "How far is the moon , and why is it so far away ?", "x"]
TOKENS = {"word_size": 6, "spelling_size": 4, "character_size": 4, "shape_size": 3}
SMALL = {"hidden_size": 5, "tokens": TOKENS}


@pytest.fixture(scope="module")
def preparation():
    return TokenPreparation.fit(TEXTS)


def make(preparation, **options):
    model = TextClassifier(preparation.sizes, 3, **(SMALL | options)).double()
    model.tokens.set_word_counts(preparation.word_counts)
    return model


def gap(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("pooling", list(KINDS))
@pytest.mark.parametrize("options", [{"cell": "gru"}, {"num_layers": 2}, {"bidirectional": False}], ids=str)
def test_a_batch_equals_its_texts_one_by_one(preparation, pooling, options):
    model = make(preparation, pooling=pooling, **options).eval()
    encoded = preparation.encode(TEXTS)
    together, weights = model.attend(encoded.batch(np.arange(5)))
    assert torch.isfinite(together).all()
    for i in range(5):
        alone = model(encoded.batch([i]))
        assert gap(alone[0], together[i]) < 1e-10, f"text {i} differs by {gap(alone[0], together[i])}"
    assert (weights is not None) == ("attention" in KINDS[pooling])
    if weights is not None:
        filled = weights.sum(2)[:, 0]
        assert gap(filled, torch.tensor([1.0, 0, 1, 1, 1], dtype=torch.float64)) < 1e-12


def test_the_loss_is_the_weighted_smoothed_cross_entropy(preparation):
    factors = [1.0, 0.5, 3.0]
    model = make(preparation, class_weights=factors, label_smoothing=0.1).eval()
    batch = preparation.encode(TEXTS).batch(np.arange(5))
    batch["y"] = torch.tensor([0, 2, 1, 1, 0])
    output = model.loss(batch)
    expected = F.cross_entropy(
        model(batch), batch.y, torch.tensor(factors).double(), reduction="sum", label_smoothing=0.1
    )
    assert gap(output.total, expected) < 1e-12
    assert int(output.count) == 5
    output.total.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead, f"no gradient reaches {dead}"


def test_dropout_acts_in_training_only(preparation):
    batch = preparation.encode(TEXTS).batch(np.arange(5))
    model = make(preparation, dropout=0.5)
    assert gap(model(batch), model(batch)) > 1e-6
    model.eval()
    assert gap(model(batch), model(batch)) == 0


def test_the_linear_model_answers_beside_the_network(preparation):
    features = NgramFeatures.fit(TEXTS, min_documents=1)
    model = WideAndDeep(make(preparation).float(), len(features), 3)
    encoded, rows = preparation.encode(TEXTS), features.encode(TEXTS)
    everything = np.arange(5)
    batch = Batch({**encoded.batch(everything), **rows.batch(everything), "y": torch.tensor([0, 2, 1, 1, 0])})
    model.wide.fit(rows.batch(everything), batch.y, penalties=(0.1,))
    model.eval()
    before = model(batch)
    network, wide = model.parts(batch)
    assert torch.equal(before, network)
    scales = model.blend((network, wide), batch.y)
    torch.testing.assert_close(model(batch), scales[0] * network + scales[1] * wide)
    assert scales[1] > 0.5
    loss = model.loss(batch)
    assert torch.equal(loss.total, model.network.loss(batch).total)
    model.train()
    assert model(encoded.batch(everything)).shape == (5, 3)
    again = WideAndDeep(make(preparation).float(), len(features), 3)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(batch), model.eval()(batch))


def test_the_loop_trains_the_network_and_leaves_the_linear_model(preparation):
    texts = [f"{a} {b}" for a in ("who", "what", "why", "how") for b in ("is it", "was that", "are you")]
    y = torch.tensor([i // 3 for i in range(12)])
    preparation, features = TokenPreparation.fit(texts), NgramFeatures.fit(texts)
    encoded, rows = preparation.encode(texts), features.encode(texts)

    def fetch(chosen):
        return Batch({**encoded.batch(chosen), **rows.batch(chosen), "y": y[chosen]})

    network = TextClassifier(preparation.sizes, 4, hidden_size=12, tokens=TOKENS)
    network.tokens.set_word_counts(preparation.word_counts)
    model = WideAndDeep(network, len(features), 4)
    model.wide.fit(rows.batch(np.arange(12)), y, penalties=(0.1,))
    before = model.wide.weight.clone()
    source = RowSource(RowSampler(12, 4, lengths=encoded.lengths), fetch)
    train(model, source, TrainingSettings(epochs=30, learning_rate=0.02), progress="quiet")
    assert torch.equal(model.wide.weight, before)
    said = model(fetch(np.arange(12))).argmax(1)
    assert (said == y).all(), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "first"}, r"pooling='first' is unknown; known: 'last'"),
        ({"cell": "gruu"}, "cell='gruu'"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"class_weights": [1.0]}, "1 class_weights for output_size=3"),
        ({"peephol": True}, "peephol"),
        ({"hidden_size": 0}, "hidden_size=0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(preparation, options, message):
    with pytest.raises(InputError, match=message):
        make(preparation, **options)


def test_targets_and_states_that_do_not_fit_are_refused(preparation):
    batch = preparation.encode(TEXTS).batch([0, 2])
    batch["y"] = torch.tensor([0])
    with pytest.raises(InputError, match=r"y has shape \(1,\), expected one class number for each of 2"):
        make(preparation).loss(batch)
    with pytest.raises(InputError, match="no state is carried"):
        make(preparation).loss(batch, state=1)
