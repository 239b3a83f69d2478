"""Numbers, names and addresses: which tokens they are, and that symbols say them first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import tiny_focused, tiny_tokenizer, tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.fragile import fragile_places
from zcontext.gloss import gloss_text
from zcontext.needs import fact_tokens
from zcontext.tokenization import spelled, text_tokenizer

TEXT = (
    "It had rained for a week or more when the boat of Anna came in. Nobody knew why it was so "
    "late, and nobody asked; they had 417 crates to carry, and the road to Lima was under water. "
)
PLAIN = "It had rained for a week or more when the boat came in, and nobody knew why it was late. "
EVERY_BYTE = 257
SMALL = CompressSettings(window=48)


def said(text: str, gloss: str) -> int:
    """Characters of facts that a gloss has, in order."""
    at, found = 0, 0
    for begin, end in fragile_places(text):
        for letter in text[begin:end]:
            place = gloss.find(letter, at)
            if place >= 0:
                at, found = place + 1, found + 1
    return found


@pytest.fixture(scope="module")
def compressor() -> ZCompressor:
    return ZCompressor(tiny_focused(named=True, size=EVERY_BYTE, depth=4))


def test_the_tokens_of_facts_are_those_that_share_a_character_with_them() -> None:
    text = "Anna saw 31 ships at Ålesund, see https://a.no/b"
    tokens = text_tokenizer(tiny_tokenizer()).locate(text, max_tokens=99)
    facts = fact_tokens(text, tokens.starts)
    told = bytes(
        byte for byte, is_fact in zip(text.encode(), facts.tolist(), strict=True) if is_fact
    )
    assert told.decode() == "31Ålesundhttps://a.no/b"
    assert fact_tokens("", []).shape == (0,)
    # A token may reach beyond a fact on both sides.
    assert fact_tokens("at Oslo.", [0, 2, 5]).tolist() == [False, True, True]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_what_tokens_spell_stands_where_it_is_said_to(text: str) -> None:
    ids = text_tokenizer(tiny_tokenizer()).ids(text)
    told, starts = spelled(tiny_tokenizer(), ids)
    assert len(starts) == len(ids)
    assert starts == sorted(starts)
    if text.isascii():
        assert told == text
        assert starts == list(range(len(text)))


@pytest.mark.parametrize("ratio", [8, 12, 16])
def test_symbols_say_facts_first(compressor: ZCompressor, ratio: float) -> None:
    first, plain = (
        compressor.compress(TEXT, settings=SMALL.replace(facts=facts), ratio=ratio)
        for facts in (True, False)
    )
    assert first.n_symbols == plain.n_symbols
    assert said(TEXT, gloss_text(compressor.model, first)) > said(
        TEXT, gloss_text(compressor.model, plain)
    )


def test_a_window_of_facts_gets_more_symbols(
    compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def even(hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.full(tokens.shape[:2], 2.0)

    monkeypatch.setattr(compressor.model.codebook, "surprisal", even)
    text = (
        PLAIN + "Oslo 1912, Bergen 1846, Lima 1535 and 12,418; Narvik 1902, Rome 753, Cork 1185. "
    )
    n_symbols = {}
    for facts in (True, False):
        chosen = CompressSettings(window=88, facts=facts, ratio=8)
        spans = compressor.compress(text, settings=chosen).spans
        n_symbols[facts] = [len(span.symbols) / len(span.tokens) for span in spans]
    assert n_symbols[True][1] > 1.15 * n_symbols[True][0]
    assert n_symbols[True][1] > n_symbols[False][1]


@pytest.mark.parametrize(("protect", "ratio"), [((), 3.6), (("numbers",), 2.9)])
def test_what_can_be_named_whole_is(
    compressor: ZCompressor, protect: tuple[str, ...], ratio: float
) -> None:
    # Four names a symbol and one for each byte: there are hardly more symbols than it takes.
    text = (PLAIN + "Oslo, Bergen, Lima, Narvik, Rome and Cork: 1912, 1846, 1535. ") * 3
    document = compressor.compress(text, settings=SMALL.replace(protect=protect), ratio=ratio)
    for span in document.spans:
        n_free = len(span.tokens) - span.n_literal_tokens
        assert len(span.symbols) >= -(-n_free // 4)


def test_a_text_without_facts_is_written_as_without_them(compressor: ZCompressor) -> None:
    assert not fragile_places(PLAIN)
    one, other = (
        compressor.compress(PLAIN, settings=SMALL.replace(facts=facts)) for facts in (True, False)
    )
    assert one.to_bytes() == other.to_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"max_symbols": 20},
        {"bits_per_symbol": 30.0},
        {"ratio": 4, "context": 8, "memory": 4},
        {"ratio": 4, "protect": ("numbers",)},
        {"ratio": 6, "placement": "anchored"},
        {"ratio": 6, "emphasis": "end"},
        {"ratio": 6, "question": "Whose boat?"},
        {"ratio": 4, "exact": True},
    ],
)
def test_it_goes_with_every_other_setting(
    compressor: ZCompressor, changes: dict[str, object]
) -> None:
    chosen = SMALL.replace(**changes)
    texts = [TEXT, PLAIN, TEXT[:70]]
    alone = [compressor.compress(text, settings=chosen).to_bytes() for text in texts]
    batched = ZCompressor(compressor.model, batch_size=1).compress_many(texts, settings=chosen)
    assert [document.to_bytes() for document in batched] == alone


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_any_text_keeps_its_budget(compressor: ZCompressor, text: str) -> None:
    n = compressor.count_tokens(text)
    document = compressor.compress(text, settings=SMALL.replace(on_symbols="escape"), ratio=4)
    assert document.n_symbols == max(1, n // 4)


def test_a_batch_is_written_as_one_by_one() -> None:
    model = tiny_z(named=True, size=EVERY_BYTE, depth=4)
    texts = [TEXT, PLAIN, TEXT[:90], TEXT[30:]]
    one = ZCompressor(model, batch_size=4)
    alone = [one.compress(text, settings=SMALL, ratio=8).to_bytes() for text in texts]
    together = one.compress_many(texts, settings=SMALL, ratio=8)
    assert [document.to_bytes() for document in together] == alone


@pytest.mark.parametrize("changes", [{"question": "Whose boat?"}, {"emphasis": "end"}])
def test_beside_what_was_asked_for_facts_are_like_other_words(
    compressor: ZCompressor, changes: dict[str, str]
) -> None:
    first, plain = (
        compressor.compress(TEXT, settings=SMALL.replace(facts=facts, **changes), ratio=8)
        for facts in (True, False)
    )
    assert first == plain


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="facts"):
        CompressSettings(facts="numbers")  # type: ignore[arg-type]
