"""Focus: symbols go where a text answers the question, and mean what they mean all the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tiny import tiny_base, tiny_focused, tiny_z
from zcontext.attending import relevance
from zcontext.bundle import load_bundle, save_bundle
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError, ModelError
from zcontext.focus import OF_READER
from zcontext.integrations.exchange import Chunk, Exchange, ExchangeSettings
from zcontext.readers import ZDecompressor
from zcontext.spans import SupportsFocus, ZDocument
from zcontext.store import MemoryStore

TEXT = "Anna lives in Oslo. In 2019 she moved there from Lima, where her father had a shop. "
OTHER = "The harbour of the town is deep, and ships of every size can lie there in a storm. "
ASKED = "Where did she live before?"
SMALL = CompressSettings(window=32)


def lengths(document: ZDocument) -> list[int]:
    """Tokens of every segment."""
    found = []
    for span in document.spans:
        edges = [0, *(span.ends or ())]
        found += [b - a for a, b in pairwise(edges)]
    return found


def test_symbols_go_unevenly_and_are_as_many_as_without() -> None:
    compressor = ZCompressor(tiny_focused())
    plain = compressor.compress(TEXT * 2, settings=SMALL, ratio=4)
    asked = compressor.compress(TEXT * 2, settings=SMALL, ratio=4, question=ASKED)
    assert asked.n_symbols == plain.n_symbols
    assert lengths(asked).count(1) > lengths(plain).count(1)
    assert max(lengths(asked)) > max(lengths(plain))
    assert asked.n_tokens == sum(lengths(asked))


@pytest.mark.parametrize("budget", [{"ratio": 3}, {"max_symbols": 17}, {"bits_per_symbol": 12.0}])
def test_every_budget_is_kept(budget: dict[str, float]) -> None:
    document = ZCompressor(tiny_focused()).compress(TEXT, settings=SMALL, question=ASKED, **budget)
    if "max_symbols" in budget:
        assert document.n_symbols == 17
    elif "ratio" in budget:
        assert document.n_symbols == document.n_tokens // 3
    else:
        assert 0 < document.n_symbols < document.n_tokens


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ZCompressor]:
    """A compressor of a bundle that was saved and loaded, and says something of its reader."""
    monkeypatch.setattr("zcontext.bundle.load_base", lambda *args, **kwargs: tiny_base())

    def build(**said: float) -> ZCompressor:
        model = tiny_focused()
        assert model.focus is not None
        before = model.focus.digest
        for name, value in said.items():
            getattr(model.focus, name).fill_(value)
        model.seal()
        assert model.focus.digest != before, "stores tell documents apart"
        save_bundle(model, tmp_path / "bundle")
        return ZCompressor(load_bundle(tmp_path / "bundle"))

    return build


def test_a_bundle_that_says_what_is_enough_spends_no_more_on_a_question(
    told: Callable[..., ZCompressor],
) -> None:
    free = ZCompressor(tiny_focused()).compress(TEXT * 2, settings=SMALL, ratio=2, question=ASKED)
    compressor = told(enough=9)
    held = compressor.compress(TEXT * 2, settings=SMALL, ratio=2, question=ASKED)
    assert held.n_symbols == len(held.spans) + 9 < free.n_symbols
    together = compressor.compress_together([TEXT, TEXT * 2], question=ASKED, ratio=2)
    assert sum(d.n_symbols for d in together) == sum(len(d.spans) for d in together) + 9
    few = compressor.compress(TEXT * 2, settings=SMALL, ratio=16, question=ASKED)
    assert few.n_symbols == few.n_tokens // 16
    plain = compressor.compress(TEXT * 2, settings=SMALL, ratio=2)
    assert plain.n_symbols == plain.n_tokens // 2


def test_a_bundle_whose_reader_reads_pairs_has_them_written(
    told: Callable[..., ZCompressor],
) -> None:
    compressors = ZCompressor(tiny_focused()), told(pairs=1000.0)
    single, paired = (
        each.compress(TEXT * 2, settings=SMALL, ratio=6, question=ASKED) for each in compressors
    )
    assert paired.n_symbols == single.n_symbols
    alone = [lengths(document).count(1) for document in (single, paired)]
    assert alone[1] < alone[0]


def test_a_focus_from_before_this_was_known_spends_all_a_token_a_symbol() -> None:
    model = tiny_focused()
    assert model.focus is not None
    state = model.focus.state_dict()
    for name in OF_READER:
        del state[name]
        getattr(model.focus, name).fill_(9)
    model.focus.load_state_dict(state)
    assert (int(model.focus.enough), float(model.focus.pairs)) == (0, 0.0)


def test_without_a_question_nothing_changes() -> None:
    plain, with_focus = tiny_z(), tiny_focused()
    assert with_focus.codec == plain.codec
    before = ZCompressor(plain).compress(TEXT, settings=SMALL)
    assert ZCompressor(with_focus).compress(TEXT, settings=SMALL).to_bytes() == before.to_bytes()


@pytest.mark.parametrize("budget", [{"ratio": 3.0}, {"max_symbols": 17}, {"bits_per_symbol": 12.0}])
def test_a_text_to_go_on_with_has_its_end_token_by_token(budget: dict[str, float]) -> None:
    compressor = ZCompressor(tiny_z())  # without a focus: nothing is asked
    chosen = SMALL.replace(**budget)
    document = compressor.compress(TEXT * 3, settings=chosen, emphasis="end")
    if "bits_per_symbol" not in budget:
        assert document.n_symbols == compressor.compress(TEXT * 3, settings=chosen).n_symbols
    segments = lengths(document)
    assert sum(segments) == document.n_tokens
    ends = [length == 1 for length in segments]
    assert ends[-1]
    assert ends[ends.index(True) :].count(False) <= 1  # where the end begins within a window
    chosen = chosen.replace(emphasis="end")
    assert compressor.compress_many([TEXT, TEXT * 3], settings=chosen)[1] == document
    assert list(compressor.stream(TEXT * 3, settings=chosen)) == list(document.spans)


def test_a_text_to_go_on_with_keeps_what_is_protected_and_reads_back_exactly() -> None:
    model = tiny_z()
    chosen = SMALL.replace(emphasis="end", protect=("numbers",), ratio=3.0, exact=True)
    document = ZCompressor(model).compress(TEXT, settings=chosen)
    assert "2019" in [lit.text.strip() for span in document.spans for lit in span.literals]
    assert ZDecompressor(model).decompress(document) == TEXT


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"emphasis": "start"}, "None or one of end"),
        ({"emphasis": "end", "question": ASKED}, "beside a question"),
        ({"emphasis": "end", "writer": "autoregressive"}, "autoregressive"),
    ],
)
def test_an_emphasis_that_cannot_be_is_refused(changes: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        SMALL.replace(**changes)
    assert caught.value.field == "emphasis"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_same_question_gives_the_same_bytes_alone_and_among_others(batch_size: int) -> None:
    compressor = ZCompressor(tiny_focused(), batch_size=batch_size)
    chosen = SMALL.replace(question=ASKED)
    texts = [TEXT, "Another text.", TEXT + OTHER]
    alone = [compressor.compress(text, settings=chosen).to_bytes() for text in texts]
    together = compressor.compress_many(texts, settings=chosen)
    assert [document.to_bytes() for document in together] == alone


def test_text_that_is_kept_stays_where_it_is() -> None:
    compressor = ZCompressor(tiny_focused())
    chosen = SMALL.replace(question=ASKED, protect=("numbers",), ratio=3.0)
    document = compressor.compress(TEXT, settings=chosen)
    assert "2019" in [lit.text.strip() for span in document.spans for lit in span.literals]
    plain = compressor.compress(TEXT, settings=chosen.replace(question=None))
    assert document.n_positions == plain.n_positions
    for span in document.spans:
        assert span.ends is None or list(span.ends) == sorted(set(span.ends))


def test_it_reads_back_exactly_where_that_is_asked_for() -> None:
    model = tiny_focused()
    chosen = SMALL.replace(question=ASKED, exact=True)
    document = ZCompressor(model).compress(TEXT, settings=chosen)
    assert ZDecompressor(model).decompress(document) == TEXT


def test_texts_found_for_one_question_share_one_budget() -> None:
    compressor = ZCompressor(tiny_focused())
    assert isinstance(compressor, SupportsFocus)
    texts = [OTHER, TEXT, OTHER * 2]
    together = compressor.compress_together(texts, question=ASKED, settings=SMALL, ratio=4)
    assert [document.n_tokens for document in together] == [len(text) for text in texts]
    alone = [compressor.compress(text, settings=SMALL, ratio=4) for text in texts]
    assert sum(d.n_symbols for d in together) == sum(d.n_symbols for d in alone)
    assert [d.n_symbols for d in together] != [d.n_symbols for d in alone]
    (single,) = compressor.compress_together([TEXT], question=ASKED, settings=SMALL, ratio=4)
    assert single == compressor.compress(TEXT, settings=SMALL, ratio=4, question=ASKED)
    assert compressor.compress_together([], question=ASKED, ratio=4) == []
    with pytest.raises(ConfigError, match="caps one document"):
        compressor.compress_together(
            texts, question=ASKED, settings=CompressSettings(max_symbols=9)
        )


def test_a_codec_without_focus_writes_texts_by_themselves() -> None:
    compressor = ZCompressor(tiny_z())
    together = compressor.compress_together([TEXT, OTHER], question=ASKED, ratio=4)
    assert together == [
        compressor.compress(text, ratio=4, question=ASKED) for text in (TEXT, OTHER)
    ]


def test_a_store_tells_documents_of_another_focus_apart() -> None:
    store = MemoryStore()
    for model in (tiny_focused(seed=0), tiny_focused(seed=0)):
        ZCompressor(model, store=store).compress(TEXT, question=ASKED)
    assert len(store) == 1
    retrained = tiny_focused(seed=0)
    with torch.no_grad():
        retrained.add_focus().out.weight.add_(0.5)
    retrained.seal()
    ZCompressor(retrained, store=store).compress(TEXT, question=ASKED)
    ZCompressor(tiny_z(), store=store).compress(TEXT, question=ASKED)
    assert len(store) == 3


@pytest.mark.parametrize("layers", [0, 3, 4])
def test_a_bundle_keeps_it(layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcontext.bundle.load_base", lambda *_, **__: tiny_base())
    model = tiny_focused()
    model.adapters.add("focus", depth=layers)
    model.seal()
    save_bundle(model, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert again.focus is not None
    assert model.focus is not None
    assert again.focus.digest == model.focus.digest
    assert again.adapters.depth("focus") == max(2, layers)
    documents = [
        ZCompressor(m).compress(TEXT, settings=SMALL, question=ASKED) for m in (model, again)
    ]
    assert documents[0].to_bytes() == documents[1].to_bytes()


def test_padding_tells_it_nothing() -> None:
    model = tiny_focused()
    asked, text = list(b"Who?"), list(TEXT.encode())
    rows = [[*asked, *text[:20]], [*asked, *text]]
    found = []
    with model.using("focus"), torch.no_grad():
        for width in (len(rows[1]), len(rows[1]) + 13):
            ids = torch.full((2, width), model.end_token)
            mask = torch.zeros_like(ids)
            for k, row in enumerate(rows):
                ids[k, : len(row)] = torch.tensor(row)
                mask[k, : len(row)] = 1
            found.append(relevance(model, ids, mask, [4, 4]))
    for narrow, wide in zip(*found, strict=True):
        torch.testing.assert_close(narrow, wide, atol=1e-3, rtol=1e-4)
    assert [len(row) for row in found[0]] == [20, len(text)]


def test_asking_a_codec_that_has_none_is_an_error() -> None:
    model = tiny_z()
    with pytest.raises(ModelError, match="no part 'focus'"), model.using(None):
        relevance(model, torch.zeros(1, 4).long(), torch.ones(1, 4).long(), [2])


def test_a_framework_has_retrieved_texts_share_a_budget() -> None:
    compressor = ZCompressor(tiny_focused())
    settings = ExchangeSettings(ratio=4, min_tokens=1, query_aware=True)
    exchange = Exchange(
        compressor.vocabulary, compressor=lambda: compressor, settings=settings, question=ASKED
    )
    found = exchange.swap([Chunk(text, {}, "a piece") for text in (OTHER, TEXT)])
    together = compressor.compress_together([OTHER, TEXT], question=ASKED, ratio=4)
    written = [compressor.vocabulary.render(document.symbols) for document in together]
    assert [each.text for each in found] == written
