"""Runs of tokens that have one code: how they are found, how a text is cut into them."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.phrases import LONGEST, cut_starts
from zcontext.training.phrase_search import find_phrases

RUNS = [run for size in (2, 3, 4) for run in product(range(3), repeat=size)]


def fewest(ids: list[int], phrases: set[tuple[int, ...]], breaks: set[int]) -> int:
    """The obviously right twin: every way to cut."""
    n = len(ids)
    best = n
    for cuts in product([True, False], repeat=n - 1):
        edges = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), n]
        parts = list(pairwise(edges))
        whole = all(b - a == 1 or tuple(ids[a:b]) in phrases for a, b in parts)
        if whole and all(not any(a < at < b for at in breaks) for a, b in parts):
            best = min(best, len(parts))
    return best


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
    st.sets(st.sampled_from(RUNS), max_size=12),
    st.sets(st.integers(0, 9), max_size=3),
)
def test_a_text_is_cut_into_the_fewest_phrases(ids, phrases, breaks):
    starts = cut_starts(ids, phrases, breaks)
    assert starts[0]
    assert sum(starts) == fewest(ids, phrases, breaks)
    assert all(starts[at] for at in breaks if at < len(ids))
    edges = [*(at for at, here in enumerate(starts) if here), len(ids)]
    parts = [tuple(ids[a:b]) for a, b in pairwise(edges)]
    assert all(len(part) == 1 or part in phrases for part in parts)


def test_an_empty_text_has_no_phrases():
    assert cut_starts([], set()) == []


def test_runs_that_repeat_are_found_and_save_names():
    rng = np.random.default_rng(0)
    common = (5, 6, 7)
    words = [common if rng.random() < 0.5 else (int(rng.integers(100, 400)),) for _ in range(3000)]
    tokens = np.array([token for word in words for token in word], dtype=np.uint16)
    found = find_phrases(tokens, 20)
    assert found == find_phrases(tokens, 20)
    assert len(set(found)) == len(found) <= 20
    assert common in found[:3]
    assert all(2 <= len(phrase) <= LONGEST for phrase in found)
    cut = sum(cut_starts(tokens.tolist(), set(found)))
    assert cut <= len(words)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3, 4, 5]])
def test_a_text_that_repeats_nothing_has_no_phrases(tokens):
    assert find_phrases(np.array(tokens, dtype=np.uint16), 10) == []


def test_the_largest_token_is_told_from_the_smallest():
    tokens = np.array([65_535, 0, 65_535, 1] * 40, dtype=np.uint16)
    assert all(len(set(phrase) - {0, 1, 65_535}) == 0 for phrase in find_phrases(tokens, 5))
    assert find_phrases(tokens, 5)
