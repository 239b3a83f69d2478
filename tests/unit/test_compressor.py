"""Law C and law S for whole documents: same input, same bytes; the budget is met exactly."""

from __future__ import annotations

import dataclasses
import math
import threading
from hashlib import sha256

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.spans import SupportsCompress, ZDocument
from zcontext.store import MemoryStore, SQLiteStore
from zcontext.writing import WindowWriter

SMALL = CompressSettings(window=32)
STORY = (
    "Anna lives in Oslo. She is 31 years old and builds bridges! In 2019 she moved there from "
    "Lima, where her father had a shop. Why? Nobody asked her.\n\nThe shop is closed now. "
)
TEXTS = [
    STORY,
    "Short.",
    STORY * 2,
    "",
    "x",
    STORY[:77],
    "Ωmega and 中文 and 🚀🚀🚀 fly.",
    STORY[40:],
]


@pytest.fixture(scope="module")
def compressor():
    return ZCompressor(tiny_z())


def test_it_is_a_compressor(compressor):
    assert isinstance(compressor, SupportsCompress)
    assert compressor.codec == compressor.model.codec
    assert compressor.count_tokens("héllo") == 6


def test_the_same_input_gives_the_same_bytes(compressor):
    one, other = (compressor.compress(STORY, settings=SMALL).to_bytes() for _ in range(2))
    assert one == other
    assert ZCompressor(tiny_z()).compress(STORY, settings=SMALL).to_bytes() == one


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("memory", [0, 6])
@pytest.mark.parametrize("context", [0, 8])
def test_a_batch_gives_the_same_bytes_as_one_by_one(compressor, batch_size, memory, context):
    chosen = CompressSettings(window=32, memory=memory, context=context)
    batched = ZCompressor(compressor.model, batch_size=batch_size)
    alone = [batched.compress(text, settings=chosen) for text in TEXTS]
    assert batched.compress_many(TEXTS, settings=chosen) == alone
    assert batched.compress_many(TEXTS[::-1], settings=chosen) == alone[::-1]


def test_a_pass_has_a_shape_that_does_not_tell_the_company(compressor, monkeypatch):
    """Why the law above holds: rounding follows the shape of a pass."""
    writer = WindowWriter(compressor.model, batch_size=4)
    shapes = set()
    read = compressor.model.read

    def seen(ids, mask, *, memory=None):
        shapes.add(tuple(ids.shape))
        return read(ids, mask, memory=memory)

    monkeypatch.setattr(compressor.model, "read", seen)
    batched = ZCompressor(compressor.model)
    batched._writer = writer
    batched.compress_many(["a" * 30, "b" * 20, "c" * 64])
    batched.compress("a" * 30)
    assert shapes == {(4, 64)}


def test_the_second_call_is_a_hit_in_the_store(compressor, monkeypatch):
    store = MemoryStore()
    stored = ZCompressor(compressor.model, store=store)
    first = stored.compress(STORY, settings=SMALL)
    assert len(store) == 1
    monkeypatch.setattr(WindowWriter, "write", None)
    assert stored.compress(STORY, settings=SMALL) == first
    assert stored.compress_many([STORY, STORY], settings=SMALL) == [first, first]


def test_a_default_spelled_out_is_the_same_entry_in_the_store(compressor):
    store = MemoryStore()
    stored = ZCompressor(compressor.model, store=store)
    stored.compress(STORY)
    stored.compress(STORY, ratio=4.0, depth=3)
    stored.compress(STORY, settings=CompressSettings(ratio=4.0))
    assert len(store) == 1
    stored.compress(STORY, ratio=5.0)
    assert len(store) == 2


def test_equal_texts_are_compressed_once(compressor, monkeypatch):
    calls = []
    write = WindowWriter.write
    monkeypatch.setattr(
        WindowWriter, "write", lambda self, tasks: calls.append(1) or write(self, tasks)
    )
    documents = compressor.compress_many(["same"] * 5)
    assert len(calls) == 1
    assert len(set(map(ZDocument.to_bytes, documents))) == 1


def test_threads_get_the_documents_they_would_get_alone(compressor):
    alone = [compressor.compress(text, settings=SMALL) for text in TEXTS]
    found: dict[int, ZDocument] = {}

    def work(at):
        found[at] = compressor.compress(TEXTS[at], settings=SMALL)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(TEXTS))] == alone


def test_a_long_document_lets_others_in_between_its_windows(compressor):
    spans = compressor.stream(STORY * 3, settings=SMALL)
    next(spans)
    finished = threading.Event()
    thread = threading.Thread(target=lambda: (compressor.compress("hello"), finished.set()))
    thread.start()
    assert finished.wait(30)
    thread.join()
    assert len(list(spans)) > 3


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=150), st.floats(1, 64), st.integers(8, 40))
def test_the_ratio_is_met_by_the_document_as_a_whole(compressor, text, ratio, window):
    text = text.encode("utf-8", "ignore").decode()
    document = compressor.compress(text, ratio=ratio, settings=CompressSettings(window=window))
    n = compressor.count_tokens(text)
    assert document.n_symbols == (max(1, math.floor(n / ratio + 1e-9)) if n else 0)
    assert (document.n_tokens, document.n_chars) == (n, len(text))
    assert document.n_bytes == len(text.encode())
    assert document.text_sha256 == sha256(text.encode()).hexdigest()
    assert ZDocument.from_bytes(document.to_bytes()) == document
    for span in document.spans:
        # No window splits a character: each span's text has exactly the span's tokens.
        piece = text[span.chars.start : span.chars.end]
        assert compressor.count_tokens(piece) == len(span.tokens)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 400))
def test_a_cap_is_met_exactly(compressor, cap, n_chars):
    text = (STORY * 3)[:n_chars]
    document = compressor.compress(text, max_symbols=cap, settings=SMALL)
    assert document.n_symbols == min(cap, document.n_tokens)


def test_a_lower_price_never_gives_fewer_symbols(compressor):
    counts = [
        compressor.compress(STORY, bits_per_symbol=price, settings=SMALL).n_symbols
        for price in (0.5, 2.0, 8.0, 32.0, 1e6)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == len(compressor.compress(STORY, settings=SMALL).spans)


def test_the_stream_is_the_document_span_by_span(compressor):
    for budget in ({"ratio": 3.0}, {"bits_per_symbol": 12.0}, {"max_symbols": 9}):
        document = compressor.compress(STORY, settings=SMALL, **budget)
        assert tuple(compressor.stream(STORY, settings=SMALL, **budget)) == document.spans


def test_windows_end_where_sentences_do(compressor):
    document = compressor.compress(STORY, settings=CompressSettings(window=64))
    ends = [STORY[: span.chars.end][-1] for span in document.spans[:-1]]
    assert set(ends) <= set(".!?\n")


def test_a_shallower_symbol_holds_fewer_codes(compressor):
    document = compressor.compress(STORY, depth=2, settings=SMALL)
    assert document.depth == document.symbols.depth == 2
    deep = compressor.compress(STORY, settings=SMALL).symbols
    assert deep.coarser(2).codes[:4] == document.symbols.codes[:4]


def test_memory_is_recorded_and_changes_only_what_follows_the_first_window():
    model = tiny_z()
    with torch.no_grad():
        model.codebook.surprise.bias.fill_(0.5)  # some tokens are easily guessed, others are not
    model.seal()
    compressor = ZCompressor(model)
    plain = compressor.compress(STORY, settings=SMALL)
    remembered = compressor.compress(STORY, settings=dataclasses.replace(SMALL, memory=8))
    assert (plain.memory, remembered.memory) == (0, 8)
    assert plain.spans[0] == remembered.spans[0]
    assert plain.spans[1:] != remembered.spans[1:]


def test_a_context_is_read_again_but_not_written(compressor):
    document = compressor.compress(STORY, settings=dataclasses.replace(SMALL, context=16))
    assert sum(len(span.tokens) for span in document.spans) == document.n_tokens
    assert all(len(span.tokens) <= 16 for span in document.spans[1:])


def test_keywords_replace_the_budget_of_the_settings(compressor):
    chosen = CompressSettings(max_symbols=3)
    assert compressor.compress(STORY, settings=chosen).n_symbols == 3
    document = compressor.compress(STORY, settings=chosen, ratio=10)
    assert document.n_symbols == document.n_tokens // 10
    own = ZCompressor(compressor.model, settings=CompressSettings(ratio=2.0))
    assert own.compress(STORY).n_symbols == document.n_tokens // 2


def test_what_the_model_cannot_do_is_refused(compressor):
    with pytest.raises(ConfigError, match="3 codes per symbol"):
        compressor.compress(STORY, depth=4)
    with pytest.raises(ConfigError, match="positions of the base"):
        compressor.compress(STORY, settings=CompressSettings(window=2000, memory=100))
    with pytest.raises(ConfigError, match="batch_size"):
        ZCompressor(compressor.model, batch_size=0)


def test_progress_goes_to_standard_error_alone(compressor, capsys):
    documents = compressor.compress_many([STORY, "two"], progress=True)
    assert documents == compressor.compress_many([STORY, "two"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "compressing" in shown.err


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_interrupted_job_keeps_whole_documents_and_goes_on_from_there(
    compressor, tmp_path, monkeypatch, batch_size
):
    texts = [f"Document {i}. {STORY}" for i in range(4)]
    expected = ZCompressor(compressor.model, batch_size=batch_size).compress_many(
        texts, settings=SMALL
    )
    write, calls = WindowWriter.write, []

    def interrupted(self, tasks):
        calls.append(1)
        if len(calls) == sum(len(d.spans) for d in expected) // batch_size - 1:
            with self.model.using("compress"):
                raise KeyboardInterrupt
        return write(self, tasks)

    with SQLiteStore(tmp_path / "spans.db") as store:
        job = ZCompressor(compressor.model, store=store, batch_size=batch_size)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patched.setattr(WindowWriter, "write", interrupted)
            job.compress_many(texts, settings=SMALL)
        n_kept = len(store)
        assert store.damaged() == ()
        assert compressor.model.adapters.role is None
        assert n_kept < len(texts)
        assert job.compress_many(texts, settings=SMALL) == expected
        assert len(store) == len(texts)
    assert batch_size > 1 or n_kept > 0


@pytest.mark.slow
def test_on_the_real_base_a_batch_gives_the_same_bytes_as_one_by_one():
    from zcontext.config import CodecConfig
    from zcontext.loading import load_base
    from zcontext.model import ZLanguageModel

    model = ZLanguageModel.create(load_base(), CodecConfig())
    texts = [STORY * 2, STORY[:200], "Short.", STORY[50:] * 2]
    for batch_size in (1, 2, 4):
        real = ZCompressor(model, batch_size=batch_size)
        alone = [real.compress(text) for text in texts]
        assert real.compress_many(texts) == alone
        assert [real.compress(text) for text in texts] == alone
