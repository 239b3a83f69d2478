"""Chunks that arrive as symbols are written again for the query, in both frameworks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny import tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import CodecMismatchError, SymbolCollisionError
from zcontext.integrations.exchange import (
    ACCURACY,
    ACTION,
    CODEC,
    N_POSITIONS,
    N_SYMBOLS,
    N_TOKENS,
    SPAN,
    TEXT,
    Chunk,
    Exchange,
    Exchanged,
    ExchangeSettings,
    stored_span,
)
from zcontext.spans import ZDocument
from zcontext.testing import ByteCodec

ANNA = "Anna lives in Oslo. In 2019 she moved there from Lima, where her father had a shop. "
PORT = "The harbour of the town is deep, and ships of every size can lie there in a storm. "
ASKED = "Where did she live before?"


def compressing(*, named: bool = True) -> ZCompressor:
    """A compressor whose focus has an idea of its own."""
    model = tiny_z(named=named, size=257 if named else 32, depth=4)
    focus = model.add_focus()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in focus.parameters():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    model.seal()
    return ZCompressor(model)


@pytest.fixture(scope="module")
def compressor() -> ZCompressor:
    return compressing()


def exchange(compressor: Any, *, question: str | None = ASKED, **given: Any) -> Exchange:
    chosen = ExchangeSettings(**{"min_tokens": 1, "ratio": 4, "query_aware": True} | given)
    return Exchange(
        compressor.vocabulary,
        compressor=lambda: compressor,
        settings=chosen,
        question=chosen.question_of(question),
    )


def arriving(compressor: Any, *texts: str, **given: Any) -> list[Chunk]:
    """Chunks whose texts already are symbols, written for any question."""
    before = exchange(compressor, question=None, **given)
    swapped = before.swap([Chunk(text, {"page": 7}, "a piece") for text in texts])
    return [Chunk(new.text, new.metadata({"page": 7}), "a piece") for new in swapped]


def document(found: Exchanged) -> ZDocument:
    assert found.document is not None
    return found.document


def test_symbols_are_written_again_together_with_texts(compressor: ZCompressor) -> None:
    (stored,) = arriving(compressor, ANNA)
    before = stored_span(stored.metadata)
    assert before is not None
    new, other = exchange(compressor).swap([stored, Chunk(PORT, {}, "a text")])
    expected = compressor.compress_together([before, PORT], question=ASKED, ratio=4)
    assert [document(new), document(other)] == expected
    assert new.text == compressor.vocabulary.render(expected[0].symbols) != stored.text
    assert stored_span(new.record) == expected[0]
    assert (new.record[ACTION], other.record[ACTION]) == ("refocused", "compressed")
    assert new.record[N_SYMBOLS] == expected[0].n_symbols
    for key in (N_TOKENS, CODEC):
        assert new.record[key] == stored.metadata[key]
    assert new.metadata(stored.metadata)["page"] == 7


def test_what_was_measured_of_the_symbols_before_is_left_out(compressor: ZCompressor) -> None:
    measured = CompressSettings(min_fidelity=0.01, protect=("numbers",))
    (stored,) = arriving(compressor, ANNA, compress=measured)
    assert ACCURACY in stored.metadata
    (new,) = exchange(compressor).swap([stored])
    assert new.record[ACTION] == "refocused"
    assert ACCURACY not in new.record
    assert new.record[N_POSITIONS] == stored.metadata[N_POSITIONS] == document(new).n_positions
    assert "2019" in new.text


@pytest.mark.parametrize("given", [{"query_aware": False}, {"question": None}, {"question": " "}])
def test_without_a_question_they_pass(compressor: ZCompressor, given: dict[str, Any]) -> None:
    (stored,) = arriving(compressor, ANNA)
    (new,) = exchange(compressor, **given).swap([stored])
    assert (new.text, new.metadata(stored.metadata)) == (stored.text, stored.metadata)


def test_what_a_codec_cannot_write_again_passes() -> None:
    for codec in (ByteCodec(), ZCompressor(tiny_z()), compressing(named=False)):
        (stored,) = arriving(codec, ANNA)
        (new,) = exchange(codec).swap([stored])
        assert (new.text, new.metadata(stored.metadata)) == (stored.text, stored.metadata)


def test_a_part_of_a_document_passes(compressor: ZCompressor) -> None:
    (stored,) = arriving(compressor, ANNA)
    half = Chunk(" ".join(stored.text.split()[:5]), stored.metadata, "half a piece")
    (new,) = exchange(compressor).swap([half])
    assert (new.text, new.metadata(half.metadata)) == (half.text, half.metadata)


def test_where_the_text_was_kept_it_is_written_from_the_text(compressor: ZCompressor) -> None:
    (stored,) = arriving(compressor, ANNA, keep_text=True)
    (new,) = exchange(compressor, keep_text=True, ratio=3).swap([stored])
    (expected,) = compressor.compress_together([ANNA], question=ASKED, ratio=3)
    assert document(new) == expected
    assert (new.record[ACTION], new.record[TEXT]) == ("compressed", ANNA)


@pytest.mark.parametrize("budget", [{"max_symbols": 60}, {"max_tokens": 100}])
def test_a_budget_of_the_list_is_kept(compressor: ZCompressor, budget: dict[str, int]) -> None:
    stored = arriving(compressor, ANNA, PORT)
    given = {"ratio": None, **budget}
    texts = [Chunk(PORT * 2, {}, "a text")]
    plain = exchange(compressor, question=None, **given).swap([*stored, *texts])
    found = exchange(compressor, **given).swap([*stored, *texts])
    assert [new.record[ACTION] for new in found[:2]] == ["refocused"] * 2
    n = [sum(document(new).n_symbols for new in of[:2]) for of in (plain, found)]
    assert n[0] == n[1]
    spent = sum(document(new).n_positions for new in found if new.document)
    assert spent <= next(iter(budget.values()))


def test_what_has_no_room_is_dropped_and_not_written(compressor: ZCompressor) -> None:
    stored = arriving(compressor, ANNA, PORT)
    found = exchange(compressor, ratio=None, max_tokens=25).swap(stored)
    assert [new.record[ACTION] for new in found] == ["refocused", "dropped"]
    assert document(found[0]).n_symbols == stored[0].metadata[N_SYMBOLS]


def test_a_cap_of_the_compressor_is_no_matter_for_what_is_stored(compressor: ZCompressor) -> None:
    (stored,) = arriving(compressor, ANNA)
    capped = {"ratio": None, "compress": CompressSettings(max_symbols=5)}
    new, other = exchange(compressor, **capped).swap([stored, Chunk(PORT, {}, "a text")])
    assert new.record[ACTION] == "refocused"
    assert document(new).n_symbols == stored.metadata[N_SYMBOLS]
    assert document(other).n_symbols == 5


def test_symbols_that_nothing_vouches_for_are_treated_as_before(compressor: ZCompressor) -> None:
    (stored,) = arriving(compressor, ANNA)
    bare = Chunk(stored.text, {}, "bare symbols")
    with pytest.raises(SymbolCollisionError):
        exchange(compressor).swap([bare])
    (kept,) = exchange(compressor, on_symbols="keep").swap([bare])
    assert kept.text == stored.text
    foreign = arriving(ByteCodec(), ANNA)
    with pytest.raises(CodecMismatchError):
        exchange(compressor).swap(foreign)
    damaged = Chunk(stored.text, {**stored.metadata, SPAN: "zdoc1.AAAA"}, "damaged")
    with pytest.raises(SymbolCollisionError):
        exchange(compressor).swap([damaged])


def test_langchains_documents(compressor: ZCompressor) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from zcontext.integrations.langchain import ZContextCompressor

    texts = [Document(page_content=text, metadata={"page": 7}) for text in (ANNA, PORT)]
    options: dict[str, Any] = {"model": compressor, "ratio": 4, "min_tokens": 1}
    stored = list(ZContextCompressor(**options).compress_documents(texts, ASKED))
    aware = ZContextCompressor(**options, query_aware=True)
    found = aware.compress_documents(stored, ASKED)
    assert [new.metadata[ACTION] for new in found] == ["refocused"] * 2
    assert [new.metadata["page"] for new in found] == [7, 7]
    sums = [sum(each.metadata[N_SYMBOLS] for each in of) for of in (stored, found)]
    assert sums[0] == sums[1]
    assert [new.page_content for new in found] != [old.page_content for old in stored]
    assert aware.compress_documents(stored, "") == stored


def test_llamaindexs_nodes(compressor: ZCompressor) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from zcontext.integrations.llamaindex import ZContextPostprocessor

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in (ANNA, PORT)]
    stored = ZContextPostprocessor(compressor, ratio=4, min_tokens=1).postprocess_nodes(nodes)
    aware = ZContextPostprocessor(compressor, ratio=4, min_tokens=1, query_aware=True)
    found = aware.postprocess_nodes(stored, query_str=ASKED)
    assert [new.node.metadata[ACTION] for new in found] == ["refocused"] * 2
    assert [new.node.node_id for new in found] == [old.node.node_id for old in nodes]
    sums = [sum(each.node.metadata[N_SYMBOLS] for each in of) for of in (stored, found)]
    assert sums[0] == sums[1]
    assert found[0].node.get_content() != stored[0].node.get_content()
