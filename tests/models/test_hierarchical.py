"""The hierarchical network: documents together and alone, padding, nothing at all, weights, nested series."""

import numpy as np
import pytest
import torch

from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.documents import DocumentLimits, NestedSeries, encode_documents
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError, SizeError
from ostinato.models.hierarchical import HierarchicalClassifier, laid_out
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings

DOCUMENTS = [
    "The first one. It is short! And here is the end of it.",
    "",
    "One sentence only",
    "A. B. Smith came home.\n\nHe slept. He slept well, and for a long time, as always. Then he rose.",
    [["given", "as", "words"], [], ["twice"]],
]
TOKENS = {"word_size": 6, "spelling_size": 4, "character_size": 4, "shape_size": 3}


@pytest.fixture(scope="module")
def preparation():
    return TokenPreparation.fit([d for d in DOCUMENTS if isinstance(d, str)])


def make(inputs, **options):
    if not isinstance(inputs, int):
        options.setdefault("tokens", TOKENS)
    return HierarchicalClassifier(inputs, 3, hidden_size=5, **options).double().eval()


def gap(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("cell", ["gru", "lstm", "mingru"])
@pytest.mark.parametrize("pooling", ["attention", "last", "mix"])
def test_documents_together_equal_documents_alone(preparation, cell, pooling):
    model = make(preparation.sizes, cell=cell, pooling=pooling)
    encoded = encode_documents(preparation, DOCUMENTS)
    together = model(encoded.batch(np.arange(5)))
    assert torch.isfinite(together).all()
    for i in range(5):
        alone = model(encoded.batch([i]))
        assert gap(alone[0], together[i]) < 1e-10, f"document {i} differs by {gap(alone[0], together[i])}"
    assert gap(model(encoded.batch([3, 0])), together[[3, 0]]) < 1e-10


def test_padding_changes_nothing():
    rng = np.random.default_rng(0)
    rows = [[rng.normal(size=(n, 2)) for n in lengths] for lengths in ([3, 1], [], [4, 0, 2])]
    model = make(2)
    batch = NestedSeries(rows).batch([0, 1, 2])
    batch["x"] = batch.x.double()
    expected = model(batch)
    T = batch.x.shape[1]
    longer = torch.full((len(batch.x), T + 3, 2), float("nan"), dtype=torch.float64)
    for place, row, n in zip(longer, batch.x, batch.lengths, strict=True):
        place[:n] = row[:n]
    batch["x"] = longer
    assert gap(model(batch), expected) < 1e-12


def test_weights_of_both_levels_sum_to_one(preparation):
    model = make(preparation.sizes)
    encoded = encode_documents(preparation, DOCUMENTS)
    batch = encoded.batch(np.arange(5))
    said = model.attend(batch)
    assert said.words.shape == tuple(batch.words.shape)
    assert said.sentences.shape == (5, int(batch.sentence_counts.max()))
    assert gap(said.words.sum(1), (batch.lengths > 0).double()) < 1e-12
    assert gap(said.sentences.sum(1), (batch.sentence_counts > 0).double()) < 1e-12
    for weights, count in zip(said.sentences, batch.sentence_counts, strict=True):
        assert not weights[count:].any()
    assert make(preparation.sizes, pooling="mean").attend(batch).words is None


def test_nothing_but_empty_documents(preparation):
    model = make(preparation.sizes)
    encoded = encode_documents(preparation, ["", " \n\n ", []])
    assert encoded.counts.tolist() == [0, 0, 0]
    said = model.attend(encoded.batch([0, 1, 2]))
    assert gap(said.logits, model.head.bias.expand(3, 3)) == 0
    batch = encoded.batch([0, 1])
    batch["y"] = torch.tensor([0, 1])
    model.tokens.set_word_counts(preparation.word_counts)
    model.train().loss(batch).total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_every_parameter_receives_a_gradient(preparation):
    model = make(preparation.sizes, num_layers=2, pooling="mix").train()
    model.tokens.set_word_counts(preparation.word_counts)
    batch = encode_documents(preparation, DOCUMENTS).batch(np.arange(5))
    batch["y"] = torch.tensor([0, 1, 2, 0, 1])
    output = model.loss(batch)
    assert int(output.count) == 5
    output.total.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead, f"no gradient reaches {dead}"


def test_the_order_of_sentences_can_be_learned():
    """Which of two kinds of inner sequence comes first; no bag of vectors knows it."""
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.integers(0, 2, 60))
    kinds = [rng.normal(loc, 0.3, (4, 2)) for loc in (-1, 1)]
    rows = [
        [kinds[first][: rng.integers(1, 5)], np.zeros((1, 2)), kinds[1 - first][:2]] for first in y.tolist()
    ]
    series = NestedSeries(rows)

    def fetch(chosen):
        batch = series.batch(chosen)
        batch["y"] = y[chosen]
        return batch

    model = HierarchicalClassifier(2, 2, hidden_size=8, dropout=0.0)
    settings = TrainingSettings(epochs=20, learning_rate=0.02)
    train(model, RowSource(RowSampler(60, 10), fetch), settings, progress="quiet")
    accuracy = float((model(fetch(np.arange(60))).argmax(1) == y).double().mean())
    assert accuracy > 0.95, accuracy


def test_rows_are_laid_out_by_group():
    rows = torch.arange(1.0, 7.0).unsqueeze(1)
    laid = laid_out(rows, torch.tensor([2, 0, 3, 1]))
    assert laid.squeeze(2).tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5], [6, 0, 0]]
    assert laid_out(rows[:0], torch.tensor([0, 0])).shape == (2, 1, 1)


def test_what_does_not_fit_is_refused(preparation):
    batch = encode_documents(preparation, DOCUMENTS, DocumentLimits()).batch([0, 2])
    batch["sentence_counts"] = torch.tensor([1, 1])
    with pytest.raises(SizeError, match="sentence_counts add up to 2, and the batch has 4 sentences"):
        make(preparation.sizes)(batch)
    with pytest.raises(InputError, match="no state is carried"):
        make(2).loss(batch, state=1)
    with pytest.raises(InputError, match="pooling='first'"):
        make(2, pooling="first")
    with pytest.raises(InputError, match="inputs=0"):
        make(0)
    with pytest.raises(InputError, match="pass its sizes"):
        make(2, tokens=TOKENS)
