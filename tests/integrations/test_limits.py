"""The largest document and the deepest queue are limits behind both doors, and can be set."""

from __future__ import annotations

import asyncio
from threading import Event
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError, OverloadedError
from zcontext.integrations import waiting
from zcontext.integrations.langchain import ZContextCompressor
from zcontext.integrations.llamaindex import ZContextPostprocessor, ZContextTransform
from zcontext.testing import ByteCodec

LIMIT = 60
FITS, LONG = "It rains. " * 6, "It rains. " * 6 + "!"
SMALL = CompressSettings(max_tokens=LIMIT)


def through_langchain(text: str, **options: Any) -> None:
    ZContextCompressor(model=ByteCodec(), **options).compress_documents(
        [Document(page_content=text)], "?"
    )


def through_llamaindex(text: str, **options: Any) -> None:
    options["compress"] = options.pop("settings", None)
    nodes = [NodeWithScore(node=TextNode(text=text))]
    ZContextPostprocessor(ByteCodec(), **options).postprocess_nodes(nodes)


@pytest.mark.parametrize("door", [through_langchain, through_llamaindex])
@pytest.mark.parametrize("output", ["symbols", "text"])
@pytest.mark.parametrize("budget", [{}, {"ratio": 3.0}, {"max_symbols": 15}, {"max_tokens": 15}])
def test_the_largest_document_is_a_setting_of_both_doors(
    door: Any, output: str, budget: dict[str, Any]
) -> None:
    door(FITS, settings=SMALL, output=output, **budget)
    with pytest.raises(ConfigError, match="max_tokens") as caught:
        door(LONG, settings=SMALL, output=output, **budget)
    assert (caught.value.field, caught.value.value) == ("max_tokens", LIMIT)
    door(LONG, output=output, **budget)  # the default is 5,000,000


def test_the_largest_document_is_a_setting_of_an_index() -> None:
    given = [TextNode(text=LONG)]
    with pytest.raises(ConfigError, match="max_tokens"):
        ZContextTransform(ByteCodec(), compress=SMALL)(given)
    with pytest.raises(ConfigError, match="max_tokens"):
        ZContextCompressor(model=ByteCodec(), settings=SMALL).transform_documents(
            [Document(page_content=LONG)]
        )


class SlowCodec(ByteCodec):
    """Bytes that wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Event()

    def compress_many(self, *arguments: Any, **options: Any) -> Any:
        self.gate.wait(30)
        return super().compress_many(*arguments, **options)


@pytest.mark.parametrize("door", ["langchain", "llamaindex"])
async def test_the_deepest_queue_is_a_setting_of_both_doors(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_limit", None)
    waiting.set_max_waiting(2)
    codec = SlowCodec()

    def call() -> Any:
        if door == "langchain":
            compressor = ZContextCompressor(model=codec, ratio=3)
            return compressor.acompress_documents([Document(page_content=LONG)], "?")
        nodes = [NodeWithScore(node=TextNode(text=LONG))]
        return ZContextPostprocessor(codec, ratio=3).apostprocess_nodes(nodes)

    held = [asyncio.create_task(call()) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError, match="2 calls run or wait"):
        await call()
    codec.gate.set()
    assert [len(found) for found in await asyncio.gather(*held)] == [1, 1]
    assert len(await call()) == 1
