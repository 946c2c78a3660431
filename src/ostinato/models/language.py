"""`LanguageNetwork`: the probability of the next unit of a text, given all before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.cells import Cell
from ostinato.layers.locked_dropout import LockedDropout, WordDropout
from ostinato.layers.softmax import ClusterTables, SoftmaxHead
from ostinato.layers.stack import Stack
from ostinato.models.encoder import build_encoder
from ostinato.types import Batch, LossOutput, State


class LanguageNetwork(nn.Module):
    """Embeddings, recurrent layers, a softmax; regularised as AWD-LSTM (arXiv:1708.02182) is.

        x = E[w] → dropped → layer 0 → dropped → … → layer L-1 → dropped → projection → softmax(E h + b)

    Args:
        vocabulary_size: V; ids sorted by falling frequency where there are `cutoffs`.
        embedding_size: E, width of a unit's vector.
        hidden_size: H of every recurrent layer.
        num_layers: L.
        cell: a name, or a `Cell` class, as for `build_encoder`.
        tied: the softmax's weights are the embeddings (arXiv:1608.05859); where H is not E a matrix comes
            between. Untied, the softmax sees the H-wide state itself.
        cutoffs: of clusters of rarer units, for both tables: adaptive softmax (arXiv:1609.04309).
        word_dropout: probability that a word is dropped wherever it occurs.
        dropout_in, dropout_between, dropout_out: variational, one mask for all times, on the embeddings,
            between layers, before the softmax.
        weight_drop: DropConnect on the recurrent matrices of cells that have one.
        activation: α of the penalty α·mean(h²) on the dropped last outputs (AR), per unit of text.
        slowness: β of the penalty β·mean((h_t - h_{t-1})²) on the last outputs (TAR).

    Raises:
        InputError: an unknown cell, a probability or size out of range, a penalty below 0.

    Cost per unit of text in training: 6 flops for each weight of the layers and, with one cluster, of the
    softmax.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: str | type[Cell] = "lstm",
        *,
        tied: bool = True,
        cutoffs: Sequence[int] = (),
        **regularisers: float,
    ):
        super().__init__()
        options = _Regularisers(**regularisers)
        self.vocabulary_size, self.tied = vocabulary_size, tied
        self.activation, self.slowness = options.activation, options.slowness
        self.embedding = ClusterTables(vocabulary_size, embedding_size, cutoffs)
        of_layer: dict[str, Any] = {"weight_drop": options.weight_drop} if options.weight_drop else {}
        self.layers = nn.ModuleList(
            build_encoder(cell, H, hidden_size, **of_layer)
            for H in [embedding_size, *[hidden_size] * (num_layers - 1)]
        )
        self.projection: nn.Linear | None = None
        self.output: ClusterTables | None = None
        if not tied:
            self.output = ClusterTables(vocabulary_size, hidden_size, cutoffs)
        elif hidden_size != embedding_size:
            self.projection = nn.Linear(hidden_size, embedding_size, bias=False)
        self.head: SoftmaxHead | None = SoftmaxHead(self._tables)
        self.word_dropout = WordDropout(options.word_dropout)
        self.drops = nn.ModuleList(
            LockedDropout(probability, number)
            for number, probability in enumerate(
                [options.dropout_in, *[options.dropout_between] * (num_layers - 1), options.dropout_out]
            )
        )

    @property
    def _tables(self) -> ClusterTables:
        return self.embedding if self.output is None else self.output

    @property
    def softmax(self) -> SoftmaxHead:
        """The probabilities' part."""
        assert self.head is not None, "forget_softmax was called"
        return self.head

    @property
    def output_weight(self) -> Tensor:
        """(V, E) or, untied, (V, H): the softmax's weights, of a network without clusters."""
        return self._tables.weights[0]

    @property
    def hidden_size(self) -> int:
        """H, width of what `encode` gives."""
        return self._layer(-1).output_size

    def _layer(self, number: int) -> Stack:
        layer: Stack = self.layers[number]  # type: ignore[assignment]
        return layer

    def forget_softmax(self) -> None:
        """Drop what only the probabilities of units need, for a network that says something else."""
        self.head, self.output, self.projection = None, None, None

    def initial_state(self, batch_size: int) -> State:
        """The state before the first unit: `layer0`, `layer1`, …"""
        return State({f"layer{i}": self._layer(i).initial_state(batch_size) for i in range(len(self.layers))})

    def encode(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        rows: Tensor | None = None,
        frozen: int = 0,
        **call: Any,
    ) -> tuple[Tensor, State]:
        """Outputs of the last layer (B, T, H), not yet dropped, and the state.

        Args:
            ids: (B, T).
            state: to go on from.
            rows: (B,) ids of the rows, which random masks depend on.
            frozen: how many parts from below, the embeddings and then the layers, get no gradient.
            **call: `lengths`, `mask` or `resets`, as for every layer.
        """
        learns = torch.is_grad_enabled()
        with torch.set_grad_enabled(learns and not frozen):
            x = self.word_dropout(self.embedding(ids), ids, self.vocabulary_size)
        states: dict[str, Any] = {}
        for i in range(len(self.layers)):
            name = f"layer{i}"
            with torch.set_grad_enabled(learns and frozen < i + 2):
                x, states[name] = self._layer(i)(
                    self.drops[i](x, rows), None if state is None else state[name], **call
                )
        return x, State(states)

    def loss(self, batch: Batch, state: State | None = None) -> LossOutput:
        """Σ -log P(y) over real steps, in nats, with the penalties; and the state to carry.

        Args:
            batch: `x` (B, T) ids of what came before, `y` (B, T) ids to be told; optional `resets` and `mask`
                (B, T), and `row` (B,) ids of the streams.
            state: of the end of the stretch before.
        """
        ids, y, mask, rows = batch["x"].long(), batch["y"].long(), batch.get("mask"), batch.get("row")
        h, state = self.encode(ids, state, rows=rows, mask=mask, resets=batch.get("resets"))
        dropped = self.drops[-1](h, rows)
        real = dropped.flatten(0, 1) if mask is None else dropped[mask]
        targets = y.flatten() if mask is None else y[mask]
        total = self.softmax.loss(self._projected(real), targets, self._tables)
        count = torch.tensor(len(targets), device=total.device)
        if self.training and (self.activation or self.slowness):
            total = total + count * self._penalty(h, real, mask)
        return LossOutput(total, count, state)

    def nats(self, h: Tensor, targets: Tensor) -> Tensor:
        """Σ -log P(target) of outputs h (N, H) of `encode` and targets (N,); in evaluation mode."""
        return self.softmax.loss(self._projected(h), targets, self._tables)

    def unit_nats(self, h: Tensor, targets: Tensor) -> Tensor:
        """(N,) the same, each by itself, without gradients."""
        return self.softmax.unit_nats(self._projected(h), targets, self._tables)

    def _penalty(self, h: Tensor, real: Tensor, mask: Tensor | None) -> Tensor:
        penalty = self.activation * real.float().pow(2).mean()
        if self.slowness and h.shape[1] > 1:
            steps = (h[:, 1:] - h[:, :-1]).float().pow(2)
            steps = steps.flatten(0, 1) if mask is None else steps[mask[:, 1:] & mask[:, :-1]]
            if len(steps):
                penalty = penalty + self.slowness * steps.mean()
        return penalty

    def _projected(self, h: Tensor) -> Tensor:
        if self.projection is None:
            return h
        # Not the module's call: this is the hot way of a step.
        return nn.functional.linear(h, self.projection.weight)

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One unit, ids (N,): logits (N, V) of the next, with clusters log-probabilities, and the state."""
        x = self.embedding(ids)
        states: dict[str, Any] = {}
        for i in range(len(self.layers)):
            name = f"layer{i}"
            own: Any = state[name]
            x, states[name] = self._layer(i).step(x, own)
        return self.softmax.log_probs(self._projected(x), self._tables), State(states)


class _Regularisers:
    """The regularisers by name, checked; all off by default."""

    names = (
        "word_dropout", "dropout_in", "dropout_between", "dropout_out", "weight_drop", "activation",
        "slowness",
    )  # fmt: skip
    word_dropout: float
    dropout_in: float
    dropout_between: float
    dropout_out: float
    weight_drop: float
    activation: float
    slowness: float

    def __init__(self, **given: float):
        for name in given:
            if name not in self.names:
                raise InputError(f"LanguageNetwork: unknown option {name!r}; known: {', '.join(self.names)}")
        for name in self.names:
            value = float(given.get(name, 0.0))
            if value < 0:
                raise InputError(f"LanguageNetwork: {name}={value!r}, expected a number of at least 0")
            setattr(self, name, value)
