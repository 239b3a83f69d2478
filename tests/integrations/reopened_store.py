"""Run as a program: open a Qdrant folder that another process wrote, retrieve, swap, answer.

It prints what it saw as JSON. The compressor given refuses to compress: spans must be found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore
from minilm import MiniLM

from zcontext.integrations.langchain import ChatZContext, ZContextCompressor
from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols


class ReadOnly(ByteCodec):
    """Reads, and must not be asked to write."""

    def compress_many(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a stored span was compressed again")

    count_tokens = compress_many


def main(folder: str, question: str) -> None:
    """Ask the store and the model."""
    Embeddings.register(MiniLM)
    codec = ReadOnly()
    store = QdrantVectorStore.from_existing_collection(
        collection_name="notes", embedding=MiniLM(), path=folder
    )
    retriever = ContextualCompressionRetriever(
        base_compressor=ZContextCompressor(model=codec),
        base_retriever=store.as_retriever(search_kwargs={"k": 2}),
    )
    found = retriever.invoke(question)
    context = "\n".join(document.page_content for document in found)
    answer = ChatZContext(model=codec).invoke(f"{context}\nQuestion: {question}")
    parts = [part for part in codec.calls[-1].parts if isinstance(part, Symbols)]
    seen = {
        "answer": answer.content,
        "arrived": [list(code) for part in parts for code in part.codes],
        "documents": [{"id": d.id, "text": d.page_content, "metadata": d.metadata} for d in found],
    }
    store.client.close()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:3])
