"""The LLM: what of a prompt reaches the reader, what comes back, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, MessageRole, TextBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockLLM
from llama_index.core.prompts import PromptTemplate
from llamaindex_parts import nodes, passage, written

from zcontext.config import GenerationSettings
from zcontext.errors import (
    BundleError,
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    CorruptSpanError,
    ModelError,
)
from zcontext.integrations.exchange import UnreadableSymbolsWarning
from zcontext.integrations.llamaindex import (
    ZContextLLM,
    ZContextPostprocessor,
    zcontext_synthesizer,
)
from zcontext.spans import Answer, Part
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec

QUESTION = "\nQuestion: when did the bridge of Bern open?"


def spell(codec: ByteCodec, text: str = passage(0)) -> str:
    return codec.vocabulary.render(codec.compress(text).symbols)


def last(codec: ByteCodec) -> tuple[Part, ...]:
    return codec.calls[-1].parts


# What arrives


def test_symbols_in_a_completion_reach_the_reader_as_symbols() -> None:
    codec = ByteCodec()
    document = codec.compress(passage(0))
    answer = ZContextLLM(codec).complete(
        f"Look: {codec.vocabulary.render(document.symbols)}{QUESTION}"
    )
    assert last(codec) == ("Look: ", document.symbols, QUESTION)
    assert answer.text.startswith("The bridge of Bern")


def test_a_chat_reaches_the_reader_turn_by_turn() -> None:
    codec = ByteCodec()
    seen: list[Any] = []
    inner = codec.chat
    codec.chat = lambda messages, **kw: seen.append(messages) or inner(messages, **kw)  # type: ignore[method-assign, assignment]
    messages = [
        ChatMessage(role="developer", content="Be brief."),
        ChatMessage(role="user", content=f"{spell(codec)} and text"),
        ChatMessage(role="chatbot", content="Yes?"),
        ChatMessage(blocks=[TextBlock(text="one"), TextBlock(text="two")]),
        ChatMessage(role="user", content=""),
    ]
    response = ZContextLLM(codec).chat(messages)
    [turns] = seen
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "user"]
    assert isinstance(turns[1].parts[0], Symbols)
    assert turns[1].parts[1] == " and text"
    assert turns[3].parts == ("one\ntwo",)
    assert turns[4].parts == ()
    assert response.message.role == MessageRole.ASSISTANT


def test_a_users_own_chat_template_is_used() -> None:
    codec = ByteCodec()
    llm = ZContextLLM(codec, messages_to_prompt=lambda m: f"<<{m[0].content}>>")
    llm.chat([ChatMessage(content="hello there")])
    assert last(codec) == ("<<hello there>>",)
    list(llm.stream_chat([ChatMessage(content="hello there")]))
    assert last(codec) == ("<<hello there>>",)
    plain = ZContextLLM(codec, completion_to_prompt=lambda p: f"({p})")
    plain.complete("hello")
    assert last(codec) == ("(hello)",)
    plain.complete("hello", formatted=True)
    assert last(codec) == ("hello",)


def test_a_system_prompt_goes_in_front() -> None:
    codec = ByteCodec()
    llm = ZContextLLM(codec, system_prompt="Answer in French.")
    llm.predict(PromptTemplate("Question: {q}"), q="why?")
    assert last(codec)[0] == "Answer in French."


# What comes back


def test_usage_counts_a_symbol_as_one_token() -> None:
    codec = ByteCodec()
    prompt = f"{spell(codec)}{QUESTION}"
    n_symbols = codec.compress(passage(0)).n_symbols
    expected = n_symbols + len(QUESTION)
    llm = ZContextLLM(codec)
    for raw in (
        llm.complete(prompt).raw,
        list(llm.stream_complete(prompt))[-1].raw,
        llm.chat([ChatMessage(content=prompt)]).raw,
        list(llm.stream_chat([ChatMessage(content=prompt)]))[-1].raw,
    ):
        assert raw is not None
        assert raw["usage"]["prompt_tokens"] == expected
        assert raw["usage"]["total_tokens"] == expected + raw["usage"]["completion_tokens"]
    assert llm.complete(prompt).raw["n_prompt_symbols"] == n_symbols  # type: ignore[index]
    assert llm.complete(prompt).additional_kwargs["prompt_tokens"] == expected


def test_llama_indexs_token_counter_counts_a_symbol_as_one_token() -> None:
    codec = ByteCodec()
    prompt = f"{spell(codec)}{QUESTION}"
    llm = ZContextLLM(codec)
    counter = TokenCountingHandler(tokenizer=llm.tokenizer)
    llm.callback_manager = CallbackManager([counter])
    llm.complete(prompt)
    list(llm.stream_chat([ChatMessage(content=prompt)]))
    n = codec.compress(passage(0)).n_symbols + len(QUESTION)
    assert [event.prompt_token_count for event in counter.llm_token_counts] == [n, n]


def test_a_stream_is_the_answer_piece_by_piece() -> None:
    codec = ByteCodec()
    llm = ZContextLLM(codec)
    prompt = f"{spell(codec)}{QUESTION}"
    whole = llm.complete(prompt).text
    pieces = list(llm.stream_complete(prompt))
    assert "".join(piece.delta or "" for piece in pieces) == whole == pieces[-1].text
    chat = list(llm.stream_chat([ChatMessage(content=prompt)]))
    assert "".join(piece.delta or "" for piece in chat) == whole == chat[-1].message.content
    assert len(pieces) > 3


def test_an_answer_that_ends_a_stream_gives_its_own_usage_and_reason() -> None:
    class Telling(ByteCodec):
        def stream(self, parts: Sequence[Part], **kwargs: Any) -> Any:
            yield "cut"
            return Answer("cut", "length", 10, 5, 1, 0.0)

    *_, last_response = ZContextLLM(Telling()).stream_complete("a prompt")
    assert last_response.raw["usage"]["total_tokens"] == 16
    assert last_response.raw["stop_reason"] == "length"


async def test_async_methods_answer_like_the_sync_ones() -> None:
    codec = ByteCodec()
    llm = ZContextLLM(codec)
    prompt = f"{spell(codec)}{QUESTION}"
    messages = [ChatMessage(content=prompt)]
    whole = llm.complete(prompt).text
    assert (await llm.acomplete(prompt)).text == whole
    assert (await llm.achat(messages)).message.content == whole
    streamed = [piece async for piece in await llm.astream_complete(prompt)]
    assert streamed[-1].text == whole
    assert streamed[-1].raw == list(llm.stream_complete(prompt))[-1].raw
    chat = [piece async for piece in await llm.astream_chat(messages)]
    assert "".join(piece.delta or "" for piece in chat) == whole
    template = PromptTemplate("{text}")
    assert await llm.apredict(template, text=prompt) == whole
    assert "".join([t async for t in await llm.astream(template, text=prompt)]) == whole


def test_metadata_is_the_readers() -> None:
    llm = ZContextLLM(ByteCodec(context_length=777), max_new_tokens=33)
    assert llm.metadata.model_dump() | {"system_role": None} == {
        "context_window": 777,
        "num_output": 33,
        "is_chat_model": True,
        "is_function_calling_model": False,
        "model_name": f"zcontext-{ByteCodec().vocabulary.tag}",
        "system_role": None,
    }
    assert not ZContextLLM(ByteCodec(), is_chat_model=False).metadata.is_chat_model


def test_settings_of_the_llm_hold_unless_a_call_says_otherwise() -> None:
    codec = ByteCodec()
    llm = ZContextLLM(codec, max_new_tokens=9, temperature=0.5, top_p=0.9, stop=["\n\n"], seed=3)
    llm.complete("x")
    assert codec.calls[-1].settings == GenerationSettings(9, 0.5, 0.9, ("\n\n",), 3)
    llm.chat([ChatMessage(content="x")], max_tokens=5, stop="END", temperature=None, seed=4)
    assert codec.calls[-1].settings == GenerationSettings(5, 0.5, 0.9, ("END",), 4)
    with pytest.raises(ConfigError, match="takes no option 'tools'"):
        llm.complete("x", tools=[])
    with pytest.raises(ConfigError, match="temperature"):
        ZContextLLM(codec, temperature=-1)


def test_a_stop_sequence_ends_the_answer() -> None:
    codec = ByteCodec()
    answer = ZContextLLM(codec).complete(f"{spell(codec)}{QUESTION}", stop=[" opened"])
    assert answer.text == "The bridge of Bern number 0"
    assert answer.raw["stop_reason"] == "stop"  # type: ignore[index]


# What it refuses


def test_symbols_of_another_codec_are_refused() -> None:
    foreign = spell(ByteCodec(name="other"))
    with pytest.raises(CodecMismatchError):
        ZContextLLM(ByteCodec()).complete(foreign)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
def test_a_cut_symbol_is_an_error_that_no_mode_swallows(mode: str) -> None:
    # LlamaIndex's refine loop logs ValueErrors and answers "Empty Response".
    codec = ByteCodec()
    broken = nodes(1)
    broken[0].node.set_content(spell(codec)[:-3])
    with pytest.raises(CorruptSpanError, match="cut or altered"):
        zcontext_synthesizer(ZContextLLM(codec), response_mode=mode).synthesize("Why?", broken)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    codec = ByteCodec(context_length=50)
    llm = ZContextLLM(codec)
    with pytest.raises(ContextOverflowError):
        llm.complete("x" * 60)
    with pytest.raises(ContextOverflowError):
        list(llm.stream_chat([ChatMessage(content="x" * 60)]))


def test_images_are_refused() -> None:
    message = ChatMessage(blocks=[TextBlock(text="a"), ImageBlock(url="https://example.org/a.png")])
    with pytest.raises(ModelError, match="ImageBlock"):
        ZContextLLM(ByteCodec()).chat([message])


def test_what_is_no_reader_is_refused() -> None:
    with pytest.raises(ConfigError, match="model is a int"):
        ZContextLLM(3)
    with pytest.raises(BundleError, match="no bundle"):
        ZContextLLM("nowhere/at-all")


def test_another_llm_that_is_handed_symbols_is_named_in_a_warning() -> None:
    codec = ByteCodec()
    ZContextPostprocessor(codec)  # starts the watch
    other = MockLLM(max_tokens=1)
    prompt = spell(codec)
    with pytest.warns(UnreadableSymbolsWarning, match="MockLLM was handed Z-tokens"):
        other.complete(prompt)
    with pytest.warns(UnreadableSymbolsWarning):
        other.chat([ChatMessage(content=prompt)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.complete("plain text")
        ZContextLLM(codec).complete(prompt)
        ZContextLLM(codec).chat([ChatMessage(content=prompt)])
    assert not [w for w in caught if issubclass(w.category, UnreadableSymbolsWarning)]


# The event loop


class SlowCodec(ByteCodec):
    """Blocks its thread, and notes which thread that was."""

    def __init__(self, seconds: float = 0.2) -> None:
        super().__init__()
        self.seconds = seconds
        self.threads: set[int] = set()

    def _wait(self) -> None:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)

    def complete(self, parts: Sequence[Part], **kw: Any) -> Answer:
        self._wait()
        return super().complete(parts, **kw)

    def stream(self, parts: Sequence[Part], **kw: Any) -> Iterator[str]:
        for piece in super().stream(parts, **kw):
            self._wait()
            yield piece

    def compress_many(self, texts: Sequence[str], **kw: Any) -> list[Any]:
        self._wait()
        return super().compress_many(texts, **kw)


async def longest_pause(work: Any) -> float:
    """The longest time that the event loop was not free while something was awaited."""
    task = asyncio.ensure_future(work)
    longest, before = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.005)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    task.result()
    return longest


async def drain(stream: Any) -> list[Any]:
    return [piece async for piece in await stream]


CALLS: dict[str, Callable[[SlowCodec], Any]] = {
    "acomplete": lambda c: ZContextLLM(c).acomplete("a b"),
    "achat": lambda c: ZContextLLM(c).achat([ChatMessage(content="a b")]),
    "astream_complete": lambda c: drain(ZContextLLM(c).astream_complete("a b")),
    "astream_chat": lambda c: drain(ZContextLLM(c).astream_chat([ChatMessage(content="a b")])),
    "apostprocess_nodes": lambda c: ZContextPostprocessor(c).apostprocess_nodes(nodes(2)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_an_async_method_leaves_the_event_loop_free(name: str) -> None:
    codec = SlowCodec(0.4)
    assert await longest_pause(CALLS[name](codec)) < 0.25
    assert threading.get_ident() not in codec.threads


async def test_a_stream_lives_on_one_thread_and_ends_when_nobody_follows() -> None:
    codec = SlowCodec(0.02)
    stream = await ZContextLLM(codec).astream_complete("Question: none of this")
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.sleep(0.1)
    assert len(codec.threads) == 1
    alive = [t for t in threading.enumerate() if t.name == "zcontext-stream"]
    assert not alive


async def test_an_error_in_a_stream_reaches_whoever_follows() -> None:
    llm = ZContextLLM(ByteCodec(context_length=10))
    with pytest.raises(ContextOverflowError):
        await drain(llm.astream_complete("x" * 60))


# A bundle by path


async def test_a_bundle_is_opened_off_the_event_loop(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zcontext.bundle
    from zcontext.bundle import save_bundle

    save_bundle(tiny_model, tmp_path / "bundle")

    def load(path: Path, **kw: Any) -> Any:
        time.sleep(0.4)
        return tiny_model

    monkeypatch.setattr(zcontext.bundle, "load_bundle", load)
    llm = ZContextLLM(tmp_path / "bundle", max_new_tokens=2)
    import zcontext.readers

    assert await longest_pause(llm.apredict(PromptTemplate("{t}"), t="hello")) < 0.25


def test_a_bundle_is_opened_by_the_first_call_and_shared(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zcontext.bundle
    from zcontext.bundle import save_bundle

    save_bundle(tiny_model, tmp_path / "bundle")
    loads: list[Path] = []

    def load(path: Path, **kw: Any) -> Any:
        loads.append(path)
        return tiny_model

    monkeypatch.setattr(zcontext.bundle, "load_bundle", load)
    llm = ZContextLLM(str(tmp_path / "bundle"), max_new_tokens=3)
    post = ZContextPostprocessor(tmp_path / "bundle", ratio=4)
    assert llm.codec == post.codec == tiny_model.codec
    assert llm.to_payload() == {
        "class_name": "ZContextLLM",
        "model_name": f"zcontext-{llm.codec[:4]}",
    }
    assert loads == []
    new = post.postprocess_nodes(nodes(2))
    assert isinstance(llm.complete(new[0].node.get_content()).text, str)
    assert len(loads) == 1
    assert llm.metadata.context_window == tiny_model.context_length
    symbols = tiny_model.vocabulary.parse(" ".join(n.node.get_content() for n in new))
    assert list(symbols.codes) == written(new)
