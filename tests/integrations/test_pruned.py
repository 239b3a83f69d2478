"""`output="text"` and `protect=` behind both doors."""

from __future__ import annotations

import json

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from pieces import BREAD, RIVER, SHORT, TEXTS

from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import CodecMismatchError, ConfigError, SymbolCollisionError
from zcontext.integrations.engines import Engine
from zcontext.integrations.exchange import ACTION, N_TOKENS, TEXT, ExchangeSettings
from zcontext.integrations.langchain import ZContextCompressor
from zcontext.integrations.llamaindex import ZContextPostprocessor, ZContextTransform
from zcontext.integrations.records import KEPT, LOST, N_POSITIONS
from zcontext.testing import ByteCodec
from zcontext.vocabulary import has_symbols

TABLE = "| a | b |\n|---|---|\n| 1 | x |\n"


def documents(*texts: str) -> list[Document]:
    return [Document(page_content=t, metadata={"n": i}, id=str(i)) for i, t in enumerate(texts)]


def nodes(*texts: str) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=t, id_=str(i)), score=1 - i / 9)
        for i, t in enumerate(texts)
    ]


def test_documents_become_shorter_text_with_a_record_of_the_loss() -> None:
    codec = ByteCodec()
    given = documents(*TEXTS, SHORT, "")
    found = ZContextCompressor(model=codec, ratio=3, output="text").compress_documents(given, "?")
    assert [d.id for d in found] == [d.id for d in given]
    for before, after in zip(given[:3], found, strict=False):
        n = codec.count_tokens(before.page_content)
        assert after.metadata[ACTION] == "pruned"
        assert after.metadata[N_TOKENS] == n
        assert codec.count_tokens(after.page_content) == after.metadata[N_POSITIONS] <= -(-n // 3)
        assert 0 < after.metadata[KEPT] < 1
        assert isinstance(json.loads(after.metadata[LOST]), list)
        assert after.metadata["n"] == before.metadata["n"]
        assert not has_symbols(after.page_content)
    assert [d.metadata[ACTION] for d in found[3:]] == ["raw", "raw"]


@pytest.mark.parametrize("budget", [{"max_tokens": 150}, {"max_symbols": 150}])
def test_a_budget_for_the_whole_list_is_kept(budget: dict[str, int]) -> None:
    codec = ByteCodec()
    changed = ZContextPostprocessor(codec, output="text", **budget).postprocess_nodes(nodes(*TEXTS))
    assert sum(codec.count_tokens(n.node.get_content()) for n in changed) <= 150
    assert {n.node.metadata[ACTION] for n in changed} <= {"pruned", "raw"}


def test_symbols_have_no_place_in_text() -> None:
    codec = ByteCodec()
    swapped = ZContextCompressor(model=codec, ratio=3).compress_documents(documents(RIVER), "?")
    pruning = ZContextCompressor(model=codec, ratio=3, output="text")
    with pytest.raises(CodecMismatchError, match="keep_text"):
        pruning.compress_documents(swapped, "?")
    kept = ZContextCompressor(model=codec, ratio=3, keep_text=True)
    again = pruning.compress_documents(kept.compress_documents(documents(RIVER), "?"), "?")
    assert again[0].metadata[ACTION] == "pruned"
    assert TEXT not in again[0].metadata
    bare = [Document(page_content=swapped[0].page_content)]
    with pytest.raises(SymbolCollisionError):
        pruning.compress_documents(bare, "?")
    with pytest.raises(ConfigError, match="output='text'"):
        pruning.transform_documents(documents(RIVER))
    with pytest.raises(ConfigError, match="query_aware"):
        ExchangeSettings(output="text", query_aware=True)
    with pytest.raises(ConfigError, match="output"):
        ExchangeSettings(output="words")  # type: ignore[arg-type]


def test_an_engine_prunes_with_the_model_that_it_was_given(tiny_model) -> None:
    for source in (tiny_model, ZCompressor(tiny_model)):
        engine = Engine(source)
        (found,) = engine.pruner().prune_many([RIVER], settings=CompressSettings(ratio=4))
        assert found.text
        assert engine.pruner() is engine.pruner()


@pytest.mark.parametrize("budget", [{}, {"ratio": 2}, {"max_tokens": 200}, {"max_symbols": 200}])
def test_protected_text_stands_between_symbols(budget: dict[str, int]) -> None:
    codec = ByteCodec()
    text = f"{RIVER}\n\n{TABLE}\n{BREAD}"
    compressor = ZContextCompressor(model=codec, protect=("tables",), **budget)
    (found,) = compressor.compress_documents(documents(text), "?")
    parts = codec.vocabulary.split(found.page_content)
    assert [p for p in parts if isinstance(p, str)] == [TABLE]
    assert codec.count(parts) == found.metadata[N_POSITIONS]
    if "max_tokens" in budget or "max_symbols" in budget:
        assert codec.count(parts) <= 200
    # Swapped again, it stays; indexed and swapped, it is the same.
    assert compressor.compress_documents([found], "?") == [found]
    (stored,) = compressor.transform_documents(documents(text))
    if not budget or "ratio" in budget:
        assert compressor.compress_documents([stored], "?")[0].page_content == found.page_content


def test_nodes_keep_protected_text_from_index_to_query() -> None:
    codec = ByteCodec()
    text = f"{RIVER}\n\n{TABLE}\n{BREAD}"
    indexed = ZContextTransform(codec, protect=("tables",))([TextNode(text=text)])
    (found,) = ZContextPostprocessor(codec).postprocess_nodes([NodeWithScore(node=indexed[0])])
    assert TABLE in found.node.get_content()
    assert found.node.metadata[ACTION] == "swapped"
