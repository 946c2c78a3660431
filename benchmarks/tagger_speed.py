"""How fast a tagger is: one sentence on one thread, and training beside the same network in plain PyTorch.

    python benchmarks/tagger_speed.py [--hidden 200] [--batch-size 32] [--tags 45] [--rounds 60]
        [--threads 1] [--json FILE]

The peer has the same parts, sizes and weights, written as everybody writes them: `nn.Embedding`, `nn.Conv1d`
over the characters of every token, `nn.LSTM` over packed sequences, a chain by logsumexp over (B, K, K) step
by step, `nn.Dropout` in the same places. That both give the same loss and tags is checked first. Then both
take the same steps on the same batches in turns: forward, backward, clipping, update. The optimizer is AdamW:
fused for both, and for the peer also as PyTorch makes it by default. Batches are of sentences of similar
length, as the tagger's training has them; then of any length, as a plain DataLoader draws them.

Words are drawn so that their frequencies, lengths and the lengths of sentences are about those of English
news. With one thread, times are processor seconds, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.data.batching import RowSampler
from ostinato.data.encoded_tokens import EncodedTokens
from ostinato.data.token_encoding import TokenPreparation
from ostinato.layers.dropout import set_mask_key
from ostinato.models.tagger import TaggerNetwork
from ostinato.training.memory import keep_freed_memory
from ostinato.types import Batch

GOAL_LATENCY_S, GOAL_RATIO = 0.010, 2.0


class Peer(nn.Module):
    """The same tagger in plain PyTorch, with the weights of ours."""

    def __init__(self, ours: TaggerNetwork, dropout: float):
        super().__init__()
        tokens = ours.tokens
        spelling = tokens.spelling
        V, width = tokens.word.weight.shape
        n, size = len(spelling.embedding.weight), len(spelling.bias)
        self.word = nn.Embedding(V, width, padding_idx=0)
        self.character = nn.Embedding(n, spelling.embedding.weight.shape[1])
        self.convolution = nn.Conv1d(self.character.embedding_dim, size, 3)
        self.shape = nn.EmbeddingBag(*tokens.shape.table.weight.shape, mode="sum", padding_idx=0)
        self.register_buffer("offsets", tokens.shape.offsets)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            ours.encoder.input_size, ours.encoder.output_size // 2, batch_first=True, bidirectional=True
        )
        self.head = nn.Linear(ours.head.in_features, ours.head.out_features)
        self.transitions, self.start, self.end = (
            nn.Parameter(p.detach().clone()) for p in (ours.crf.transitions, ours.crf.start, ours.crf.end)
        )
        with torch.no_grad():
            self.word.weight.copy_(tokens.word.weight)
            self.character.weight.copy_(spelling.embedding.weight)
            filters = spelling.filters.weight.view(3, size, -1)
            self.convolution.weight.copy_(filters.permute(1, 2, 0))
            self.convolution.bias.copy_(spelling.bias)
            self.shape.weight.copy_(tokens.shape.table.weight)
        self.lstm.load_state_dict(ours.encoder.state_dict())
        self.head.load_state_dict(ours.head.state_dict())

    def emissions(self, batch: Batch) -> Tensor:
        """(B, T, K)."""
        characters, lengths = batch["characters"], batch["lengths"]
        B, T, C = characters.shape
        embedded = self.character(F.pad(characters.view(B * T, C), (1, 1))).transpose(1, 2)
        answers = self.convolution(embedded)
        outside = torch.arange(C) >= batch["character_lengths"].view(B * T, 1)
        spelled = F.relu(answers.masked_fill(outside.unsqueeze(1), float("-inf")).amax(2)).view(B, T, -1)
        shapes = batch["token_shapes"].view(B * T, -1)
        shaped = self.shape((shapes + self.offsets).masked_fill(shapes == 0, 0)).view(B, T, -1)
        x = self.dropout(torch.cat([self.word(batch["words"]), spelled, shaped], dim=2))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=T)
        return self.head(self.dropout(y))

    def loss(self, batch: Batch) -> Tensor:
        """-log P(tags), summed."""
        emissions, tags, lengths = self.emissions(batch), batch["y"], batch["lengths"]
        B, T, _ = emissions.shape
        mask = torch.arange(T) < lengths.unsqueeze(1)
        chosen = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
        score = (chosen * mask).sum(1) + (self.transitions[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]).sum(1)
        score = score + self.start[tags[:, 0]] + self.end[tags[torch.arange(B), lengths - 1]]
        alpha = self.start + emissions[:, 0]
        for t in range(1, T):
            after = torch.logsumexp(
                alpha.unsqueeze(2) + self.transitions + emissions[:, t].unsqueeze(1), dim=1
            )
            alpha = torch.where(mask[:, t].unsqueeze(1), after, alpha)
        return (torch.logsumexp(alpha + self.end, dim=1) - score).sum()

    @torch.no_grad()
    def decode(self, batch: Batch) -> list[list[int]]:
        """The best tags of each sentence."""
        emissions, found = self.emissions(batch), []
        for row, n in zip(emissions, batch["lengths"].tolist(), strict=True):
            score, back = self.start + row[0], []
            for t in range(1, n):
                score, source = (score.unsqueeze(1) + self.transitions + row[t]).max(0)
                back.append(source)
            tags = [int((score + self.end).argmax())]
            for source in reversed(back):
                tags.append(int(source[tags[-1]]))
            found.append(tags[::-1])
        return found


def sentences(n: int, rng: np.random.Generator) -> list[list[str]]:
    """Sentences of words whose frequencies fall as Zipf's law has it, rare words being longer."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    sizes = np.clip(rng.normal(3 + np.log2(np.arange(20_000) + 1) * 0.45, 1.5), 1, 16).astype(int)
    words = ["".join(letters[(rng.pareto(1.0, size) * 6).astype(int) % 26]) for size in sizes]
    share = 1 / (np.arange(len(words)) + 2.7)
    lengths = np.clip(rng.gamma(4.0, 6.0, n), 2, 70).astype(int)
    drawn = rng.choice(len(words), size=int(lengths.sum()), p=share / share.sum())
    return [[words[i] for i in part] for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def for_both(batch: Batch) -> Batch:
    """The peer's own fields beside ours: the characters and the shape of every token."""
    for name, field in (
        ("characters", "spellings"),
        ("character_lengths", "spelling_lengths"),
        ("token_shapes", "shapes"),
    ):
        batch[name] = batch[field][batch["spelled"]]
    return batch


def batches(encoded: EncodedTokens, given: argparse.Namespace, *, shuffled: bool) -> list[Batch]:
    """As training has them, or shuffled, with random tags."""
    lengths = None if shuffled else encoded.lengths
    made, rng = [], np.random.default_rng(7)
    for rows in RowSampler(len(encoded), given.batch_size, lengths=lengths):
        if len(rows) == given.batch_size and len(made) < given.rounds:
            batch = for_both(encoded.batch(rows))
            batch["y"] = torch.from_numpy(rng.integers(given.tags, size=tuple(batch["words"].shape)))
            made.append(batch)
    return made


def stepper(model: nn.Module, *, fused: bool | None) -> Callable[[Batch], None]:
    """One training step: forward, backward, clip, update."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        total = model.loss(batch)
        (total.total if isinstance(model, TaggerNetwork) else total).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()

    return step


def check_equality(ours: TaggerNetwork, peer: Peer, made: list[Batch]) -> float:
    """The largest relative difference of the losses; the best tags must be the same."""
    ours.eval(), peer.eval()
    worst = 0.0
    with torch.no_grad():
        for batch in made[:5]:
            mine, other = float(ours.loss(batch).total), float(peer.loss(batch))
            worst = max(worst, abs(mine - other) / other)
            for said, tags in zip(ours.decode(batch), peer.decode(batch), strict=True):
                assert said[: len(tags)].tolist() == tags, "the two networks find different tags"
    assert worst < 1e-5, f"the losses of the two networks differ by {worst:.1e} of their value"
    return worst


def training(ours: TaggerNetwork, peer: Peer, made: list[Batch], given: argparse.Namespace) -> dict[str, Any]:
    """Sentences per second of each side, step by step in turns."""
    worst = check_equality(ours, peer, made)
    sides = {
        "ostinato": (ours, stepper(ours, fused=True)),
        "torch": (peer, stepper(peer, fused=True)),
        "torch, default optimizer": (other := copy.deepcopy(peer), stepper(other, fused=None)),
    }
    clock = time.process_time if given.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    for model, _ in sides.values():
        model.train()
    for number, batch in enumerate([*made[:2], *made]):
        set_mask_key(ours, 0, number)
        for name in list(sides)[:: 1 if number % 2 else -1]:
            started_s = clock()
            sides[name][1](batch)
            if number > 1:
                times[name].append(clock() - started_s)
    ratios = {
        name: statistics.median(theirs / mine for mine, theirs in zip(times["ostinato"], spent, strict=True))
        for name, spent in times.items()
    }
    per_s = {name: given.batch_size / statistics.median(spent) for name, spent in times.items()}
    return {"loss_gap": worst, "ratios": ratios, "sentences_per_s": per_s}


def latency(
    ours: TaggerNetwork, peer: Peer, preparation: TokenPreparation, given: argparse.Namespace
) -> dict[str, float]:
    """Median seconds for a sentence of 20 words: from words to the names of tags, and the networks alone."""
    rng = np.random.default_rng(5)
    rows = [row[:20] for row in sentences(400, rng) if len(row) >= 20][:100]
    names = [f"tag{k}" for k in range(given.tags)]
    ours.eval(), peer.eval()

    def whole(row: list[str]) -> list[str]:
        batch = preparation.encode([row]).batch([0])
        return [names[k] for k in ours.decode(batch)[0].tolist()]

    made = [for_both(preparation.encode([row]).batch([0])) for row in rows]
    kinds = {
        "from words to tags": (whole, rows),
        "network": (ours.decode, made),
        "torch": (peer.decode, made),
    }
    found = {}
    for name, (call, inputs) in kinds.items():
        spent = []
        for item in [*inputs[:5], *inputs]:
            started_s = time.process_time()
            call(item)
            spent.append(time.process_time() - started_s)
        found[name] = statistics.median(spent[5:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--tags", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    rows = sentences(9000, rng)
    preparation = TokenPreparation.fit(rows)
    ours = TaggerNetwork(
        preparation.sizes, [f"tag{k}" for k in range(given.tags)], hidden_size=given.hidden, dropout=0.3
    )
    ours.tokens.set_word_counts(preparation.word_counts)
    nn.init.normal_(ours.crf.transitions, std=0.1)
    peer = Peer(ours, 0.3)
    # As the training loop does; it helps both sides.
    keep_freed_memory()
    torch.set_num_threads(1)
    fast = latency(ours, peer, preparation, given)
    torch.set_num_threads(given.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(f"one sentence of 20 words, one thread (goal {1e3 * GOAL_LATENCY_S:.0f} ms):")
    for name, spent_s in fast.items():
        print(f"  {name:26} {1e3 * spent_s:7.2f} ms")
    print(
        f"training, H = {given.hidden}, B = {given.batch_size}, K = {given.tags}, {given.threads} thread(s), "
        f"median of {given.rounds} steps (goal {GOAL_RATIO:.0f} times):"
    )
    encoded, trained = preparation.encode(rows), {}
    for kind in ("similar lengths", "any lengths"):
        made = batches(encoded, given, shuffled=kind == "any lengths")
        trained[kind] = training(copy.deepcopy(ours), copy.deepcopy(peer), made, given)
        print(f"  batches of {kind}; losses within {trained[kind]['loss_gap']:.0e}")
        for name, rate in trained[kind]["sentences_per_s"].items():
            print(f"    {name:24} {rate:7.0f} sentences/s   x {trained[kind]['ratios'][name]:.2f}")
    if given.json:
        given.json.write_text(json.dumps({"latency_s": fast, "training": trained}, indent=1))


if __name__ == "__main__":
    main()
