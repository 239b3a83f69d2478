"""LangChain messages as turns of text and symbols.

Written symbols are found wherever they stand in a message. Tool calls and their results are
spelled out in text (`tools`), since a base's chat template knows only texts and roles.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import ChatMessage as RoleMessage

from zcontext.errors import ConfigError
from zcontext.integrations.langchain.tools import spell_call, spell_result
from zcontext.spans import ChatMessage, Part
from zcontext.vocabulary import ZVocabulary

# Parts of an assistant's turn that are told again in another way, or that no one reads twice.
_SILENT = frozenset(("tool_use", "tool_call", "thinking", "reasoning", "redacted_thinking"))


def turns_of(messages: Sequence[BaseMessage], vocabulary: ZVocabulary) -> list[ChatMessage]:
    """Messages as turns; neighbours of one role become one turn, as chat templates want it.

    Args:
        messages: In order.
        vocabulary: Of the codec in use.

    Returns:
        Turns of text and symbols.

    Raises:
        CodecMismatchError: if a message holds symbols of another codec.
        UnknownSymbolError: if a message holds a malformed symbol.
        ConfigError: if a message holds something else than text.
    """
    spoken: list[tuple[str, list[str]]] = []
    for message in messages:
        role = _role(message)
        if spoken and spoken[-1][0] == role:
            spoken[-1][1].append(_spell(message))
        else:
            spoken.append((role, [_spell(message)]))
    return [
        ChatMessage(role, tuple(vocabulary.split("\n\n".join(texts)))) for role, texts in spoken
    ]


def parts_of(turns: Sequence[ChatMessage]) -> list[Part]:
    """All parts of all turns, for counting."""
    return [part for turn in turns for part in turn.parts]


def text_of(message: BaseMessage) -> str:
    """The text of a message.

    Args:
        message: Of any kind.

    Returns:
        Its text blocks, one a line.

    Raises:
        ConfigError: if it holds something else than text.
    """
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text" or set(block) == {"text"}:
            texts.append(str(block.get("text", "")))
        elif block.get("type") not in _SILENT:
            raise ConfigError(
                f"A {message.type} message holds a block of type {block.get('type')!r}: this model "
                "reads text and symbols only. Take it out, or describe it in text.",
                field="content",
                value=block.get("type"),
            )
    return "\n".join(texts)


def _role(message: BaseMessage) -> str:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, RoleMessage):
        return message.role
    if isinstance(message, HumanMessage | ToolMessage | FunctionMessage):
        return "user"  # tool results too: not every template has a role for them
    raise ConfigError(
        f"A message is a {type(message).__name__}: give a system, human, AI, tool or chat message.",
        field="messages",
        value=message.type,
    )


def _spell(message: BaseMessage) -> str:
    text = text_of(message)
    if isinstance(message, ToolMessage | FunctionMessage):
        return spell_result(message.name, text)
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = [spell_call(call["name"], call["args"]) for call in message.tool_calls]
        return "\n".join([text, *calls] if text else calls)
    return text
