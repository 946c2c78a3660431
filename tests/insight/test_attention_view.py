"""The page of a network's attention: escaped, complete, shaded in the order of the weights."""

import re

import pytest

from ostinato.errors import InputError
from ostinato.insight.attention_view import ReadDocument, attention_html, read_documents

DOCUMENT = ReadDocument(
    sentences=[["A", "<b>bold</b>", "claim"], ["then", "'quotes\" & more"]],
    sentence_weights=[0.25, 0.75],
    word_weights=[[0.2, 0.5, 0.3], [0.1, 0.9]],
    title="<script>alert(1)</script>",
    said="a & b",
    probability=0.875,
    actual="<i>",
)


def test_everything_of_the_text_is_escaped():
    page = attention_html([DOCUMENT], title="</title><script>")
    assert "<script" not in page.lower()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "&#x27;quotes&quot; &amp; more" in page
    assert "a &amp; b" in page
    assert "87.5 %" in page
    assert "http" not in page.replace("http-equiv", "")


def test_shades_follow_the_weights():
    page = attention_html([DOCUMENT])
    shades = [float(w) for w in re.findall(r"<span style='--w:([0-9.]+)' title", page)]
    strengths = [w * s**0.5 for s, row in zip([0.25, 0.75], DOCUMENT.word_weights, strict=True) for w in row]
    expected = [value / max(strengths) for value in strengths]
    assert shades == pytest.approx(expected, abs=1e-3)
    assert max(shades) == 1.0
    shares = [float(w) for w in re.findall(r"class=share style='--w:([0-9.]+)'", page)]
    assert shares == pytest.approx([1 / 3, 1.0], abs=1e-3)


def test_empty_documents_and_odd_weights_have_a_page():
    empty = ReadDocument([], [], [])
    odd = ReadDocument([["a"], []], [float("nan"), 0.0], [[float("inf")], []])
    page = attention_html([empty, odd])
    assert "An empty document" in page
    assert "nan" not in page
    assert "inf" not in page
    assert attention_html([empty, odd]) == page


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="1 sentences, 2 sentence_weights"):
        ReadDocument([["a"]], [0.5, 0.5], [[1.0]])
    with pytest.raises(InputError, match="sentence 0 has 2 words and 1 word_weights"):
        ReadDocument([["a", "b"]], [1.0], [[1.0]])


def test_a_classifier_without_documents_is_refused():
    with pytest.raises(InputError, match="learned from nothing yet; fit"):
        read_documents(object(), ["a"])
