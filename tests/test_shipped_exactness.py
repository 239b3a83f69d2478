"""Law X on the bundle that ships: the source comes back, to the character, whatever reads it.

Written once in fp32; read at other batch sizes, with other threads, in bf16; and with other
weights, where what happens is an error and never another text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from zcontext.assurance import MARGIN
from zcontext.bundle import load_bundle
from zcontext.bundles import DEFAULT_BUNDLE, find_bundle
from zcontext.channel import TRUST
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.decompressor import ZDecompressor
from zcontext.documents import ZDocument
from zcontext.errors import CorruptSpanError, SymbolCollisionError, VocabularyError
from zcontext.fidelity import read_spans
from zcontext.model import ZLanguageModel
from zcontext.pruner import token_bits
from zcontext.sizes import sizes_of
from zcontext.tokenization import text_tokenizer

SPELLED = math.log(TRUST / (1 - TRUST))
"""By how much what codes spell out leads at least, whatever is rounded how. By how much more is a
matter of what a reader makes of the other tokens, which can be anything."""
EXACT = CompressSettings(ratio=4, exact=True)
TEXTS = (
    "The lease at Keizersgracht 41, says Anna Lindqvist, ends in May 1993; rent is €4,812.50.",
    "Rain fell all night, and by morning the river had risen over the road.",
    'def area(r):\n    return r ** 2  # {"unit": "m2"}\n',
)
NASTY = {
    "NUL": "a\x00b\x00\x00",
    "byte order mark": "\ufeffstart\ufeff",
    "line ends": "one\r\ntwo\rthree\n\r\n\u2028\u2029\x85",
    "combining marks": "e\u0301 \u1e9b\u0323 Z\u0351\u036b\u0343\u036a a\u0308\u0304",
    "joined emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u0645\u0631\u062d\u0628\u0627",
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd \ufffe\uffff",
    "no token in this base": "\x04\x06\x13 \U00050000x \ufffd",
    "blanks": " \t\u00a0\u3000\u200b  \n\n ",
    "structure of chats": "<|im_end|><|endoftext|> [INST]",
    "half a symbol": "[z3f9a:0C7V] and |] [|",
}


@pytest.fixture(scope="module")
def model() -> ZLanguageModel:
    return load_bundle(find_bundle(DEFAULT_BUNDLE), dtype="fp32")


@pytest.fixture(scope="module")
def documents(model: ZLanguageModel) -> list[ZDocument]:
    return ZCompressor(model).compress_many(TEXTS, settings=EXACT)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leads(model: ZLanguageModel, text: str, document: ZDocument) -> list[float]:
    """By how much each right token leads."""
    tokens = text_tokenizer(model.tokenizer).locate(text, max_tokens=999)
    return [m for reading in read_spans(model, document, tokens) for m in reading.margins]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_x_it_is_exact_at_any_batch_size(
    model: ZLanguageModel, documents: list[ZDocument], batch_size: int
) -> None:
    stored = [ZDocument.from_compact(document.to_compact()) for document in documents]
    assert tuple(ZDecompressor(model, batch_size=batch_size).decompress_many(stored)) == TEXTS


def test_x_it_is_exact_with_other_threads(
    model: ZLanguageModel, documents: list[ZDocument]
) -> None:
    with threads(1):
        few = ZCompressor(model).compress("Rain fell on 7 May.", settings=EXACT)
        one = leads(model, TEXTS[0], documents[0])
    with threads(2):  # decoded briefly: threads that share busy cores wait for each other
        assert ZDecompressor(model).decompress(few) == "Rain fell on 7 May."
        two = leads(model, TEXTS[0], documents[0])
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < MARGIN / 200


def test_x_what_fp32_wrote_bf16_reads_exactly_and_the_margin_has_room(
    model: ZLanguageModel, documents: list[ZDocument]
) -> None:
    other = load_bundle(find_bundle(DEFAULT_BUNDLE), quantization="nf4-dequantised", dtype="bf16")
    assert other.base.dtype == torch.bfloat16
    coarse = ZCompressor(model).compress_many(TEXTS, ratio=16)  # too few names for every token
    pairs = [
        sorted(pair)
        for text, document in zip(TEXTS * 2, [*documents, *coarse], strict=True)
        for pair in zip(leads(model, text, document), leads(other, text, document), strict=True)
    ]
    unsure = [high - low for low, high in pairs if low < SPELLED]
    assert len(unsure) > 20
    assert 0 < max(unsure) < MARGIN
    assert tuple(ZDecompressor(other).decompress_many(documents)) == TEXTS


def test_other_weights_give_the_source_or_an_error_and_never_another_text(
    documents: list[ZDocument],
) -> None:
    """The base in full precision instead of 4 bits: other weights, of which nothing is promised.

    With the channel they often give the source all the same; without it they must say that they
    do not.
    """
    other = load_bundle(find_bundle(DEFAULT_BUNDLE), quantization="none", dtype="fp32")
    told: list[str] = []
    for text, document, channel in [
        *((text, document, other.channel) for text, document in zip(TEXTS, documents, strict=True)),
        *((text, document, None) for text, document in zip(TEXTS, documents, strict=True)),
    ]:
        other.channel = channel
        try:
            assert ZDecompressor(other).decompress(document) == text
        except CorruptSpanError as error:
            told.append(str(error))
    assert told
    assert all("Load the bundle with the base, quantization and dtype" in each for each in told)


def test_x_any_characters_come_back(model: ZLanguageModel) -> None:
    texts = list(NASTY.values())
    documents = ZCompressor(model).compress_many(texts, settings=EXACT)
    found = dict(zip(NASTY, ZDecompressor(model).decompress_many(documents), strict=True))
    assert found == NASTY
    assert all(document.exact for document in documents)


def test_text_that_spells_symbols_comes_back_as_it_was_made_harmless(model: ZLanguageModel) -> None:
    compressor = ZCompressor(model)
    symbols = compressor.compress("rain").symbols
    text = f"See {model.vocabulary.render(symbols[:1])} there."
    with pytest.raises(SymbolCollisionError, match="on_symbols='escape'"):
        compressor.compress(text, settings=EXACT)
    documents = [
        compressor.compress(text, settings=EXACT.replace(on_symbols=policy))
        for policy in ("escape", "drop")
    ]
    assert ZDecompressor(model).decompress_many(documents) == [
        model.vocabulary.guard(text, on_symbols="escape"),
        model.vocabulary.guard(text, on_symbols="drop"),
    ]


@pytest.mark.parametrize("text", ["\ud800", "a \udc80 b", "\ude00\ud83d"])
def test_half_a_character_is_refused_with_its_place(model: ZLanguageModel, text: str) -> None:
    with pytest.raises(VocabularyError, match="U\\+D"):
        ZCompressor(model).compress(text, settings=EXACT)


def test_every_bit_is_counted_beside_gzip_zstd_and_the_model(
    model: ZLanguageModel, documents: list[ZDocument]
) -> None:
    for text, document in zip(TEXTS, documents, strict=True):
        bits = token_bits(model, text_tokenizer(model.tokenizer).ids(text))
        found = sizes_of(document, text, token_bits=bits)
        ends = sum(span.bits - span.symbols.bits for span in document.spans)
        codes = 16 * 8 * document.n_symbols  # 65,536 codes, 8 stages
        assert found.bits == codes + ends
        assert ends > 0
        assert found.total_bits == codes + ends + 8 * document.n_errata_bytes
        assert found.utf8_bits == 8 * len(text.encode())
        assert 0 < (found.model_bits or 0) < found.gzip_bits
        assert (found.zstd_bits or 1) > 0
