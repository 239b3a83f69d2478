"""A watch over prompts: says so when an LLM that cannot read symbols is handed some.

It listens to LlamaIndex's own events and changes nothing. It does not know who wrote the symbols.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index_instrumentation import get_dispatcher

from zcontext.integrations.exchange import warn_unreadable
from zcontext.vocabulary import has_symbols

READER_PREFIX: Final = "zcontext-"
"""Model names of `ZContextLLM` start with this."""

_lock: Final = Lock()


class _SymbolWatch(BaseEventHandler):
    @classmethod
    def class_name(cls) -> str:
        return "ZContextSymbolWatch"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, LLMChatStartEvent):
            text = "\n".join(message.content or "" for message in event.messages)
        elif isinstance(event, LLMCompletionStartEvent):
            text = event.prompt
        else:
            return
        model = event.model_dict
        name = str(model.get("model_name") or "")
        # A structured LLM passes its prompt on to one that sends an event of its own.
        if name.startswith(READER_PREFIX) or model.get("class_name") == "structured_llm":
            return
        if has_symbols(text):
            warn_unreadable(name if name not in ("", "unknown") else str(model.get("class_name")))


def watch_for_symbols() -> None:
    """Start the watch in this process, once; every postprocessor asks for it."""
    with _lock:
        dispatcher = get_dispatcher()
        if not any(isinstance(each, _SymbolWatch) for each in dispatcher.event_handlers):
            dispatcher.add_event_handler(_SymbolWatch())
