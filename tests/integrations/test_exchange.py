"""The exchange of chunks for symbols: one in, one out, whatever state the chunk is in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pieces import BREAD, RIVER, SHORT, TEXTS, TOWER

from zcontext.config import CompressSettings
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    SymbolCollisionError,
    VocabularyError,
)
from zcontext.integrations.exchange import (
    ACCURACY,
    ACTION,
    CODEC,
    N_SYMBOLS,
    N_TOKENS,
    REASON,
    SPAN,
    TEXT,
    Chunk,
    Exchange,
    Exchanged,
    ExchangeSettings,
    StaleSpanWarning,
    stored_span,
    without_record,
)
from zcontext.spans import SupportsCompress
from zcontext.testing import ByteCodec


def exchange(codec: SupportsCompress, **settings: object) -> Exchange:
    return Exchange(
        codec.vocabulary,
        compressor=lambda: codec,
        settings=ExchangeSettings(**{"ratio": 8, **settings}),  # type: ignore[arg-type]
    )


def chunks(*texts: str, **metadata: object) -> list[Chunk]:
    return [Chunk(text, {"page": i, **metadata}, f"piece {i}") for i, text in enumerate(texts)]


def again(before: list[Chunk], after: list[Exchanged]) -> list[Chunk]:
    return [
        Chunk(item.text, item.metadata(chunk.metadata), chunk.label)
        for chunk, item in zip(before, after, strict=True)
    ]


def test_a_span_written_at_index_time_is_swapped_in_without_a_model_call() -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS)
    indexed = exchange(codec).index(before)
    assert [item.text for item in indexed] == list(TEXTS)
    codec.calls.clear()

    def no_compressor() -> SupportsCompress:
        raise AssertionError("the compressor was asked for")

    swapping = Exchange(codec.vocabulary, compressor=no_compressor, settings=ExchangeSettings())
    swapped = swapping.swap(again(before, indexed))
    assert not codec.calls
    assert [item.record[ACTION] for item in swapped] == ["swapped"] * 3
    for text, item in zip(TEXTS, swapped, strict=True):
        assert codec.vocabulary.parse(item.text) == codec.compress(text, ratio=8).symbols


def test_swapping_twice_changes_nothing_more() -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS, SHORT, "")
    once = again(before, exchange(codec).swap(before))
    twice = again(once, exchange(codec).swap(once))
    assert once == twice


@given(st.lists(st.sampled_from([*TEXTS, SHORT, "", " \n", "é" * 200]), max_size=6))
def test_one_chunk_in_one_out_in_order_with_flat_metadata(texts: list[str]) -> None:
    codec = ByteCodec()
    before = chunks(*texts, tags=["a", "b"], nested={"k": 1})
    for result in (exchange(codec).index(before), exchange(codec).swap(before)):
        assert len(result) == len(texts)
        for chunk, item in zip(before, result, strict=True):
            assert all(type(value) in (str, int, float) for value in item.record.values())
            assert without_record(item.metadata(chunk.metadata)) == chunk.metadata
            assert item.record[ACTION] in ("indexed", "compressed", "raw")


@pytest.mark.parametrize(("text", "reason"), [("", "empty"), (" \n\t", "empty"), (SHORT, "short")])
def test_what_is_not_worth_a_symbol_stays_text(text: str, reason: str) -> None:
    codec = ByteCodec()
    (item,) = exchange(codec).swap(chunks(text))
    assert item.text == text
    assert item.record == {ACTION: "raw", REASON: reason, N_TOKENS: 0 if not text.strip() else 10}


def test_a_stored_span_that_no_longer_fits_its_text_is_replaced_with_a_warning() -> None:
    codec = ByteCodec()
    before = chunks(RIVER + TOWER)
    (whole,) = again(before, exchange(codec).index(before))
    halves = [Chunk(text, whole.metadata, text[:9]) for text in (RIVER, TOWER)]  # split too late
    with pytest.warns(StaleSpanWarning, match="after splitting"):
        result = exchange(codec).swap(halves)
    for half, item in zip(halves, result, strict=True):
        assert item.record[REASON] == "outdated span"
        assert item.record[ACTION] == "compressed"
        assert codec.decompress(stored_span(item.record)) == half.text  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [lambda s: s[:-9], lambda s: s[:30] + "A" + s[31:], lambda _: 7])
def test_a_damaged_stored_span_is_replaced_with_a_warning(damage: object) -> None:
    codec = ByteCodec()
    before = chunks(RIVER)
    (indexed,) = again(before, exchange(codec).index(before))
    broken = {**indexed.metadata, SPAN: damage(indexed.metadata[SPAN])}  # type: ignore[operator]
    with pytest.warns(StaleSpanWarning, match="cuts long metadata"):
        (item,) = exchange(codec).swap([Chunk(RIVER, broken, "x")])
    assert item.record[REASON] == "damaged span"
    assert codec.vocabulary.parse(item.text) == codec.compress(RIVER, ratio=8).symbols


def test_a_stored_span_of_another_codec_is_replaced_with_a_warning() -> None:
    old, new = ByteCodec(name="old"), ByteCodec(name="new")
    before = chunks(RIVER)
    indexed = again(before, exchange(old).index(before))
    with pytest.warns(StaleSpanWarning, match=f"codec {old.vocabulary.tag}"):
        (item,) = exchange(new).swap(indexed)
    assert item.record[CODEC] == new.codec
    assert new.vocabulary.parse(item.text) == new.compress(RIVER, ratio=8).symbols


def test_a_text_already_exchanged_by_another_codec_is_refused() -> None:
    old, new = ByteCodec(name="old"), ByteCodec(name="new")
    before = chunks(RIVER)
    swapped = again(before, exchange(old).swap(before))
    with pytest.raises(CodecMismatchError, match="piece 0 was already exchanged"):
        exchange(new).swap(swapped)


def test_a_text_already_exchanged_by_another_codec_comes_back_where_it_was_kept() -> None:
    old, new = ByteCodec(name="old"), ByteCodec(name="new")
    before = chunks(RIVER)
    swapped = again(before, exchange(old, keep_text=True).swap(before))
    assert swapped[0].metadata[TEXT] == RIVER
    with pytest.warns(StaleSpanWarning):
        (item,) = exchange(new).swap(swapped)
    assert new.vocabulary.parse(item.text) == new.compress(RIVER, ratio=8).symbols


def test_text_that_spells_symbols_is_refused_and_the_message_names_the_ways_out() -> None:
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress("secret").symbols)
    with pytest.raises(SymbolCollisionError, match=r"piece 0 .*escape.*drop.*keep"):
        exchange(codec).swap(chunks(f"{RIVER} {spelled}"))
    with pytest.raises(SymbolCollisionError):
        exchange(codec).swap(chunks(f"x {spelled}"))  # short texts reach the prompt as well


@pytest.mark.parametrize("policy", ["escape", "drop"])
def test_text_that_spells_symbols_can_be_made_harmless_and_is_still_swapped(policy: str) -> None:
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress("secret").symbols)
    text = f"{RIVER} {spelled}"
    safe = codec.vocabulary.guard(text, on_symbols=policy)  # type: ignore[arg-type]
    before = chunks(text, f"x {spelled}")
    engine = exchange(codec, on_symbols=policy, min_tokens=128)
    indexed = engine.index(before)
    assert [item.text for item in indexed] == [chunk.text for chunk in before]
    long, short = engine.swap(again(before, indexed))
    assert long.record[ACTION] == "swapped"
    assert codec.vocabulary.parse(long.text) == codec.compress(safe, ratio=8).symbols
    assert short.text == codec.vocabulary.guard(before[1].text, on_symbols=policy)  # type: ignore[arg-type]


def test_symbols_whose_metadata_was_lost_pass_where_they_are_trusted() -> None:
    codec, other = ByteCodec(), ByteCodec(name="other")
    rendered = codec.vocabulary.render(codec.compress(RIVER).symbols)
    (item,) = exchange(codec, on_symbols="keep").swap(chunks(rendered))
    assert item.text == rendered
    with pytest.raises(CodecMismatchError):
        exchange(other, on_symbols="keep").swap(chunks(rendered))
    with pytest.raises(VocabularyError):
        exchange(codec, on_symbols="keep").swap(chunks(rendered[:-3]))


def test_symbols_smuggled_beside_a_genuine_span_are_refused() -> None:
    codec = ByteCodec()
    before = chunks(RIVER)
    (swapped,) = again(before, exchange(codec).swap(before))
    forged = codec.vocabulary.render(codec.compress(TOWER).symbols)
    with pytest.raises(SymbolCollisionError):
        exchange(codec).swap([Chunk(forged, swapped.metadata, "x")])


def test_a_lone_surrogate_is_refused_by_name() -> None:
    with pytest.raises(VocabularyError, match=r"piece 0: .*surrogate"):
        exchange(ByteCodec()).swap(chunks("bad \ud800 text " * 9))


@given(st.integers(min_value=4, max_value=200), st.booleans())
def test_a_budget_holds_for_the_whole_list(budget: int, indexed: bool) -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS, SHORT, TEXTS[0])
    if indexed:
        before = again(
            before,
            exchange(codec).index(before[:2]) + [Exchanged(chunk.text, {}) for chunk in before[2:]],
        )
    result = exchange(codec, ratio=None, max_symbols=budget).swap(before)
    assert sum(int(item.record.get(N_SYMBOLS, 0)) for item in result) <= budget
    assert all(item.record[N_SYMBOLS] for item in result if item.record[ACTION] != "raw")


def test_a_budget_uses_stored_spans_as_long_as_they_fit() -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS)
    indexed = exchange(codec).index(before)
    total = sum(int(item.record[N_SYMBOLS]) for item in indexed)
    ready = again(before, indexed)
    enough = exchange(codec, ratio=None, max_symbols=total).swap(ready)
    assert [item.record[ACTION] for item in enough] == ["swapped"] * 3
    less = exchange(codec, ratio=None, max_symbols=total // 2).swap(ready)
    assert "compressed" in [item.record[ACTION] for item in less]


def test_a_budget_below_one_symbol_each_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_symbols=2 is too few for 3 chunks"):
        exchange(ByteCodec(), ratio=None, max_symbols=2).swap(chunks(*TEXTS))


def positions(codec: ByteCodec, text: str) -> int:
    return codec.count(codec.vocabulary.split(text))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*TEXTS, SHORT, "", "é" * 200]),
            st.none() | st.floats(-1, 1),
            st.sampled_from(["as it is", "indexed", "swapped"]),
        ),
        max_size=6,
    ),
    st.integers(1, 700),
    st.sampled_from([None, 0.7, 1.0]),
)
def test_a_budget_of_positions_is_never_exceeded_whatever_the_chunks_are(
    given: list[tuple[str, float | None, str]], cap: int, floor: float | None
) -> None:
    codec = ByteCodec(depth=4)
    before: list[Chunk] = []
    for at, (text, score, state) in enumerate(given):
        chunk = Chunk(text, {}, f"piece {at}", score)
        if state != "as it is":
            done = getattr(exchange(codec), "index" if state == "indexed" else "swap")([chunk])
            chunk = Chunk(done[0].text, done[0].record, chunk.label, score)
        before.append(chunk)
    settings = {"ratio": None, "max_tokens": cap, "min_accuracy": floor}
    result = exchange(codec, **settings).swap(before)
    assert len(result) == len(before)
    assert sum(positions(codec, item.text) for item in result) <= cap
    for chunk, item in zip(before, result, strict=True):
        assert (item.text == "") == (item.record[ACTION] == "dropped" or chunk.text == "")
        if floor and item.record.get(ACTION) == "compressed" and item.text != chunk.text:
            assert item.record[ACCURACY] >= floor  # type: ignore[operator]


def test_a_budget_of_positions_goes_to_the_best_chunks_first() -> None:
    codec = ByteCodec()
    n = len(BREAD)
    scored = [Chunk(BREAD, {}, str(score), score) for score in (0.1, 0.9, 0.3)]
    cap = n + n // 4 + n // 8
    worst, best, middle = exchange(codec, ratio=None, max_tokens=cap).swap(scored)
    assert (best.text, best.record[REASON]) == (BREAD, "fits")
    assert best.record[ACTION] == "raw"
    assert 0 < int(worst.record[N_SYMBOLS]) < int(middle.record[N_SYMBOLS])
    unscored = [Chunk(BREAD, {}, str(at)) for at in range(3)]
    first, _, last = exchange(codec, ratio=None, max_tokens=n // 16).swap(unscored)
    assert first.record[N_SYMBOLS] == n // 16
    assert (last.text, last.record) == ("", {ACTION: "dropped", N_TOKENS: n})


def test_a_budget_of_positions_uses_stored_spans_and_runs_no_model_for_finer_ones() -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS)
    ready = again(before, exchange(codec).index(before))
    total = sum(stored_span(chunk.metadata).n_symbols for chunk in ready)  # type: ignore[union-attr]
    codec.calls.clear()
    result = exchange(codec, ratio=None, max_tokens=total).swap(ready)
    assert [item.record[ACTION] for item in result] == ["swapped"] * 3
    assert codec.calls == []


def test_a_ratio_is_the_lowest_that_a_budget_of_positions_plans_at() -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS)
    for ratio in (2.0, 6.0, 20.0):
        settings = {"ratio": ratio, "max_tokens": 170}
        for item in exchange(codec, **settings).swap(before):
            if item.record[ACTION] == "compressed":
                assert item.document is not None
                assert item.document.ratio >= ratio


def test_a_budget_of_positions_leaves_the_index_alone() -> None:
    codec = ByteCodec()
    before = chunks(*TEXTS)
    plain = exchange(codec).index(before)
    assert exchange(codec, max_tokens=1).index(before) == plain


def test_a_span_too_inaccurate_for_its_place_is_planned_again() -> None:
    codec = ByteCodec(depth=4)
    # Ratio 8 and more read back half of it at most: text or nothing, and ratio 2 or 4 for the rest.
    given = [Chunk(text, {}, text[:9], 1.0 / (1 + at)) for at, text in enumerate(TEXTS)]
    result = exchange(codec, ratio=None, max_tokens=200, min_accuracy=0.9).swap(given)
    assert sum(positions(codec, item.text) for item in result) <= 200
    assert {item.record[ACTION] for item in result} <= {"raw", "compressed", "dropped"}
    assert any(item.text for item in result)


def test_what_reads_back_too_badly_stays_text_and_says_so() -> None:
    codec = ByteCodec(depth=4)
    (good,) = exchange(codec, ratio=4, min_accuracy=0.9).swap(chunks(RIVER))
    (bad,) = exchange(codec, ratio=16, min_accuracy=0.9).swap(chunks(RIVER))
    assert good.record[ACTION] == "compressed"
    assert (bad.text, bad.record[REASON]) == (RIVER, "low accuracy")


def test_a_floor_has_fresh_chunks_measured_under_the_settings_in_force() -> None:
    """ZCompressor measures only what it is asked to: without that every chunk would stay text."""
    codec = ByteCodec(depth=4, ratio=2)
    exchange(codec, ratio=None, min_accuracy=0.9).swap(chunks(RIVER))
    exchange(codec, compress=CompressSettings(exact=True), min_accuracy=0.9).swap(chunks(RIVER))
    exchange(codec, compress=CompressSettings(min_fidelity=0.5), min_accuracy=0.9).index(
        chunks(RIVER)
    )
    used = [call.settings for call in codec.calls if call.method == "compress_many"]
    assert [(s.min_fidelity, s.exact, s.ratio) for s in used] == [
        (0.9, False, 2),
        (0.9, True, 8),
        (0.5, False, 8),
    ]


@pytest.mark.parametrize(
    ("policy", "action"), [("keep", "compressed"), ("raw", "raw"), ("finer", "raw")]
)
def test_the_floor_of_the_settings_holds_unless_they_say_keep(policy: str, action: str) -> None:
    poor = CompressSettings(ratio=16, min_fidelity=0.9, on_low_fidelity=policy)  # type: ignore[arg-type]
    codec = ByteCodec(depth=4)
    (done,) = exchange(codec, ratio=None, compress=poor).swap(chunks(RIVER))
    assert done.record[ACTION] == action
    capped = exchange(codec, ratio=None, compress=poor, max_symbols=9).swap(chunks(RIVER))
    assert capped[0].record[ACTION] == action  # a cap and "finer" do not contradict each other


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.5},
        {"ratio": 4, "max_symbols": 3},
        {"max_symbols": 0, "ratio": None},
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"max_tokens": 100, "max_symbols": 30},
        {"min_tokens": 0},
        {"min_tokens": 2.5},
        {"min_accuracy": 1.5},
        {"on_symbols": "ignore"},
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ExchangeSettings(**settings)  # type: ignore[arg-type]
