"""Trees in brackets, as the Penn treebank and the Stanford sentiment treebank write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ostinato.data.cells import quoted
from ostinato.data.examples import Examples, Tree
from ostinato.data.labelled_spec import LabelledSpec
from ostinato.data.lines import Collector, Findings, Row, Span, TextFile, collect_file
from ostinato.errors import DataError

# A backslash makes a bracket part of a word; all else, as \/ and -LRB-, stays as it is written.
_PIECES = re.compile(r"[()]|(?:\\[()]|[^\s()])+", re.ASCII)
_BYTE_PIECES = re.compile(rb"[()]|(?:\\[()]|[^\s()])+")
Fail = Callable[[str, int, int], DataError]  # message, line, column


def parse_tree(text: str, fail: Fail, first: tuple[int, int] = (1, 1)) -> Tree:
    """One tree of the form (label child child …), where a child is a tree or a word.

    A node with a single word, as (NN cat), is one leaf with that label. A word beside other children is a
    leaf without label. A bracket without label around a whole tree, as in the Penn treebank, is taken off.

    Args:
        text: the tree, over one line or several.
        fail: makes the error for a message, a line and a column.
        first: line and column of the text's first character, for messages.

    Raises:
        DataError: brackets that do not fit, a node without children, something around the tree; with line and
            column.
    """
    building = _Building(text, fail, first)
    for match in _PIECES.finditer(text):
        piece = match.group()
        if building.is_complete:
            raise building.error(f"expected the end of the tree, found {quoted(piece)}", match.start())
        if piece == "(":
            building.open(match.start())
        elif piece == ")":
            building.close(match.start())
        else:
            building.word(piece, match.start())
    return building.finish()


class _Building:
    """A tree while it is read: the open nodes, and those that are complete in post order."""

    def __init__(self, text: str, fail: Fail, first: tuple[int, int]):
        self.text, self._fail, self._first = text, fail, first
        self.tokens: list[str] = []
        self.children: list[tuple[int, ...]] = []
        self.labels: list[str | None] = []
        self.is_complete = False
        # For each open node: where it starts, its label, its children (node, or word not yet a node).
        self._open: list[tuple[int, str | None, list[int | str]]] = []

    def open(self, at: int) -> None:
        if self._open:
            self._settle_words(self._open[-1][2])
        self._open.append((at, None, []))

    def word(self, piece: str, at: int) -> None:
        if not self._open:
            raise self.error(f"expected '(', found {quoted(piece)}", at)
        start, label, children = self._open[-1]
        if label is None and not children:
            self._open[-1] = (start, piece, children)
        else:
            self._settle_words(children)
            children.append(piece)

    def close(self, at: int) -> None:
        if not self._open:
            raise self.error("found ')' without its '('; remove it, or add what it closes", at)
        _, label, children = self._open.pop()
        if not children:
            raise self.error(
                "a node has no word and no child; write (label word), and a bracket of the text as -LRB-", at
            )
        if len(children) == 1 and isinstance(children[0], str):
            self._leaf(children[0], label)
        elif len(children) == 1 and label is None and not self._open:
            pass  # the bracket around a whole tree
        else:
            self._settle_words(children)
            self.children.append(tuple(child for child in children if isinstance(child, int)))
            self.labels.append(label)
        if self._open:
            self._open[-1][2].append(len(self.children) - 1)
        else:
            self.is_complete = True

    def finish(self) -> Tree:
        if self._open:
            raise self.error("the '(' here is not closed; add ')'", self._open[-1][0])
        if not self.is_complete:
            raise self.error("expected a tree such as (S (NN word)), found nothing", 0)
        return Tree(tuple(self.tokens), tuple(self.children), tuple(self.labels))

    def error(self, message: str, at: int) -> DataError:
        line = self.text.count("\n", 0, at)
        column = at - (self.text.rfind("\n", 0, at) + 1) + (self._first[1] if line == 0 else 1)
        return self._fail(message, self._first[0] + line, column)

    def _leaf(self, word: str, label: str | None) -> None:
        self.tokens.append(word)
        self.children.append(())
        self.labels.append(label)

    def _settle_words(self, children: list[int | str]) -> None:
        """A word that has neighbours becomes a leaf of its own, before any node that follows it."""
        if children and isinstance(children[-1], str):
            self._leaf(children[-1], None)
            children[-1] = len(self.children) - 1


def read_trees(path: str | Path, spec: LabelledSpec) -> Examples:
    """All trees of a file, several on a line or one over several lines; the class is the label of the root.

    Raises:
        DataError: brackets that do not fit, or words outside of them; with file, line and column.
    """
    file = TextFile(path, encoding=spec.encoding, large_bytes=spec.large_bytes)

    def parse(span: Span, _: Findings) -> Row:
        tree = parse_tree(file.text(span), fail, (span.line, _column(file, span.start)))
        return Row(tree, tree.labels[-1])

    def fail(message: str, line: int, column: int) -> DataError:
        return file.error(f"column {column}: {message}", line)

    collector = Collector("trees", str(path), spec, Findings(), has_labels=True)
    return collect_file(file, _trees(file), parse, collector, {})


def _trees(file: TextFile) -> Iterator[Span]:
    depth = start = 0
    counted, line, start_line = file.first, 1, 1  # newlines are counted up to `counted`
    for match in _BYTE_PIECES.finditer(file.data, file.first):
        piece, at = match.group(), match.start()
        if piece == b"(":
            if depth == 0:
                line += file.data[counted:at].count(b"\n")
                start, start_line, counted = at, line, at
            depth += 1
        elif depth == 0:
            line += file.data[counted:at].count(b"\n")
            found = quoted(file.text(Span(at, match.end(), line)))
            raise file.error(f"column {_column(file, at)}: expected '(' of a tree, found {found}", line)
        elif piece == b")":
            depth -= 1
            if depth == 0:
                yield Span(start, match.end(), start_line)
    if depth:
        raise file.error(
            f"column {_column(file, start)}: the tree that starts here is not closed: "
            f"{depth} ')' missing at the end of the file",
            start_line,
        )


def _column(file: TextFile, at: int) -> int:
    begin = max(file.data.rfind(b"\n", 0, at) + 1, file.first)
    return len(file.data[begin:at].decode("utf-8", "replace")) + 1
