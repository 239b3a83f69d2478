from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.errors import ConfigError
from zcontext.evaluation.metrics import (
    bootstrap,
    corpus_bleu,
    exact_match,
    f1_score,
    kept_share,
    normalise_answer,
    rouge_l,
    token_accuracy,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a pear", "apple pear"),
        ("theatre", "theatre"),
        ("$1,250.50", "125050"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_the_official_squad_script_does(text: str, wanted: str) -> None:
    assert normalise_answer(text) == wanted


def test_exact_match_takes_the_best_answer() -> None:
    assert exact_match("The 308.", ["300", "308"]) == 1.0
    assert exact_match("308 points", ["308"]) == 0.0


def test_f1_is_that_of_squad() -> None:
    assert f1_score("the black cat", ["black cat"]) == 1.0
    assert f1_score("black cat sat", ["black cat"]) == pytest.approx(0.8)
    assert f1_score("dog", ["black cat"]) == 0.0
    assert f1_score("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert f1_score("a cat", ["dog", "cat"]) == 1.0


def test_without_answers_only_silence_is_right() -> None:
    assert (exact_match("", []), f1_score("", [])) == (1.0, 1.0)
    assert (exact_match("Paris", []), f1_score("Paris", [])) == (0.0, 0.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_holds_its_figure_and_stays_in_the_range_of_the_items(
    values: list[float],
) -> None:
    found = bootstrap(values, n_resamples=200)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.value == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert found.n == len(values)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(3).normal(size=400)
    found = bootstrap(values.tolist())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.15)


def test_bootstrap_repeats_with_its_seed() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4)
    assert bootstrap(values, seed=4) != bootstrap(values, seed=5)


def test_columns_stay_paired() -> None:
    ours = np.random.default_rng(0).uniform(0.1, 1, 50).tolist()
    found = bootstrap([2 * x for x in ours], ours, statistic=lambda a, b: a / b)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_ratio_over_nothing_is_infinite_and_not_an_error() -> None:
    found = bootstrap([1.0, 1.0], [0.0, 0.0], statistic=lambda a, b: a / b)
    assert found.value == np.inf


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs items"):
        bootstrap([])


def test_bleu_is_a_hundred_for_the_same_texts_and_that_of_sacrebleu_otherwise() -> None:
    from sacrebleu import corpus_bleu as oracle

    sources = ["the cat sat on the mat today", "a quick brown fox jumped over it", "one two three"]
    assert corpus_bleu(sources, sources).value == pytest.approx(100.0)
    texts = ["the cat sat on a mat today", "a quick brown fox jumps over it", "one two four"]
    found = corpus_bleu(texts, sources)
    assert found.value == pytest.approx(oracle(texts, [sources]).score)
    assert 0 <= found.low <= found.value <= found.high <= 100


def test_bleu_of_one_text_has_no_interval() -> None:
    found = corpus_bleu(["the cat sat on the mat"], ["the cat sat on the hat"])
    assert found.low == found.value == found.high


def test_rouge_l_is_one_for_the_same_text_and_zero_for_another() -> None:
    assert rouge_l(["the cat sat", "dogs"], ["the cat sat", "the cat"]) == [1.0, 0.0]


def test_tokens_count_at_their_own_place() -> None:
    assert token_accuracy([1, 2, 3], [1, 2, 3, 4]) == 0.75
    assert token_accuracy([9, 1, 2, 3], [1, 2, 3, 4]) == 0.0
    assert token_accuracy([], []) == 1.0


def test_a_fact_that_occurs_twice_must_be_kept_twice() -> None:
    facts = ["Anna", "Anna", "1999"]
    assert kept_share("we met Anna and Anna in 1999", facts) == 1.0
    assert kept_share("we met Anna", facts) == pytest.approx(1 / 3)
    assert kept_share("we met Annabel in 19990", facts) == 0.0
    assert kept_share("anything", []) is None
