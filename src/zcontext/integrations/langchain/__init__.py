"""LangChain: retrieved documents reach the model as Z-tokens.

    compressor = ZContextCompressor(model="bundles/smollm2-135m", ratio=4)
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=store.as_retriever()
    )
    llm = ChatZContext(model="bundles/smollm2-135m")

Needs the extra: pip install "zcontext[langchain]". Weights are loaded when they are first used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from zcontext.errors import MissingDependencyError

if find_spec("langchain_core") is None:
    raise MissingDependencyError(
        'zcontext.integrations.langchain needs LangChain: pip install "zcontext[langchain]".',
        extra="langchain",
    )

from zcontext.integrations.langchain.chat import ChatZContext
from zcontext.integrations.langchain.documents import ZContextCompressor
from zcontext.integrations.langchain.llm import ZContextLLM
from zcontext.integrations.langchain.reading import PromptTooLongError
from zcontext.integrations.records import (
    SpanWarning,
    StaleSpanWarning,
    UnreadableSymbolsWarning,
)

if TYPE_CHECKING:
    from zcontext.integrations.langchain.middleware import ZContextMiddleware

__all__ = [
    "ChatZContext",
    "PromptTooLongError",
    "SpanWarning",
    "StaleSpanWarning",
    "UnreadableSymbolsWarning",
    "ZContextCompressor",
    "ZContextLLM",
    "ZContextMiddleware",
]


def __getattr__(name: str) -> Any:
    # Apart, because agents bring langgraph with them, which a retrieval chain does not need.
    if name != "ZContextMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zcontext.integrations.langchain.middleware import ZContextMiddleware

    return ZContextMiddleware
