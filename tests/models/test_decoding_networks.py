"""Decoding with the package's own networks: what they say depends neither on the batch nor on its order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ostinato.models.decoding import (
    CoveragePenalty,
    Decoded,
    Fusion,
    LengthPenalty,
    Rules,
    beam_search,
    greedy,
    sample,
)
from ostinato.models.language import LanguageNetwork
from ostinato.models.seq2seq import EncoderDecoder, OneToMany
from ostinato.types import Batch

END = 3
LENGTHS = torch.tensor([5, 9, 2, 7, 1, 9, 4])


def spread(network: torch.nn.Module) -> Any:
    """Weights so large that the network prefers something."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.5)
    return network.eval()


def translate(network: EncoderDecoder, rows: slice, S: int) -> Decoded:
    source = torch.randint(4, 30, (7, 9), generator=torch.Generator().manual_seed(1))
    extended = source.clone()
    extended[:, 1], extended[2:, 3] = 30, 31
    lengths = LENGTHS[rows]
    batch = Batch(
        source=source[rows, :S], source_lengths=lengths, source_extended=extended[rows, :S],
        extra=torch.full_like(lengths, 2),
    )  # fmt: skip
    encoded = network.encode(batch)
    has_attention = encoded.memory is not None
    return beam_search(
        encoded.step, encoded.state, torch.zeros_like(lengths), end=END, max_length=2 * lengths + 2, beam=4,
        n_best=3, length_penalty=LengthPenalty(1.0), rules=Rules(no_repeat_ngram=3),
        coverage=CoveragePenalty(0.1, source_lengths=lengths) if has_attention else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "general"},
        {"attention": "additive", "coverage": True},
        {"attention": "local", "window": 2},
        {"attention": "none"},
        {"attention": "dot", "feeding": "output"},
        {"attention": "additive", "copying": True},
        {"attention": "general", "feeding": "context", "decoder_layers": 2, "cell": "gru"},
    ],
    ids=str,
)
def test_a_batch_of_sources_is_one_by_one(options: dict[str, Any], tolerance: dict[Any, float]) -> None:
    network = spread(EncoderDecoder(30, 30, embedding_size=16, hidden_size=32, **options))
    whole = translate(network, slice(None), 9)
    assert len({tuple(tokens) for tokens in whole.best()}) > 1
    close = {"rtol": 10 * tolerance[torch.float32], "atol": 10 * tolerance[torch.float32]}
    for row, S in enumerate(LENGTHS.tolist()):
        one = translate(network, slice(row, row + 1), S)
        assert one.sequences()[0] == whole.sequences()[row]
        torch.testing.assert_close(one.scores[0], whole.scores[row], **close)
        if one.attention is not None:
            assert whole.attention is not None
            T = one.attention.shape[2]
            torch.testing.assert_close(one.attention[0], whole.attention[row, :, :T, :S], **close)


def test_what_is_said_of_a_vector() -> None:
    network = spread(OneToMany(5, 30, embedding_size=16, hidden_size=32))
    x = torch.randn(6, 5)
    encoded = network.encode(Batch(x=x))
    start = torch.zeros(6, dtype=torch.int64)
    given = {"end": END, "max_length": 12}
    best = greedy(encoded.step, encoded.state, start, **given)
    assert best.sequences() == beam_search(encoded.step, encoded.state, start, beam=1, **given).sequences()
    for row in range(6):
        one = network.encode(Batch(x=x[row : row + 1]))
        assert greedy(one.step, one.state, start[:1], **given).sequences()[0] == best.sequences()[row]


@pytest.mark.parametrize("options", [{"tied": False}, {"cutoffs": [10]}, {"num_layers": 2}], ids=str)
def test_texts_go_on_from_prompts_read_at_once(options: dict[str, Any]) -> None:
    network = spread(LanguageNetwork(30, 8, 16, **options))
    prompts = torch.randint(30, (4, 6))
    with torch.no_grad():
        _, state = network.encode(prompts[:, :-1])
    given = {"end": None, "max_length": 20, "seed": 3}
    texts = sample(network.step, state, prompts[:, -1], **given)
    # The same tokens as where the decoder reads the prompt, forced.
    read = sample(
        network.step, network.initial_state(4), prompts[:, 0], end=None, max_length=5, seed=0,
        rules=Rules(prefix=prompts[:, 1:].tolist()),
    )  # fmt: skip
    assert torch.equal(read.tokens[:, 0], prompts[:, 1:])
    with torch.no_grad():
        nats = [
            network.loss(Batch(x=prompts[row : row + 1, :-1], y=prompts[row : row + 1, 1:])).total
            for row in range(4)
        ]
    torch.testing.assert_close(read.log_probs[:, 0].float(), -torch.stack(nats), rtol=1e-4, atol=1e-4)
    fused = Rules(fusion=Fusion(network.step, state, 0.0))
    assert sample(network.step, state, prompts[:, -1], rules=fused, **given).sequences() == texts.sequences()
