import re
from html.parser import HTMLParser

import pytest

from ostinato.insight.plots import training_figure
from ostinato.insight.report import Report, best_scores, format_score, is_best, report_html

SCORES = {
    "model": {"gru <1>": {"mase": 0.41, "rmse": 17.02345, "coverage80": 0.75}},
    "baselines": {
        "naive": {"mase": 2.5, "rmse": 99.0, "coverage80": 0.5},
        "ets": {"mase": 0.40, "rmse": float("nan"), "coverage80": None},
    },
}
VOID = {"meta", "br", "img", "path", "use"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def make(**changes):
    arguments = dict(
        title="Load & price",
        summary="one <b>sentence</b>",
        facts={"series": "7", "frequency": "h"},
        scores=SCORES,
        notes=["3 rows were sorted", "<script>alert(1)</script>"],
        figures=[
            (f"Curves {i}", training_figure({"step": [1, 2], "train_loss": [2, 1]}, 2)) for i in range(2)
        ],
        configuration='name = "<tag>"\n',
        footer="ostinato",
    )
    return report_html(Report(**{**arguments, **changes}))


def test_everything_is_in_the_page_as_text():
    page = Page(make())
    for text in (
        "Load & price",
        "one <b>sentence</b>",
        "gru <1>",
        "0.410",
        "17.02",
        "75.0 %",
        "–",
        "frequency",
    ):
        assert text in page.text, text
    assert "<script>alert(1)</script>" in page.text
    assert 'name = "<tag>"' in page.text


def test_the_page_needs_nothing_from_outside_and_runs_nothing():
    text = make()
    page = Page(text)
    assert "<script" not in text
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert links
    assert all(value.startswith("#") for value in links), links
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_names_inside_the_pictures_are_unique_and_links_lead_to_them():
    text = make()
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(names)) == len(names)
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(names), used - set(names)


def test_ink_follows_the_page_and_the_bytes_are_the_same_each_time():
    text = make()
    assert "currentColor" in text
    assert "#30363d" not in text
    assert "prefers-color-scheme: dark" in text
    assert text == make()


def test_the_best_of_each_column_is_marked():
    text = make()
    assert "<td class=best>0.400</td>" in text
    assert "<td class=best>17.02</td>" in text
    assert "<td class=best>75.0 %</td>" in text
    assert text.count("class=best") == 3


def test_empty_parts_leave_no_trace():
    page = Page(report_html(Report("Only a title")))
    assert [text for text in page.text if text and "{" not in text] == ["Only a title", "Only a title"]


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("mase", 0.41234, "0.412"),
        ("rmse", 12345.678, "12,346"),
        ("coverage80", 1.0, "100.0 %"),
        ("wql", None, "–"),
    ],
)
def test_scores_as_text(metric, value, expected):
    assert format_score(metric, value) == expected


def test_best_is_least_but_for_coverage_nearest():
    best = best_scores(
        [{"mase": 2.0, "coverage80": 1.0}, {"mase": 1.0, "coverage80": 0.7}, {"mase": float("nan")}]
    )
    assert best == {"mase": 1.0, "coverage80": 0.7}
    assert is_best(best, "mase", 1.0)
    assert not is_best(best, "crps", None)
