"""`ostinato bench`: the layers beside their peers, on this machine."""

from __future__ import annotations

import json as json_format
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostinato.cli import STARTED_S, output
from ostinato.cli.failures import command
from ostinato.errors import InputError, OstinatoError

if TYPE_CHECKING:
    from ostinato.bench.tables import Sheet

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure the layers beside PyTorch, ONNX Runtime, JAX and cuDNN."
)


@bench_app.callback()
def _group() -> None:
    pass


@bench_app.command("cpu")
@command
def bench_cpu(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and rounds: two minutes.")] = False,
    why: Annotated[
        bool, typer.Option("--why", help="Say which path each size takes; measure nothing.")
    ] = False,
    threads: Annotated[str | None, typer.Option(help="Such as 1,2.", metavar="N,…")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="sequences, steps, odd, ragged, stacks, options, custom, scans, recompute, load or "
            "alternating; repeatable.",
            metavar="GRID",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for speed.json, speed.md, speed.png and speed.svg.", metavar="FOLDER"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Time the layers beside other packages, in one process and in turns.

    Every contestant's outputs are compared with float64 first; one whose outputs differ gets no ratio.
    About twenty minutes on two cores; leave the machine alone meanwhile. Exit code 1: our own outputs differ.
    """
    from ostinato.bench.running import Plan, explain_paths, run_benchmark

    plan = Plan.read(only or None, _numbers(threads), is_quick=quick)
    if why:
        _print_why(explain_paths(plan), json=json)
        return
    has_figure = out is not None and any(grid.name == "sequences" for grid in plan.grids)
    if has_figure:
        from ostinato.bench.figure import check_plots

        check_plots()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with output.only_results_on_stdout():
        report = run_benchmark(plan, _progress)
    if json:
        output.print_json(report)
    else:
        _print_report(report)
    if out is not None:
        _write(report, out, has_figure=has_figure)
    if report["failures"]:
        failed = "; ".join(report["failures"])
        raise OstinatoError(f"bench: our outputs differ from float64, or could not be computed: {failed}")


@bench_app.command("gpu")
@command
def bench_gpu(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes and repetitions: three minutes.")
    ] = False,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="Check each kernel at small sizes in this process, for compute-sanitizer; time nothing.",
        ),
    ] = False,
    max_time: Annotated[
        float,
        typer.Option(help="Seconds for everything; what has no time left is skipped.", metavar="S", min=30),
    ] = 600.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for gpu.json, written after each case, and gpu.md.", metavar="FOLDER"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Check and time the layers on an NVIDIA GPU beside cuDNN and torch.compile.

    First cuDNN alone, then ours beside float64, then the grid and the goals. Every case runs in another
    process with a limit of time: one that fails or hangs is named, and the rest goes on. Exit code 1: ours
    are wrong somewhere or did not run, or there is no GPU.
    """
    from ostinato.bench import gpu_cases, gpu_running

    if quick and tiny:
        raise InputError("--quick and --tiny are two plans; pass one of them")
    max_time -= time.monotonic() - STARTED_S
    device = gpu_running.find_device()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with output.only_results_on_stdout():
        if tiny:
            report = gpu_running.run_here(gpu_cases.tiny_plan(), device, folder=out, notify=_say)
        else:
            plan = gpu_cases.quick_plan() if quick else gpu_cases.full_plan()
            report = gpu_running.run_gpu_benchmark(plan, device, max_time_s=max_time, folder=out, notify=_say)
    _tell_gpu(report, out, json=json)
    if report["failures"]:
        failed = "; ".join(report["failures"])
        raise OstinatoError(
            f"bench gpu: {len(report['failures'])} cases of ours are wrong or failed: {failed}"
        )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _tell_gpu(report: Mapping[str, Any], out: Path | None, *, json: bool) -> None:
    from ostinato.bench import gpu_tables
    from ostinato.training.atomic import write_bytes_atomically

    if out is not None:
        write_bytes_atomically(out / "gpu.md", gpu_tables.page(report).encode())
    if json:
        output.print_json(report)
        return
    for line in gpu_tables.header(report):
        output.print_line(line)
    _print_sheets(gpu_tables.sheets(report))
    for line in gpu_tables.summary_lines(report):
        output.print_line(line)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        raise InputError(f"--threads {text}: expected whole numbers with commas between, such as 1,2")
    return [int(word) for word in words]


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def _print_why(answers: list[dict[str, Any]], *, json: bool) -> None:
    if json:
        output.print_json({"paths": answers})
        return
    from ostinato.bench.tables import why_lines

    for line in why_lines(answers):
        output.print_line(line)


def _print_report(report: Mapping[str, Any]) -> None:
    from ostinato.bench.tables import header, sheets

    for line in header(report):
        output.print_line(line)
    _print_sheets(sheets(report))
    output.print_notes(report["notes"], quiet=False)


def _print_sheets(sheets: Iterable[Sheet]) -> None:
    from rich.console import Console

    # Numbers that are cut to a terminal's width are lost; long lines only wrap.
    console = Console(file=sys.stdout, highlight=False, width=1000)
    for sheet in sheets:
        output.print_line("")
        console.print(sheet.for_terminal(), soft_wrap=True)
        sys.stdout.write("\n")


def _write(report: Mapping[str, Any], folder: Path, *, has_figure: bool) -> None:
    from ostinato.bench.tables import page
    from ostinato.training.atomic import write_bytes_atomically

    text = json_format.dumps(report, indent=1, allow_nan=False)
    write_bytes_atomically(folder / "speed.json", text.encode())
    write_bytes_atomically(folder / "speed.md", page(report).encode())
    if has_figure:
        from ostinato.bench.figure import save_figure, speed_figure

        save_figure(speed_figure(report), folder)
