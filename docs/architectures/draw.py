"""Draws the pictures of docs/architectures.md, and writes them beside itself."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

INK, FAINT, PAPER = "#30363d", "#8c959f", "#ffffff"
FILLS = {"input": "#fde8c8", "state": "#cfe3f5", "output": "#cdebd9", "memory": "#e8daf2"}
HEIGHT = 32
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Box:
    """A rounded box about (x, y)."""

    def __init__(self, x: float, y: float, width: float):
        self.x, self.y, self.width = x, y, width

    def edge(self, towards: tuple[float, float]) -> tuple[float, float]:
        """Where a line from the middle to that point leaves the box, a little outside."""
        dx, dy = towards[0] - self.x, towards[1] - self.y
        reach = min(
            (self.width / 2 + 3) / abs(dx) if dx else math.inf, (HEIGHT / 2 + 3) / abs(dy) if dy else math.inf
        )
        return self.x + reach * dx, self.y + reach * dy


class Picture:
    """Boxes and arrows; coordinates in pixels, y down."""

    def __init__(self, width: float, height: float, title: str):
        self.width, self.height, self.title = width, height, title
        self.lines: list[str] = []
        self.boxes: list[str] = []

    def box(self, x: float, y: float, text: str, kind: str, width: float = 58) -> Box:
        """A box with a text, coloured by its kind."""
        self.boxes.append(
            f"<rect x='{x - width / 2:g}' y='{y - HEIGHT / 2:g}' width='{width:g}' height='{HEIGHT}' rx='7' "
            f"fill='{FILLS[kind]}' stroke='{INK}' stroke-width='1'/>"
            f"<text x='{x:g}' y='{y + 4.5:g}' text-anchor='middle' font-size='13' {FONT} fill='{INK}'>"
            f"{escape(text)}</text>"
        )
        return Box(x, y, width)

    def arrow(self, a: Box, b: Box, *, style: str = "plain", weight: float = 1.3) -> None:
        """An arrow from box to box; `fed`: dashed; `read`: attention."""
        (x1, y1), (x2, y2) = a.edge((b.x, b.y)), b.edge((a.x, a.y))
        colour = {"plain": INK, "fed": FAINT, "read": "#8250a8"}[style]
        dash = " stroke-dasharray='4 3'" if style == "fed" else ""
        self.lines.append(
            f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' "
            f"stroke-width='{weight:g}'{dash} marker-end='url(#{style})'/>"
        )

    def chain(self, boxes: list[Box]) -> None:
        """An arrow from each to the next."""
        for a, b in pairwise(boxes):
            self.arrow(a, b)

    def note(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        """A small text."""
        self.boxes.append(
            f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}' font-size='12' {FONT} fill='{FAINT}'>"
            f"{escape(text)}</text>"
        )

    def write(self, path: Path) -> None:
        """As SVG, on paper of its own so that dark pages can show it."""
        heads = "".join(
            f"<marker id='{name}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
            "markerUnits='userSpaceOnUse' orient='auto'>"
            f"<path d='M0 0 L8 4 L0 8 z' fill='{colour}'/></marker>"
            for name, colour in (("plain", INK), ("fed", FAINT), ("read", "#8250a8"))
        )
        size = f"width='{self.width:g}' height='{self.height:g}'"
        parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} viewBox='0 0 {self.width:g} {self.height:g}' "
            f"role='img'><title>{escape(self.title)}</title><defs>{heads}</defs>",
            f"<rect {size} rx='8' fill='{PAPER}'/>",
            *self.lines,
            *self.boxes,
            "</svg>",
        ]
        path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def row(picture: Picture, y: float, texts: list[str], kind: str, x: float = 60, gap: float = 88) -> list[Box]:
    """Boxes from left to right."""
    return [picture.box(x + gap * i, y, text, kind) for i, text in enumerate(texts)]


def one_to_one() -> Picture:
    """An input, a layer, an output."""
    picture = Picture(220, 190, "One to one: an input, a layer, an output")
    x, h, y = (
        picture.box(70, at, text, kind)
        for at, text, kind in ((155, "x", "input"), (95, "h", "state"), (35, "y", "output"))
    )
    picture.chain([x, h, y])
    picture.note(110, 159, "one input")
    picture.note(110, 99, "nothing carried")
    picture.note(110, 39, "one output")
    return picture


def one_to_many() -> Picture:
    """A vector becomes a sequence."""
    picture = Picture(450, 200, "One to many: a vector starts the state, every token is fed to the next step")
    states = row(picture, 100, ["h₁", "h₂", "h₃", "h₄"], "state", x=130)
    outputs = row(picture, 35, ["a", "short", "tune", "end"], "output", x=130)
    vector = picture.box(130, 165, "x", "input")
    picture.arrow(vector, states[0])
    picture.chain(states)
    for state, output in zip(states, outputs, strict=True):
        picture.arrow(state, output)
    for output, state in zip(outputs, states[1:], strict=False):
        picture.arrow(output, state, style="fed")
    picture.note(170, 169, "one vector")
    picture.note(60, 39, "tokens", "middle")
    return picture


def many_to_one() -> Picture:
    """A sequence becomes an answer."""
    picture = Picture(400, 200, "Many to one: a sequence is read, its last state answers")
    inputs = row(picture, 165, ["not", "a", "good", "film"], "input")
    states = row(picture, 100, ["h₁", "h₂", "h₃", "h₄"], "state")
    picture.chain(states)
    for x, state in zip(inputs, states, strict=True):
        picture.arrow(x, state)
    picture.arrow(states[-1], picture.box(states[-1].x, 35, "negative", "output", 70))
    return picture


def many_to_many() -> Picture:
    """An answer at each step."""
    picture = Picture(420, 255, "Many to many, aligned: an output at each step, from both directions")
    inputs = row(picture, 220, ["she", "saw", "Paris", "again"], "input", gap=100)
    outputs = row(picture, 35, ["PRON", "VERB", "NAME", "ADV"], "output", gap=100)
    forward = [picture.box(x.x - 22, 155, "→", "state", 36) for x in inputs]
    backward = [picture.box(x.x + 22, 95, "←", "state", 36) for x in inputs]
    picture.chain(forward)
    picture.chain(backward[::-1])
    for x, f, b, y in zip(inputs, forward, backward, outputs, strict=True):
        for state in (f, b):
            # Straight up: past the other direction's box.
            picture.arrow(Box(state.x, x.y, 0), state)
            picture.arrow(state, Box(state.x, y.y, 0))
    return picture


def encoder_decoder() -> Picture:
    """A sequence becomes another."""
    picture = Picture(640, 260, "Encoder–decoder: the source is read again at each step of the target")
    source = row(picture, 225, ["das", "Haus", "ist", "alt"], "input", gap=72, x=50)
    memory = row(picture, 155, ["m₁", "m₂", "m₃", "m₄"], "memory", gap=72, x=50)
    decoder = row(picture, 155, ["h₁", "h₂", "h₃", "h₄"], "state", gap=76, x=365)
    fed = row(picture, 225, ["‹s›", "the", "house", "is"], "input", gap=76, x=365)
    said = row(picture, 35, ["the", "house", "is", "old"], "output", gap=76, x=365)
    context = picture.box(200, 92, "Σ a₂ₛ mₛ", "memory", 84)
    joined = [picture.box(h.x, 92, "h, c", "state", 46) for h in decoder]
    for x, m in zip(source, memory, strict=True):
        picture.arrow(x, m)
    for a, b in pairwise(memory):
        picture.lines.append(
            f"<line x1='{a.x + 32:g}' y1='{a.y:g}' x2='{b.x - 32:g}' y2='{b.y:g}' stroke='{INK}' "
            "stroke-width='1.3' marker-start='url(#plain)' marker-end='url(#plain)'/>"
        )
    picture.arrow(memory[-1], decoder[0])
    picture.chain(decoder)
    for x, h, j, y in zip(fed, decoder, joined, said, strict=True):
        picture.chain([x, h, j, y])
    for m, weight in zip(memory, (0.8, 4.0, 1.0, 0.8), strict=True):
        picture.arrow(m, context, style="read", weight=weight)
    # Round the first step, to the second.
    x1, x2 = context.x + context.width / 2, joined[1].x - joined[1].width / 2
    picture.lines.append(
        f"<path d='M{x1 + 3:g} 84 C {x1 + 40:g} 62 {x2 - 50:g} 58 {x2 - 2:g} 82' fill='none' "
        "stroke='#8250a8' stroke-width='1.3' marker-end='url(#read)'/>"
    )
    picture.note(20, 40, "what the second step reads: each m,")
    picture.note(20, 56, "weighted by its attention")
    return picture


def hierarchical() -> Picture:
    """A sequence of sequences."""
    picture = Picture(520, 300, "Hierarchical: words to sentences, sentences to the document")
    words = [["the", "food", "was", "bad"], ["we", "left"]]
    sentences, at = [], 50.0
    for texts in words:
        inputs = row(picture, 265, texts, "input", x=at, gap=78)
        states = row(picture, 200, [f"h{'₁₂₃₄'[i]}" for i in range(len(texts))], "state", x=at, gap=78)
        picture.chain(states)
        middle = (states[0].x + states[-1].x) / 2
        sentence = picture.box(middle, 130, f"sentence {len(sentences) + 1}", "memory", 90)
        for x, state in zip(inputs, states, strict=True):
            picture.arrow(x, state)
            picture.arrow(state, sentence, style="read", weight=2.5 if x is inputs[-1] else 1)
        sentences.append(sentence)
        at = states[-1].x + 105
    upper = [picture.box(sentence.x, 80, f"g{'₁₂'[i]}", "state") for i, sentence in enumerate(sentences)]
    picture.chain(upper)
    document = picture.box((upper[0].x + upper[1].x) / 2, 28, "bad", "output")
    for sentence, state, weight in zip(sentences, upper, (2.5, 1), strict=True):
        picture.arrow(sentence, state)
        picture.arrow(state, document, style="read", weight=weight)
    return picture


def recursive() -> Picture:
    """A tree."""
    picture = Picture(440, 320, "Recursive: a node's state comes from those of its children")
    words = row(picture, 290, ["not", "very", "good", "film"], "input", gap=100)
    leaves = row(picture, 230, ["h", "h", "h", "h"], "state", gap=100)
    phrase = picture.box(210, 165, "very good", "state", 84)
    negated = picture.box(140, 100, "not very good", "state", 104)
    whole = picture.box(240, 35, "not very good film", "state", 134)
    for x, leaf in zip(words, leaves, strict=True):
        picture.arrow(x, leaf)
    for children, node in (
        (leaves[1:3], phrase),
        ((leaves[0], phrase), negated),
        ((negated, leaves[3]), whole),
    ):
        for child in children:
            picture.arrow(child, node)
    picture.arrow(whole, picture.box(385, 35, "negative", "output", 70))
    return picture


PICTURES = {
    "one-to-one": one_to_one,
    "one-to-many": one_to_many,
    "many-to-one": many_to_one,
    "many-to-many": many_to_many,
    "encoder-decoder": encoder_decoder,
    "hierarchical": hierarchical,
    "recursive": recursive,
}


def main() -> None:
    """Write them all."""
    for name, draw in PICTURES.items():
        draw().write(Path(__file__).parent / f"{name}.svg")


if __name__ == "__main__":
    main()
