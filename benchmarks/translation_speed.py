"""How fast an encoder–decoder trains and translates, beside the same network in plain PyTorch.

    python benchmarks/translation_speed.py [--units 8000] [--hidden 512] [--batch-size 64] [--rounds 20]
        [--feeding none output context] [--threads 1] [--json FILE]

The peer has the same parts, sizes and weights, written as everybody writes them: `nn.Embedding`, `nn.LSTM`
over packed sources, `nn.LSTM` over the targets where nothing is fed back and `nn.LSTMCell` in a loop where
something is, attention by `torch.bmm` and a masked softmax, logits of all target tokens for `F.cross_entropy`
with label smoothing, dropout masks by `F.dropout`, fused AdamW. That both give the same loss and the same
gradients is checked first. Then both take the same steps on the same batches in turns: forward, backward,
clipping, update.

Translating is greedy: ours by `ostinato.models.decoding.greedy`, the peer by a loop over its cell, both for
as many tokens as sentences of the data have.

Sentences are about as long as those of Multi30k, units as frequent as Zipf's law has them. With one thread,
times are processor seconds, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
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

from ostinato.layers.dropout import set_mask_key
from ostinato.models.decoding import greedy
from ostinato.models.seq2seq import EncoderDecoder
from ostinato.training.memory import keep_freed_memory
from ostinato.types import Batch

BEGIN, END, FIRST = 2, 3, 4


class Peer(nn.Module):
    """The same network in plain PyTorch, with the weights of ours."""

    def __init__(self, ours: EncoderDecoder):
        super().__init__()
        o, decoder = ours.options, ours.decoder
        D, H = o.embedding_size, o.hidden_size
        self.feeding, self.smoothing = o.feeding, o.label_smoothing
        self.dropouts = (o.dropout_embedding, o.dropout_between, o.dropout_output)
        self.source = nn.Embedding(ours.source_size, D)
        self.target = nn.Embedding(ours.target_size, D)
        self.encoder = nn.LSTM(D, H // 2, batch_first=True, bidirectional=True)
        width = decoder.first.input_size
        self.layer = nn.LSTM(width, H, batch_first=True) if self.feeding == "none" else nn.LSTMCell(width, H)
        self.keys = nn.Linear(H, H, bias=False)
        self.bridge = nn.Linear(*reversed(decoder.bridge.weight.shape))
        self.readout = nn.Linear(2 * H + D, D)
        self.bias = nn.Parameter(torch.zeros(ours.target_size))
        weights = decoder.first.state_dict()
        if self.feeding != "none":
            weights = {name.removesuffix("_l0"): value for name, value in weights.items()}
        self.layer.load_state_dict(weights)
        self.encoder.load_state_dict(ours.encoder[0].state_dict())
        self.bridge.load_state_dict(decoder.bridge.state_dict())
        self.readout.load_state_dict(decoder.readout.state_dict())
        with torch.no_grad():
            self.keys.weight.copy_(decoder.attention.of_memory.weight)
            self.source.weight.copy_(ours.source_embedding.weight)
            self.target.weight.copy_(ours.target_embedding.weight)

    def _drop(self, x: Tensor, which: int) -> Tensor:
        if not self.training or not self.dropouts[which]:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, x.shape[2]), self.dropouts[which])

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor | None]]:
        """Memory, keys, what is padding, and the decoder's first state."""
        source, lengths = batch["source"], batch["source_lengths"]
        x = self._drop(self.source(source) * self.source.embedding_dim**0.5, 0)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.encoder(packed)
        memory, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=source.shape[1])
        H = memory.shape[2]
        first = torch.tanh(self.bridge(torch.cat([h[0], h[1]], dim=1)))
        memory = self._drop(memory, 1)
        padding = torch.arange(source.shape[1]) >= lengths.unsqueeze(1)
        fed = first[:, 2 * H :] if self.feeding == "context" else None
        if self.feeding == "output":
            fed = first.new_zeros(len(first), self.target.embedding_dim)
        return memory, self.keys(memory), padding, (first[:, :H], first[:, H : 2 * H], fed)

    def read(self, query: Tensor, memory: Tensor, keys: Tensor, padding: Tensor) -> Tensor:
        """Contexts of queries (B, T, H)."""
        scores = torch.bmm(query, keys.transpose(1, 2)).masked_fill(padding.unsqueeze(1), float("-inf"))
        return torch.bmm(torch.softmax(scores, dim=2), memory)

    def step(self, x: Tensor, state: Any, encoded: Any) -> tuple[Tensor, Any]:
        """One step of a cell that is fed something."""
        h, c, fed = state
        if self.feeding == "context":
            context = self.read(fed.unsqueeze(1), *encoded)[:, 0]
            h, c = self.layer(torch.cat([x, context], dim=1), (h, c))
        else:
            h, c = self.layer(torch.cat([x, fed], dim=1), (h, c))
            context = self.read(h.unsqueeze(1), *encoded)[:, 0]
        said = torch.tanh(self.readout(torch.cat([h, context, x], dim=1)))
        return said, (h, c, said if self.feeding == "output" else h)

    def decode(self, tokens: Tensor, state: Any, encoded: Any) -> tuple[Tensor, Any]:
        """What the output layer reads, for T steps, and the state."""
        x = self._drop(self.target(tokens) * self.target.embedding_dim**0.5, 0)
        if self.feeding == "none":
            h, c = (leaf.unsqueeze(0).contiguous() for leaf in state[:2])
            y, (h, c) = self.layer(x, (h, c))
            context = self.read(y, *encoded)
            said = torch.tanh(self.readout(torch.cat([y, context, x], dim=2)))
            return said, (h[0], c[0], None)
        steps = []
        for t in range(x.shape[1]):
            said, state = self.step(x[:, t], state, encoded)
            steps.append(said)
        return torch.stack(steps, dim=1), state

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy, summed."""
        *encoded, state = self.encode(batch)
        said, _ = self.decode(batch["target_in"], state, encoded)
        logits = F.linear(self._drop(said, 2), self.target.weight, self.bias)
        real = torch.arange(logits.shape[1]) < batch["target_lengths"].unsqueeze(1)
        targets = batch["target_out"].masked_fill(~real, -100)
        smoothing = self.smoothing if self.training else 0.0
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing
        )

    @torch.no_grad()
    def translate(self, batch: Batch, n: int) -> Tensor:
        """n tokens of each sentence, the most probable one after the other."""
        *encoded, state = self.encode(batch)
        tokens, said = torch.full((len(batch["source"]), 1), BEGIN), []
        for _ in range(n):
            r, state = self.decode(tokens, state, encoded)
            tokens = F.linear(r, self.target.weight, self.bias).argmax(2)
            said.append(tokens)
        return torch.cat(said, dim=1)


def make_batches(given: argparse.Namespace) -> list[Batch]:
    """Pairs of sentences of similar length, some tokens longer on one side."""
    rng = np.random.default_rng(11)
    made = []
    for _ in range(given.rounds):
        about = int(np.clip(rng.gamma(9.0, 1.7), 6, 40))
        lengths = np.clip(about + rng.integers(-1, 2, (2, given.batch_size)), 3, 45)
        rows = [
            FIRST + (rng.zipf(1.3, (given.batch_size, int(n.max()))) - 1) % (given.units - FIRST)
            for n in lengths
        ]
        source, target = (torch.from_numpy(one.astype(np.int64)) for one in rows)
        given_in = torch.cat([torch.full((given.batch_size, 1), BEGIN), target[:, :-1]], dim=1)
        made.append(
            Batch(
                source=source, source_lengths=torch.from_numpy(lengths[0]), target_in=given_in,
                target_out=target, target_lengths=torch.from_numpy(lengths[1]),
            )
        )  # fmt: skip
    return made


def check_equality(ours: EncoderDecoder, peer: Peer, batch: Batch) -> float:
    """The largest relative difference of the loss, and of the gradients, without dropout."""
    kept, peer.dropouts = peer.dropouts, (0.0, 0.0, 0.0)
    ours.eval(), peer.eval()
    mine, other = ours.loss(batch).total, peer.loss(batch)
    worst = abs(float(mine.detach()) - float(other.detach())) / float(other.detach())
    mine.backward(), other.backward()
    pairs = [
        (ours.target_embedding.weight, peer.target.weight),
        (ours.source_embedding.weight, peer.source.weight),
        (ours.decoder.attention.of_memory.weight, peer.keys.weight),
        (ours.decoder.readout.weight, peer.readout.weight),
        (ours.decoder.bridge.weight, peer.bridge.weight),
        (ours.output.bias, peer.bias),
    ]
    for one, two in pairs:
        worst = max(worst, float((one.grad - two.grad).abs().max() / two.grad.abs().max()))
    ours.zero_grad(), peer.zero_grad()
    peer.dropouts = kept
    assert worst < 1e-4, f"the two networks differ by {worst:.1e} of their values"
    return worst


def stepper(model: nn.Module) -> Callable[[Batch], None]:
    """One training step: forward, backward, clip, update."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        total = model.loss(batch)
        total = total.total if isinstance(model, EncoderDecoder) else total
        (total / batch["target_lengths"].sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def in_turns(
    calls: dict[str, Callable[[Batch], object]], batches: list[Batch], clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each call on each batch, after one batch to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number, batch in enumerate([batches[0], *batches]):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            started_s = clock()
            calls[name](batch)
            if number:
                times[name].append(clock() - started_s)
    return times


def measure(feeding: str, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides with one kind of feeding."""
    torch.manual_seed(1)
    ours = EncoderDecoder(
        given.units, given.units, hidden_size=given.hidden, embedding_size=given.hidden // 2, feeding=feeding
    )
    peer, batches = Peer(ours), make_batches(given)
    gap = check_equality(ours, peer, batches[0])
    clock = time.process_time if given.threads == 1 else time.perf_counter
    ours.train(), peer.train()
    set_mask_key(ours, 0, 1)
    training = in_turns({"ostinato": stepper(ours), "torch": stepper(peer)}, batches, clock)
    tokens = statistics.mean(int(batch["target_lengths"].sum()) for batch in batches)
    ours.eval(), peer.eval()

    def translate(batch: Batch) -> None:
        with torch.no_grad():
            encoded = ours.encode(batch)
            start = torch.full((len(batch["source"]),), BEGIN)
            greedy(encoded.step, encoded.state, start, end=None, max_length=batch["target_in"].shape[1])

    calls = {"ostinato": translate, "torch": lambda b: peer.translate(b, b["target_in"].shape[1])}
    translating = in_turns(calls, batches[: max(3, given.rounds // 4)], clock)
    row: dict[str, Any] = {"feeding": feeding, "gap": gap}
    for what, times in (("training", training), ("greedy", translating)):
        pairs = zip(times["ostinato"], times["torch"], strict=True)
        row[what] = {
            "ratio": statistics.median(theirs / mine for mine, theirs in pairs),
            **{f"{name}_s": statistics.mean(spent) for name, spent in times.items()},
        }
    row["tokens_per_s"] = tokens / row["training"]["ostinato_s"]
    row["output_share"] = output_share(ours, int(tokens), clock) / row["training"]["ostinato_s"]
    return row


def output_share(ours: EncoderDecoder, tokens: int, clock: Callable[[], float]) -> float:
    """Seconds that the output layer and its softmax take of a step, forward and backward."""
    readout = torch.randn(tokens, ours.options.embedding_size, requires_grad=True)
    targets, weight = torch.randint(FIRST, ours.target_size, (tokens,)), ours.target_embedding.weight
    spent = []
    for _ in range(4):
        started_s = clock()
        ours.output.loss(readout, targets, weight, 0.1).backward()
        spent.append(clock() - started_s)
    ours.zero_grad()
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=8000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--feeding", nargs="+", default=["none", "output", "context"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    rows = []
    print("  feeding   training: ours / torch  ratio  tokens/s  softmax   greedy: ours / torch  ratio")
    for feeding in given.feeding:
        row = measure(feeding, given)
        rows.append(row)
        t, g = row["training"], row["greedy"]
        print(
            f"{feeding:>9} {t['ostinato_s']:11.3f} / {t['torch_s']:.3f} s {t['ratio']:8.2f} "
            f"{row['tokens_per_s']:9.0f} {row['output_share']:8.0%} "
            f"{g['ostinato_s']:13.3f} / {g['torch_s']:.3f} s {g['ratio']:6.2f}",
            flush=True,
        )
    if given.json:
        facts = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        options = {**vars(given), "json": str(given.json)}
        given.json.write_text(json.dumps({**facts, "options": options, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
