"""What is held out: sources, with all that they may become."""

import pytest

from ostinato.data.pair_files import Pairs
from ostinato.errors import InputError
from ostinato.tasks.translate.splitting import hold_out, some_sources

SOURCES = [f"word{i % 40}" for i in range(100)]


def test_pairs_with_one_source_stay_together():
    learned, checked = hold_out(SOURCES, 0.1, seed=3)
    assert sorted([*learned, *checked]) == list(range(100))
    inside = {SOURCES[i] for i in checked}
    assert len(inside) == 4
    assert not inside & {SOURCES[i] for i in learned}
    assert checked.tolist() == hold_out(SOURCES, 0.1, seed=3)[1].tolist()
    assert checked.tolist() != hold_out(SOURCES, 0.1, seed=4)[1].tolist()


def test_one_source_cannot_be_held_out():
    with pytest.raises(InputError, match="3 pairs with 1 different sources are too few"):
        hold_out(["a", "a", "a"], 0.1, seed=0)
    learned, checked = hold_out(["a", "b", "a"], 0.01, seed=0)
    assert len(learned)
    assert len(checked)


def test_scores_of_many_are_those_of_a_part(monkeypatch):
    monkeypatch.setattr("ostinato.tasks.translate.splitting.MOST_SCORED", 10)
    chosen, note = some_sources(Pairs(SOURCES, SOURCES), seed=0)
    assert len(set(chosen.sources)) == 10
    assert all(SOURCES.count(source) == chosen.sources.count(source) for source in chosen.sources)
    assert "10 of the 40 different sources" in note
    assert some_sources(Pairs(SOURCES[:10], SOURCES[:10]), 0)[1] == ""
