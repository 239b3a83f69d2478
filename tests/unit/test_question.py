"""Query-aware writing: the question is read in front of every window and written nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tiny import tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError, VocabularyError
from zcontext.integrations.exchange import ACTION, SPAN, Chunk, Exchange, ExchangeSettings
from zcontext.model import ZLanguageModel
from zcontext.spans import ZDocument
from zcontext.store import MemoryStore, store_key
from zcontext.testing import ByteCodec
from zcontext.writing import WindowTask, WindowWriter, Written

TEXT = "Anna lives in Oslo. In 2019 she moved there from Lima, where her father had a shop. "
ASKED = "Where did she live before?"
SMALL = CompressSettings(window=32)
Tasks = list[WindowTask]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """The windows that writers were given."""
    tasks: Tasks = []
    write: Callable[..., list[Written]] = WindowWriter.write

    def watched(self: WindowWriter, given: Tasks) -> list[Written]:
        tasks.extend(given)
        return write(self, given)

    monkeypatch.setattr(WindowWriter, "write", watched)
    return tasks


def test_it_is_off_by_default() -> None:
    assert CompressSettings().question is None
    assert not ExchangeSettings().query_aware
    assert ExchangeSettings().question_of(ASKED) is None


def test_the_question_stands_in_front_of_every_window_and_is_not_written(
    tiny_model: ZLanguageModel, seen: Tasks
) -> None:
    compressor = ZCompressor(tiny_model)
    plain = compressor.compress(TEXT, settings=SMALL)
    without, seen[:] = list(seen), []
    document = compressor.compress(TEXT, settings=SMALL, question=ASKED)
    asked = compressor._tokens.ids(ASKED + "\n\n")
    assert len(seen) == len(without) > 1
    for task, before in zip(seen, without, strict=True):
        assert list(task.ids) == [*asked, *before.ids]
        assert task.start == before.start + len(asked)
    assert document.n_tokens == plain.n_tokens
    assert [span.tokens for span in document.spans] == [span.tokens for span in plain.spans]
    assert document.n_symbols == plain.n_symbols


def test_it_changes_the_symbols() -> None:
    model = tiny_z()
    with torch.no_grad():  # what the writer makes of its states outweighs the tokens themselves
        model.codebook.to_latent.weight.mul_(100)
    model.seal()
    compressor = ZCompressor(model)
    plain = compressor.compress(TEXT, ratio=3)
    assert compressor.compress(TEXT, ratio=3, question=ASKED).to_bytes() != plain.to_bytes()


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("memory", [0, 4])
def test_the_same_question_gives_the_same_bytes_alone_and_among_others(
    tiny_model: ZLanguageModel, batch_size: int, memory: int
) -> None:
    compressor = ZCompressor(tiny_model, batch_size=batch_size)
    chosen = CompressSettings(window=32, memory=memory, question=ASKED)
    texts = [TEXT, "Another text.", TEXT + TEXT]
    alone = [compressor.compress(text, settings=chosen).to_bytes() for text in texts]
    together = compressor.compress_many(texts, settings=chosen)
    assert [document.to_bytes() for document in together] == alone
    by_keyword = compressor.compress(
        TEXT, settings=CompressSettings(window=32, memory=memory), question=ASKED
    )
    assert by_keyword.to_bytes() == alone[0]


def test_a_question_is_read_as_context_is(tiny_model: ZLanguageModel) -> None:
    writer = WindowWriter(tiny_model)
    ids = list(range(40, 72))

    def written(start: int) -> Written:
        return writer.write([WindowTask(ids, start, (), 3, lambda bits: len(bits) // 4)])[0]

    assert written(8).ends[-1] == 24
    assert written(8) == written(8) != written(0)


def test_every_question_is_another_entry_in_the_store(tiny_model: ZLanguageModel) -> None:
    def key(question: str | None) -> str:
        return store_key(codec="00", settings=CompressSettings(question=question), text=TEXT)

    assert len({key(None), key(ASKED), key(ASKED + " ")}) == 3
    store = MemoryStore()
    compressor = ZCompressor(tiny_model, store=store)
    documents: list[ZDocument] = [
        compressor.compress(TEXT, question=question) for question in (None, ASKED, ASKED)
    ]
    assert len(store) == 2
    assert documents[1] == documents[2]


def test_a_document_written_for_a_question_reads_back_like_any_other(
    tiny_model: ZLanguageModel,
) -> None:
    from zcontext.readers import ZDecompressor

    chosen = CompressSettings(window=32, exact=True, question=ASKED)
    document = ZCompressor(tiny_model).compress(TEXT, settings=chosen)
    assert document.exact
    assert ZDecompressor(tiny_model).decompress(document) == TEXT


@pytest.mark.parametrize("question", ["", " \n", 7])
def test_a_question_that_asks_nothing_is_refused(question: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        CompressSettings(question=question)
    assert caught.value.field == "question"


def test_a_question_that_does_not_fit_the_base_is_refused(tiny_model: ZLanguageModel) -> None:
    compressor = ZCompressor(tiny_model)
    with pytest.raises(ConfigError, match="a question of 2002 tokens"):
        compressor.compress(TEXT, question="a" * 2000)
    with pytest.raises(VocabularyError):
        compressor.compress(TEXT, question="\ud800")


def test_the_surprisal_of_the_text_follows_the_question(tiny_model: ZLanguageModel) -> None:
    found: list[torch.Tensor] = []

    def take(bits: torch.Tensor) -> int:
        found.append(bits)
        return 2

    ids = list(range(40, 60))
    for asked in ([], [70, 71, 72]):
        task = WindowTask([*asked, *ids], len(asked), (), 3, take)
        WindowWriter(tiny_model).write([task])
    assert len(found[0]) == len(found[1]) == 20
    assert not torch.allclose(found[0], found[1])


# -- at the doors ---------------------------------------------------------------------------------


def swapping(codec: ByteCodec, question: str | None, **settings: Any) -> Exchange:
    chosen = ExchangeSettings(ratio=8, min_tokens=1, **settings)
    return Exchange(
        codec.vocabulary,
        compressor=lambda: codec,
        settings=chosen,
        question=chosen.question_of(question),
    )


def questions(codec: ByteCodec) -> list[str | None]:
    return [
        call.settings.question
        for call in codec.calls
        if isinstance(call.settings, CompressSettings) and call.method != "count_tokens"
    ]


def test_chunks_are_written_for_the_question_only_where_that_was_asked_for() -> None:
    for aware, expected in ((False, None), (True, ASKED)):
        codec = ByteCodec()
        swapping(codec, ASKED, query_aware=aware).swap([Chunk(TEXT, {}, "piece 0")])
        assert questions(codec) == [expected]


@pytest.mark.parametrize("budget", [{}, {"max_symbols": 40}, {"max_tokens": 60}])
def test_stored_spans_serve_every_question_but_not_this_one(budget: dict[str, Any]) -> None:
    if "max_symbols" in budget:
        budget = {**budget, "ratio": None}
    codec = ByteCodec()
    (indexed,) = swapping(codec, None).index([Chunk(TEXT, {}, "piece 0")])
    stored = Chunk(TEXT, indexed.metadata({}), "piece 0")
    codec.calls.clear()
    options = {"ratio": 8, "min_tokens": 1, **budget}
    settings = ExchangeSettings(**options, query_aware=True)
    (new,) = Exchange(
        codec.vocabulary, compressor=lambda: codec, settings=settings, question=ASKED
    ).swap([stored])
    assert new.record[ACTION] == "compressed"
    assert SPAN in new.record
    assert ASKED in questions(codec)
    assert set(questions(codec)) == {ASKED}


@pytest.mark.parametrize("query", ["", "  ", None])
def test_without_a_query_nothing_is_asked(query: str | None) -> None:
    assert ExchangeSettings(query_aware=True).question_of(query) is None


def test_langchains_query_is_the_question() -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from zcontext.integrations.langchain import ZContextCompressor

    codec = ByteCodec()
    compressor = ZContextCompressor(model=codec, ratio=8, min_tokens=1, query_aware=True)
    (stored,) = compressor.transform_documents([Document(page_content=TEXT)])
    (found,) = compressor.compress_documents([stored], ASKED)
    assert questions(codec) == [None, ASKED]
    assert found.metadata[ACTION] == "compressed"


def test_llamaindexs_query_is_the_question() -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from zcontext.integrations.llamaindex import ZContextPostprocessor

    codec = ByteCodec()
    nodes = [NodeWithScore(node=TextNode(text=TEXT), score=0.5)]
    aware = ZContextPostprocessor(codec, ratio=8, min_tokens=1, query_aware=True)
    (new,) = aware.postprocess_nodes(nodes, query_str=ASKED)
    assert questions(codec) == [ASKED]
    assert new.node.metadata[ACTION] == "compressed"
    ZContextPostprocessor(codec, ratio=8, min_tokens=1).postprocess_nodes(nodes, query_str=ASKED)
    assert questions(codec) == [ASKED, None]
