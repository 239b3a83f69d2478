"""A real vector database with real sentence embeddings: spans come back as they were written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from pieces import TEXTS, TOWER

from zcontext.integrations.langchain import ZContextCompressor
from zcontext.spans import ZDocument
from zcontext.testing import ByteCodec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from minilm import SIZE, MiniLM  # noqa: E402

QUESTION = "How many metres tall is the Eiffel Tower with its antennas?"


@pytest.fixture(scope="module")
def embeddings() -> MiniLM:
    Embeddings.register(MiniLM)
    return MiniLM()


def documents() -> list[Document]:
    return [
        Document(page_content=text, id=f"00000000-0000-0000-0000-00000000000{i}",
                 metadata={"source": f"{i}.txt", "tags": ["a", "b"], "page": i})
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip


def test_embeddings_are_of_length_one_and_know_what_belongs_together(embeddings: MiniLM) -> None:
    vectors = embeddings.embed_documents([*TEXTS, QUESTION])
    assert [len(vector) for vector in vectors] == [SIZE] * 4
    *texts, question = vectors
    scores = [sum(a * b for a, b in zip(text, question, strict=True)) for text in texts]
    assert max(scores) == scores[TEXTS.index(TOWER)]
    assert sum(x * x for x in question) == pytest.approx(1, abs=1e-5)
    assert embeddings.embed_query(QUESTION) == pytest.approx(question, abs=1e-5)


def test_a_qdrant_folder_reopened_by_another_process_gives_the_spans_back(
    embeddings: MiniLM, tmp_path: Path
) -> None:
    from langchain_qdrant import QdrantVectorStore

    codec = ByteCodec()
    indexed = list(ZContextCompressor(model=codec, ratio=8).transform_documents(documents()))
    store = QdrantVectorStore.from_documents(
        indexed, embeddings, path=str(tmp_path), collection_name="notes",
        ids=[document.id for document in indexed],
    )  # fmt: skip
    store.client.close()

    run = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).with_name("reopened_store.py")),
         str(tmp_path), QUESTION],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["answer"].startswith("It is 330 metres tall")
    first, second = seen["documents"]
    assert first["metadata"]["source"] == "1.txt"
    arrived = [tuple(code) for code in seen["arrived"]]
    want: list[tuple[int, ...]] = []
    by_id = {document.id: document for document in indexed}
    for document in (first, second):
        before = by_id[document["metadata"]["_id"]]
        span = ZDocument.from_compact(before.metadata["zcontext_span"])
        assert document["metadata"]["zcontext_span"] == before.metadata["zcontext_span"]
        assert document["metadata"]["zcontext_action"] == "swapped"
        assert document["metadata"]["tags"] == ["a", "b"]
        assert document["text"] == codec.vocabulary.render(span.symbols)
        assert codec.decompress(span) == before.page_content
        want += span.symbols.codes
    assert arrived == want


def test_the_in_memory_store_dumped_and_loaded_gives_the_spans_back(
    embeddings: MiniLM, tmp_path: Path
) -> None:
    codec = ByteCodec()
    compressor = ZContextCompressor(model=codec, ratio=8)
    indexed = list(compressor.transform_documents(documents()))
    InMemoryVectorStore.from_documents(indexed, embeddings).dump(str(tmp_path / "store.json"))
    loaded = InMemoryVectorStore.load(str(tmp_path / "store.json"), embeddings)
    found = loaded.similarity_search(QUESTION, k=3)
    codec.calls.clear()
    swapped = compressor.compress_documents(found, QUESTION)
    assert not codec.calls
    by_id = {document.id: document.metadata["zcontext_span"] for document in indexed}
    for document in swapped:
        span = ZDocument.from_compact(by_id[document.id])
        assert codec.vocabulary.parse(document.page_content) == span.symbols


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import langchain_rag

    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.md").write_text(text, encoding="utf-8")
    langchain_rag.main(str(tmp_path), QUESTION, model=ByteCodec(), ratio=8)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["text", "stored", "asked"]
    n_text, n_stored, n_asked = (int(line.split()[1].replace(",", "")) for line in lines[:3])
    assert 7 * max(n_stored, n_asked) < n_text
    assert all("compressed" in line for line in lines[3:])  # the last were written for the question
    assert len((ROOT / "examples" / "langchain_rag.py").read_text().splitlines()) < 60
