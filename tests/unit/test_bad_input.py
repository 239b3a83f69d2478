"""Bad input: each has a defined result, and leaves model and store as they were."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from hashlib import sha256

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny import SPECIALS, tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CodecConfig, CompressSettings
from zcontext.errors import (
    ConfigError,
    ModelError,
    SymbolCollisionError,
    VocabularyError,
    WindowError,
)
from zcontext.loading import LoadedBase
from zcontext.model import ZLanguageModel
from zcontext.readers import Inferencer, ZDecompressor
from zcontext.spans import ZDocument
from zcontext.store import SQLiteStore


@pytest.fixture(scope="module")
def compressor():
    return ZCompressor(tiny_z())


def test_empty_text_gives_an_empty_document(compressor):
    document = compressor.compress("")
    assert (document.spans, document.n_tokens, document.n_symbols) == ((), 0, 0)
    assert (document.ratio, document.bits) == (1.0, 0)
    assert document.text_sha256 == sha256(b"").hexdigest()
    assert list(compressor.stream("")) == []
    assert compressor.compress_many([]) == []
    assert compressor.compress_many(["", ""]) == [document, document]
    assert compressor.compress("", max_symbols=3) == document
    assert ZDecompressor(compressor.model).decompress(document) == ""


@pytest.mark.parametrize("text", [" ", "\n", " \t\r\n\u00a0\u3000\u200b"])
def test_whitespace_is_text_like_any_other(compressor, text):
    document = compressor.compress(text)
    assert document.n_tokens == compressor.count_tokens(text)
    assert document.n_chars == len(text)
    assert document.n_symbols >= 1


@pytest.mark.parametrize("budget", [{"ratio": 64}, {"max_symbols": 5}, {"bits_per_symbol": 1e9}])
def test_one_token_gets_one_symbol(compressor, budget):
    document = compressor.compress("x", **budget)
    assert (document.n_tokens, document.n_symbols) == (1, 1)
    assert len(ZDecompressor(compressor.model).decompress(document)) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "🚀👩‍🚀🏳️‍🌈👨‍👩‍👧‍👦" * 20,
        "שלום עולם. مرحبا بالعالم! " * 12,
        "\u202eright to left\u202c and back. " * 8,
        "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。" * 8,
        "nul \x00 and \x01 and \x7f. " * 12,
        "e\u0301 a\u0308 \ufeff \ufffd \U0010ffff " * 10,
        "a" * 300,
        "\r\n" * 100,
    ],
)
def test_any_unicode_text_is_covered_without_splitting_a_character(compressor, text):
    for chosen in (CompressSettings(window=16), CompressSettings(window=40, context=9, memory=3)):
        document = compressor.compress(text, settings=chosen)
        assert document.n_symbols == document.n_tokens // 4
        for span in document.spans:
            piece = text[span.chars.start : span.chars.end]
            assert compressor.count_tokens(piece) == len(span.tokens)
        assert isinstance(ZDecompressor(compressor.model).decompress(document), str)


def test_a_window_too_small_for_a_character_says_so(compressor):
    with pytest.raises(WindowError, match="splitting a character"):
        compressor.compress("x🚀🚀🚀🚀", settings=CompressSettings(window=8, context=7))


@pytest.mark.parametrize("text", ["\ud800", "fine \udcff not fine", "a\udfff"])
def test_lone_surrogates_are_refused_with_remedies(compressor, text):
    calls = (
        compressor.compress,
        compressor.stream,
        compressor.count_tokens,
        lambda t: compressor.compress_many(["fine", t]),
        lambda t: Inferencer(compressor.model).complete([t]),
        lambda t: Inferencer(compressor.model).ask(t, ["x"]),
    )
    for call in calls:
        with pytest.raises(VocabularyError, match=r"lone surrogate.*errors='replace'"):
            call(text)


@pytest.mark.parametrize("text", [b"bytes", None, 3])
def test_what_is_no_text_is_refused(compressor, text):
    with pytest.raises(VocabularyError, match="not str"):
        compressor.compress(text)


def test_text_that_spells_symbols_is_refused_escaped_or_dropped(compressor):
    spelled = compressor.vocabulary.render(compressor.compress("hello there").symbols)
    text = f"before {spelled} after"
    with pytest.raises(SymbolCollisionError, match="on_symbols"):
        compressor.compress(text)
    for policy in ("escape", "drop"):
        document = compressor.compress(text, settings=CompressSettings(on_symbols=policy))
        stands_for = compressor.vocabulary.guard(text, on_symbols=policy)
        assert document.text_sha256 == sha256(stands_for.encode()).hexdigest()
        assert document.n_chars == len(stands_for)
        assert document == compressor.compress(
            stands_for, settings=CompressSettings(on_symbols=policy)
        )


@pytest.mark.parametrize(
    "budget",
    [
        {"ratio": 0.5},
        {"ratio": 0},
        {"ratio": -4},
        {"ratio": 65},
        {"ratio": float("nan")},
        {"ratio": float("inf")},
        {"max_symbols": 0},
        {"max_symbols": -1},
        {"max_symbols": 2.5},
        {"bits_per_symbol": 0},
        {"bits_per_symbol": float("inf")},
        {"bits_per_symbol": float("nan")},
        {"depth": 0},
        {"depth": 9},
        {"depth": 1.5},
        {"ratio": 4, "max_symbols": 3},
    ],
)
def test_a_budget_out_of_range_is_refused_before_anything_is_read(compressor, budget, monkeypatch):
    monkeypatch.setattr(compressor.model, "read", None)
    with pytest.raises(ConfigError) as caught:
        compressor.compress("some text", **budget)
    assert caught.value.field in budget


def test_a_budget_smaller_than_the_windows_is_spread_and_none_is_wasted(compressor):
    text = "One sentence. " * 40
    document = compressor.compress(text, max_symbols=2, settings=CompressSettings(window=16))
    assert document.n_symbols == 2
    assert len(document.spans) > 30
    assert document.spans[-1].chars.end == len(text)
    assert isinstance(ZDecompressor(compressor.model).decompress(document), str)
    assert ZDocument.from_json(document.to_json()) == document


def test_a_text_over_max_tokens_is_refused_with_numbers(compressor):
    with pytest.raises(ConfigError, match="max_tokens=100") as caught:
        compressor.compress("a" * 101, settings=CompressSettings(max_tokens=100))
    assert caught.value.field == "max_tokens"
    assert compressor.compress("a" * 100, settings=CompressSettings(max_tokens=100)).n_tokens == 100


def test_one_bad_text_among_many_stops_the_job_before_it_begins(compressor, monkeypatch):
    monkeypatch.setattr(compressor.model, "read", None)
    with pytest.raises(VocabularyError):
        compressor.compress_many(["good", "bad \ud800", "good"])


def test_a_base_that_gives_no_numbers_is_reported(monkeypatch):
    model = tiny_z()
    monkeypatch.setattr(
        model.codebook, "surprisal", lambda hidden, tokens: hidden[..., 0] * torch.nan
    )
    with pytest.raises(ModelError, match="not finite"):
        ZCompressor(model).compress("text")


def long_token_model() -> ZLanguageModel:
    """A tiny base whose tokenizer joins up to 1,024 equal letters, so that 10 MB are few tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    runs = ["a" * 2**power for power in range(1, 11)]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet, *runs])}
    merges = [(run[: len(run) // 2],) * 2 for run in runs]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
    )  # fmt: skip
    base = LoadedBase(
        model=LlamaForCausalLM(config).eval(), tokenizer=tokenizer, name="long", sha256="1" * 64,
        quantization="none", device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    return ZLanguageModel.create(base, CodecConfig(depth=1, size=8, lora_rank=1, lora_alpha=1))


def test_ten_megabytes_are_compressed_whole():
    text = ("a" * 8191 + "\n") * 1280
    assert len(text) > 10_000_000
    document = ZCompressor(long_token_model()).compress(text, ratio=8)
    assert document.n_chars == document.n_bytes == len(text)
    assert document.n_symbols == document.n_tokens // 8
    assert len(document.spans) >= document.n_tokens // 512


def test_the_first_spans_of_ten_megabytes_are_there_at_once(compressor):
    text = "All work and no play makes Jack a dull boy. " * 30_000
    spans = compressor.stream(text, bits_per_symbol=20.0)
    first = [next(spans) for _ in range(3)]
    alone = compressor.compress(text[: first[-1].chars.end], bits_per_symbol=20.0)
    assert tuple(first) == alone.spans


class Interrupt:
    """Raises KeyboardInterrupt at the k-th line run in some files, as a signal might."""

    def __init__(self, files: tuple[str, ...], *, at: int) -> None:
        self.n_lines = 0
        self.line = ""
        self._files, self._at = files, at

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith(self._files):
            return None
        if event == "line":
            self.n_lines += 1
            if self.n_lines == self._at:
                self.line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


def test_ctrl_c_in_any_line_that_switches_a_state_leaves_no_trace():
    model = tiny_z()
    job = ZCompressor(model)
    files = ("grad_mode.py", "contextlib.py", "_contextlib.py", "holding.py", "adapters.py")

    def interrupted(at: int) -> Interrupt:
        tracer = Interrupt(files, at=at)
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            job.compress("The quick brown fox jumps over the lazy dog.")
        except KeyboardInterrupt:
            assert tracer.line
        finally:
            sys.settrace(before)
        return tracer

    for at in range(1, interrupted(0).n_lines + 1):
        line = interrupted(at).line
        assert torch.is_grad_enabled(), line
        assert model.adapters.role is None, line
        assert model.lock.acquire(blocking=False), line
        model.lock.release()


@pytest.mark.parametrize("delay", [0.05, 0.11, 0.18])
def test_ctrl_c_at_any_moment_leaves_store_and_model_consistent(tmp_path, delay):
    model = tiny_z()
    texts = [f"{i}. The quick brown fox jumps over the lazy dog. " * 30 for i in range(12)]
    expected = ZCompressor(tiny_z()).compress(texts[0])
    with SQLiteStore(tmp_path / "spans.db") as store:
        job = ZCompressor(model, store=store)
        timer = threading.Timer(delay, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come anywhere in it
            timer.start()
            while True:
                job.compress_many(texts)
                time.sleep(0.001)
                texts = [text + "!" for text in texts]
        timer.join()
        assert model.adapters.role is None
        assert torch.is_grad_enabled()
        assert len(model.base.model.base_model.layers) == 4
        assert model.lock.acquire(blocking=False)
        model.lock.release()
        assert store.damaged() == ()
        assert job.compress(texts[0].rstrip("!")) == expected
