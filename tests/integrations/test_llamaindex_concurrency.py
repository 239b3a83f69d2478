"""Many callers, one model: no mixed answers, no deadlock."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llamaindex_parts import passage, written

from zcontext.integrations.llamaindex import (
    ZContextLLM,
    ZContextPostprocessor,
    zcontext_synthesizer,
)
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec


def node(at: int) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=passage(at), id_=f"n{at}"), score=1.0)]


def question(at: int) -> str:
    return f"What is said about number {at}?"


def check(at: int, codec: ByteCodec, new: list[NodeWithScore], answer: str) -> None:
    assert f"number {at} " in answer
    [prompt] = [
        c.parts for c in codec.calls if c.method == "complete" and question(at) in str(c.parts)
    ]
    codes = [code for part in prompt if isinstance(part, Symbols) for code in part.codes]
    assert codes == written(new)


def test_eight_threads_get_their_own_answers() -> None:
    codec = ByteCodec()
    post, llm = ZContextPostprocessor(codec, ratio=6), ZContextLLM(codec)
    synthesizer = zcontext_synthesizer(llm)

    def one(at: int) -> tuple[list[NodeWithScore], str]:
        new = post.postprocess_nodes(node(at))
        return new, str(synthesizer.synthesize(question(at), new))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(64)))
    for at, (new, answer) in enumerate(results):
        check(at, codec, new, answer)


async def test_fifty_async_calls_get_their_own_answers() -> None:
    codec = ByteCodec()
    post, llm = ZContextPostprocessor(codec, ratio=6), ZContextLLM(codec)
    synthesizer = zcontext_synthesizer(llm)

    async def one(at: int) -> tuple[list[NodeWithScore], str]:
        new = await post.apostprocess_nodes(node(at))
        return new, str(await synthesizer.asynthesize(question(at), new))

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(one(at) for at in range(50)))
    for at, (new, answer) in enumerate(results):
        check(at, codec, new, answer)


async def test_fifty_async_streams_get_their_own_answers() -> None:
    codec = ByteCodec()
    post, llm = ZContextPostprocessor(codec, ratio=6), ZContextLLM(codec)

    async def one(at: int) -> str:
        [new] = await post.apostprocess_nodes(node(at))
        message = ChatMessage(content=f"{new.node.get_content()}\nQuestion: {question(at)}")
        return "".join([p.delta or "" async for p in await llm.astream_chat([message])])

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(one(at) for at in range(50)))
    assert [f"number {at} " in answer for at, answer in enumerate(answers)] == [True] * 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_one_real_model_serves_readers_and_writers_at_once(tiny_model: Any) -> None:
    """Roles of one model switch under its lock: what comes out is what comes out one by one."""
    llm = ZContextLLM(tiny_model, max_new_tokens=4)
    post = ZContextPostprocessor(tiny_model, ratio=4, min_tokens=1)
    texts = [passage(at, 1) for at in range(6)]
    singles = [post.postprocess_nodes([NodeWithScore(node=TextNode(text=t))]) for t in texts]
    prompts = [single[0].node.get_content() for single in singles]
    expected = [llm.complete(prompt).text for prompt in prompts]

    async def write(at: int) -> str:
        [new] = await post.apostprocess_nodes([NodeWithScore(node=TextNode(text=texts[at]))])
        return new.node.get_content()

    async def read(at: int) -> str:
        return (await llm.acomplete(prompts[at])).text

    async def stream(at: int) -> str:
        return [piece async for piece in await llm.astream_complete(prompts[at])][-1].text

    jobs = [job for at in range(6) for job in (write(at), read(at), stream(at))]
    async with asyncio.timeout(120):
        results = await asyncio.gather(*jobs)
    for at in range(6):
        assert results[3 * at : 3 * at + 3] == [prompts[at], expected[at], expected[at]]
