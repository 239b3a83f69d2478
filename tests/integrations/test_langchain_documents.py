"""ZContextCompressor at both ends of a LangChain pipeline."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_text_splitters import CharacterTextSplitter
from pieces import RIVER, SHORT, TEXTS
from pydantic import ValidationError

from zcontext.config import CompressSettings
from zcontext.errors import BundleError, CodecMismatchError, SymbolCollisionError
from zcontext.integrations.langchain import StaleSpanWarning, ZContextCompressor
from zcontext.spans import ZDocument
from zcontext.testing import ByteCodec


class Fixed(BaseRetriever):
    """Finds the same documents for every query."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


def documents() -> list[Document]:
    return [
        Document(page_content=text, metadata={"source": f"{i}.txt", "tags": ["a"]}, id=f"id-{i}")
        for i, text in enumerate(TEXTS)
    ]


def test_documents_keep_number_order_ids_and_metadata_and_are_not_changed() -> None:
    before = documents()
    untouched = [document.model_copy(deep=True) for document in before]
    compressor = ZContextCompressor(model=ByteCodec(), ratio=8)
    for after in (
        compressor.compress_documents(before, "q"),
        compressor.transform_documents(before),
    ):
        assert before == untouched
        assert [document.id for document in after] == ["id-0", "id-1", "id-2"]
        for old, new in zip(before, after, strict=True):
            assert type(new) is Document
            assert {k: new.metadata[k] for k in old.metadata} == old.metadata
            assert "page_content" not in new.metadata


def test_no_documents_give_no_documents() -> None:
    compressor = ZContextCompressor(model=ByteCodec())
    assert list(compressor.compress_documents([], "q")) == []
    assert list(compressor.transform_documents([])) == []


async def test_async_gives_what_sync_gives() -> None:
    compressor = ZContextCompressor(model=ByteCodec(), ratio=8)
    assert await compressor.acompress_documents(documents(), "q") == (
        compressor.compress_documents(documents(), "q")
    )
    assert await compressor.atransform_documents(documents()) == (
        compressor.transform_documents(documents())
    )


def test_empty_texts_duplicate_ids_and_odd_metadata_pass_through() -> None:
    before = [
        Document(page_content="", id="same", metadata={"score": 0.5}),
        Document(page_content=RIVER, id="same", metadata={"when": None, "page": 3}),
        Document(page_content=RIVER, id="same", metadata={"nested": {"a": [1]}}),
        Document(page_content=SHORT),
    ]
    after = ZContextCompressor(model=ByteCodec(), ratio=8).compress_documents(before, "q")
    assert [document.id for document in after] == ["same", "same", "same", None]
    assert after[0].page_content == ""
    assert after[3].page_content == SHORT
    assert after[1].page_content == after[2].page_content != RIVER
    assert after[2].metadata["nested"] == {"a": [1]}


def test_one_batch_call_serves_all_documents() -> None:
    codec = ByteCodec()
    ZContextCompressor(model=codec, ratio=8).compress_documents(documents(), "q")
    assert [call.method for call in codec.calls] == ["compress_many"]


def test_a_retriever_and_a_pipeline_pass_on_symbols_and_reuse_indexed_spans() -> None:
    codec = ByteCodec()
    compressor = ZContextCompressor(model=codec, ratio=8)
    split = CharacterTextSplitter(separator=". ", chunk_size=120, chunk_overlap=0)
    pipeline = DocumentCompressorPipeline(transformers=[split, compressor])
    retriever = ContextualCompressionRetriever(
        base_compressor=pipeline, base_retriever=Fixed(documents=documents())
    )
    found = retriever.invoke("river")
    pieces = split.split_documents(documents())
    assert len(found) == len(pieces)
    for piece, document in zip(pieces, found, strict=True):
        span = ZDocument.from_compact(document.metadata["zcontext_span"])
        assert codec.decompress(span) == piece.page_content
        assert document.page_content == codec.vocabulary.render(span.symbols)
    indexed = list(compressor.transform_documents(pieces))
    codec.calls.clear()
    again = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=Fixed(documents=indexed)
    ).invoke("river")
    assert [d.page_content for d in again] == [d.page_content for d in found]
    assert not codec.calls


@pytest.mark.parametrize("key", ["relevance_score", "query_similarity_score"])
def test_a_budget_of_positions_keeps_the_most_relevant_and_leaves_out_what_has_no_room(
    key: str,
) -> None:
    codec = ByteCodec()
    before = documents()
    for document, score in zip(before, (0.001, 0.9, 0.05), strict=True):
        document.metadata[key] = score
    room = len(TEXTS[1]) + len(TEXTS[2]) // 8 + 2
    compressor = ZContextCompressor(model=codec, max_tokens=room)
    best, second = compressor.compress_documents(before, "q")
    assert (best.id, best.page_content) == ("id-1", TEXTS[1])
    assert (best.metadata["zcontext_action"], best.metadata["zcontext_reason"]) == ("raw", "fits")
    assert (second.id, second.metadata["zcontext_action"]) == ("id-2", "compressed")
    assert second.metadata["zcontext_n_symbols"] + len(TEXTS[1]) <= room
    assert len(compressor.transform_documents(before)) == 3  # indexing has no budget


def test_without_scores_the_order_of_the_list_counts_and_a_trace_says_what_was_left_out() -> None:
    class Trace(BaseCallbackHandler):
        def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
            self.outputs = outputs

    trace = Trace()
    before = documents()
    before[0].metadata["relevance_score"] = "high"  # not ours to understand
    compressor = ZContextCompressor(model=ByteCodec(), max_tokens=len(TEXTS[0]) // 16)
    after = compressor.compress_documents(before, "q", callbacks=[trace])
    assert [document.id for document in after] == ["id-0"]
    assert trace.outputs["n_dropped"] == 2


async def test_an_async_pipeline_passes_on_symbols() -> None:
    pipeline = DocumentCompressorPipeline(
        transformers=[ZContextCompressor(model=ByteCodec(), ratio=8)]
    )
    retriever = ContextualCompressionRetriever(
        base_compressor=pipeline, base_retriever=Fixed(documents=documents())
    )
    assert await retriever.ainvoke("q") == retriever.invoke("q")


def test_splitting_after_indexing_is_noticed() -> None:
    compressor = ZContextCompressor(model=ByteCodec(), ratio=8)
    indexed = compressor.transform_documents(documents())
    split = CharacterTextSplitter(separator=". ", chunk_size=80, chunk_overlap=0)
    with pytest.warns(StaleSpanWarning, match="after splitting"):
        compressor.compress_documents(split.split_documents(indexed), "q")


class Trace(BaseCallbackHandler):
    """Remembers chain runs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.seen.append(("start", kwargs["name"]))

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.seen.append(("end", outputs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(("error", type(error)))


async def test_callbacks_are_told_what_was_done() -> None:
    trace = Trace()
    compressor = ZContextCompressor(model=ByteCodec(), ratio=8)
    mixed = [*documents(), Document(page_content=SHORT)]
    compressor.compress_documents(mixed, "q", callbacks=[trace])
    await compressor.acompress_documents(mixed, "q", callbacks=[trace])
    compressor.transform_documents(mixed, callbacks=[trace])
    assert [kind for kind, _ in trace.seen] == ["start", "end"] * 3
    assert trace.seen[0][1] == "ZContextCompressor"
    assert trace.seen[1][1]["actions"] == {"compressed": 3, "raw": 1}
    assert trace.seen[5][1]["actions"] == {"indexed": 3, "raw": 1}
    assert trace.seen[1][1]["n_tokens"] > 7 * trace.seen[1][1]["n_symbols"] > 0


def test_callbacks_are_told_of_an_error() -> None:
    trace = Trace()
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress(RIVER).symbols)
    with pytest.raises(SymbolCollisionError, match=r"document 0 \(id='x'\)"):
        ZContextCompressor(model=codec).compress_documents(
            [Document(page_content=f"see {spelled}", id="x")], "q", callbacks=[trace]
        )
    assert trace.seen[-1] == ("error", SymbolCollisionError)


def test_documents_exchanged_by_another_codec_are_refused() -> None:
    old = ZContextCompressor(model=ByteCodec(name="old"), ratio=8)
    new = ZContextCompressor(model=ByteCodec(name="new"), ratio=8)
    with pytest.raises(CodecMismatchError, match="document 0 "):
        new.compress_documents(old.compress_documents(documents(), "q"), "q")


def test_settings_reach_the_compressor() -> None:
    codec = ByteCodec()
    settings = CompressSettings(ratio=4, depth=2, window=64)
    (document,) = ZContextCompressor(model=codec, settings=settings).compress_documents(
        documents()[:1], "q"
    )
    span = ZDocument.from_compact(document.metadata["zcontext_span"])
    assert (span.depth, len(span.spans) > 1, round(span.ratio)) == (2, True, 4)


def test_a_wrong_argument_is_refused_when_the_compressor_is_made() -> None:
    for wrong in ({"model": 3}, {"ratio": 0.2}, {"ratio": 4, "max_symbols": 9}, {"rate": 4}):
        with pytest.raises(ValidationError):
            ZContextCompressor(**{"model": ByteCodec(), **wrong})
    with pytest.raises(BundleError, match="nowhere"):
        ZContextCompressor(model="nowhere")


async def test_a_slow_document_does_not_block_the_event_loop() -> None:
    class Slow(ByteCodec):
        def compress_many(self, *args: Any, **kwargs: Any) -> list[ZDocument]:
            time.sleep(0.3)
            return super().compress_many(*args, **kwargs)

    compressor = ZContextCompressor(model=Slow(), ratio=8)
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - before)

    ticking = asyncio.create_task(tick())
    await compressor.acompress_documents(documents(), "q")
    ticking.cancel()
    assert len(gaps) > 5
    assert max(gaps) < 0.25
