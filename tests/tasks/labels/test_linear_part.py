"""The linear model beside a network: rows kept or made when needed, solved and weighed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ostinato.models.array_classifier import ArrayClassifier
from ostinato.tasks.labels import linear_rows
from ostinato.tasks.labels.arrays import ArrayInputs
from ostinato.tasks.labels.classifier import Classifier
from ostinato.tasks.labels.ensemble import Ensemble, chunks
from ostinato.tasks.labels.linear_rows import LazyNgrams, encode_ngrams, fit_ngrams
from ostinato.tasks.labels.summaries import PARTS, SummaryFeatures
from ostinato.types import Batch

TEXTS = ["one fine day", "", "a day, a day", "no", "fine fine fine one", "day by day"]


def test_rows_made_when_needed_are_those_that_are_kept(monkeypatch):
    features = fit_ngrams(TEXTS, 2)
    kept = encode_ngrams(features, TEXTS)
    monkeypatch.setattr(linear_rows, "KEPT_CHARACTERS", 30.0)
    lazy = encode_ngrams(features, TEXTS)
    assert isinstance(lazy, LazyNgrams)
    assert len(lazy) == 6
    assert lazy.most_rows == 3
    rows = np.array([4, 1, 2])
    for name, value in kept.batch(rows).items():
        assert torch.equal(lazy.batch(rows)[name], value)


def test_many_classes_share_fewer_ngrams(monkeypatch):
    monkeypatch.setattr(linear_rows, "MOST_WEIGHTS", 1 << 20)
    texts = [f"{i:05d}" for i in range(6000)]
    assert len(fit_ngrams(texts, 2, min_documents=1)) > len(fit_ngrams(texts, 200, min_documents=1)) == 5242


def test_a_classifier_of_more_text_than_memory(monkeypatch):
    monkeypatch.setattr(linear_rows, "KEPT_CHARACTERS", 300.0)
    texts = [f"{'good' if i % 2 else 'bad'} thing number {i}" for i in range(60)]
    y = [i % 2 for i in range(60)]
    made = Classifier(hidden_size=3, epochs=1, members=1, progress="quiet").fit(texts, y)
    assert made.score(texts, y) == 1.0


def test_summaries():
    x = [np.array([[1.0], [3.0], [2.0]]), np.zeros((0, 1)), np.array([[5.0]])]
    features = SummaryFeatures()
    matrix = features.fit(x)
    assert matrix.shape == (3, PARTS)
    np.testing.assert_allclose(matrix.mean(axis=0), 0.0, atol=1e-12)
    raw = matrix * features.spread + features.mean
    np.testing.assert_allclose(raw[0], [2.0, np.std([1, 3, 2]), 1.0, 3.0, 1.0, 2.0, 1.5, 3.0])
    np.testing.assert_allclose(raw[1], 0.0, atol=1e-12)
    again = SummaryFeatures()
    again.take_json(features.to_json())
    np.testing.assert_array_equal(again.transform(x), matrix)
    batch = features.rows(x).batch(np.array([2, 0]))
    np.testing.assert_allclose(batch["ngram_weights"].view(2, PARTS), matrix[[2, 0]], rtol=1e-6)


def test_a_member_learns_nothing_from_its_fold():
    torch.manual_seed(0)
    members = [ArrayClassifier(2, 3, hidden_size=4, dropout=0.0, noise=0.0) for _ in range(2)]
    network = Ensemble(members).train()
    batch = Batch(x=torch.randn(5, 4, 2), y=torch.tensor([0, 1, 2, 0, 1]), fold=torch.tensor([0, 1, 1, 7, 0]))
    output = network.loss(batch)
    # Two rows are in fold 0, two in fold 1, one in none that is held out.
    assert int(output.count) == 6
    alone = Batch(x=batch.x[[1, 2, 3]], y=batch.y[[1, 2, 3]])
    expected = (
        members[0].loss(alone).total
        + members[1].loss(Batch(x=batch.x[[0, 3, 4]], y=batch.y[[0, 3, 4]])).total
    )
    torch.testing.assert_close(output.total, expected)
    together = network.loss(Batch(x=batch.x, y=batch.y))
    assert int(together.count) == 10
    assert network(batch).shape == (2, 5, 3)


def test_chunks_hold_every_row_once():
    lengths = np.array([3, 100_000, 5, 2, 70_000, 4] * 50)
    order = np.argsort(lengths, kind="stable")
    found = chunks(order, lengths)
    np.testing.assert_array_equal(np.concatenate(found), order)
    assert max(len(rows) for rows in found) <= 256
    assert all(len(rows) == 1 for rows in found if lengths[rows].max() > 65_536)


@pytest.mark.parametrize("T", [4, 900])
def test_long_arrays_are_read_several_steps_at_once(T):
    from ostinato.data.examples import Examples

    rng = np.random.default_rng(0)
    x = [rng.normal(size=(T - i, 2)).astype(np.float32) for i in range(3)]
    prepared = ArrayInputs.fit(Examples("arrays", x, ["a", "b", "a"]), None, ["a", "b"])
    assert prepared.stride == (1 if T == 4 else 3)
    encoded = prepared.encode(x)
    batch = encoded.batch(np.array([2, 0]))
    assert batch.x.shape == (2, -(-T // prepared.stride), 6 * prepared.stride)
    assert encoded.lengths.tolist() == [-(-len(one) // prepared.stride) for one in x]
    # The first step of the network holds the first steps of the array, one after the other.
    back = prepared.scaling.inverse(batch.x[1, 0].double().numpy().reshape(prepared.stride, 6))
    np.testing.assert_allclose(back[:, :2], x[0][: prepared.stride], atol=1e-5)
    np.testing.assert_allclose(back[1:, 4:], np.diff(x[0][: prepared.stride], axis=0), atol=1e-5)
    again = ArrayInputs.from_json(prepared.to_json())
    assert torch.equal(again.encode(x).batch(np.array([2, 0])).x, batch.x)
