"""A LlamaIndex query engine whose model reads symbols instead of the retrieved text.

    python examples/llamaindex_query_engine.py "How long is the river?"

Texts are compressed once, when they are indexed; embeddings and citations use the originals.
"""

import sys
import time
from pathlib import Path

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from minilm import MiniLM

from zcontext.integrations import llamaindex as z


class MiniLMEmbedding(BaseEmbedding):
    """`MiniLM`, as LlamaIndex wants it."""

    _model: MiniLM = PrivateAttr(default_factory=MiniLM)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._model.embed_query(text)

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def main(question: str, model: object = "smollm2-135m") -> None:
    embedding, llm = MiniLMEmbedding(), z.ZContextLLM(model, max_new_tokens=48)
    splitter = SentenceSplitter(chunk_size=128, chunk_overlap=0)
    steps = [splitter, z.ZContextTransform(model, ratio=4), embedding]
    documents = SimpleDirectoryReader(Path(__file__).parent / "documents").load_data()
    nodes = IngestionPipeline(transformations=steps).run(documents=documents)
    engine = VectorStoreIndex(nodes, embed_model=embedding).as_query_engine(
        llm=llm,
        similarity_top_k=4,
        node_postprocessors=[z.ZContextPostprocessor(model, ratio=4, query_aware=True)],
        response_synthesizer=z.zcontext_synthesizer(llm),
    )
    started = time.perf_counter()
    response = engine.query(question)
    records = [node.metadata for node in response.source_nodes]
    before = sum(record["zcontext_n_tokens"] for record in records)
    after = sum(record.get("zcontext_n_symbols", record["zcontext_n_tokens"]) for record in records)
    print(f"{response}\n{before:,} tokens read as {after:,} positions", end=", ")
    print(f"{time.perf_counter() - started:.1f} s, from", *{r["file_name"] for r in records})


if __name__ == "__main__":
    main(*sys.argv[1:])
