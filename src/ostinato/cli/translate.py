"""`ostinato train translate`: options and help."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ostinato.cli import estimators
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
    Seed,
    file_option,
    model_option,
    training_option,
)
from ostinato.cli.training import train_and_print
from ostinato.errors import InputError

Beam = Annotated[
    int | None, typer.Option(help="Of translations: hypotheses of the search; 1 is greedy.", metavar="N")
]
PARTS = ("--valid", "--test")


class _WithPairsOfFiles(TyperCommand):
    """`--valid` and `--test` take one file or two: `--valid PAIRS`, `--valid SRC TGT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = [name for option in self.params if getattr(option, "is_flag", False) for name in option.opts]
        return super().parse_args(ctx, repeat_parts(args, flags))


def repeat_parts(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The arguments with `--valid A B` as `--valid A --valid B`, where A and B are two files.

    A free word is one that is neither an option nor the value of one. A part may take the free word that
    follows its own; they all do where two others are left, for SRC and TGT, or one whose name says that it
    holds pairs.

    Args:
        arguments: of the command.
        flags: options without a value.
    """
    free: list[int] = []
    followers: dict[int, str] = {}
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if word == "--":
            free += range(place + 1, len(arguments))
            break
        if not word.startswith("-") or word == "-":
            free.append(place)
            place += 1
        elif "=" in word or word in flags:
            place += 1
        else:
            if word in PARTS and place + 2 < len(arguments) and not arguments[place + 2].startswith("-"):
                followers[place + 2] = word
            place += 2
    others = [arguments[place] for place in free if place not in followers]
    if len(others) != 2 and not (len(others) == 1 and _names_pairs(others[0])):
        return list(arguments)
    return [
        piece
        for place, word in enumerate(arguments)
        for piece in ((followers[place], word) if place in followers else (word,))
    ]


def _names_pairs(name: str) -> bool:
    from ostinato.data.pairs import names_pairs

    return names_pairs(name)


def add_translate_command(train_app: typer.Typer) -> None:
    """Put the command into `ostinato train`."""
    train_app.command("translate", no_args_is_help=True, cls=_WithPairsOfFiles)(train_translate)


@command
def train_translate(  # noqa: PLR0913 - one parameter per option is Typer's way
    data: Annotated[
        Path,
        typer.Argument(
            help="Sources, one a line; or pairs: source, a tab, target; or JSON lines or CSV with --source "
            "and --target. Also .gz, .xz, .zip.",
            metavar="SRC|PAIRS",
        ),
    ],
    targets: Annotated[
        Path | None, typer.Argument(help="As many lines of targets, where SRC has sources.", metavar="[TGT]")
    ] = None,
    *,
    source: Annotated[str | None, file_option("Of a table: the column of the sources.")] = None,
    target: Annotated[str | None, file_option("Of a table: the column of the targets.")] = None,
    encoding: Encoding = None,
    unit: Annotated[
        str | None,
        model_option(
            "Of texts; by the data otherwise. Two with a comma for two sides.", "word|char|bpe|symbol"
        ),
    ] = None,
    attention: Annotated[
        str | None,
        model_option("How the answer looks at the source.", "auto|additive|dot|general|local|monotonic|none"),
    ] = None,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="A summarizer: may copy words of the source.", rich_help_panel="Network"),
    ] = False,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="With --attention additive: it sees what was read before.",
            rich_help_panel="Network",
        ),
    ] = False,
    cell: Cell = None,
    hidden: Hidden = None,
    layers: Layers = None,
    init: Annotated[
        str | None, training_option("Run whose units and weights are gone on with.", "RUN")
    ] = None,
    valid: Annotated[
        list[str] | None,
        training_option("Pairs to choose the best weights by; a part otherwise.", "PAIRS|SRC TGT"),
    ] = None,
    test: Annotated[list[str] | None, training_option("Pairs to score at the end.", "PAIRS|SRC TGT")] = None,
    epochs: Epochs = None,
    max_time: MaxTime = None,
    batch_size: Annotated[int | None, training_option("Pairs per step.", "N")] = None,
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
    """Train a translator: texts of one language, notation or length into another.

    Prints its scores beside those of copying the source and of a table of words, or of the first words.

    Options win over --set, and --set over --config.
    """
    options = {
        "targets": None if targets is None else str(targets), "source": source, "target": target,
        "encoding": encoding, "unit": unit, "attention": attention, "coverage": coverage or None,
        "cell": cell, "hidden_size": hidden,
        "num_layers": layers, "init": init, "valid": _part("--valid", valid), "test": _part("--test", test),
        "epochs": epochs, "max_time_s": max_time, "batch_size": batch_size, "learning_rate": learning_rate,
        "seed": seed, "device": device,
    }  # fmt: skip
    train = functools.partial(estimators.train_labels, "Summarizer" if copy else "Translator")
    train_and_print(train, data, out, options, config, overrides, json=json, quiet=quiet, resume=resume)


def _part(option: str, files: list[str] | None) -> Any:
    """One file of pairs, or two files as a tuple."""
    if not files:
        return None
    if len(files) > 2:
        raise InputError(
            f"{option}: expected a file of pairs, or two files (SRC TGT), found {len(files)} files"
        )
    return files[0] if len(files) == 1 else tuple(files)
