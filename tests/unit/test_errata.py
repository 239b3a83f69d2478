"""Errata as values: stored in few bytes, read back or refused, and what settings ask of them."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.config import CompressSettings
from zcontext.errata import Edit, Errata, edits_between
from zcontext.errors import ConfigError, CorruptSpanError, SpanError
from zcontext.packing import ByteWriter
from zcontext.profiles import PROFILES, profile
from zcontext.store import store_key
from zcontext.testing import ByteCodec

CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, Errata]:
    n = draw(st.integers(1, 80))
    places = sorted(draw(st.sets(st.integers(0, n - 1))))
    tokens = tuple((place, draw(st.integers(0, 2**31 - 1))) for place in places)
    return n, Errata(tokens, edits_between(draw(CHARACTERS), draw(CHARACTERS)))


@given(spans())
def test_errata_come_back_from_their_bytes(made: tuple[int, Errata]) -> None:
    n_tokens, errata = made
    packed = errata.to_bytes(n_tokens=n_tokens)
    assert packed
    assert Errata.from_bytes(packed, n_tokens=n_tokens) == errata


@given(spans(), st.binary(min_size=1, max_size=12), st.integers(0, 60))
def test_any_other_bytes_are_errata_or_refused(
    made: tuple[int, Errata], noise: bytes, at: int
) -> None:
    n_tokens, errata = made
    packed = errata.to_bytes(n_tokens=n_tokens)
    for data in (b"", noise, packed + noise, packed[:at], packed[:at] + noise + packed[at + 1 :]):
        try:
            read = Errata.from_bytes(data, n_tokens=n_tokens)
        except CorruptSpanError:
            continue
        assert Errata.from_bytes(read.to_bytes(n_tokens=n_tokens), n_tokens=n_tokens) == read


@given(CHARACTERS, CHARACTERS)
def test_edits_turn_one_text_into_the_other(decoded: str, source: str) -> None:
    edits = edits_between(decoded, source)
    assert Errata(edits=edits).apply(decoded) == source
    assert (edits == ()) == (decoded == source)


def test_replaced_characters_are_edited_place_by_place() -> None:
    edits = edits_between("a\ufffd\ufffdb\ufffd" + "c" * 99, "a\x04\x06b\x1d" + "c" * 99)
    assert edits == (Edit(1, 3, "\x04\x06"), Edit(4, 5, "\x1d"))


def test_nothing_to_correct_is_one_byte() -> None:
    assert len(Errata().to_bytes(n_tokens=512)) == 1


def test_errata_are_smaller_than_varints_and_zlib() -> None:
    """300 spans as they come: one token in five wrong, ids by Zipf's law."""
    rng = random.Random(0)
    ours = theirs = 0
    for _ in range(300):
        places = [i for i in range(256) if rng.random() < 0.2]
        tokens = tuple((place, int(49152 ** rng.random())) for place in places)
        ours += len(Errata(tokens).to_bytes(n_tokens=256))
        plain = ByteWriter()
        for (before, _), (place, _) in zip(((0, 0), *tokens), tokens, strict=False):
            plain.varint(place - before)
        for _, token in tokens:
            plain.varint(token)
        theirs += min(len(plain.getvalue()), len(zlib.compress(plain.getvalue(), 9)))
    assert ours < 0.75 * theirs


def test_a_repeated_edit_is_deflated() -> None:
    edits = edits_between("\ufffd" * 400, "\x04" * 400)
    assert len(Errata(edits=edits).to_bytes(n_tokens=400)) < 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: Errata(((3, 1), (3, 2))),
        lambda: Errata(((-1, 1),)),
        lambda: Errata(((0, -1),)),
        lambda: Errata(((0, 2**31),)),
        lambda: Errata(edits=(Edit(2, 4, "a"), Edit(3, 5, "b"))),
        lambda: Edit(2, 1, "a"),
        lambda: Edit(1, 1, ""),
        lambda: Errata(((9, 1),)).to_bytes(n_tokens=9),
    ],
)
def test_errata_out_of_order_or_range_are_refused(make) -> None:
    with pytest.raises(SpanError):
        make()


# -- ByteCodec --------------------------------------------------------------------------------


@given(CHARACTERS, st.sampled_from([1.0, 8.0, 16.0, 64.0]), st.integers(1, 8))
def test_x_byte_codec_gives_any_text_back_and_marks_what_was_asked_for(
    text: str, ratio: float, depth: int
) -> None:
    codec = ByteCodec(depth=depth)
    text = codec.vocabulary.guard(text, on_symbols="drop")
    asked = CompressSettings(ratio=ratio, exact=True)
    document = codec.compress(text, settings=asked)
    assert document.exact
    assert codec.decompress(document) == text
    plain = codec.compress(text, settings=asked.replace(exact=False))
    assert codec.decompress(plain) == text
    assert document.n_errata_bytes == plain.n_errata_bytes + len(plain.spans)


# -- settings ---------------------------------------------------------------------------------


def test_every_profile_is_settings_and_an_unknown_one_is_named() -> None:
    assert {name: profile(name) for name in PROFILES} == PROFILES
    legal = profile("legal")
    assert legal.exact
    assert legal.floor == legal.min_fidelity
    assert profile("default").floor == 0.0
    assert not profile("summary").measures
    with pytest.raises(ConfigError, match="legal, default, summary, sliding, got 'poetry'"):
        profile("poetry")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"min_fidelity": 1.5}, "min_fidelity"),
        ({"exact": 1}, "exact"),
        ({"on_low_fidelity": "cry"}, "on_low_fidelity"),
        ({"on_low_fidelity": "finer", "max_symbols": 4}, "max_symbols"),
    ],
)
def test_settings_of_fidelity_are_checked(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CompressSettings(**changes)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_store_tells_every_setting_of_fidelity_apart() -> None:
    settings = [
        CompressSettings(),
        CompressSettings(exact=True),
        CompressSettings(min_fidelity=0.5),
        CompressSettings(min_fidelity=0.5, on_low_fidelity="raw"),
    ]
    keys = {store_key(codec="0" * 64, settings=chosen, text="a") for chosen in settings}
    assert len(keys) == 4
