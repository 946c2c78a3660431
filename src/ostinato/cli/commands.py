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
from ostinato.cli.durations import parse_duration_s
from ostinato.cli.failures import command
from ostinato.errors import InputError


class _InOrderOfUse(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=["train", "evaluate", "predict", "demo", "bench"].index)


app = typer.Typer(
    name="ostinato",
    cls=_InOrderOfUse,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Recurrent neural networks: from a file of sequences to a trained network and its forecasts.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a network on a file and keep it in a run folder.")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")

FILE, MODEL, TRAINING, OUTPUT = "Columns and form of the file", "Network", "Training", "Output"

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=OUTPUT)]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto.", metavar="NAME", rich_help_panel=TRAINING)
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same network.", rich_help_panel=TRAINING)]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")]
Data = Annotated[
    Path,
    typer.Argument(help="CSV or Parquet, also .gz, .xz, .zip.", metavar="FILE"),
]
Future = Annotated[
    Path | None,
    typer.Option(help="File with the --known columns after the last target.", metavar="FILE"),
]


def _file(help_text: str, metavar: str = "COL") -> Any:
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=FILE)


def _model(help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=MODEL)


def _training(help_text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=TRAINING, **more)


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
    time: Annotated[str | None, _file("When: a name, or a number from 0 (-1 is the last).")] = None,
    target: Annotated[list[str] | None, _file("What to forecast; repeat for several.")] = None,
    series: Annotated[str | None, _file("Which series a row belongs to.")] = None,
    known: Annotated[list[str] | None, _file("Known in advance (price, holiday); repeatable.")] = None,
    observed: Annotated[list[str] | None, _file("Known up to now only (weather); repeatable.")] = None,
    static: Annotated[list[str] | None, _file("Constant within a series; repeatable.")] = None,
    future: Annotated[Path | None, _file("File with --known columns after the last target.", "FILE")] = None,
    freq: Annotated[str | None, _file("Time step: h, 30min, D, MS, …; found otherwise.", "F")] = None,
    start: Annotated[str | None, _file("First time of a file without times.", "TIME")] = None,
    time_format: Annotated[
        str | None, _file("Such as %d/%m/%Y where the file leaves it open.", "FORMAT")
    ] = None,
    separator: Annotated[str | None, _file("Between fields; found otherwise.", "CHAR")] = None,
    decimal: Annotated[str | None, _file("Decimal sign, . or ,; found otherwise.", "CHAR")] = None,
    encoding: Annotated[str | None, _file("Of the text; UTF-8 otherwise.", "NAME")] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The first line holds values.", rich_help_panel=FILE)
    ] = False,
    horizon: Annotated[int | None, _model("Steps to forecast.", "N")] = None,
    season: Annotated[
        int | None, _model("Season in steps, 1: none; by the time step otherwise.", "N")
    ] = None,
    cell: Annotated[str | None, _model("Recurrent cell.", "rnn|lstm|gru|mingru|minlstm|rglru")] = None,
    hidden: Annotated[int | None, _model("Width of the recurrent state.", "N")] = None,
    layers: Annotated[int | None, _model("Recurrent layers.", "N")] = None,
    head: Annotated[str | None, _model("quantile, gaussian, student_t or negative_binomial.", "NAME")] = None,
    test: Annotated[int | None, _training("Hold out the last N points of every series.", "N")] = None,
    epochs: Annotated[int | None, _training("Passes over the data.", "N")] = None,
    steps: Annotated[int | None, _training("Optimizer steps.", "N")] = None,
    max_time: Annotated[
        float | None,
        _training("Wall time of the whole command: 90s, 4m, 1h30m.", "TIME", parser=parse_duration_s),
    ] = None,
    batch_size: Annotated[int | None, _training("Windows per step.", "N")] = None,
    learning_rate: Annotated[float | None, _training("Highest rate of the optimizer.", "RATE")] = None,
    seed: Seed = None,
    device: Device = None,
    config: Annotated[Path | None, _training("TOML file with any of the settings.", "FILE")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting; repeatable.", metavar="KEY=VALUE", rich_help_panel=TRAINING),
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for the run.", metavar="RUN", rich_help_panel=OUTPUT)],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the run stopped; start where there is none.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
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
        "num_layers": layers, "head": head, "test": test, "epochs": epochs, "steps": steps,
        "max_time_s": max_time, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed,
        "device": device,
    }  # fmt: skip
    with output.only_results_on_stdout():
        result = estimators.train_forecast(
            data,
            out,
            {name: value for name, value in options.items() if value is not None},
            config=config,
            overrides=overrides or (),
            future=future,
            resume=resume,
            quiet=quiet,
        )
    _print_training(result, json=json, quiet=quiet)


def _print_training(result: dict[str, Any], *, json: bool, quiet: bool) -> None:
    if not result:
        return
    output.print_notes(result["notes"], quiet)
    if json:
        output.print_json(result)
        return
    output.print_scores(result, "Scores on held-out data")
    run = Path(result["run"])
    output.print_line(f"run: {run}")
    if (run / "report.html").is_file():
        output.print_line(f"report: {run / 'report.html'}")


@app.command(no_args_is_help=True)
@command
def evaluate(
    run: Run,
    data: Data,
    *,
    windows: Annotated[
        str,
        typer.Option(
            help="last: the last window; rolling: every whole window after the training data.",
            metavar="last|rolling",
        ),
    ] = "last",
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Also score windows that were trained on.")
    ] = False,
    future: Future = None,
    seed: Seed = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a run on a file, which may reach beyond the training file, beside the baselines."""
    with output.only_results_on_stdout():
        result, notes = estimators.evaluate(
            run, data, windows=windows, in_sample=in_sample, future=future, seed=seed, device=device
        )
    output.print_notes(notes, quiet)
    if json:
        output.print_json(result)
    else:
        output.print_scores(result, f"{'Last window' if windows == 'last' else 'Rolling windows'} of {data}")


@app.command(no_args_is_help=True)
@command
def predict(
    run: Run,
    data: Data,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.csv or FILE.parquet; standard output otherwise.", metavar="FILE"),
    ] = None,
    future: Future = None,
    seed: Seed = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forecast what follows a file: series, time, mean and quantiles, one row per step."""
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {out}: expected a name ending in .csv or .parquet, found {out.suffix!r}")
    with output.only_results_on_stdout():
        result, notes = estimators.predict(run, data, future=future, seed=seed, device=device)
        columns = output.to_columns(result)
        if out is not None:
            output.write_table(columns, out)
    output.print_notes(notes, quiet)
    rows = len(next(iter(columns.values()), []))
    if json and out is not None:
        output.print_json({"out": str(out), "rows": rows, "notes": notes})
    elif json:
        output.print_json({"forecast": columns, "notes": notes})
    elif out is None:
        output.write_csv(columns, sys.stdout)
    else:
        output.print_line(f"{rows} rows: {out}")


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
    _print_training(result, json=json, quiet=quiet)
