"""A report of `running.run_benchmark` as tables, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ostinato.bench import subjects
from ostinato.bench.cases import CELLS, GRIDS, LINEAR_CELLS, OWN_CELLS, SCAN
from ostinato.bench.situations import RECOMPUTING

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]


def header(report: Mapping[str, Any]) -> list[str]:
    """Machine, versions, and the speed at matrix products."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    peak = ", ".join(
        f"{value / 1e9:.0f} GFLOP/s on {threads} thread{'s' * (threads != '1')}"
        for threads, value in report["gemm_flops_per_s"].items()
    )
    instructions = f" [{' '.join(machine['instructions'])}]" if machine["instructions"] else ""
    return [
        f"{machine['cpu']} ({machine['family']}), {machine['cpus']} processors{instructions}",
        f"our kernels: {machine['kernels']}",
        versions,
        *(f"{name}: {what}" for name, what in report["not_installed"].items()),
        f"largest float32 matrix product: {peak}",
    ]


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        title: what was measured.
        said: how to read an entry.
        columns: headings; the first column is to the left.
        rows: their entries.
    """

    title: str
    said: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def for_terminal(self) -> Table:
        """With rules, for rich."""
        from rich.table import Table

        title = f"{self.title}\n{self.said}" if self.said else self.title
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(self.columns):
            table.add_column(column, no_wrap=True, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def for_page(self) -> str:
        """In Markdown."""
        lines = [f"**{self.title}**" + (f" — {self.said}" if self.said else ""), ""]
        rows = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def page(report: Mapping[str, Any]) -> str:
    """The whole report in Markdown."""
    lines = [f"- {line}" for line in (*header(report), *report["notes"])]
    return "\n".join([*lines, "", *(sheet.for_page() for sheet in sheets(report))])


def sheets(report: Mapping[str, Any]) -> list[Sheet]:
    """One for each grid, number of threads and mode, then the geometric means."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in report["rows"]:
        groups.setdefault((row["grid"], row["threads"], row["mode"]), []).append(row)
    found = [_grid_sheet(*key, rows) for key, rows in groups.items()]
    if report["geometric_means"]:
        found.append(_means_sheet(report["geometric_means"]))
    return found


def _grid_sheet(grid: str, threads: int, mode: str, rows: Sequence[Row]) -> Sheet:
    names = _names(rows)
    said = {
        "peers": f"time of ours: {' / '.join(names)} as multiples of it (share of the largest product)",
        "options": "time of ours, over our plain cell, the torch loop over ours",
        "custom": "time of ours, over our built-in cell of its cost, the torch loop over ours",
        "scans": f"time of ours: {' / '.join(names)} as multiples of it (copying as many bytes, of our time)",
        "recompute": "time plain → recomputing; kept for backward; peak of memory",
        "load": f"{' / '.join(names)} as multiples of ours; growth of ours and torch under load",
        "alternating": f"{' / '.join(names)} as multiples of ours; growth of ours and torch after it",
    }[GRIDS[grid].kind]
    if mode == "step":
        said = f"median (99 %) of ours: {' / '.join(names)} as multiples of it"
    cells = [
        cell for cell in (*CELLS, *OWN_CELLS, SCAN, *LINEAR_CELLS) if any(row["cell"] == cell for row in rows)
    ]
    title = f"{GRIDS[grid].title}: {mode}, {threads} thread{'s' * (threads > 1)}"
    sheet = Sheet(title, said, ["size", *(cell.upper() for cell in cells)])
    by_size: dict[str, dict[str, str]] = {}
    for row in rows:
        by_size.setdefault(_size(row), {})[row["cell"]] = _entry(row, names)
    for size, entries in by_size.items():
        sheet.rows.append([size, *(entries.get(cell, "") for cell in cells)])
    return sheet


def _names(rows: Sequence[Row]) -> list[str]:
    """Contestants but ours and its plain form, in the order of the rows."""
    named = [name for row in rows for name in row["times"]]
    return [n for n in dict.fromkeys(named) if n not in (subjects.NAME, RECOMPUTING) and n != "plain cell"]


def _size(row: Row) -> str:
    parts = [f"H={row['H']}", f"B={row['B']}"]
    parts += [f"T={row['T']}"] if row["mode"] != "step" else []
    parts += [f"D={row['D']}"] if row["D"] != row["H"] else []
    return " ".join([*parts, row["tag"]]).strip()


def _entry(row: Row, names: Sequence[str]) -> str:
    mine = row["times"][subjects.NAME]
    if "median_s" not in mine:
        return f"{mine['status']} ({mine.get('worst', '')} {mine.get('error', 0):.0e})"
    mark = "~" if row["noisy"] else ""
    if row["kind"] in ("options", "custom"):
        return (
            f"{mark}{time_text(mine['median_s'])}, {row['cost_over_plain']:.2f}, {_ratio(row, 'torch loop')}"
        )
    if row["kind"] == "recompute":
        return mark + _recompute_text(row)
    ratios = " / ".join(_ratio(row, name) for name in names)
    if row["mode"] == "step":
        return f"{mark}{time_text(mine['p50_s'])} ({time_text(mine['p99_s'])}): {ratios}"
    if "growth" in row:
        growth = ", ".join(f"{value:.2f}" for value in row["growth"].values())
        return f"{mark}{time_text(mine['median_s'])}: {ratios}; {growth}"
    share = row["copy_share"] if "copy_share" in row else mine.get("gemm_share")
    return f"{mark}{time_text(mine['median_s'])}: {ratios}" + (f" ({share:.0%})" if share else "")


def _recompute_text(row: Row) -> str:
    def pair(values: Mapping[str, int | None]) -> str:
        return " → ".join("?" if value is None else f"{value / 1e6:.0f} MB" for value in values.values())

    times = [row["times"][name].get("median_s") for name in (subjects.NAME, RECOMPUTING)]
    shown = " → ".join("differs" if value is None else time_text(value) for value in times)
    return f"{shown}; {pair(row['saved_bytes'])}; {pair(row['peak_bytes'])}"


def _ratio(row: Row, name: str) -> str:
    if name in row["ratios"]:
        return ratio_text(row["ratios"][name]["ratio"])
    return str(row["times"].get(name, {}).get("status", "–"))


def ratio_text(value: float) -> str:
    """Two or three digits."""
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def time_text(seconds: float) -> str:
    """Three digits with a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:.2f} µs"


def _means_sheet(means: Sequence[Mapping[str, Any]]) -> Sheet:
    names = list(dict.fromkeys(name for mean in means for name in mean["over"]))
    sheet = Sheet(
        "Geometric means of peer's time over ours",
        "lowest: the lowest ratio to the best peer of a case",
        ["grid", "mode", "threads", "cell", *names, "best peer", "lowest", "below 1"],
    )
    for mean in means:
        over = [ratio_text(mean["over"][name]) if name in mean["over"] else "–" for name in names]
        sheet.rows.append(
            [
                mean["grid"], mean["mode"], str(mean["threads"]), mean["cell"].upper(), *over,
                ratio_text(mean["over_best_peer"]), ratio_text(mean["lowest"]),
                f"{mean['below_one']} of {mean['cases']}",
            ]
        )  # fmt: skip
    return sheet


def why_lines(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Path and reason, with the sizes (H x B) that it is the answer for."""
    lines = []
    grid = None
    for one in answers:
        if one["grid"] != grid:
            grid = one["grid"]
            lines += ["", f"{GRIDS[grid].title} ({grid})"]
        cell = f"{one['cell'].upper()} {one['tag']}".strip()
        threads = ", ".join(map(str, one["threads"]))
        reason = f" ({one['reason']})" if one["reason"] else ""
        lines.append(f"  {cell}, {one['mode']}, threads {threads}: {one['path']}{reason}")
        lines.append(f"    {' '.join(one['sizes'])}")
    return lines[1:]
