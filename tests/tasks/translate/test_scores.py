"""Scores: as the packages have them, over one or several right answers."""

import pytest

from ostinato.tasks.translate.scores import by_source, rouge_l, rouge_words, text_scores

SAID = ["the cat sat on mat", "Hello there, World!", "", "a b"]
RIGHT = [["the cat sat on the mat"], ["hello there world", "Hello, World!"], ["x y z"], ["a b", "a b c"]]


def test_bleu_and_chrf_are_those_of_sacrebleu_with_references_of_unequal_number():
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = text_scores(SAID, RIGHT, str.split)
    streams = [[right[0] for right in RIGHT], [right[1] if len(right) > 1 else None for right in RIGHT]]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(SAID, streams).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(SAID, streams).score)


def test_rouge_l_is_that_of_rouge_score():
    scorers = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scorers.RougeScorer(["rougeL"])
    words = rouge_words(RIGHT)
    texts = ["It's a naïve, naive TEST-case 3.5", "a test case of 3 5", "case naive a it", *SAID]
    for one in texts:
        for other in texts:
            expected = scorer.score(other, one)["rougeL"].fmeasure
            assert rouge_l(one, other, words) == pytest.approx(expected)
    best = [
        max(scorer.score(text, one)["rougeL"].fmeasure for text in right)
        for one, right in zip(SAID, RIGHT, strict=True)
    ]
    assert text_scores(SAID, RIGHT, str.split)["rouge_l"] == pytest.approx(sum(best) / 4)


def test_other_scripts_have_words_too():
    right = [["привет мир"], ["добрый день"]]
    assert rouge_words(right)("Привет, мир!") == ["привет", "мир"]
    assert text_scores(["привет мир", "день"], right, str.split)["rouge_l"] == pytest.approx((1 + 2 / 3) / 2)


def test_errors_are_counted_to_the_nearest_reference():
    scores = text_scores(SAID, RIGHT, str.split)
    # One word of 6 is missing; of "Hello, World!" one word of 2 differs and one is too much.
    assert scores["exact_match"] == 0.25
    assert scores["token_error_rate"] == pytest.approx((1 + 2 + 3 + 0) / (6 + 2 + 3 + 2))
    # By the share of its tokens: 1 of 2 loses to 1 of 4.
    assert text_scores(["a b c"], [["a b", "a b c d"]], str.split)["token_error_rate"] == 0.25
    assert text_scores(["ab"], [["abc"]], list)["token_error_rate"] == pytest.approx(1 / 3)


def test_pairs_with_one_source_are_each_others_references():
    right = by_source(["read", "lead", "read", "read"], ["R EH D", "L EH D", "R IY D", "R EH D"])
    assert right == {"read": ["R EH D", "R IY D"], "lead": ["L EH D"]}


def test_texts_that_look_tokenised_are_scored_without_a_warning(caplog):
    said = ["a b c d ."] * 120
    assert text_scores(said, [[text] for text in said], str.split)["bleu"] == pytest.approx(100)
    assert not caplog.records


def test_of_scripts_without_blanks_rouge_counts_signs():
    assert rouge_l("日本語", "日本", rouge_words([["日本"]])) == pytest.approx(0.8)
