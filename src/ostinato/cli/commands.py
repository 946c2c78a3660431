"""The commands: options and help; each calls an estimator and prints what it returns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ostinato import __version__
from ostinato.cli import estimators, output
from ostinato.cli.benchmarks import bench_app
from ostinato.cli.failures import command
from ostinato.cli.labels import add_label_commands
from ostinato.cli.language import add_language_commands
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
    NoHeader,
    Out,
    Overrides,
    Quiet,
    Resume,
    Run,
    Seed,
    Separator,
    file_option,
    model_option,
    training_option,
)
from ostinato.cli.training import train_and_print
from ostinato.cli.translate import Beam, add_translate_command
from ostinato.errors import InputError


class _InOrderOfUse(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        order = ["train", "evaluate", "predict", "generate", "demo", "bench"]
        return sorted(super().list_commands(ctx), key=order.index)


app = typer.Typer(
    name="ostinato",
    cls=_InOrderOfUse,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Recurrent neural networks: from a file of sequences to a trained network and its answers.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a network on a file and keep it in a run folder.")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")

Data = Annotated[Path, typer.Argument(help="CSV or Parquet, also .gz, .xz, .zip.", metavar="FILE")]
AnyData = Annotated[Path, typer.Argument(help="File in the form that was trained on.", metavar="FILE")]
Future = Annotated[
    Path | None,
    typer.Option(help="Of forecasts: file with the --known columns after the last target.", metavar="FILE"),
]
OtherEncoding = Annotated[str | None, file_option("Of texts; that of the training file otherwise.", "NAME")]
Source = Annotated[
    str | None,
    file_option("Of translations of a table: the column of sources; that of training otherwise."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        output.print_line(f"ostinato {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@train_app.command("forecast", no_args_is_help=True)
@command
def train_forecast(  # noqa: PLR0913 - one parameter per option is Typer's way
    data: Data,
    *,
    time: Annotated[str | None, file_option("When: a name, or a number from 0 (-1 is the last).")] = None,
    target: Annotated[list[str] | None, file_option("What to forecast; repeat for several.")] = None,
    series: Annotated[str | None, file_option("Which series a row belongs to.")] = None,
    known: Annotated[list[str] | None, file_option("Known in advance (price, holiday); repeatable.")] = None,
    observed: Annotated[list[str] | None, file_option("Known up to now only (weather); repeatable.")] = None,
    static: Annotated[list[str] | None, file_option("Constant within a series; repeatable.")] = None,
    future: Annotated[
        Path | None, file_option("File with --known columns after the last target.", "FILE")
    ] = None,
    freq: Annotated[str | None, file_option("Time step: h, 30min, D, MS, …; found otherwise.", "F")] = None,
    start: Annotated[str | None, file_option("First time of a file without times.", "TIME")] = None,
    time_format: Annotated[
        str | None, file_option("Such as %d/%m/%Y where the file leaves it open.", "FORMAT")
    ] = None,
    separator: Separator = None,
    decimal: Annotated[str | None, file_option("Decimal sign, . or ,; found otherwise.", "CHAR")] = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    horizon: Annotated[int | None, model_option("Steps to forecast.", "N")] = None,
    season: Annotated[
        int | None, model_option("Season in steps, 1: none; by the time step otherwise.", "N")
    ] = None,
    cell: Cell = None,
    hidden: Hidden = None,
    layers: Layers = None,
    head: Annotated[
        str | None, model_option("quantile, gaussian, student_t or negative_binomial.", "NAME")
    ] = None,
    init: Annotated[
        Path | None, model_option("Run of a forecaster of like columns and time step to begin with.", "RUN")
    ] = None,
    test: Annotated[int | None, training_option("Hold out the last N points of every series.", "N")] = None,
    epochs: Epochs = None,
    steps: Annotated[int | None, training_option("Optimizer steps.", "N")] = None,
    max_time: MaxTime = None,
    batch_size: Annotated[int | None, training_option("Windows per step.", "N")] = None,
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
    """Train a forecaster on one or many series.

    Prints its scores beside those of naive, seasonal naive and exponential smoothing.

    Options win over --set, and --set over --config.
    """
    options = {
        "horizon": horizon, "time": time, "target": target or None, "series": series, "known": known or None,
        "observed": observed or None, "static": static or None, "frequency": freq, "start": start,
        "time_format": time_format, "separator": separator, "decimal": decimal, "encoding": encoding,
        "header": False if no_header else None, "season": season, "cell": cell, "hidden_size": hidden,
        "num_layers": layers, "head": head, "init": init and str(init), "test": test, "epochs": epochs,
        "steps": steps, "max_time_s": max_time, "batch_size": batch_size, "learning_rate": learning_rate,
        "seed": seed, "device": device,
    }  # fmt: skip
    train_and_print(
        estimators.train_forecast, data, out, options, config, overrides, json=json, quiet=quiet,
        resume=resume, future=future,
    )  # fmt: skip


add_label_commands(train_app)
add_language_commands(app, train_app)
add_translate_command(train_app)


@app.command(no_args_is_help=True)
@command
def evaluate(  # noqa: PLR0913 - one parameter per option is Typer's way
    run: Run,
    data: AnyData,
    targets: Annotated[
        Path | None,
        typer.Argument(help="Of translations: the file of targets, where FILE is of sources.", metavar="TGT"),
    ] = None,
    *,
    windows: Annotated[
        str | None,
        file_option(
            "Of forecasts: the last window, or every whole one after the training data.", "last|rolling"
        ),
    ] = None,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Of forecasts: also score windows that were trained on.")
    ] = False,
    future: Future = None,
    source: Source = None,
    target: Annotated[str | None, file_option("The column of targets, likewise.")] = None,
    encoding: OtherEncoding = None,
    beam: Beam = None,
    seed: Seed = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a run on a file, beside the baselines; a file of series may reach beyond the training file."""
    options = {
        "windows": windows, "in_sample": in_sample or None, "future": future, "targets": targets,
        "source": source, "target": target, "beam": beam, "encoding": encoding,
    }  # fmt: skip
    with output.only_results_on_stdout():
        result, notes = estimators.evaluate(run, data, options, seed=seed, device=device)
    output.print_notes(notes, quiet)
    if json:
        output.print_json(result)
    else:
        output.print_scores(result, f"{'Rolling windows of ' if windows == 'rolling' else ''}{data}")


@app.command(no_args_is_help=True)
@command
def predict(  # noqa: PLR0913 - one parameter per option is Typer's way
    run: Run,
    data: AnyData,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the result goes; standard output otherwise.", metavar="FILE"),
    ] = None,
    future: Future = None,
    source: Source = None,
    encoding: OtherEncoding = None,
    beam: Beam = None,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="Of translations: also where each unit of the answer looked, beside --out: .attention.json, "
            "and drawn in .attention.html.",
        ),
    ] = False,
    seed: Seed = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a run says about a file.

    Of series the forecast: series, time, mean and quantiles, one row per step (.csv or .parquet). Of texts
    and other classified sequences the label, its probability and that of every class (.csv, .parquet or
    .jsonl). Of sentences the tags, in the form of the file. Of translations and summaries a line for each
    source (.jsonl, .csv, .parquet: source, target and score).
    """
    options = {
        "future": future, "source": source, "beam": beam, "attention": attention or None,
        "encoding": encoding,
    }  # fmt: skip
    with output.only_results_on_stdout():
        result, notes = estimators.predict(run, data, out, options, seed=seed, device=device)
    output.print_notes(notes, quiet)
    if json and out is not None:
        output.print_json({"out": str(out), "rows": result.rows, "notes": notes})
    elif json:
        output.print_json({result.name: result.json(), "notes": notes})
    elif out is None:
        result.print(sys.stdout)
    else:
        output.print_line(f"{result.rows} rows: {out}")


@app.command()
@command
def demo(
    task: Annotated[str, typer.Argument(help="What to show: forecast.", metavar="TASK")] = "forecast",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run; runs/demo-TASK otherwise, numbered.", metavar="RUN"),
    ] = None,
    seed: Seed = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on a real data set that ships with the package, in about two minutes on two cores."""
    if task not in estimators.DEMOS:
        raise InputError(f"demo: no demo {task!r}; known are {', '.join(estimators.DEMOS)}")
    with output.only_results_on_stdout():
        result = estimators.run_demo(task, out, {"seed": seed, "device": device}, quiet=quiet)
    output.print_training(result, json=json, quiet=quiet)
