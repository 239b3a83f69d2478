"""Law Z: documents partition their text, round-trip in every stored form, and never rot unseen."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.errors import CorruptSpanError, SpanError
from zcontext.spans import Answer, ChatMessage, Fidelity, ZDocument, ZSpan
from zcontext.vocabulary import Symbols
from zcontext.windows import Extent

DIGEST = "3f9a" + "0" * 60
FORMS = [
    (ZDocument.to_dict, ZDocument.from_dict),
    (ZDocument.to_json, ZDocument.from_json),
    (ZDocument.to_bytes, ZDocument.from_bytes),
    (ZDocument.to_compact, ZDocument.from_compact),
]
FIDELITIES = st.builds(
    Fidelity,
    st.floats(0, 1),
    st.floats(0, 1e9),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple),
)


@st.composite
def documents(draw: st.DrawFn) -> ZDocument:
    size = draw(st.sampled_from([2, 256, 1000, 1024, 32_768, 65_536]))
    depth = draw(st.integers(1, 8))
    code = st.tuples(*[st.integers(0, size - 1)] * depth)
    spans: list[ZSpan] = []
    token = char = 0
    for _ in range(draw(st.integers(0, 4))):
        n_tokens, n_chars = draw(st.integers(1, 300)), draw(st.integers(0, 300))
        symbols = Symbols(tuple(draw(st.lists(code, max_size=5))), size, "3f9a")
        tokens, chars = Extent(token, token + n_tokens), Extent(char, char + n_chars)
        measured = draw(st.none() | FIDELITIES)
        spans.append(ZSpan(symbols, tokens, chars, draw(st.binary(max_size=9)), measured))
        token, char = token + n_tokens, char + n_chars
    return ZDocument(
        spans=tuple(spans),
        codec=DIGEST,
        n_tokens=token,
        n_chars=char,
        n_bytes=draw(st.integers(char, 4 * char)),
        text_sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        depth=depth,
        size=size,
        memory=draw(st.integers(0, 500)),
    )


def a_document(**changes: Any) -> ZDocument:
    symbols = Symbols(((1, 2), (3, 4)), 1024, "3f9a")
    fields: dict[str, Any] = {
        "spans": (
            ZSpan(symbols, Extent(0, 8), Extent(0, 30), b"\0\1", Fidelity(0.5, 12.0, ("Anna",))),
            ZSpan(symbols, Extent(8, 10), Extent(30, 40)),
        ),
        "codec": DIGEST,
        "n_tokens": 10,
        "n_chars": 40,
        "n_bytes": 44,
        "text_sha256": "ab" * 32,
        "depth": 2,
        "size": 1024,
    }
    return ZDocument(**{**fields, **changes})


@given(documents())
def test_every_stored_form_round_trips(document: ZDocument) -> None:
    for write, read in FORMS:
        assert read(write(document)) == document  # type: ignore[operator]


@given(documents())
def test_every_stored_form_is_the_same_each_time(document: ZDocument) -> None:
    again = dataclasses.replace(document)
    for write, _ in FORMS:
        assert write(document) == write(again)  # type: ignore[operator]


@given(documents())
def test_a_document_is_the_sum_of_its_spans(document: ZDocument) -> None:
    assert (
        len(document.symbols) == document.n_symbols == sum(len(s.symbols) for s in document.spans)
    )
    assert document.bits == document.symbols.bits or document.size & (document.size - 1)
    assert document.n_errata_bytes == sum(len(s.errata) for s in document.spans)
    if document.n_symbols:
        assert document.ratio == document.n_tokens / document.n_symbols


@given(documents(), st.data())
def test_one_changed_bit_is_always_seen(document: ZDocument, data: st.DataObject) -> None:
    packed = bytearray(document.to_bytes())
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptSpanError):
        ZDocument.from_bytes(bytes(packed))


@given(documents(), st.data())
def test_a_cut_document_is_always_seen(document: ZDocument, data: st.DataObject) -> None:
    for write, read in FORMS[1:]:
        whole: Any = write(document)
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        with pytest.raises(CorruptSpanError):
            read(cut)  # type: ignore[arg-type]


@given(st.binary(max_size=200), st.text(max_size=60))
def test_noise_is_refused_and_nothing_else_happens(data: bytes, text: str) -> None:
    for read, noise in [
        (ZDocument.from_bytes, data),
        (ZDocument.from_bytes, b"ZDOC\x01" + data),
        (ZDocument.from_compact, text),
        (ZDocument.from_compact, "zdoc1." + text),
        (ZDocument.from_json, text),
        (ZDocument.from_json, data),
    ]:
        with pytest.raises(CorruptSpanError):
            read(noise)  # type: ignore[operator]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a nested JSON value."""
    if isinstance(value, dict):
        return [path, *(p for k, v in value.items() for p in leaves(v, (*path, k)))]
    if isinstance(value, list):
        return [path, *(p for k, v in enumerate(value) for p in leaves(v, (*path, k)))]
    return [path]


PATHS = [path for path in leaves(a_document().to_dict()) if path]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("wrong", [None, "x", -1, 1.5, [], {}, True, [[99]]], ids=repr)
def test_any_changed_value_in_json_is_seen(path: tuple[Any, ...], wrong: Any) -> None:
    data = json.loads(a_document().to_json())
    place = data
    for step in path[:-1]:
        place = place[step]
    if place[path[-1]] == wrong and type(place[path[-1]]) is type(wrong):
        return  # that is the right value
    place[path[-1]] = wrong
    with pytest.raises(CorruptSpanError):
        ZDocument.from_json(json.dumps(data))


@pytest.mark.parametrize("key", sorted(a_document().to_dict()))
def test_a_missing_or_unknown_key_in_json_is_seen(key: str) -> None:
    data = a_document().to_dict()
    with pytest.raises(CorruptSpanError):
        ZDocument.from_dict({**data, "extra": 1})
    del data[key]
    with pytest.raises(CorruptSpanError, match="compress the source text again"):
        ZDocument.from_dict(data)


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "{}", "[" * 100_000, "NaN", ""])
def test_json_that_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(CorruptSpanError):
        ZDocument.from_json(text)


def test_another_schema_version_is_refused_by_name() -> None:
    with pytest.raises(CorruptSpanError, match="schema 3 is none of"):
        ZDocument.from_dict({**a_document().to_dict(), "schema": 3})


def test_the_empty_text_is_an_empty_document() -> None:
    empty = a_document(spans=(), n_tokens=0, n_chars=0, n_bytes=0)
    assert (empty.n_symbols, empty.ratio, empty.bits, len(empty.symbols)) == (0, 1.0, 0, 0)
    assert ZDocument.from_compact(empty.to_compact()) == empty


def test_a_document_all_in_errata_has_an_infinite_ratio() -> None:
    span = ZSpan(Symbols((), 1024, "3f9a"), Extent(0, 10), Extent(0, 40), b"all of it")
    assert a_document(spans=(span,)).ratio == math.inf


def test_the_compact_form_is_short_flat_ascii() -> None:
    text = a_document().to_compact()
    assert text.isascii()
    assert text.startswith("zdoc1.")
    assert not set(text) & set(" \n\"'\\<>&{}=+/")
    assert len(text) < 190


FIRST, SECOND = a_document().spans


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spans": (FIRST,)}, "the spans end at token 8"),
        ({"spans": (SECOND, FIRST)}, "span 0 starts at token 8"),
        ({"spans": (FIRST, FIRST)}, "span 1 starts at token 0"),
        ({"spans": [FIRST, SECOND]}, "tuple of ZSpan"),
        ({"spans": ("x",)}, "not a ZSpan"),
        ({"n_tokens": 11}, "the text has 11 tokens"),
        ({"n_chars": 39, "n_bytes": 39}, "the text has"),
        ({"n_bytes": 39}, "cannot be 39 bytes"),
        ({"n_bytes": 161}, "cannot be 161 bytes"),
        ({"n_tokens": -1}, "n_tokens=-1"),
        ({"n_tokens": 10.0}, "n_tokens=10.0"),
        ({"memory": -1}, "memory=-1"),
        ({"codec": "3f9a"}, "codec='3f9a'"),
        ({"codec": "beef" + "0" * 60}, "of codec 3f9a"),
        ({"text_sha256": None}, "text_sha256=None"),
        ({"depth": 3}, "span 0 has depth 2"),
        ({"depth": 0}, "depth=0"),
        ({"size": 512}, "size 1024"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(SpanError, match=match):
        a_document(**changes)


def test_a_span_that_covers_nothing_or_holds_the_wrong_things_is_refused() -> None:
    with pytest.raises(SpanError, match="covers no token"):
        ZSpan(FIRST.symbols, Extent(3, 3), Extent(3, 3))
    with pytest.raises(SpanError, match="takes Symbols"):
        ZSpan(FIRST.symbols, Extent(0, 3), Extent(0, 3), errata="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accuracy", "bits", "lost"),
    [(1.1, 0, ()), (-0.1, 0, ()), (math.nan, 0, ()), (1, -1, ()), (1, math.inf, ()), (1, 0, [])],
)
def test_a_fidelity_out_of_range_is_refused(accuracy: float, bits: float, lost: Any) -> None:
    with pytest.raises(SpanError):
        Fidelity(accuracy, bits, lost)


def test_answers_and_messages_are_checked() -> None:
    with pytest.raises(SpanError, match="end, length, stop"):
        Answer("", "done", 0, 0, 0, 0.0)  # type: ignore[arg-type]
    with pytest.raises(SpanError, match="n_output_tokens"):
        Answer("", "end", 0, 0, -1, 0.0)
    for role, parts in [("", ()), ("user", ["x"]), ("user", (b"x",))]:
        with pytest.raises(SpanError):
            ChatMessage(role, parts)  # type: ignore[arg-type]
    assert ChatMessage("user", ("see", FIRST.symbols)).parts[1] == FIRST.symbols


def test_fifty_thousand_deep_symbols_round_trip_in_about_a_second() -> None:
    codes = tuple(
        tuple((k * p) % 1024 for p in (1, 3, 5, 7, 11, 13, 17, 19)) for k in range(50_000)
    )
    spans = tuple(
        ZSpan(
            Symbols(codes[k : k + 50], 1024, "3f9a"),
            Extent(4 * k, 4 * k + 200),
            Extent(16 * k, 16 * k + 800),
        )
        for k in range(0, 50_000, 50)
    )
    counts = {"n_tokens": 200_000, "n_chars": 800_000, "n_bytes": 800_000}
    document = a_document(spans=spans, depth=8, **counts)
    started = time.perf_counter()
    assert ZDocument.from_json(document.to_json()) == document
    assert ZDocument.from_compact(document.to_compact()) == document
    assert time.perf_counter() - started < 15.0  # 0.6 s alone on one core
