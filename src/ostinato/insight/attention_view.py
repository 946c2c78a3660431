"""Where a hierarchical network looked: documents with their sentences and words shaded by attention."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ostinato.data.documents import Document, DocumentLimits
from ostinato.errors import InputError
from ostinato.insight.report import page_html

if TYPE_CHECKING:
    from ostinato.tasks.labels.classifier import Classifier


@dataclass(frozen=True)
class ReadDocument:
    """A document as a network read it.

    Attributes:
        sentences: words of each sentence.
        sentence_weights: a weight for each sentence, summing to 1.
        word_weights: for each sentence a weight for each of its words, summing to 1.
        title: a heading.
        said: the class that the network says.
        probability: of that class, 0 … 1.
        actual: the right class, where it is known.
    """

    sentences: Sequence[Sequence[str]]
    sentence_weights: Sequence[float]
    word_weights: Sequence[Sequence[float]]
    title: str = ""
    said: str = ""
    probability: float | None = None
    actual: str | None = None

    def __post_init__(self) -> None:
        shapes = [len(self.sentences), len(self.sentence_weights), len(self.word_weights)]
        if len(set(shapes)) != 1:
            raise InputError(
                f"ReadDocument: {shapes[0]} sentences, {shapes[1]} sentence_weights and {shapes[2]} rows of "
                "word_weights; expected one of each for each sentence"
            )
        for i, (words, weights) in enumerate(zip(self.sentences, self.word_weights, strict=True)):
            if len(words) != len(weights):
                raise InputError(
                    f"ReadDocument: sentence {i} has {len(words)} words and {len(weights)} word_weights"
                )


@torch.no_grad()
def read_documents(
    classifier: Classifier, documents: Sequence[Document], actual: Sequence[str] | None = None
) -> list[ReadDocument]:
    """What a fitted `Classifier(hierarchy=True)` says about documents, and where it looked.

    With several networks the weights are the mean of theirs. A linear model over n-grams, where it takes part
    in the answer, has no place to show: the weights are the networks' alone.

    Args:
        documents: as for `predict`.
        actual: the right classes, to be shown beside.

    Raises:
        InputError: a classifier that has not learned from documents, or another number of classes than of
            documents.
    """
    kind = getattr(classifier, "kind_", None)
    if kind != "documents":
        raise InputError(
            f"read_documents: the classifier has learned from {kind or 'nothing yet'}; fit "
            "Classifier(hierarchy=True) first"
        )
    if actual is not None and len(actual) != len(documents):
        raise InputError(f"read_documents: {len(actual)} classes in actual for {len(documents)} documents")
    preparation: Any = classifier.preparation_
    ensemble: Any = classifier.network_
    networks = [getattr(member, "network", member) for member in ensemble.members]
    encoded = preparation.encode(documents)
    probabilities = classifier.predict_proba(documents)
    read = []
    for i, document in enumerate(documents):
        batch = encoded.batch([i]).to(next(ensemble.parameters()).device)
        said = [network.attend(batch) for network in networks]
        words = torch.stack([one.words for one in said]).mean(0).tolist()
        shares = torch.stack([one.sentences for one in said]).mean(0)[0].tolist()
        sentences, _ = DocumentLimits().words_of(preparation.tokens, document)
        best = int(probabilities[i].argmax())
        read.append(
            ReadDocument(
                sentences,
                shares[: len(sentences)],
                [row[: len(one)] for row, one in zip(words, sentences, strict=False)],
                title=f"Document {i + 1}",
                said=str(classifier.classes_[best]),
                probability=float(probabilities[i, best]),
                actual=None if actual is None else str(actual[i]),
            )
        )
    return read


def attention_html(documents: Sequence[ReadDocument], title: str = "Where the network looked") -> str:
    """A page of documents, complete in one file: no script, no network, every text escaped.

    A sentence carries a bar and its share in percent. A word is shaded by its weight times the square root of
    its sentence's, relative to the document's strongest word, so that words stay legible in sentences that
    count for little (as Yang et al. 2016, figure 5). Exact weights are shown on pointing.

    Args:
        documents: in the order of the page.
        title: of the page.
    """
    legend = (
        "<p class=summary>Bar and number: the sentence's share of the attention. Shade of a word: its share "
        "within the sentence, times the square root of the sentence's.</p>"
    )
    body = [f"<header><h1>{_text(title)}</h1>{legend}</header>", *map(_document, documents)]
    return page_html(title, "\n".join(body), _STYLE)


def _document(document: ReadDocument) -> str:
    strengths = [
        [_finite(weight) * math.sqrt(_finite(share)) for weight in weights]
        for share, weights in zip(document.sentence_weights, document.word_weights, strict=True)
    ]
    strongest = max((s for row in strengths for s in row), default=0.0) or 1.0
    most = max(map(_finite, document.sentence_weights), default=0.0) or 1.0
    rows = "".join(
        f"<li><span class=share style='--w:{_finite(share) / most:.3f}'>{100 * _finite(share):.1f} %</span>"
        f"<span class=words>{_words(words, weights, [s / strongest for s in row])}</span></li>"
        for words, weights, share, row in zip(
            document.sentences, document.word_weights, document.sentence_weights, strengths, strict=True
        )
    )
    inside = f"<ol class=read>{rows}</ol>" if rows else "<p class=summary>An empty document.</p>"
    return f"<section><h2>{_text(document.title)}</h2>{_verdict(document)}{inside}</section>"


def _words(words: Sequence[str], weights: Sequence[float], shades: Sequence[float]) -> str:
    return " ".join(
        f"<span style='--w:{shade:.3f}' title='{100 * _finite(weight):.1f} % of the sentence'>"
        f"{_text(word)}</span>"
        for word, weight, shade in zip(words, weights, shades, strict=True)
    )


def _verdict(document: ReadDocument) -> str:
    parts = []
    if document.said:
        sure = "" if document.probability is None else f" ({100 * document.probability:.1f} %)"
        parts.append(f"said: <strong>{_text(document.said)}</strong>{sure}")
    if document.actual is not None:
        parts.append(f"actual: <strong>{_text(document.actual)}</strong>")
    return f"<p class=summary>{' · '.join(parts)}</p>" if parts else ""


def _finite(weight: float) -> float:
    value = float(weight)
    return value if math.isfinite(value) and value > 0 else 0.0


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)


_STYLE = """
.read { list-style: none; margin: .75rem 0 0; padding: 0; }
.read li { display: grid; grid-template-columns: 4.5rem 1fr; gap: .75rem; padding: .2rem 0; }
.share { font-size: .8rem; text-align: right; padding-right: .4rem; color: var(--soft); line-height: 1.9;
  font-variant-numeric: tabular-nums; border-right: .3rem solid
  color-mix(in srgb, var(--accent) calc(var(--w) * 100%), var(--line)); }
.words { overflow-wrap: anywhere; }
.words span { border-radius: .2rem; padding: .05rem .1rem; -webkit-print-color-adjust: exact;
  print-color-adjust: exact;
  background: color-mix(in srgb, var(--accent) calc(var(--w) * 65%), transparent); }
"""
