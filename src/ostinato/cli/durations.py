"""Durations as people type them."""

from __future__ import annotations

import re

import typer

_UNITS_S = {"h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 1.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|min|m|s|)")


def parse_duration_s(text: str) -> float:
    """Seconds from `90s`, `4m`, `1h30m`, `1.5h` or `240` (seconds).

    Raises:
        typer.BadParameter: not a duration, or none above zero.
    """
    parts = _PART.findall(compact := text.strip().lower().replace(" ", ""))
    duration_s = sum(float(amount) * _UNITS_S[unit] for amount, unit in parts)
    repeated = len({unit for _, unit in parts}) < len(parts)
    if "".join(a + u for a, u in parts) != compact or repeated or not 0 < duration_s < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a duration; write 90s, 4m, 1h30m or seconds")
    return duration_s
