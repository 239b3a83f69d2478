"""Spans through parsers, pipelines, caches and stores, and into another process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_text_splitters import RecursiveCharacterTextSplitter
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import (
    HierarchicalNodeParser,
    LangchainNodeParser,
    MarkdownNodeParser,
    NodeParser,
    SemanticSplitterNodeParser,
    SentenceSplitter,
    SentenceWindowNodeParser,
    TokenTextSplitter,
)
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llamaindex_parts import WordEmbedding, arrived, compressions, nodes, passage, reads, written

from zcontext.errors import CodecMismatchError
from zcontext.integrations.exchange import StaleSpanWarning, stored_span
from zcontext.integrations.llamaindex import (
    ZContextLLM,
    ZContextPostprocessor,
    ZContextTransform,
    zcontext_synthesizer,
)
from zcontext.testing import ByteCodec

QUERY = "When did the bridge of Bern open?"
HERE = Path(__file__).parent
TEXT = "\n\n".join(passage(at) for at in range(8))

PARSERS: dict[str, Callable[[], NodeParser]] = {
    "sentences": lambda: SentenceSplitter(chunk_size=96, chunk_overlap=0),
    "tokens": lambda: TokenTextSplitter(chunk_size=96, chunk_overlap=0),
    "windows": lambda: SentenceWindowNodeParser.from_defaults(window_size=2),
    "markdown": MarkdownNodeParser,
    "semantic": lambda: SemanticSplitterNodeParser.from_defaults(embed_model=WordEmbedding()),
    "langchain": lambda: LangchainNodeParser(
        RecursiveCharacterTextSplitter(chunk_size=300, chunk_overlap=0)
    ),
    "hierarchy": lambda: HierarchicalNodeParser.from_defaults(
        chunk_sizes=[256, 96], chunk_overlap=0
    ),
}


def documents(n: int = 4) -> list[Document]:
    return [
        Document(text=f"{passage(at)}\n\n{passage(at + 20)}", id_=f"doc-{at}", metadata={"at": at})
        for at in range(n)
    ]


def scored(given: list[BaseNode]) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1.0) for node in given]


# Parsers


@pytest.mark.parametrize("name", PARSERS)
def test_nodes_of_every_parser_are_written_stored_and_read_id_by_id(name: str) -> None:
    codec = ByteCodec(context_length=100_000)
    parsed = PARSERS[name]().get_nodes_from_documents([Document(text=TEXT)])
    indexed = ZContextTransform(codec, ratio=6, min_tokens=1)(parsed)
    for node, before in zip(indexed, parsed, strict=True):
        document = stored_span(node.metadata)
        assert document is not None
        assert codec.decompress(document) == before.get_content()
        assert node.relationships == before.relationships
    codec.calls.clear()
    new = ZContextPostprocessor(codec, min_tokens=1).postprocess_nodes(scored(indexed))
    zcontext_synthesizer(ZContextLLM(codec)).synthesize(QUERY, new)
    assert arrived(codec) == written(indexed)
    assert compressions(codec) == 0


@pytest.mark.parametrize("name", PARSERS)
def test_no_parser_cuts_a_written_symbol(name: str) -> None:
    codec = ByteCodec()
    symbols = codec.compress(TEXT, ratio=4).symbols
    document = Document(text=codec.vocabulary.render(symbols))
    parsed = PARSERS[name]().get_nodes_from_documents([document])
    if name == "hierarchy":  # every level holds the whole text
        parsed = [node for node in parsed if not node.child_nodes]
    got = codec.vocabulary.parse(" ".join(node.get_content() for node in parsed))
    assert got == symbols
    if name in ("sentences", "tokens", "langchain", "hierarchy"):
        assert len(parsed) > 3


def test_a_parser_that_counts_symbols_packs_them_densely() -> None:
    codec = ByteCodec()
    symbols = codec.compress(TEXT, ratio=4).symbols
    splitter = SentenceSplitter(
        chunk_size=100, chunk_overlap=0, tokenizer=ZContextLLM(codec).tokenizer
    )
    parts = splitter.split_text(codec.vocabulary.render(symbols))
    counts = [len(codec.vocabulary.parse(part)) for part in parts]
    assert sum(counts) == len(symbols)
    assert max(counts) <= 100
    assert len(parts) <= 2 * len(symbols) / 100 + 1


def test_a_sentence_window_is_compressed_as_the_window_it_became() -> None:
    codec = ByteCodec()
    parsed = PARSERS["windows"]().get_nodes_from_documents([Document(text=TEXT)])
    windows = MetadataReplacementPostProcessor("window").postprocess_nodes(scored(parsed[:3]))
    new = ZContextPostprocessor(codec).postprocess_nodes(windows)
    document = stored_span(new[1].node.metadata)
    assert document is not None
    assert codec.decompress(document) == parsed[1].metadata["window"]
    # With spans of the single sentences from index time, it says what it costs.
    fresh = PARSERS["windows"]().get_nodes_from_documents([Document(text=TEXT)])
    indexed = scored(ZContextTransform(codec)(fresh[:3]))
    windows = MetadataReplacementPostProcessor("window").postprocess_nodes(indexed)
    with pytest.warns(StaleSpanWarning, match="outdated span"):
        again = ZContextPostprocessor(codec).postprocess_nodes(windows)
    assert written(again) == written(new)


# Pipelines


def pipeline(codec: ByteCodec, *, embedder: WordEmbedding | None = None, **options: Any) -> Any:
    return IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=96, chunk_overlap=0),
            ZContextTransform(codec, ratio=8),
            embedder or WordEmbedding(),
        ],
        **options,
    )


def test_a_cached_second_run_makes_no_model_call() -> None:
    codec = ByteCodec()
    made = pipeline(codec)
    first = made.run(documents=documents())
    n = compressions(codec)
    second = made.run(documents=documents())
    assert compressions(codec) == n == len(first)
    assert written(second) == written(first) != []
    assert [node.node_id for node in second] == [node.node_id for node in first]
    assert [node.get_content() for node in second] == [node.get_content() for node in first]


def test_embeddings_come_from_the_original_text_wherever_the_transform_stands() -> None:
    embedder = WordEmbedding()
    indexed = pipeline(ByteCodec(), embedder=embedder).run(documents=documents(1))
    assert embedder.seen
    assert not any("zcontext" in text or "[|z" in text for text in embedder.seen)
    plain = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=96, chunk_overlap=0), WordEmbedding()]
    ).run(documents=documents(1))
    assert [node.embedding for node in indexed] == [node.embedding for node in plain]


def test_an_async_run_writes_the_same_and_uses_the_same_cache() -> None:
    codec = ByteCodec()
    made = pipeline(codec)
    first = asyncio.run(made.arun(documents=documents()))
    n = compressions(codec)
    assert written(made.run(documents=documents())) == written(first)
    assert written(asyncio.run(made.arun(documents=documents()))) == written(first)
    assert compressions(codec) == n


def test_a_persisted_cache_serves_a_new_pipeline_of_the_same_codec_only(tmp_path: Path) -> None:
    made = pipeline(ByteCodec())
    first = made.run(documents=documents())
    made.persist(str(tmp_path))
    same, other, coarser = ByteCodec(), ByteCodec(name="other"), ByteCodec()
    again = pipeline(same)
    again.load(str(tmp_path))
    assert written(again.run(documents=documents())) == written(first)
    assert compressions(same) == 0
    cache = IngestionCache.from_persist_path(str(tmp_path / "llama_cache"))
    pipeline(other, cache=cache).run(documents=documents())
    assert compressions(other) == len(first)
    parser = SentenceSplitter(chunk_size=96, chunk_overlap=0)
    IngestionPipeline(
        transformations=[parser, ZContextTransform(coarser, ratio=16)], cache=cache
    ).run(documents=documents())
    assert compressions(coarser) == len(first)


def test_upserts_compress_what_changed_and_nothing_else() -> None:
    codec = ByteCodec()
    made = pipeline(
        codec,
        docstore=SimpleDocumentStore(),
        vector_store=SimpleVectorStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    made.disable_cache = True
    n = len(made.run(documents=documents()))
    assert compressions(codec) == n
    assert made.run(documents=documents()) == []
    changed = documents()
    changed[2].set_content(passage(50))
    new = made.run(documents=changed)
    assert compressions(codec) == n + len(new)
    assert {node.ref_doc_id for node in new} == {"doc-2"}


# Stores


def simple_store(folder: Path) -> BasePydanticVectorStore | None:
    return None


def qdrant_store(folder: Path) -> BasePydanticVectorStore:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder / "qdrant"))
    return QdrantVectorStore(client=client, collection_name="chunks")


STORES = {"simple": simple_store, "qdrant": qdrant_store}


def build(codec: ByteCodec, folder: Path, store: str) -> VectorStoreIndex:
    made = STORES[store](folder)
    context = StorageContext.from_defaults(**({"vector_store": made} if made else {}))
    transform = ZContextTransform(codec, ratio=8)
    parsed = SentenceSplitter(chunk_size=96, chunk_overlap=0).get_nodes_from_documents(documents())
    return VectorStoreIndex(transform(parsed), storage_context=context, embed_model=WordEmbedding())


def ask(index: VectorStoreIndex, codec: ByteCodec, **options: Any) -> Any:
    llm = ZContextLLM(codec)
    engine = index.as_query_engine(
        llm=llm,
        similarity_top_k=4,
        node_postprocessors=[ZContextPostprocessor(codec)],
        response_synthesizer=zcontext_synthesizer(llm, **options),
    )
    return engine.query(QUERY)


def reopen(folder: Path, store: str) -> VectorStoreIndex:
    from llama_index.core import load_index_from_storage

    made = STORES[store](folder)
    if made is not None:
        return VectorStoreIndex.from_vector_store(made, embed_model=WordEmbedding())
    context = StorageContext.from_defaults(persist_dir=str(folder))
    return load_index_from_storage(context, embed_model=WordEmbedding())  # type: ignore[return-value]


def close(index: VectorStoreIndex) -> None:
    client = getattr(index.vector_store, "_client", None)
    if client is not None:
        client.close()


def answer_from(folder: str, store: str) -> str:
    """What another process does: opens the store, asks, and tells what arrived."""
    codec = ByteCodec()
    index = reopen(Path(folder), store)
    response = ask(index, codec)
    close(index)
    return json.dumps(
        {
            "ids": [each.node.node_id for each in response.source_nodes],
            "arrived": arrived(codec),
            "compressions": compressions(codec),
            "answer": str(response),
        }
    )


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
@pytest.mark.parametrize("store", STORES)
def test_a_persisted_index_answers_in_a_new_process_with_the_symbols_written_before(
    store: str, tmp_path: Path
) -> None:
    codec = ByteCodec()
    index = build(codec, tmp_path, store)
    response = ask(index, codec)
    spans = {n.node.node_id: written([n]) for n in response.source_nodes}
    assert arrived(codec) == [code for codes in spans.values() for code in codes] != []
    if store == "simple":
        index.storage_context.persist(str(tmp_path))
    close(index)
    code = f"import test_llamaindex_stores as t; print(t.answer_from({str(tmp_path)!r}, {store!r}))"
    paths = [str(HERE), str(HERE.parents[1] / "src")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ids"] == list(spans)
    assert [tuple(each) for each in told["arrived"]] == arrived(codec)
    assert told["compressions"] == 0
    assert told["answer"] == str(response)


def test_the_docstore_keeps_the_originals_for_citations(tmp_path: Path) -> None:
    codec = ByteCodec()
    index = build(codec, tmp_path, "simple")
    for each in ask(index, codec).source_nodes:
        original = index.docstore.get_node(each.node.node_id)
        assert "[|z" in each.node.get_content()
        assert "[|z" not in original.get_content()
        document = stored_span(original.metadata)
        assert document is not None
        assert codec.decompress(document) == original.get_content()


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_a_query_engine_reads_what_was_indexed_in_every_mode(mode: str, tmp_path: Path) -> None:
    codec = ByteCodec()
    response = ask(build(codec, tmp_path, "simple"), codec, response_mode=mode)
    assert arrived(codec) == written(response.source_nodes) != []


def test_a_query_engine_without_results_answers_that_there_are_none() -> None:
    codec = ByteCodec()
    index = VectorStoreIndex([], embed_model=WordEmbedding())
    assert str(ask(index, codec)) == "Empty Response"
    assert reads(codec) == 0


def test_symbols_of_another_codec_that_a_pipeline_put_into_the_text_are_refused() -> None:
    old = ByteCodec(name="old")
    given = ZContextPostprocessor(old).postprocess_nodes(nodes(1))
    given[0].node.metadata = {}  # a store that lost the record
    with pytest.raises(CodecMismatchError, match="was written by codec"):
        zcontext_synthesizer(ZContextLLM(ByteCodec())).synthesize(QUERY, given)
