"""Pictures and numbers of an attention: what is drawn, what is left out, what is refused."""

import json

import numpy as np
import pytest

from ostinato.errors import InputError, SizeError
from ostinato.insight.alignment_view import MOST_UNITS, Alignment, alignment_figure, alignments_html

pytest.importorskip("matplotlib")
WEIGHTS = np.array([[0.75, 0.25, 0.0], [0.0, 0.125, 0.875]])
ONE = Alignment(["der", "$Hund$", "<b>"], ["the", "dog"], WEIGHTS, "Line 1")


def test_json_has_units_and_weights():
    stored = json.loads(json.dumps(ONE.to_json()))
    assert stored == {
        "title": "Line 1",
        "source": ["der", "$Hund$", "<b>"],
        "target": ["the", "dog"],
        "weights": WEIGHTS.tolist(),
    }


def test_a_picture_has_a_square_for_each_pair_of_units():
    figure = alignment_figure(ONE)
    (ax,) = figure.axes
    assert np.array_equal(ax.images[0].get_array(), WEIGHTS)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["der", "$Hund$", "<b>"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["the", "dog"]


def test_of_many_units_those_that_were_looked_at_are_drawn():
    S = MOST_UNITS + 40
    weights = np.full((2, S), 0.001)
    weights[:, -5] = 0.9
    figure = alignment_figure(Alignment([f"u{i}" for i in range(S)], ["a", "b"], weights, "long"))
    (ax,) = figure.axes
    assert len(ax.get_xticks()) == MOST_UNITS
    assert f"u{S - 5}" in [tick.get_text() for tick in ax.get_xticklabels()]
    assert "60 of 100 source units" in figure.get_suptitle()


def test_a_page_escapes_text_and_holds_a_picture_for_each():
    page = alignments_html([ONE, Alignment(["x"], [], np.zeros((0, 1)))], title="<script>")
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert "&lt;b&gt;" in page
    assert "The first 1 of 2 are drawn." in page


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(SizeError, match=r"'x': weights have shape \(2, 3\), expected \(1, 3\)"):
        Alignment(["a", "b", "c"], ["d"], WEIGHTS, "x")
    with pytest.raises(InputError, match="no unit on one side"):
        alignment_figure(Alignment(["a"], [], np.zeros((0, 1))))
    with pytest.raises(InputError, match="no alignment to draw"):
        alignments_html([])
