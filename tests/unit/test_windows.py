"""Law W: targets cover the tokens exactly once, in order, and fit the window."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.errors import WindowError
from zcontext.windows import Extent, Window, WindowPlan

PLANS = st.integers(1, 40).flatmap(
    lambda window: st.builds(WindowPlan, st.just(window), st.integers(0, window - 1))
)
CUTS = st.lists(st.integers(0, 300), max_size=60, unique=True).map(sorted)


def law_w(plan: WindowPlan, windows: Sequence[Window], n_tokens: int) -> list[str]:
    """The sentences of law W that the windows break."""
    broken = []
    ends = [0, *(w.target.end for w in windows)]
    if [w.target.start for w in windows] != ends[:-1] or ends[-1] != n_tokens:
        broken.append("targets cover 0..n once, in order")
    if any(w.context.end != w.target.start for w in windows):
        broken.append("context ends where target starts")
    if any(len(w.context) + len(w.target) > plan.window for w in windows):
        broken.append("context + target <= W")
    if any(len(w.context) != min(plan.context, w.target.start) for w in windows):
        broken.append("the context is as long as asked")
    if [w.index for w in windows] != list(range(len(windows))):
        broken.append("indices count from 0")
    return broken


def slow_ends(
    plan: WindowPlan, n_tokens: int, cuts: Sequence[int], allowed: Container[int]
) -> list[int]:
    """Where targets end, found by trying every place."""
    ends: list[int] = []
    start = 0
    while start < n_tokens:
        room = plan.window - min(plan.context, start)
        if start + room >= n_tokens:
            end = n_tokens
        else:
            reach = [at for at in range(start + 1, start + room + 1) if at in allowed]
            good = [at for at in reach if at in cuts and at > start + room // 2]
            end = max(good or reach)
        ends.append(end)
        start = end
    return ends


@given(PLANS, st.integers(0, 300), CUTS)
def test_windows_cover_every_token_once_in_order_within_their_size(
    plan: WindowPlan, n_tokens: int, cuts: list[int]
) -> None:
    assert law_w(plan, plan.cover(n_tokens, cuts=cuts), n_tokens) == []


@given(PLANS, st.integers(0, 300), CUTS)
def test_cover_agrees_with_its_slow_twin(plan: WindowPlan, n_tokens: int, cuts: list[int]) -> None:
    windows = plan.cover(n_tokens, cuts=cuts)
    assert [w.target.end for w in windows] == slow_ends(plan, n_tokens, cuts, range(301))


@given(st.integers(8, 40), st.integers(0, 300), CUTS, st.lists(st.integers(1, 4), min_size=80))
def test_no_window_ends_inside_a_character(
    window: int, n_tokens: int, cuts: list[int], widths: list[int]
) -> None:
    starts = {0}
    at = 0
    for width in widths * 4:
        at += width
        starts.add(at)
    plan = WindowPlan(window=window, context=window // 2)
    windows = plan.cover(n_tokens, cuts=cuts, allowed=starts)
    assert law_w(plan, windows, n_tokens) == []
    assert all(w.target.end in starts for w in windows[:-1])
    assert [w.target.end for w in windows] == slow_ends(plan, n_tokens, cuts, starts)


def test_the_last_cut_in_the_second_half_is_preferred() -> None:
    ends = [w.target.end for w in WindowPlan(window=10).cover(30, cuts=[3, 7, 9, 12])]
    assert ends == [9, 19, 29, 30]


def test_an_empty_text_has_no_window() -> None:
    assert WindowPlan().cover(0) == ()


def test_a_short_text_is_one_window_without_context() -> None:
    (window,) = WindowPlan(window=512, context=128).cover(512)
    assert (len(window.context), window.n_tokens) == (0, 512)


def test_a_character_longer_than_the_window_is_refused_with_a_remedy() -> None:
    with pytest.raises(WindowError, match="use a window with room for more than 3"):
        WindowPlan(window=3).cover(9, allowed={0, 4, 8})


@pytest.mark.parametrize(
    ("start", "end"), [(-1, 2), (3, 2), (0.0, 1), (True, 2), ("0", 1)], ids=str
)
def test_an_extent_that_is_no_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(WindowError, match="0 <= start <= end"):
        Extent(start, end)


@pytest.mark.parametrize(("window", "context"), [(0, 0), (-1, 0), (8, 8), (8, -1), (8.0, 0)])
def test_a_plan_without_room_for_a_target_is_refused(window: int, context: int) -> None:
    with pytest.raises(WindowError):
        WindowPlan(window=window, context=context)


@pytest.mark.parametrize(
    ("context", "target", "index"),
    [
        (Extent(0, 2), Extent(3, 5), 0),
        (Extent(0, 2), Extent(2, 2), 0),
        (Extent(0, 2), Extent(2, 3), -1),
    ],
)
def test_a_window_that_breaks_its_rules_is_refused(
    context: Extent, target: Extent, index: int
) -> None:
    with pytest.raises(WindowError):
        Window(context, target, index)


def test_unsorted_cuts_and_negative_lengths_are_refused() -> None:
    with pytest.raises(WindowError, match="rising"):
        WindowPlan().cover(5, cuts=[3, 1])
    with pytest.raises(WindowError, match="n_tokens=-1"):
        WindowPlan().cover(-1)


def test_the_law_sees_planted_faults() -> None:
    plan = WindowPlan(window=4, context=1)
    good = plan.cover(9)
    assert law_w(plan, good, 9) == []
    assert law_w(plan, good[:-1], 9) == ["targets cover 0..n once, in order"]
    assert law_w(WindowPlan(window=3, context=1), good, 9) == ["context + target <= W"]
    swapped = (good[1], good[0], *good[2:])
    assert "targets cover 0..n once, in order" in law_w(plan, swapped, 9)
    assert all(a.target.end == b.target.start for a, b in pairwise(good))
