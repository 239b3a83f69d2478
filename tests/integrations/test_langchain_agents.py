"""ZContextMiddleware in `create_agent`: the model sees symbols, the state keeps the originals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pieces import BREAD, RIVER, TOWER, arrived
from scripted import ToolCaller

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError, SymbolCollisionError
from zcontext.integrations.langchain import (
    ChatZContext,
    UnreadableSymbolsWarning,
    ZContextCompressor,
    ZContextMiddleware,
)
from zcontext.spans import Answer, ChatMessage
from zcontext.testing import ByteCodec


class Watching(ToolCaller):
    """Remembers the turns of every call."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asked: list[list[ChatMessage]] = []

    def chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Answer:
        self.asked.append(list(messages))
        return super().chat(messages, settings=settings)


@tool
def encyclopedia(topic: str) -> str:
    """Look a topic up."""
    return RIVER


def agent(codec: ByteCodec, middleware: ZContextMiddleware, **kwargs: Any) -> Any:
    return create_agent(
        ChatZContext(model=codec), [encyclopedia], middleware=[middleware], **kwargs
    )


def ask(text: str) -> dict[str, list[AnyMessage]]:
    return {"messages": [HumanMessage(text)]}


@pytest.mark.parametrize("asynchronously", [False, True])
async def test_a_tool_result_reaches_the_model_as_symbols_and_stays_text_in_the_state(
    asynchronously: bool,
) -> None:
    codec = Watching()
    subject = agent(codec, ZContextMiddleware(codec, ratio=8, min_tokens=32))
    question = ask("How many km does the Seine flow?")
    state = await subject.ainvoke(question) if asynchronously else subject.invoke(question)
    kinds = [type(message) for message in state["messages"]]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert state["messages"][2].content == RIVER
    assert len(codec.asked) == 2
    assert arrived(codec) == list(codec.compress(RIVER, ratio=8).symbols.codes)


def test_a_result_is_compressed_once_for_all_steps_of_the_agent() -> None:
    codec = Watching()
    subject = agent(
        codec, ZContextMiddleware(codec, ratio=8, min_tokens=32), checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "1"}}
    for question in ("Where does the Seine flow?", "What lies on its banks?"):
        subject.invoke(ask(question), config)
    texts = [text for call in codec.calls if call.method == "compress_many" for text in call.texts]
    assert texts == [RIVER]


def test_old_history_is_compressed_and_new_messages_are_not() -> None:
    codec = Watching()
    middleware = ZContextMiddleware(codec, ratio=8, min_tokens=64, keep_messages=2)
    subject = create_agent(ChatZContext(model=codec), middleware=[middleware])
    history = [HumanMessage(TOWER), AIMessage("Noted."), HumanMessage(BREAD), AIMessage(RIVER)]
    messages = [*history, HumanMessage("How tall is the tower?")]
    state = subject.invoke({"messages": messages})
    assert [m.content for m in state["messages"][:5]] == [m.content for m in messages]
    turns = codec.asked[-1]
    compressed = [codec.compress(text, ratio=8).symbols for text in (TOWER, BREAD)]
    assert [turn.parts for turn in turns] == [
        (compressed[0],),
        ("Noted.",),
        (compressed[1],),
        (RIVER,),
        ("How tall is the tower?",),
    ]


def test_content_blocks_of_a_tool_are_compressed_one_by_one() -> None:
    codec = Watching()
    middleware = ZContextMiddleware(codec, ratio=8, min_tokens=64)
    subject = create_agent(ChatZContext(model=codec), middleware=[middleware])
    blocks = [{"type": "text", "text": RIVER}, {"type": "text", "text": "short"}, TOWER]
    call = {"name": "f", "args": {}, "id": "1", "type": "tool_call"}
    messages = [
        HumanMessage("q"),
        AIMessage("", tool_calls=[call]),
        ToolMessage(blocks, tool_call_id="1"),
    ]
    state = subject.invoke({"messages": messages})
    assert state["messages"][2].content == blocks
    found = arrived(codec)
    want = [codec.compress(text, ratio=8).symbols for text in (RIVER, TOWER)]
    assert found == [code for symbols in want for code in symbols.codes]


def test_a_tool_that_retrieves_compressed_documents_is_trusted_where_that_is_said() -> None:
    codec = Watching()
    compressor = ZContextCompressor(model=codec, ratio=8)

    @tool
    def search(query: str) -> str:
        """Search."""
        (document,) = compressor.compress_documents([Document(page_content=RIVER)], query)
        return document.page_content

    def run(policy: Any) -> None:
        middleware = ZContextMiddleware(codec, on_symbols=policy)
        model = ChatZContext(model=codec)
        create_agent(model, [search], middleware=[middleware]).invoke(ask("Where?"))

    run("keep")
    assert arrived(codec) == list(codec.compress(RIVER, ratio=8).symbols.codes)
    with pytest.raises(SymbolCollisionError, match="keep"):
        run("refuse")


async def test_a_model_that_cannot_read_gets_the_originals_and_a_warning() -> None:
    codec = ByteCodec()
    for model in (
        FakeListChatModel(responses=["ok"]),
        ChatZContext(model=ByteCodec(name="other")),
    ):
        middleware = ZContextMiddleware(codec, ratio=8, min_tokens=32, keep_messages=1)
        subject = create_agent(model, middleware=[middleware])
        messages = {"messages": [HumanMessage(RIVER), AIMessage("ok"), HumanMessage("q")]}
        with pytest.warns(UnreadableSymbolsWarning, match="stay as they are"):
            subject.invoke(messages)
        with pytest.warns(UnreadableSymbolsWarning, match="stay as they are"):
            await subject.ainvoke(messages)
    assert not codec.calls


def test_it_stands_beside_a_summarizer() -> None:
    codec = Watching()
    model = ChatZContext(model=codec)
    subject = create_agent(
        model,
        middleware=[
            SummarizationMiddleware(model=model, trigger=("messages", 4), keep=("messages", 2)),
            ZContextMiddleware(codec, ratio=8, min_tokens=64, keep_messages=1),
        ],
    )
    messages = [HumanMessage(RIVER), AIMessage(TOWER), HumanMessage(BREAD), AIMessage("ok")]
    state = subject.invoke({"messages": [*messages, HumanMessage("How heavy is a baguette?")]})
    assert isinstance(state["messages"][-1], AIMessage)


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep_messages"):
        ZContextMiddleware(ByteCodec(), keep_messages=0)
    with pytest.raises(ConfigError, match="ratio"):
        ZContextMiddleware(ByteCodec(), ratio=1000)
