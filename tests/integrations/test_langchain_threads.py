"""Many callers, one model: no mixed answers, no deadlock, and the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from langchain_core.documents import Document

from zcontext.integrations.langchain import ChatZContext, ZContextCompressor, ZContextLLM
from zcontext.model import ZLanguageModel
from zcontext.testing import ByteCodec

N_THREADS = 8
N_ASYNC = 50


def fact(number: int) -> str:
    return f"Parcel {number} weighs {number * 37 + 11} grams and waits in hall {number % 7}."


def question(number: int) -> str:
    return f"Question: What weighs parcel {number}?"


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
def test_eight_threads_get_their_own_answers(kind: type[Any]) -> None:
    codec = ByteCodec()
    compressor = ZContextCompressor(model=codec, ratio=4, min_tokens=8)
    model = kind(model=codec)

    def work(number: int) -> str:
        document = Document(page_content=fact(number))
        (found,) = compressor.compress_documents([document], "q")
        answer = model.invoke(f"{found.page_content}\n{question(number)}")
        return answer if isinstance(answer, str) else str(answer.content)

    with ThreadPoolExecutor(N_THREADS) as pool:
        answers = list(pool.map(work, range(64), timeout=60))
    assert answers == [fact(number) for number in range(64)]


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
async def test_fifty_concurrent_calls_get_their_own_answers(kind: type[Any]) -> None:
    codec = ByteCodec()
    compressor = ZContextCompressor(model=codec, ratio=4, min_tokens=8)
    model = kind(model=codec)

    async def work(number: int) -> str:
        document = Document(page_content=fact(number))
        (found,) = await compressor.acompress_documents([document], "q")
        prompt = f"{found.page_content}\n{question(number)}"
        if number % 2:
            pieces = [piece async for piece in model.astream(prompt)]
            return "".join(p if isinstance(p, str) else str(p.content) for p in pieces)
        answer = await model.ainvoke(prompt)
        return answer if isinstance(answer, str) else str(answer.content)

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*map(work, range(N_ASYNC)))
    assert answers == [fact(number) for number in range(N_ASYNC)]


async def test_waiting_calls_leave_the_event_loop_and_its_pool_free() -> None:
    import time

    class Slow(ByteCodec):
        def complete(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.05)
            return super().complete(*args, **kwargs)

    model = ZContextLLM(model=Slow())
    calls = [asyncio.create_task(model.ainvoke("hi")) for _ in range(N_ASYNC)]
    await asyncio.sleep(0.02)
    started = time.perf_counter()
    assert await asyncio.to_thread(lambda: 3) == 3  # the loop's own pool is not used by us
    assert time.perf_counter() - started < 0.25
    await asyncio.gather(*calls)


# The same over a real, tiny model.


@pytest.fixture
def one_core() -> Iterator[None]:
    """No threads inside torch: eight callers times its own would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_core")
def test_threads_over_a_real_model_give_what_one_by_one_gives(tiny_model: ZLanguageModel) -> None:
    compressor = ZContextCompressor(model=tiny_model, ratio=4, min_tokens=8)
    llm = ZContextLLM(model=tiny_model, max_tokens=6)
    chat = ChatZContext(model=tiny_model, max_tokens=6)

    def work(number: int) -> tuple[str, str, str]:
        document = Document(page_content=fact(number))
        (found,) = compressor.compress_documents([document], "q")
        prompt = f"{found.page_content}\n{question(number)}"
        return found.page_content, llm.invoke(prompt), str(chat.invoke(prompt).content)

    alone = [work(number) for number in range(12)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        together = list(pool.map(work, range(12), timeout=120))
    assert together == alone
    assert len({context for context, *_ in alone}) > 1


@pytest.mark.usefixtures("one_core")
async def test_concurrent_streams_over_a_real_model_give_what_one_by_one_gives(
    tiny_model: ZLanguageModel,
) -> None:
    compressor = ZContextCompressor(model=tiny_model, ratio=4, min_tokens=8)
    llm = ZContextLLM(model=tiny_model, max_tokens=4)

    async def work(number: int) -> str:
        document = Document(page_content=fact(number % 10))
        (found,) = await compressor.acompress_documents([document], "q")
        prompt = f"{found.page_content}\n{question(number % 10)}"
        if number % 2:
            return "".join([piece async for piece in llm.astream(prompt)])
        return await llm.ainvoke(prompt)

    alone = [await work(number) for number in range(10)]
    async with asyncio.timeout(120):
        together = await asyncio.gather(*map(work, range(N_ASYNC)))
    assert together == [alone[number % 10] for number in range(N_ASYNC)]
