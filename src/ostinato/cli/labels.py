"""`ostinato train classify` and `ostinato train tag`: options and help."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ostinato.cli import estimators
from ostinato.cli.failures import command
from ostinato.cli.options import (
    FILE,
    Cell,
    Config,
    Device,
    Encoding,
    Epochs,
    Hidden,
    Json,
    Layers,
    LearningRate,
    MaxTime,
    NoHeader,
    Out,
    Overrides,
    Quiet,
    Resume,
    Seed,
    Separator,
    file_option,
    format_option,
    model_option,
    training_option,
)
from ostinato.cli.training import train_and_print

Valid = Annotated[
    Path | None, training_option("File to choose the best epoch by; a part of FILE otherwise.", "FILE")
]
Test = Annotated[Path | None, training_option("File to score at the end.", "FILE")]
Vectors = Annotated[
    Path | None, model_option("Word vectors as text: a word and its numbers on a line.", "FILE")
]
BatchSize = Annotated[int | None, training_option("Sequences per step.", "N")]

# what stands in the place of a column that was not named
ANY = "\0"


class _WithOptionalColumns(TyperCommand):
    """`--sequence` and `--letters` may be followed by a column: a file of arrays needs to name none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, fill_columns(args, ("--sequence", "--letters")))


def fill_columns(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments with `ANY` after each of `options` that no column follows."""
    filled = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        filled.append(argument)
        if argument in options and following.startswith("-") and not re.fullmatch(r"-\d+", following):
            filled.append(ANY)
    return filled


def add_label_commands(train_app: typer.Typer) -> None:
    """Put both commands into `ostinato train`."""
    train_app.command("classify", no_args_is_help=True, cls=_WithOptionalColumns)(train_classify)
    train_app.command("tag", no_args_is_help=True)(train_tag)


@command
def train_classify(  # noqa: PLR0913 - one parameter per option is Typer's way
    data: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV, JSON lines, trees, FASTA, .ts or .npz, also .gz, .xz, .zip.", metavar="FILE"
        ),
    ],
    *,
    text: Annotated[str | None, file_option("The text: a name, or a number from 0 (-1 is the last).")] = None,
    label: Annotated[str | None, file_option("The class of each row.")] = None,
    sequence: Annotated[
        str | None,
        file_option(
            "Arrays or signals rather than text; COL: the array, or which signal a row is of.", "[COL]"
        ),
    ] = None,
    letters: Annotated[str | None, file_option("Letters such as DNA rather than text.", "[COL]")] = None,
    time: Annotated[
        str | None, file_option("Of signals, a row a step: sorts the rows; found otherwise.")
    ] = None,
    values: Annotated[
        list[str] | None, file_option("Of signals: a column of numbers; repeatable, all otherwise.")
    ] = None,
    file_format: Annotated[str | None, format_option("trees|trec|slots|npz")] = None,
    separator: Separator = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    tree: Annotated[
        bool,
        typer.Option(
            "--tree", help="Tree-LSTM over parse trees, ((as brackets) (like this)).", rich_help_panel=FILE
        ),
    ] = False,
    hierarchy: Annotated[
        bool,
        typer.Option("--hierarchy", help="Words, then sentences, then the document.", rich_help_panel=FILE),
    ] = False,
    cell: Cell = None,
    hidden: Hidden = None,
    layers: Layers = None,
    vectors: Vectors = None,
    init: Annotated[
        Path | None,
        model_option("Run to begin with: of a classifier, or for texts of a language model.", "RUN"),
    ] = None,
    valid: Valid = None,
    test: Test = None,
    epochs: Epochs = None,
    max_time: MaxTime = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    config: Config = None,
    overrides: Overrides = None,
    out: Out,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier of texts, letters, arrays, signals or trees.

    Prints its scores beside those of the most frequent class and, for texts, of a logistic regression.

    Options win over --set, and --set over --config.
    """
    options = {
        "text": text, "label": label, "sequence": _column(sequence), "letters": _column(letters),
        "time": time, "values": values or None,
        "format": file_format, "separator": separator, "encoding": encoding,
        "header": False if no_header else None, "tree": tree or None, "hierarchy": hierarchy or None,
        "cell": cell, "hidden_size": hidden, "num_layers": layers, "vectors": _text(vectors),
        "init": _text(init), "valid": valid, "test": test, "epochs": epochs, "max_time_s": max_time,
        "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "device": device,
    }  # fmt: skip
    train = functools.partial(estimators.train_labels, "Classifier")
    train_and_print(train, data, out, options, config, overrides, json=json, quiet=quiet, resume=resume)


@command
def train_tag(  # noqa: PLR0913 - one parameter per option is Typer's way
    data: Annotated[
        Path,
        typer.Argument(
            help="CoNLL columns, CoNLL-U, or a folder with seq.in and seq.out; also .gz, .xz, .zip.",
            metavar="FILE",
        ),
    ],
    *,
    file_format: Annotated[str | None, format_option("conll|conllu|slots")] = None,
    token: Annotated[
        str | None, file_option("The column of tokens: a number from 0; 0 otherwise.", "N")
    ] = None,
    label: Annotated[
        str | None, file_option("The column of tags; the last, or upos, otherwise.", "N|upos|xpos")
    ] = None,
    init: Annotated[
        Path | None,
        model_option("Run to begin with: of a tagger, or of a language model to read words by too.", "RUN"),
    ] = None,
    features: Annotated[
        str | None, model_option("Further columns to learn from; those between otherwise.", "auto|none|N,…")
    ] = None,
    separator: Separator = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    cell: Cell = None,
    hidden: Hidden = None,
    layers: Layers = None,
    vectors: Vectors = None,
    valid: Valid = None,
    test: Test = None,
    epochs: Epochs = None,
    max_time: MaxTime = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    config: Config = None,
    overrides: Overrides = None,
    out: Out,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a tagger: a tag for each token, and where the file has it a label for each sentence too.

    Prints its scores beside those of the most frequent tag of each word.

    Options win over --set, and --set over --config.
    """
    options = {
        "init": _text(init), "format": file_format, "token": token, "label": label, "features": features,
        "separator": separator, "encoding": encoding, "header": False if no_header else None, "cell": cell,
        "hidden_size": hidden, "num_layers": layers, "vectors": _text(vectors), "valid": valid, "test": test,
        "epochs": epochs, "max_time_s": max_time, "batch_size": batch_size, "learning_rate": learning_rate,
        "seed": seed, "device": device,
    }  # fmt: skip
    train = functools.partial(estimators.train_labels, "Tagger")
    train_and_print(train, data, out, options, config, overrides, json=json, quiet=quiet, resume=resume)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _column(named: str | None) -> str | bool | None:
    return True if named == ANY else named
