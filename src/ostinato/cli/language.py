"""`ostinato train language` and `ostinato generate`: options and help."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ostinato.cli import estimators, output
from ostinato.cli.failures import command
from ostinato.cli.options import (
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
    Out,
    Overrides,
    Quiet,
    Resume,
    Run,
    Seed,
    file_option,
    model_option,
    training_option,
)
from ostinato.cli.training import train_and_print
from ostinato.errors import InputError

TEXT = "Text"


def add_language_commands(app: typer.Typer, train_app: typer.Typer) -> None:
    """Put `train language` and `generate` into the command."""
    train_app.command("language", no_args_is_help=True)(train_language)
    app.command("generate", no_args_is_help=True)(generate)


@command
def train_language(  # noqa: PLR0913 - one parameter per option is Typer's way
    data: Annotated[
        list[Path], typer.Argument(help="Files of text, also .gz, .xz, .bz2, .zip.", metavar="FILE…")
    ],
    *,
    unit: Annotated[
        str | None, model_option("What is told one by one; by the text otherwise.", "char|word|bpe")
    ] = None,
    vocabulary: Annotated[int | None, model_option("Most units; of byte pairs how many.", "N")] = None,
    documents: Annotated[
        str | None, file_option("What begins without a past: each file, or each line.", "file|line")
    ] = None,
    encoding: Encoding = None,
    cell: Cell = None,
    hidden: Hidden = None,
    layers: Layers = None,
    init: Annotated[Path | None, model_option("Run of a language model to begin with.", "RUN")] = None,
    dropout: Annotated[float | None, model_option("Before the softmax.", "SHARE")] = None,
    valid: Annotated[
        list[Path] | None,
        training_option("To choose the best weights by; the end of FILE otherwise.", "FILE"),
    ] = None,
    test: Annotated[list[Path] | None, training_option("To score at the end.", "FILE")] = None,
    epochs: Epochs = None,
    max_time: MaxTime = None,
    batch_size: Annotated[int | None, training_option("Streams that are read side by side.", "N")] = None,
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
    """Train a language model on running text.

    Prints its perplexity and bits per character beside those of counted units and of n-grams.

    Options win over --set, and --set over --config.
    """
    options: dict[str, Any] = {
        "unit": unit, "vocabulary_size": vocabulary, "documents": documents, "encoding": encoding,
        "cell": cell, "hidden_size": hidden, "num_layers": layers, "dropout": dropout,
        "init": None if init is None else str(init), "valid": valid or None, "test": test or None,
        "epochs": epochs, "max_time_s": max_time, "batch_size": batch_size,
        "learning_rate": learning_rate, "seed": seed, "device": device,
    }  # fmt: skip
    train: Any = functools.partial(estimators.train_labels, "LanguageModel")
    given: Any = data
    train_and_print(train, given, out, options, config, overrides, json=json, quiet=quiet, resume=resume)


@command
def generate(  # noqa: PLR0913 - one parameter per option is Typer's way
    run: Run,
    *,
    prompt: Annotated[
        str, typer.Option(help="What the text goes on from.", metavar="TEXT", rich_help_panel=TEXT)
    ] = "",
    length: Annotated[
        int, typer.Option(help="Characters, words or byte pairs.", metavar="N", rich_help_panel=TEXT)
    ] = 200,
    temperature: Annotated[
        float,
        typer.Option(
            help="Below 1 bolder, above 1 more even; 0: the most probable.", metavar="X", rich_help_panel=TEXT
        ),
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw among the K most probable.", metavar="K", rich_help_panel=TEXT)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among the fewest that together have this probability.",
            metavar="P",
            rich_help_panel=TEXT,
        ),
    ] = None,
    stop: Annotated[
        str | None, typer.Option(help="End before this text.", metavar="TEXT", rich_help_panel=TEXT)
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text.", rich_help_panel=TEXT)] = 0,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on from a prompt with what a language model says; the text appears as it is made."""
    options = {
        "length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p, "stop": stop,
        "seed": seed,
    }  # fmt: skip
    for name, text in (("prompt", prompt), ("stop", stop or "")):
        _check_text(name, text)
    with output.only_results_on_stdout():
        model = estimators.language_model(run, device=device)
        pieces = model.stream(prompt, **options)
    output.print_notes(model.notes_, quiet)
    if json:
        output.print_json({"prompt": prompt, "text": "".join(pieces), "notes": model.notes_})
        return
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _check_text(option: str, text: str) -> None:
    """Refuse bytes of the command line that are no text, which Python hands on as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"--{option}: character {error.start + 1} is no valid text; give it in the encoding of the "
            f"terminal ({sys.getfilesystemencoding()})"
        ) from None
