"""`EncoderDecoder`: one sequence of tokens into another; `OneToMany`: a vector into a sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.errors import InputError, SizeError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.attention_over import Memory, coverage_loss
from ostinato.layers.locked_dropout import LockedDropout
from ostinato.models.encoder import build_encoder
from ostinato.models.seq2seq_decoder import AttentionDecoder, Steps
from ostinato.models.seq2seq_options import MONOTONIC, read_options
from ostinato.models.seq2seq_output import CopyOutput, WordOutput
from ostinato.models.token_coins import TokenCoins
from ostinato.types import Batch, LossOutput, State


@dataclass(frozen=True, eq=False)
class Encoded:
    """Sources that were read, ready for a decoder: `beam_search(encoded.step, encoded.state, start, …)`.

    Attributes:
        model: that read them.
        memory: what attention reads; None without one.
        state: the decoder's, before the first token; leaves (B, …).
        copied: (B, S) ids of the source in the extended vocabulary; None where nothing is copied.
        output_size: V, and on top for copying the largest number of extra words, and with monotonic attention
            the end, V: it has all probability after a source's last token, and none before.
    """

    model: _Sequences
    memory: Memory | None
    state: State
    copied: Tensor | None
    output_size: int

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, ...]:
        """The next token of N sequences, of any of the sources, which `state.row` says.

        Args:
            tokens: (N,) the last tokens; those of the extended vocabulary are taken for unknown.
            state: leaves (N, …).

        Returns:
            Scores (N, output_size), whose softmax are the probabilities (copying models give their
            logarithms); the state; and with an attention its weights (N, S).

        Cost: that of a step of the decoder, and 2·N·V·D flops. Sources are not copied for sequences in groups
        of one size, in the order of the sources, as a beam keeps them.
        """
        return self.model.step(tokens, state, self)


class _Sequences(nn.Module):
    """What says a sequence of tokens: the decoder, its embedding, its output layer, its loss."""

    def _set_up(
        self, where: str, target_size: int, unknown: int, given: dict[str, Any], *, has_source: bool
    ) -> None:
        self._where = where
        self.options = o = read_options(where, given, has_source=has_source)
        check_sizes(where, target_size=target_size)
        if not 0 <= unknown < target_size:
            raise InputError(f"{where}: unknown={unknown}, expected an id below target_size={target_size}")
        self.target_size, self.unknown = target_size, unknown
        self.target_embedding = make_embedding(target_size, o.embedding_size)
        self.drop_target = LockedDropout(o.dropout_embedding, 0)
        self.drop_output = LockedDropout(o.dropout_output, 1)
        self.hide_target = TokenCoins(f"{where}: word_dropout", o.word_dropout, 0)
        self.choose_own = TokenCoins(
            f"{where}: scheduled_sampling", o.scheduled_sampling, 1, ramp_steps=o.scheduled_sampling_steps
        )

    def _set_up_decoder(self, summary_size: int, memory_size: int | None) -> None:
        o = self.options
        self.decoder = AttentionDecoder(o, summary_size, memory_size)
        kind = CopyOutput if o.copying else WordOutput
        self.output = kind(
            o.embedding_size, self.target_size, self.decoder.feature_size, is_tied=o.tie != "none"
        )

    # The source --------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Read the sources of a batch."""
        raise NotImplementedError

    # Training ----------------------------------------------------------------------------------------

    def loss(self, batch: Batch, state: Any = None) -> LossOutput:
        """-log P(target), summed over the tokens of the targets.

        In training with label smoothing, and with the coverage loss; in evaluation neither, so that the total
        is that of the probabilities of `Encoded.step`.

        Args:
            batch: the fields of `encode`; `target_in` (B, T) what each step is fed, `target_out` (B, T) what
                it is to say (in the extended vocabulary where words are copied), `target_lengths` (B,).
            state: none is carried.

        Raises:
            InputError: a state, which whole sequences do not carry.
            SizeError: fields whose shapes do not fit.
        """
        if state is not None:
            raise InputError(f"{self._where}.loss: sequences are whole, and no state is carried between them")
        encoded = self.encode(batch)
        given, wanted = batch["target_in"], batch["target_out"]
        if given.shape != wanted.shape or given.dim() != 2 or len(given) != len(encoded.state.row):
            raise SizeError(
                f"{self._where}.loss: target_in {tuple(given.shape)} and target_out {tuple(wanted.shape)}, "
                f"expected (B, T) of both, with B={len(encoded.state['row'])} as in the source"
            )
        lengths = batch["target_lengths"]
        if self.decoder.is_monotonic and not torch.equal(lengths, batch["source_lengths"]):
            raise SizeError(
                f"{self._where}.loss: with monotonic attention each source token stands for one of the "
                "target, without an end; target_lengths are others than source_lengths"
            )
        real = torch.arange(given.shape[1], device=given.device) < lengths.unsqueeze(1)
        given = self._mixed(self._known(given), encoded)
        steps = self._decode(given, encoded)
        total = self._loss_of(steps, wanted, real, encoded)
        if self.options.coverage_weight and self.training:
            assert steps.weights is not None
            total = total + self.options.coverage_weight * coverage_loss(steps.weights)[real].sum()
        return LossOutput(total, real.sum())

    def _loss_of(self, steps: Steps, wanted: Tensor, real: Tensor, encoded: Encoded) -> Tensor:
        smoothing = self.options.label_smoothing if self.training else 0.0
        readout = self.drop_output(steps.readout)[real]
        weight = self._output_weight
        if isinstance(self.output, WordOutput):
            return self.output.loss(readout, wanted[real], weight, smoothing)
        assert encoded.copied is not None
        assert steps.weights is not None
        # Which source steps say the wanted word.
        matches = encoded.copied.unsqueeze(1) == wanted.unsqueeze(2)
        return self.output.loss(
            readout, steps.features[real], wanted[real], steps.weights[real], matches[real], weight, smoothing
        )

    def _decode(self, tokens: Tensor, encoded: Encoded) -> Steps:
        x = self.drop_target(self._embed(self.target_embedding, tokens))
        return self.decoder(x, encoded.state, encoded.memory)

    def _mixed(self, tokens: Tensor, encoded: Encoded) -> Tensor:
        """The tokens that are fed: some hidden, some replaced by what the model says in their place."""
        hidden = self.hide_target(tokens)
        given = tokens if hidden is None else tokens.masked_fill(hidden, self.unknown)
        own = self.choose_own(tokens)
        if own is None:
            return given
        with torch.no_grad():
            steps = self._decode(given, encoded)
            said = self._known(self._scores(steps, encoded).argmax(2))
        before = torch.cat([given[:, :1], said[:, :-1]], dim=1)
        # The first token has none before it.
        own[:, 0] = False
        return torch.where(own, before, given)

    # One step ----------------------------------------------------------------------------------------

    def step(self, tokens: Tensor, state: State, encoded: Encoded) -> tuple[Tensor, ...]:
        """As `Encoded.step`."""
        memory, copied = encoded.memory, encoded.copied
        ends = self._is_read(state, memory)
        if memory is not None:
            rows = _shared_rows(state.row, len(memory.values))
            if rows is not None:
                memory = memory.select(rows)
                copied = None if copied is None else copied[rows]
        x = self._embed(self.target_embedding, self._known(tokens)).unsqueeze(1)
        steps = self.decoder(x, state, memory)
        source = Encoded(self, memory, state, copied, encoded.output_size)
        scores = self._scores(steps, source)[:, 0]
        if ends is not None:
            # Either the end alone or all but the end.
            nothing = float("-inf")
            end = torch.zeros_like(scores[:, :1]).masked_fill(~ends, nothing)
            scores = torch.cat([scores.masked_fill(ends, nothing), end], dim=1)
        if steps.weights is None:
            return scores, steps.state
        return scores, steps.state, steps.weights[:, 0]

    def _is_read(self, state: State, memory: Memory | None) -> Tensor | None:
        """(N, 1) where a monotonic decoder is at the end of its source; None of another decoder."""
        if not self.decoder.is_monotonic or memory is None:
            return None
        B, S, _ = memory.values.shape
        lengths = state.row.new_full((B,), S) if memory.mask is None else memory.mask.sum(1)
        is_read: Tensor = state.place >= lengths[state.row]
        return is_read.unsqueeze(1)

    def _scores(self, steps: Steps, encoded: Encoded) -> Tensor:
        """(N, T, output_size)."""
        if isinstance(self.output, WordOutput):
            return self.output.scores(steps.readout, self._output_weight)
        assert encoded.copied is not None
        assert steps.weights is not None
        copied = encoded.copied.repeat_interleave(len(steps.readout) // len(encoded.copied), 0)
        return self.output.scores(
            steps.readout, steps.features, self._output_weight, steps.weights, copied, encoded.output_size
        )

    # Inside ------------------------------------------------------------------------------------------

    @property
    def _output_weight(self) -> Tensor:
        return self.target_embedding.weight if self.output.weight is None else self.output.weight

    def _known(self, tokens: Tensor) -> Tensor:
        """Copied words, and the end of a monotonic answer, have no embedding of their own."""
        if not (self.options.copying or self.decoder.is_monotonic):
            return tokens
        return tokens.masked_fill(tokens >= self.target_size, self.unknown)

    def _embed(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        # Vectors of the length that an output layer wants, scaled to that which a recurrent layer wants.
        return F.embedding(tokens, embedding.weight) * self.options.embedding_size**0.5


class EncoderDecoder(_Sequences):
    """A sequence of tokens into another, over two vocabularies or one.

    A bidirectional encoder reads the source; its last states start a decoder, which at each step attends over
    what the encoder said of each source token (Sutskever et al. 2014; Bahdanau et al. 2014; Luong et al.
    2015; copying: See et al. 2017). Options choose between them; see `Seq2SeqOptions`.

    A batch holds `source` (B, S) ids and `source_lengths` (B,), and for the loss `target_in`, `target_out`
    (B, T) and `target_lengths` (B,); with monotonic attention a target has as many tokens as its source, and
    no end. For copying `source_extended` (B, S), the source in the target's vocabulary extended by the words
    of each source that it lacks (ids V, V + 1, …), and `extra` (B,), how many those are; `target_out` is in
    it too. What stands in the padding has no influence. A source without tokens is read as zeros.

    Args:
        source_size: how many ids the source's vocabulary has.
        target_size: V.
        unknown: the id of unknown words, in both vocabularies.
        **options: of `Seq2SeqOptions`.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; options that exclude each other.

    Cost: that of the encoder and the decoder, and 2·V·D flops a target token, three times that in training.
    """

    def __init__(self, source_size: int, target_size: int, *, unknown: int = 1, **options: Any):
        super().__init__()
        self._set_up("EncoderDecoder", target_size, unknown, options, has_source=True)
        o = self.options
        check_sizes("EncoderDecoder", source_size=source_size)
        if unknown >= source_size:
            raise InputError(
                f"EncoderDecoder: unknown={unknown}, expected an id below source_size={source_size}"
            )
        if o.tie == "all" and source_size != target_size:
            raise InputError(
                f"EncoderDecoder: tie='all' needs one vocabulary, and the sizes are {source_size} and "
                f"{target_size}; use tie='output'"
            )
        self.source_size = source_size
        self.source_embedding = None if o.tie == "all" else make_embedding(source_size, o.embedding_size)
        self.drop_source = LockedDropout(o.dropout_embedding, 2)
        self.hide_source = TokenCoins("EncoderDecoder: word_dropout", o.word_dropout, 2)
        # With monotonic attention nearly all that is known of an answer the encoder says.
        per_direction = o.hidden_size if o.attention == MONOTONIC else o.hidden_size // 2
        widths = [o.embedding_size]
        self.encoder = nn.ModuleList()
        self.between = nn.ModuleList()
        for layer in range(o.encoder_layers):
            stack = build_encoder(o.cell, widths[-1], per_direction, bidirectional=True, **o.layer)
            widths.append(stack.output_size)
            self.encoder.append(stack)
            if layer:
                self.between.append(LockedDropout(o.dropout_between, 3 + layer))
        E = widths[-1]
        self.drop_read = LockedDropout(o.dropout_between, 3)
        self._set_up_decoder(E, None if o.attention == "none" else E)

    def encode(self, batch: Batch) -> Encoded:
        """Read the sources: `source` (B, S), `source_lengths` (B,); for copying the extended fields too.

        Raises:
            InputError: a field that copying needs is missing.
            SizeError: shapes that do not fit.
        """
        source, lengths = batch["source"], batch["source_lengths"]
        if source.dim() != 2 or lengths.shape != source.shape[:1]:
            raise SizeError(
                f"EncoderDecoder: source {tuple(source.shape)} and source_lengths {tuple(lengths.shape)}, "
                "expected (B, S) and (B,)"
            )
        hidden = self.hide_source(source)
        tokens = source if hidden is None else source.masked_fill(hidden, self.unknown)
        x = self.drop_source(self._embed(self.source_embedding or self.target_embedding, tokens))
        for layer, stack in enumerate(self.encoder):
            if layer:
                x = self.between[layer - 1](x)
            output = stack(x, lengths=lengths)
            x = output.y
        memory, copied, size = None, None, self.target_size
        if self.decoder.attention is not None:
            memory = self.decoder.attention.remember(self.drop_read(x), mask=output.mask)
        elif self.decoder.is_monotonic:
            read = self.drop_read(x)
            memory, size = Memory(read[..., :0], read, output.mask), self.target_size + 1
        if self.options.copying:
            copied, size = self._extended(batch)
        state = self.decoder.start(self.drop_read(output.last.unsqueeze(1))[:, 0], source.shape[1])
        return Encoded(self, memory, state, copied, size)

    def _extended(self, batch: Batch) -> tuple[Tensor, int]:
        for name in ("source_extended", "extra"):
            if name not in batch:
                found = ", ".join(batch)
                raise InputError(f"EncoderDecoder: copying=True needs {name} in the batch; it has: {found}")
        extended, extra = batch["source_extended"], batch["extra"]
        if extended.shape != batch["source"].shape:
            raise SizeError(
                f"EncoderDecoder: source_extended {tuple(extended.shape)}, expected that of source, "
                f"{tuple(batch['source'].shape)}"
            )
        size = self.target_size + (int(extra.max()) if len(extra) else 0)
        # Nothing attends to the padding; its ids must only be such that exist.
        real = torch.arange(extended.shape[1], device=extended.device) < batch["source_lengths"].unsqueeze(1)
        return extended.masked_fill(~real, self.unknown), size


class OneToMany(_Sequences):
    """A vector into a sequence of tokens: captions of features, names of classes, text about a topic.

    The vector is the decoder's first state, through a layer; nothing else is known of it, or, with
    `feeding='output'`, also what the step before gave to the output layer.

    A batch holds `x` (B, D_x), and for the loss `target_in`, `target_out` (B, T) and `target_lengths` (B,).

    Args:
        input_size: D_x.
        target_size: V.
        unknown: the id of unknown words.
        **options: of `Seq2SeqOptions`, but for those of a source.

    Raises:
        InputError: an unknown name, with the known ones; a size below 1; options that exclude each other.

    Cost: that of the decoder, and 2·V·D flops a target token, three times that in training.
    """

    def __init__(self, input_size: int, target_size: int, *, unknown: int = 1, **options: Any):
        super().__init__()
        check_sizes("OneToMany", input_size=input_size)
        self.input_size = input_size
        self._set_up("OneToMany", target_size, unknown, options, has_source=False)
        self._set_up_decoder(input_size, None)

    def encode(self, batch: Batch) -> Encoded:
        """Take the vectors `x` (B, D_x).

        Raises:
            SizeError: another width.
        """
        x = batch["x"]
        if x.dim() != 2 or x.shape[1] != self.input_size:
            raise SizeError(f"OneToMany: x has shape {tuple(x.shape)}, expected (B, {self.input_size})")
        return Encoded(self, None, self.decoder.start(x, 0), None, self.target_size)


def make_embedding(size: int, width: int) -> nn.Embedding:
    """Vectors of length about 1."""
    embedding = nn.Embedding(size, width)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding


def _shared_rows(row: Tensor, B: int) -> Tensor | None:
    """Rows of the memory that groups of sequences share; None where they are all B in their order.

    Groups are of one size; where sequences are in no such order, each is a group by itself.
    """
    N = len(row)
    if N and B and N % B == 0:
        in_order = torch.arange(B, device=row.device).repeat_interleave(N // B)
        if torch.equal(row, in_order):
            return None
    rows, counts = torch.unique_consecutive(row, return_counts=True)
    return rows if len(counts) and bool((counts == counts[0]).all()) else row
