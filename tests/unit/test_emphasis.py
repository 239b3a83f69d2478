"""Emphasis: a document's symbols are spent on what a question is about, to the last one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcontext.config import CodecConfig
from zcontext.emphasis import (
    BRIDGED,
    PAIR,
    Emphasis,
    emphasise,
    emphasise_end,
    fewest_slots,
    place_runs,
    runs_of,
    share_slots,
)
from zcontext.segmentation import weigh

CODEC = CodecConfig(depth=4, size=64, shared=True, named=True)
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def odds(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 4


def ends_of(emphasis: Emphasis, seed: int) -> torch.Tensor:
    bits = odds(len(emphasis.fine), seed).abs()
    runs = runs_of(emphasis.fine)
    return torch.cat(place_runs(CODEC, bits, runs, emphasis.n_slots, grain=emphasis.grain))


@given(lengths, st.floats(0, 1), st.integers(0, 1000))
def test_windows_spend_exactly_what_the_document_has(
    sizes: list[int], share: float, seed: int
) -> None:
    n_symbols = len(sizes) + int(share * (sum(sizes) + 5 - len(sizes)))
    found = emphasise([odds(n, seed + k) for k, n in enumerate(sizes)], n_symbols)
    assert found is not None
    assert [len(each.fine) for each in found] == sizes
    assert sum(each.n_slots for each in found) == min(n_symbols, sum(sizes))
    assert all(1 <= each.n_slots <= len(each.fine) for each in found)


@given(lengths, st.floats(0, 1), st.integers(1, 40), st.integers(0, 1000))
def test_behind_what_is_enough_no_more_is_spent(
    sizes: list[int], share: float, enough: int, seed: int
) -> None:
    n_symbols = len(sizes) + int(share * (sum(sizes) - len(sizes)))
    rows = [odds(n, seed + k) for k, n in enumerate(sizes)]
    found = emphasise(rows, n_symbols, enough=enough)
    assert found is not None
    spent = sum(each.n_slots for each in found)
    assert spent == min(n_symbols, len(sizes) + enough)
    fewer = emphasise(rows, spent)
    assert fewer is not None
    assert [each.fine.tolist() for each in found] == [each.fine.tolist() for each in fewer]


@given(lengths, st.floats(0, 1), st.integers(0, 1000))
def test_every_fine_token_closes_a_segment_that_is_it_alone(
    sizes: list[int], share: float, seed: int
) -> None:
    n_symbols = len(sizes) + int(share * (sum(sizes) - len(sizes)))
    found = emphasise([odds(n, seed + k) for k, n in enumerate(sizes)], n_symbols)
    assert found is not None
    for each in found:
        ends = ends_of(each, seed)
        assert len(ends) == each.n_slots
        assert bool((ends[1:] > ends[:-1]).all())
        assert int(ends[-1]) == len(each.fine) - 1
        alone = torch.diff(ends, prepend=torch.tensor([-1])) == 1
        closed = torch.zeros(len(each.fine), dtype=torch.bool)
        closed[ends[alone]] = True
        assert bool(closed[each.fine].all())


@given(lengths, st.floats(0, 1), st.integers(0, 1000))
def test_pairs_spend_as_many_symbols_on_no_fewer_tokens(
    sizes: list[int], share: float, seed: int
) -> None:
    n_symbols = len(sizes) + int(share * (sum(sizes) - len(sizes)))
    rows = [odds(n, seed + k) for k, n in enumerate(sizes)]
    single, paired = emphasise(rows, n_symbols), emphasise(rows, n_symbols, pairs=math.inf)
    assert single is not None
    assert paired is not None
    assert sum(each.n_slots for each in paired) == n_symbols
    reached = [sum(int(each.fine.sum()) for each in found) for found in (single, paired)]
    assert reached[1] >= reached[0] - 2 * BRIDGED * len(sizes)
    for each in paired:
        runs = runs_of(each.fine)
        assert fewest_slots(runs, each.grain) <= each.n_slots <= len(each.fine)
        ends = ends_of(each, seed)
        assert len(ends) == each.n_slots
        assert bool((ends[1:] > ends[:-1]).all())
        assert int(ends[-1]) == len(each.fine) - 1
        for start, end, is_fine in runs:
            inside = int(((ends >= start) & (ends < end)).sum())
            assert inside >= (-(-(end - start) // each.grain) if is_fine else 1)


def test_pairs_are_written_where_what_they_reach_is_worth_it() -> None:
    sure, unsure = torch.zeros(160), torch.zeros(160)
    sure[40:43] = 14.0
    for place in (20, 45, 70, 95, 120, 145):  # more than symbols of one token reach
        unsure[place : place + 6] = 6.0
    grains = {}
    for name, row in (("sure", sure), ("unsure", unsure)):
        for pairs in (0.0, 0.7, math.inf):
            found = emphasise([row], 20, pairs=pairs)
            assert found is not None
            grains[name, pairs] = found[0].grain
    assert grains == {
        ("sure", 0.0): 1,
        ("sure", 0.7): 1,
        ("sure", math.inf): PAIR,
        ("unsure", 0.0): 1,
        ("unsure", 0.7): PAIR,
        ("unsure", math.inf): PAIR,
    }
    half = emphasise([unsure], 80, pairs=math.inf)
    assert half is not None
    assert half[0].grain == 1, "symbols of one token reach everything that pairs could"


@given(st.integers(30, 120), st.integers(0, 1000))
def test_more_symbols_never_emphasise_less(n: int, seed: int) -> None:
    row, before = odds(n, seed), 0
    for n_symbols in range(1, n + 1, 7):
        found = emphasise([row], n_symbols)
        assert found is not None
        # A bridge more or less between two stretches is all that may come and go.
        assert int(found[0].fine.sum()) >= before - 4 * BRIDGED
        before = int(found[0].fine.sum())
    whole = emphasise([row], n)
    assert whole is not None
    assert bool(whole[0].fine.all())


def test_the_tokens_that_answer_are_fine_with_those_beside_them() -> None:
    rows = [torch.zeros(100), torch.zeros(100)]
    rows[1][60:63] = 12.0
    found = emphasise(rows, 50)
    assert found is not None
    assert bool(found[1].fine[50:73].all())
    assert found[1].n_slots > 5 * found[0].n_slots


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Odds and word starts of some windows of words of one to five tokens."""
    windows = draw(
        st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=20), min_size=1, max_size=4)
    )
    seed = draw(st.integers(0, 1000))
    opens = [torch.tensor([k == 0 for length in words for k in range(length)]) for words in windows]
    return [odds(len(row), seed + k) for k, row in enumerate(opens)], opens


@given(texts(), st.floats(0, 1))
def test_a_word_is_fine_as_a_whole_or_not_at_all(
    text: tuple[list[torch.Tensor], list[torch.Tensor]], share: float
) -> None:
    rows, opens = text
    n = sum(map(len, rows))
    n_symbols = len(rows) + int(share * (n - len(rows)))
    found = emphasise(rows, n_symbols, opens=opens)
    assert found is not None
    assert sum(each.n_slots for each in found) == n_symbols
    words = [w for row, each in zip(opens, found, strict=True) for w in words_of(row, each.fine)]
    parted = [w for w in words if bool(w.any()) != bool(w.all())]
    # Only where there is room for no word, the beginning of the likeliest one is better than none.
    assert not parted or (len(parted) == 1 and sum(int(w.sum()) for w in words) < 5)


def words_of(opens: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.tensor_split(values, opens.nonzero().squeeze(-1)[1:]))


def test_a_name_is_fine_to_its_end_and_text_without_spaces_is_taken_token_by_token() -> None:
    row = torch.zeros(60)
    row[30] = 12.0
    alone, opens = torch.ones(60, dtype=torch.bool), torch.ones(60, dtype=torch.bool)
    opens[35:39] = False  # a word of tokens 34 to 38, at the edge of what is near
    (by_word,), (by_token,) = (emphasise([row], 16, opens=[each]) for each in (opens, alone))  # type: ignore[misc]
    assert bool(by_word.fine[34:39].all())
    assert not bool(by_token.fine[34:39].all())
    unspaced = torch.zeros(60, dtype=torch.bool)
    (found,) = emphasise([row], 16, opens=[unspaced])  # type: ignore[misc]
    assert found.fine.tolist() == by_token.fine.tolist()


def test_relevance_counts_across_windows_and_not_by_itself() -> None:
    """Two windows alike but for a constant: what is higher in both is fine in the higher one."""
    row = torch.zeros(80)
    row[40] = 9.0
    found = emphasise([row, row + 6.0], 24)
    assert found is not None
    assert int(found[1].fine.sum()) > int(found[0].fine.sum())


def test_fewer_symbols_than_windows_leave_it_to_the_budget() -> None:
    assert emphasise([torch.zeros(9), torch.zeros(9)], 1) is None
    assert emphasise([], 5) is None


@given(lengths, st.floats(0, 1))
def test_the_end_is_one_stretch_of_fine_tokens_and_all_symbols_are_spent(
    sizes: list[int], share: float
) -> None:
    n_symbols = len(sizes) + int(share * (sum(sizes) + 5 - len(sizes)))
    found = emphasise_end(sizes, n_symbols)
    assert found is not None
    assert [len(each.fine) for each in found] == sizes
    assert sum(each.n_slots for each in found) == min(n_symbols, sum(sizes))
    fine = torch.cat([each.fine for each in found]).tolist()
    assert fine == sorted(fine)


def test_the_end_takes_most_of_what_there_is() -> None:
    found = emphasise_end([150, 150, 100], 100)
    assert found is not None
    assert int(torch.cat([each.fine for each in found]).sum()) > 80
    assert emphasise_end([9, 9], 1) is None
    assert emphasise_end([], 5) is None


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.lists(st.integers(-3, 45)))
def test_runs_cover_the_tokens_once_and_are_of_one_kind(
    flags: list[bool], edges: list[int]
) -> None:
    runs = runs_of(torch.tensor(flags), edges)
    assert [k for a, b, _ in runs for k in range(a, b)] == list(range(len(flags)))
    assert all(flags[k] is fine for a, b, fine in runs for k in range(a, b))
    inside = {edge for edge in edges if 0 < edge < len(flags)}
    assert inside <= {a for a, _, _ in runs}


def test_whole_runs_get_a_slot_a_token_and_the_rest_by_surprisal() -> None:
    runs = [torch.full((8,), 1.0), torch.full((4,), 0.0), torch.full((8,), 3.0)]
    shares = share_slots(runs, 12, fine=[False, True, False])
    assert shares[1] == 4
    assert sum(shares) == 12
    assert shares[2] > shares[0]
    assert float(weigh(runs[2]).sum()) > float(weigh(runs[0]).sum())


@pytest.mark.parametrize("n_symbols", [1, 3, 30])
def test_it_is_the_same_every_time(n_symbols: int) -> None:
    row = torch.zeros(30)  # nothing but ties
    first, second = (emphasise([row], n_symbols) for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first[0].fine, second[0].fine)
