"""A report of `gpu_running` as tables, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ostinato.bench.gpu_problems import COMPILED, CUDNN, OURS, PLAIN
from ostinato.bench.gpu_running import median_s
from ostinato.bench.gpu_scans import COPY
from ostinato.bench.tables import Sheet, ratio_text, time_text

Row = Mapping[str, Any]


def header(report: Row) -> list[str]:
    """GPU and versions, and whether the run came to its end."""
    gpu = report["gpu"]
    words = [gpu["name"]]
    if "driver" in gpu:
        words += [f"driver {gpu['driver']}", f"compute capability {gpu['capability']}"]
        words += [f"{gpu['multiprocessors']} multiprocessors", f"{gpu['memory_bytes'] / 2**30:.0f} GiB"]
    lines = [", ".join(words), ", ".join(f"{name} {value}" for name, value in report["versions"].items())]
    for row in report["rows"]:
        if row["kind"] == "copy" and row.get("bytes_per_s"):
            lines.append(f"copying on the device: {row['bytes_per_s'] / 1e12:.2f} TB/s, read and written")
    lines.append(f"plan {report['plan']}, {report['seconds']:.0f} s")
    if not report["complete"]:
        lines.append("this run did not come to its end; what it had measured is here")
    return lines


def page(report: Row) -> str:
    """The whole report in Markdown."""
    lines = [f"- {line}" for line in header(report)]
    lines += [f"- failed: {line}" for line in report["failures"]]
    if report["skipped"]:
        lines.append(f"- skipped, for the time was up: {'; '.join(report['skipped'])}")
    return "\n".join([*lines, "", *(sheet.for_page() for sheet in sheets(report))])


def sheets(report: Row) -> list[Sheet]:
    """cuDNN alone, correctness, the grid, scans, goals, and where the choice is wrong; those with rows."""
    rows = report["rows"]
    found = [*_surveys(rows), _checks(rows), _timings(rows), _scans(rows), _goals(report["goals"])]
    found.append(_choices(report["choice"]))
    return [sheet for sheet in found if sheet.rows]


def _surveys(rows: Sequence[Row]) -> Iterator[Sheet]:
    """For each cell: µs a step, forward / forward and backward, by precision."""
    surveys = [row for row in rows if row["kind"] == "survey"]
    for cell in dict.fromkeys(row["cell"] for row in surveys):
        precisions = list(dict.fromkeys(row["precision"] for row in surveys))
        sheet = Sheet(
            f"cuDNN, {cell.upper()}, µs a step",
            "forward / forward and backward; T=256",
            ["size", *precisions],
        )
        by_size: dict[str, dict[str, str]] = {}
        for row in surveys:
            if row["cell"] == cell:
                by_size.setdefault(f"H={row['H']} B={row['B']}", {})[row["precision"]] = _steps(row, CUDNN)
        sheet.rows.extend(
            [size, *(entries.get(p, "") for p in precisions)] for size, entries in by_size.items()
        )
        yield sheet


def _steps(row: Row, name: str) -> str:
    times = [median_s(row, mode, name) for mode in ("forward", "training")]
    if row["status"] != "ok":
        return row["status"]
    return " / ".join("failed" if one is None else f"{one * 1e6 / row['T']:.2f}" for one in times)


def _checks(rows: Sequence[Row]) -> Sheet:
    sheet = Sheet(
        "Correctness", "largest error over largest value, beside float64",
        ["case", "status", "error", "allowed", "in", "path", "repeated"],
    )  # fmt: skip
    for row in rows:
        if row["kind"] not in ("check", "scan_check", "feature"):
            continue
        numbers = [f"{row[name]:.1e}" if row.get(name) is not None else "" for name in ("error", "allowed")]
        detail = row.get("worst") or row.get("detail", "")
        sheet.rows.append(
            [row["label"], row["status"], *numbers, detail, row.get("path", ""), str(row.get("repeats", ""))]
        )
    return sheet


def _timings(rows: Sequence[Row]) -> Sheet:
    names = [CUDNN, PLAIN, COMPILED]
    sheet = Sheet(
        "The grid", "ours, then peers as multiples of ours (above 1 ours is faster); forward / with backward",
        ["case", "path", "ours", "µs a step", *names, "auto takes"],
    )  # fmt: skip
    for row in rows:
        if row["kind"] != "time":
            continue
        if row["status"] in ("failed", "skipped"):
            sheet.rows.append(
                [row["label"], row["status"], row.get("detail", ""), "", *[""] * len(names), ""]
            )
            continue
        ours = " / ".join(_time(row, mode, OURS) for mode in ("forward", "training"))
        peers = [" / ".join(_ratio(row, mode, name) for mode in ("forward", "training")) for name in names]
        peers = ["" if peer == " / " else peer for peer in peers]
        sheet.rows.append([row["label"], row["path"], ours, _steps(row, OURS), *peers, row["automatic"]])
    return sheet


def _time(row: Row, mode: str, name: str) -> str:
    found = median_s(row, mode, name)
    return row[mode].get(name, {}).get("status", "") if found is None else time_text(found)


def _ratio(row: Row, mode: str, name: str) -> str:
    mine, theirs = median_s(row, mode, OURS), median_s(row, mode, name)
    if mine is None or theirs is None:
        return row[mode].get(name, {}).get("status", "")
    return ratio_text(theirs / mine)


def _scans(rows: Sequence[Row]) -> Sheet:
    sheet = Sheet(
        "Linear scans", "and what copying as many bytes takes, of our time; forward / with backward",
        ["case", "path", "ours", "copy"],
    )  # fmt: skip
    for row in rows:
        if row["kind"] != "scan":
            continue
        if "forward" not in row:
            sheet.rows.append([row["label"], row["status"], row.get("detail", ""), ""])
            continue
        shares = []
        for mode in ("forward", "training"):
            mine, copy = median_s(row, mode, OURS), median_s(row, mode, COPY)
            shares.append("" if mine is None or copy is None else f"{copy / mine:.0%}")
        ours = " / ".join(_time(row, mode, OURS) for mode in ("forward", "training"))
        sheet.rows.append([row["label"], row["path"], ours, " / ".join(shares)])
    return sheet


def _goals(goals: Sequence[Row]) -> Sheet:
    sheet = Sheet("Goals", "", ["goal", "case", "mode", "ours", "measured", "wanted", "met"])
    for one in goals:
        is_time = not one["over"]

        def text(value: float | None, is_time: bool = is_time) -> str:
            if value is None:
                return "not measured"
            return time_text(value) if is_time else ratio_text(value)

        met = {True: "met", False: "not met", None: "not measured"}[one["is_met"]]
        sheet.rows.append(
            [
                one["goal"], one["label"], one["mode"],
                "" if one["ours_s"] is None else time_text(one["ours_s"]), text(one["measured"]),
                text(one["wanted"]), met,
            ]
        )  # fmt: skip
    return sheet


def _choices(choices: Sequence[Row]) -> Sheet:
    sheet = Sheet(
        "Where the other way is faster", "kernels/gpu_choice.py should know of these",
        ["case", "mode", "auto takes", "cuDNN's time over ours"],
    )  # fmt: skip
    for one in choices:
        sheet.rows.append([one["label"], one["mode"], one["chosen"], ratio_text(one["ratio"])])
    return sheet


def summary_lines(report: Row) -> list[str]:
    """How many checks and goals, in two lines that come last."""
    checks = [row for row in report["rows"] if row["kind"] in ("check", "scan_check", "feature")]
    right = sum(row["status"] == "ok" for row in checks)
    met = sum(one["is_met"] is True for one in report["goals"])
    return [
        f"checks: {right} of {len(checks)} right; failures: {len(report['failures'])}; "
        f"skipped for lack of time: {len(report['skipped'])}",
        f"goals: {met} of {len(report['goals'])} met",
    ]
