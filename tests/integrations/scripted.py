"""A reader that calls tools by the book, for tests that need a model which does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from zcontext.config import GenerationSettings
from zcontext.spans import Answer, ChatMessage
from zcontext.testing import ByteCodec

_TOOLS = re.compile(r"<tools>\n(.*?)\n</tools>", re.DOTALL)
_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"'([^']+)'")


class ToolCaller(ByteCodec):
    """Answers with a call of the tool that was asked for, then with the echo of a ByteCodec."""

    def chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """A call if tools are described and no result has come back yet."""
        answer = super().chat(messages, settings=settings)
        call = self._call(messages)
        if call is None:
            return answer
        return Answer(
            text=call,
            stop_reason="end",
            n_prompt_tokens=answer.n_prompt_tokens,
            n_prompt_symbols=answer.n_prompt_symbols,
            n_output_tokens=len(call.encode()),
            seconds=answer.seconds,
        )

    def stream_chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """The text of `chat`, word by word."""
        yield from re.findall(r"\s*\S+", self.chat(messages, settings=settings).text)

    def _call(self, messages: Sequence[ChatMessage]) -> str | None:
        first, last = _text(messages[0]), _text(messages[-1])
        found = _TOOLS.search(first)
        if found is None or "<tool_response>" in last:
            return None
        tools = [json.loads(line) for line in found[1].splitlines()]
        named = re.search(r"must call the function (\S+) now", first)
        tool = next((t for t in tools if named and t["name"] == named[1]), tools[0])
        arguments = {
            name: _value(schema, last)
            for name, schema in tool.get("parameters", {}).get("properties", {}).items()
        }
        payload = json.dumps({"name": tool["name"], "arguments": arguments}, ensure_ascii=False)
        return f"<tool_call>\n{payload}\n</tool_call>"


def _text(message: ChatMessage) -> str:
    return "".join(part for part in message.parts if isinstance(part, str))


def _value(schema: dict[str, Any], text: str) -> Any:
    if schema.get("type") == "integer":
        found = _NUMBER.search(text)
        return int(found[0]) if found else 1
    named = _NAME.search(text)
    return named[1] if named else text
