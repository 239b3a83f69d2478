"""Pruned text: verbatim, in order, within its budget, uncut where a cut would tell untruths."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError, SpanError, SymbolCollisionError, VocabularyError
from zcontext.fragile import fragile_places
from zcontext.pruner import ZPruner, budget_of, token_bits
from zcontext.pruning import PrunedText, prune_text
from zcontext.sizes import sizes_of
from zcontext.testing import ByteCodec
from zcontext.tokenization import text_tokenizer

TEXT = (
    "The harbour of Port Elizabeth opened in 1912. It was wide, and it was deep, and it was long. "
    "Ships from New York carried 4,800 tons of coal to https://x.no/a?b=1 each year. "
    "Nobody knows why. The keeper, Anna Lindqvist, wrote `log(x)` in her book every night.\n"
)


def by_words(text: str, budget: int, *, bits: dict[str, float] | None = None, **options: object):
    """Pruned with a token for each character, words of `bits` worth more than others."""
    worth = [1.0] * len(text)
    for word, value in (bits or {}).items():
        for match in re.finditer(re.escape(word), text):
            worth[match.start() : match.end()] = [value] * len(word)
    starts = range(len(text))
    return prune_text(text, starts=starts, bits=worth, budget=budget, count=len, **options)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text(max_size=80) | st.just(TEXT), st.integers(0, 200), st.randoms())
def test_what_is_left_is_verbatim_in_order_and_within_the_budget(text, budget, random) -> None:
    bits = [random.random() * 9 for _ in text]
    found = prune_text(text, starts=range(len(text)), bits=bits, budget=budget, count=len)
    assert len(found.text) == found.n_kept <= max(0, budget)
    left = "".join(text[e.start : e.end] for e in found.kept)
    assert "".join(found.text.split()) == "".join(left.split())
    assert all(a.end < b.start for a, b in zip(found.kept, found.kept[1:], strict=False))
    assert 0 <= found.share <= 1
    assert found.bits == pytest.approx(math.fsum(bits))
    assert found.bits_kept <= found.bits + 1e-6


@pytest.mark.parametrize("budget", range(0, len(TEXT) + 20, 7))
def test_nothing_fragile_is_cut_and_what_is_gone_is_reported(budget: int) -> None:
    found = by_words(TEXT, budget)
    places = fragile_places(TEXT)
    for begin, end in places:
        there = [e for e in found.kept if e.start < end and begin < e.end]
        assert all(e.start <= begin and end <= e.end for e in there)
        assert (TEXT[begin:end] in found.lost) == (TEXT[begin:end] not in found.text)
    assert ("Anna" in found.text) == ("Lindqvist" in found.text)  # one name of two words
    assert ("`log" in found.text) == ("log(x)`" in found.text)


def test_code_that_is_gone_is_reported() -> None:
    text = TEXT + "\n```\narea = 3 * r\n```\n"
    for budget in range(0, len(text) + 20, 20):
        found = by_words(text, budget)
        for code in ("`log(x)`", "area = 3 * r"):
            assert (code in found.lost) == (code not in found.text)


def test_whole_sentences_are_kept_first_by_surprisal_a_token() -> None:
    found = by_words(TEXT, 120, bits={"Nobody knows why.": 9.0})
    assert "Nobody knows why." in found.text
    sentences = {piece.strip() for piece in re.split(r"(?<=[.])\s+", TEXT)}
    kept = re.split(r"(?<=[.])\s+", found.text)
    assert sum(piece in sentences for piece in kept) >= len(kept) - 1


def test_room_that_no_sentence_fits_goes_to_phrases_then_words() -> None:
    text = "The committee met in the old hall, approved the annual budget, and went home early."
    found = by_words(text, 40, bits={"approved the annual budget": 9.0})
    assert "approved the annual budget" in found.text
    word = by_words("extraordinarily " * 20, 33)
    assert word.text == "extraordinarily extraordinarily"


MINUTES = (
    "The committee met in the old hall at Gdansk, approved a budget of 4,800 euros for the year, "
    "and went home. J. R. Lindqvist, who is the keeper, had no questions; a vote was not held. "
    "1. Coal is dear (see p. 7). 2. It is cold in the house, so a stove is to be bought.\n"
    "Nobody else said a word in all that time, as is usual in a town of that size.\n"
)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 90), st.randoms())
def test_no_stray_word_or_letter_is_left(budget: int, random) -> None:
    """What fills the last room is a run of words or stands beside what is kept."""
    starts = [match.start() for match in re.finditer(r"\w+|[^\w\s]", MINUTES)]
    bits = [random.random() * 9 for _ in starts]
    found = prune_text(MINUTES, starts=starts, bits=bits, budget=budget, count=lambda text: 0)
    for extent in found.kept:
        piece = MINUTES[extent.start : extent.end]
        n_words = sum(any(map(str.isalnum, word)) for word in piece.split())
        assert n_words >= 3 or len(found.kept) == 1, (piece, found.text)
    assert found.text


def test_letters_with_a_dot_and_numbers_of_lists_are_no_sentences() -> None:
    text = "J. R. Lindqvist kept a book. 12. Coal is dear, e.g. in winter. Cold was the U.S. then."
    for n in range(30, len(text)):
        worth = {"J. R.": 9.0, "12.": 9.0, "e.g.": 9.0, "then.": 9.0}
        kept = {text[e.start : e.end].strip() for e in by_words(text, n, bits=worth).kept}
        assert not kept & {"J.", "R.", "J. R.", "12.", "e.g.", "U.S.", "then."}
    lines = by_words("|---|---|\nThe price of coal rose.\n", 25, bits={"|---|---|": 9.0})
    assert lines.text == "The price of coal rose."


def test_a_script_without_spaces_is_cut_between_characters() -> None:
    text = "天地玄黃宇宙洪荒日月盈昃辰宿列張"
    found = by_words(text, 6, bits={"日月盈昃": 9.0})
    assert len(found.text) == 6
    assert "日月盈昃" in found.text
    assert found.text in text


def test_a_pattern_that_ends_inside_a_word_or_number_keeps_it_whole() -> None:
    text = "It says that the lease ART-1993 ends, and that ART-2001 does not end for a while yet."
    found = by_words(text, 24, protect=("re:ART-[0-9]",))
    assert {"ART-1993", "ART-2001"} <= set(found.text.split())
    assert "ART-1993" not in found.lost


def test_protected_text_is_kept_before_anything_else() -> None:
    text = f"{TEXT}\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert "|---|" not in by_words(text, 60).text
    assert "| a | b |\n|---|---|\n| 1 | 2 |" in by_words(text, 60, protect=("tables",)).text


def test_text_that_fits_is_left_as_it_is() -> None:
    found = by_words(TEXT, len(TEXT))
    assert (found.text, found.share, found.lost, found.ratio) == (TEXT, 1.0, (), 1.0)
    empty = by_words("", 0)
    assert (empty.text, empty.share, empty.ratio) == ("", 1.0, 1.0)


def test_more_left_than_there_was_is_refused() -> None:
    with pytest.raises(SpanError, match="pruning keeps at most"):
        PrunedText("x", n_tokens=1, n_kept=2, bits=1.0, bits_kept=1.0)


# -- by a model -------------------------------------------------------------------------------


def test_the_surprisal_is_that_of_the_plain_base(tiny_model) -> None:
    ids = text_tokenizer(tiny_model.tokenizer).ids(TEXT)
    found = token_bits(tiny_model, ids)
    stream = torch.tensor([[tiny_model.start_token, *ids]])
    with tiny_model.using(None), torch.no_grad():
        scores = tiny_model.base.model(stream).logits[0, :-1].float()
    nats = torch.nn.functional.cross_entropy(scores, torch.tensor(ids), reduction="none")
    assert found == pytest.approx((nats / math.log(2)).tolist(), abs=1e-3)
    assert token_bits(tiny_model, []) == []


def test_long_texts_are_read_in_windows_with_what_precedes(tiny_model, monkeypatch) -> None:
    ids = text_tokenizer(tiny_model.tokenizer).ids(TEXT)
    whole = token_bits(tiny_model, ids)
    monkeypatch.setattr("zcontext.pruner.WINDOW", 64)
    parts = token_bits(tiny_model, ids)
    assert len(parts) == len(whole)
    assert parts[:64] == pytest.approx(whole[:64], abs=1e-3)


def test_a_pruner_keeps_to_the_budgets_of_a_compressor(tiny_model) -> None:
    pruner = ZPruner(tiny_model)
    n = pruner.count_tokens(TEXT)
    for asked, most in (({"ratio": 4}, n // 4), ({"max_symbols": 50}, 50), ({}, n // 4)):
        found = pruner.prune(TEXT, **asked)
        assert 0 < found.n_kept <= most
        assert found.n_kept == pruner.count_tokens(found.text)
    bits = budget_of(CompressSettings(bits_per_symbol=16), n_tokens=100, bits=800.0)
    assert bits == 50
    assert pruner.prune("").text == ""
    assert pruner.prune_many([TEXT, ""]) == [pruner.prune(TEXT), pruner.prune("")]


def test_a_pruner_refuses_what_a_compressor_refuses(tiny_model) -> None:
    pruner = ZPruner(tiny_model)
    with pytest.raises(VocabularyError):
        pruner.prune(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(VocabularyError):
        pruner.prune("\ud800")
    with pytest.raises(SymbolCollisionError):
        pruner.prune("see [|z3f9a:0C7V|]")
    with pytest.raises(ConfigError, match="max_tokens"):
        pruner.prune(TEXT, settings=CompressSettings(max_tokens=9))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.floats(1, 64))
def test_any_text_is_pruned(tiny_model, text: str, ratio: float) -> None:
    text = tiny_model.vocabulary.guard(text, on_symbols="drop")
    for pruner in (ZPruner(tiny_model), ByteCodec()):
        (found,) = pruner.prune_many([text], settings=CompressSettings(ratio=ratio))
        assert found.n_kept <= max(1, math.ceil(found.n_tokens / ratio))
        json.dumps(found.lost)


# -- sizes ------------------------------------------------------------------------------------


def test_sizes_are_told_beside_gzip_zstd_and_the_model() -> None:
    codec = ByteCodec()
    text = TEXT * 4
    document = codec.compress(text, settings=CompressSettings(exact=True, ratio=16))
    found = sizes_of(document, text, token_bits=[2.5] * 100)
    assert found.total_bits == document.total_bits == found.bits + found.errata_bits
    assert (found.utf8_bits, found.model_bits) == (8 * len(text.encode()), 250)
    assert found.gzip_bits < found.utf8_bits
    assert found.zstd_bits is None or found.zstd_bits < found.utf8_bits
    assert "gzip" in str(found)
    both = found + sizes_of(document, text)
    assert (both.total_bits, both.model_bits) == (2 * found.total_bits, None)


def test_zstd_is_left_out_where_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    codec = ByteCodec()
    found = sizes_of(codec.compress("abc"), "abc")
    assert found.zstd_bits is None
    assert "zstd" not in str(found)
