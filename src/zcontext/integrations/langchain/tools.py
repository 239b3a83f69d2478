"""Tool calls in text: how tools are described to a model, and how its calls are read back.

The layout is the one most open models were trained on: tools as JSON in the system turn, calls in
`<tool_call>`, results in `<tool_response>`. Nothing constrains the model to it: what does not
parse is handed on as an invalid call, never dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

_CALL: Final = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_INTRODUCTION: Final = (
    "You can call functions. Their signatures, as JSON:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and arguments as JSON between tags, and nothing else:\n"
    '<tool_call>\n{{"name": "a name from above", "arguments": {{}}}}\n</tool_call>'
)


def introduce(
    messages: Sequence[BaseMessage], *, tools: Sequence[dict[str, Any]], choice: str | None
) -> list[BaseMessage]:
    """The messages with the tools described in their system turn.

    Args:
        messages: In order.
        tools: In OpenAI's format.
        choice: "any", the name of the tool that has to be called, "none", or None to leave it to
            the model.

    Returns:
        New messages; those given are not changed.
    """
    if not tools or choice == "none":
        return list(messages)
    text = _INTRODUCTION.format(
        tools="\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
    )
    if choice == "any":
        text += "\nYou must call one of the functions now."
    elif choice is not None and choice != "auto":
        text += f"\nYou must call the function {choice} now."
    if messages and isinstance(messages[0], SystemMessage):
        first = SystemMessage(content=f"{messages[0].text}\n\n{text}")
        return [first, *messages[1:]]
    return [SystemMessage(content=text), *messages]


def spell_call(name: str, arguments: dict[str, Any]) -> str:
    """A call as the model would write it."""
    payload = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{payload}\n</tool_call>"


def spell_result(name: str | None, text: str) -> str:
    """A result as the model expects it."""
    heading = f"{name}:\n" if name else ""
    return f"<tool_response>\n{heading}{text}\n</tool_response>"


def read_calls(text: str) -> AIMessage:
    """An answer with its tool calls taken out of the text.

    Args:
        text: What the model generated.

    Returns:
        The message; calls that do not parse are among its `invalid_tool_calls`.
    """
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for match in _CALL.finditer(text):
        name = arguments = None
        identity = f"call_{uuid4().hex[:24]}"
        try:
            payload = json.loads(match[1])
            name, arguments = payload["name"], payload.get("arguments") or {}
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError("a name and an object of arguments are expected")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"The model's call is not readable: {error!r}"
            invalid.append(
                invalid_tool_call(name=str(name), args=match[1], id=identity, error=reason)
            )
            continue
        calls.append(tool_call(name=name, args=arguments, id=identity))
    rest = _CALL.sub("", text).strip() if calls or invalid else text
    return AIMessage(content=rest, tool_calls=calls, invalid_tool_calls=invalid)
