"""ByteCodec keeps the laws a real codec must keep: C (same in, same out), X (exact), F, V, Z."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.config import CompressSettings, GenerationSettings
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    SymbolCollisionError,
    VocabularyError,
)
from zcontext.spans import (
    ChatMessage,
    SupportsCompress,
    SupportsDecompress,
    SupportsRead,
    ZDocument,
)
from zcontext.testing import NO_ANSWER, ByteCodec

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)
SETTINGS = st.builds(
    CompressSettings,
    ratio=st.floats(1, 64),
    depth=st.integers(1, 8),
    window=st.integers(16, 60),
    context=st.integers(0, 8),
    on_symbols=st.just("escape"),
)
FACTS = "Anna was born in Paris. Bob lives in Rome! The river Tiber flows there."


def test_bytecodec_is_all_three_protocols() -> None:
    codec = ByteCodec()
    assert isinstance(codec, SupportsCompress)
    assert isinstance(codec, SupportsRead)
    assert isinstance(codec, SupportsDecompress)


def test_a_protocol_refuses_what_lacks_a_method() -> None:
    assert not isinstance(object(), SupportsCompress)


@given(TEXT, SETTINGS)
def test_x_decompression_is_exact_at_any_ratio_and_depth(
    text: str, settings: CompressSettings
) -> None:
    codec = ByteCodec()
    document = codec.compress(text, settings=settings)
    assert codec.decompress(document) == codec.vocabulary.guard(text, on_symbols="escape")


@given(TEXT, SETTINGS)
def test_c_repetition_gives_byte_identical_documents(text: str, settings: CompressSettings) -> None:
    one = ByteCodec().compress(text, settings=settings)
    two = ByteCodec().compress(text, settings=settings)
    assert one.to_bytes() == two.to_bytes()


@given(st.lists(TEXT, max_size=4), SETTINGS)
def test_c_a_batch_equals_one_by_one(texts: list[str], settings: CompressSettings) -> None:
    codec = ByteCodec()
    many = codec.compress_many(texts, settings=settings, progress=True)
    assert many == [codec.compress(text, settings=settings) for text in texts]


@given(TEXT, SETTINGS)
def test_z_documents_round_trip(text: str, settings: CompressSettings) -> None:
    document = ByteCodec().compress(text, settings=settings)
    assert ZDocument.from_json(document.to_json()) == document
    assert ZDocument.from_compact(document.to_compact()) == document


@given(TEXT, SETTINGS)
def test_the_ratio_is_honoured_to_the_symbol(text: str, settings: CompressSettings) -> None:
    document = ByteCodec().compress(text, settings=settings)
    assert settings.ratio is not None
    assert document.n_symbols == math.ceil(document.n_tokens / settings.ratio)


@given(TEXT, st.integers(1, 50))
def test_max_symbols_is_met_exactly(text: str, max_symbols: int) -> None:
    settings = CompressSettings(window=16, on_symbols="escape", max_symbols=max_symbols)
    document = ByteCodec().compress(text, settings=settings)
    assert document.n_symbols == min(max_symbols, document.n_tokens)


@given(TEXT, st.integers(1, 32), st.integers(1, 32))
def test_s_more_budget_never_gives_fewer_symbols(text: str, a: int, b: int) -> None:
    settings = CompressSettings(on_symbols="escape")
    low, high = sorted((a, b))
    codec = ByteCodec()
    generous = codec.compress(text, settings=settings, ratio=float(low))
    tight = codec.compress(text, settings=settings, ratio=float(high))
    assert generous.n_symbols >= tight.n_symbols


def test_bits_per_symbol_counts_a_byte_as_eight_bits() -> None:
    assert ByteCodec().compress("x" * 100, bits_per_symbol=40.0).n_symbols == 20


@given(TEXT)
def test_v_symbols_survive_being_written_into_a_prompt(text: str) -> None:
    codec = ByteCodec()
    document = codec.compress(codec.vocabulary.guard(text, on_symbols="escape"))
    prompt = f"Context: {codec.vocabulary.render(document.symbols)}\nQuestion: why?"
    parts = [part for part in codec.vocabulary.split(prompt) if not isinstance(part, str)]
    assert parts == ([document.symbols] if document.n_symbols else [])


def test_up_to_depth_tokens_per_symbol_nothing_is_lost() -> None:
    document = ByteCodec().compress("Anna paid 42 euros. " * 9, ratio=8)
    assert document.n_errata_bytes == 0
    assert all(s.fidelity and s.fidelity.token_accuracy == 1.0 for s in document.spans)
    assert ByteCodec().decompress(document.symbols) == "Anna paid 42 euros. " * 9


def test_beyond_depth_the_fidelity_says_what_bare_symbols_lose() -> None:
    document = ByteCodec().compress("Anna paid 42 euros. " * 9, ratio=16)
    (span,) = document.spans
    assert span.fidelity is not None
    assert 0.4 < span.fidelity.token_accuracy < 0.6
    assert span.fidelity.bits_missing == 8 * document.n_errata_bytes
    assert set(span.fidelity.lost) <= {"Anna", "42"}
    assert ByteCodec().decompress(document) == "Anna paid 42 euros. " * 9


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\t ",
        "x",
        "\0\0",
        "🙂👩‍👩‍👧‍👦" * 40,
        "שלום עולם " * 30,
        "漢字かな" * 50,
        "e\u0301" * 99,
    ],
)
def test_odd_texts_compress_and_come_back(text: str) -> None:
    codec = ByteCodec()
    document = codec.compress(text, settings=CompressSettings(ratio=4, window=16, context=4))
    assert codec.decompress(document) == text
    assert (document.n_chars, document.n_tokens) == (len(text), len(text.encode()))


def test_bad_texts_are_refused() -> None:
    codec = ByteCodec()
    with pytest.raises(VocabularyError, match="surrogate"):
        codec.compress("\ud800")
    with pytest.raises(SymbolCollisionError):
        codec.compress(codec.vocabulary.render(codec.compress("x").symbols))
    with pytest.raises(ConfigError, match="max_tokens"):
        codec.compress("x" * 11, settings=CompressSettings(max_tokens=10))
    with pytest.raises(ConfigError, match="depth"):
        ByteCodec(depth=2).compress("x", depth=3)
    with pytest.raises(ConfigError, match="ratio"):
        codec.compress("x", ratio=0.5)


def test_ten_megabytes_compress_in_seconds() -> None:
    text = "Dense wörds, 漢字 too. " * 400_000
    started = time.perf_counter()
    codec = ByteCodec()
    settings = CompressSettings(ratio=8, max_tokens=20_000_000)
    assert codec.decompress(codec.compress(text, settings=settings)) == text
    assert time.perf_counter() - started < 30.0  # 5 s alone on one core


# Reading


def test_the_answer_comes_from_the_symbols_and_calls_show_what_arrived() -> None:
    codec = ByteCodec()
    symbols = codec.compress(FACTS).symbols
    answer = codec.ask("Where does Bob lives?", [symbols])
    assert answer.text == "Bob lives in Rome!"
    assert answer.n_prompt_symbols == len(symbols) == codec.calls[-1].n_symbols
    assert codec.calls[-1].parts[0] == symbols
    assert codec.ask("Zzz?", [symbols]).text == NO_ANSWER
    assert codec.ask("", ["", symbols]).text == NO_ANSWER


def test_the_question_is_found_in_a_prompt_and_symbols_win_over_instructions() -> None:
    codec = ByteCodec()
    symbols = codec.compress(FACTS).symbols
    prompt = [
        "Answer. Where was Anna born is unknown.\n",
        symbols,
        "\nQuestion: Where was Anna born?",
    ]
    assert codec.complete(prompt).text == "Anna was born in Paris."
    messages = [
        ChatMessage("system", ("Use this.", symbols)),
        ChatMessage("user", ("Which river?",)),
    ]
    assert codec.chat(messages).text == "The river Tiber flows there."
    assert codec.complete([FACTS, "\nWhere was Anna born?"]).text == "Anna was born in Paris."
    assert codec.complete([]).text == NO_ANSWER


@given(TEXT)
def test_streams_add_up_to_the_answer(text: str) -> None:
    codec = ByteCodec()
    parts = [codec.vocabulary.guard(text, on_symbols="drop"), FACTS, "\nWhere does Bob live?"]
    assert "".join(codec.stream(parts)) == codec.complete(parts).text
    messages = [ChatMessage("user", tuple(parts))]
    assert "".join(codec.stream_chat(messages)) == codec.chat(messages).text


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        (GenerationSettings(), "Bob lives in Rome!", "end"),
        (GenerationSettings(max_new_tokens=3), "Bob", "length"),
        (GenerationSettings(stop=("Rome", " in")), "Bob lives", "stop"),
        (GenerationSettings(stop=("Rome",), max_new_tokens=3), "Bob", "length"),
        (GenerationSettings(stop=("lives",), max_new_tokens=4), "Bob ", "stop"),
    ],
)
def test_generation_stops_at_the_first_reason(
    settings: GenerationSettings, text: str, reason: str
) -> None:
    answer = ByteCodec().ask("Where does Bob live now?", [FACTS], settings=settings)
    assert (answer.text, answer.stop_reason) == (text, reason)
    assert answer.n_output_tokens == len(text)


def test_every_symbol_counts_one_position_and_has_one_id_beyond_the_bytes() -> None:
    codec = ByteCodec()
    symbols = codec.compress(FACTS).symbols
    ids = codec.token_ids(["é", symbols])
    assert codec.count(["é", symbols]) == len(ids) == 2 + len(symbols)
    assert max(ids[:2]) < 256 <= min(ids[2:])
    assert codec.count_tokens("é") == 2


def test_a_prompt_that_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(ContextOverflowError, match="120 positions of 100"):
        ByteCodec(context_length=100).complete(["x" * 120])


def test_symbols_of_another_codec_and_spelled_symbols_are_refused() -> None:
    ours, theirs = ByteCodec(), ByteCodec(name="other")
    document = theirs.compress(FACTS)
    for refuse in (
        lambda: ours.complete([document.symbols]),
        lambda: ours.decompress(document),
        lambda: ours.decompress_many([document.symbols]),
        lambda: ours.count([document.symbols]),
    ):
        with pytest.raises(CodecMismatchError):
            refuse()
    with pytest.raises(SymbolCollisionError):
        ours.complete([ours.vocabulary.render(ours.compress("x").symbols)])


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_f_one_text_in_one_document_out_in_order_inputs_untouched(texts: list[str]) -> None:
    codec = ByteCodec()
    before = list(texts)
    settings = CompressSettings(on_symbols="escape")
    documents = codec.compress_many(texts, settings=settings)
    assert texts == before
    guarded = [codec.vocabulary.guard(text, on_symbols="escape") for text in texts]
    assert codec.decompress_many(documents) == guarded
