"""Law S: where symbols go, and what a document's budget adds up to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zcontext.errors import ConfigError
from zcontext.literals import symbols_beside
from zcontext.segmentation import (
    FACT_WEIGHT,
    FLOOR_BITS,
    MOST_BITS,
    DocumentBudget,
    count_slots,
    place_evenly,
    place_slots,
    segment_of,
    usual_weight,
    weigh,
)

bits = st.lists(
    st.floats(min_value=-1, max_value=30, allow_nan=False, width=32), min_size=1, max_size=60
).map(torch.tensor)
windows = st.lists(bits, min_size=1, max_size=12)


def slow_place_slots(surprisal: torch.Tensor, n_slots: int) -> list[int]:
    """The obviously right twin: walk the tokens, close a segment when its share is reached."""
    weights = [min(max(0.0, float(s)), MOST_BITS) + FLOOR_BITS for s in surprisal]
    n, ends, total = len(weights), [], 0.0
    cumulative = []
    for weight in weights:
        total += weight
        cumulative.append(total)
    for slot in range(1, n_slots + 1):
        wanted = slot * total / n_slots
        at = next((i for i, c in enumerate(cumulative) if c >= wanted - 1e-9), n - 1)
        at = max(at, ends[-1] + 1 if ends else 0)
        ends.append(min(at, n - n_slots + slot - 1))
    ends[-1] = n - 1
    return ends


@given(bits, st.data())
def test_slots_are_strictly_increasing_and_the_last_one_closes_the_window(surprisal, data):
    n = len(surprisal)
    k = data.draw(st.integers(1, n))
    ends = place_slots(surprisal, k)
    assert len(ends) == k
    assert int(ends[0]) >= 0
    assert bool((ends.diff() > 0).all())
    assert int(ends[-1]) == n - 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.data())
def test_the_fast_placement_equals_the_slow_twin(units, data):
    surprisal = torch.tensor(units, dtype=torch.float64) / 3
    k = data.draw(st.integers(1, len(units)))
    fast, slow = place_slots(surprisal, k).tolist(), slow_place_slots(surprisal, k)
    # Both may stand on either side of a share that is met to the last bit.
    assert all(abs(a - b) <= 1 for a, b in zip(fast, slow, strict=True))


@given(bits, st.floats(0.1, 50), st.floats(0.1, 50))
def test_a_lower_price_never_gives_fewer_symbols(surprisal, one, other):
    cheap, dear = sorted((one, other))
    assert count_slots(surprisal, bits_per_symbol=cheap) >= count_slots(
        surprisal, bits_per_symbol=dear
    )


@given(bits, st.floats(0.1, 50), st.floats(0, 10))
def test_denser_text_of_equal_length_gets_at_least_as_many_symbols(surprisal, price, extra):
    denser = surprisal + extra
    assert count_slots(denser, bits_per_symbol=price) >= count_slots(
        surprisal, bits_per_symbol=price
    )


def test_a_dense_half_gets_more_slots_than_a_predictable_half():
    surprisal = torch.cat([torch.full((50,), 9.0), torch.full((50,), 0.5)])
    ends = place_slots(surprisal, 20)
    assert int((ends < 50).sum()) >= 15


@given(bits, st.integers(1, 8), st.data())
def test_every_segment_has_as_many_tokens_to_name_as_a_symbol_can(surprisal, n_names, data):
    n = len(surprisal)
    k = data.draw(st.integers(1, n))
    ends = place_slots(surprisal, k, n_names=n_names)
    assert bool((ends.diff() > 0).all())
    assert int(ends[-1]) == n - 1
    if n < k * n_names:  # there are names for all
        assert torch.equal(ends, place_evenly(n, k))
        return
    hardest = surprisal.argsort(descending=True, stable=True)[: k * n_names]
    assert torch.bincount(segment_of(ends, n)[hardest], minlength=k).tolist() == [n_names] * k


def test_a_token_that_must_be_named_costs_the_same_however_hard_it_is_to_guess():
    hard, harder = torch.full((50,), 9.0), torch.full((50,), 19.0)
    assert torch.equal(weigh(hard), weigh(harder))
    assert bool((weigh(torch.arange(0.0, 20.0, 0.1)).diff() >= 0).all())


@given(bits, st.integers(0, 60), st.floats(0.1, 50))
def test_a_fact_draws_more_however_easy_it_is_to_guess(surprisal, n_facts, price):
    plain = count_slots(surprisal, bits_per_symbol=price)
    assert count_slots(surprisal, bits_per_symbol=price, n_facts=n_facts) >= plain
    flat = torch.zeros(40)
    drawn = FLOOR_BITS * 40 + FACT_WEIGHT * min(n_facts, 40)
    found = count_slots(flat, bits_per_symbol=1.0, n_facts=min(n_facts, 40))
    assert found == max(1, min(40, math.ceil(drawn - 1e-9)))


def test_a_window_of_facts_gets_more_than_another_and_the_total_is_kept():
    budget = DocumentBudget(160, 40, None, 4.0, facts=(40, 0, 0, 0))
    taken = [budget.take(torch.full((40,), 2.0), windows_left=left) for left in (3, 2, 1, 0)]
    assert sum(taken) == 40
    guessed = 2.0 + FLOOR_BITS
    share = (guessed + FACT_WEIGHT) / (4 * guessed + FACT_WEIGHT)
    assert taken[0] == pytest.approx(40 * share, abs=1.5)
    assert taken[0] > 1.2 * taken[1]
    assert max(taken[1:]) - min(taken[1:]) <= 2


@given(windows, st.data())
def test_no_window_gets_less_than_names_all_of_it_where_there_is_enough(document, data):
    lengths = [len(window) for window in document]
    whole = [data.draw(st.integers(1, n)) for n in lengths]
    facts = [data.draw(st.integers(0, n)) for n in lengths]
    total = data.draw(st.integers(sum(whole), sum(lengths)))
    budget = DocumentBudget(sum(lengths), total, None, 4.0, facts=facts, whole=whole)
    taken = [
        budget.take(window, windows_left=len(document) - 1 - at)
        for at, window in enumerate(document)
    ]
    assert sum(taken) == total
    assert all(least <= count <= n for least, count, n in zip(whole, taken, lengths, strict=True))


@given(st.floats(0.01, 64))
def test_the_usual_weight_is_the_mean_over_an_exponential_of_that_mean(mean_surprisal):
    quantiles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = -mean_surprisal * torch.log1p(-quantiles)
    assert usual_weight(mean_surprisal) == pytest.approx(float(weigh(drawn).mean()), rel=1e-3)


@given(bits, st.data())
def test_every_token_belongs_to_the_segment_that_ends_at_or_after_it(surprisal, data):
    n = len(surprisal)
    ends = place_slots(surprisal, data.draw(st.integers(1, n)))
    owner = segment_of(ends, n)
    for token in range(n):
        assert int(owner[token]) == next(j for j, end in enumerate(ends.tolist()) if end >= token)


def test_even_segments_differ_by_one_token_at_most():
    lengths = torch.cat([torch.tensor([-1]), place_evenly(103, 10)]).diff()
    assert int(lengths.max() - lengths.min()) <= 1


@pytest.mark.parametrize(("n", "k"), [(3, 4), (3, 0), (0, 1), (3, -1)])
def test_segments_that_cannot_be_are_refused(n, k):
    with pytest.raises(ConfigError, match="segments"):
        place_slots(torch.zeros(n), k)


def test_no_tokens_take_no_slots():
    assert place_slots(torch.zeros(0), 0).tolist() == []
    assert count_slots(torch.zeros(0), bits_per_symbol=1.0) == 0


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan])
def test_a_price_that_is_not_positive_is_refused(price):
    with pytest.raises(ConfigError, match="positive"):
        count_slots(torch.ones(3), bits_per_symbol=price)


def spend(budget: DocumentBudget, document: list[torch.Tensor]) -> list[int]:
    return [
        budget.take(window, windows_left=len(document) - 1 - i) for i, window in enumerate(document)
    ]


@settings(max_examples=200)
@given(windows, st.integers(1, 400))
def test_a_total_is_spent_exactly_and_fits_every_window(document, total):
    n = sum(map(len, document))
    total = min(total, n)
    counts = spend(DocumentBudget(n, total, None, 5.0), document)
    assert sum(counts) == total
    assert all(0 <= c <= len(w) for c, w in zip(counts, document, strict=True))
    if total >= len(document):
        assert min(counts) >= 1


@given(windows, st.floats(1, 64))
def test_a_ratio_is_met_by_the_document_as_a_whole(document, ratio):
    n = sum(map(len, document))
    total = symbols_beside(n, 0, ratio=ratio)
    counts = spend(DocumentBudget(n, total, None, 5.0), document)
    assert sum(counts) == max(1, math.floor(n / ratio + 1e-9))
    assert n / sum(counts) >= ratio - 1e-6 or sum(counts) == 1


def test_a_dense_window_gets_more_than_a_predictable_one_of_the_same_budget():
    document = [torch.full((100,), 0.5), torch.full((100,), 8.0), torch.full((100,), 0.5)]
    counts = spend(DocumentBudget(300, 75, None, 2.0), document)
    assert counts[1] >= 2 * counts[0]


def test_fewer_symbols_than_windows_are_spread_over_the_document():
    document = [torch.ones(10) for _ in range(40)]
    counts = spend(DocumentBudget(400, 4, None, 5.0), document)
    given_at = [i for i, c in enumerate(counts) if c]
    assert sum(counts) == 4
    assert given_at[-1] - given_at[0] >= 20


def test_a_price_is_the_same_in_every_window():
    document = [torch.full((60,), 4.0)] * 3
    counts = spend(DocumentBudget(180, None, 20.0, 5.0), document)
    assert counts == [count_slots(document[0], bits_per_symbol=20.0)] * 3
