"""The suites of langchain-tests, offline, over weightless codecs."""

from __future__ import annotations

from typing import Any

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pieces import BREAD, RIVER, TOWER
from scripted import ToolCaller

from zcontext.integrations.langchain import ChatZContext, ZContextCompressor
from zcontext.testing import ByteCodec

CODEC = ByteCodec()


class TestChatModel(ChatModelUnitTests):
    """The unit suite."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatZContext

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": ByteCodec(), "temperature": 0}


class TestChatModelIntegration(ChatModelIntegrationTests):
    """The integration suite, tools and structured output included."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatZContext

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": ToolCaller(context_length=1 << 16), "temperature": 0}


class Found(BaseRetriever):
    """A retriever with a `k`, whose results are compressed."""

    k: int = 3

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        compressed = ContextualCompressionRetriever(
            base_compressor=ZContextCompressor(model=CODEC, ratio=8),
            base_retriever=Plain(k=self.k if k is None else k),
        )
        return compressed.invoke(query, config={"callbacks": run_manager.get_child()})


class Plain(BaseRetriever):
    """Finds the first `k` of three documents."""

    k: int = 3

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(page_content=text) for text in (RIVER, TOWER, BREAD)][: self.k]


class TestRetriever(RetrieversIntegrationTests):
    """The retriever suite."""

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return Found

    @property
    def retriever_query_example(self) -> str:
        return "How long is the Seine?"
