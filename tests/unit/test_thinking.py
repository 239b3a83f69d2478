"""Thinking in Z: what is drafted, when it becomes symbols, what stands where. Untrained models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny import tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings, GenerationSettings
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    SymbolCollisionError,
)
from zcontext.generation import Prefill, generate
from zcontext.layouts import embed_pieces
from zcontext.model import ZLanguageModel
from zcontext.prompts import encode_messages, n_positions, question_parts
from zcontext.readers import Inferencer, ZDecompressor
from zcontext.spans import ChatMessage, ZDocument
from zcontext.thinking import Thinker, ThinkSettings, _Draft
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import Symbols

ASKED = [ChatMessage("user", ("Where does the river end?",))]
DRAWN = GenerationSettings(max_new_tokens=40, temperature=1.5, seed=3)
WHOLE = ThinkSettings(block=1000, recent=0)


@pytest.fixture(scope="module")
def named() -> ZLanguageModel:
    """A codec that names every byte, eight in a symbol."""
    return tiny_z(depth=8, size=257, named=True)


def thinker(model: ZLanguageModel, **how: Any) -> Thinker:
    return Thinker(
        ZCompressor(model), settings=ThinkSettings(**how), writing=CompressSettings(ratio=4)
    )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are compressed."""
    texts: list[str] = []
    compress = ZCompressor.compress

    def watched(self: ZCompressor, text: str, **how: Any) -> ZDocument:
        texts.append(text)
        return compress(self, text, **how)

    monkeypatch.setattr(ZCompressor, "compress", watched)
    return texts


@pytest.mark.parametrize("how", [GenerationSettings(max_new_tokens=20), DRAWN])
def test_a_draft_that_is_never_written_meanwhile_is_the_answer_in_text(
    tiny_model: ZLanguageModel, written: list[str], how: GenerationSettings
) -> None:
    answer = Inferencer(tiny_model).chat(ASKED, settings=how)
    thought = Thinker(ZCompressor(tiny_model), settings=WHOLE).think(ASKED, settings=how)
    assert written == [answer.text]
    assert (thought.stop_reason, thought.n_tokens) == (answer.stop_reason, answer.n_output_tokens)
    assert len(thought.documents) == 1


def test_a_thought_is_documents_and_their_text(tiny_model: ZLanguageModel) -> None:
    thought = thinker(tiny_model, block=8, recent=4).think(ASKED, settings=DRAWN)
    assert len(thought.documents) > 2
    assert thought.text == "".join(ZDecompressor(tiny_model).decompress_many(thought.documents))
    assert {document.codec for document in thought.documents} == {tiny_model.codec}
    assert thought.n_symbols == sum(map(len, thought.parts))
    assert tiny_model.adapters.role is None


def test_where_codes_name_all_the_symbols_say_what_was_drafted(
    named: ZLanguageModel, written: list[str]
) -> None:
    thought = thinker(named, block=8, recent=4).think(ASKED, settings=DRAWN)
    assert named.codebook.lexicon is not None
    codes = [code for document in thought.documents for code in document.symbols.codes]
    ids = text_tokenizer(named.tokenizer).ids
    assert named.codebook.lexicon.tokens_of(codes) == [t for text in written for t in ids(text)]


def test_the_same_prompt_and_seed_give_the_same_thought(tiny_model: ZLanguageModel) -> None:
    one, other = (
        thinker(tiny_model, block=8, recent=2).think(ASKED, settings=DRAWN) for _ in range(2)
    )
    assert one.documents == other.documents


@pytest.mark.parametrize(("block", "recent"), [(1, 0), (6, 0), (6, 3), (5, 9)])
def test_what_follows_is_drafted_with_symbols_in_the_place_of_their_text(
    named: ZLanguageModel, monkeypatch: pytest.MonkeyPatch, block: int, recent: int
) -> None:
    """Against a slow twin that reads prompt, symbols and what is left of the draft anew."""
    prompt = encode_messages(named.tokenizer, ASKED)
    steps: list[tuple[list[tuple[int, ...]], list[int], int]] = []
    codes: list[tuple[int, ...]] = []
    taken: list[int] = []
    take, compress = _Draft.take, ZCompressor.compress

    def watched_take(self: _Draft, token: int, text: str) -> None:
        steps.append((list(codes), list(self.ids), token))
        taken.append(token)
        take(self, token, text)

    def watched_compress(self: ZCompressor, text: str, **how: Any) -> ZDocument:
        document = compress(self, text, **how)
        codes.extend(document.symbols.codes)
        return document

    monkeypatch.setattr(_Draft, "take", watched_take)
    monkeypatch.setattr(ZCompressor, "compress", watched_compress)
    short = GenerationSettings(max_new_tokens=24)
    thinker(named, block=block, recent=recent).think(ASKED, settings=short)
    assert len({len(before) for before, _, _ in steps}) > 2
    for before, open_ids, token in steps:
        held = Symbols(tuple(before), named.vocabulary.size, named.vocabulary.tag)
        pieces = [*prompt, *([held] if before else []), *([open_ids] if open_ids else [])]
        n = n_positions(pieces)
        row = Prefill(embed_pieces(named, pieces), torch.arange(n), n, 2)
        (made,) = generate(named, "infer", [row], settings=GenerationSettings(max_new_tokens=2))
        assert made.ids[:1] == (token,)


@pytest.mark.parametrize(("block", "recent"), [(4, 0), (8, 4), (16, 8)])
def test_no_more_text_is_held_than_was_allowed(
    named: ZLanguageModel, block: int, recent: int
) -> None:
    long = GenerationSettings(max_new_tokens=80, temperature=1.0)
    thought = thinker(named, block=block, recent=recent).think(ASKED, settings=long)
    assert thought.n_peak_positions <= thought.n_symbols + block + recent
    assert thought.n_peak_positions < thought.n_tokens


def test_it_ends_with_the_end_token_a_stop_string_or_the_length(
    named: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text_tokenizer(named.tokenizer).ids("To the sea. And then?\n")
    said = [*ids, named.end_token]
    calls: list[int] = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(*hidden.shape[:-1], named.base_vocab)
        scores[..., said[len(calls) % len(said)]] = 50.0
        calls.append(1)
        return scores

    monkeypatch.setattr(named, "logits", logits)
    monkeypatch.setattr(
        ZDecompressor,
        "decompress_many",
        lambda self, documents: [
            named.tokenizer.decode(
                named.codebook.lexicon.tokens_of(document.symbols.codes)  # type: ignore[union-attr]
            )
            for document in documents
        ],
    )
    for how, text, reason in (
        ({}, "To the sea. And then?\n", "end"),
        ({"stop": (" And", "\n")}, "To the sea.", "stop"),
        ({"stop": ("?",)}, "To the sea. And then", "stop"),
        ({"max_new_tokens": 6}, "To the", "length"),
    ):
        calls.clear()
        settings = GenerationSettings(**how)  # type: ignore[arg-type]
        thought = thinker(named, block=6, recent=6).think(ASKED, settings=settings)
        assert (thought.text, thought.stop_reason) == (text, reason)


def test_an_end_at_once_is_an_empty_thought(
    tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.zeros(tiny_model.base_vocab)
    scores[tiny_model.end_token] = 50.0
    monkeypatch.setattr(tiny_model, "logits", lambda hidden: scores.expand(*hidden.shape[:-1], -1))
    thought = thinker(tiny_model).think(ASKED)
    assert (thought.documents, thought.parts, thought.text) == ((), (), "")
    assert (thought.stop_reason, thought.n_tokens, thought.n_peak_positions) == ("end", 1, 0)


def test_a_thought_goes_into_the_next_prompt(named: ZLanguageModel) -> None:
    thought = thinker(named, block=8, recent=0).think(ASKED, settings=DRAWN)
    messages = [*ASKED, ChatMessage("assistant", thought.parts), ChatMessage("user", ("Why?",))]
    again = thinker(named).think(messages, settings=GenerationSettings(max_new_tokens=4))
    without = [*ASKED, ChatMessage("assistant", ("",)), ChatMessage("user", ("Why?",))]
    plain = n_positions(encode_messages(named.tokenizer, without))
    assert again.n_prompt_positions == plain + thought.n_symbols


def test_what_is_kept_as_text_stands_between_the_symbols(named: ZLanguageModel) -> None:
    compressor = ZCompressor(named)
    kept = CompressSettings(ratio=4, protect=("re:.",))
    thought = Thinker(compressor, settings=ThinkSettings(block=8, recent=0), writing=kept).think(
        ASKED, settings=DRAWN
    )
    assert thought.n_symbols == 0
    assert thought.parts == (thought.text,)
    answer = Inferencer(named).chat(ASKED, settings=DRAWN)
    assert thought.text[:8] == answer.text[:8]


def test_it_thinks_as_far_as_the_base_has_positions(named: ZLanguageModel) -> None:
    long = GenerationSettings(max_new_tokens=10_000)
    n = n_positions(encode_messages(named.tokenizer, [ChatMessage("user", ("",))]))
    prompt = [ChatMessage("user", ("a" * (named.context_length - n - 10),))]
    thought = thinker(named, block=4, recent=2).think(prompt, settings=long)
    assert thought.stop_reason == "length"
    assert thought.n_prompt_positions == named.context_length - 10
    assert 6 <= thought.n_peak_positions <= 10 < thought.n_tokens


@given(
    texts=st.lists(st.sampled_from(["", "a", " b", "\n", "cd"]), min_size=1, max_size=12),
    most=st.integers(0, 14),
)
def test_a_draft_is_parted_where_a_character_ends_and_in_front_of_a_word_if_there_is_one(
    texts: list[str], most: int
) -> None:
    draft = _Draft(list(range(len(texts))), list(texts))
    n = draft.cut(most)
    assert 0 <= n <= min(most, len(texts))
    begins = [k for k in range(1, min(most, len(texts) - 1) + 1) if texts[k][:1].isspace()]
    ends = [k for k in range(1, min(most, len(texts)) + 1) if texts[k - 1]]
    assert n == max(begins or ends, default=0)
    assert draft.part(n) + draft.text == "".join(texts)
    assert draft.ids == list(range(n, len(texts)))


@pytest.mark.parametrize(("field", "value"), [("block", 0), ("block", 1.5), ("recent", -1)])
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ThinkSettings(**{field: value})
    assert caught.value.field == field


def test_what_the_model_cannot_do_is_refused(tiny_model: ZLanguageModel) -> None:
    thinks = thinker(tiny_model)
    with pytest.raises(ContextOverflowError):
        thinks.think([ChatMessage("user", ("a" * 2100,))])
    with pytest.raises(CodecMismatchError):
        thinks.think([ChatMessage("user", (Symbols(((1, 2, 3),), 32, "0000"),))])
    spelled = tiny_model.vocabulary.render(Symbols(((1, 2, 3),), 32, tiny_model.codec[:4]))
    with pytest.raises(SymbolCollisionError):
        thinks.think(question_parts("Where?", [spelled]))
