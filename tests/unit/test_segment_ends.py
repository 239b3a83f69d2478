"""What a segment's end leaves unsaid: differences against naming all of the text again."""

from __future__ import annotations

import pytest
import torch

from tiny_names import DEPTH, STORY, composed, ids_of, naming_z, passage_of
from zcontext.composing import Passage, Path
from zcontext.naming import name_phrases
from zcontext.training.limits import Phrases, _slope, slopes_of_ends
from zcontext.training.objective import BITS


def phrases(*hardness: float, steps: tuple[float, ...] | None = None) -> Phrases:
    return Phrases(hardness, list(hardness), steps or (1.0,) * len(hardness))


def test_what_has_no_name_is_unsaid() -> None:
    assert phrases(3.0, 9.0, 1.0, 5.0).unsaid([0, 1, 2, 3], depth=2) == 4.0
    assert phrases(3.0, 9.0).unsaid([0, 1], depth=2) == 0


@pytest.mark.parametrize(
    ("hardness", "cut", "slope"),
    [
        ((4.0, 6.0, 5.0, 7.0, 3.0), 1, -5.0),  # 6 takes the name to spare, 5 that of 6
        ((3.0, 7.0, 5.0, 6.0, 4.0), 4, 5.0),  # and on the right
        ((1.0, 7.0, 6.0, 5.0, 8.0, 2.0), 3, 0.0),  # either move would drop 5 or more for 1 or 2
        ((5.0, 6.0, 7.0, 8.0), 2, 0.0),  # all is said
    ],
)
def test_the_better_side_tells(hardness: tuple[float, ...], cut: int, slope: float) -> None:
    told = phrases(*hardness)
    index = list(range(len(hardness)))
    assert _slope(told, index[:cut], index[cut:], 2) == slope


def test_phrases_that_cost_the_pointer_nothing_go_with_the_next_that_does() -> None:
    told = phrases(4.0, 0.5, 6.0, 7.0, 3.0, steps=(2.0, 0.0, 2.0, 2.0, 2.0))
    # 0.5 and 6 pass to the left; 3 takes the name that 6 leaves.
    assert _slope(told, [0], [1, 2, 3, 4], 2) == pytest.approx((0.5 - (0.5 + 3.0)) / 2)


def unsaid(passage: Passage, ends: torch.Tensor) -> float:
    """Bits of all phrases that are not named where segments end so."""
    assert passage.starts is not None
    named = name_phrases(passage.ids, passage.starts, ends, passage.bits, depth=DEPTH)
    return float(passage.bits.double()[~named.chosen].sum())


def test_slopes_are_the_difference_of_naming_the_text_again() -> None:
    model = naming_z(ends=-30.0)
    passage = passage_of(model, ids_of(model, STORY[:90]), price=40.0)
    path = composed(model, passage, torch.Generator().manual_seed(0)).path
    assert isinstance(path, Path)
    slopes = slopes_of_ends(passage, path, passage.bits.detach() / BITS, depth=DEPTH)
    assert passage.starts is not None
    last = torch.cat([passage.starts[0, 1:], torch.tensor([True])]).nonzero().flatten().tolist()
    (pointer,) = passage.pointers(depth=DEPTH)
    before, k = unsaid(passage, path.ends), int(path.written.sum())
    assert int((slopes != 0).sum()) >= 2
    for slot in range(k - 1):
        if bool(path.held[0, slot]):
            assert float(slopes[0, slot]) == 0
            continue
        at, limits, found = last.index(int(path.ends[0, slot])), path.ends[0].tolist(), [0.0]
        for way in (1, -1):
            to, taken = at, 0.0
            while taken == 0 and 0 <= to + way < len(last):
                taken += float(pointer.steps[to + 1 if way > 0 else to])
                to += way
            inner = (slot == 0 or last[to] > limits[slot - 1]) and last[to] < limits[slot + 1]
            if inner and taken:
                moved = path.ends.clone()
                moved[0, slot] = last[to]
                change = (unsaid(passage, moved) - before) / BITS / taken
                if change < 0:
                    found.append(way * change)
        assert float(slopes[0, slot]) == pytest.approx(max(found, key=abs), rel=1e-3, abs=1e-4)
