"""LlamaIndex's messages and responses, and ours: the translation between the two.

What it does not know: models and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
)

from zcontext.errors import CorruptSpanError, ModelError, UnknownSymbolError
from zcontext.spans import Answer, Part
from zcontext.spans import ChatMessage as Turn
from zcontext.vocabulary import ZVocabulary

_ROLES: Final = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}


def parts_of(text: str, vocabulary: ZVocabulary) -> list[Part]:
    """A prompt as text and symbols.

    Args:
        text: The prompt.
        vocabulary: Of the codec that is to read it.

    Returns:
        Its parts, in order.

    Raises:
        CodecMismatchError: if it holds symbols of another codec.
        CorruptSpanError: if it holds a cut or altered symbol.
    """
    try:
        return list(vocabulary.split(text))
    except UnknownSymbolError as error:
        # Not as it is: that is a ValueError, which LlamaIndex's refine loop logs and forgets.
        raise CorruptSpanError(f"The prompt cannot be read: {error}") from error


def turns_of(messages: Sequence[ChatMessage], vocabulary: ZVocabulary) -> list[Turn]:
    """A conversation as turns of text and symbols.

    Args:
        messages: LlamaIndex's messages.
        vocabulary: Of the codec that is to read them.

    Returns:
        One turn per message.

    Raises:
        ModelError: if a message holds something other than text.
        CodecMismatchError: if one holds symbols of another codec.
        CorruptSpanError: if one holds a cut or altered symbol.
    """
    turns: list[Turn] = []
    for message in messages:
        other = [type(b).__name__ for b in message.blocks if not isinstance(b, TextBlock)]
        if other:
            raise ModelError(
                f"A {message.role.value} message holds {', '.join(other)}: this model reads text "
                "and symbols only. Leave these blocks out, or turn them into text first."
            )
        role = _ROLES.get(message.role, message.role.value)
        turns.append(Turn(role, tuple(parts_of(message.content or "", vocabulary))))
    return turns


def usage_of(*, n_prompt: int, n_output: int) -> dict[str, int]:
    """Token usage under the names LlamaIndex looks for."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_output,
        "total_tokens": n_prompt + n_output,
    }


def raw_of(answer: Answer) -> dict[str, Any]:
    """What goes with an answer; a symbol counts as one token."""
    n_prompt = answer.n_prompt_tokens + answer.n_prompt_symbols
    return {
        "usage": usage_of(n_prompt=n_prompt, n_output=answer.n_output_tokens),
        "n_prompt_symbols": answer.n_prompt_symbols,
        "stop_reason": answer.stop_reason,
        "seconds": answer.seconds,
    }


def as_chat(text: str, *, raw: dict[str, Any] | None, delta: str | None = None) -> ChatResponse:
    """A response of the assistant; usage stays out of the message, which goes back into prompts."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=text),
        raw=raw,
        delta=delta,
        additional_kwargs=dict(raw["usage"]) if raw else {},
    )


def as_completion(
    text: str, *, raw: dict[str, Any] | None, delta: str | None = None
) -> CompletionResponse:
    """A completion."""
    return CompletionResponse(
        text=text, raw=raw, delta=delta, additional_kwargs=dict(raw["usage"]) if raw else {}
    )
