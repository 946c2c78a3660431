"""The decoder of sequence-to-sequence models: recurrent layers that read a memory and say the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ostinato.layers.attention_over import AttentionOver, Memory
from ostinato.layers.locked_dropout import LockedDropout
from ostinato.layers.looped import LoopedLayer, LoopProducts
from ostinato.layers.stack import Stack
from ostinato.models.encoder import build_encoder
from ostinato.models.seq2seq_options import MONOTONIC, Seq2SeqOptions
from ostinato.types import State


@dataclass(frozen=True, eq=False)
class Steps:
    """What a decoder gives for T steps.

    Attributes:
        readout: (B, T, D), for the output layer; not yet dropped.
        features: (B, T, F), what the readout was computed from.
        weights: (B, T, S) of the attention; None without one.
        state: after the last step.
    """

    readout: Tensor
    features: Tensor
    weights: Tensor | None
    state: State


class AttentionDecoder(nn.Module):
    """Recurrent layers over the tokens so far, an attention over the source, and what is said of both.

        q_t = layer_1([x_t; fed_t])        c_t = attention(q_t, memory)
        y_t = layer_2…([q_t; c_t])         r_t = tanh(W [y_t; c_t; x_t] + b)

    With monotonic attention c_t is what the encoder said of token t, and q_t = layer_1([x_t; c_t]).
    fed_t is nothing, r_{t-1} (`output`, Luong et al. 2015), or c_t = attention(q_{t-1}, memory) (`context`,
    Bahdanau et al. 2014). Where it is nothing, and attention is without coverage, all steps of a layer are
    one call of its kernel, and all queries one product.

    Args:
        options: of the model.
        summary_size: width of what the first state is made of.
        memory_size: E; None: no attention.

    Attributes:
        feature_size: F.

    Cost per step: that of the layers over D + H + E inputs, the attention, and 2·F·D flops.
    """

    def __init__(self, options: Seq2SeqOptions, summary_size: int, memory_size: int | None):
        super().__init__()
        D, H, self.feeding = options.embedding_size, options.hidden_size, options.feeding
        E = memory_size or 0
        self.is_monotonic = options.attention == MONOTONIC
        width = E if self.is_monotonic else {"none": 0, "output": D, "context": E}[self.feeding]
        self.first: Stack = build_encoder(options.cell, D + width, H, **options.layer)
        Q = self.first.output_size
        self.attention: AttentionOver | None = None
        if memory_size is not None and not self.is_monotonic:
            self.attention = AttentionOver(
                options.attention, Q, memory_size, attention_size=options.attention_size,
                window=options.window, coverage=options.coverage,
            )  # fmt: skip
        self.rest = nn.ModuleList()
        for layer in range(options.decoder_layers - 1):
            before = self._layer(layer - 1).output_size if layer else Q + E
            self.rest.append(build_encoder(options.cell, before, H, **options.layer))
        # One mask for each of the layers after the first.
        self.between = nn.ModuleList(
            LockedDropout(options.dropout_between, 100 + layer) for layer in range(len(self.rest))
        )
        top = self._layer(len(self.rest) - 1).output_size if self.rest else Q
        self.feature_size = top + E + D
        self.readout = nn.Linear(self.feature_size, D)
        self._fed_size = {"none": 0, "output": D, "context": Q}[self.feeding]
        self.bridge = nn.Linear(summary_size, self._bridged_size())

    def _layer(self, number: int) -> Stack:
        layer: Stack = self.rest[number]  # type: ignore[assignment]
        return layer

    @property
    def _stacks(self) -> dict[str, Stack]:
        return {"first": self.first, **{f"rest{i}": self._layer(i) for i in range(len(self.rest))}}

    def _bridged_size(self) -> int:
        leaves = [
            leaf
            for stack in self._stacks.values()
            for leaf in pytree.tree_leaves(stack.initial_state(1, training=False))
        ]
        return sum(leaf.numel() for leaf in leaves) + (self._fed_size if self.feeding == "context" else 0)

    # State -------------------------------------------------------------------------------------------

    def start(self, summary: Tensor, source_steps: int) -> State:
        """The state before the first step: tanh(W s + b) of what is known of the source, s (B, summary_size).

        Leaves: `first`, `rest0`, …, of the layers; `fed`; `coverage` (B, S); `place` (B,), the source token
        that a monotonic step reads; `row` (B,), the row of the memory that each sequence reads, which stays
        right where sequences are reordered, repeated or dropped.
        """
        B, at = len(summary), 0
        bridged = torch.tanh(self.bridge(summary))
        leaves: dict[str, Any] = {"row": torch.arange(B, device=summary.device)}
        for name, stack in self._stacks.items():
            plain = stack.initial_state(1, training=False)
            flat, shape = pytree.tree_flatten(plain)
            made = []
            for leaf in flat:
                made.append(bridged[:, at : at + leaf.numel()].reshape(B, *leaf.shape[1:]).to(leaf.dtype))
                at += leaf.numel()
            state = pytree.tree_unflatten(made, shape)
            # Random masks need to know where in time a row is.
            clock = {k: v for k, v in stack.initial_state(B).items() if k not in plain}
            leaves[name] = state.replace(**clock)
        if self.feeding == "output":
            leaves["fed"] = bridged.new_zeros(B, self._fed_size)
        elif self.feeding == "context":
            leaves["fed"] = bridged[:, at:]
        if self._has_coverage:
            leaves["coverage"] = bridged.new_zeros(B, source_steps)
        if self.is_monotonic:
            leaves["place"] = torch.zeros(B, dtype=torch.long, device=summary.device)
        return State(leaves)

    @property
    def _has_coverage(self) -> bool:
        return self.attention is not None and self.attention.of_coverage is not None

    # Steps -------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, state: State, memory: Memory | None) -> Steps:
        """T steps from embeddings (B, T, D) of the tokens that each step is fed.

        The memory has one row for each row of x; or, at a single step, one for each of equally large groups
        of rows.
        """
        keeps = [keep(x.new_ones(len(x), 1, self._input_size(i))) for i, keep in enumerate(self.between)]
        if self.feeding == "output":
            return self._output_fed(x, state, memory, keeps)
        context: Tensor | None
        weights: Tensor | None
        if self.feeding == "context":
            assert memory is not None
            query, context, weights, new = self._context_fed(x, state, memory)
        elif self.is_monotonic:
            assert memory is not None
            context, weights = _at_places(state.place, memory, x.shape[1])
            query, first = self.first(_beside(x, context), state["first"])
            new = {"first": first, "place": state.place + x.shape[1]}
        else:
            query, first = self.first(x, state["first"])
            context, weights, covered = self._read(query, memory, state.get("coverage"))
            new = {"first": first, "coverage": covered}
        y = query
        for i, keep in enumerate(keeps):
            y, new[f"rest{i}"] = self._layer(i)(
                self._dropped(_beside(y, None if i else context), keep), state[f"rest{i}"]
            )
        features = _beside(y, context, x)
        return Steps(torch.tanh(self.readout(features)), features, weights, _changed(state, new))

    def _context_fed(
        self, x: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """The first layer, each step of which is fed what the output before it reads."""
        first = LoopedLayer(self.first, _state(state, "first"), x, LoopProducts())
        query, covered = state.fed, state.get("coverage")
        queries, contexts, read = [], [], []
        for t in range(x.shape[1]):
            context, weights, covered = self._read(query.unsqueeze(1), memory, covered)
            assert context is not None
            query = first.step(t, context[:, 0])
            queries.append(query)
            contexts.append(context)
            read.append(weights)
        new = {"first": first.state, "fed": query, "coverage": covered}
        return torch.stack(queries, dim=1), _after_another(contexts), _after_another(read), new

    def _output_fed(self, x: Tensor, state: State, memory: Memory | None, keeps: list[Tensor]) -> Steps:
        """All layers, each step of which is fed what the step before gave."""
        products = LoopProducts()
        first = LoopedLayer(self.first, _state(state, "first"), x, products)
        rest = [
            LoopedLayer(self._layer(i), _state(state, f"rest{i}"), None, products) for i in range(len(keeps))
        ]
        fed, covered, D = state.fed, state.get("coverage"), x.shape[2]
        weight = self.readout.weight
        known = F.linear(x, weight[:, -D:], self.readout.bias).unbind(1)
        weight = weight[:, :-D]
        said, above, read = [], [], []
        for t in range(x.shape[1]):
            query = first.step(t, fed).unsqueeze(1)
            context, weights, covered = self._read(query, memory, covered)
            y = query
            for i, keep in enumerate(keeps):
                y = (
                    rest[i]
                    .step(t, self._dropped(_beside(y, None if i else context), keep)[:, 0])
                    .unsqueeze(1)
                )
            above.append(_beside(y, context))
            fed = torch.tanh(known[t] + products(above[-1][:, 0], weight))
            said.append(fed)
            read.append(weights)
        new = {"first": first.state, "fed": fed, "coverage": covered}
        new |= {f"rest{i}": layer.state for i, layer in enumerate(rest)}
        features = _beside(torch.cat(above, dim=1), x)
        return Steps(torch.stack(said, dim=1), features, _after_another(read), _changed(state, new))

    def _dropped(self, x: Tensor, keep: Tensor) -> Tensor:
        return x * keep if self.training else x

    def _read(
        self, query: Tensor, memory: Memory | None, covered: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Context and weights for queries (N, T, Q), and what was read (N, S) after them."""
        if self.attention is None or memory is None:
            return None, None, None
        N, T, _ = query.shape
        B = len(memory.values)
        if N != B:
            # Hypotheses of one source share its memory as the steps of one sequence do.
            assert T == 1
            query = query.view(B, N // B, -1)
            covered = None if covered is None else covered.view(B, N // B, -1)
            context, weights = self.attention(query, memory, covered)
            context, weights = context.reshape(N, 1, -1), weights.reshape(N, 1, -1)
            return context, weights, None if covered is None else (covered.flatten(0, 1) + weights[:, 0])
        if covered is None:
            return *self.attention(query, memory), None
        contexts, read = [], []
        for t in range(T):
            context, weights = self.attention(query[:, t : t + 1], memory, covered.unsqueeze(1))
            covered = covered + weights[:, 0]
            contexts.append(context)
            read.append(weights)
        return torch.cat(contexts, dim=1), torch.cat(read, dim=1), covered

    def _input_size(self, number: int) -> int:
        return self._layer(number).input_size


def _at_places(place: Tensor, memory: Memory, T: int) -> tuple[Tensor, Tensor]:
    """What stands in the memory at the T places from `place` (N,) on, (N, T, E), and one-hot weights; of what
    is not real zeros."""
    B, S, E = memory.values.shape
    N = len(place)
    if not S:
        return memory.values.new_zeros(N, T, E), memory.values.new_zeros(N, T, 0)
    places = (place.unsqueeze(1) + torch.arange(T, device=place.device)).clamp(max=S - 1)
    grouped = places.view(B, -1, 1).expand(-1, -1, E)
    weights = places.unsqueeze(2) == torch.arange(S, device=place.device)
    if memory.mask is not None:
        weights = weights & memory.mask.repeat_interleave(N // B, 0).unsqueeze(1)
    return memory.values.gather(1, grouped).view(N, T, E), weights.to(memory.values.dtype)


def _beside(*parts: Tensor | None) -> Tensor:
    """Features side by side, of what there is."""
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else torch.cat(given, dim=2)


def _after_another(parts: list[Any]) -> Any:
    """Single steps (B, 1, ·) as one stretch; None where they are."""
    return None if parts[0] is None else torch.cat(parts, dim=1)


def _state(state: State, name: str) -> State:
    leaf = state[name]
    assert isinstance(leaf, State)
    return leaf


def _changed(state: State, new: dict[str, Any]) -> State:
    """The state with some leaves replaced, of those that there are."""
    return state.replace(**{name: leaf for name, leaf in new.items() if leaf is not None})
