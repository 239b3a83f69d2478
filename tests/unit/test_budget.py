"""The budget planner: never over, never beaten, the better chunk never coarser."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext import budget
from zcontext.budget import Candidate, Plan, log_retention, measured_retention, plan_budget
from zcontext.errors import ConfigError

scores = st.none() | st.floats(-20, 20) | st.floats(0.001, 1) | st.sampled_from([0.5, 1.0])
candidates = st.builds(
    Candidate,
    n_tokens=st.integers(0, 300),
    score=scores,
    n_stored=st.none() | st.integers(0, 150),
    compressible=st.booleans(),
)
lists = st.lists(candidates, max_size=8)
budgets = st.integers(0, 1500)


def best_of_all(given: list[Candidate], max_tokens: int) -> float:
    """The slow twin: every combination of forms."""
    ladders = [budget._ladder(each, budget.RATIOS, log_retention) for each in given]
    weights = budget._weights([each.score for each in given])
    return max(
        math.fsum(w * form.share for w, form in zip(weights, forms, strict=True))
        for forms in itertools.product(*ladders)
        if sum(form.n_positions for form in forms) <= max_tokens
    )


@given(lists, budgets)
def test_a_plan_is_never_over_its_budget_and_adds_up(given: list[Candidate], cap: int) -> None:
    plan = plan_budget(given, max_tokens=cap)
    assert len(plan.choices) == len(given)
    assert plan.n_positions == sum(choice.n_positions for choice in plan.choices) <= cap
    for candidate, choice in zip(given, plan.choices, strict=True):
        if choice.form == "text":
            assert (choice.n_positions, choice.share) == (candidate.n_tokens, 1.0)
        elif choice.form == "symbols":
            assert candidate.compressible or choice.stored
            assert choice.stored == (choice.n_positions == candidate.n_stored)
            assert 0 < choice.n_positions <= candidate.n_tokens
            assert candidate.n_stored is None or choice.n_positions <= candidate.n_stored
        else:
            assert (choice.n_positions, choice.share) == (0, 0.0)


@given(st.lists(candidates, max_size=4), budgets)
def test_no_other_plan_has_a_larger_expected_use(given: list[Candidate], cap: int) -> None:
    plan = plan_budget(given, max_tokens=cap)
    assert plan.expected_use == pytest.approx(best_of_all(given, cap), abs=1e-9)


@given(lists, budgets, st.integers(0, 400))
def test_more_budget_never_lowers_the_expected_use(
    given: list[Candidate], cap: int, more: int
) -> None:
    less = plan_budget(given, max_tokens=cap).expected_use
    assert plan_budget(given, max_tokens=cap + more).expected_use >= less - 1e-9


@given(candidates, budgets, st.integers(0, 400))
def test_more_budget_never_gives_a_single_chunk_less(one: Candidate, cap: int, more: int) -> None:
    (less,) = plan_budget([one], max_tokens=cap).choices
    (same_or_more,) = plan_budget([one], max_tokens=cap + more).choices
    assert same_or_more.share >= less.share
    assert same_or_more.n_positions >= less.n_positions


@given(st.integers(1, 400), st.lists(scores, max_size=8), budgets)
def test_of_two_equal_chunks_the_better_one_never_gets_the_coarser_form(
    n_tokens: int, ranked: list[float | None], cap: int
) -> None:
    given = [Candidate(n_tokens, score) for score in ranked]
    plan = plan_budget(given, max_tokens=cap)
    unknown = any(score is None for score in ranked)
    for i, j in itertools.combinations(range(len(given)), 2):
        # Where a score is unknown, and between equal scores, the first in the list is the better.
        if unknown or (ranked[j] or 0.0) <= (ranked[i] or 0.0):
            assert plan.choices[i].share >= plan.choices[j].share
        else:
            assert plan.choices[i].share <= plan.choices[j].share


@given(lists, budgets)
def test_the_same_input_gives_the_same_plan(given: list[Candidate], cap: int) -> None:
    assert plan_budget(given, max_tokens=cap) == plan_budget(list(given), max_tokens=cap)


@given(lists)
def test_where_everything_fits_everything_stays_text(given: list[Candidate]) -> None:
    total = sum(each.n_tokens for each in given)
    plan = plan_budget(given, max_tokens=total)
    full = [each.n_tokens for each in given]
    assert [choice.share for choice in plan.choices] == [1.0] * len(given)
    assert sum(full) >= plan.n_positions


def test_a_chunk_that_does_not_fit_at_the_coarsest_ratio_is_dropped() -> None:
    (choice,) = plan_budget([Candidate(1000)], max_tokens=61).choices  # 1000 / 16 = 62 symbols
    assert choice.form == "dropped"
    (choice,) = plan_budget([Candidate(1000)], max_tokens=62).choices
    assert (choice.form, choice.n_positions) == ("symbols", 62)
    long, short = plan_budget([Candidate(9000, 0.9), Candidate(90, 0.1)], max_tokens=100).choices
    assert (long.form, short.form) == ("dropped", "text")  # it does not stand in others' way


def test_the_best_chunk_is_finer_and_the_worst_coarser() -> None:
    given = [Candidate(400, score) for score in (0.1, 0.9, 0.3)]
    plan = plan_budget(given, max_tokens=560)
    assert [choice.n_positions for choice in plan.choices] == [50, 400, 100]
    assert plan.n_positions == 550


def test_stored_symbols_are_used_and_finer_ones_not_written() -> None:
    stored = Candidate(400, n_stored=100)
    assert plan_budget([stored], max_tokens=399).choices[0].stored
    assert plan_budget([stored], max_tokens=400).choices[0].form == "text"
    coarser = plan_budget([stored], max_tokens=99).choices[0]
    assert (coarser.n_positions, coarser.stored) == (50, False)
    fixed = Candidate(400, n_stored=100, compressible=False)
    assert plan_budget([fixed], max_tokens=99).choices[0].form == "dropped"


def test_large_budgets_are_planned_in_coarser_units_never_over() -> None:
    given = [Candidate(3001 + 7 * i, 1 / (1 + i)) for i in range(60)]
    started = time.perf_counter()
    for cap in (60_001, 131_071, 150_000):
        plan = plan_budget(given, max_tokens=cap)
        assert 0.97 * cap < plan.n_positions <= cap
    assert time.perf_counter() - started < 10


def test_measured_figures_take_the_place_of_the_assumption() -> None:
    kept = measured_retention([(4, 0.9), (2, 0.95), (16, 0.1)])
    assert [kept(1), kept(2), kept(4), kept(8), kept(64)] == pytest.approx(
        [0.95, 0.95, 0.9, 0.5, 0.1]
    )
    given = [Candidate(160, 1.0), Candidate(160, 0.9)]
    assumed = plan_budget(given, max_tokens=100)
    measured = plan_budget(given, max_tokens=100, retention=measured_retention([(4, 0.9), (8, 0)]))
    assert [choice.n_positions for choice in assumed.choices] == [80, 20]
    assert [choice.n_positions for choice in measured.choices] == [40, 40]


def test_the_assumed_retention_falls_evenly_and_never_below_nothing() -> None:
    steps = [log_retention(2.0**k) for k in range(12)]
    assert steps[:3] == pytest.approx([1.0, 0.88, 0.76])
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 0.0


@pytest.mark.parametrize(
    "points", [[], [(0.5, 1)], [(2, 1.5)], [(2, 0.5), (4, 0.6)], [(2, 0.5), (2, 0.4)]]
)
def test_figures_that_cannot_be_are_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match="points"):
        measured_retention(points)


@pytest.mark.parametrize("settings", [{"max_tokens": -1}, {"max_tokens": 2.5}, {"ratios": (0.5,)}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        plan_budget([], **{"max_tokens": 1, **settings})  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Candidate(-1)


def test_nothing_asks_for_nothing() -> None:
    assert plan_budget([], max_tokens=100) == Plan((), 0, 0.0)
