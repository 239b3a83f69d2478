from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import tiny_z
from zcontext.config import PlacementName
from zcontext.errors import ConfigError, WindowError
from zcontext.model import ZLanguageModel
from zcontext.overlaps import measure_overlaps
from zcontext.profiles import profile
from zcontext.windows import Extent, WindowPlan
from zcontext.writing import WindowWriter, Written

IDS = list(range(3, 163))  # each once, so that a window shows its place
PLAN = WindowPlan.sliding(window=64, stride=16)


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 60), st.data())
def test_overlapping_windows_reach_every_token_and_start_a_stride_apart(
    n_tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    found = WindowPlan.sliding(window=window, stride=stride).overlapping(n_tokens)
    assert sorted({t for extent in found for t in range(extent.start, extent.end)}) == list(
        range(n_tokens)
    )
    assert [extent.start for extent in found] == [stride * k for k in range(len(found))]
    assert all(len(extent) == window for extent in found[:-1])
    assert all(a.end < n_tokens for a in found[:-1])


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(2, 40), st.data())
def test_a_sliding_plan_reads_what_the_overlapping_windows_read(
    n_tokens: int, window: int, data: st.DataObject
) -> None:
    plan = WindowPlan.sliding(window=window, stride=data.draw(st.integers(1, window)))
    read = [Extent(w.context.start, w.target.end) for w in plan.cover(n_tokens)]
    assert read == list(plan.overlapping(n_tokens))


def test_the_papers_setting_is_a_window_of_1024_at_a_stride_of_256() -> None:
    plan = WindowPlan.paper()
    assert (plan.window, plan.stride, plan.context) == (1024, 256, 768)
    chosen = profile("sliding")
    assert WindowPlan(window=chosen.window or 0, context=chosen.context) == plan


@pytest.mark.parametrize("stride", [0, -1, 65, 1.5])
def test_a_stride_that_is_no_part_of_the_window_is_refused(stride: Any) -> None:
    with pytest.raises(WindowError, match="stride"):
        WindowPlan.sliding(window=64, stride=stride)


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(WindowError, match="n_tokens"):
        PLAN.overlapping(-1)


def test_agreement_is_in_shares_and_the_same_again(tiny_model: ZLanguageModel) -> None:
    told: list[tuple[str, int, int]] = []
    found = measure_overlaps(
        IDS, model=tiny_model, plan=PLAN, progress=lambda *step: told.append(step)
    )
    assert (found.n_windows, found.n_tokens) == (7, 6 * 48)
    assert told[-1][1:] == (7, 7)
    figures = found.to_dict()
    for name in ("ends", "ends_by_chance", "segments", "codes", "codes_by_chance", "identical"):
        assert 0 <= figures[name] <= 1, name
    assert found.segments <= found.ends
    assert found == measure_overlaps(IDS, model=tiny_model, plan=PLAN)


def _written(places: list[int], code: Any) -> Any:
    def write(self: WindowWriter, tasks: Any) -> list[Written]:
        (task,) = tasks
        first = IDS.index(task.ids[0])
        ends = [p - first for p in places if 0 < p - first < len(task.ids)] + [len(task.ids)]
        starts = [0, *ends[:-1]]
        return [Written(tuple(code(first, first + at) for at in starts), tuple(ends))]

    return write


def test_a_writer_that_goes_by_the_text_alone_agrees_entirely_inside(
    tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = list(range(0, 160, 4))
    monkeypatch.setattr(WindowWriter, "write", _written(places, lambda first, at: (at % 32,) * 3))
    found = measure_overlaps(IDS, model=tiny_model, plan=PLAN)
    assert (found.ends, found.segments, found.codes, found.identical) == (1.0, 1.0, 1.0, 1.0)
    assert found.ends_by_chance < 0.5
    assert found.codes_by_chance < 0.5


def test_a_writer_that_goes_by_the_window_does_not_agree(
    tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(first: int, at: int) -> tuple[int, ...]:
        return (first // 16, at % 7, 9)

    monkeypatch.setattr(WindowWriter, "write", _written(list(range(0, 160, 4)), code))
    found = measure_overlaps(IDS, model=tiny_model, plan=PLAN)
    assert (found.ends, found.identical) == (1.0, 0.0)
    assert found.codes == pytest.approx(0.5)  # two of three stages are the same: 2 of 4 codes


def test_windows_that_are_placed_by_the_text_agree_where_others_do_not() -> None:
    model, plan = tiny_z(size=257, named=True), WindowPlan.sliding(window=96, stride=24)
    found = {
        placement: measure_overlaps(IDS, model=model, plan=plan, ratio=2.5, placement=placement)
        for placement in get_args(PlacementName)
    }
    assert found["anchored"].placement == "anchored"
    assert found["anchored"].segments > 0.6 > 2 * found["surprisal"].segments
    assert found["anchored"].identical == 1.0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"ratio": 0.5}, "ratio"),
        ({"placement": "even"}, "placement"),
        ({"plan": WindowPlan(window=64)}, "stride"),
        ({"plan": WindowPlan(window=4096, context=64)}, "window"),
        ({"plan": WindowPlan(window=160, context=64)}, "window"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tiny_model: ZLanguageModel, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        measure_overlaps(IDS, model=tiny_model, **options)
    assert caught.value.field == field
