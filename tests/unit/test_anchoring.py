"""Anchored placement: the cheapest ends, found exactly, decided by the text around them alone."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zcontext.writing
from tiny import tiny_z
from zcontext.anchoring import SPREAD, Seams, end_costs, place_anchored
from zcontext.compressor import ZCompressor
from zcontext.config import CodecConfig, CompressSettings
from zcontext.emphasis import place_runs
from zcontext.errors import ConfigError
from zcontext.model import ZLanguageModel
from zcontext.naming import SPOKEN_FOR, place_symbols
from zcontext.profiles import profile
from zcontext.segmentation import hardest
from zcontext.spans import ZDocument

NAMING = CodecConfig(depth=3, size=64, shared=True, named=True)
LEARNED = CodecConfig(depth=3, size=64)
ANCHORED = CompressSettings(ratio=2.5, window=64, placement="anchored")
STORY = (
    "Anna lives in Oslo. She is 31 years old and builds bridges! In 2019 she moved there from "
    "Lima, where her father had a shop. Why? Nobody asked her.\n\nThe shop is closed now, and the "
    "street has another name: it was called after a river once, which nobody remembers. "
)


def seams(vocab: int, *, seed: int = 0) -> Seams:
    generator = torch.Generator().manual_seed(seed)
    opens = torch.rand(vocab, generator=generator) < 0.7
    return Seams(opens, torch.randint(0, 3, (vocab,), generator=generator))


def text_at_random(n: int, seed: int, *, vocab: int = 500) -> torch.Tensor:
    return torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed))


def lengths_of(ends: list[int]) -> list[int]:
    return [b - a for a, b in pairwise([-1, *ends])]


def slow_place(costs: list[int], n_slots: int, most: int) -> list[int]:
    """The obviously right twin: all placements there are."""
    n = len(costs)
    every = ([*chosen, n - 1] for chosen in combinations(range(n - 1), n_slots - 1))
    fitting = [ends for ends in every if max(lengths_of(ends)) <= most]
    return min(fitting, key=lambda ends: (sum(costs[end] for end in ends), ends[::-1]))


def slow_cost(token: int, following: int, opens: bool, closes: int) -> int:
    """The obviously right twin, in Python's integers."""

    def mixed(value: int) -> int:
        for _ in range(2):
            value = ((value ^ (value >> 16)) * 0x45D9F3B) % 2**32
        return value ^ (value >> 16)

    lot = mixed((mixed(token + 1) + following) % 2**32) % SPREAD
    return lot + (SPREAD if not opens else 0) + SPREAD - closes * SPREAD // 2


# -- costs ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 499), min_size=2, max_size=30))
def test_costs_equal_the_slow_twin_and_are_never_below_zero(ids: list[int]) -> None:
    chosen = seams(500)
    found = end_costs(torch.tensor(ids), chosen).tolist()
    assert found[:-1] == [
        slow_cost(a, b, bool(chosen.opens[b]), int(chosen.closes[a])) for a, b in pairwise(ids)
    ]
    assert min(found) >= 0


def test_costs_are_the_same_on_every_machine() -> None:
    table = Seams(torch.tensor([True] * 200_000), torch.zeros(200_000, dtype=torch.long))
    found = end_costs(torch.tensor([0, 1, 49151, 199_999, 0]), table) - SPREAD
    assert found[:4].tolist() == [650513, 833145, 993659, 643458]


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 30), st.integers(2, 30))
def test_a_cost_follows_from_two_tokens_wherever_they_stand(seed: int, a: int, n: int) -> None:
    ids, table = text_at_random(64, seed), seams(500)
    assert torch.equal(end_costs(ids[a : a + n], table)[:-1], end_costs(ids, table)[a : a + n - 1])


def test_lots_are_spread_evenly() -> None:
    ids = torch.arange(4000).repeat_interleave(2).roll(1)
    table = Seams(torch.ones(4000) > 0, torch.zeros(4000, dtype=torch.long))
    lots = (end_costs(ids, table) - SPREAD).double() / SPREAD
    counts = torch.histc(lots, 10, 0, 1) / len(lots)
    assert bool(((counts > 0.08) & (counts < 0.12)).all())


def test_a_word_is_not_cut_while_another_place_will_do_and_sentences_end_segments_first() -> None:
    ids = text_at_random(300, 1)
    table = seams(500, seed=2)
    table.opens[:100] = False
    inside = ~table.opens[ids.roll(-1)][:-1]
    costs = end_costs(ids, table)[:-1]
    same = table.closes[ids][:-1] == 0
    assert int(costs[inside & same].min()) >= 2 * SPREAD > int(costs[~inside & same].max())
    assert int(costs[~inside & (table.closes[ids][:-1] == 2)].max()) < SPREAD


def test_seams_of_two_bases_are_refused() -> None:
    with pytest.raises(ConfigError, match="of one base"):
        Seams(torch.ones(3) > 0, torch.zeros(4, dtype=torch.long))


# -- places -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=11), st.data())
def test_the_path_found_is_the_cheapest_of_all_placements(
    costs: list[int], data: st.DataObject
) -> None:
    n_slots = data.draw(st.integers(1, len(costs)))
    most = data.draw(st.integers(-(-len(costs) // n_slots), len(costs)))
    found = place_anchored(torch.tensor(costs), n_slots, most=most).tolist()
    assert found == slow_place(costs, n_slots, most)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 1000), st.none() | st.integers(1, 9), st.data())
def test_there_are_as_many_ends_as_asked_for_and_no_segment_is_too_long(
    n: int, seed: int, most: int | None, data: st.DataObject
) -> None:
    n_slots = data.draw(st.integers(1, n))
    ends = place_anchored(text_at_random(n, seed), n_slots, most=most).tolist()
    assert len(ends) == n_slots
    assert ends[-1] == n - 1
    assert min(lengths_of(ends)) >= 1
    suffices = most is not None and n_slots * most >= n
    assert max(lengths_of(ends)) <= (most if suffices else -(-2 * n // n_slots))


@pytest.mark.parametrize(("n", "n_slots"), [(3, 4), (3, 0), (0, 0), (3, -1)])
def test_segments_that_cannot_be_are_refused(n: int, n_slots: int) -> None:
    with pytest.raises(ConfigError, match="segments"):
        place_anchored(torch.zeros(n, dtype=torch.long), n_slots)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.data())
def test_no_segment_ends_within_a_phrase_or_has_more_than_a_symbol_can_name(
    n: int, seed: int, data: st.DataObject
) -> None:
    starts = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    starts[0] = True
    n_slots = data.draw(st.integers(1, n))
    told = {"starts": torch.tensor([starts]), "costs": text_at_random(n, seed).unsqueeze(0)}
    (ends,) = place_symbols(NAMING, torch.zeros(1, n), n_slots, **told).tolist()
    assert ends == sorted(set(ends))
    assert (len(ends), ends[-1]) == (n_slots, n - 1)
    if sum(starts) >= n_slots:
        assert all(end + 1 == n or starts[end + 1] for end in ends)
        if sum(starts) <= n_slots * NAMING.depth:
            bounds = [0, *(end + 1 for end in ends)]
            assert all(sum(starts[a:b]) <= NAMING.depth for a, b in pairwise(bounds))


@settings(deadline=None)
@given(st.integers(10, 60), st.integers(0, 1000), st.integers(1, 3), st.data())
def test_where_names_do_not_suffice_no_symbol_has_too_many_phrases_that_are_hard_to_guess(
    n: int, seed: int, n_slots: int, data: st.DataObject
) -> None:
    bits = torch.tensor([data.draw(st.permutations(range(n)))]).float()
    costs = text_at_random(n, seed).unsqueeze(0)
    (ends,) = place_symbols(NAMING, bits, n_slots, costs=costs).tolist()
    assert (len(ends), ends[-1]) == (n_slots, n - 1)
    count = max(n_slots, int(SPOKEN_FOR * n_slots * NAMING.depth))
    hard = hardest(bits[0], count)
    bounds = [0, *(end + 1 for end in ends)]
    each = [int(hard[a:b].sum()) for a, b in pairwise(bounds)]
    assert sum(each) == count
    assert min(each) >= 1
    assert max(each) <= NAMING.depth
    # Behind a symbol's last hard phrase, no place before the next one is cheaper.
    for end in ends[:-1]:
        coming = hard[end + 1 :].nonzero()[0].item() + end + 1
        since = hard[: end + 1].nonzero()[-1].item()
        assert costs[0, end] == costs[0, since:coming].min()


def test_codes_that_are_no_names_leave_segments_twice_the_mean() -> None:
    costs = text_at_random(90, 5).unsqueeze(0)
    (ends,) = place_symbols(LEARNED, torch.zeros(1, 90), 30, costs=costs).tolist()
    assert NAMING.depth < max(lengths_of(ends)) <= 6


def test_surprisal_has_no_say_where_names_suffice() -> None:
    costs = text_at_random(50, 3).unsqueeze(0)
    flat, steep = torch.zeros(1, 50), torch.arange(50.0).unsqueeze(0)
    placed = [place_symbols(NAMING, bits, 20, costs=costs) for bits in (flat, steep)]
    assert torch.equal(*placed)


def test_runs_are_placed_each_by_itself() -> None:
    costs = text_at_random(40, 4).unsqueeze(0)
    runs = [(0, 18, False), (18, 22, True), (22, 40, False)]
    found = place_runs(NAMING, torch.ones(40), runs, 16, costs=costs)
    assert found[1].tolist() == [18, 19, 20, 21]
    for (start, end, _), ends in zip(runs, found, strict=True):
        alone = place_symbols(
            NAMING, torch.ones(1, end - start), len(ends), costs=costs[:, start:end]
        )
        assert ends.tolist() == (alone[0] + start).tolist()


# -- locality ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [3, 6])
def test_texts_that_share_a_middle_have_the_same_segments_there(seed: int, ratio: int) -> None:
    table, middle = seams(500), text_at_random(600, seed)
    sides = []
    for k, (before, after) in enumerate([(200, 130), (77, 251)]):
        around = [
            text_at_random(n, 100 + 10 * seed + 2 * k + j) for j, n in enumerate((before, after))
        ]
        ids = torch.cat([around[0], middle, around[1]])
        ends = place_anchored(end_costs(ids, table), len(ids) // ratio, most=8).tolist()
        sides.append({(a - before, b - before) for a, b in pairwise(ends)})
    inner = [{(a, b) for a, b in side if a >= 60 and b < 540} for side in sides]
    assert len(inner[0] & inner[1]) >= 0.85 * max(map(len, inner))


def segments(document: ZDocument) -> dict[tuple[int, int], tuple[int, ...]]:
    """Codes of every segment, by its place from the end of the text, in tokens."""
    found = {}
    for span in document.spans:
        for (a, b), codes in zip(pairwise([0, *span.ends]), span.symbols.codes, strict=True):
            bounds = span.tokens.start + a, span.tokens.start + b
            found[(document.n_tokens - bounds[0], document.n_tokens - bounds[1])] = codes
    return found


@pytest.fixture(scope="module")
def naming() -> ZLanguageModel:
    return tiny_z(size=257, named=True)


def test_an_edit_at_the_front_leaves_most_symbols_behind_it(naming: ZLanguageModel) -> None:
    compressor = ZCompressor(naming)
    shares = {}
    for placement in ("surprisal", "anchored"):
        chosen = ANCHORED.replace(window=512, placement=placement)
        before, after = (
            segments(compressor.compress(text, settings=chosen))
            for text in (STORY, STORY.replace("Anna", "Wilhelmina"))
        )
        shares[placement] = sum(before.get(k) == c for k, c in after.items()) / len(after)
    assert shares["anchored"] > 0.75
    assert shares["surprisal"] < 0.5


# -- documents --------------------------------------------------------------------------------


def test_placement_is_by_surprisal_unless_the_settings_say_otherwise(
    naming: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CompressSettings().placement == "surprisal"
    compressor = ZCompressor(naming)
    anchored = compressor.compress(STORY, settings=ANCHORED)
    assert anchored.ratio == compressor.compress(STORY, ratio=2.5).ratio
    monkeypatch.setattr(zcontext.writing, "end_costs", None)  # it would fail if it were called
    plain = ANCHORED.replace(placement="surprisal")
    assert segments(compressor.compress(STORY, settings=plain)) != segments(anchored)


def test_symbols_stand_for_pieces_that_end_where_words_do(naming: ZLanguageModel) -> None:
    document = ZCompressor(naming).compress(STORY, settings=ANCHORED.replace(max_symbols=150))
    assert all(len(codes) == 3 for codes in segments(document).values())
    heads = [STORY[-after] for _, after in segments(document) if after]
    tails = [STORY[-after - 1] for _, after in segments(document) if after]
    in_word = sum(a.isalnum() and b.isalnum() for a, b in zip(tails, heads, strict=True))
    # A symbol names three letters at most, so that long words are cut in any case.
    plain = ANCHORED.replace(max_symbols=150, placement="surprisal")
    other = [
        STORY[-after - 1].isalnum() and STORY[-after].isalnum()
        for _, after in segments(ZCompressor(naming).compress(STORY, settings=plain))
        if after
    ]
    assert in_word < sum(other)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_window_is_placed_the_same_in_any_batch_with_memory_and_context(
    naming: ZLanguageModel, batch_size: int
) -> None:
    chosen = ANCHORED.replace(memory=3, context=16)
    compressor = ZCompressor(naming, batch_size=batch_size)
    together = compressor.compress_many([STORY, STORY[:90], STORY[40:]], settings=chosen)
    assert together[0] == compressor.compress(STORY, settings=chosen)
    assert len(together[0].spans) > 2


def test_a_placement_that_is_none_or_a_writer_that_places_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of surprisal, anchored") as caught:
        CompressSettings(placement="even")  # type: ignore[arg-type]
    assert caught.value.field == "placement"
    with pytest.raises(ConfigError, match="decides itself where segments end") as caught:
        CompressSettings(placement="anchored", writer="autoregressive")
    assert caught.value.field == "placement"


def test_sliding_windows_are_anchored_and_no_other_profile_is() -> None:
    assert profile("sliding").placement == "anchored"
    assert profile("default").placement == "surprisal"
