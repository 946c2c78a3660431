"""report.html: one page that says how a run went, complete in one file, for light and dark screens."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ostinato.insight.plots import INK, figure_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# metric -> heading, what it is, format, what to be near (None: the less the better)
METRICS: dict[str, tuple[str, str, str, float | None]] = {
    "mase": ("MASE", "absolute error of the median over the seasonal naive error in training", ".3f", None),
    "smape": ("sMAPE", "symmetric absolute percentage error of the median, 0 to 200", ".2f", None),
    "rmse": ("RMSE", "root mean square error of the mean, in the unit of the data", "#.4g", None),
    "wql": ("WQL", "weighted quantile loss over all quantiles", ".4f", None),
    "coverage80": ("in 80 %", "share of actual values in the 80 % interval: 80 % is right", ".1%", 0.8),
    "crps": ("CRPS", "continuous ranked probability score, in the unit of the data", "#.4g", None),
    "accuracy": ("accuracy", "share of the classes, or of the tags, that are right", ".2%", 1.0),
    "macro_f1": ("macro F1", "mean of the F1 of every class", ".2%", 1.0),
    "log_loss": ("log loss", "mean of -log of the probability of the right class, in nats", ".4f", None),
    "calibration_error": ("calibration", "how far probabilities are from shares, on average", ".2%", None),
    "span_f1": ("span F1", "F1 of whole spans: type, beginning and end are right", ".2%", 1.0),
    "label_accuracy": ("labels", "share of the labels of sentences that are right", ".2%", 1.0),
    "perplexity": (
        "perplexity",
        "exp of the nats per unit: among how many one seems to be drawn",
        ".2f",
        None,
    ),
    "nats": ("nats", "mean of -log of the probability of each unit of the text", ".4f", None),
    "bits_per_char": ("bits/char", "-log2 of the text's probability over its characters", ".4f", None),
    "exact_match": ("all right", "share of answers, or of sentences' labels and tags, all right", ".2%", 1.0),
    "bleu": ("BLEU", "of the corpus, 0 to 100, cased, 13a tokens, by sacrebleu", ".2f", 100.0),
    "chrf": ("chrF", "F of runs of up to six characters, 0 to 100, by sacrebleu", ".2f", 100.0),
    "rouge_l": ("ROUGE-L", "F of the longest common subsequence of words, on average", ".2%", 1.0),
    "token_error_rate": ("token errors", "edits to the nearest right answer, of its tokens", ".2%", None),
}
SIMPLEST_FIRST = (
    "naive", "seasonal_naive", "ets", "unigram", "majority", "most_frequent_tag", "copy_source",
    "first_8_words",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What the page shows; every part may be empty.

    Attributes:
        title: of the page.
        summary: one sentence under it.
        facts: name -> text: series, frequency, horizon, time, …
        scores: {"model": {NAME: {metric: value}}, "baselines": {NAME: {…}}}, as `evaluate` returns.
        notes: what was found in the data and done about it.
        figures: caption and matplotlib figure.
        configuration: TOML text.
        footer: last line.
    """

    title: str
    summary: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    figures: Sequence[tuple[str, Figure]] = ()
    configuration: str = ""
    footer: str = ""


def report_html(report: Report) -> str:
    """The page as text: no script, no network, figures inline; the same report gives the same bytes."""
    body = [f"<header><h1>{_text(report.title)}</h1>"]
    body += [f"<p class=summary>{_text(report.summary)}</p>" if report.summary else "", "</header>"]
    body += [_facts(report.facts), _scores(report.scores), *_figures(report.figures), _notes(report.notes)]
    if report.configuration:
        body.append(
            "<section><h2>Configuration</h2><details><summary>every setting of this run</summary>"
            f"<pre>{_text(report.configuration)}</pre></details></section>"
        )
    body.append(f"<footer>{_text(report.footer)}</footer>" if report.footer else "")
    return page_html(report.title, "\n".join(filter(None, body)))


def page_html(title: str, body: str, style: str = "") -> str:
    """A complete page in the looks of the report.

    Args:
        title: text.
        body: HTML, escaped already.
        style: further CSS.
    """
    return _PAGE.format(title=_text(title), style=_STYLE + style, body=body)


def score_rows(
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> list[tuple[str, Mapping[str, float | None], str]]:
    """(name, scores, "model" or "baseline") of each row of a table: models, then baselines from the simplest
    on."""
    rows = [(name, row, "model") for name, row in scores.get("model", {}).items()]
    baselines = scores.get("baselines", {})
    ordered = [name for name in SIMPLEST_FIRST if name in baselines]
    ordered += [name for name in baselines if name not in SIMPLEST_FIRST]
    return rows + [(name, baselines[name], "baseline") for name in ordered]


def best_scores(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """The best value of every metric over some rows of scores; for coverage the one nearest to what it should
    be."""
    best: dict[str, float] = {}
    for row in rows:
        for metric, (_, _, _, aim) in METRICS.items():
            value = row.get(metric)
            if value is None or math.isnan(value):
                continue
            held = best.get(metric)
            if held is None or (value < held if aim is None else abs(value - aim) < abs(held - aim)):
                best[metric] = value
    return best


def is_best(best: Mapping[str, float], metric: str, value: float | None) -> bool:
    """Whether a score is the best of its metric."""
    return value is not None and value == best.get(metric)


def format_score(metric: str, value: float | None) -> str:
    """A score as people read it; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    style = METRICS[metric][2]
    return format(value, ",.0f" if style == "#.4g" and abs(value) >= 1000 else style).replace("%", " %")


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    items = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl class=facts>{items}</dl>"


def _scores(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    rows = score_rows(scores)
    if not rows:
        return ""
    metrics = [metric for metric in METRICS if any(metric in row for _, row, _ in rows)]
    best = best_scores(row for _, row, _ in rows)
    head = "".join(f'<th scope=col title="{_text(METRICS[m][1])}">{METRICS[m][0]}</th>' for m in metrics)
    lines = []
    for name, row, kind in rows:
        cells = "".join(
            f"<td{' class=best' if is_best(best, m, row.get(m)) else ''}>{format_score(m, row.get(m))}</td>"
            for m in metrics
        )
        lines.append(f"<tr class={kind}><th scope=row>{_text(name)}</th>{cells}</tr>")
    legend = "".join(f"<dt>{METRICS[m][0]}</dt><dd>{_text(METRICS[m][1])}</dd>" for m in metrics)
    return (
        "<section><h2>Scores beside the baselines</h2><div class=wide><table>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<details><summary>what the columns mean</summary><dl class=legend>{legend}</dl></details></section>"
    )


def _figures(figures: Sequence[tuple[str, Figure]]) -> list[str]:
    parts = []
    for number, (caption, figure) in enumerate(figures):
        svg = figure_bytes(figure, "svg").decode("utf-8")
        svg = svg[svg.index("<svg") :]
        # names inside one picture must not meet those of another, and its ink follows the page's
        svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>figure{number}-", svg)
        svg = svg.replace(INK, "currentColor").replace("fill: #ffffff", "fill: none", 1)
        svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
        svg = re.sub(r' width="[0-9.]+pt"| height="[0-9.]+pt"', "", svg, count=2)
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{_text(caption)}" ', 1)
        parts.append(f"<section><h2>{_text(caption)}</h2><figure>{svg}</figure></section>")
    return parts


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<section><h2>Notes on the data</h2><ul>{items}</ul></section>"


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)


_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --tint: #f3f6f9; --accent: #1f6fb2; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #e3e8ee; --soft: #9aa5b1;
  --line: #343c46; --tint: #1c222a; --accent: #6cb2ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
.summary, footer, summary, dt { color: var(--soft); }
.summary { margin: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem 1.5rem;
  margin: 1.75rem 0 0; padding: 1rem 1.25rem; background: var(--tint); border-radius: .5rem; }
.facts dt, .legend dt { font-size: .8rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th[scope=row], thead th:first-child { text-align: left; padding-left: 0; }
thead th { font-size: .8rem; color: var(--soft); font-weight: 500; }
.model th { font-weight: 600; }
.baseline th { font-weight: 400; color: var(--soft); }
.best { font-weight: 700; color: var(--accent); }
details { margin-top: .75rem; }
summary { cursor: pointer; }
.legend { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; }
.legend dd { margin: 0; }
figure { margin: 0; overflow-x: auto; }
svg { width: 100%; min-width: 34rem; height: auto; display: block; color: var(--ink); }
pre { background: var(--tint); padding: 1rem 1.25rem; border-radius: .5rem; overflow-x: auto;
  font-size: .85rem; }
footer { margin-top: 3rem; font-size: .85rem; }
@media print { details > * { display: block; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
