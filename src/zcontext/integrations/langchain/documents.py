"""LangChain documents in, documents out: some carry symbols where their text was.

One `ZContextCompressor` serves both ends of a pipeline: as a transformer it writes spans into
metadata when documents are indexed, as a compressor it puts symbols in place of what a retriever
found. What happens to a chunk is decided in `exchange`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from pydantic import ConfigDict, PrivateAttr

from zcontext.config import CompressSettings
from zcontext.integrations.engines import Engine, in_thread
from zcontext.integrations.exchange import (
    ACTION,
    N_SYMBOLS,
    N_TOKENS,
    Chunk,
    ExchangeSettings,
    Policy,
)
from zcontext.integrations.langchain.watching import watch
from zcontext.integrations.opening import open_exchange
from zcontext.integrations.records import Output
from zcontext.vocabulary import ZVocabulary

_NAME = "ZContextCompressor"
_SCORES = ("relevance_score", "query_similarity_score")
"""Metadata in which LangChain's rerankers and filters say how relevant a document is."""


class ZContextCompressor(BaseDocumentCompressor, BaseDocumentTransformer):
    """Compresses documents to symbols that the same model reads in their place.

    `compress_documents` puts symbols in place of texts (for `ContextualCompressionRetriever` and
    `DocumentCompressorPipeline`); `transform_documents` leaves texts and writes the symbols into
    metadata, so that nothing has to be compressed when the documents are retrieved. One document
    in, one out, in order (unless `max_tokens` leaves some out); ids and metadata are kept, the
    documents given are not changed.

    Args:
        model: Folder or name of a bundle (loaded when something has to be compressed), a
            `ZLanguageModel`, or any `SupportsCompress`.
        ratio: Tokens per symbol; the compressor's own default if neither this nor `max_symbols`
            is given.
        max_symbols: Most symbols of one whole result list, instead of a ratio.
        max_tokens: Most positions of one whole result list: the most relevant documents stay
            text, others become symbols at a ratio of `ratio` or more, those without room are left
            out. Relevance is what rerankers write into metadata, else the order of the list.
        min_tokens: Shorter documents stay text.
        min_accuracy: Documents that read back worse than this share of tokens stay text.
        on_symbols: What to do with text that spells symbols: "refuse", "escape", "drop", or
            "keep" for documents whose metadata was lost after compression.
        keep_text: Keep the source text in metadata, for citations.
        settings: Further settings of the compressor.
        query_aware: Write documents for the query they were retrieved for: each is then compressed
            at query time, and symbols stored in metadata are not used. Documents that are symbols
            already are written again from these, where the codec's codes are names.
        output: "text" cuts documents down to readable text, for models that know no symbols.
        protect: What is kept as text between symbols: "tables", "code", "json", "numbers",
            "names", "urls", or patterns such as "re:ART-[0-9]+".

    Raises:
        ValidationError: pydantic's, with our message, if a value is out of its range.
        BundleError: if there is no such bundle.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Any
    ratio: float | None = None
    max_symbols: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 32
    min_accuracy: float | None = None
    on_symbols: Policy = "refuse"
    keep_text: bool = False
    settings: CompressSettings | None = None
    query_aware: bool = False
    output: Output = "symbols"
    protect: tuple[str, ...] = ()
    _engine: Engine = PrivateAttr()
    _options: ExchangeSettings = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the settings; nothing is loaded."""
        super().model_post_init(context)
        self._engine = Engine(self.model)
        self._options = ExchangeSettings(
            ratio=self.ratio,
            max_symbols=self.max_symbols,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            min_accuracy=self.min_accuracy,
            on_symbols=self.on_symbols,
            keep_text=self.keep_text,
            compress=self.settings,
            query_aware=self.query_aware,
            output=self.output,
            protect=self.protect,
        )
        watch()

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols this compressor writes."""
        return self._engine.vocabulary

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Symbols in place of texts.

        Args:
            documents: What a retriever found.
            query: Not looked at, as symbols written at index time must serve every query; unless
                `query_aware` is set.
            callbacks: Told of the run as of a chain.

        Returns:
            One document for each, in order, less those that `max_tokens` has no room for.

        Raises:
            ZContextError: if a document spells symbols, is not valid Unicode, holds symbols of
                another codec, or cannot be compressed.
        """
        return self._run(documents, callbacks, query=query)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """`compress_documents`, off the event loop; it raises the same errors.

        Args:
            documents: What a retriever found.
            query: Not looked at unless `query_aware` is set.
            callbacks: Told of the run as of a chain.

        Returns:
            One document for each, in order, less those that `max_tokens` has no room for.
        """
        return await self._arun(documents, callbacks, query=query)

    def transform_documents(
        self, documents: Sequence[Document], **kwargs: Any
    ) -> Sequence[Document]:
        """Symbols into metadata; texts stay.

        Args:
            documents: What is about to be indexed, already split.
            **kwargs: `callbacks`.

        Returns:
            One document for each, in order.

        Raises:
            ZContextError: if a document spells symbols, is not valid Unicode, holds symbols of
                another codec, or cannot be compressed.
        """
        return self._run(documents, kwargs.get("callbacks"), query=None)

    async def atransform_documents(
        self, documents: Sequence[Document], **kwargs: Any
    ) -> Sequence[Document]:
        """`transform_documents`, off the event loop; it raises the same errors.

        Args:
            documents: What is about to be indexed, already split.
            **kwargs: `callbacks`.

        Returns:
            One document for each, in order.
        """
        return await self._arun(documents, kwargs.get("callbacks"), query=None)

    def _run(
        self, documents: Sequence[Document], callbacks: Callbacks, *, query: str | None
    ) -> list[Document]:
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        run = manager.on_chain_start(None, _inputs(documents, query), name=_NAME)
        try:
            result = self._exchange(documents, query)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_summary(documents, result))
        return result

    async def _arun(
        self, documents: Sequence[Document], callbacks: Callbacks, *, query: str | None
    ) -> list[Document]:
        manager = AsyncCallbackManager.configure(inheritable_callbacks=callbacks)
        run = await manager.on_chain_start(None, _inputs(documents, query), name=_NAME)
        try:
            result = await in_thread(partial(self._exchange, documents, query))
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_summary(documents, result))
        return result

    def _exchange(self, documents: Sequence[Document], query: str | None) -> list[Document]:
        if not documents:
            return []
        exchange = open_exchange(self._engine, self._options, query)
        chunks = [
            Chunk(
                document.page_content,
                document.metadata,
                _label(position, document),
                score=_score(document),
            )
            for position, document in enumerate(documents)
        ]
        exchanged = exchange.index(chunks) if query is None else exchange.swap(chunks)
        return [
            document.model_copy(
                update={"page_content": item.text, "metadata": item.metadata(document.metadata)}
            )
            for document, item in zip(documents, exchanged, strict=True)
            if item.record.get(ACTION) != "dropped"
        ]


def _label(position: int, document: Document) -> str:
    return f"document {position}" + (f" (id={document.id!r})" if document.id else "")


def _score(document: Document) -> float | None:
    """What a reranker or an embeddings filter of LangChain's made of a document."""
    for key in _SCORES:
        if key in document.metadata:
            with suppress(TypeError, ValueError):
                return float(document.metadata[key])  # numpy's numbers too
    return None


def _inputs(documents: Sequence[Document], query: str | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {"documents": list(documents)}
    return inputs if query is None else {**inputs, "query": query}


def _summary(given: Sequence[Document], documents: Sequence[Document]) -> dict[str, Any]:
    """What a trace shows of a run."""
    records = [document.metadata for document in documents]
    return {
        "documents": list(documents),
        "n_dropped": len(given) - len(documents),
        "actions": dict(Counter(record.get(ACTION, "kept") for record in records)),
        "n_tokens": sum(record.get(N_TOKENS, 0) for record in records),
        "n_symbols": sum(record.get(N_SYMBOLS, 0) for record in records),
    }
