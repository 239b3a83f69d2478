"""ZContextLLM and ChatZContext: what reaches the reader, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError as HostContextOverflowError
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.outputs import LLMResult
from pieces import RIVER, TOWER, arrived, written
from pydantic import ValidationError

from zcontext.config import GenerationSettings
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    UnknownSymbolError,
)
from zcontext.integrations.langchain import (
    ChatZContext,
    PromptTooLongError,
    UnreadableSymbolsWarning,
    ZContextCompressor,
    ZContextLLM,
)
from zcontext.spans import Answer, Part
from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols

QUESTION = "\nQuestion: How long is the Seine?"
ANSWER = "The Seine rises in Burgundy and flows 777 km to the Channel."


@pytest.fixture
def codec() -> ByteCodec:
    return ByteCodec(ratio=8)


def symbols(codec: ByteCodec, text: str = RIVER) -> str:
    return codec.vocabulary.render(codec.compress(text).symbols)


def settings(codec: ByteCodec) -> GenerationSettings:
    chosen = codec.calls[-1].settings
    assert isinstance(chosen, GenerationSettings)
    return chosen


@pytest.fixture(params=["invoke", "stream", "batch", "ainvoke", "astream", "abatch"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def ask(model: Any, way: str, prompt: Any) -> str:
    """The answer's text, by one of LangChain's ways to call a model."""
    if way == "invoke":
        found = model.invoke(prompt)
    elif way == "stream":
        found = "".join(_text(chunk) for chunk in model.stream(prompt))
    elif way == "batch":
        found = model.batch([prompt])[0]
    elif way == "ainvoke":
        found = await model.ainvoke(prompt)
    elif way == "astream":
        found = "".join([_text(chunk) async for chunk in model.astream(prompt)])
    else:
        found = (await model.abatch([prompt]))[0]
    return _text(found)


def _text(found: Any) -> str:
    return found if isinstance(found, str) else str(found.content)


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
async def test_symbols_arrive_and_are_answered_from_by_every_way(
    codec: ByteCodec, kind: type[Any], way: str
) -> None:
    context = symbols(codec)
    assert await ask(kind(model=codec), way, f"Context: {context}{QUESTION}") == ANSWER
    assert arrived(codec) == written(codec, context)


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
def test_options_of_the_model_and_of_the_call_reach_the_reader(
    codec: ByteCodec, kind: type[Any]
) -> None:
    model = kind(model=codec, temperature=0.5, max_tokens=40, top_p=0.9, seed=3, stop=["km"])
    model.invoke("hi")
    assert settings(codec) == GenerationSettings(
        max_new_tokens=40, temperature=0.5, top_p=0.9, seed=3, stop=("km",)
    )
    model.bind(max_tokens=7).invoke("hi", stop=["x"], temperature=0)
    assert settings(codec) == GenerationSettings(
        max_new_tokens=7, temperature=0.0, top_p=0.9, seed=3, stop=("x",)
    )
    with pytest.raises(ConfigError, match="max_new_tokens"):
        model.invoke("hi", max_new_tokens=9)


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
async def test_a_stop_sequence_ends_the_answer_by_every_way(
    codec: ByteCodec, kind: type[Any], way: str
) -> None:
    model = kind(model=codec, stop=[" 777"])
    text = await ask(model, way, symbols(codec) + QUESTION)
    assert text == "The Seine rises in Burgundy and flows"


def test_usage_counts_a_symbol_as_one_token(codec: ByteCodec) -> None:
    context = symbols(codec)
    message = ChatZContext(model=codec).invoke(context + QUESTION)
    n_symbols = len(codec.vocabulary.parse(context))
    assert message.usage_metadata == {
        "input_tokens": n_symbols + len(QUESTION),
        "output_tokens": len(ANSWER),
        "total_tokens": n_symbols + len(QUESTION) + len(ANSWER),
        "input_token_details": {"symbols": n_symbols},
    }
    assert message.response_metadata["finish_reason"] == "stop"
    result = ZContextLLM(model=codec).generate([context + QUESTION])
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["prompt_tokens"] == n_symbols + len(QUESTION)


async def test_streams_end_with_usage_and_a_last_chunk(codec: ByteCodec) -> None:
    prompt = symbols(codec) + QUESTION
    model = ChatZContext(model=codec)
    whole = model.invoke(prompt)
    streams = [list(model.stream(prompt)), [chunk async for chunk in model.astream(prompt)]]
    for chunks in streams:
        assert len(chunks) > 3
        assert [chunk.chunk_position for chunk in chunks][-2:] == [None, "last"]
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        assert isinstance(total, AIMessageChunk)
        assert total.usage_metadata == whole.usage_metadata


def test_an_answer_that_ends_a_stream_gives_its_own_usage_and_reason() -> None:
    class Exact(ByteCodec):
        def stream(self, parts: Sequence[Part], **kwargs: Any) -> Iterator[str]:
            yield "cut"
            return Answer("cut", "length", 10, 5, 1, 0.0)  # type: ignore[return-value]

    *_, last = ChatZContext(model=Exact()).stream("hi")
    assert last.response_metadata["finish_reason"] == "length"
    assert last.usage_metadata is not None
    assert last.usage_metadata["input_tokens"] == 15


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
def test_token_ids_are_the_readers_and_a_symbol_is_one(codec: ByteCodec, kind: type[Any]) -> None:
    model = kind(model=codec)
    context = symbols(codec)
    text = f"Context: {context} end"
    assert model.get_token_ids(text) == codec.token_ids(codec.vocabulary.split(text))
    assert model.get_num_tokens(context) == len(codec.vocabulary.parse(context))
    assert kind(model=codec, custom_get_token_ids=lambda _: [1]).get_token_ids("abc") == [1]


def test_trimming_counts_symbols_rightly(codec: ByteCodec) -> None:
    context = symbols(codec)
    messages = [HumanMessage("a" * 90), HumanMessage(context)]
    kept = trim_messages(messages, max_tokens=60, token_counter=ChatZContext(model=codec))
    assert kept == messages[1:]


def test_every_kind_of_message_is_told_and_neighbours_of_one_role_become_one_turn() -> None:
    turns: list[tuple[str, tuple[Part, ...]]] = []

    class Watching(ByteCodec):
        def chat(self, messages: Sequence[Any], **kwargs: Any) -> Answer:
            turns.extend((message.role, message.parts) for message in messages)
            return super().chat(messages, **kwargs)

    codec = Watching(ratio=8)
    context = symbols(codec)
    call = {"name": "search", "args": {"query": "Seine"}, "id": "1", "type": "tool_call"}
    ChatZContext(model=codec).invoke(
        [
            SystemMessage("Be brief."),
            HumanMessage([{"type": "text", "text": "Look it up."}, "Please."]),
            AIMessage("", tool_calls=[call]),
            ToolMessage(context, tool_call_id="1", name="search"),
            HumanMessage("And?"),
            AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Yes."}]),
            ChatMessage(role="critic", content="Really?"),
        ]
    )
    assert [role for role, _ in turns] == [
        "system", "user", "assistant", "user", "assistant", "critic",
    ]  # fmt: skip
    assert turns[1][1] == ("Look it up.\nPlease.",)
    assert turns[2][1] == (
        '<tool_call>\n{"name": "search", "arguments": {"query": "Seine"}}\n</tool_call>',
    )
    before, symbols_of_tool, after = turns[3][1]
    assert before == "<tool_response>\nsearch:\n"
    assert symbols_of_tool == codec.vocabulary.parse(context)
    assert after == "\n</tool_response>\n\nAnd?"
    assert turns[4][1] == ("Yes.",)


def test_a_message_that_is_not_text_is_refused(codec: ByteCodec) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(ConfigError, match="image_url"):
        ChatZContext(model=codec).invoke([HumanMessage([image])])


def test_a_tool_choice_that_names_no_tool_is_refused(codec: ByteCodec) -> None:
    chat = ChatZContext(model=codec)
    for named in ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}):
        assert chat.bind_tools([], tool_choice=named).kwargs["tool_choice"] == "f"
    with pytest.raises(ConfigError, match="names no tool"):
        chat.bind_tools([], tool_choice={"type": "auto"})


def test_a_call_that_does_not_parse_is_handed_on_as_invalid() -> None:
    class Garbled(ByteCodec):
        def chat(self, *args: Any, **kwargs: Any) -> Answer:
            return Answer('<tool_call>\n{"name": "f", "argu', "length", 1, 0, 1, 0.0)

    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    message = ChatZContext(model=Garbled()).bind_tools([tool], tool_choice="any").invoke("hi")
    assert not message.tool_calls
    assert message.invalid_tool_calls[0]["args"] == '{"name": "f", "argu'


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
@pytest.mark.parametrize("way", ["invoke", "astream"])
async def test_a_prompt_that_is_too_long_is_an_error_of_both_houses(
    kind: type[Any], way: str
) -> None:
    model = kind(model=ByteCodec(context_length=40))
    with pytest.raises(PromptTooLongError, match="compress more") as caught:
        await ask(model, way, RIVER)
    assert isinstance(caught.value, ContextOverflowError)
    assert isinstance(caught.value, HostContextOverflowError)


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
def test_symbols_of_another_codec_and_broken_ones_are_refused(
    codec: ByteCodec, kind: type[Any]
) -> None:
    foreign = symbols(ByteCodec(name="other"))
    with pytest.raises(CodecMismatchError):
        kind(model=codec).invoke(foreign)
    with pytest.raises(UnknownSymbolError, match="escape"):
        kind(model=codec).invoke(f"What is {symbols(codec)[:9]} supposed to mean?")


def test_a_cached_answer_is_not_shared_between_codecs_or_settings(codec: ByteCodec) -> None:
    cache = InMemoryCache()
    prompt = RIVER + QUESTION
    models = [
        ChatZContext(model=codec, cache=cache),
        ChatZContext(model=codec, cache=cache, max_tokens=5),
        ChatZContext(model=ByteCodec(name="other"), cache=cache),
    ]
    assert [model.invoke(prompt).content for model in models] == [ANSWER, ANSWER[:5], ANSWER]
    n_calls = len(codec.calls)
    assert models[0].invoke(prompt).content == ANSWER
    assert len(codec.calls) == n_calls


@pytest.mark.parametrize(
    "model", [FakeListLLM(responses=["x"]), FakeListChatModel(responses=["x"])]
)
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "batch"])
async def test_symbols_on_their_way_to_another_model_are_a_warning_with_the_way_out(
    codec: ByteCodec, model: Any, way: str
) -> None:
    ZContextCompressor(model=codec)
    with pytest.warns(UnreadableSymbolsWarning, match=r"FakeList\w+ .*ChatZContext.*take the"):
        await ask(model, way, f"Context: {symbols(codec)}")
    assert await ask(model, way, RIVER)  # no symbols, no warning


def test_the_warning_can_be_made_an_error(codec: ByteCodec) -> None:
    ZContextCompressor(model=codec)
    with pytest.raises(UnreadableSymbolsWarning):  # the test run turns warnings into errors
        FakeListLLM(responses=["x"]).invoke(symbols(codec))


@pytest.mark.parametrize("kind", [ZContextLLM, ChatZContext])
def test_what_cannot_read_is_refused_when_the_model_is_made(kind: type[Any]) -> None:
    with pytest.raises(ValidationError, match="give a bundle's folder"):
        kind(model=3)


def test_tracing_names_the_model(codec: ByteCodec) -> None:
    seen: list[Any] = []
    model = ZContextLLM(model=codec, temperature=0)
    result = model.generate(["hi"])
    assert isinstance(result, LLMResult)
    seen.append(model._get_ls_params())
    assert seen[0]["ls_provider"] == "zcontext"
    assert seen[0]["ls_model_name"] == "ByteCodec"


async def test_a_stream_that_is_left_early_is_closed_in_its_own_thread() -> None:
    from threading import RLock, get_ident

    lock, closed, released = RLock(), [], asyncio.Event()
    loop = asyncio.get_running_loop()

    class Locking(ByteCodec):
        def stream(self, parts: Sequence[Part], **kwargs: Any) -> Iterator[str]:
            thread = get_ident()
            with lock:
                try:
                    for _ in range(1000):
                        yield "word "
                        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
                finally:
                    closed.append(get_ident() == thread)
            loop.call_soon_threadsafe(released.set)

    stream = ZContextLLM(model=Locking()).astream("hi")
    assert await anext(stream) == "word "
    await stream.aclose()  # type: ignore[attr-defined]
    for _ in range(200):
        if closed:
            break
        await asyncio.sleep(0.01)
    assert closed == [True]
    assert lock.acquire(timeout=1)
    lock.release()


def test_symbols_survive_beside_text_on_both_sides(codec: ByteCodec) -> None:
    prompt = f"Read:{symbols(codec)}and{symbols(codec, TOWER)}."
    ZContextLLM(model=codec).invoke(prompt)
    kinds = [type(part) for part in codec.calls[-1].parts]
    assert kinds == [str, Symbols, str, Symbols, str]
