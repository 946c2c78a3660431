import numpy as np
import pytest

from ostinato.data.corpus import Corpus
from ostinato.tasks.language.ngrams import Baselines

V, START = 7, 2


def corpus(ids):
    return Corpus(np.array(ids, np.uint8), np.array([0]), START, len(ids), 0, "tests")


def test_baselines_are_summed_over_the_text():
    text = corpus(np.random.default_rng(0).integers(V, size=500))
    counts = np.bincount(text.ids, minlength=V)
    baselines = Baselines.fit(text, counts, is_character=True)
    assert baselines.name == "kneser_ney_6"
    shares = (counts + 1) / (counts + 1).sum()
    assert baselines.unigram_nats(text) == pytest.approx(-(counts * np.log(shares)).sum())
    short = Baselines.fit(corpus([1, 2]), np.array([0, 1, 1, 0, 0, 0, 0]), is_character=False)
    assert np.isfinite(short.ngrams.log_probs(text)).all()
