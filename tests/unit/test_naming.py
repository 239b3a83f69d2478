"""Which phrases of a segment are named, and where slots may end."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcontext.config import CodecConfig
from zcontext.naming import name_phrases, place_symbols

NAMING = CodecConfig(depth=3, size=64, shared=True, named=True)


def slow_names(
    names: list[int], starts: list[bool], ends: list[int], bits: list[float], depth: int
) -> tuple[list[list[int]], set[int]]:
    """The obviously right twin: one segment after another."""
    codes, chosen, start = [], set(), 0
    for end in ends:
        phrases: list[list[int]] = []
        for at in range(start, end + 1):
            if starts[at]:
                phrases.append([at])
            else:
                phrases[-1].append(at)
        hardest = sorted(phrases, key=lambda run: (-sum(bits[at] for at in run), run))[:depth]
        row = [names[run[0]] for run in sorted(hardest)]
        codes.append(row + [0] * (depth - len(row)))
        chosen |= {at for run in hardest for at in run}
        start = max(start, end + 1)
    return codes, chosen


def cut_at_random(data: st.DataObject, n: int, ends: list[int]) -> list[bool]:
    starts = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    for edge in (0, *(end + 1 for end in ends)):
        if edge < n:
            starts[edge] = True
    return starts


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 8), st.data())
def test_naming_equals_the_slow_twin(units, depth, data):
    n = len(units)
    names = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    ends = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    starts = cut_at_random(data, n, ends)
    ends += [ends[-1]] * data.draw(st.integers(0, 3))  # slots that only fill a batch up
    bits = [float(unit) for unit in units]
    told = (torch.tensor([names]), torch.tensor([starts]), torch.tensor([ends]))
    found = name_phrases(*told, torch.tensor([bits]), depth=depth)
    codes, chosen = slow_names(names, starts, ends, bits, depth)
    assert found.codes[0].tolist() == codes
    assert set(found.chosen[0].nonzero().squeeze(-1).tolist()) == chosen
    for row, places in zip(found.codes[0].tolist(), found.places[0].tolist(), strict=True):
        assert places == sorted(places)
        assert [names[at] for at in places if at < n] == row[: sum(at < n for at in places)]


def test_rows_of_a_batch_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    names = torch.randint(1, 9, (2, 12), generator=generator)
    starts = torch.rand(2, 12, generator=generator) < 0.6
    bits = torch.rand(2, 12, generator=generator)
    ends = torch.tensor([[3, 9], [1, 11]])
    starts[:, 0] = starts[0, 4] = starts[0, 10] = starts[1, 2] = True
    together = name_phrases(names, starts, ends, bits, depth=3)
    for row in range(2):
        only = slice(row, row + 1)
        alone = name_phrases(names[only], starts[only], ends[only], bits[only], depth=3)
        for field in dataclasses.fields(alone):
            one, both = getattr(alone, field.name)[0], getattr(together, field.name)[row]
            assert torch.equal(one, both)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_no_segment_ends_within_a_phrase(units, data):
    n = len(units)
    starts = cut_at_random(data, n, [])
    n_slots = data.draw(st.integers(1, n))
    bits = torch.tensor([[float(unit) for unit in units]])
    (ends,) = place_symbols(NAMING, bits, n_slots, starts=torch.tensor([starts])).tolist()
    assert ends == sorted(set(ends))
    assert len(ends) == n_slots
    assert ends[-1] == n - 1
    if sum(starts) >= n_slots:
        assert all(end + 1 == n or starts[end + 1] for end in ends)


@pytest.mark.parametrize("n_slots", [1, 4, 9])
def test_a_text_of_single_tokens_is_placed_as_one_that_knows_no_phrases(n_slots):
    bits = torch.rand(2, 30, generator=torch.Generator().manual_seed(3))
    alone = place_symbols(NAMING, bits, n_slots, starts=torch.ones(2, 30) > 0)
    assert torch.equal(alone, place_symbols(NAMING, bits, n_slots))
