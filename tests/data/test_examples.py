"""What readers give: examples that fit together, and selections that look up rather than copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ostinato.data.examples import Examples, Sentence
from ostinato.errors import InputError, SizeError


class Counted(Sequence[Any]):
    """Squares that count how often they are computed."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return str(index**2)


def test_a_selection_looks_up_when_asked() -> None:
    inputs = Counted()
    examples = Examples("text", inputs, list("abcde"), [["x"]] * 5, places=[2, 4, 6, 8, 10], notes=("n",))
    chosen = examples.select([4, 0, 0]).select([0, -1])
    assert inputs.asked == []
    assert (list(chosen.inputs), chosen.labels, list(chosen.places)) == (["16", "0"], ["e", "a"], [10, 2])
    assert (len(chosen), list(chosen.tags or ()), chosen.notes) == (2, [["x"], ["x"]], ("n",))
    assert list(chosen.inputs[1:]) == ["0"]
    assert len(examples.select([])) == 0
    for row in (5, -6):
        with pytest.raises(IndexError, match=r"below 5"):
            examples.select([row])


def test_parts_must_fit() -> None:
    assert list(Examples("text", ["a", "b"]).places) == [1, 2]
    with pytest.raises(SizeError, match=r"1 labels for 2 inputs"):
        Examples("text", ["a", "b"], ["x"])
    with pytest.raises(SizeError, match=r"3 places for 2 inputs"):
        Examples("text", ["a", "b"], places=[1, 2, 3])
    with pytest.raises(InputError, match=r"'words' is not known; the kinds are: text, letters"):
        Examples("words", [])
    with pytest.raises(SizeError, match=r"column 'upos' has 1 values for 2 tokens"):
        Sentence(("a", "b"), {"upos": ("X",)})
