"""The bundle that ships, on the 4-bit base it was made for: whole, and of use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zcontext.bundle import read_manifest
from zcontext.bundles import DEFAULT_BUNDLE, find_bundle
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.decompressor import ZDecompressor, embed_symbols
from zcontext.fidelity import measure_fidelity, overall_fidelity
from zcontext.inferencer import Inferencer
from zcontext.sealing import PARTS
from zcontext.tokenization import text_tokenizer
from zcontext.training.objective import BITS
from zcontext.training.restore_loss import restore_loss

MEMO = Path(__file__).parent.parent / "examples" / "documents" / "memo.txt"
MIB = 2**20


@pytest.fixture(scope="module")
def compressor() -> ZCompressor:
    return ZCompressor.from_bundle()


@pytest.fixture(scope="module")
def text() -> str:
    return MEMO.read_text(encoding="utf-8")[:1500]


def test_its_files_are_small_enough_to_keep_and_it_has_a_card() -> None:
    folder = find_bundle(DEFAULT_BUNDLE)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {
        "manifest.json",
        "README.md",
        *(f"{p}.safetensors" for p in (*PARTS, "channel", "focus", "compose")),
    }
    assert max(sizes.values()) <= 16 * MIB
    assert sum(sizes.values()) <= 60 * MIB
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert read_manifest(folder)["codec"] in card
    for word in ("Data", "Licence", "Steps", "Hardware", "Figures"):
        assert word in card


def test_symbols_bring_back_much_of_a_text_it_never_saw(compressor: ZCompressor, text: str) -> None:
    document = compressor.compress(text, ratio=4)
    assert document.ratio >= 4
    measured = overall_fidelity(measure_fidelity(compressor.model, document, text))
    assert measured.token_accuracy > 0.4
    back = ZDecompressor(compressor.model).decompress(document.spans[0])
    source = set(text[: document.spans[0].chars.end].lower().split())
    assert len(source & set(back.lower().split())) > 0.3 * len(source)


def test_the_decompressor_reads_the_symbols_and_not_its_own_expectations(
    compressor: ZCompressor, text: str
) -> None:
    """The shuffled gap: symbols of another window cost bits."""
    model = compressor.model
    ids = text_tokenizer(model.tokenizer).ids(text)[:192]
    windows = torch.tensor([list(ids[at : at + 48]) for at in range(0, 192, 48)])
    texts = [model.tokenizer.decode(row) for row in windows]
    documents = compressor.compress_many(texts, ratio=4)
    shortest = min(d.n_symbols for d in documents)
    symbols = torch.stack([embed_symbols(model, d.symbols[:shortest]) for d in documents])
    with model.using("decompress"), torch.no_grad():
        right, _ = restore_loss(model, symbols, windows)
        wrong, _ = restore_loss(model, symbols.roll(1, dims=0), windows)
    assert float((wrong - right)[:, :-1].mean()) * BITS > 1.5


def test_the_channel_hears_what_the_reader_alone_misses(
    compressor: ZCompressor, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = compressor.compress(text[:600], ratio=4)
    heard = overall_fidelity(measure_fidelity(compressor.model, document, text[:600]))
    monkeypatch.setattr(compressor.model, "channel", None)
    alone = overall_fidelity(measure_fidelity(compressor.model, document, text[:600]))
    assert heard.token_accuracy > 0.8
    assert heard.token_accuracy > alone.token_accuracy + 0.05
    assert heard.bits_missing < 0.7 * alone.bits_missing


def test_the_same_text_gives_the_same_symbols(compressor: ZCompressor, text: str) -> None:
    once, twice = (compressor.compress(text[:400], ratio=8) for _ in range(2))
    assert once.to_bytes() == twice.to_bytes()


def test_a_text_written_symbol_by_symbol_comes_back(compressor: ZCompressor, text: str) -> None:
    document = compressor.compress(text[:400], ratio=8, writer="autoregressive")
    assert 6 < document.ratio < 11
    assert ZDecompressor(compressor.model).decompress(document) == text[:400]


def test_at_depth_1_the_base_says_what_to_name(compressor: ZCompressor, text: str) -> None:
    """Of the same symbols, those that the base chose leave fewer bits to be guessed."""
    missing = {}
    for who in ("writer", "base", "auto"):
        settings = CompressSettings(ratio=8, depth=1, surprisal=who)  # type: ignore[arg-type]
        document = compressor.compress(text[:600], settings=settings)
        measured = measure_fidelity(compressor.model, document, text[:600])
        missing[who] = overall_fidelity(measured).bits_missing
    assert missing["base"] < missing["writer"]
    assert missing["auto"] == missing["base"]


def test_it_answers_from_symbols(compressor: ZCompressor, text: str) -> None:
    document = compressor.compress(text[:600], ratio=4)
    answer = Inferencer(compressor.model).ask("What is this about?", [document.symbols])
    assert answer.text.strip()
    assert answer.n_prompt_symbols == document.n_symbols
