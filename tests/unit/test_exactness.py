"""Law X: errata applied, the text is the source; and what is asked of fidelity is kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny import tiny_base
from zcontext.assurance import MARGIN
from zcontext.compressor import ZCompressor
from zcontext.config import CodecConfig, CompressSettings, GenerationSettings
from zcontext.errata import Errata
from zcontext.errors import ConfigError, CorruptSpanError, SpanError
from zcontext.fidelity import measure_fidelity, read_spans, readable_parts
from zcontext.model import ZLanguageModel
from zcontext.readers import ZDecompressor
from zcontext.store import MemoryStore
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import Symbols

TEXT = "aaaaaaaaa bbbbbb. No 133333 \x04\u6e2f eeeee!!!!"
EXACT = CompressSettings(window=16, memory=3, exact=True)


def repeater(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> ZLanguageModel:
    """A tiny codec whose reader mostly says the last token again, with scores as far apart as
    those of a trained model: some of what it is to read back is right, some nearly so."""
    base = tiny_base(seed=seed, n_layers=2)
    with torch.no_grad():
        base.model.model.norm.weight.mul_(12.0)
    base.model.to(dtype)
    config = CodecConfig(depth=3, size=32, writer_layers=2, lora_rank=4, lora_alpha=4)
    model = ZLanguageModel.create(dataclasses.replace(base, dtype=dtype), config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters_of(("compress", "decompress", "infer")).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.seal()
    return model


@pytest.fixture(scope="module")
def model() -> ZLanguageModel:
    return repeater()


@pytest.fixture(scope="module")
def document(model):
    return ZCompressor(model).compress(TEXT, settings=EXACT)


def in_dtype(model: ZLanguageModel, dtype: torch.dtype) -> ZLanguageModel:
    """The same codec on the same base in another precision."""
    other = repeater(dtype=dtype)
    other.codebook.load_state_dict(model.codebook.state_dict())
    mine, theirs = (
        each.parameters_of(("compress", "decompress", "infer")) for each in (other, model)
    )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(theirs[name])
    other.seal()
    assert other.codec == model.codec
    return other


# -- law X ------------------------------------------------------------------------------------


def test_some_of_the_text_comes_back_and_some_is_corrected(document):
    for span in document.spans:
        assert span.fidelity is not None
    shares = [span.fidelity.token_accuracy for span in document.spans]
    assert 0 < min(shares) < max(shares) < 1
    assert document.exact
    assert document.errata_bits == 8 * sum(len(span.errata) for span in document.spans)
    assert document.total_bits == document.bits + document.errata_bits


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_x_the_source_comes_back_at_any_batch_size(model, document, batch_size):
    decompressor = ZDecompressor(model, batch_size=batch_size)
    assert decompressor.decompress(document) == TEXT


def test_x_the_source_comes_back_from_every_stored_form_and_as_a_stream(model, document):
    kind, decompressor = type(document), ZDecompressor(model)
    stored = [kind.from_compact(document.to_compact()), kind.from_bytes(document.to_bytes())]
    assert decompressor.decompress_many(stored) == [TEXT, TEXT]
    assert "".join(decompressor.stream(kind.from_json(document.to_json()))) == TEXT


@pytest.mark.parametrize("n_threads", [1, 2])
def test_x_the_source_comes_back_with_any_number_of_threads(model, document, n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert ZDecompressor(model).decompress(document) == TEXT
        again = ZCompressor(model).compress(TEXT, settings=EXACT)
        assert ZDecompressor(model, batch_size=2).decompress(again) == TEXT
    finally:
        torch.set_num_threads(before)


def test_x_what_one_precision_wrote_another_reads_exactly(model, document):
    other = in_dtype(model, torch.bfloat16)
    tokens = text_tokenizer(model.tokenizer).locate(TEXT, max_tokens=1000)
    pairs = [
        (a, b)
        for one, two in zip(
            read_spans(model, document, tokens), read_spans(other, document, tokens), strict=True
        )
        for a, b in zip(one.margins, two.margins, strict=True)
    ]
    apart = max(abs(a - b) for a, b in pairs)
    assert 0 < apart < MARGIN / 8  # it was another precision, and the margin has room for it
    assert ZDecompressor(other, batch_size=2).decompress(document) == TEXT
    written = ZCompressor(other).compress(TEXT, settings=EXACT)
    assert ZDecompressor(model).decompress(written) == TEXT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("written_in", [1, 2])
def test_x_whoever_wrote_it_at_whatever_batch_size_anybody_reads_it(
    model, dtype, n_threads, written_in
):
    """Written in one precision, batch and number of threads; read in all others, among others."""
    other = in_dtype(model, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        texts = [TEXT, "ab" * 9, TEXT[:20]]
        chosen = EXACT.replace(protect=("numbers",))
        written = ZCompressor(other, batch_size=written_in).compress_many(texts, settings=chosen)
        torch.set_num_threads(3 - n_threads)
        for reader in (model, other):
            for batch_size in (1, 2, 5):
                found = ZDecompressor(reader, batch_size=batch_size).decompress_many(written)
                assert found == texts
    finally:
        torch.set_num_threads(before)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ODD = st.sampled_from(["\x00\x04", "\ufffd", "\U0010ffff", "e\u0301", "\r\n", "aaaa", "<|im_end|>"])


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ANY_TEXT | ODD, max_size=2).map("".join))
def test_x_any_unicode_text_comes_back(model, text):
    text = model.vocabulary.guard(text, on_symbols="drop")
    document = ZCompressor(model).compress(text, settings=EXACT, ratio=3)
    assert document.exact
    assert ZDecompressor(model).decompress(document) == text


@pytest.mark.parametrize("text", ["\x04", "\x04\x06 a", "ab\x1d\x1d", "\U00050000x", "\ufffd"])
def test_x_characters_without_a_token_come_back(text, monkeypatch):
    """With a tokenizer that lacks the bytes that SmolLM2's lacks."""
    base = tiny_base(n_layers=2)
    core = base.tokenizer.backend_tokenizer
    gone = {0x04, 0x06, 0x1D, 0xF1}
    monkeypatch.setattr("zcontext.tokenization.unencodable_bytes", lambda tokenizer: gone)
    config = CodecConfig(depth=2, size=8, writer_layers=2, lora_rank=2, lora_alpha=2)
    poor = ZLanguageModel.create(base, config, seed=0)
    document = ZCompressor(poor).compress(text, settings=EXACT)
    ids = text_tokenizer(poor.tokenizer).ids(text)
    assert (core.decode(ids) == text) == (text == "\ufffd")
    assert ZDecompressor(poor).decompress(document) == text
    assert "".join(ZDecompressor(poor).stream(document)) == text


def test_a_margin_below_the_threshold_is_corrected_although_it_is_right(model, monkeypatch):
    tokens = text_tokenizer(model.tokenizer).locate(TEXT, max_tokens=1000)
    plain = ZCompressor(model).compress(TEXT, settings=EXACT.replace(exact=False))
    readings = list(read_spans(model, plain, tokens))
    leads = sorted(margin for reading in readings for margin in reading.margins if margin > 0)
    threshold = (leads[len(leads) // 2 - 1] + leads[len(leads) // 2]) / 2
    monkeypatch.setattr("zcontext.assurance.MARGIN", threshold)
    written = ZCompressor(model).compress(TEXT, settings=EXACT)
    near = 0
    for span, reading in zip(written.spans, readings, strict=True):
        errata = Errata.from_bytes(span.errata, n_tokens=len(span.tokens))
        places = {place for place, _ in errata.tokens}
        assert places == {i for i, margin in enumerate(reading.margins) if margin < threshold}
        assert {i for i, right in enumerate(reading.right) if not right} <= places
        near += sum(reading.right[i] for i in places)
    assert near == len(leads) // 2


def test_an_exact_document_that_does_not_come_back_is_refused_with_a_remedy(model, document):
    span = document.spans[0]
    errata = Errata.from_bytes(span.errata, n_tokens=len(span.tokens))
    (place, token), *rest = errata.tokens
    wrong = Errata(((place, token ^ 1), *rest), errata.edits)
    planted = dataclasses.replace(span, errata=wrong.to_bytes(n_tokens=len(span.tokens)))
    altered = dataclasses.replace(document, spans=(planted, *document.spans[1:]))
    for call in (ZDecompressor(model).decompress, lambda d: list(ZDecompressor(model).stream(d))):
        with pytest.raises(CorruptSpanError, match="Load the bundle with the base"):
            call(altered)
    broken = dataclasses.replace(span, errata=b"\xff")
    with pytest.raises(CorruptSpanError, match="compress the source text again"):
        ZDecompressor(model).decompress(broken)


def test_errata_are_not_for_sampled_text(model, document):
    with pytest.raises(ConfigError, match="leave it at 0"):
        ZDecompressor(model).decompress(document, settings=GenerationSettings(temperature=1.0))


def test_without_errata_nothing_is_promised(model):
    plain = ZCompressor(model).compress(TEXT)
    assert not plain.exact
    assert (plain.n_errata_bytes, plain.spans[0].fidelity) == (0, None)
    assert ZDecompressor(model).decompress(plain) != TEXT


def test_a_span_by_itself_is_exact_where_no_memory_stood_before_it(model):
    alone = ZCompressor(model).compress(TEXT, settings=EXACT.replace(memory=0))
    read = [ZDecompressor(model).decompress(span) for span in alone.spans]
    assert "".join(read) == TEXT


def test_exact_is_another_key_in_a_store_and_the_symbols_are_the_same(model, document):
    store = MemoryStore()
    compressor = ZCompressor(model, store=store)
    plain = compressor.compress(TEXT, settings=EXACT.replace(exact=False))
    assert compressor.compress(TEXT, settings=EXACT) == document
    assert (len(store), plain.symbols) == (2, document.symbols)


def test_c_batched_and_streamed_exact_documents_are_those_written_one_by_one(model, document):
    texts = ["aaaaaaaaaa", TEXT, "", "oooooo \U0001f6a2"]
    compressor = ZCompressor(model, batch_size=2)
    together = compressor.compress_many(texts, settings=EXACT)
    assert together == [compressor.compress(text, settings=EXACT) for text in texts]
    assert tuple(ZCompressor(model).stream(TEXT, settings=EXACT)) == document.spans


# -- the floor --------------------------------------------------------------------------------


def test_measured_while_written_is_measured_afterwards(model):
    kept = CompressSettings(window=16, memory=3, min_fidelity=0.9)
    plain = CompressSettings(window=16, memory=3)
    written = ZCompressor(model).compress(TEXT, settings=kept)
    afterwards = ZCompressor(model).compress(TEXT, settings=plain)
    assert written == measure_fidelity(model, afterwards, TEXT)


def test_finer_halves_the_ratio_of_a_poor_span_until_the_floor_holds_or_it_is_one(model):
    coarse = CompressSettings(window=16, memory=3, ratio=8, depth=1)
    before = ZCompressor(model).compress(TEXT, settings=coarse)
    chosen = coarse.replace(min_fidelity=0.5, on_low_fidelity="finer")
    after = ZCompressor(model).compress(TEXT, settings=chosen)
    assert after.depth == model.config.depth
    assert after.n_symbols > before.n_symbols
    for span in after.spans:
        assert span.fidelity is not None
        assert span.fidelity.token_accuracy >= 0.5 or len(span.symbols) == len(span.tokens)
    assert any(len(s.symbols) < len(s.tokens) for s in after.spans)  # a good span stays as it was
    exact = ZCompressor(model).compress(TEXT, settings=chosen.replace(exact=True))
    assert exact.symbols == after.symbols
    assert ZDecompressor(model).decompress(exact) == TEXT


def test_parts_below_the_floor_are_text_and_nothing_is_said_twice(model, document):
    shares = sorted(span.fidelity.token_accuracy for span in document.spans)
    parts = readable_parts(document, TEXT, floor=shares[-1])
    texts = [part for part in parts if isinstance(part, str)]
    symbols = [part for part in parts if isinstance(part, Symbols)]
    best = [s for s in document.spans if s.fidelity.token_accuracy == shares[-1]]
    assert sum(map(len, symbols)) == sum(len(span.symbols) for span in best)
    assert sum(map(len, texts)) == len(TEXT) - sum(len(span.chars) for span in best)
    assert readable_parts(document, TEXT, floor=0.0) == (document.symbols,)
    assert readable_parts(document, TEXT, floor=1.0) == (TEXT,)
    with pytest.raises(SpanError, match="does not stand for this text"):
        readable_parts(document, TEXT + "!", floor=0.5)
    bare = ZCompressor(model).compress(TEXT)
    with pytest.raises(SpanError, match="was not measured"):
        readable_parts(bare, TEXT, floor=0.5)
