"""A callback handler that notices written symbols on their way to a model that cannot read them.

It is registered with LangChain when the first `ZContextCompressor` or `ZContextMiddleware` is
made, not on import: whoever writes symbols may hand them to the wrong model. It looks at prompts
and warns; it changes nothing.
"""

from __future__ import annotations

from contextvars import ContextVar
from threading import Lock
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.tracers.context import register_configure_hook

from zcontext.integrations.records import warn_unreadable
from zcontext.vocabulary import has_symbols

CHAT_TYPE: Final = "zcontext-chat"
LLM_TYPE: Final = "zcontext-llm"


class SymbolWatch(BaseCallbackHandler):
    """Warns with `UnreadableSymbolsWarning` when another model than ours is given symbols."""

    raise_error = True  # so that a warning turned into an error by a filter is one
    run_inline = True

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        """Look at the prompts of a completion model."""
        if not _is_ours(kwargs) and any(map(has_symbols, prompts)):
            warn_unreadable(_name(serialized, kwargs), stacklevel=2)

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **kwargs: Any
    ) -> None:
        """Look at the messages of a chat model."""
        if _is_ours(kwargs):
            return
        if any(has_symbols(_text(message)) for batch in messages for message in batch):
            warn_unreadable(_name(serialized, kwargs), stacklevel=2)


# The handler has no state, so that one for all threads and contexts is enough.
_current: ContextVar[SymbolWatch | None] = ContextVar(
    "zcontext_watch",
    default=SymbolWatch(),  # noqa: B039
)
_registering: Final = Lock()
_registered: list[bool] = []


def watch() -> None:
    """From now on look at every prompt that LangChain sends in this process; done once."""
    with _registering:
        if not _registered:
            register_configure_hook(_current, inheritable=True)
            _registered.append(True)


def _is_ours(kwargs: dict[str, Any]) -> bool:
    # Ours refuse symbols of another codec by themselves, with an error.
    return (kwargs.get("invocation_params") or {}).get("_type") in (CHAT_TYPE, LLM_TYPE)


def _name(serialized: dict[str, Any] | None, kwargs: dict[str, Any]) -> str:
    known = serialized or {}
    path = known.get("id") or [kwargs.get("name") or "A model"]
    return str(known.get("name") or path[-1])


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(
        block if isinstance(block, str) else str(block.get("text", "")) for block in message.content
    )
