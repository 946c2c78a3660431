"""The roof: the command `ostinato`. It parses, calls an estimator, and prints; nothing imports it.

`ostinato --help` must answer at once, so that nothing heavy (torch, matplotlib) is imported before a command
runs.
"""

from __future__ import annotations

import os
import sys
import time

STARTED_S = time.monotonic()  # --max-time counts from here, imports included


def main(arguments: list[str] | None = None) -> None:
    """Run the command with `arguments` (by default those of the process) and exit: 0, 1, 2 or 130."""
    try:
        from ostinato.cli.commands import app
    except KeyboardInterrupt:  # nothing has begun
        sys.exit(130)
    if sys.stdout is None:  # closed by whoever started us (>&-): nobody wants the result
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    sys.exit(app(arguments))
