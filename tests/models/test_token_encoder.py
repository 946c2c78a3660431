"""The token encoder: a batch equals one by one, padding changes nothing, every part has its effect."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ostinato.data.batching import RowSampler, RowSource
from ostinato.data.token_encoding import TokenPreparation
from ostinato.errors import InputError
from ostinato.layers.dropout import set_mask_key
from ostinato.models.token_encoder import SPELLINGS, TokenEncoder
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch, LossOutput

SIZES = {"words": 30, "vectors": [33, 5], "characters": 12, "shapes": [6, 4], "columns": [5, 3]}
PLAIN = {"words": 30, "vectors": [0, 0], "characters": 0, "shapes": [], "columns": []}
WIDTHS = {"word_size": 7, "character_size": 3, "spelling_size": 8, "shape_size": 5, "column_size": 2}
LENGTHS = (4, 0, 7)


def _batch(lengths=LENGTHS, seed=0):
    """Tokens of eight different spellings, as `EncodedTokens.batch` gives them; spelling 0 is the padding."""
    g = torch.Generator().manual_seed(seed)
    B, T, U, C = len(lengths), max(1, *lengths), 9, 6
    is_real = torch.arange(T) < torch.tensor(lengths).unsqueeze(1)
    spelling_lengths = torch.cat([torch.tensor([0]), torch.randint(1, C + 1, (U - 1,), generator=g)])
    inside = torch.arange(C) < spelling_lengths.unsqueeze(1)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=g)

    shapes = torch.stack([draw(1, size, U) for size in SIZES["shapes"]], 1)
    columns = torch.stack([draw(1, size, B, T) for size in SIZES["columns"]], 2)
    return Batch(
        words=draw(1, 33, B, T) * is_real,
        lengths=torch.tensor(lengths),
        spelled=draw(1, U, B, T) * is_real,
        spellings=draw(1, 12, U, C) * inside,
        spelling_lengths=spelling_lengths,
        shapes=shapes * (torch.arange(U) > 0).unsqueeze(1),
        columns=columns * is_real.unsqueeze(2),
    )


def _wider(batch, steps):
    """The same sentences with more padding, in steps and in characters."""
    by_steps = {name: F.pad(batch[name], (0, steps)) for name in ("words", "spelled")}
    columns = F.pad(batch["columns"], (0, 0, 0, steps))
    return Batch(batch | by_steps | {"columns": columns, "spellings": F.pad(batch["spellings"], (0, 2))})


def _encoder(spelling="conv", **options):
    encoder = TokenEncoder(SIZES, spelling=spelling, **(WIDTHS | options))
    encoder.set_word_counts(torch.arange(30))
    encoder.set_vectors(torch.randn(33, 5) * (torch.arange(33) > 0).unsqueeze(1))
    return encoder


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_batch_equals_one_by_one_and_padding_is_zero(spelling, tolerance):
    encoder, batch = _encoder(spelling).eval(), _batch()
    y = encoder(batch)
    assert y.shape == (3, 7, encoder.output_size)
    assert encoder.output_size == 7 + 5 + (0 if spelling == "none" else 8) + 5 + 2 * 2
    for row, length in enumerate(LENGTHS):
        assert not y[row, length:].any()
        own = {name: batch[name][row : row + 1, : max(1, length)] for name in ("words", "spelled", "columns")}
        used, spelled = own["spelled"].unique(return_inverse=True)
        table = {name: batch[name][used] for name in ("spellings", "spelling_lengths", "shapes")}
        alone = encoder(Batch(own | table | {"spelled": spelled}))
        error = (alone[0, :length] - y[row, :length]).abs().max() if length else torch.zeros(())
        assert error <= tolerance[torch.float32]
    wider = encoder(_wider(batch, 3))
    torch.testing.assert_close(wider[:, :7], y, rtol=0, atol=tolerance[torch.float32])
    assert not wider[:, 7:].any()


def test_the_convolution_equals_that_of_torch(tolerance):
    encoder, batch = _encoder("conv").double().eval(), _batch()
    part = encoder.spelling
    found = part(batch.spellings, batch.spelling_lengths)
    weight = part.filters.weight.view(3, 8, 3).permute(1, 2, 0)
    for row, length in enumerate(batch.spelling_lengths.tolist()):
        around = F.embedding(F.pad(batch.spellings[row, :length], (1, 1)), part.embedding.weight)
        if length:
            answers = F.conv1d(around.T.unsqueeze(0), weight, part.bias)
            expected = F.relu(answers.amax(2))[0]
        else:
            expected = torch.zeros(8, dtype=torch.float64)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=tolerance[torch.float64])


@pytest.mark.parametrize("spelling", ["conv", "lstm"])
def test_gradients_reach_every_parameter_and_are_finite(spelling):
    encoder = _encoder(spelling, tune_vectors=True)
    y = encoder(_batch())
    (y * torch.randn(y.shape)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    # The padding stays zero.
    for part in (encoder.word, encoder.shape.table, *encoder.columns):
        assert not part.weight.grad[0].any()


@pytest.mark.parametrize("spelling", ["conv", "lstm"])
def test_gradients_of_spellings_equal_numeric_ones(spelling):
    part, batch = _encoder(spelling).double().spelling, _batch()
    names = [name for name, _ in part.named_parameters()]
    # Spelling 0, the padding's, has no gradient; nor has the padding of the characters of the LSTM.
    fields = (batch.spellings[1:4], batch.spelling_lengths[1:4])

    def run(*values):
        return torch.func.functional_call(part, dict(zip(names, values, strict=True)), fields)

    values = [parameter.detach().clone().requires_grad_() for parameter in part.parameters()]
    if spelling == "conv":
        # Away from the corner of relu.
        values[names.index("bias")].data += 5.0
    assert torch.autograd.gradcheck(run, values)


@pytest.mark.parametrize("spelling", ["conv", "lstm"])
def test_autocast_changes_little(spelling, tolerance):
    encoder, batch = _encoder(spelling).eval(), _batch()
    expected = encoder(batch)
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder(batch)
    assert (y.float() - expected).abs().max() <= tolerance[torch.bfloat16] * expected.abs().max()


def test_rare_words_are_dropped_more_often():
    encoder = TokenEncoder(PLAIN, word_size=1, dropout=0.0, word_dropout=1.0)
    counts = torch.tensor([0, 50, 1, 9, 10**9] + [1] * 25)
    encoder.set_word_counts(counts)
    with torch.no_grad():
        encoder.word.weight.copy_(torch.arange(30.0).unsqueeze(1))
    words = torch.tensor([1, 2, 3, 4, 0]).repeat(40, 200)
    y = encoder(Batch(words=words, lengths=torch.full((40,), 1000)))[:, :, 0]
    dropped = [((y == 1) & (words == word)).sum().item() / 8000 for word in range(5)]
    assert dropped[0] == 0
    assert dropped[1] == 1
    assert dropped[2] == pytest.approx(0.5, abs=0.03)
    assert dropped[3] == pytest.approx(0.1, abs=0.02)
    assert dropped[4] == 0
    assert torch.equal(encoder.eval()(Batch(words=words))[:, :, 0], words.float())


def test_masks_are_a_function_of_seed_step_and_row():
    encoder, batch = _encoder(), _batch()
    set_mask_key(encoder, 1, 5)
    first = encoder(batch)
    torch.manual_seed(1)
    assert torch.equal(encoder(batch), first)
    assert torch.equal(encoder(Batch({n: v[:2] if n in _ROWS else v for n, v in batch.items()})), first[:2])
    set_mask_key(encoder, 1, 6)
    assert not torch.equal(encoder(batch), first)
    # A unit that is dropped is dropped in the whole sentence.
    is_zero = (first[2] == 0).all(0)
    assert 0 < is_zero.sum() < encoder.output_size


_ROWS = ("words", "lengths", "spelled", "columns")


def test_words_of_the_vectors_alone_are_unknown_to_the_embedding():
    encoder = _encoder().eval()
    batch = _batch(lengths=(1,))
    batch["words"] = torch.tensor([[31]])
    y = encoder(batch)[0, 0]
    assert torch.equal(y[:7], encoder.word.weight[1])
    assert torch.equal(y[7:12], encoder.vectors[31])


def test_vectors_are_kept_unless_tuned_and_travel_with_the_weights():
    assert "vectors" not in dict(_encoder().named_parameters())
    assert "vectors" in dict(_encoder(tune_vectors=True).named_parameters())
    one = _encoder().eval()
    other = TokenEncoder(SIZES, **WIDTHS).eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(_batch()), other(_batch()))
    assert "word_drop" not in one.state_dict()


def test_without_spelling_shapes_and_columns_only_words_are_left():
    encoder = TokenEncoder(PLAIN, word_size=4).eval()
    assert encoder.output_size == 4
    assert [name for name, _ in encoder.named_parameters()] == ["word.weight"]
    assert encoder(Batch(words=torch.tensor([[3, 0]]))).shape == (1, 2, 4)
    left_out = TokenEncoder(SIZES, spelling="none", **(WIDTHS | {"shape_size": 0}))
    assert left_out.output_size == 7 + 5 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spelling": "cnn"}, "known: 'conv', 'lstm', 'none'"),
        ({"spelling": "lstm", "spelling_size": 7}, "must be even"),
        ({"word_size": 0}, "word_size=0"),
        ({"dropout": 1.0}, "dropout: expected a probability"),
        ({"word_dropout": -1}, "word_dropout=-1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TokenEncoder(SIZES, **(WIDTHS | options))


def test_counts_and_vectors_must_fit():
    encoder = TokenEncoder(SIZES, **WIDTHS)
    with pytest.raises(InputError, match=r"needs set_word_counts"):
        encoder(_batch())
    with pytest.raises(InputError, match=r"expected \(30,\)"):
        encoder.set_word_counts([1, 2])
    with pytest.raises(InputError, match=r"the sizes say \(33, 5\)"):
        encoder.set_vectors(torch.zeros(3, 5))
    with pytest.raises(InputError, match="the sizes say None"):
        TokenEncoder(PLAIN).set_vectors(torch.zeros(3, 5))


class _Tagger(torch.nn.Module):
    def __init__(self, preparation):
        super().__init__()
        self.tokens = TokenEncoder(preparation.sizes, **WIDTHS, dropout=0.0, word_dropout=0)
        self.head = torch.nn.Linear(self.tokens.output_size, 3)

    def loss(self, batch, state=None):
        is_real = batch["words"] > 0
        each = F.cross_entropy(self.head(self.tokens(batch))[is_real], batch["y"][is_real], reduction="sum")
        return LossOutput(each, is_real.sum())


def test_the_loop_takes_tables_beside_the_rows_and_shares_of_a_batch_are_the_whole():
    sentences = [[f"w{i % 7}x{j % 3}" for j in range(1 + i % 5)] for i in range(22)]
    preparation = TokenPreparation.fit(sentences)
    encoded = preparation.encode(sentences)

    def fetch(rows):
        batch = encoded.batch(rows)
        return Batch(batch, y=batch["words"] % 3)

    def gradients(world_size):
        torch.manual_seed(3)
        model = _Tagger(preparation)
        for rank in range(world_size):
            source = RowSource(RowSampler(22, 8, lengths=encoded.lengths), fetch)
            source.set_share(rank, world_size)
            for batch in source:
                model.loss(batch).total.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradients(3), gradients(1), rtol=1e-4, atol=1e-5)
    source = RowSource(RowSampler(22, 8, lengths=encoded.lengths), fetch)
    model = _Tagger(preparation)
    settings = TrainingSettings(steps=30, accumulate=2, learning_rate=0.05, schedule="constant")
    history = train(model, source, settings, progress="quiet")
    assert history.steps == 30
    assert model.loss(fetch([0, 4, 9])).total < 0.5
