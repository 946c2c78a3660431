"""`ArrayClassifier` and `LetterClassifier`: padding, places, strides, noise, what they refuse."""

from __future__ import annotations

import pytest
import torch

from ostinato.errors import InputError
from ostinato.models.array_classifier import ArrayClassifier
from ostinato.models.letter_classifier import LetterClassifier
from ostinato.types import Batch


def lengths_of(*counts: int) -> torch.Tensor:
    return torch.tensor(counts)


@pytest.mark.parametrize("cell", ["gru", "lstm", "mingru"])
def test_padding_changes_nothing(cell, tolerance):
    model = ArrayClassifier(3, 4, cell=cell, hidden_size=5, num_layers=2).eval()
    x = torch.randn(3, 7, 3)
    lengths = lengths_of(7, 4, 1)
    said = model(Batch(x=x, lengths=lengths))
    other = x.clone()
    other[1, 4:], other[2, 1:] = 99.0, float("nan")
    other = torch.nan_to_num(other, nan=-7.0)
    assert torch.equal(model(Batch(x=other, lengths=lengths)), said)
    for i, n in enumerate(lengths.tolist()):
        alone = model(Batch(x=x[i : i + 1, :n]))
        torch.testing.assert_close(alone[0], said[i], rtol=0, atol=tolerance[torch.float32])


def test_noise_and_dropout_are_of_training_alone():
    model = ArrayClassifier(3, 4, hidden_size=5, dropout=0.0, noise=0.5)
    batch = Batch(x=torch.randn(2, 5, 3), y=torch.tensor([0, 3]))
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))
    output = model.loss(batch)
    assert int(output.count) == 2
    expected = torch.nn.functional.cross_entropy(model(batch), batch.y, reduction="sum")
    torch.testing.assert_close(output.total, expected)


@pytest.mark.parametrize("stride", [1, 3])
def test_letters_padding_changes_nothing(stride, tolerance):
    model = LetterClassifier(4, 3, stride=stride, embedding_size=6, hidden_size=5).eval()
    letters = torch.randint(0, 5, (3, 8))
    lengths = lengths_of(8, 4, 1)
    said = model(Batch(letters=letters, lengths=lengths))
    other = letters.clone()
    other[1, 4:], other[2, 1:] = 4, 0
    assert torch.equal(model(Batch(letters=other, lengths=lengths)), said)
    for i, n in enumerate(lengths.tolist()):
        alone = model(Batch(letters=letters[i : i + 1, :n]))
        torch.testing.assert_close(alone[0], said[i], rtol=0, atol=tolerance[torch.float32])


def test_places_tell_equal_letters_apart_and_end_where_training_did():
    model = LetterClassifier(4, 3, places=6, embedding_size=6, hidden_size=5, pooling="mean").eval()
    assert model(Batch(letters=torch.zeros(2, 9, dtype=torch.int64))).shape == (2, 3)
    a, b = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[1, 0, 1, 1]])
    assert not torch.equal(model(Batch(letters=a)), model(Batch(letters=b)))


def test_the_unknown_letter_is_the_mean_of_all(tolerance):
    model = LetterClassifier(3, 2, embedding_size=6, hidden_size=5).eval()
    said = model(Batch(letters=torch.tensor([[0, 3, 2]])))
    with torch.no_grad():
        model.embedding[1] = model.embedding.mean(0)
        # The mean of all is now that of the others too.
        expected = model(Batch(letters=torch.tensor([[0, 1, 2]])))
    torch.testing.assert_close(said, expected, rtol=0, atol=tolerance[torch.float32])


def test_every_parameter_has_a_gradient():
    model = LetterClassifier(4, 3, places=5, stride=2, embedding_size=6, hidden_size=5)
    model.loss(Batch(letters=torch.randint(0, 5, (16, 5)), y=torch.randint(0, 3, (16,)))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cell": "gur"}, "gru"),
        ({"pooling": "median"}, "max_mean"),
        ({"dropout": 1.0}, "below 1"),
        ({"hidden_size": 0}, "hidden_size"),
    ],
)
def test_what_is_refused(options, match):
    with pytest.raises(InputError, match=match):
        ArrayClassifier(3, 4, **options)
    with pytest.raises(InputError, match="stride"):
        LetterClassifier(4, 3, stride=0)
