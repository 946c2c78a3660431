"""Options that several commands share, and the groups that the help sorts them into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ostinato.cli.durations import parse_duration_s

FILE, MODEL, TRAINING, OUTPUT = "Columns and form of the file", "Network", "Training", "Output"


def file_option(help_text: str, metavar: str = "COL") -> Any:
    """An option about the file that is read."""
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=FILE)


def format_option(known: str) -> Any:
    """`--format`."""
    return typer.Option(
        "--format", help="Where the file's name does not say it.", metavar=known, rich_help_panel=FILE
    )


def model_option(help_text: str, metavar: str | None = None) -> Any:
    """An option about the network."""
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=MODEL)


def training_option(help_text: str, metavar: str | None = None, **more: Any) -> Any:
    """An option about training."""
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=TRAINING, **more)


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=OUTPUT)]
Out = Annotated[Path, typer.Option(help="New folder for the run.", metavar="RUN", rich_help_panel=OUTPUT)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on where the run stopped; start where there is none.", rich_help_panel=OUTPUT
    ),
]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto.", metavar="NAME", rich_help_panel=TRAINING)
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same network.", rich_help_panel=TRAINING)]
Separator = Annotated[str | None, file_option("Between fields; found otherwise.", "CHAR")]
Encoding = Annotated[str | None, file_option("Of the text; UTF-8 otherwise.", "NAME")]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="The first line holds values.", rich_help_panel=FILE)
]
Cell = Annotated[str | None, model_option("Recurrent cell.", "rnn|lstm|gru|mingru|minlstm|rglru")]
Hidden = Annotated[int | None, model_option("Width of the recurrent state.", "N")]
Layers = Annotated[int | None, model_option("Recurrent layers.", "N")]
Epochs = Annotated[int | None, training_option("Passes over the data.", "N")]
MaxTime = Annotated[
    float | None,
    training_option("Wall time of the whole command: 90s, 4m, 1h30m.", "TIME", parser=parse_duration_s),
]
LearningRate = Annotated[float | None, training_option("Highest rate of the optimizer.", "RATE")]
Config = Annotated[Path | None, training_option("TOML file with any of the settings.", "FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting; repeatable.", metavar="KEY=VALUE", rich_help_panel=TRAINING),
]
