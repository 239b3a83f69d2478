"""An agent middleware: long tool results and old history reach the model as symbols.

Only the model call sees symbols; the agent's state keeps every original message. What happens to
a text is decided in `exchange`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.agents.middleware.types import ModelCallResult
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from zcontext.config import DEFAULT_RATIO, CompressSettings
from zcontext.errors import ConfigError
from zcontext.integrations.engines import Engine, in_thread
from zcontext.integrations.exchange import (
    SPAN,
    Chunk,
    Exchange,
    ExchangeSettings,
    Policy,
    warn_unreadable,
)
from zcontext.integrations.langchain.chat import ChatZContext
from zcontext.integrations.langchain.watching import watch
from zcontext.store import MemoryStore, SpanStore, store_key

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


class ZContextMiddleware(AgentMiddleware[Any, Any, Any]):
    """Compresses long messages for each model call of an agent.

    Args:
        model: Folder or name of a bundle, a `ZLanguageModel`, or any `SupportsCompress`.
        ratio: Tokens per symbol; 4 if neither this nor `settings` gives a budget.
        min_tokens: Shorter texts stay text.
        keep_messages: So many of the newest messages stay text, tool results excepted.
        on_symbols: What to do with messages that spell symbols: "refuse", "escape", "drop", or
            "keep" where a tool answers with documents that are compressed already.
        settings: Further settings of the compressor.
        store: Remembers what was compressed, from one step of the agent to the next.

    Raises:
        ConfigError: if a value is out of its range.
        BundleError: if there is no such bundle.
    """

    def __init__(
        self,
        model: object,
        *,
        ratio: float | None = None,
        min_tokens: int = 256,
        keep_messages: int = 6,
        on_symbols: Policy = "refuse",
        settings: CompressSettings | None = None,
        store: SpanStore | None = None,
    ) -> None:
        super().__init__()
        if keep_messages < 1:
            raise ConfigError(
                f"keep_messages={keep_messages!r}: give 1 or more; the newest message asks.",
                field="keep_messages",
                value=keep_messages,
            )
        self.keep_messages = keep_messages
        self._engine = Engine(model)
        # Everything spelled out, since it names what the store keeps.
        self._in_force = (settings or CompressSettings(ratio=DEFAULT_RATIO)).replace(ratio=ratio)
        self._options = ExchangeSettings(
            min_tokens=min_tokens, on_symbols=on_symbols, compress=self._in_force
        )
        self._store = store if store is not None else MemoryStore()
        watch()

    def wrap_model_call(self, request: ModelRequest[Any], handler: Handler) -> ModelCallResult[Any]:
        """Call the model with compressed messages.

        Args:
            request: What the agent is about to ask.
            handler: Asks it.

        Returns:
            The model's answer.
        """
        if not self._readable(request.model):
            return handler(request)
        return handler(request.override(messages=self._compressed(request.messages)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: AsyncHandler
    ) -> ModelCallResult[Any]:
        """`wrap_model_call`, compressing off the event loop.

        Args:
            request: What the agent is about to ask.
            handler: Asks it.

        Returns:
            The model's answer.
        """
        if not self._readable(request.model):
            return await handler(request)
        messages = await in_thread(partial(self._compressed, request.messages))
        return await handler(request.override(messages=messages))

    def _readable(self, model: Any) -> bool:
        """Whether the agent's model reads what we would write; a warning if not."""
        while not isinstance(model, ChatZContext) and hasattr(model, "bound"):
            model = model.bound
        if isinstance(model, ChatZContext) and model.vocabulary.codec == self._codec:
            return True
        warn_unreadable(type(model).__name__, skipped=True)
        return False

    @property
    def _codec(self) -> str:
        return self._engine.vocabulary.codec

    def _compressed(self, messages: Sequence[AnyMessage]) -> list[AnyMessage]:
        """New messages, with symbols where texts were long enough."""
        n_old = len(messages) - self.keep_messages
        result = list(messages)
        places: list[tuple[int, int | None]] = []
        texts: list[str] = []
        for at, message in enumerate(messages):
            long_lived = isinstance(message, HumanMessage | AIMessage) and at < n_old
            if long_lived or isinstance(message, ToolMessage):
                for block, text in _texts(message):
                    places.append((at, block))
                    texts.append(text)
        for (at, block), text in zip(places, self._swap(texts), strict=True):
            result[at] = _replaced(result[at], block, text)
        return result

    def _swap(self, texts: Sequence[str]) -> list[str]:
        keys = [store_key(codec=self._codec, settings=self._in_force, text=text) for text in texts]
        known = self._store.get_many(keys)
        chunks = [
            Chunk(text, {SPAN: document.to_compact()} if document else {}, f"message text {i}")
            for i, (text, document) in enumerate(zip(texts, known, strict=True))
        ]
        exchange = Exchange(
            self._engine.vocabulary, compressor=self._engine.compressor, settings=self._options
        )
        result = exchange.swap(chunks)
        for key, before, item in zip(keys, known, result, strict=True):
            if before is None and item.document is not None:
                self._store.put(key, item.document)
        return [item.text for item in result]


def _texts(message: AnyMessage) -> list[tuple[int | None, str]]:
    """The texts of a message, each with the position of its content block."""
    if isinstance(message.content, str):
        return [(None, message.content)]
    return [
        (at, block if isinstance(block, str) else str(block["text"]))
        for at, block in enumerate(message.content)
        if isinstance(block, str) or block.get("type") == "text"
    ]


def _replaced(message: AnyMessage, block: int | None, text: str) -> AnyMessage:
    """A copy of a message with one of its texts replaced."""
    if block is None:
        return message.model_copy(update={"content": text})
    content: list[Any] = list(message.content)
    old = content[block]
    content[block] = text if isinstance(old, str) else {**old, "text": text}
    return message.model_copy(update={"content": content})
