"""What an encoder–decoder can be told beyond the sizes of its vocabularies: names, defaults, checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ostinato.errors import InputError
from ostinato.layers.arguments import check_sizes
from ostinato.layers.attention_over import KINDS
from ostinato.layers.cells import Cell
from ostinato.layers.dropout import check_probability
from ostinato.layers.options import check_choice, check_known

MONOTONIC = "monotonic"
ATTENTIONS = (*KINDS, MONOTONIC, "none")
FEEDINGS = ("none", "output", "context")
TIES = ("none", "output", "all")
_PROBABILITIES = (
    "dropout_embedding",
    "dropout_between",
    "dropout_output",
    "word_dropout",
    "label_smoothing",
    "scheduled_sampling",
)


@dataclass(frozen=True)
class Seq2SeqOptions:
    """Options of `EncoderDecoder` and `OneToMany`.

    Attributes:
        cell: a name in `encoder.CELLS`, or a `Cell` class that is built by (input_size, hidden_size).
        embedding_size: D of both sides; also the width of what the output layer reads.
        hidden_size: H of the decoder; the encoder has half of it in each direction, with monotonic attention
            all of it.
        encoder_layers, decoder_layers: how many layers each side has.
        attention: `additive`, `dot`, `general`, `local` (`AttentionOver`); `monotonic`: step t reads the
            source's token t and says what that one stands for (hard monotonic attention, Aharoni and Goldberg
            2017, arXiv:1611.01487; alignments are those of the data, Yao and Zweig 2015, arXiv:1506.00196);
            or `none`: the decoder knows of the source what its first state says.
        attention_size, window: of additive and of local attention.
        feeding: what the first decoder layer sees beside the last token. `none`: nothing, and training takes
            all steps at once; `output`: what the step before gave to the output layer (input feeding, Luong
            et al. 2015); `context`: what its last output reads of the source (Bahdanau et al. 2014).
        copying: words may be copied from the source, a gate decides (pointer-generator, See et al. 2017,
            arXiv:1704.04368).
        coverage: additive attention sees what was read before (the same).
        coverage_weight: of `coverage_loss` in training; 0: none. For every attention.
        tie: one matrix as target embedding and output layer (`output`, arXiv:1608.05859), also as source
            embedding where both sides have one vocabulary (`all`), or `none`.
        dropout_embedding, dropout_between, dropout_output: of embeddings, of what goes from one layer to the
            next and from the encoder to the decoder, and of what the output layer reads; the same units in
            all steps of a sentence (arXiv:1512.05287).
        word_dropout: probability that a token, of the source or fed to the decoder, is taken for unknown.
        label_smoothing: the share of each target that is spread over the vocabulary (arXiv:1512.00567).
        scheduled_sampling: probability that the decoder is fed its own best token in place of the true one
            (Bengio et al. 2015, arXiv:1506.03099), which a first pass over the true ones says (in parallel:
            arXiv:1906.04331).
        scheduled_sampling_steps: optimizer steps over which that probability rises from 0.
        layer: options of the recurrent layers of both sides, as for `ot.LSTM`.
    """

    cell: str | type[Cell] = "lstm"
    embedding_size: int = 256
    hidden_size: int = 512
    encoder_layers: int = 1
    decoder_layers: int = 1
    attention: str = "general"
    attention_size: int | None = None
    window: int | None = None
    feeding: str = "none"
    copying: bool = False
    coverage: bool = False
    coverage_weight: float = 0.0
    tie: str = "output"
    dropout_embedding: float = 0.3
    dropout_between: float = 0.3
    dropout_output: float = 0.3
    word_dropout: float = 0.0
    label_smoothing: float = 0.1
    scheduled_sampling: float = 0.0
    scheduled_sampling_steps: int = 0
    layer: Mapping[str, Any] = field(default_factory=dict)


# Options about a source, which generation from one vector has not.
_OF_SOURCES = (
    "attention",
    "attention_size",
    "window",
    "copying",
    "coverage",
    "coverage_weight",
    "encoder_layers",
)
# What the two sides decide between themselves.
_NOT_OF_LAYERS = (
    "num_layers", "bidirectional", "learn_initial_state", "residual", "torch_compatible", "dropout",
    "batch_first", "dropout_in", "dropout_between", "dropout_out",
)  # fmt: skip


def read_options(where: str, given: Mapping[str, Any], *, has_source: bool) -> Seq2SeqOptions:
    """Check what a model was given.

    Raises:
        InputError: an unknown name or value, with the known ones; options that exclude each other.
    """
    known = [one.name for one in fields(Seq2SeqOptions) if has_source or one.name not in _OF_SOURCES]
    check_known(where, given, known)
    options = Seq2SeqOptions(**given) if has_source else Seq2SeqOptions(attention="none", **given)
    check_sizes(
        where,
        embedding_size=options.embedding_size,
        hidden_size=options.hidden_size,
        encoder_layers=options.encoder_layers,
        decoder_layers=options.decoder_layers,
    )
    check_choice(where, "attention", options.attention, ATTENTIONS)
    check_choice(where, "feeding", options.feeding, FEEDINGS)
    check_choice(where, "tie", options.tie, TIES)
    for name in _PROBABILITIES:
        check_probability(f"{where}: {name}", getattr(options, name))
    steps, weight = options.scheduled_sampling_steps, options.coverage_weight
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"{where}: scheduled_sampling_steps={steps!r}, expected an integer of at least 0")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise InputError(f"{where}: coverage_weight={weight!r}, expected a finite number of at least 0")
    if steps and not options.scheduled_sampling:
        raise InputError(f"{where}: scheduled_sampling_steps needs scheduled_sampling above 0")
    for name in options.layer:
        if name in _NOT_OF_LAYERS:
            raise InputError(f"{where}: layer: {name} is decided by the model's own options; leave it out")
    if not has_source and given.get("dropout_between") and options.decoder_layers == 1:
        raise InputError(
            f"{where}: dropout_between acts between layers and decoder_layers is 1; use dropout_output"
        )
    _check_combination(where, options, has_source=has_source)
    return options


def _check_combination(where: str, options: Seq2SeqOptions, *, has_source: bool) -> None:
    if has_source and options.hidden_size % 2 and options.attention != MONOTONIC:
        raise InputError(
            f"{where}: hidden_size={options.hidden_size} must be even, half of it a direction of the encoder"
        )
    if not has_source and options.tie == "all":
        raise InputError(f"{where}: tie='all' ties the source's embedding, and there is none; use 'output'")
    if options.attention in (MONOTONIC, "none"):
        asked = {
            "copying": options.copying,
            "coverage": options.coverage,
            "coverage_weight": options.coverage_weight,
            "attention_size": options.attention_size,
            "window": options.window,
            "feeding": options.feeding == "context"
            or (options.attention == MONOTONIC and options.feeding != "none"),
        }
        for name, value in asked.items():
            if value:
                found = getattr(options, name)
                raise InputError(
                    f"{where}: {name}={found!r} needs an attention that chooses, and it is "
                    f"{options.attention!r}; take one of {', '.join(KINDS)}"
                )
