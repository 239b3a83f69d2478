"""Which tokens of a segment are named."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from zcontext.naming import name_tokens


def slow_names(
    names: list[int], ends: list[int], bits: list[float], depth: int
) -> tuple[list[list[int]], set[int]]:
    """The obviously right twin: one segment after another."""
    codes, chosen, start = [], set(), 0
    for end in ends:
        places = list(range(start, end + 1))
        hardest = sorted(places, key=lambda at: (-bits[at], at))[:depth]
        row = [names[at] for at in sorted(hardest)]
        codes.append(row + [0] * (depth - len(row)))
        chosen |= set(hardest)
        start = max(start, end + 1)
    return codes, chosen


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 8), st.data())
def test_naming_equals_the_slow_twin(units, depth, data):
    n = len(units)
    names = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    ends = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    ends += [ends[-1]] * data.draw(st.integers(0, 3))  # slots that only fill a batch up
    bits = [float(unit) for unit in units]
    found = name_tokens(
        torch.tensor([names]), torch.tensor([ends]), torch.tensor([bits]), depth=depth
    )
    codes, chosen = slow_names(names, ends, bits, depth)
    assert found.codes[0].tolist() == codes
    assert set(found.chosen[0].nonzero().squeeze(-1).tolist()) == chosen
    for row, places in zip(found.codes[0].tolist(), found.places[0].tolist(), strict=True):
        assert places == sorted(places)
        assert [names[at] for at in places if at < n] == row[: sum(at < n for at in places)]


def test_rows_of_a_batch_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    names = torch.randint(1, 9, (2, 12), generator=generator)
    bits = torch.rand(2, 12, generator=generator)
    ends = torch.tensor([[3, 9], [1, 11]])
    together = name_tokens(names, ends, bits, depth=3)
    for row in range(2):
        only = slice(row, row + 1)
        alone = name_tokens(names[only], ends[only], bits[only], depth=3)
        assert torch.equal(alone.codes[0], together.codes[row])
        assert torch.equal(alone.places[0], together.places[row])
