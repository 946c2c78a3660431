"""Small open data sets that ship with the package, each with its licence in the file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from ostinato.data.series import read_series
from ostinato.data.table import SeriesSpec, SeriesTable
from ostinato.errors import InputError


@dataclass(frozen=True)
class BundledSet:
    """A data set: its file, how to read it, and the horizon that suits it, in steps."""

    file: str
    title: str
    spec: SeriesSpec
    horizon: int


BUNDLED: dict[str, BundledSet] = {
    "airpassengers": BundledSet(
        "airpassengers.csv",
        "airline passengers, monthly, 1949 to 1960",
        SeriesSpec(time="Month", target="#Passengers"),
        12,
    ),
    "seattle-weather": BundledSet(
        "seattle-weather.csv",
        "weather in Seattle, daily, 2012 to 2015",
        SeriesSpec(time="date", target="temp_max", observed=("precipitation", "wind", "weather")),
        14,
    ),
    "co2": BundledSet(
        "co2.csv",
        "carbon dioxide at Mauna Loa, monthly, 1958 to 2020",
        SeriesSpec(time="Date", target="CO2"),
        24,
    ),
}


def bundled_set(name: str) -> BundledSet:
    """The set of that name; InputError lists the names there are."""
    if name not in BUNDLED:
        raise InputError(f"there is no bundled set {name!r}; there are: {', '.join(BUNDLED)}")
    return BUNDLED[name]


@contextmanager
def bundled_file(name: str) -> Iterator[Path]:
    """The file of a set, as a path that exists inside the `with` block."""
    with as_file(files("ostinato").joinpath("bundled", bundled_set(name).file)) as path:
        yield path


def licence(name: str) -> str:
    """Source and licence of a set."""
    file = bundled_set(name).file.removesuffix(".csv") + ".licence.txt"
    return files("ostinato").joinpath("bundled", file).read_text(encoding="utf-8")


def load_bundled(name: str) -> SeriesTable:
    """The set as a table."""
    with bundled_file(name) as path:
        return read_series(path, spec=bundled_set(name).spec)
