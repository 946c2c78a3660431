"""What every `ostinato train …` does with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostinato.cli import output


def train_and_print(
    train: Callable[..., dict[str, Any]],
    data: Path,
    out: Path,
    options: Mapping[str, Any],
    config: Path | None,
    overrides: Sequence[str] | None,
    *,
    json: bool,
    quiet: bool,
    **more: Any,
) -> None:
    """Call one of `estimators.train_…` with the options that were given, and print what it returns."""
    with output.only_results_on_stdout():
        result = train(
            data,
            out,
            {name: value for name, value in options.items() if value is not None},
            config=config,
            overrides=overrides or (),
            quiet=quiet,
            **more,
        )
    output.print_training(result, json=json, quiet=quiet)
